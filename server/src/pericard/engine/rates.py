"""How fast one caller may ask: a token bucket for each principal, counted here so that several edges share it.

Source: the token bucket of RFC 2697 §3, one colour. A bucket that is full again is forgotten.
"""

from __future__ import annotations

import time

from pericard.errors import RateLimited

_MOST_BUCKETS = 10_000


class Rates:
    """Token buckets by principal; used by one thread at a time."""

    def __init__(self, per_second: float | None = None, burst: int = 1) -> None:
        """Let each principal have ``per_second`` rows, ``burst`` of them at once; None is no limit."""
        self._per_second = per_second
        self._burst = float(burst)
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and when that was so

    def admit(self, principal: str, now: float | None = None) -> None:
        """Count one row.

        Raises:
            RateLimited: it comes too soon.
        """
        if self._per_second is None:
            return
        moment = time.monotonic() if now is None else now
        left, since = self._buckets.get(principal, (self._burst, moment))
        left = min(self._burst, left + (moment - since) * self._per_second)
        if left < 1.0:
            wait = (1.0 - left) / self._per_second
            raise RateLimited(
                f"{principal}: asks faster than {self._per_second:g} rows a second",
                hint=f"wait {max(wait, 0.1):.1f} seconds",
            )
        if principal not in self._buckets and len(self._buckets) >= _MOST_BUCKETS:
            self._forget(moment)
        self._buckets[principal] = (left - 1.0, moment)

    def _forget(self, now: float) -> None:
        """Forget buckets that are full by now, or all of them: a principal then has its burst once more."""
        seconds = self._burst / (self._per_second or 1.0)
        kept = {name: bucket for name, bucket in self._buckets.items() if now - bucket[1] < seconds}
        self._buckets = kept if len(kept) < _MOST_BUCKETS else {}
