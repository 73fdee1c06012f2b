"""Segment files: frames, groups, and what a crash may leave behind.

Rules of this module: no keys and no trust, only structure. A segment is a run of groups; a group is one or more record
frames and the head frame that signs for them. The log appends groups with one write each and never touches them again,
so the end of the newest segment may hold the *beginning* of one group, and nothing else: such a torn tail is not
part of the log. Everything that a torn write cannot explain is damage and raises. Reading never needs the writer to
stand still, and never maps a file that may shrink.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pericard.audit.note import MAX_NOTE
from pericard.audit.record import MAX_RECORD
from pericard.errors import AuditLogInvalid, LogTruncated, RecordAltered

RECORD: Final = 1
HEAD: Final = 2
MAX_GROUP: Final = 16 * 1024 * 1024
MAX_SEGMENT: Final = 256 * 1024 * 1024
WINDOW: Final = 256 * 1024

_HEADER = struct.Struct("<IIB")
_LIMIT = {RECORD: MAX_RECORD, HEAD: MAX_NOTE}
_SEED = {kind: zlib.crc32(bytes([kind])) for kind in _LIMIT}
_NAME = re.compile(r"\d{20}\.log", re.ASCII)
_SECTOR = 512
_TEXT = bytes(range(0x20, 0x7F))
_ALPHABET = {RECORD: _TEXT, HEAD: _TEXT + "\n\N{EM DASH}".encode()}


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the log.

    Attributes:
        path: where it lies.
        first: the index of its first record, which is its name.
    """

    path: Path
    first: int

    def read(self, offset: int = 0, most: int | None = None) -> bytes:
        """What is in the file at this moment, from ``offset`` on and no more than ``most`` bytes of it.

        Raises:
            AuditLogInvalid: it is not a regular file, or larger than the log ever makes one.
        """
        # O_NONBLOCK: a FIFO in a segment's place must not hang the reader
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise AuditLogInvalid(f"segment {self.path.name}: is not a regular file")
            if found.st_size > MAX_SEGMENT:
                raise AuditLogInvalid(f"segment {self.path.name}: is larger than {MAX_SEGMENT} bytes")
            file.seek(offset)
            return file.read(max(0, found.st_size - offset) if most is None else most)


@dataclass(frozen=True, slots=True)
class Group:
    """What was written, signed and made durable together.

    Attributes:
        first: index of its first record.
        records: the canonical bytes of its records.
        head: the signed note over the log up to its last record.
        end: where its head ends in the segment, in bytes.
    """

    first: int
    records: list[bytes]
    head: bytes
    end: int


class Place(NamedTuple):
    """Where a group begins: so that a reader can come back to it without reading what lies before.

    Attributes:
        segment: index of the first record of its segment.
        offset: in that file, in bytes.
        first: index of its own first record.
    """

    segment: int
    offset: int
    first: int


def file_name(first: int) -> str:
    """The name of the segment that begins with this record."""
    return f"{first:020d}.log"


def listing(directory: Path) -> list[Segment]:
    """The log's segments in order, whether or not they fit together.

    Raises:
        AuditLogInvalid: another ``.log`` file lies among them.
    """
    found = []
    for path in sorted(entry for entry in directory.iterdir() if entry.name.endswith(".log")):
        if not _NAME.fullmatch(path.name):
            raise AuditLogInvalid(f"{path}: is not a segment of an audit log")
        found.append(Segment(path, int(path.stem)))
    return found


def frame(kind: int, payload: bytes) -> bytes:
    """One frame: u32 length, u32 CRC-32 over type and payload, u8 type (all little-endian), payload."""
    return _HEADER.pack(len(payload), zlib.crc32(payload, _SEED[kind]), kind) + payload


