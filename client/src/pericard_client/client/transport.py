"""The two carriers: blocking, and for ``asyncio``."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx2
import numpy.typing as npt

from pericard_client import wire
from pericard_client.client.conversation import Conversation, Flow, Options
from pericard_client.errors import (
    ClientError,
    ConnectionLost,
    ServerUnreachable,
    TimedOut,
    TlsRefused,
    TransportError,
    UnexpectedReply,
)
from pericard_client.models import ModelMetadata, PredictResult, Proof

_LARGEST_REPLY = 64 << 20
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")

T = TypeVar("T")


class Client:
    """A synchronous client; use it as a context manager.

    Args:
        base_url: the server's address, ``https://…``; with a token ``http://`` is for loopback alone.
        options: ``token``, or better ``token_file``, which wins; ``ca_file``: PEM certificates of the authority that
            the server's must come from, by default the system's; ``timeout``: seconds for each attempt from
            connecting to the last byte (30); ``retries``: how often a request that was provably not processed is
            repeated (2); ``expect_manifest``: SHA-256 of the only model manifest whose answers are accepted;
            ``allow_plaintext``: send the token over unencrypted HTTP to another machine.

    Raises:
        NotSendable: an option cannot be used. What the methods raise is drawn in ``pericard_client.errors``.
    """

    def __init__(self, base_url: str, **options: Unpack[Options]) -> None:
        self._talk = Conversation(base_url, **options)
        self._http = httpx2.Client(verify=self._talk.trust, timeout=self._talk.timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self, strips: npt.ArrayLike, *, sampling_rate: float, unit: str, leads: Sequence[str], model: str | None = None
    ) -> PredictResult:
        """Score strips ``[N][C][T]`` (``[C][T]``, and for one lead ``[T]`` and ``[N][T]``, too).

        Args:
            strips: samples in ``unit``; they travel as 32-bit floats, many strips in several requests.
            sampling_rate: in Hz; what the samples have, not what the model wants.
            unit: of the samples.
            leads: one name for each channel.
            model: may be left out where the server has exactly one.
        """
        return self._run(self._talk.predict(strips, model=model, sampling_rate=sampling_rate, unit=unit, leads=leads))

    def metadata(self, model: str) -> ModelMetadata:
        """What the server says about a model: identity, shapes, signal contract, threshold."""
        return self._run(self._talk.metadata(model))

    def models(self) -> tuple[str, ...]:
        """The names of the models that the token may use."""
        return self._run(self._talk.models())

    def proof(self, index: int) -> Proof:
        """A record of the audit log with its proof, for ``pericard_client.evidence``; the token needs ``audit``."""
        return self._run(self._talk.proof(index))

    def ready(self) -> bool:
        """Whether the server can answer predictions now; needs no token."""
        return self._run(self._talk.ready())

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                time.sleep(step.wait)
                try:
                    reply = self._send(step.request)
                except TransportError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, request: wire.Request) -> wire.Reply:
        body, url = _Body(self._talk), self._talk.address + request.path
        with (
            _named(self._talk),
            self._http.stream(request.method, url, headers=request.headers, content=request.body or None) as response,
        ):
            for chunk in response.iter_bytes():
                body.add(chunk)
            return body.reply(response)


class AsyncClient:
    """The client for ``asyncio``: arguments and methods as ``Client``'s."""

    def __init__(self, base_url: str, **options: Unpack[Options]) -> None:
        self._talk = Conversation(base_url, **options)
        self._http = httpx2.AsyncClient(verify=self._talk.trust, timeout=self._talk.timeout, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self, strips: npt.ArrayLike, *, sampling_rate: float, unit: str, leads: Sequence[str], model: str | None = None
    ) -> PredictResult:
        """As ``Client.predict``."""
        flow = self._talk.predict(strips, model=model, sampling_rate=sampling_rate, unit=unit, leads=leads)
        return await self._run(flow)

    async def metadata(self, model: str) -> ModelMetadata:
        """As ``Client.metadata``."""
        return await self._run(self._talk.metadata(model))

    async def models(self) -> tuple[str, ...]:
        """As ``Client.models``."""
        return await self._run(self._talk.models())

    async def proof(self, index: int) -> Proof:
        """As ``Client.proof``."""
        return await self._run(self._talk.proof(index))

    async def ready(self) -> bool:
        """As ``Client.ready``."""
        return await self._run(self._talk.ready())

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                await asyncio.sleep(step.wait)
                try:
                    reply = await self._send(step.request)
                except TransportError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, request: wire.Request) -> wire.Reply:
        body, url = _Body(self._talk), self._talk.address + request.path
        with _named(self._talk):
            async with self._http.stream(
                request.method, url, headers=request.headers, content=request.body or None
            ) as response:
                async for chunk in response.aiter_bytes():
                    body.add(chunk)
                return body.reply(response)


class _Body:
    """A reply's body as it arrives, bounded in time and in size."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self._end = time.monotonic() + talk.timeout
        self._received = bytearray()

    def add(self, chunk: bytes) -> None:
        self._received += chunk
        if len(self._received) > _LARGEST_REPLY:
            raise UnexpectedReply(f"reply: more than {_LARGEST_REPLY} bytes")
        if time.monotonic() > self._end:  # each read has its own time-out; a trickle would never meet it
            raise _timed_out(self._talk)

    def reply(self, response: httpx2.Response) -> wire.Reply:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return wire.Reply(response.status_code, headers, bytes(self._received))


@contextmanager
def _named(talk: Conversation) -> Iterator[None]:
    """Give the transport's exceptions our names."""
    try:
        yield
    except httpx2.RequestError as error:
        raise _transport_error(error, talk) from error


def _transport_error(error: httpx2.RequestError, talk: Conversation) -> ClientError:
    reason = _ERRNO.sub("", str(error)).lower() or type(error).__name__
    tls = _tls_cause(error)
    if tls is not None:
        reason = getattr(tls, "verify_message", "") or (tls.reason or reason).replace("_", " ").lower()
        return TlsRefused(f"server {talk.address}: {reason}")
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        hint = "is the address right, and the server up?"
        return ServerUnreachable(f"server {talk.address}: no connection: {reason}", hint=hint)
    if isinstance(error, httpx2.TimeoutException):
        return _timed_out(talk)
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        hint = "it may have been processed; is the address right, http or https?"
        return ConnectionLost(f"server {talk.address}: the connection broke: {reason}", hint=hint)
    return UnexpectedReply(f"server {talk.address}: {reason}")


def _timed_out(talk: Conversation) -> TimedOut:
    return TimedOut(f"server {talk.address}: no whole reply within {talk.timeout:g} s", hint="allow more time")


def _tls_cause(error: BaseException) -> ssl.SSLError | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause
