"""The region: memory that one edge writes rows into and the engine reads them from.

One memfd per edge, made by the supervisor, sealed against shrinking and growing, so that no access can fault however
the edge behaves. The edge hands out places in it and alone decides where a row lies; the engine maps it for reading
only, and holds every place that a frame names against the region's size. What the engine reads may change under its
eyes: it copies once, and checks the copy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from bisect import bisect_left
from typing import NamedTuple

from pericard.errors import Overloaded, PipeError

_ALIGNMENT = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MIN_SIZE = 1 << 20


def create(size: int) -> int:
    """Make a region of ``size`` bytes, sealed; its descriptor, which children inherit only if they are given it."""
    descriptor = os.memfd_create("pericard-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, max(size, MIN_SIZE))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _map(descriptor: int, protection: int) -> mmap.mmap:
    """Map a region, and close its descriptor.

    Raises:
        PipeError: it is no sealed memory, or cannot be mapped.
    """
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise PipeError("pipe: its region is not sealed")
        return mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=protection)
    except (OSError, ValueError) as error:
        raise PipeError("pipe: its region cannot be mapped") from error
    finally:
        os.close(descriptor)


class Slot(NamedTuple):
    """A place in a region, and a writable view of exactly its bytes."""

    offset: int
    size: int
    view: memoryview
    region: Region


class Region:
    """The edge's side: hands out places and takes them back.

    First fit over a sorted list of free ranges, which are joined again when their neighbours come back: few rows are
    under way at a time, and most are of one size.
    """

    def __init__(self, descriptor: int) -> None:
        """Map a region for writing; the descriptor is closed."""
        self._memory = _map(descriptor, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._memory)
        self.size = len(self._memory)
        self._starts = [0]
        self._ends = [self.size]

    def reserve(self, size: int) -> Slot:
        """A place for ``size`` bytes.

        Raises:
            Overloaded: there is none at the moment.
        """
        length = -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        for place, start in enumerate(self._starts):
            end = self._ends[place]
            if end - start >= length:
                if end - start == length:
                    del self._starts[place], self._ends[place]
                else:
                    self._starts[place] = start + length
                return Slot(start, size, self._view[start : start + size], self)
        raise Overloaded("engine: its memory for requests is full", hint="try again in a second")

    def release(self, slot: Slot) -> None:
        """Take a place back; the caller uses its view no more."""
        start = slot.offset
        end = start + -(-max(slot.size, 1) // _ALIGNMENT) * _ALIGNMENT
        place = bisect_left(self._starts, start)
        if (place < len(self._starts) and self._starts[place] < end) or (place and self._ends[place - 1] > start):
            raise AssertionError("a place was given back that is free")
        follows = place < len(self._starts) and self._starts[place] == end
        precedes = place > 0 and self._ends[place - 1] == start
        if follows and precedes:
            self._ends[place - 1] = self._ends[place]
            del self._starts[place], self._ends[place]
        elif follows:
            self._starts[place] = start
        elif precedes:
            self._ends[place - 1] = end
        else:
            self._starts.insert(place, start)
            self._ends.insert(place, end)

    @property
    def free(self) -> int:
        """Bytes that are not handed out."""
        return sum(self._ends) - sum(self._starts)


class Window:
    """The engine's side: reads what an edge wrote, and nothing beyond."""

    def __init__(self, descriptor: int) -> None:
        """Map a region for reading; the descriptor is closed."""
        self._memory = _map(descriptor, mmap.PROT_READ)
        self._view = memoryview(self._memory)
        self.size = len(self._memory)

    def row(self, offset: int, size: int) -> memoryview:
        """The bytes at a place that an edge named.

        Raises:
            PipeError: it lies outside of the region.
        """
        if offset + size > self.size:
            raise PipeError("pipe: a question lies outside of its region")
        return self._view[offset : offset + size]
