"""uvicorn's HTTP/1.1 protocol with the limits that it lacks.

The answer function sees a request once its head is whole; what a stranger may cost before that is limited here: bytes
and seconds of a head, bytes and seconds of a whole message, requests that wait for another, seconds of a peer that
does not read, and connections. What is refused here is a problem with a code too, and is told like every other refusal.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from pericard.auth import Certificate, read_certificate
from pericard.edge import problems, proxied
from pericard.edge.asgi import ARRIVED, CERTIFICATE, GONE, joined
from pericard.edge.http import Gone, Response
from pericard.edge.limits import Limits
from pericard.edge.proxied import Client
from pericard.errors import MalformedRequest, Overloaded, PericardError, RequestTimeout, RequestTooLarge

_LINGER_SECONDS = 2.0
_HIGH_WATER = 256 << 10  # bytes of a body that nobody has asked for yet
_GRACE_SECONDS = 2.0  # the answer function's own time-out for the body comes first, and says more
_MOST_WAITING = 16  # requests sent before the answer to an earlier one; each costs memory
_WIRE_SLACK = 1 << 20  # chunk headers, on top of twice the body

Told = Callable[[PericardError, str], None]


class GuardedProtocol(HttpToolsProtocol):
    """One connection; :func:`guarded` gives the class its limits."""

    limits: Limits
    most: int
    told: Told

    certificate: Certificate | None = None  # of this connection's peer, and of no other
    believes = False  # a proxy, in what it says of its clients: on its own socket alone
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _size = 0  # bytes of this message
    _in_head = True
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start the clock: a connection is there to bring a request."""
        super().connection_made(transport)
        self.certificate = _certificate(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock; whoever is still being answered has left."""
        self._end()
        if self._answering():
            cast("dict[str, Gone]", self.cycle.scope)[GONE].happen()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count, parse, and refuse what is too much."""
        if self._refused:
            return  # discarded, so that the refusal can still be read
        if self._timer is None:
            self._begin()
        self._size += len(data)
        super().data_received(data)
        if self._in_head and self._size > 2 * self.limits.header_bytes:
            self._refuse(RequestTooLarge(f"headers: are larger than {self.limits.header_bytes} bytes"))
        elif self._size > 2 * (self.limits.body_bytes + self.limits.header_bytes) + _WIRE_SLACK:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        cast("dict[str, object]", self.scope)[GONE] = Gone()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; what comes behind the body is none, or a credential could hide there."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A head is whole; it is answered if there is room."""
        self._in_head = False
        if len(self.connections) > self.most:
            self._refuse(Overloaded(f"server: {self.most} connections are open already", hint="try again later"))
        if len(self.pipeline) >= _MOST_WAITING:
            self._refused = True
            self.transport.abort()
        if self.believes and not self._refused:
            try:
                proxied.client(joined(self.headers))
            except MalformedRequest as error:
                self._refuse(error)
        if not self._refused:
            self.enter()

    def enter(self) -> None:
        """A request that is not refused enters."""
        scope = cast("dict[str, object]", self.scope)
        scope[CERTIFICATE] = self.certificate
        if self.believes:
            address, scope[CERTIFICATE] = self.who(joined(self.headers))
            scope["client"] = (address, 0)
        super().on_headers_complete()
        cast("dict[str, object]", self.scope)[ARRIVED] = partial(_arrived, self.cycle)

    def who(self, headers: Mapping[str, str]) -> Client:
        """Whose request with these headers is.

        Raises:
            MalformedRequest: a proxy that is believed does not say it.
        """
        if self.believes:
            return proxied.client(headers)
        return Client(self.client[0] if self.client else "", self.certificate)

    def interrupted(self, error: PericardError) -> None:
        """The body of the request that is being answered broke the rules: its application hears that it ended."""
        del error  # the application says it in its own words
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def on_body(self, body: bytes) -> None:
        """A part of a body; uvicorn would pause the socket several times in a recording of twelve leads."""
        if self._refused or self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > _HIGH_WATER:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """A message is whole; the next one may take its own time."""
        if self._refused:
            return
        super().on_message_complete()
        self._end()
        self._size, self._in_head = 0, True

    def on_response_complete(self) -> None:
        """An answer was handed to the transport."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses."""
        del msg  # uvicorn's words, not ours
        self._refuse(MalformedRequest("request: is not valid HTTP/1.1"))

    def pause_writing(self) -> None:
        """The peer does not read: it has as long as an answer may take."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more came on an idle connection."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    # --- limits ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A message begins, or a connection from which one is expected."""
        self._timer = self.loop.call_later(self.limits.body_seconds + _GRACE_SECONDS, self._late)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._answering():
            self._begin()  # a pipelined message waits for the answer before it, whose time is limited
        elif self._in_head and self._size:
            self._refuse(RequestTimeout(f"headers: did not arrive within {self.limits.body_seconds:g} seconds"))
        else:
            self.transport.abort()  # nothing was sent, or it was answered and still sends

    def _answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete  # there is none before the first request

    def _refuse(self, error: PericardError) -> None:
        """Answer without the application, and take nothing more from this connection."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._end()
        if self._answering() and not self.cycle.more_body:  # garbage behind a request: its answer is still given
            self.cycle.keep_alive = False
            self._abort_later()
            return
        if self._answering():
            self.interrupted(error)
        else:
            self.told(error, self.client[0] if self.client else "")
        if not self.pipeline:  # or it would stand inside another answer
            self.write(problems.response(error, request_id=os.urandom(12).hex()), last=True)
        self.linger()

    def write(self, found: Response, *, last: bool, before: bytes = b"") -> None:
        """Write a whole response; ``last`` says that no other follows, ``before`` are lines that every response has."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in found.headers.items()]).encode("latin-1")
        closing = b"connection: close\r\n" if last and "connection" not in found.headers else b""
        size = b"content-length: %d\r\n\r\n" % len(found.body)
        self.transport.write(b"".join((STATUS_LINE[found.status], before, lines, closing, size, found.body)))

    def linger(self) -> None:
        """End the connection, but not before the peer, which may still send, could read what was written."""
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _abort_later(self) -> None:
        """A connection that was closed and whose peer does not read what is left."""
        self.loop.call_later(self.limits.answer_seconds, self.transport.abort)


def _certificate(transport: asyncio.Transport) -> Certificate | None:
    """The certificate of a peer, with the authorities of the context by which TLS verified it."""
    connection = transport.get_extra_info("ssl_object")
    trust = getattr(connection.context, "trust", "") if connection is not None else ""
    der = connection.getpeercert(binary_form=True) if trust else None
    return None if der is None else read_certificate(der, trust=trust)


def _arrived(cycle: RequestResponseCycle) -> bytes | None:
    """A body that is whole before anybody asked for it; it is given once."""
    if cycle.more_body or cycle.disconnected or cycle.response_started:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.flow.resume_reading()
    return body
