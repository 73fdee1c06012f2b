"""Frames.

::

    magic "PF" | type u8 | zero u8 | request u64 | head length u32 | body length u32     (little-endian, 20 bytes)
    head   a JSON object; of INFER and ANSWERS, what stands below
    body   raw bytes

    INFER    head  offset u64 | size u32 | model u32 | deadline in ms u32 | priority u8 | request id length u8 |
                   trace length u8 | zero u8 | request id | trace | caller (the rest: a JSON object)
             body  empty: the row lies in the region, at offset
    ANSWERS  head  a JSON object: what all of its entries share
             body  entries: request u64 | index u64 | leaf 32 | opening key 32 | kind u8 | zero x3 | length u32 | bytes

``request`` pairs an answer with its question; it is chosen by the edge and means nothing else. In ANSWERS each entry
has its own, and the frame's is zero. Every INFER is answered once, by an entry or by an ERROR: until then its place in
the region is the engine's to read, and not the edge's to use again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from pericard.errors import PipeError

HEADER = struct.Struct("<2sBBQII")
MAGIC = b"PF"
MAX_HEAD = 4 << 20
MAX_BODY = 64 << 20
KEY_SIZE = 32
PRIORITIES = 3  # 1 comes first
DEFAULT_PRIORITY = 2

_QUESTION = struct.Struct("<QIIIBBBB")
_ENTRY = struct.Struct("<QQ32s32sB3xI")

Meta = dict[str, Any]


class FrameType(IntEnum):
    """What a frame is."""

    CATALOG = 1  # engine → edge: what is served; sent on attach and on change
    INFER = 2  # edge → engine: one row
    ANSWERS = 3  # engine → edge: the answers of a batch
    ERROR = 4  # engine → edge: why there is no answer: code, message, hint, and more for some codes
    EVENT = 5  # edge → engine: something to count or record; no reply
    ASK = 6  # edge → engine: anything else that is answered: {"ask": name, …}
    CANCEL = 7  # edge → engine: nobody waits for this answer any more
    REPLY = 8  # engine → edge: to an ASK
    HEARD = 9  # edge → engine: {"generation"} of the catalog that every later question rests on


class Kind(IntEnum):
    """What an entry of ANSWERS is."""

    OK = 0  # the outputs' bytes
    NOT_INTERPRETABLE = 1  # the reason, in UTF-8


class Frame(NamedTuple):
    """One frame."""

    type: FrameType
    request: int
    head: bytes
    body: bytes

    @property
    def meta(self) -> Meta:
        """The head as JSON; read anew at each use.

        Raises:
            PipeError: it is no JSON object.
        """
        return parse_meta(self.head)


class Question(NamedTuple):
    """The head of an INFER frame.

    Attributes:
        offset: where the row lies in the region.
        size: its bytes.
        model: number of a served version, from the catalog.
        deadline_ms: how long the caller waits.
        priority: 1 comes first.
        request_id: the caller's name for the request; ASCII.
        trace: trace id of its traceparent; ASCII, or empty.
        caller: who asks, as JSON: one caller's bytes are always the same.
    """

    offset: int
    size: int
    model: int
    deadline_ms: int
    priority: int
    request_id: bytes
    trace: bytes
    caller: bytes


class Entry(NamedTuple):
    """One answer in an ANSWERS frame: where its record stands, what opens it, and the answer itself."""

    request: int
    log_index: int
    leaf: bytes
    opening_key: bytes
    kind: Kind
    data: bytes


def encode(kind: FrameType, request: int, meta: Meta, body: bytes = b"") -> bytes:
    """Encode a frame whose head is JSON."""
    return pack(kind, request, json.dumps(meta, separators=(",", ":")).encode("utf-8"), body)


def pack(kind: FrameType, request: int, head: bytes, body: bytes = b"") -> bytes:
    """Encode a frame."""
    return b"".join((HEADER.pack(MAGIC, kind, 0, request, len(head), len(body)), head, body))


def pack_question(request: int, question: Question) -> bytes:
    """Encode an INFER frame.

    Raises:
        PipeError: a number is out of range, or a text too long.
    """
    offset, size, model, deadline_ms, priority, request_id, trace, caller = question
    try:
        numbers = _QUESTION.pack(offset, size, model, deadline_ms, priority, len(request_id), len(trace), 0)
    except struct.error as error:
        raise PipeError("pipe: a question holds more than its frame can say") from error
    head = b"".join((numbers, request_id, trace, caller))
    return HEADER.pack(MAGIC, FrameType.INFER, 0, request, len(head), 0) + head


def unpack_question(frame: Frame) -> Question:
    """The head of an INFER frame.

    Raises:
        PipeError: it is none, or has a body.
    """
    head = frame.head
    if len(head) < _QUESTION.size or frame.body:
        raise PipeError("pipe: received a question that is none")
    offset, size, model, deadline_ms, priority, id_length, trace_length, zero = _QUESTION.unpack_from(head)
    trace_at = _QUESTION.size + id_length
    caller_at = trace_at + trace_length
    if zero or caller_at > len(head):
        raise PipeError("pipe: received a question that is none")
    request_id, trace = head[_QUESTION.size : trace_at], head[trace_at:caller_at]
    return Question(offset, size, model, deadline_ms, priority, request_id, trace, head[caller_at:])


def pack_entry(entry: Entry) -> bytes:
    """Encode one entry of an ANSWERS frame's body."""
    request, log_index, leaf, opening_key, kind, data = entry
    return _ENTRY.pack(request, log_index, leaf, opening_key, kind, len(data)) + data


