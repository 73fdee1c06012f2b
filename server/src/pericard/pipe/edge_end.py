"""The edge's end: asks, and waits, on an event loop.

The engine may go away at any moment and come back on another socket: whoever waits then gets ``engine-away``, and a new
:meth:`EngineLink.attach` makes everything work again.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import cast

from pericard.errors import EngineAway, Overloaded, PericardError, PipeError, from_code
from pericard.pipe.frames import Frame, FrameReader, FrameType, Meta, encode

_MAX_UNSENT = 64 << 20


class EngineLink:
    """A connection to the engine.

    Attributes:
        catalog: what the engine serves, or None while it is away.
    """

    def __init__(self, on_catalog: Callable[[], None] | None = None) -> None:
        """Start without an engine; ``on_catalog`` is called whenever one said what it serves."""
        self.catalog: Meta | None = None
        self._on_catalog = on_catalog
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._transport: asyncio.Transport | None = None

    async def attach(self, sock: socket.socket) -> None:
        """Use a new socket; the old connection, if any, is closed."""
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: _Protocol(self), sock=sock)

    def close(self) -> None:
        """Close the connection; whoever waits gets ``engine-away``."""
        if self._transport is not None:
            self._transport.abort()
            self._lost(self._transport)

    async def infer(self, meta: Meta, body: bytes) -> Frame:
        """Ask for one item; the ANSWER frame.

        Raises:
            EngineAway: there is no engine, or it went away while we waited.
            PericardError: what the engine said.
        """
        return await self._ask(FrameType.INFER, meta, body)

    async def metrics(self) -> bytes:
        """The engine's metrics as Prometheus text."""
        return (await self._ask(FrameType.METRICS, {}, b"")).body

    def event(self, meta: Meta) -> None:
        """Tell the engine something to count or record; never waits, and is lost while the engine is away."""
        if self._transport is not None and self._transport.get_write_buffer_size() < _MAX_UNSENT:
            self._transport.write(encode(FrameType.EVENT, 0, meta))

    async def _ask(self, kind: FrameType, meta: Meta, body: bytes) -> Frame:
        transport = self._transport
        if transport is None:
            raise EngineAway("engine: is not there at the moment", hint="try again in a second")
        if transport.get_write_buffer_size() > _MAX_UNSENT:
            raise Overloaded("engine: does not take requests as fast as they come", hint="try again later")
        number = next(self._numbers)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        transport.write(encode(kind, number, meta, body))
        try:
            return await future
        except asyncio.CancelledError:
            if self._transport is transport and not transport.is_closing():
                transport.write(encode(FrameType.CANCEL, number, {}))
            raise
        finally:
            self._waiting.pop(number, None)

    def _made(self, transport: asyncio.Transport) -> None:
        # here and not after the connect: between the two, the other end may have spoken or gone
        self.close()
        self._transport = transport

    def _received(self, frame: Frame) -> None:
        if frame.type is FrameType.CATALOG:
            self.catalog = frame.meta
            if self._on_catalog is not None:
                self._on_catalog()
            return
        future = self._waiting.get(frame.request)
        if future is None or future.done():
            return
        if frame.type is FrameType.ANSWER:
            future.set_result(frame)
        elif frame.type is FrameType.ERROR:
            future.set_exception(_error(frame.meta))
        else:
            raise PipeError(f"pipe: the engine sent a frame of type {frame.type.name}")

    def _lost(self, transport: asyncio.Transport | None) -> None:
        if transport is not self._transport:
            return
        self._transport = None
        self.catalog = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(EngineAway("engine: went away before it answered", hint="try again in a second"))


class _Protocol(asyncio.Protocol):
    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._link._made(self._transport)  # noqa: SLF001  (two halves of one thing)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._link._received(frame)  # noqa: SLF001
        except PipeError:
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._link._lost(self._transport)  # noqa: SLF001


def _error(meta: Meta) -> PericardError:
    hint = meta.get("hint")
    return from_code(str(meta.get("code")), str(meta.get("message")), hint if isinstance(hint, str) else None)
