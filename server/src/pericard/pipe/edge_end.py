"""The edge's end: asks, and waits, on an event loop.

The engine may go away at any moment and come back on another socket with another region: whoever waits then gets
``engine-away``, and a new :meth:`EngineLink.attach` makes everything work again. A place in the region is used again
only once the engine answered the question that named it, whether anybody still waits or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, cast

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
_LOOK_SECONDS = 0.1
_FINISH_SECONDS = 1.0


class Answer(NamedTuple):
    """What the engine said of one row: what it shares with its batch, and its own entry."""

    shared: Meta
    entry: Entry

    @property
    def flaw(self) -> str | None:
        """Why the row was not interpretable; None if it was."""
        return None if self.entry.kind is Kind.OK else self.entry.data.decode("utf-8", "replace")


#: Hears what became of one question, once; None if no answer came in time. It never raises.
Told = Callable[["Answer | PericardError | None"], None]


class _Asked:
    """A question that is under way: whom to tell, if anybody still waits, and when that ends."""

    __slots__ = ("latest", "slot", "told")

    def __init__(self, told: Told, slot: Slot, latest: float) -> None:
        self.told: Told | None = told
        self.slot = slot
        self.latest = latest


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
        self._asked: dict[int, _Asked] = {}
        self._replies: dict[int, asyncio.Future[tuple[Meta, bytes]]] = {}
        self._clock: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._region: Region | None = None
        self._shared: tuple[bytes, Meta] = (b"", {})
        self._unsaid = bytearray()  # frames of this turn of the loop
        self._ended = asyncio.Event()

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

    async def finish(self) -> None:
        """Close the connection once what was said last has left, or after a second."""
        if self._transport is None:
            return
        self._flush()
        self._ended = asyncio.Event()
        self._transport.close()  # once all is written
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_SECONDS):
                await self._ended.wait()
        self.close()

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

    def infer(self, slot: Slot, question: Question, seconds: float, told: Told) -> int:
        """Ask about the row in a slot, which is the link's from now on.

        Args:
            slot: where the row was written.
            question: its offset and size are the slot's.
            seconds: how long to wait, give or take a tenth.
            told: gets the answer, ``EngineAway``, or what the engine said.

        Returns:
            The question's number, by which whoever waits no more says so: :meth:`abandon`.

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
        self._asked[number] = _Asked(told, slot, time.monotonic() + seconds)
        if self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        self._say(frame)
        return number

    def abandon(self, number: int) -> None:
        """Tell the engine that nobody waits; nothing happens if it answered. Nobody is told."""
        asked = self._asked.get(number)
        if asked is None:
            return
        asked.told = None
        if self._transport is not None and not self._transport.is_closing():
            self._say(encode(FrameType.CANCEL, number, {}))

    async def ask(self, name: str, fields: Meta | None = None, *, seconds: float) -> tuple[Meta, bytes]:
        """Ask for anything else; head and body of the reply.

        Raises:
            EngineAway, DeadlineExceeded, Overloaded, PericardError: as :meth:`infer`.
        """
        transport = self._transport
        if transport is None:
            raise _away()
        if self._unsent() > _MAX_UNSENT:
            raise Overloaded("engine: does not take requests as fast as they come", hint="try again later")
        number = next(self._numbers)
        frame = encode(FrameType.ASK, number, {**(fields or {}), "ask": name})
        future: asyncio.Future[tuple[Meta, bytes]] = asyncio.get_running_loop().create_future()
        self._replies[number] = future
        self._say(frame)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise DeadlineExceeded(f"{name}: took longer than {seconds:g} seconds", hint="try again later") from None
        finally:
            self._replies.pop(number, None)

    def event(self, meta: Meta) -> bool:
        """Tell the engine something to count or record; never waits. False if the engine is away, and was not told."""
        if self._transport is None or self._unsent() >= _MAX_UNSENT:
            return False
        self._say(encode(FrameType.EVENT, 0, meta))
        return True

    def _say(self, frame: bytes) -> None:
        """Send a frame with all others of this turn of the loop: each write wakes the engine, which then computes."""
        if not self._unsaid:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsaid += frame

    def _flush(self) -> None:
        unsaid, self._unsaid = self._unsaid, bytearray()
        if self._transport is not None and unsaid:
            self._transport.write(unsaid)

    def _unsent(self) -> int:
        """Bytes that the engine did not take yet; 0 without one."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size() + len(self._unsaid)

    # --- what comes back ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Tell who waited too long. One clock for all: one for each would cost more than the question."""
        self._clock = None
        now = time.monotonic()
        for number, asked in list(self._asked.items()):
            told = asked.told
            if told is not None and asked.latest <= now:
                self.abandon(number)  # the slot waits for the answer all the same
                told(None)
        if self._asked:
            self._clock = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _answered(self, number: int, found: Answer | PericardError) -> None:
        """Free what a question holds, and tell who waits for it, if anybody does."""
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked.slot.region.release(asked.slot)
            if asked.told is not None:
                asked.told(found)

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
                self._answered(entry.request, Answer(shared, entry))
        elif frame.type is FrameType.CATALOG:
            self._heed(frame.meta)
        elif frame.type is FrameType.REPLY:
            self._replied(frame.request, (frame.meta, frame.body))
        elif frame.type is FrameType.ERROR:
            error = _error(frame.meta)
            self._replied(frame.request, error)
            self._answered(frame.request, error)
        else:
            raise PipeError(f"pipe: the engine sent a frame of type {frame.type.name}")

    def _replied(self, number: int, found: tuple[Meta, bytes] | PericardError) -> None:
        future = self._replies.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(found, PericardError):
            future.set_exception(found)
        else:
            future.set_result(found)

    def _heed(self, catalog: Meta) -> None:
        """Rest on a new catalog from now on, and say so: every question before this word rested on an older one."""
        self.catalog = catalog
        if self._transport is not None:
            self._say(encode(FrameType.HEARD, 0, {"generation": catalog.get("generation", 0)}))
        if self._on_catalog is not None:
            self._on_catalog()

    def _lost(self, transport: asyncio.Transport | None) -> None:
        if transport is not self._transport:
            return
        self._transport = self._region = self.catalog = None
        self._unsaid.clear()
        gone = EngineAway("engine: went away before it answered", hint="try again in a second")
        for number in list(self._replies):
            self._replied(number, gone)
        for number in list(self._asked):
            self._answered(number, gone)
        self._ended.set()
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
