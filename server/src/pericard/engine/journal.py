"""The trust state and the audit log, kept in step: no change of the one that the other did not record first.

Rules of this module: a change is committed to the log, with the digests before and after it and all that makes the one
from the other, and only then written to the state's file; a log that cannot be written changes nothing. So at a start
the file is what the newest record says, or, after a crash between the two, what it was just before: then the recorded
change is made again. Anything else (removed, restored from an older copy, edited) is refused until an operator accepts
it by an audited reset. One thread uses it: the log has one writer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pericard.audit import AuditLog, latest, records
from pericard.errors import TrustStateInvalid
from pericard.trust import Remembered, TrustState

_logger = logging.getLogger(__name__)
_DIGEST = "trust_state"


class TrustJournal:
    """Changes a trust state through an audit log.

    Attributes:
        state: the trust state; read it, and change it only here.
    """

    def __init__(self, directory: Path, log: AuditLog, state: TrustState) -> None:
        """Take an open log, its directory, and the state; call :meth:`settle` or :meth:`reset` before anything else."""
        self.state = state
        self._directory = directory
        self._log = log

    def settle(self) -> None:
        """Hold the state against the log's newest word on it, and finish a change that a crash cut short.

        Raises:
            TrustStateInvalid: it is not the state that was recorded last; this is recorded too.
            AuditUnavailable, AuditLogInvalid, RecordAltered, LogTruncated: the log cannot be used.
        """
        if not self._log.next_index:
            return  # a new log knows no state
        record = self._newest()
        found = self.state.current.digest
        if record is not None and record[_DIGEST] == found:
            return
        if record is not None and _is_before(record, found):
            self._redo(record)
            return
        recorded = None if record is None else record[_DIGEST]
        self._log.commit([{"event": "trust-refused", "found": found, "recorded": recorded}])
        raise TrustStateInvalid(
            f"{self.state.path}: is not what the audit log recorded last; it was removed, replaced or edited",
            hint="restore the newest copy; if there is none: pericard trust reset, after comparing versions with the "
            "vendor's notices",
        )

    def change(self, proposed: Remembered, event: str = "trust-state", **details: object) -> None:
        """Record a change, then make it; the state as it is changes nothing.

        Args:
            proposed: made from the current state.
            event: what the record is called.
            details: further members of the record.

        Raises:
            AuditUnavailable: it could not be recorded, so it was not made.
            TrustStateInvalid: it was recorded and could not be written; it is made again, or the next start makes it.
        """
        before = self.state.current
        if proposed == before:
            return
        fields = {"event": event, "previous": before.digest, "change": proposed.change(before)}
        self._log.commit([{**details, **fields, _DIGEST: proposed.digest}])
        self.state.commit(proposed)

    def reset(self, reason: str) -> None:
        """Accept the state as it is now, whatever the log recorded before.

        Raises:
            AuditUnavailable: it could not be recorded.
        """
        record = self._newest() if self._log.next_index else None
        previous = None if record is None else record[_DIGEST]
        digest = self.state.current.digest
        self._log.commit([{"event": "trust-reset", _DIGEST: digest, "previous": previous, "reason": reason}])

    def record(self, event: Mapping[str, Any]) -> None:
        """Record an event together with the state as it is, so that older records of the state may go.

        Raises:
            AuditUnavailable: it could not be recorded.
        """
        self._log.commit([{**event, _DIGEST: self.state.current.digest}])

    def accept_time(self, now: int) -> int:
        """Set the recorded time to a clock that an operator vouches for, earlier or later; the time recorded now.

        Raises:
            AuditUnavailable, TrustStateInvalid: as :meth:`change`.
        """
        before = self.state.current
        details = {"from": before.latest_time, "to": now}
        self.change(replace(before, latest_time=now), "clock-accepted", **details)
        return self.state.latest_time

    def forgotten(self) -> dict[str, int]:
        """The floors that the log knew last and that the state lacks, by ``publisher id/model``.

        Best effort, for people: what the log's records do not let be made again is left out.
        """
        if not self._log.next_index:
            return {}
        known, now = _recorded(self._directory).floors, self.state.current.floors
        return {key: floor for key, floor in sorted(known.items()) if floor > now.get(key, 0)}

    def _newest(self) -> Mapping[str, Any] | None:
        return _newest(self._directory)

    def _redo(self, record: Mapping[str, Any]) -> None:
        try:
            again = self.state.current.changed(record["change"])
        except (ValueError, TypeError, AttributeError) as error:
            raise TrustStateInvalid(f"{self.state.path}: the log's newest change of it cannot be read") from error
        if again.digest != record[_DIGEST]:
            raise TrustStateInvalid(f"{self.state.path}: the log's newest change does not lead to the recorded state")
        _logger.warning("%s: a recorded change was not written before the last stop; it is now", self.state.path.name)
        self.state.commit(again)


def agrees(directory: Path, state: TrustState) -> bool:
    """Whether a server would start over a state: it is what the log recorded last, or was just before.

    Raises:
        AuditLogInvalid, RecordAltered, LogTruncated: the log cannot be read.
    """
    record, found = _newest(directory), state.current.digest
    return record is None or record[_DIGEST] == found or _is_before(record, found)


def _newest(directory: Path) -> Mapping[str, Any] | None:
    found = latest(directory, _DIGEST)
    return None if found is None else found[1]


def _is_before(record: Mapping[str, Any], found: str) -> bool:
    """Whether a record's change was made of this state, so that it can be made again."""
    return record.get("previous") == found and "change" in record


def _recorded(directory: Path) -> Remembered:
    """The state that the log's changes lead to, as far as they can be made again."""
    current = Remembered()
    known = {current.digest: current}
    for _, record in records(directory):
        digest = record.get(_DIGEST)
        base = known.get(str(record.get("previous")))
        change = record.get("change")
        if base is not None and isinstance(change, dict):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                made = base.changed(change)
                known[made.digest] = made
        current = known.get(str(digest), current)
    return current