def entries(body: bytes) -> Iterator[Entry]:
    """The entries of an ANSWERS frame's body.

    Raises:
        PipeError: it ends early, or an entry is of an unknown kind.
    """
    place = 0
    try:
        while place < len(body):
            request, log_index, leaf, opening_key, kind, length = _ENTRY.unpack_from(body, place)
            place += _ENTRY.size
            if length > len(body) - place:
                raise PipeError("pipe: received an answer that ends early")
            yield Entry(request, log_index, leaf, opening_key, Kind(kind), body[place : place + length])
            place += length
    except (struct.error, ValueError) as error:
        raise PipeError("pipe: received an answer that is none") from error


class FrameReader:
    """Cuts a stream of bytes into frames, and holds no more than one that is not complete."""

    def __init__(self, *, head: int = MAX_HEAD, body: int = MAX_BODY) -> None:
        """Take frames of at most so many bytes each in head and body."""
        self._head = head
        self._body = body
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take bytes; return the frames that are complete.

        Raises:
            PipeError: the other end sent something that is not a frame, or too large a one.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        start, size = 0, len(buffer)
        while size - start >= HEADER.size:
            magic, kind, zero, request, head_length, body_length = HEADER.unpack_from(buffer, start)
            if magic != MAGIC or zero or head_length > self._head or body_length > self._body:
                raise PipeError("pipe: received a frame with a bad header")
            named = _type(kind)  # before its bytes are waited for
            head_at = start + HEADER.size
            body_at = head_at + head_length
            end = body_at + body_length
            if size < end:
                break
            frames.append(Frame(named, request, bytes(buffer[head_at:body_at]), bytes(buffer[body_at:end])))
            start = end
        del buffer[:start]
        return frames


_TYPES = {int(kind): kind for kind in FrameType}


def _type(kind: int) -> FrameType:
    found = _TYPES.get(kind)
    if found is None:
        raise PipeError(f"pipe: received a frame of unknown type {kind}")
    return found


def parse_meta(data: bytes) -> Meta:
    """A JSON object.

    Raises:
        PipeError: it is none.
    """
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PipeError("pipe: received a head that is not JSON") from error
    if not isinstance(meta, dict):
        raise PipeError("pipe: received a head that is not an object")
    return meta
