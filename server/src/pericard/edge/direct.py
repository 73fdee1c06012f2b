"""Inferences answered without a task and without ASGI's messages, by the answer function's own steps.

Everything of :class:`~pericard.edge.protocol.GuardedProtocol` holds here too. An inference whose connection answers
nothing else at the moment becomes an exchange: its body is collected, its response written. Whatever is unusual
(another route, HTTP/1.0, an upgrade, ``Expect``, a request behind another one) goes uvicorn's way.

A head that was answered well before is not parsed again: the same bytes at the start of a message mean the same. Its
credential is looked at every time; its body is as long as the head says, and whatever follows is the next message's.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from pericard.edge.answer import Answerer
from pericard.edge.asgi import is_inference, joined
from pericard.edge.gate import Call, Found
from pericard.edge.http import Head, Response
from pericard.edge.protocol import GuardedProtocol
from pericard.errors import MalformedRequest, PericardError, RequestTimeout

_END = b"\r\n\r\n"
_LONGEST_HEAD = 2048
_MOST_HEADS = 4096
_LARGE = 16 << 10  # from here on, a copy costs more than a view
_OK = 200


class Known(NamedTuple):
    """A head that was answered well: what it says, and how long the body behind it is."""

    method: str
    path: str
    headers: dict[str, str]
    found: Found
    length: int


class _Nobody:
    """Waits for nothing; uvicorn says by it that something of a body arrived."""

    def set(self) -> None:
        """Nobody waits."""


_NOBODY = _Nobody()


class _Exchange:
    """One request and its response; in the place of uvicorn's cycle, with as much of its surface as the protocol uses.

    Attributes:
        head: of the request.
        call: once the caller was let in.
        parts: of the body.
        size: of the parts.
        learnt: the head's bytes, if they may be remembered.
        waits: it is refused, and the refusal is written later.
    """

    __slots__ = (
        "call", "disconnected", "head", "keep_alive", "learnt", "message_event", "more_body", "parts",
        "response_complete", "size", "waits",
    )  # fmt: skip

    def __init__(self, head: Head, *, keep_alive: bool) -> None:
        self.head = head
        self.call: Call | None = None
        self.parts: list[bytes | memoryview] = []
        self.size = 0
        self.learnt: bytes | None = None
        self.keep_alive = keep_alive
        self.more_body = True
        self.disconnected = self.response_complete = self.waits = False
        self.message_event = _NOBODY

    def add(self, part: bytes | memoryview) -> None:
        """A part of the body."""
        self.parts.append(part)
        self.size += len(part)

    def body(self) -> bytes | memoryview:
        """The parts in one; they are let go of."""
        parts, self.parts = self.parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)


class DirectProtocol(GuardedProtocol):
    """One connection; :func:`protocol` gives the class its answerer and the heads that are known."""

    answerer: Answerer
    heads: dict[bytes, Known]

    _open: _Exchange | None = None  # that has no response yet
    _fresh: _Exchange | None = None  # that entered with the bytes that are being parsed
    _between = True  # two messages: the parser holds nothing of the next one
    _missing = 0  # bytes of a known head's body
    _since = 0.0  # when the last response was written
    _dated: tuple[object, bytes] = (None, b"")

    def data_received(self, data: bytes) -> None:
        """Take a message with a known head as it is; have everything else parsed."""
        if self._missing:
            self._collect(data)
            return
        whole = self._between
        if whole and not self._refused and not self._answering():
            end = data.find(_END, 0, _LONGEST_HEAD) + len(_END)
            known = self.heads.get(data[:end]) if end >= len(_END) else None
            if known is not None and self._resume(known, data, end):
                return
        super().data_received(data)
        fresh, self._fresh = self._fresh, None
        if fresh is not None and not fresh.response_complete:
            fresh.learnt = _memorable(fresh, data) if whole else None
            self._admit(fresh)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever is being answered has left."""
        exchange = self._open
        self._missing = 0
        if exchange is not None and exchange.waits:
            self._done(exchange)  # it was told of
        elif exchange is not None and exchange.more_body:
            self._told_of(MalformedRequest("body: ended before its end"), exchange)
        elif exchange is not None:
            exchange.head.gone.happen()
            self._done(exchange)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A message begins, and is the parser's."""
        self._between = False
        super().on_message_begin()

    def enter(self) -> None:
        """A head is whole: an inference is answered here, if all about it is as usual."""
        method = self.parser.get_method().decode("ascii")
        unusual = self.expect_100_continue or self.parser.should_upgrade() or self.flow.write_paused
        usual = self.parser.get_http_version() == "1.1" and not unusual and not self._answering()
        path = httptools.parse_url(self.url).path.decode("latin-1") if usual else ""
        if is_inference(method, path):
            headers = joined(self.headers)
            address, certificate = self.who(headers)
            head = Head(method, path, headers, address, certificate=certificate)
            self._fresh = self._opened(_Exchange(head, keep_alive=self.parser.should_keep_alive()))
        else:
            super().enter()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        exchange = self._current()
        if exchange is None:
            super().on_body(body)
        elif not self._refused and not exchange.waits:
            exchange.add(body)
            if exchange.call is not None:
                self._hold(exchange)

    def on_message_complete(self) -> None:
        """A message is whole."""
        exchange = self._current()
        self._between = True
        super().on_message_complete()
        if exchange is not None and exchange.call is not None and not self._refused:
            self._answer(exchange)

    def interrupted(self, error: PericardError) -> None:
        """A body broke the rules; whoever found that writes the refusal."""
        exchange = self._current()
        if exchange is None:
            super().interrupted(error)
        else:
            self._told_of(error, exchange)

    def on_response_complete(self) -> None:
        """A response was handed to the transport, here or in uvicorn's way."""
        self._since = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more came on an idle connection, unless it was busy meanwhile: one clock serves many requests."""
        self.timeout_keep_alive_task = None
        left = self.timeout_keep_alive - (self.loop.time() - self._since)
        if left <= 0 and not self._answering() and self._between:
            super().timeout_keep_alive_handler()
        else:
            self._expect_next(left if left > 0 else self.timeout_keep_alive)

    # --- known heads -------------------------------------------------------------------------------------------------

    def _resume(self, known: Known, data: bytes, end: int) -> bool:
        """Take a message with a known head; False if something is unusual today, which the long way looks at."""
        if self.flow.write_paused or self.transport.is_closing() or len(self.connections) > self.most:
            return False
        address, certificate = self.who(known.headers)
        head = Head(known.method, known.path, known.headers, address, certificate=certificate)
        exchange = _Exchange(head, keep_alive=True)
        try:
            exchange.call = self.answerer.admit(head, known.found)
            self.answerer.permit(exchange.call)
        except Exception:  # noqa: BLE001  (said by the long way, whatever it is)
            return False
        self._opened(exchange)
        self._missing = known.length
        self._in_head = False
        if len(data) - end < known.length:
            self._await_body()
        self._collect(memoryview(data)[end:] if known.length > _LARGE else data[end:])
        return True

    def _collect(self, data: bytes | memoryview) -> None:
        """A part of the body behind a known head, and perhaps the beginning of what follows."""
        exchange, rest = self._open, b""
        if exchange is None:
            raise AssertionError("a body belongs to no request")
        if len(data) > self._missing:
            data, rest = data[: self._missing], bytes(data[self._missing :])
        self._missing -= len(data)
        exchange.add(data)
        if not self._missing:
            self._end()
            self._in_head, exchange.more_body = True, False
            self._answer(exchange)
        if rest and not self.transport.is_closing():
            self.data_received(rest)

    # --- one exchange ------------------------------------------------------------------------------------------------

    def _opened(self, exchange: _Exchange) -> _Exchange:
        self._open = exchange
        self.cycle = cast("RequestResponseCycle", exchange)
        return exchange

    def _current(self) -> _Exchange | None:
        """The exchange whose message is being read."""
        exchange = self._open
        return exchange if exchange is not None and exchange is cast("object", self.cycle) else None

    def _admit(self, exchange: _Exchange) -> None:
        """Let a caller in, or refuse it at once, whatever of its body is still to come."""
        try:
            exchange.call = self.answerer.admit(exchange.head)
            self.answerer.permit(exchange.call)
        except Exception as error:  # noqa: BLE001  (a mistake of ours is answered like any other)
            self._fail(error, exchange)
            return
        if exchange.more_body:
            self._await_body()
            self._hold(exchange)
        else:
            self._answer(exchange)

    def _await_body(self) -> None:
        self._end()
        self._timer = self.loop.call_later(self.limits.body_seconds, self._late)

    def _hold(self, exchange: _Exchange) -> bool:
        """Hold a body against its limit; False if it was refused."""
        try:
            self.limits.check_body(exchange.size)
        except PericardError as error:
            self._fail(error, exchange)
            return False
        return True

    def _late(self) -> None:
        exchange = self._current()
        if exchange is None or not exchange.more_body:
            super()._late()
            return
        self._timer = None
        self._missing = 0
        self._fail(RequestTimeout(f"body: did not arrive within {self.limits.body_seconds:g} seconds"), exchange)
        self.linger()

    def _answer(self, exchange: _Exchange) -> None:
        if exchange.call is not None and self._hold(exchange):
            self.answerer.begin(exchange.call, exchange.body(), partial(self._reply, exchange))

    def _fail(self, error: Exception, exchange: _Exchange) -> None:
        response = self.answerer.failure(error, exchange.head, exchange.call)
        exchange.keep_alive = exchange.keep_alive and "connection" not in response.headers
        if response.after and not self.transport.is_closing():
            exchange.waits, exchange.parts = True, []
            self.flow.pause_reading()  # what it sends meanwhile costs us nothing
            self.loop.call_later(response.after, self._reply, exchange, response)
        else:
            self._reply(exchange, response)

    def _reply(self, exchange: _Exchange, response: Response) -> None:
        """Write a response, if somebody is there to read it."""
        if exchange.response_complete:
            return
        self._done(exchange)
        if self.transport.is_closing():
            return
        if exchange.waits:
            self.flow.resume_reading()
        if response.status == _OK and exchange.learnt is not None:
            self._learn(exchange.learnt, exchange)
        self.write(response, last=not exchange.keep_alive, before=self._every())
        if not exchange.keep_alive:
            self.transport.close()
        if self.pipeline or not exchange.keep_alive:
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self._since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._expect_next(self.timeout_keep_alive)

    def _told_of(self, error: PericardError, exchange: _Exchange) -> None:
        """A request ended without a response of ours; it is told of all the same."""
        self._done(exchange)
        self.answerer.failure(error, exchange.head, exchange.call)

    def _done(self, exchange: _Exchange) -> None:
        exchange.response_complete = True
        exchange.parts = []
        self._open = None

    def _learn(self, raw: bytes, exchange: _Exchange) -> None:
        call = exchange.call
        if call is not None:
            if len(self.heads) >= _MOST_HEADS:
                self.heads.clear()
            head = call.head
            self.heads[raw] = Known(head.method, head.path, dict(head.headers), call.found, exchange.size)

    def _expect_next(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _every(self) -> bytes:
        """The lines that every response has; uvicorn makes them anew each second."""
        headers = self.server_state.default_headers
        made, lines = DirectProtocol._dated
        if made is not headers:
            lines = b"".join([b"%b: %b\r\n" % header for header in headers])
            DirectProtocol._dated = (headers, lines)
        return lines


def _memorable(exchange: _Exchange, data: bytes) -> bytes | None:
    """A head's bytes, if one message was all of ``data``, with which it began.

    What a head is, the parser decided. Here only lengths are compared, so that none is remembered that it read
    otherwise: the head ends where the body begins, whose length it says.
    """
    headers = exchange.head.headers
    end = data.find(_END, 0, _LONGEST_HEAD) + len(_END)
    if exchange.more_body or not exchange.keep_alive or end < len(_END) or "transfer-encoding" in headers:
        return None
    if len(data) != end + exchange.size or headers.get("content-length") != str(exchange.size):
        return None
    return data[:end] if data[end:] == b"".join(exchange.parts) else None


def protocol(answerer: Answerer, *, connections: int, direct: bool, believes: bool = False) -> type[GuardedProtocol]:
    """The protocol class for a server.

    Args:
        answerer: answers inferences, and hears of every refusal.
        connections: that may be open at a time.
        direct: whether inferences are answered without a task.
        believes: whether a proxy is at the other end, and what it says of its clients counts.
    """
    members: dict[str, object] = {"believes": believes}
    members |= {"limits": answerer.limits, "most": connections, "told": staticmethod(answerer.refused)}
    if not direct:
        return type("Protocol", (GuardedProtocol,), members)
    return type("Protocol", (DirectProtocol,), {**members, "answerer": answerer, "heads": {}})
