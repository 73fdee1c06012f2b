"""What a collector stored, held against itself: which records are missing, and whether they are those that were signed.

Rules of this module: it reads a collector's files and nothing of the server's. A line is looked at for one of our
bodies, whatever stands around it, since collectors write what they like before it; a line without one is not ours. Of a
record only its bytes count: its leaf is computed from them, its index read from them. Whether a head is to be believed
is for whoever has the log's public key (``open_head``). About 250 bytes of memory for each record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pericard.audit import note
from pericard.audit.note import Head
from pericard.audit.proof import CompactRange, leaf_hash
from pericard.audit.record import parse
from pericard.errors import AuditError, AuditLogInvalid

_BEGINNING: Final = '{"activity_id":'
_MOST_NAMED: Final = 100


@dataclass(slots=True)
class Gaps:
    """What was found of one log.

    Attributes:
        origin: its name.
        records: different records.
        repeated: records that came more than once, each time the same.
        missing: (first, last) of what is not there, up to the newest record or head.
        altered: lines whose bytes are not those that they say, and records that came with two contents, by line.
        heads: heads whose size and root the records lead to.
        covered: records under the largest of them.
        split: sizes of heads that the records do not lead to, or that disagree with one another.
        unchecked: heads that could not be held against the records, since some before their end are missing.
    """

    origin: str
    records: int = 0
    repeated: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    heads: int = 0
    covered: int = 0
    split: list[int] = field(default_factory=list)
    unchecked: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, altered or of another history."""
        return not (self.missing or self.altered or self.split)


@dataclass(slots=True)
class _Collected:
    leaves: dict[int, bytes] = field(default_factory=dict)
    heads: dict[int, bytes] = field(default_factory=dict)
    found: Gaps = field(default_factory=lambda: Gaps(""))


def check(lines: Iterable[str], *, open_head: Callable[[bytes], Head] = note.claims, start: int = 0) -> list[Gaps]:
    """Look through what was stored, in any order; one result for each log.

    Args:
        lines: of the collector's files.
        open_head: raises for a head that is not to be believed; without a public key, all that are well formed are.
        start: the first index that the collector should have; heads can be held against records only from 0 on.

    Raises:
        AuditLogInvalid: there is nothing of ours in it.
    """
    logs: dict[str, _Collected] = {}
    for number, line in enumerate(lines, 1):
        for body in _bodies(line):
            _take(logs, body, number, open_head)
    if not logs:
        raise AuditLogInvalid("collected records: none are in what was given")
    return [_judged(origin, logs[origin], start) for origin in sorted(logs)]


def _bodies(line: str) -> Iterator[Any]:
    place = line.find(_BEGINNING)
    if place >= 0:
        try:
            yield json.JSONDecoder().raw_decode(line, place)[0]
        except (ValueError, RecursionError):  # cut short, as when the collector was killed
            return


def _take(logs: dict[str, _Collected], body: Any, number: int, open_head: Callable[[bytes], Head]) -> None:  # noqa: ANN401
    """Keep one body's record or head."""
    try:
        metadata, raw = body["metadata"], body["raw_data"].encode("utf-8", "surrogatepass")
        origin, claimed = str(metadata["log_name"]), str(metadata["uid"])
        index = metadata.get("sequence")
    except (AttributeError, KeyError, TypeError):
        return
    log = logs.setdefault(origin, _Collected())
    try:
        if body.get("activity_name") == "checkpoint":
            index = "none, but a head"
            head = open_head(raw)
            if log.heads.setdefault(head.size, head.root) != head.root:
                log.found.split.append(head.size)
            return
        same = parse(raw).get("index") == index and type(index) is int and leaf_hash(raw).hex() == claimed
    except AuditError:
        same = False
    if not same or not isinstance(index, int):
        _name(log.found, f"line {number}: is not what it says (record {index})")
    elif log.leaves.setdefault(index, leaf_hash(raw)) != leaf_hash(raw):
        _name(log.found, f"line {number}: holds another record {index} than came before")
    else:
        log.found.repeated += 1  # the first time too; corrected when all are counted


def _name(found: Gaps, words: str) -> None:
    if len(found.altered) < _MOST_NAMED:
        found.altered.append(words)


def _judged(origin: str, log: _Collected, start: int) -> Gaps:
    found, leaves = log.found, log.leaves
    found.origin, found.records = origin, len(leaves)
    found.repeated -= len(leaves)
    end = max(max(leaves, default=-1) + 1, max(log.heads, default=0))
    found.missing = list(_missing(leaves, start, end))
    tree, sizes = CompactRange(), sorted(log.heads)
    for size in sizes:
        while tree.size < size and tree.size in leaves:
            tree.append(leaves[tree.size])
        if tree.size < size:
            found.unchecked += 1
        elif tree.root() != log.heads[size]:
            found.split.append(size)
        else:
            found.heads, found.covered = found.heads + 1, size
    found.split = sorted(set(found.split))
    return found


def _missing(leaves: dict[int, bytes], start: int, end: int) -> Iterator[tuple[int, int]]:
    following = start
    for index in sorted(index for index in leaves if index >= start):
        if index > following:
            yield following, index - 1
        following = index + 1
    if following < end:
        yield following, end - 1
