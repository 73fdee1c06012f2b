"""The edge's end: asks, and waits, on an event loop.

The engine may go away at any moment and come back on another socket with another region: whoever waits then gets
``engine-away``, and a new :meth:`EngineLink.attach` makes everything work again. A place in the region is used again
only once the engine answered the question that named it, whether anybody still waits or not.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from pericard.errors import DeadlineExceeded, EngineAway, Overloaded, PericardError, PipeError, from_code
from pericard.pipe.frames import (
    Entry,
    Frame,
    FrameReader,
    FrameType,
    Kind,
    Meta,
    Question,
    encode,
    entries,
    pack_question,
    parse_meta,
)
from pericard.pipe.region import Region, Slot

_MAX_UNSENT = 64 << 20


class Answer(NamedTuple):
    """What the engine said of one row: what it shares with its batch, and its own entry."""

    shared: Meta
    entry: Entry

    @property
    def flaw(self) -> str | None:
        """Why the row was not interpretable; None if it was."""
        return None if self.entry.kind is Kind.OK else self.entry.data.decode("utf-8", "replace")


class Asked(NamedTuple):
    """A question that is under way."""

    number: int
    future: asyncio.Future[Answer]


class _Waiting(NamedTuple):
    future: asyncio.Future[Any]
    timer: asyncio.TimerHandle
    slot: Slot | None


class EngineLink:
    """A connection to the engine.

    Attributes:
        catalog: what the engine serves, or None while it is away.
    """

    def __init__(self, on_catalog: Callable[[], None] | None = None, on_lost: Callable[[], None] | None = None) -> None:
        """Start without an engine.

        Args:
            on_catalog: is called whenever one said what it serves.
            on_lost: is called whenever the connection ended.
        """
        self.catalog: Meta | None = None
        self._on_catalog = on_catalog
        self._on_lost = on_lost
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._transport: asyncio.Transport | None = None
        self._region: Region | None = None
        self._shared: tuple[bytes, Meta] = (b"", {})

    async def attach(self, sock: socket.socket, region: int) -> None:
        """Use a new socket and a new region, by its descriptor; the old connection, if any, is closed.

        Raises:
            PipeError: the region is not one; the socket is closed.
        """
        try:
            mapped = Region(region)
        except PipeError:
            sock.close()
            raise
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: _Protocol(self, mapped), sock=sock)

    def close(self) -> None:
        """Close the connection; whoever waits gets ``engine-away``."""
        if self._transport is not None:
            self._transport.abort()
            self._lost(self._transport)

    def reserve(self, size: int) -> Slot:
        """A place for one row; it is given to :meth:`infer`, or back by :meth:`release`.

        Raises:
            EngineAway: there is no engine.
            Overloaded: there is no place at the moment.
        """
        if self._region is None:
            raise _away()
        return self._region.reserve(size)

    def release(self, slot: Slot) -> None:
        """Give a place back that was not asked about."""
        slot.region.release(slot)

    def infer(self, slot: Slot, question: Question, seconds: float) -> Asked:
        """Ask about the row in a slot, which is the link's from now on.

        Args:
            slot: where the row was written.
            question: its offset and size are the slot's.
            seconds: how long to wait.

        Returns:
            What was asked: its future gives the answer, or raises ``EngineAway``, ``DeadlineExceeded``, or what the
            engine said. Whoever waits no more says so by :meth:`abandon`.

        Raises:
            EngineAway: there is no engine, or another one than the slot was reserved for.
            PipeError: the question does not fit a frame. Then, too, the slot is given back.
        """
        transport = self._transport
        if transport is None or slot.region is not self._region:
            raise _away()
        number = next(self._numbers)
        try:
            frame = pack_question(number, question)
        except PipeError:
            self.release(slot)
            raise
        loop = asyncio.get_running_loop()
        asked = Asked(number, loop.create_future())
        timer = loop.call_later(seconds, self._late, number, seconds)
        self._waiting[number] = _Waiting(asked.future, timer, slot)
        transport.write(frame)
        return asked

    def abandon(self, asked: Asked) -> None:
        """Tell the engine that nobody waits; nothing happens if it answered."""
        waiting = self._waiting.get(asked.number)
        if waiting is None:
            return
        waiting.timer.cancel()
        waiting.future.cancel()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(FrameType.CANCEL, asked.number, {}))

    async def ask(self, name: str, fields: Meta | None = None, *, seconds: float) -> tuple[Meta, bytes]:
        """Ask for anything else; head and body of the reply.

        Raises:
            EngineAway, DeadlineExceeded, Overloaded, PericardError: as :meth:`infer`.
        """
        transport = self._transport
        if transport is None:
            raise _away()
        if transport.get_write_buffer_size() > _MAX_UNSENT:
            raise Overloaded("engine: does not take requests as fast as they come", hint="try again later")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Meta, bytes]] = loop.create_future()
        number = next(self._numbers)
        frame = encode(FrameType.ASK, number, {**(fields or {}), "ask": name})
        self._waiting[number] = _Waiting(future, loop.call_later(seconds, self._late, number, seconds), None)
        transport.write(frame)
        try:
            return await future
        finally:
            self._forget(number)

    def event(self, meta: Meta) -> None:
        """Tell the engine something to count or record; never waits, and is lost while the engine is away."""
        if self._transport is not None and self._transport.get_write_buffer_size() < _MAX_UNSENT:
            self._transport.write(encode(FrameType.EVENT, 0, meta))

    # --- what comes back ---------------------------------------------------------------------------------------------

    def _late(self, number: int, seconds: float) -> None:
        waiting = self._waiting.get(number)
        if waiting is None or waiting.future.done():
            return
        waiting.future.set_exception(
            DeadlineExceeded(f"answer: did not come within {seconds:g} seconds", hint="try again later")
        )
        if waiting.slot is not None:  # the slot waits for the answer all the same
            self.abandon(Asked(number, waiting.future))

    def _forget(self, number: int) -> asyncio.Future[Any] | None:
        """Take what waits under a number, and free what it holds; its future if somebody still waits."""
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return None
        waiting.timer.cancel()
        if waiting.slot is not None:
            self.release(waiting.slot)
        return None if waiting.future.done() else waiting.future

    def _made(self, transport: asyncio.Transport, region: Region) -> None:
        # here and not after the connect: between the two, the other end may have spoken or gone
        self.close()
        self._transport, self._region = transport, region

    def _received(self, frame: Frame) -> None:
        if frame.type is FrameType.ANSWERS:
            if frame.head != self._shared[0]:
                self._shared = (frame.head, parse_meta(frame.head))
            shared = self._shared[1]
            for entry in entries(frame.body):
                future = self._forget(entry.request)
                if future is not None:
                    future.set_result(Answer(shared, entry))
        elif frame.type is FrameType.CATALOG:
            self._heed(frame.meta)
        elif frame.type is FrameType.REPLY:
            meta = frame.meta  # read first: whoever is forgotten and not answered would wait for ever
            future = self._forget(frame.request)
            if future is not None:
                future.set_result((meta, frame.body))
        elif frame.type is FrameType.ERROR:
            error = _error(frame.meta)
            future = self._forget(frame.request)
            if future is not None:
                future.set_exception(error)
        else:
            raise PipeError(f"pipe: the engine sent a frame of type {frame.type.name}")

    def _heed(self, catalog: Meta) -> None:
        """Rest on a new catalog from now on, and say so: every question before this word rested on an older one."""
        self.catalog = catalog
        if self._transport is not None:
            self._transport.write(encode(FrameType.HEARD, 0, {"generation": catalog.get("generation", 0)}))
        if self._on_catalog is not None:
            self._on_catalog()

    def _lost(self, transport: asyncio.Transport | None) -> None:
        if transport is not self._transport:
            return
        self._transport = self._region = self.catalog = None
        for number in list(self._waiting):
            future = self._forget(number)
            if future is not None:
                future.set_exception(EngineAway("engine: went away before it answered", hint="try again in a second"))
        if self._on_lost is not None:
            self._on_lost()


class _Protocol(asyncio.Protocol):
    def __init__(self, link: EngineLink, region: Region) -> None:
        self._link = link
        self._region = region
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._link._made(self._transport, self._region)  # noqa: SLF001  (two halves of one thing)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._link._received(frame)  # noqa: SLF001
        except PipeError:
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._link._lost(self._transport)  # noqa: SLF001


def _away() -> EngineAway:
    return EngineAway("engine: is not there at the moment", hint="try again in a second")


def _error(meta: Meta) -> PericardError:
    hint = meta.get("hint")
    return from_code(str(meta.get("code")), str(meta.get("message")), hint if isinstance(hint, str) else None)
