"""Steps of the clock, recorded: a record's time is worth what the clock was worth.

A step is found by a second clock, which counts on through everything but a restart of the machine, and at a start by
the newest record. What the kernel corrects little by little is no step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

LEAST_NS: Final = 500_000_000

_MILLISECOND = 1_000_000
_logger = logging.getLogger(__name__)


def _steady() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)  # counts on while the machine sleeps, as the clock does


class ClockWatch:
    """Tells of each step once."""

    def __init__(
        self,
        record: Callable[[dict[str, Any]], bool],
        synchronised: Callable[[], bool],
        *,
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], int] = _steady,
    ) -> None:
        """Take who takes events for the audit log (False: not now), and whether the kernel vouches for its clock."""
        self._record = record
        self._synchronised = synchronised
        self._wall = wall
        self._steady = steady
        self._apart = wall() - steady()

    def begin(self, newest: str) -> None:
        """Hold the clock against the newest record's time: before it, it was set back while nothing ran."""
        behind = self._wall() - _nanoseconds(newest)
        if behind < -LEAST_NS:
            self._tell(behind, "start")

    def look(self) -> None:
        """Hold the clock against the second one."""
        apart = self._wall() - self._steady()
        moved = apart - self._apart
        if abs(moved) < LEAST_NS:
            self._apart = apart  # slewed, at most half a second since the last look
        elif self._tell(moved, "running"):
            self._apart = apart

    def _tell(self, moved: int, when: str) -> bool:
        milliseconds = moved // _MILLISECOND
        told = self._record(
            {"event": "clock-stepped", "milliseconds": milliseconds, "when": when, "synchronised": self._synchronised()}
        )
        if told:
            _logger.warning("the clock was set %s by %d ms", "back" if moved < 0 else "on", abs(milliseconds))
        return told


def _nanoseconds(moment: str) -> int:
    """Nanoseconds since the epoch of a record's time."""
    found = datetime.fromisoformat(moment)
    return int(found.timestamp()) * 1_000_000_000 + found.microsecond * 1000
