"""The log's one writer: groups of records, each made durable under a signed head before anyone hears of it.

Rules of this module: one process and one thread write a log (an exclusive lock on its directory sees to the first). A
group is one write and one fdatasync; :meth:`AuditLog.commit` returns only after both. Any failure is sticky: what could
not be made durable is cut off, and nothing is accepted until :meth:`AuditLog.reopen` has read the disk again through
fresh descriptors, since after a failed fdatasync the old one, and the pages behind it, are worth nothing. What is on
disk is repaired in one way only: a torn tail, which nobody was ever told of, is cut. Everything else raises.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, NoReturn, Self

from pericard.audit import checkpoint, record, segment
from pericard.audit.proof import CompactRange, leaf_hash
from pericard.audit.verify import check_reach, remember, replay
from pericard.errors import AuditError, AuditLogInvalid, AuditUnavailable, LogTruncated
from pericard.keys import LogKey

SEGMENT_BYTES: Final = 64 * 1024 * 1024
CHECKPOINT_EVERY: Final = 1024
MAX_RECORDS: Final = 1024


class Entry(NamedTuple):
    """One durable record.

    Attributes:
        index: its place in the log.
        leaf: its leaf hash, in hex.
        record: its canonical bytes.
    """

    index: int
    leaf: str
    record: bytes


class _Durable(NamedTuple):
    """What is on disk for certain; replaced as a whole, so that no interruption leaves half of it."""

    tree: CompactRange
    head: bytes | None
    offset: int  # where the head ends in the current segment


class AuditLog:
    """An open log; use :meth:`open`.

    Attributes:
        origin: the log's name.
        recovered_bytes: bytes of never acknowledged groups that the last :meth:`open` or :meth:`reopen` cut off, or
            that the failure before it did; the caller records this in the log.
    """

    def __init__(
        self,
        directory: Path,
        *,
        origin: str,
        key: LogKey,
        segment_bytes: int,
        checkpoint_every: int,
        clock: Callable[[], int],
    ) -> None:
        self.origin = origin
        self.recovered_bytes = 0
        self._directory = directory
        self._key = key
        self._segment_bytes = segment_bytes
        self._checkpoint_every = checkpoint_every
        self._clock = clock
        self._lock = -1
        self._file = -1
        self._segment = segment.Segment(directory / segment.file_name(0), 0)
        self._base = CompactRange()  # the tree before the current segment
        self._durable = _Durable(CompactRange(), None, 0)
        self._groups_unpublished = 0
        self._bytes_cut = 0
        self._failure: str | None = "is not open"

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        origin: str | None = None,
        key: LogKey,
        segment_bytes: int = SEGMENT_BYTES,
        checkpoint_every: int = CHECKPOINT_EVERY,
        clock: Callable[[], int] = time.time_ns,
    ) -> Self:
        """Open a log for writing, or begin one: lock it, check all of it, cut a torn tail, start a new segment.

        Args:
            directory: the log's own directory; made if missing, its parent is not.
            origin: the log's name; by default derived from the public key.
            key: the log key.
            segment_bytes: a segment that would grow beyond this is followed by a new one; at most 128 MiB.
            checkpoint_every: groups after which the head is published in the file ``checkpoint``.
            clock: nanoseconds since the epoch.

        Raises:
            AuditUnavailable: another process writes this log, or the disk refuses.
            AuditLogInvalid, RecordAltered, LogTruncated, SplitView: what is there is not a whole log of this key.
        """
        name = checkpoint.default_origin(key.verifier) if origin is None else origin
        checkpoint.check_origin(name)
        if not 0 < segment_bytes <= segment.MAX_SEGMENT // 2:
            raise AuditLogInvalid(f"audit log: segments of {segment_bytes} bytes are not possible")
        log = cls(
            directory,
            origin=name,
            key=key,
            segment_bytes=segment_bytes,
            checkpoint_every=checkpoint_every,
            clock=clock,
        )
        try:
            log._lock = _lock(directory)
            log._recover()
        except OSError as error:
            log.close()
            raise _unavailable("cannot be opened", error) from error
        except BaseException:
            log.close()
            raise
        return log

    @property
    def next_index(self) -> int:
        """The index that the next record will get; its opening key derives from it."""
        return self._durable.tree.size

    @property
    def head(self) -> bytes | None:
        """The signed head over everything durable; None while the log is empty."""
        return self._durable.head

    @property
    def available(self) -> bool:
        """Whether the next commit would be tried; False from a failure until :meth:`reopen` succeeds."""
        return self._failure is None

    def commit(self, records: Sequence[Mapping[str, object]]) -> list[Entry]:
        """Append records as one group and return once they are durable under a signed head.

        The log adds ``index`` (from :attr:`next_index` on), ``time`` and ``v``.

        Raises:
            AuditUnavailable: the group is not part of the log, and neither is any later one until :meth:`reopen`.
            AuditLogInvalid: a record has no canonical form, carries a reserved member, or the group is larger than
                1024 records or 16 MiB; nothing was written and the log goes on.
        """
        if self._failure is not None:
            raise _unavailable(self._failure)
        if not records:
            return []
        entries, tree, head, data = self._group(records)
        self._failure = "was interrupted while it wrote"  # whatever leaves the next lines by an exception, it stays so
        try:
            if self._durable.offset and self._durable.offset + len(data) > self._segment_bytes:
                self._start_segment()
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - a short write is a failed write
            os.fdatasync(self._file)
        except OSError as error:
            self._fail(error)
        self._durable = _Durable(tree, head, self._durable.offset + len(data))
        self._failure = None
        self._groups_unpublished += 1
        if self._groups_unpublished >= self._checkpoint_every:
            with suppress(AuditUnavailable):  # this group is durable all the same; the next commit meets the failure
                self.publish()
        return entries

    def publish(self) -> bytes | None:
        """Write the head over everything durable to the file ``checkpoint`` and return it; None while the log is empty.

        This is the head to show to others: what it covers is on disk, so no crash can make the log take it back.

        Raises:
            AuditUnavailable: the disk refuses.
        """
        if self._failure is not None:
            raise _unavailable(self._failure)
        head = self._durable.head
        if head is not None and self._groups_unpublished:
            try:
                checkpoint.store(self._directory, head)
            except OSError as error:
                self._fail(error)
            self._groups_unpublished = 0
        return head

    def reopen(self) -> None:
        """Try to get a failed log going again, from what the disk really holds; nothing to do for a healthy one.

        Raises:
            AuditUnavailable: the disk still refuses; call it again later.
            AuditLogInvalid, RecordAltered, LogTruncated, SplitView: the disk no longer holds what was made durable.
        """
        if self._failure is None:
            return
        if self._lock < 0:
            raise _unavailable(self._failure)
        durable = self._durable
        try:
            self._drop_file()
            self._cut_back()
            self._recover_from([self._segment], self._base)
        except OSError as error:
            self._failure = f"cannot be reopened: {_reason(error)}"
            raise _unavailable(self._failure) from error
        except AuditError as error:
            self._failure = f"cannot be reopened: {error.message}"
            raise
        if self._durable[:2] != durable[:2]:
            pass

    def close(self) -> None:
        """Publish the head and let go of the log; may be called twice."""
        with suppress(AuditUnavailable):
            self.publish()
        self._failure = "is closed"
        self._drop_file()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
