"""Following a log from one record on: what was read is not read again, and little of it is in memory.

Rules of this module: as ``reading``; no keys, read-only, safe beside a running log. Only groups that a published head
covers are kept between two calls, since nothing takes those back. Files are opened anew each time: the log may make
its newest segment again under the same name.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Final

from pericard.audit import segment
from pericard.audit.reading import reading
from pericard.errors import AuditLogInvalid, LogTruncated

_CHUNK: Final = 256 * 1024


class Tail:
    """Reads on and on from one record; used by one thread."""

    def __init__(self, directory: Path, start: int) -> None:
        """Take a log's directory and the index of the first record wanted."""
        self._directory = directory
        self._next = start  # the record to give next
        self._segment: segment.Segment | None = None
        self._offset = 0  # where in it the next group begins that is not in _ready
        self._index = 0  # of that group's first record
        self._ready: deque[segment.Group] = deque()

    def read(self, stop: int, most: int) -> list[tuple[int, bytes]]:
        """The next records before ``stop`` with their indices: ``most`` of them, and then to the end of a group.

        Args:
            stop: the size of a published head.
            most: so many are enough.

        Raises:
            RecordAltered: a frame is damaged.
            LogTruncated: records that the head covers are not there.
            AuditLogInvalid: the directory cannot be read as a log.
        """
        found: list[tuple[int, bytes]] = []
        with reading(self._directory):
            while self._next < stop and len(found) < most:
                if not self._ready:
                    self._fill(stop)
                group = self._ready.popleft()
                following = group.first + len(group.records)
                found += [pair for pair in enumerate(group.records, group.first) if pair[0] >= self._next]
                self._next = max(self._next, following)
        return found

    def _fill(self, stop: int) -> None:
        """Have at least one group ready."""
        if self._segment is None:
            self._begin()
        while not self._ready:
            size = _CHUNK
            while not self._take(data := self._bytes(size), stop) and len(data) == size:
                if size > segment.MAX_GROUP:
                    raise AuditLogInvalid(f"record {self._index}: its group is larger than a log makes one")
                size *= 4
            if not self._ready:
                self._go_on(stop)

    def _take(self, data: bytes, stop: int) -> bool:
        """Keep the whole groups in the bytes at our place; whether there was one."""
        base = self._offset
        for group in segment.groups(data, self._index, newest=True):
            following = group.first + len(group.records)
            if following > stop:
                break
            self._ready.append(group)
            self._offset, self._index = base + group.end, following
        return bool(self._ready)

    def _bytes(self, size: int) -> bytes:
        if self._segment is None:
            raise AssertionError("no segment was found yet")
        descriptor = os.open(self._segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.pread(descriptor, size, self._offset)
        finally:
            os.close(descriptor)

    def _begin(self) -> None:
        before = [part for part in segment.listing(self._directory) if part.first <= self._next]
        if not before:
            raise LogTruncated(f"record {self._next}: is not there any more", hint="it was pruned, or its file is gone")
        self._segment = before[-1]
        self._offset, self._index = 0, self._segment.first

    def _go_on(self, stop: int) -> None:
        """Take the segment that begins where this one ends."""
        for part in segment.listing(self._directory):
            if part.first == self._index and part != self._segment:
                self._segment, self._offset = part, 0
                return
        raise LogTruncated(f"records {self._index} to {stop - 1}: a published head covers them and they are not there")