class Walk:
    """Goes through the groups of consecutive segments, once.

    Attributes:
        end: after the walk, where the last head ends in the last segment.
        torn: after the walk, how many bytes lie behind it.
    """

    def __init__(self, segments: Sequence[Segment], first: int = 0) -> None:
        """Take segments as :func:`listing` gave them, from record ``first`` on; the last may have a torn tail."""
        self._segments = segments
        self._first = first
        self.end = 0
        self.torn = 0

    def __iter__(self) -> Iterator[Group]:
        """Yield every whole group.

        Raises:
            RecordAltered: a frame is damaged.
            LogTruncated: a segment is missing between two others.
            AuditLogInvalid: two segments overlap.
        """
        following = self._first
        for segment in self._segments:
            if segment.first > following:
                raise LogTruncated(f"records {following} to {segment.first - 1}: their segment is missing")
            if segment.first < following:
                raise AuditLogInvalid(f"segment {segment.path.name}: repeats records before {following}")
            newest = segment is self._segments[-1]
            data = _part(segment, 0, None, newest=newest)
            self.end = 0
            for group in groups(data, segment.first, newest=newest):
                self.end, following = group.end, group.first + len(group.records)
                yield group
            self.torn = len(data) - self.end


def groups(data: bytes, first: int, *, newest: bool) -> Iterator[Group]:
    """Yield the whole groups of one segment; only the newest segment may end in a torn one.

    Raises:
        RecordAltered: a frame is damaged, or bytes follow the last head where none may.
    """
    records: list[bytes] = []
    offset = done = 0
    for kind, payload in _frames(data, first):
        offset += _HEADER.size + len(payload)
        if kind == RECORD:
            records.append(payload)
            continue
        if not records:
            raise RecordAltered(f"record {first}: a head stands in its place")
        yield Group(first, records, payload, offset)
        first, records, done = first + len(records), [], offset
    if done < len(data) and not newest:
        raise RecordAltered(f"record {first}: its segment goes on behind the last head")
    if len(data) - done > MAX_GROUP:
        raise RecordAltered(f"record {first}: more bytes follow the last head than one group has")


def onward(segments: Sequence[Segment], place: Place, window: int = WINDOW) -> Iterator[tuple[Place, Group]]:
    """Yield the whole groups from a place on, each with its own place, and read no more than a window at a time.

    What lies behind the last whole group of a segment is passed over: who must know reads by :class:`Walk`.

    Raises:
        RecordAltered: a frame is damaged.
        LogTruncated: a segment is missing.
    """
    following = place.first
    for part in segments:
        if part.first < place.segment:
            continue
        offset, size = (place.offset if part.first == place.segment else 0), window
        if not offset and part.first != following:
            raise LogTruncated(f"records {following} to {part.first - 1}: their segment is missing")
        more = True
        while more:
            data = _part(part, offset, size, newest=part is segments[-1])
            done = 0
            for group in groups(data, following, newest=True):
                yield Place(part.first, offset + done, group.first), group
                done, following = group.end, group.first + len(group.records)
            more = len(data) == size
            offset, size = offset + done, size if done else 2 * size  # a group may be longer than the window


def _part(part: Segment, offset: int, most: int | None, *, newest: bool) -> bytes:
    try:
        return part.read(offset, most)
    except FileNotFoundError:
        if not newest:
            raise
        return b""  # the log removes its newest segment while it is still empty


def _frames(data: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    """Yield (type, payload) of the whole frames; stop where a torn write may have stopped."""
    end, offset, index = _written(data), 0, first
    damaged = "group from record {} on: a frame of it is damaged"
    while end - offset >= _HEADER.size:
        size, checksum, kind = _HEADER.unpack_from(data, offset)
        if kind not in _LIMIT or size > _LIMIT[kind]:
            raise RecordAltered(damaged.format(first))
        offset += _HEADER.size
        payload = data[offset : min(offset + size, end)]
        whole = len(payload) == size
        # a whole frame must have its checksum; one that breaks off must look like the beginning of one, since
        # otherwise a single flipped bit in a length would make a signed group look torn
        if (zlib.crc32(payload, _SEED[kind]) == checksum) != whole or payload.translate(None, _ALPHABET[kind]):
            raise RecordAltered(damaged.format(first))
        if not whole:
            return
        yield kind, payload
        offset += size
        index += kind == RECORD
        if kind == HEAD:
            first = index


def _written(data: bytes) -> int:
    """Where the data ends, without the zeros that a power failure leaves for sectors never written.

    Neither a record nor a head ends in a zero, so nothing that was whole is cut.
    """
    end = len(data.rstrip(b"\0"))
    sectors = -(-end // _SECTOR) * _SECTOR
    return end if sectors < len(data) else len(data)
