"""``pericard replay``: the same question again, and whether the answer has the same bits."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.engine.replay import Claim, Conditions, Verdict
    from pericard.keys import LogVerifier
    from pericard.library import Who
    from pericard.runtime.loader import LoadedModel
    from pericard.trust import Pins

_CONFIG = Path("/etc/pericard/server.yaml")
_EXISTING = click.Path(path_type=Path, dir_okay=False, exists=True)  # it is read late, when the model is loaded
_SHOWN = 16


@dataclass(frozen=True)
class Site:
    """Where the evidence and the models are."""

    log: Path
    verifier: LogVerifier
    models: Sequence[Path]
    pins: Pins
    who: Who


@click.command()
@click.argument("receipt", type=FILE)
@click.option(
    "--input", "strip", type=_EXISTING, required=True, help="What was asked: .json as sent, .npy, .csv, or bytes."
)
@click.option("--item", type=click.IntRange(0), help="Which one, where RECEIPT or the input holds several; from 0.")
@click.option("--config", type=FILE, help=f"The server's configuration.  [default: {_CONFIG}]")
@click.option(
    "--log", type=click.Path(path_type=Path, file_okay=False), help="Instead of --config: the log's directory."
)
@click.option("--key", type=FILE, help="With --log: its public key, log.pub.")
@click.option("--model", type=FILE, help="With --log: the sealed model that answered.")
@click.option("--identity", type=FILE, help="With --log: the identity that opens the model.")
@click.option("--publishers", type=FILE, help="With --log: publishers.json, or one publisher.pub.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def replay(
    receipt: Path,
    strip: Path,
    item: int | None,
    config: Path | None,
    log: Path | None,
    key: Path | None,
    model: Path | None,
    identity: Path | None,
    publishers: Path | None,
    as_json: bool,
) -> None:
    """Compute an answer again, and say whether it has the same bits.

    RECEIPT is the saved answer of /predict, one prediction of it, or only its receipt. The record must lie in the log
    under a signed head, and commit to the input; the model is asked at the recorded batch size, place, threads and
    device. The exit status is 0 only for the same bits.
    """
    from pericard import hardening
    from pericard.cli import kept
    from pericard.engine.replay import conditions

    claim = kept.claim(receipt, item)
    given = (log, key, model, identity, publishers)
    site = _given(*given) if any(given) else None
    if site is not None and config is not None:
        raise click.UsageError("Give either --config, or --log and what goes with it.")
    site = site or _configured(config or _CONFIG)
    wanted = conditions(_record(site, claim), claim)
    hardening.protect_memory()
    verdict = _replay(site, claim, wanted, strip, item)
    _show(verdict, claim, as_json=as_json)


def _given(
    log: Path | None, key: Path | None, model: Path | None, identity: Path | None, publishers: Path | None
) -> Site:
    from pericard.keys import LogVerifier, Publisher
    from pericard.trust import Pins, TrustStore

    if log is None or key is None or model is None or identity is None or publishers is None:
        raise click.UsageError("--log, --key, --model, --identity and --publishers go together.")
    pins = Pins.of(Publisher.read(publishers)) if publishers.suffix == ".pub" else TrustStore(publishers).load()
    return Site(log, LogVerifier.read(key), [model], pins, identity)


def _configured(path: Path) -> Site:
    from pericard import settings
    from pericard.daemon.values import unlock_values
    from pericard.keys import LogKey
    from pericard.trust import TrustStore

    found = settings.load(path)
    return Site(
        Path(found.audit.directory),
        LogKey.read(Path(found.audit.key)).verifier,
        [Path(name) for name in found.models],
        TrustStore(Path(found.publishers)).load(),
        unlock_values(found),
    )


def _record(site: Site, claim: Claim) -> bytes:
    """The record that a receipt names, proven to lie under a signed head."""
    from pericard.audit import default_origin
    from pericard.errors import ReceiptInvalid

    origin = default_origin(site.verifier)
    if claim.log != origin:
        raise ReceiptInvalid(
            f"record {claim.index}: the receipt is of the log {claim.log!a:.80}, this one is {origin}",
            hint="replay against the log of the server that answered",
        )
    return _proven(site, claim.index)


def _proven(site: Site, index: int) -> bytes:
    from pericard.audit import open_receipt
    from pericard.audit.receipt import receipt

    found = receipt(site.log, index)
    open_receipt(found.record, found.proof, found.head, verifier=site.verifier)
    return found.record


def _host(site: Site, index: int, device: str) -> str | None:
    """The class of the host that answered: as the engine's last start before the answer recorded it."""
    from pericard.audit.reading import raw_records
    from pericard.audit.record import parse

    start, host = None, None
    for at, data in raw_records(site.log, stop=index):
        if b'"event":"start"' in data and (fields := parse(data)).get("event") == "start":
            start, host = at, fields.get("host")
    of_device = host.get(device) if isinstance(host, dict) else None
    found = of_device.get("class") if isinstance(of_device, dict) else None
    if start is None or not isinstance(found, str):
        return None
    _proven(site, start)  # the host's class is evidence as the answer is
    return found


