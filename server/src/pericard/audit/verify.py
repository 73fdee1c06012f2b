"""Proving a log from its files and the public key alone.

Rules of this module: read-only, offline, no private key, safe beside a running log; it recomputes every root from the
records themselves and takes no shortcut. Anything that does not hold raises, naming the first record or group that it
concerns. The numbered steps are those of ``docs/spec/audit-log.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pericard.audit import checkpoint, note, proof, pruned, record, segment
from pericard.audit.reading import reading
from pericard.errors import AuditError, AuditLogInvalid, LogTruncated, RecordAltered, SplitView
from pericard.keys import LogVerifier

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Report:
    """What was proven.

    Attributes:
        origin: the log's name.
        size: records under the last head in the files.
        root: root hash over them, in hex.
        covered: records under the largest head that was given from elsewhere: up to here history is proven even
            against whoever holds the log key or the disk; the rest rests on this log's own word.
        first: index of the first record that is there; of those before it, which were pruned, the leaf hashes are.
        segments: files read.
        torn: bytes behind the last head, which are not part of the log: a group being written, or one that a crash cut.
        first_time: time of the first record.
        last_time: time of the last record.
    """

    origin: str
    size: int
    root: str
    covered: int
    first: int
    segments: int
    torn: int
    first_time: str
    last_time: str


@dataclass(slots=True)
class History:
    """What replaying segments found.

    Attributes:
        tree: the tree over all records under a head.
        head: the last head; None if there is none.
        end: where it ends in the last segment, in bytes.
        torn: bytes behind it.
        first_time: time of the first record; only after a thorough replay.
        last_time: time of the last record; only after a thorough replay.
    """

    tree: proof.CompactRange
    head: bytes | None = None
    end: int = 0
    torn: int = 0
    first_time: str = ""
    last_time: str = ""


def verify(directory: Path, *, verifier: LogVerifier, origin: str | None = None, heads: Iterable[bytes] = ()) -> Report:
    """Prove that a log is whole.

    Args:
        directory: the log's directory, or a copy of it.
        verifier: the log's public key.
        origin: the log's name; by default the one that a log of this key gets.
        heads: signed heads known from elsewhere (the SIEM, a witness, paper).

    Raises:
        RecordAltered: a record under a signed head was altered, removed, moved or inserted.
        LogTruncated: a known head covers records that are gone.
        SplitView: a known head belongs to another history.
        AuditLogInvalid: this is not a log of this key and name, or there is nothing signed in it.
    """
    name = checkpoint.default_origin(verifier) if origin is None else origin
    outside = known_heads(heads, name, verifier, signed_twice=True)  # 1. every known head opens, and no two disagree
    with reading(directory):
        published = note.load(directory)
        kept = [published] if published is not None else []
        known = known_heads(kept, name, verifier, beside=outside, signed_twice=True)
        # 2. what was pruned, and the segments; that each begins where the one before it ended is checked as they are
        # read, in 3. to 7.
        segments = segment.listing(directory)
        tree, strange = pruned.tree(directory, known)
        found = replay(segments, origin=name, verifier=verifier, known=known, tree=tree, strange=strange)
    # 8. no known head reaches beyond the log
    check_reach(found.tree.size, known)
    if found.head is None:
        raise AuditLogInvalid("audit log: holds no signed head, so it proves nothing")
    return Report(
        origin=name,
        size=found.tree.size,
        root=found.tree.root().hex(),
        covered=max(outside, default=0),
        first=tree.size,
        segments=len(segments),
        torn=found.torn,
        first_time=found.first_time,
        last_time=found.last_time,
    )


def replay(
    segments: Sequence[segment.Segment],
    *,
    origin: str,
    verifier: LogVerifier,
    known: Mapping[int, bytes],
    tree: proof.CompactRange | None = None,
    strange: int | None = None,
    thorough: bool = True,
) -> History:
    """Recompute the tree from the records and hold every head against it; raises as :func:`verify`.

    Args:
        segments: consecutive segments, the first one beginning where ``tree`` ends.
        origin: the log's name.
        verifier: the log's public key.
        known: root by size of heads that were opened already.
        tree: the tree before the first segment; empty by default. The first head proves it.
        strange: the size of a known head that this tree disagrees with, if there is one.
        thorough: also parse every record and check every signature, not only the first and the last one, which
            covers every record.
    """
    found = History(proof.CompactRange() if tree is None else tree.copy())
    strange = _differs(found.tree, known) if strange is None else strange
    if strange is not None and not found.tree.size:
        raise _split(strange)
    last: segment.Group | None = None
    walk = segment.Walk(segments, found.tree.size)
    for group in walk:  # 3. frames
        for index, data in enumerate(group.records, group.first):
            if thorough:  # 4. records
                found.last_time = _check_record(index, data)
                found.first_time = found.first_time or found.last_time
            found.tree.append(proof.leaf_hash(data))  # 5. leaves
            strange = _differs(found.tree, known) if strange is None else strange
        if thorough or not last:
            _check_head(group, found.tree, origin, verifier, first=not last)  # 6. heads
        elif not group.head.startswith(note.body(origin, found.tree.size, found.tree.root()) + b"\n"):
            raise _mismatch(group)
        if strange is not None:  # 7. known heads; only now, since records that this log did not sign accuse nobody
            raise _split(strange)
        last, found.head = group, group.head
    if last and not thorough:
        _check_head(last, found.tree, origin, verifier, first=False)
    found.end, found.torn = walk.end, walk.torn
    return found


def known_heads(
    notes: Iterable[bytes],
    origin: str,
    verifier: LogVerifier,
    *,
    beside: Mapping[int, bytes] | None = None,
    signed_twice: bool = False,
) -> dict[int, bytes]:
    """Open heads, and return root by size, together with those known before.

    Args:
        notes: signed heads.
        origin: the log's name.
        verifier: the log's public key.
        beside: what was known before.
        signed_twice: refuse one without the second signature, where the verifier knows that key.

    Raises:
        AuditLogInvalid: one does not open.
        SplitView: two have the same size and different roots.
    """
    known = dict(beside or {})
    for signed in notes:
        head = checkpoint.open_head(signed, origin, verifier, published=signed_twice)
        if known.setdefault(head.size, head.root) != head.root:
            raise SplitView(f"heads of {head.size} records: two of them differ, so they belong to two histories")
    return known


def check_reach(size: int, known: Iterable[int]) -> None:
    """Refuse a log that is shorter than a known head.

    Raises:
        LogTruncated: a known head covers more than ``size`` records.
    """
    longest = max(known, default=0)
    if longest > size:
        raise LogTruncated(
            f"records {size} to {longest - 1}: a signed head covers them and they are gone",
            hint="keep what is left as evidence; restore the log from a copy that holds them",
        )


def _differs(tree: proof.CompactRange, known: Mapping[int, bytes]) -> int | None:
    if tree.size in known and known[tree.size] != tree.root():
        return tree.size
    return None


def _split(size: int) -> SplitView:
    return SplitView(
        f"head of {size} records: does not belong to this log's history",
        hint="one of the two was rewritten by someone who has the log key; keep both as evidence",
    )


def _check_record(index: int, data: bytes) -> str:
    try:
        fields = record.parse(data)
    except AuditError as error:
        raise RecordAltered(f"record {index}: {error.message.removeprefix('record: ')}") from error
    if type(fields.get("v")) is not int or fields["v"] != record.VERSION:
        raise RecordAltered(f"record {index}: is not of version {record.VERSION}")
    if type(fields.get("index")) is not int or fields["index"] != index:
        raise RecordAltered(f"record {index}: does not carry this index")
    time = fields.get("time")
    if not isinstance(time, str) or not _TIME.fullmatch(time):
        raise RecordAltered(f"record {index}: carries no time in UTC with microseconds")
    return time


def _check_head(
    group: segment.Group, tree: proof.CompactRange, origin: str, verifier: LogVerifier, *, first: bool
) -> None:
    try:
        head = checkpoint.open_head(group.head, origin, verifier)
    except AuditLogInvalid as error:
        if first:  # more likely the wrong key or name than an altered head
            raise
        raise RecordAltered(f"{_span(group)}: {error.message}") from error
    if (head.size, head.root) != (tree.size, tree.root()):
        raise _mismatch(group)


def _mismatch(group: segment.Group) -> RecordAltered:
    return RecordAltered(
        f"{_span(group)}: differ from what was signed; one was altered, removed, moved or inserted",
        hint="records before them are as they were signed; the rest must be taken from another copy",
    )


def _span(group: segment.Group) -> str:
    return f"records {group.first} to {group.first + len(group.records) - 1}"
