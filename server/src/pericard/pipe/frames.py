"""Frames.

::

    magic "PF" | type u8 | zero u8 | request u64 | meta length u32 | body length u32     (little-endian, 20 bytes)
    meta   a JSON object
    body   raw bytes

``request`` pairs an answer with its question; it is chosen by the edge and means nothing else.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

from pericard.errors import PipeError

HEADER = struct.Struct("<2sBBQII")
MAGIC = b"PF"
MAX_META = 4 << 20
MAX_BODY = 64 << 20

Meta = dict[str, Any]


class FrameType(IntEnum):
    """What a frame is."""

    CATALOG = 1  # engine → edge: what is served; sent on attach and on change
    INFER = 2  # edge → engine: one item
    ANSWER = 3  # engine → edge: its answer
    ERROR = 4  # engine → edge: its error: code, message, hint
    EVENT = 5  # edge → engine: something to count or record; no reply
    METRICS = 6  # edge → engine: asks for the metrics; the reply is an ANSWER with a body
    CANCEL = 7  # edge → engine: nobody waits for this item any more


class Frame(NamedTuple):
    """One frame."""

    type: FrameType
    request: int
    meta: Meta
    body: bytes


def encode(kind: FrameType, request: int, meta: Meta, body: bytes = b"") -> bytes:
    """Encode a frame."""
    text = json.dumps(meta, separators=(",", ":")).encode("utf-8")
    return b"".join((HEADER.pack(MAGIC, kind, 0, request, len(text), len(body)), text, body))


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take bytes; return the frames that are complete.

        Raises:
            PipeError: the other end sent something that is not a frame, or too large a one.
        """
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            magic, kind, zero, request, meta_length, body_length = HEADER.unpack_from(self._buffer, start)
            if magic != MAGIC or zero or meta_length > MAX_META or body_length > MAX_BODY:
                raise PipeError("pipe: received a frame with a bad header")
            end = start + HEADER.size + meta_length + body_length
            if len(self._buffer) < end:
                break
            body_start = start + HEADER.size + meta_length
            meta = _meta(bytes(self._buffer[start + HEADER.size : body_start]))
            frames.append(Frame(_type(kind), request, meta, bytes(self._buffer[body_start:end])))
            start = end
        del self._buffer[:start]
        return frames


def _type(kind: int) -> FrameType:
    try:
        return FrameType(kind)
    except ValueError as error:
        raise PipeError(f"pipe: received a frame of unknown type {kind}") from error


def _meta(data: bytes) -> Meta:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PipeError("pipe: received a frame whose meta is not JSON") from error
    if not isinstance(meta, dict):
        raise PipeError("pipe: received a frame whose meta is not an object")
    return meta
