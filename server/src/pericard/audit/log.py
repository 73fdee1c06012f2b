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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from pericard.audit import checkpoint, note, pruned, record, segment
from pericard.audit.proof import CompactRange, leaf_hash
from pericard.audit.verify import check_reach, known_heads, replay
from pericard.errors import AuditLogInvalid, AuditUnavailable, LogTruncated
from pericard.keys import LogKey

SEGMENT_BYTES: Final = 64 * 1024 * 1024
CHECKPOINT_EVERY: Final = 1024
MAX_RECORDS: Final = 1024


class Entry(msgspec.Struct, frozen=True):
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
    segment: segment.Segment | None  # the current one; None before the first
    before: CompactRange  # the tree before the current segment
    offset: int  # where the head ends in the current segment, in bytes


class AuditLog:
    """An open log; made by :meth:`open`.

    Attributes:
        origin: the log's name.
        recovered_bytes: bytes of groups never acknowledged that were cut off since and by :meth:`open`, in all; the
            caller records it when it grows.
    """

    def __init__(
        self,
        directory: Path,
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
        self._failure: str | None = "is not open"
        self._durable = _Durable(CompactRange(), None, None, CompactRange(), 0)
        self._unpublished = 0  # groups since the head was last published
        self._published: bytes | None = None

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
        log = cls(directory, name, key, segment_bytes, checkpoint_every, clock)
        try:
            log._lock = _lock(directory)
            log._recover()
            log._resume()
        except BaseException as error:
            log.close()
            if isinstance(error, OSError):
                raise _unavailable(f"cannot be opened: {_reason(error)}") from error
            raise
        return log

    @property
    def directory(self) -> Path:
        """Where its files lie."""
        return self._directory

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
        """Whether a commit would be tried; False from a failure until :meth:`reopen` succeeds."""
        return self._failure is None

    def commit(self, records: Sequence[Mapping[str, object]]) -> list[Entry]:
        """Append records as one group; return once they are durable under a signed head.

        The log adds ``index`` (from :attr:`next_index` on), ``time`` and ``v`` to each.

        Raises:
            AuditUnavailable: the group is not part of the log, and no later one will be until :meth:`reopen`.
            AuditLogInvalid: a record has no canonical form or carries a reserved member, or the group has more than
                1024 records or 16 MiB; nothing was written, and the log goes on.
        """
        if self._failure is not None:
            raise _unavailable(self._failure)
        if not records:
            return []
        entries, tree, head, data = self._group(records)
        with self._writing():
            if self._durable.offset and self._durable.offset + len(data) > self._segment_bytes:
                self._start_segment()
            if os.write(self._file, data) != len(data):  # the rest would fail too: the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._file)
            _, _, part, before, offset = self._durable
            self._durable = _Durable(tree, head, part, before, offset + len(data))
        self._unpublished += 1
        if self._unpublished >= self._checkpoint_every:
            with suppress(AuditUnavailable):  # this group is durable all the same; the next one meets the failure
                self.publish()
        return entries

    def publish(self) -> bytes | None:
        """Write the head over everything durable to the file ``checkpoint`` and return it; None while the log is empty.

        This is the head to show to others: what it covers is on disk, so no crash can make the log take it back, and it
        has both signatures.

        Raises:
            AuditUnavailable: the disk refuses.
        """
        if self._failure is not None:
            raise _unavailable(self._failure)
        head = self._durable.head
        if head is not None and self._unpublished:
            signed = checkpoint.attest(head, self._key)
            with self._writing():
                note.store(self._directory, signed)
            self._published, self._unpublished = signed, 0
        return self._published

    def reopen(self) -> None:
        """Get a failed log going again from what the disk really holds; a healthy one is left alone.

        Raises:
            AuditUnavailable: the disk still refuses; call again later.
            AuditLogInvalid, RecordAltered, LogTruncated: the disk no longer holds what was durable.
        """
        if self._failure is None:
            return
        if self._lock < 0:
            raise _unavailable(self._failure)
        try:
            self._drop_file()
            self._cut_back()
            self._check_current()
            self._resume()
        except OSError as error:
            self._failure = f"cannot be reopened: {_reason(error)}"
            raise _unavailable(self._failure) from error

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

    def _group(self, records: Sequence[Mapping[str, object]]) -> tuple[list[Entry], CompactRange, bytes, bytes]:
        """Make the group's entries, the tree with them, the head over it, and the frames to write."""
        if len(records) > MAX_RECORDS:
            raise AuditLogInvalid(f"group: has {len(records)} records, at most {MAX_RECORDS} are allowed")
        tree = self._durable.tree.copy()
        now = record.stamp(self._clock())
        entries: list[Entry] = []
        frames: list[bytes] = []
        for fields in records:
            index = tree.size
            stamped = {**fields, "index": index, "time": now, "v": record.VERSION}
            if len(stamped) != len(fields) + 3:
                raise AuditLogInvalid("record: carries a member that only the log sets (index, time, v)")
            data = record.encode(stamped)
            leaf = leaf_hash(data)
            tree.append(leaf)
            entries.append(Entry(index, leaf.hex(), data))
            frames.append(segment.frame(segment.RECORD, data))
        head = checkpoint.sign(self.origin, tree.size, tree.root(), self._key)
        frames.append(segment.frame(segment.HEAD, head))
        group = b"".join(frames)
        if len(group) > segment.MAX_GROUP:
            raise AuditLogInvalid(f"group: takes {len(group)} bytes, at most {segment.MAX_GROUP} are allowed")
        return entries, tree, head, group

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let nothing be accepted after a write that did not come to its end, whatever ended it."""
        self._failure = "was interrupted while it wrote"
        try:
            yield
        except BaseException as error:
            self._withdraw()
            if isinstance(error, OSError):
                self._failure = f"cannot be written: {_reason(error)}"
                raise _unavailable(self._failure) from error
            raise
        self._failure = None

    def _withdraw(self) -> None:
        """Cut what is not durable off the file at once, so that no later reader takes it for a part of the log.

        It may be whole and have its head, if only the fdatasync failed. :meth:`reopen` cuts again, and surely.
        """
        with suppress(OSError):
            beyond = os.fstat(self._file).st_size - self._durable.offset
            if beyond > 0:
                os.ftruncate(self._file, self._durable.offset)
                self.recovered_bytes += beyond

    def _recover(self) -> None:
        """Check everything on disk against the key and the published head; cut the torn tail."""
        published = note.load(self._directory)
        known = known_heads([published] if published is not None else [], self.origin, self._key.verifier)
        segments = segment.listing(self._directory)
        if segments:
            _refresh(segments[-1].path)
        verifier = self._key.verifier
        tree, strange = pruned.tree(self._directory, known)
        found = replay(
            segments, origin=self.origin, verifier=verifier, known=known, tree=tree, strange=strange, thorough=False
        )  # fmt: skip
        check_reach(found.tree.size, known)  # before anything is cut
        if tree.size and found.head is None:
            raise LogTruncated(f"records from {tree.size} on: are gone, and with them what proves those before")
        newest = segments[-1] if segments else None
        self._durable = _Durable(found.tree, found.head, newest, CompactRange(), found.end)
        self._cut_back()

    def _cut_back(self) -> None:
        """Remove from disk what lies behind the last durable head."""
        for part in segment.listing(self._directory):
            if part.first >= self._durable.tree.size:
                self.recovered_bytes += part.path.stat().st_size
                part.path.unlink()
        current = self._durable.segment
        if current is not None and self._durable.offset:
            file = os.open(current.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                beyond = os.fstat(file).st_size - self._durable.offset
                if beyond > 0:
                    os.ftruncate(file, self._durable.offset)
                    self.recovered_bytes += beyond
                os.fsync(file)  # also when the failed commit cut it already
            finally:
                os.close(file)

    def _check_current(self) -> None:
        """Read the current segment again: after a failure, nothing that memory says about the disk is evidence."""
        tree, _, current, before, offset = self._durable
        if current is None or not offset:
            return  # nothing durable lies in it
        _refresh(current.path)
        verifier = self._key.verifier
        found = replay([current], origin=self.origin, verifier=verifier, known={}, tree=before, thorough=False)
        if found.tree.size != tree.size or found.tree.root() != tree.root():
            raise LogTruncated(f"records from {found.tree.size} on: were durable and are gone")

    def _resume(self) -> None:
        """Go on behind the durable head: a new segment, and the head published, which also proves there is space."""
        self._start_segment()
        self._failure, self._unpublished = None, int(self._durable.head is not None)
        self.publish()

    def _start_segment(self) -> None:
        tree, head, *_ = self._durable
        part = segment.Segment(self._directory / segment.file_name(tree.size), tree.size)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(part.path, flags, 0o640)
        self._drop_file()
        self._durable = _Durable(tree, head, part, tree, 0)
        self._file = file
        os.fsync(self._lock)  # the directory

    def _drop_file(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with suppress(OSError):  # what it held is durable, or was given up
                os.close(file)


def _lock(directory: Path) -> int:
    """Make the directory if it is missing; hold it open, exclusively locked."""
    try:
        directory.mkdir(mode=0o750)
    except FileExistsError:
        pass
    else:
        _refresh(directory.parent)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AuditUnavailable("audit log: another process writes it", hint="one log has one writer") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refresh(path: Path) -> None:
    """Sync a file or directory and forget its cached pages, so that the next read sees what the disk holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
        with suppress(OSError):  # only advice
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return (error.strerror or "i/o error").lower()


def _unavailable(reason: str) -> AuditUnavailable:
    return AuditUnavailable(
        f"audit log: {reason}", hint="free space or repair the disk; nothing is answered unrecorded"
    )
