"""Old records go: by whole segments, after the retention, and never before the collector has them.

Rules of this module: what is about to go is recorded first, with the trust state, whose newest record must stay; only
then is a segment replaced by its leaf hashes. How far the collector is, the forwarder's cursor says; one that is
missing or cannot be read means the beginning, and nothing goes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pericard import durable
from pericard.audit import pruned, published, segment
from pericard.audit.record import stamp
from pericard.errors import AuditUnavailable

_DAY: Final = 86_400
_LONGEST_CURSOR: Final = 64
_AGAIN_SECONDS: Final = 3600.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """What stays.

    Attributes:
        directory: the log.
        days: that a record stays at least.
        cursor: the forwarder's cursor; None if no collector is configured.
    """

    directory: Path
    days: int
    cursor: Path | None = None

    def prune(self, record: Callable[[dict[str, Any]], None], *, now: float) -> int:
        """Prune what may go; how many records went.

        Args:
            record: makes a record durable, with the trust state added.
            now: seconds since the epoch.

        Raises:
            AuditUnavailable: the disk refuses, or it could not be recorded; what went is whole.
            AuditError: the log is damaged; nothing went.
        """
        before = stamp(int((now - self.days * _DAY) * 1e9))
        parts = pruned.prunable(self.directory, before=before, below=self._sent())
        if not parts:
            return 0
        going = {part.first for part in parts}
        record({
            "event": "log-pruned",
            "first": min(part.first for part in segment.listing(self.directory) if part.first not in going),
            "segments": len(parts),
            "retention_days": self.days,
            "floor": "kept" if self.days >= pruned.FLOOR_DAYS else "undercut",
        })  # fmt: skip
        try:
            return sum(pruned.prune(self.directory, part) for part in parts)
        except OSError as error:
            reason = (error.strerror or "i/o error").lower()
            raise AuditUnavailable(f"audit log: cannot be pruned: {reason}") from error

    def _sent(self) -> int:
        """Below this index, everything was acknowledged, or published where nobody collects."""
        covered = published(self.directory)
        if self.cursor is None:
            return covered
        try:
            text = durable.read(self.cursor, limit=_LONGEST_CURSOR).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return 0
        return min(covered, int(text)) if text.isdigit() else 0


class Pruner:
    """Prunes once in a while, on a thread of its own: a segment takes a moment to read, and nobody waits for it."""

    def __init__(self, retention: Retention, record: Callable[[dict[str, Any]], None]) -> None:
        """Take what stays, and who makes a record durable with the trust state added."""
        self._retention = retention
        self._record = record
        self._next = 0.0

    def tick(self) -> None:
        """Begin to prune if it is time to look again."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _AGAIN_SECONDS
            threading.Thread(target=self.look, name="pruner", daemon=True).start()

    def look(self) -> None:
        """Prune what may go; what is in the way is said and tried again later."""
        try:
            gone = self._retention.prune(self._record, now=time.time())
        except Exception as error:  # noqa: BLE001  (an old record that stays longer harms nobody)
            _logger.warning("the audit log was not pruned: %s", getattr(error, "message", type(error).__name__))
            return
        if gone:
            _logger.warning("%d records of the audit log were pruned; their leaf hashes stay", gone)