def _replay(site: Site, claim: Claim, wanted: Conditions, strip: Path, item: int | None) -> Verdict:
    from pericard import environment
    from pericard.cli import kept
    from pericard.engine.replay import Here, replay
    from pericard.runtime import exported, host

    recorded = _host(site, claim.index, wanted.device)
    exported.set_threads(wanted.threads)  # before the model is loaded: its known answers are asked with them too
    runtime = environment.describe().digest
    with _open(site, wanted, runtime) as model:
        here = Here(runtime, environment.host_class(host.arithmetic(model.device)).digest, host.threads())
        inputs = kept.row(strip, model.description.inputs, item)
        return replay(wanted, claim, inputs, model, here, host=recorded)


def _open(site: Site, wanted: Conditions, runtime: str) -> LoadedModel:
    """The model that answered, through every check but what a site remembers: a withdrawn one said what it said."""
    from pericard import environment, library
    from pericard.engine.replay import other_model
    from pericard.errors import ReplayImpossible, UnsupportedModel
    from pericard.progress import bar
    from pericard.runtime import host
    from pericard.runtime.exported import pick_device
    from pericard.runtime.loader import load
    from pericard.sealed import SealedModel, add_grants_beside
    from pericard.trust import Policy, TrustState

    seen = []
    for path in site.models:
        with SealedModel(path) as source:
            manifest = hashlib.sha256(source.manifest_bytes).hexdigest()
            if manifest != wanted.manifest:
                seen.append(f"{path.name} ({manifest[:_SHOWN]})")
                continue
            try:
                device = pick_device(wanted.device)
            except UnsupportedModel as error:
                raise ReplayImpossible(
                    f"record {wanted.index}: was computed on {wanted.device}, and none is here"
                ) from error
            verified = source.verify(site.pins.publishers)
            add_grants_beside(verified, path)
            with tempfile.TemporaryDirectory() as folder, bar(f"opening {path.name}") as progress:
                here = environment.this_host(host.cuda([device]))
                policy = Policy(site.pins, TrustState(Path(folder) / "trust.json"), runtime=runtime, host=here)
                return load(
                    verified, library.open_identity(site.who), policy, device=device, now=int(time.time()),
                    progress=progress,
                )  # fmt: skip
    raise other_model(wanted, ", ".join(seen) or "no model")


def _show(verdict: Verdict, claim: Claim, *, as_json: bool) -> None:
    done = verdict.conditions
    if as_json:
        value: dict[str, Any] = {
            "same_bits": True,
            "log": claim.log,
            "index": done.index,
            "model": done.model,
            "manifest": done.manifest,
            "bucket": done.bucket,
            "place": done.place,
            "threads": done.threads,
            "device": done.device,
            "runtime": done.runtime,
            "same_runtime": verdict.same_runtime,
            "same_host": verdict.same_host,
            "saved_answer": verdict.saved,
        }
        click.echo(json.dumps(value, indent=2))
    else:
        click.echo(
            f"same bits: record {done.index}, {done.model}, bucket {done.bucket}, place {done.place}, "
            f"{done.threads} thread{'' if done.threads == 1 else 's'}, {done.device}, runtime {done.runtime[:_SHOWN]}"
        )
    if not verdict.same_runtime:
        click.echo("note: here in another runtime than the recorded one, which promised nothing", err=True)
    if verdict.same_host is False:
        click.echo("note: here on another class of host than the recorded one, which promised nothing", err=True)
