"""What stays of segments that were pruned: the leaf hashes of their records.

Rules of this module: a pruned segment leaves a file of leaf hashes under its own index, and these files are the log's
beginning without a gap. With them every head can be recomputed and every proof made, also for records whose bytes are
gone. They are trusted no more than records are: the next signed head in the log proves them, or nothing does. Only the
log's writer prunes; a segment goes once its hashes are durable, so a crash leaves both, and then the segment counts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pericard import durable
from pericard.audit import record, segment
from pericard.audit.proof import HASH_SIZE, CompactRange, leaf_hash
from pericard.errors import AuditLogInvalid, LogTruncated

SUFFIX: Final = ".leaves"
FLOOR_DAYS: Final = 183  # six months: what laws on the records of such systems ask for at least

_NAME = re.compile(r"\d{20}\.leaves", re.ASCII)


@dataclass(frozen=True, slots=True)
class Leaves:
    """The leaf hashes of one pruned segment.

    Attributes:
        path: where they lie.
        first: index of its first record.
        count: how many they are.
    """

    path: Path
    first: int
    count: int

    def hashes(self) -> Iterator[bytes]:
        """Each of them, in order."""
        data = durable.read(self.path, limit=segment.MAX_SEGMENT)
        if len(data) != self.count * HASH_SIZE:
            raise AuditLogInvalid(f"{self.path.name}: changed while it was read")
        for place in range(0, len(data), HASH_SIZE):
            yield data[place : place + HASH_SIZE]


def listing(directory: Path) -> list[Leaves]:
    """What was pruned, in order, from record 0 on and without a gap.

    Raises:
        AuditLogInvalid: a file is none of leaf hashes, or two overlap.
        LogTruncated: one is missing between two others.
    """
    there = {part.first for part in segment.listing(directory)}
    found: list[Leaves] = []
    following = 0
    for path in sorted(entry for entry in directory.iterdir() if entry.name.endswith(SUFFIX)):
        count, rest = divmod(path.lstat().st_size, HASH_SIZE)
        if not _NAME.fullmatch(path.name) or rest or not count or path.is_symlink():
            raise AuditLogInvalid(f"{path}: does not hold the leaf hashes of a pruned segment")
        first = int(path.stem)
        if first in there:
            continue  # a crash came before its segment was removed
        if first > following:
            raise LogTruncated(f"records {following} to {first - 1}: not even their leaf hashes are there")
        if first < following:
            raise AuditLogInvalid(f"{path.name}: repeats records before {following}")
        found.append(Leaves(path, first, count))
        following += count
    return found


def beginning(directory: Path) -> int:
    """The first index whose record is there: the log's minimum index. Raises as :func:`listing`."""
    return sum(part.count for part in listing(directory))


def leaves(directory: Path) -> Iterator[bytes]:
    """The leaf hashes of all records that were pruned. Raises as :func:`listing`."""
    for part in listing(directory):
        yield from part.hashes()


def tree(directory: Path, known: Mapping[int, bytes]) -> tuple[CompactRange, int | None]:
    """The tree over the pruned records, and the size of the first known head that it disagrees with.

    Args:
        directory: the log.
        known: root by size of heads that were opened already.
    """
    made, strange = CompactRange(), None
    for leaf in leaves(directory):
        made.append(leaf)
        if strange is None and made.size in known and known[made.size] != made.root():
            strange = made.size
    return made, strange


def prunable(directory: Path, *, before: str, below: int) -> list[segment.Segment]:
    """The oldest segments that may go: all their records were written before a time and lie below an index.

    The last two segments stay, and so does whatever comes before a segment that is empty: a signed head must follow.

    Args:
        directory: the log.
        before: RFC 3339, as records have it.
        below: records from here on stay.
    """
    found = []
    parts = segment.listing(directory)
    for part, following in itertools.pairwise(parts[:-1]):
        if following.first > below or following.first == part.first:
            break
        newest = None
        for group in segment.groups(part.read(), part.first, newest=False):
            newest = group.records[-1]
        if newest is None or str(record.parse(newest)["time"]) >= before:
            break
        found.append(part)
    return found


def prune(directory: Path, part: segment.Segment) -> int:
    """Put a segment's leaf hashes in its place; how many records went.

    Raises:
        OSError: the disk refuses; the segment is still there, or its hashes are.
        RecordAltered: a frame is damaged; nothing was done.
    """
    hashes = [
        leaf_hash(data) for group in segment.groups(part.read(), part.first, newest=False) for data in group.records
    ]
    durable.replace(part.path.with_suffix(SUFFIX), b"".join(hashes))  # private: the engine may make no other
    part.path.unlink()
    durable.sync_folder(directory)
    return len(hashes)
