"""Hashes of a log's subtrees, kept in memory, so that a proof reads a few hundred records and not the whole log.

Rules of this module: everything here derives from the files and is believed by nobody: whoever makes a proof of it
checks the proof against a signed head before it leaves. Of every whole block of 256 records it keeps one hash, the
hashes above those, and where in which file the block begins: about 100 bytes a block. A tree is one thread's.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from pericard.audit import pruned, segment
from pericard.audit.proof import HASH_SIZE, CompactRange, leaf_hash, node_hash, split
from pericard.audit.segment import Group, Place
from pericard.errors import AuditLogInvalid

BLOCK: Final = 256  # records; a power of two

_START = Place(0, 0, 0)
_GROWING_WINDOW = 4 * 1024 * 1024


def _at_once() -> None:
    """No pause."""


class Tree:
    """The tree over the records of one log's files.

    Attributes:
        known: how many of the first records are in whole blocks that were read.
    """

    def __init__(self, directory: Path) -> None:
        """Begin with nothing read."""
        self.known = 0
        self._directory = directory
        self._levels: list[bytearray] = []  # hashes of 1, 2, 4, … blocks
        self._places = array("Q")  # of the blocks, three numbers each

    def grow(self, size: int, pause: Callable[[], None] = _at_once) -> None:
        """Read the whole blocks among the first ``size`` records that were not read yet.

        Args:
            size: records that are in the log.
            pause: called after every block; what it raises ends this, and the next call goes on from here.

        Raises:
            RecordAltered, LogTruncated, AuditLogInvalid: the files do not hold so many records.
        """
        if size - self.known < BLOCK:
            return
        block = CompactRange()
        for place, index, leaf in self._hashes(self.known, _GROWING_WINDOW):
            if index // BLOCK == len(self._places) // len(place):
                self._places.extend(place)
            block.append(leaf)
            if block.size == BLOCK:
                self._add(block.root())
                block = CompactRange()
                pause()
                if size - self.known < BLOCK:
                    return
        raise _missing(self.known + block.size)

    @property
    def beginning(self) -> int:
        """The first record that is there; those before it were pruned, and only their hashes are."""
        return pruned.beginning(self._directory)

    def record(self, index: int) -> bytes:
        """The bytes of one record.

        Raises:
            AuditLogInvalid: there is none, or it was pruned.
        """
        if index < self.beginning:
            raise AuditLogInvalid(f"record {index}: was pruned; whoever kept its receipt can still verify it")
        data = next(self.records(index, index + 1), None)
        if data is None:
            raise _missing(index)
        return data

    def records(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of records ``start`` to ``stop - 1``, as far as the files hold them."""
        for _, group in self._onward(start):
            for index, data in enumerate(group.records, group.first):
                if index >= stop:
                    return
                if index >= start:
                    yield data

    def group(self, index: int) -> Group:
        """The group that a record was made durable with.

        Raises:
            AuditLogInvalid: there is no such record.
        """
        if index >= self.beginning:
            for _, group in self._onward(index):
                if index < group.first + len(group.records):
                    return group
        raise _missing(index)

    def roots(self, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """The roots over spans of records, each of them a subtree of a larger tree as RFC 6962 has it.

        Raises:
            AuditLogInvalid: the files do not hold so many records.
        """
        leaves: dict[int, list[bytes]] = {}
        return [self._root(low, high, leaves) for low, high in spans]

    def _root(self, low: int, high: int, leaves: dict[int, list[bytes]]) -> bytes:
        count = high - low
        level = (count // BLOCK).bit_length() - 1
        if level < 0 or (count == BLOCK and high > self.known):
            return self._within(low, high, leaves)
        if count == BLOCK << level and high <= self.known:
            place = low // count * HASH_SIZE
            return bytes(self._levels[level][place : place + HASH_SIZE])
        middle = low + split(count)
        return node_hash(self._root(low, middle, leaves), self._root(middle, high, leaves))

    def _within(self, low: int, high: int, leaves: dict[int, list[bytes]]) -> bytes:
        """The root over a span that lies in one block."""
        first = low - low % BLOCK
        found = leaves.get(first)
        if found is None:
            block = itertools.takewhile(lambda item: item[1] < first + BLOCK, self._hashes(first))
            found = leaves[first] = [leaf for _, _, leaf in block]
        if high - first > len(found):
            raise _missing(first + len(found))
        span = CompactRange()
        for leaf in found[low - first : high - first]:
            span.append(leaf)
        return span.root()

    def _add(self, node: bytes) -> None:
        """The hash of the next whole block, and those above it that are whole by it."""
        self.known += BLOCK
        blocks, level = self.known // BLOCK, 0
        while True:
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += node
            if blocks & 1:
                return
            node = node_hash(bytes(self._levels[level][-2 * HASH_SIZE : -HASH_SIZE]), node)
            blocks, level = blocks >> 1, level + 1

    def _hashes(self, start: int, window: int = segment.WINDOW) -> Iterator[tuple[Place, int, bytes]]:
        """Of each record from one on, pruned or not: where its group begins, its index and its leaf hash."""
        following = start
        for part in pruned.listing(self._directory):
            if part.first + part.count > following:
                for index, leaf in enumerate(part.hashes(), part.first):
                    if index >= following:
                        yield Place(part.first, 0, part.first), index, leaf
                following = part.first + part.count
        for place, group in self._onward(following, window):
            for index, data in enumerate(group.records, group.first):
                if index >= following:
                    yield place, index, leaf_hash(data)

    def _onward(self, index: int, window: int = segment.WINDOW) -> Iterator[tuple[Place, Group]]:
        """The groups from the one on that holds a record, or from an earlier one."""
        width = len(_START)
        block = min(index // BLOCK, len(self._places) // width - 1)
        place = Place(*self._places[block * width : (block + 1) * width]) if block >= 0 else _START
        beginning = self.beginning
        if place.segment < beginning:  # that segment was pruned
            place = Place(beginning, 0, beginning)
        return segment.onward(segment.listing(self._directory), place, window)


def _missing(index: int) -> AuditLogInvalid:
    return AuditLogInvalid(f"record {index}: is not in the log")
