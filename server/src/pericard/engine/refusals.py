"""Refusals of strangers, summed: whoever floods the door costs neither a record each nor memory without end.

One record per minute, address and reason, at most 1000 a minute; what is beyond that is one number.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

_SECONDS = 60.0
_MOST_RECORDS = 1000
_MOST_COUNTED = 10_000


class Refusals:
    """Counts on any thread, and gives up its records on the engine's."""

    def __init__(self) -> None:
        """Start the first minute."""
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._suppressed = 0
        self._since = time.monotonic()

    def add(self, address: str, code: str, count: int = 1) -> None:
        """Count refusals; those without an address are told as one number."""
        with self._lock:
            if address and ((address, code) in self._counts or len(self._counts) < _MOST_COUNTED):
                self._counts[address, code] += count
            else:
                self._suppressed += count

    def suppress(self, count: int) -> None:
        """Count events of which no more can be said than that they were."""
        with self._lock:
            self._suppressed += count

    def due(self, *, force: bool = False) -> list[dict[str, Any]]:
        """The minute's records once it is over, and then a new minute begins."""
        with self._lock:
            now = time.monotonic()
            if not (self._counts or self._suppressed) or (not force and now - self._since < _SECONDS):
                return []
            counts, suppressed = self._counts.most_common(), self._suppressed
            self._counts, self._suppressed, self._since = Counter(), 0, now
        records: list[dict[str, Any]] = [
            {"event": "refused", "address": address, "code": code, "count": count}
            for (address, code), count in counts[:_MOST_RECORDS]
        ]
        suppressed += sum(count for _, count in counts[_MOST_RECORDS:])
        if suppressed:
            records.append({"event": "refused", "suppressed": suppressed})
        return records
