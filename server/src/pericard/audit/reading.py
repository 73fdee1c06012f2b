"""Reading a log without its keys: for showing records, for sending them on, and for making receipts.

Rules of this module: no keys, so that whoever only carries records need not have any; structure is checked, signatures
are not (that is ``verify``). Read-only, and safe beside a running log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pericard.audit import note, pruned, record, segment
from pericard.errors import AuditLogInvalid, LogTruncated


def records(directory: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (index, record) for what lies under a head, in order; checks structure, not signatures.

    Works beside a running log; a torn tail is left out. The newest group may not be durable yet: whoever sends records
    away stops at :func:`published`. Records that were pruned are not there: it begins with the first that is.

    Raises:
        RecordAltered: a frame or a record is damaged.
        LogTruncated: a segment is missing.
        AuditLogInvalid: the directory cannot be read as a log.
    """
    for index, data in raw_records(directory, start, stop):
        yield index, record.parse(data)


def raw_records(directory: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """As :func:`records`, with each record's bytes."""
    with reading(directory):
        segments = segment.listing(directory)
        at = max((place for place, part in enumerate(segments) if part.first <= start), default=0)
        for group in segment.Walk(segments[at:], segments[at].first if at else pruned.beginning(directory)):
            for index, data in enumerate(group.records, group.first):
                if stop is not None and index >= stop:
                    return
                if index >= start:
                    yield index, data


def latest(directory: Path, member: str) -> tuple[int, dict[str, object]] | None:
    """The newest record that carries a member, with its index; None if none does.

    Goes back from the newest segment and holds one segment at a time; checks structure, not signatures.

    Raises:
        RecordAltered: a frame or a record is damaged.
        LogTruncated: a segment is missing.
        AuditLogInvalid: the directory cannot be read as a log.
    """
    sought = f'"{member}":'.encode("ascii")  # a record has one encoding; inside a text the quotes would be escaped
    with reading(directory):
        following: int | None = None
        for part in reversed(segment.listing(directory)):
            end, found = part.first, None
            for group in segment.Walk([part], part.first):
                end = group.first + len(group.records)
                for index, data in enumerate(group.records, group.first):
                    if sought in data and member in (fields := record.parse(data)):
                        found = index, fields
            if following is not None and end != following:
                raise LogTruncated(f"records {end} to {following - 1}: their segment is missing")
            if found is not None:
                return found
            following = part.first
    return None


def time_of_last(directory: Path, size: int) -> str | None:
    """The time of the last of ``size`` records; None if there is none, or it carries no time.

    Raises:
        RecordAltered: a frame or a record is damaged.
        LogTruncated: a segment is missing.
        AuditLogInvalid: the directory cannot be read as a log.
    """
    for _, fields in records(directory, max(0, size - 1), size):
        time = fields.get("time")
        return time if isinstance(time, str) else None
    return None


def published(directory: Path) -> int:
    """How many records the published head covers, unverified; 0 if none is published.

    These are durable. A later record may be read and yet be taken back by a crash, so it is not sent to anybody.

    Raises:
        AuditLogInvalid: the directory cannot be read as a log.
    """
    with reading(directory):
        head = note.load(directory)
    return 0 if head is None else note.claims(head).size


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Name a directory that cannot be read."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "i/o error").lower()
        raise AuditLogInvalid(f"{directory}: cannot be read as an audit log: {reason}") from error
