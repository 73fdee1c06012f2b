"""What the commands do; loaded when one runs, because it needs numpy, DICOM and HTTP."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from pericard_client.cli.answer import Answer, description_lines, identity_lines
from pericard_client.cli.voice import EXIT_FAILED, EXIT_UNAVAILABLE, lines, report, say
from pericard_client.client import Client
from pericard_client.errors import (
    BackendFailed,
    ClientError,
    ContractMismatch,
    FileError,
    InvalidInput,
    ModelIdentityMismatch,
    NotSendable,
    PlotError,
    RequestTooLarge,
    ServerError,
)
from pericard_client.formats import as_recorded, prepare, read
from pericard_client.models import ModelMetadata
from pericard_client.plot import check, plot

_ABOUT_ONE_FILE = (FileError, ContractMismatch, InvalidInput, RequestTooLarge, BackendFailed)


def connect(options: dict[str, Any]) -> Client:
    """A client from the options that every command has."""
    return Client(
        options["server"],
        token=os.environ.get("PERICARD_TOKEN") or None,
        token_file=options["token_file"],
        ca_file=options["ca"],
        timeout=options["timeout"],
        retries=options["retries"],
        expect_manifest=options["expect_manifest"],
        allow_plaintext=options["allow_plaintext"],
    )


def ready(options: dict[str, Any]) -> int:
    """Print whether the server can answer; the exit code says so, too."""
    with connect(options) as client:
        answer = client.ready()
    click.echo("ready" if answer else "not ready")
    return 0 if answer else EXIT_UNAVAILABLE


def model(name: str | None, out: str, options: dict[str, Any]) -> None:
    """Print one model's description, or the names of all."""
    with connect(options) as client:
        if name is None:
            names = client.models()
            click.echo(json.dumps({"models": names}) if out == "json" else "\n".join(names))
            return
        metadata = client.metadata(name)
    if out == "json":
        click.echo(json.dumps(asdict(metadata), default=str))
    else:
        lines(identity_lines(metadata) + description_lines(metadata))


@dataclass(slots=True)
class PredictRun:
    """One run of ``predict``; a file that fails does not keep the others from their answer."""

    options: dict[str, Any]
    picture: Path | None
    out: str
    document: list[dict[str, Any]] = field(default_factory=list)
    known: ModelMetadata | None = None

    def run(self, files: tuple[Path, ...]) -> int:
        """Answer every file, print, and return the exit code."""
        if self.picture is not None:
            check(self.picture)  # before an answer is asked for, and recorded, that could not be drawn
        code = 0
        with connect(self.options) as client:
            for path in files:
                try:
                    answer = self._ask(client, path)
                    code = max(code, self._show(answer))
                except ClientError as error:
                    about_file = isinstance(error, _ABOUT_ONE_FILE)
                    code = max(code, report(error, str(path) if about_file else ""))
                    self.document.append({"file": str(path), "error": _error_fields(error)})
                    if not about_file:
                        break  # the next file would meet the same
        if self.out == "json":
            click.echo(json.dumps({"recordings": self.document}))
        return code

    def _ask(self, client: Client, path: Path) -> Answer:
        leads = tuple(name.strip() for name in (self.options["leads"] or "").split(",") if name.strip())
        recording = read(path, sampling_rate=self.options["sampling_rate"], unit=self.options["unit"], leads=leads)
        if self.known is None:
            self.known = client.metadata(self.options["model"] or only_model(client.models()))
        fit = as_recorded if self.options["no_resample"] else prepare
        strips = fit(recording, self.known, leads=tuple(self.options["lead"]))
        result = client.predict(
            strips.samples,
            model=self.known.identity.name,
            sampling_rate=strips.sampling_rate,
            unit=strips.unit,
            leads=strips.leads,
        )
        if result.model != self.known.identity:
            raise ModelIdentityMismatch(
                f"model {result.model.name}: it was replaced since its description was read", hint="send it again"
            )
        return Answer(path, recording, strips, result, self.known)

    def _show(self, answer: Answer) -> int:
        if self.out == "json":
            self.document.append(answer.fields())
        else:
            answer.show()
        failed = [each.error.detail for each in answer.result.predictions if each.status == "error" and each.error]
        if failed:
            say(f"{answer.path}: {len(failed)} of {len(answer.strips.starts)} windows have no answer: {failed[0]}")
        try:
            if self.picture is not None:
                plot(answer.strips, answer.result, answer.metadata, self.picture)
        except PlotError as error:  # the answer was given and recorded, and stands
            return report(error)
        return EXIT_FAILED if failed else 0


def only_model(names: tuple[str, ...]) -> str:
    """The one model that a token may use; more or none is refused with what there is."""
    if len(names) != 1:
        raise NotSendable(
            f"model: the token may use {len(names)}: {', '.join(names) or 'none'}", hint="name one with --model"
        )
    return names[0]


def _error_fields(error: ClientError) -> dict[str, Any]:
    fields: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, ServerError):
        fields |= {"status": error.status, "request_id": error.request_id}
    return fields
