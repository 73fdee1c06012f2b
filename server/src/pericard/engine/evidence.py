"""Evidence for whoever may read it: records, the published head, and receipts; and the reading recorded.

Rules of this module: it reads the log's files, on a thread that computes nothing, and is bounded in records, bytes and
seconds. It shows what is durable and nothing else. What was read is recorded, durably, before it leaves. A receipt is
held against the signed head first, so a wrong hash in memory costs a receipt and never makes one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from pericard.audit import AuditLog, published
from pericard.audit.receipt import receipt
from pericard.audit.tree import Tree
from pericard.errors import AuditError, AuditUnavailable, EngineAway, MalformedRequest, Overloaded, UnknownRecord

ASKS: Final = ("audit-records", "audit-checkpoint", "audit-receipt")
MOST_RECORDS: Final = 1000

_MOST_BYTES = 4 << 20
_MOST_INDEX = 2**53
_READ_SECONDS = 5.0
_RECORD_SECONDS = 10.0  # for the engine's thread to come round
_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

Call = Callable[[Callable[[], Any]], Future[Any]]


class Evidence:
    """Reads one log; one thread at a time."""

    def __init__(self, log: AuditLog, call: Call) -> None:
        """Take an open log, and what runs something between two batches, where the log may be written."""
        self._log = log
        self._call = call
        self._tree = Tree(log.directory)

    def read(self, name: str, asked: Mapping[str, Any], caller: Mapping[str, str]) -> bytes:
        """What was asked for, as the body of an answer; recorded.

        Args:
            name: one of :data:`ASKS`.
            asked: ``from`` and ``limit``, or ``index``.
            caller: who asks, for the record.

        Raises:
            MalformedRequest, UnknownRecord: there is nothing of that name.
            Overloaded: the log is larger than what was read of it so far; the next call goes on.
            AuditUnavailable: that it was read cannot be recorded.
            EngineAway: nobody came to record it.
            AuditLogInvalid, RecordAltered, LogTruncated: the files are not what was written.
        """
        try:
            if name == "audit-checkpoint":
                body, what = self._checkpoint()
            elif name == "audit-receipt":
                body, what = self._receipt(_number(asked, "index"))
            else:
                body, what = self._records(_number(asked, "from"), _number(asked, "limit"))
        except AuditUnavailable:
            raise
        except AuditError as error:
            self._tree = Tree(self._log.directory)
            _logger.critical("the audit log cannot be read back: %s", error.message)
            raise
        event = {**caller, "event": "audit-read", "read": name.removeprefix("audit-"), **what}
        self._alone(lambda: self._log.commit([event]))
        return body

    def _checkpoint(self) -> tuple[bytes, dict[str, int]]:
        head = self._alone(self._log.publish)
        if head is None:
            raise UnknownRecord("audit log: is empty")
        return head, {}

    def _records(self, start: int, limit: int) -> tuple[bytes, dict[str, int]]:
        size = self._read_up_to(start)
        first = max(start, self._tree.beginning)
        found: list[bytes] = []
        room = _MOST_BYTES
        for data in self._tree.records(first, min(first + min(limit, MOST_RECORDS), size)):
            room -= len(data) + 1
            if found and room < 0:
                break
            found.append(data)
        about = {"log": self._log.origin, "size": size, "from": first, "next": first + len(found)}
        body = b'%b,"records":[%b]}' % (msgspec.json.encode(about)[:-1], b",".join(found))
        return body, {"from": first, "count": len(found)}

    def _receipt(self, index: int) -> tuple[bytes, dict[str, int]]:
        if self._read_up_to(index) == index:
            raise _unknown(index)
        if index < self._tree.beginning:
            raise UnknownRecord(f"record {index}: was pruned", hint="whoever kept its receipt can still verify it")
        if published(self._log.directory) <= index:  # a published head has both signatures, a group's has one
            self._alone(self._log.publish)
        return receipt(self._log.directory, index, self._tree).to_json(), {"from": index, "count": 1}

    def _read_up_to(self, index: int) -> int:
        """Read what was written since the last call, for so long; how many records are durable."""
        size = self._log.next_index
        if index > size:
            raise _unknown(index)
        self._tree.grow(size, partial(_pause, time.monotonic() + _READ_SECONDS))
        return size

    def _alone(self, work: Callable[[], _T]) -> _T:
        """Do something with the log where it may be written, and wait for it."""
        future: Future[_T] = self._call(work)
        try:
            return future.result(_RECORD_SECONDS)
        except (TimeoutError, CancelledError):
            future.cancel()
            raise EngineAway("engine: did not come round to record this", hint="try again later") from None
        except AuditUnavailable as error:
            raise AuditUnavailable("audit log: cannot be written at the moment", hint="try again later") from error


def _pause(latest: float) -> None:
    """Let the computing thread go first, and end what takes too long."""
    time.sleep(0)
    if time.monotonic() > latest:
        raise Overloaded("audit log: is still being read for the first time", hint="try again in a few seconds")


def _number(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name)
    if type(value) is not int or not 0 <= value <= _MOST_INDEX:
        raise MalformedRequest(f"{name}: is not a number of records")
    return value


def _unknown(index: int) -> UnknownRecord:
    return UnknownRecord(f"record {index}: is not in the log")
