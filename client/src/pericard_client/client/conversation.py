"""What is asked, how often, and what an answer must be."""

from __future__ import annotations

import re
import ssl
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias, TypedDict, TypeVar

import httpx2
import numpy.typing as npt

from pericard_client import wire
from pericard_client.errors import (
    ModelIdentityMismatch,
    NotSendable,
    ServerUnreachable,
    Unavailable,
)
from pericard_client.models import ModelIdentity, ModelMetadata, PredictResult, Proof

MOST_RETRIES = 10
LONGEST_WAIT = 30.0
"""Seconds between two attempts; a server that asks for more is reported, not waited for."""
_FIRST_WAIT = 0.5
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class Options(TypedDict, total=False):
    """How a client talks to its server; all may be left out."""

    token: str | None
    token_file: Path | str | None
    ca_file: Path | str | None
    timeout: float
    retries: int
    expect_manifest: str | None
    allow_plaintext: bool


@dataclass(frozen=True, slots=True)
class Step:
    """Wait so many seconds, then send this; resume with the reply, or with the transport error."""

    request: wire.Request
    wait: float = 0.0


Flow: TypeAlias = "Generator[Step, wire.Reply, T]"


class Conversation:
    """The sequence of requests of each operation; it is handed replies and does no I/O after its making.

    Raises:
        NotSendable: an option cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        token_file: Path | str | None = None,
        ca_file: Path | str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        expect_manifest: str | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        if not 0 <= retries <= MOST_RETRIES:
            raise NotSendable(f"retries: {retries} is not between 0 and {MOST_RETRIES}")
        if not timeout > 0:
            raise NotSendable(f"timeout: {timeout:g} s is not positive")
        if expect_manifest is not None and not _SHA256.fullmatch(expect_manifest):
            raise NotSendable("expected manifest: not 32 bytes in lower-case hex")
        self._token = token if token_file is None else _read_token(Path(token_file))
        self.address = _address(base_url, secret=self._token is not None, allow_plaintext=allow_plaintext)
        self.trust = _trust(ca_file)
        self.timeout = timeout
        self._retries = retries
        self._manifest = expect_manifest

    def predict(
        self, strips: npt.ArrayLike, *, model: str | None, sampling_rate: float, unit: str, leads: Sequence[str]
    ) -> Flow[PredictResult]:
        """Score strips, in as many requests as their size needs."""
        parts: list[PredictResult] = []
        for batch in wire.batches(wire.as_strips(strips, len(leads))):
            request = wire.predict_request(
                batch,
                model=model,
                sampling_rate=sampling_rate,
                unit=unit,
                leads=leads,
                token=self._token,
                request_id=uuid.uuid4().hex,
            )
            part = yield from self._ask(request, partial(wire.parse_prediction, strips=len(batch)))
            self._check(part.model, model)
            parts.append(part)
        return reduce(_joined, parts)

    def metadata(self, model: str) -> Flow[ModelMetadata]:
        """Describe a model."""
        found = yield from self._ask(self._get(wire.metadata_path(model)), wire.parse_metadata)
        self._check(found.identity, model)
        return found

    def models(self) -> Flow[tuple[str, ...]]:
        """List the caller's models."""
        return (yield from self._ask(self._get("/v2/models"), wire.parse_models))

    def proof(self, index: int) -> Flow[Proof]:
        """Fetch a record of the audit log with its proof."""
        if index < 0:
            raise NotSendable(f"record: {index} is not the index of one")
        return (yield from self._ask(self._get(f"/audit/receipts/{index}"), wire.parse_proof))

    def ready(self) -> Flow[bool]:
        """Ask for readiness, without a credential."""
        request = wire.get_request("/readyz", token=None, request_id=uuid.uuid4().hex)
        return (yield from self._ask(request, wire.parse_ready))

    def _get(self, path: str) -> wire.Request:
        return wire.get_request(path, token=self._token, request_id=uuid.uuid4().hex)

    def _ask(self, request: wire.Request, parse: Callable[[wire.Reply], T]) -> Flow[T]:
        step = Step(request)
        for attempt in range(self._retries):
            try:
                return parse((yield step))
            except ServerUnreachable:
                step = Step(request, _FIRST_WAIT * 2**attempt)
            except Unavailable as error:
                # 504 is not repeated: the request was accepted, and may be answered and recorded yet.
                if error.status != HTTPStatus.SERVICE_UNAVAILABLE or (error.retry_after or 0) > LONGEST_WAIT:
                    raise
                backoff = _FIRST_WAIT * 2**attempt
                step = Step(request, backoff if error.retry_after is None else float(error.retry_after))
        return parse((yield step))

    def _check(self, identity: ModelIdentity, asked: str | None) -> None:
        if asked is not None and identity.name != asked:
            raise ModelIdentityMismatch(f"model {asked}: the server answered with model {identity.name}")
        if self._manifest is not None and identity.manifest != self._manifest:
            raise ModelIdentityMismatch(
                f"model {identity.name}: its manifest is {identity.manifest}, and {self._manifest} was expected",
                hint="the model was replaced; expect its new manifest once it has been accepted",
            )


def _joined(whole: PredictResult, part: PredictResult) -> PredictResult:
    if part.model != whole.model or part.runtime != whole.runtime:
        raise ModelIdentityMismatch(
            f"model {whole.model.name}: it was replaced while the recording was being sent", hint="send it again"
        )
    return replace(
        part,
        request_ids=whole.request_ids + part.request_ids,
        predictions=whole.predictions + part.predictions,
    )


def _address(base_url: str, *, secret: bool, allow_plaintext: bool) -> str:
    """The server's address without a trailing slash, once it is one that samples and a token may go to."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise NotSendable(f"server: {base_url!r} is not an address") from error
    if url.userinfo:
        raise NotSendable("server: its address holds a credential", hint="keep the token in a file")
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
        raise NotSendable(f"server: {base_url!r} is not an address", hint="such as https://ecg.example:8443")
    if url.scheme == "http" and secret and not allow_plaintext and not _is_loopback(url.host):
        raise NotSendable(
            f"server: the token would travel unencrypted to {url.host}", hint="use https, or allow plaintext expressly"
        )
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise NotSendable(f"token file {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise NotSendable(f"token file {path}: it does not hold a token") from error


def _trust(ca_file: Path | str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise NotSendable(f"certificate authority file {ca_file}: not a file of PEM certificates") from error
