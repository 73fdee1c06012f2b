"""How much one caller may ask: a token bucket for each principal, counted here so that several edges share it.

Source: the token bucket of RFC 2697 §3, one colour. A bucket that is full again is forgotten.
"""

from __future__ import annotations

import time
from typing import Annotated, NamedTuple

import msgspec

from pericard.errors import RateLimited

_MOST_BUCKETS = 10_000


class Limits(NamedTuple):
    """Limits of one principal, as its edge says them; None is what everybody has.

    Attributes:
        rate: rows a second.
        burst: rows at once before the rate counts.
        rows: that may wait or be in work.
    """

    rate: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    rows: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


NO_LIMITS = Limits()


class _Bucket(NamedTuple):
    left: float
    since: float
    full: float  # when it is full again


class Rates:
    """Token buckets by principal; used by one thread at a time."""

    def __init__(self, per_second: float | None = None, burst: int = 1) -> None:
        """Let each principal have ``per_second`` rows, ``burst`` of them at once; None is no limit."""
        self._per_second = per_second
        self._burst = float(burst)
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, principal: str, now: float | None = None, limits: Limits = NO_LIMITS) -> None:
        """Count one row.

        Args:
            principal: who asks.
            now: by ``time.monotonic()``.
            limits: of its own.

        Raises:
            RateLimited: it comes too soon.
        """
        rate = self._per_second if limits.rate is None else limits.rate
        if rate is None:
            return
        burst = self._burst if limits.burst is None else float(limits.burst)
        moment = time.monotonic() if now is None else now
        bucket = self._buckets.get(principal)
        left = burst if bucket is None else min(burst, bucket.left + (moment - bucket.since) * rate)
        if left < 1.0:
            wait = (1.0 - left) / rate
            raise RateLimited(
                f"{principal}: asks faster than {rate:g} rows a second", hint=f"wait {max(wait, 0.1):.1f} seconds"
            )
        if bucket is None and len(self._buckets) >= _MOST_BUCKETS:
            self._forget(moment)
        left -= 1.0
        self._buckets[principal] = _Bucket(left, moment, moment + (burst - left) / rate)

    def _forget(self, now: float) -> None:
        """Forget buckets that are full by now, or all of them: a principal then has its burst once more."""
        kept = {name: bucket for name, bucket in self._buckets.items() if now < bucket.full}
        self._buckets = kept if len(kept) < _MOST_BUCKETS else {}
