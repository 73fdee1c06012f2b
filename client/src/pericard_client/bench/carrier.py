"""HTTP/1.1 over kept connections, as thin as a load generator needs it.

Rules of this room: one request at a time on a connection; a reply must announce its length; nothing is repeated, and
what cannot be read closes the connection. Time and size are bounded. Proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from pericard_client.errors import (
    ClientError,
    ConnectionLost,
    ServerUnreachable,
    TimedOut,
    TlsRefused,
    UnexpectedReply,
)
from pericard_client.wire import Reply

MOST_CONNECTIONS = 512
"""What a server takes by default; and half of what ``select``, the precise clock of the loop, can watch."""
_LARGEST_HEAD = 64 << 10
_LARGEST_BODY = 64 << 20
_NO_BODY = (204, 304)
_STATUS_WORDS = 2

Head: TypeAlias = tuple[int, dict[str, str], int]


class Connection(asyncio.Protocol):
    """One connection; ``ask`` may be called again once its reply has come."""

    def __init__(self) -> None:
        self.usable = False
        self.deadline = 0.0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._received = bytearray()
        self._head: Head | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's: it is open."""
        if isinstance(transport, asyncio.Transport):
            self._transport, self.usable = transport, True

    def ask(self, parts: Sequence[bytes], timeout: float) -> asyncio.Future[Reply]:
        """Send one request; the future holds its reply, or raises a ``ClientError``."""
        if self._transport is None:
            raise ConnectionLost("server: the connection is not open")
        self._answer = asyncio.get_running_loop().create_future()
        self.deadline = time.monotonic() + timeout
        self._transport.writelines(parts)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes have come."""
        self._received += data
        try:
            reply = self._whole()
        except ValueError as error:
            self.fail(UnexpectedReply(f"reply: {error}"))
            return
        if reply is None:
            return
        self.usable = reply.headers.get("connection", "").lower() != "close"
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(reply)
        if not self.usable:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: it is closed."""
        self.fail(ConnectionLost(f"server: the connection broke: {str(exc or 'closed by the server').lower()}"))

    def fail(self, error: ClientError) -> None:
        """Give up what was asked, and the connection."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()

    def close(self) -> None:
        """End it at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _whole(self) -> Reply | None:
        """The reply, once all of it is there."""
        if self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end > _LARGEST_HEAD or (end < 0 and len(self._received) > _LARGEST_HEAD):
                raise ValueError(f"its headers are larger than {_LARGEST_HEAD} bytes")
            if end < 0:
                return None
            self._head = _head(bytes(self._received[:end]))
            del self._received[: end + 4]
        status, headers, length = self._head
        if len(self._received) > length or self._answer is None or self._answer.done():
            raise ValueError("more came than was asked for")
        if len(self._received) < length:
            return None
        body, self._head = bytes(self._received), None
        self._received.clear()
        return Reply(status, headers, body)


class Carrier:
    """Connections to one address, opened when one is needed and none is idle; the caller bounds how many.

    Args:
        address: ``http://`` or ``https://``, as ``Conversation`` has checked it.
        trust: what the server's certificate must come from.
        timeout: seconds for connecting, and from sending to the last byte of the reply.
    """

    def __init__(self, address: str, trust: ssl.SSLContext, timeout: float) -> None:
        url = urlsplit(address)
        self._address, self._host, self.timeout = address, url.hostname or "", timeout
        self._tls = trust if url.scheme == "https" else None
        self._port = url.port or (80 if self._tls is None else 443)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    @property
    def in_flight(self) -> int:
        """How many requests wait for their reply."""
        return len(self._busy)

    async def ask(self, parts: Sequence[bytes]) -> Reply:
        """Send one request and wait for its reply.

        Raises:
            ClientError: a ``TransportError``, or ``UnexpectedReply`` for what is no HTTP reply.
        """
        connection = self._take() or await self._open()
        self._busy.add(connection)
        try:
            return await connection.ask(parts, self.timeout)
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
            if connection.usable:
                self._idle.append(connection)

    def expire(self) -> None:
        """Give up what has waited too long; called every few hundredths of a second, cheaper than a timer for each."""
        now = time.monotonic()
        for connection in [each for each in self._busy if each.deadline < now]:
            connection.fail(TimedOut(f"server {self._address}: no whole reply within {self.timeout:g} s"))

    def close(self) -> None:
        """Close every connection."""
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    def _take(self) -> Connection | None:
        while self._idle:  # the one used last: the fewest connections stay in use, and none of those is stale
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _open(self) -> Connection:
        try:
            async with asyncio.timeout(self.timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self._host, self._port, ssl=self._tls
                )
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or str(error.reason or error).replace("_", " ").lower()
            raise TlsRefused(f"server {self._address}: {reason}") from error
        except OSError as error:  # TimeoutError is one
            reason = (error.strerror or str(error) or "timed out").lower()
            raise ServerUnreachable(
                f"server {self._address}: no connection: {reason}", hint="is the address right, and the server up?"
            ) from error
        return connection


def _head(text: bytes) -> Head:
    """Status, headers by lower-case name, and the length of the body."""
    first, *rest = text.decode("latin-1").split("\r\n")
    words = first.split(" ", _STATUS_WORDS)
    if len(words) < _STATUS_WORDS or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ValueError("it is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError("one of its headers has no colon")
        headers[name.lower()] = value.strip()
    status = int(words[1])
    length = headers.get("content-length", "0" if status in _NO_BODY else "")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
        raise ValueError("it does not announce its length with Content-Length, which is read here alone")
    if int(length) > _LARGEST_BODY:
        raise ValueError(f"it is larger than {_LARGEST_BODY} bytes")
    return status, headers, int(length)
