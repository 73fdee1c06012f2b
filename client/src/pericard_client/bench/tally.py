"""Counts and latencies, and what they come to.

Rules of this room: every latency is kept and percentiles are read off the sorted samples, so they are exact; what
bounds the memory is how many requests one run may have. A request that was given up has waited, too: it counts with
the time until then, lest a stall past the time-out vanish. A refusal has not: it is counted, by code, and its latency
is not taken, because refusing is quick and would flatter.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pericard_client.errors import ClientError, ConnectionLost, TimedOut

Samples = npt.NDArray[np.float64]

MOST_REQUESTS = 10_000_000
"""In one run; their latencies take 80 MB."""
LATE = 0.005
"""Seconds after its time at which a request counts as sent late."""
PERCENTILES = {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99.9": 999}
"""In thousandths."""
_MOST_CODES = 32
_GIVEN_UP = (TimedOut, ConnectionLost)
_BACKLOG_SHARE = 0.01
_BUSY_CPU, _BUSY_LAG = 0.8, 0.5


def percentile(ordered: Samples, thousandths: int) -> float:
    """The smallest sample that at least so many thousandths of all do not exceed (nearest rank).

    Args:
        ordered: at least one sample, ascending.
        thousandths: 1 to 1000.
    """
    rank = -(-thousandths * len(ordered) // 1000)  # rounded up, in integers
    return float(ordered[rank - 1])


@dataclass(slots=True)
class Tally:
    """What was counted while the clock ran; times are of ``time.monotonic``."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    lags: array[float] = field(default_factory=lambda: array("d"))
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, ClientError] = field(default_factory=dict)
    started: int = 0
    answered: int = 0
    late: int = 0
    last: float = 0.0

    def start(self, *, due: float, sent: float) -> None:
        """A request left."""
        self.started += 1
        self.late += sent - due > LATE

    def end(self, *, due: float, done: float, error: ClientError | None) -> None:
        """It was answered, refused or given up."""
        self.last = max(self.last, done)
        if error is None:
            self.answered += 1
        else:
            code = error.code if error.code in self.failures or len(self.failures) < _MOST_CODES else "other"
            self.failures[code] += 1
            self.examples.setdefault(code, error)
        if error is None or isinstance(error, _GIVEN_UP):
            self.latencies.append(done - due)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run.

    Attributes:
        seconds: from the end of the warm-up to the last reply, or to the end of the time if that is later.
        started: requests that were sent.
        answered: those whose every strip was answered.
        items: strips of the answered.
        failures: the others, by code.
        examples: one error of each code.
        latencies: in seconds, by percentile and ``max``; empty where nothing was measured.
        samples: how many latencies there are.
        late: requests that left more than ``LATE`` after their time.
        backlog: requests whose time had come and that were not sent by the end.
        backlog_age: seconds that the oldest of them had waited.
        in_flight: requests without a reply at the end of the time; they were waited for.
        unanswered: requests without a reply when the run was broken off.
        offered: requests a second that were due; None in the closed loop.
        cpu: the generator's processor time over the time that passed: 1.0 is one core, all that it can use.
        lag: seconds by which the generator woke late: the median, and the 99th percentile.
        interrupted: it was broken off.
    """

    seconds: float
    started: int
    answered: int
    items: int
    failures: dict[str, int]
    examples: dict[str, ClientError]
    latencies: dict[str, float]
    samples: int
    late: int
    backlog: int
    backlog_age: float
    in_flight: int
    unanswered: int
    offered: float | None
    cpu: float
    lag: tuple[float, float]
    interrupted: bool

    @property
    def requests_per_second(self) -> float:
        """Answered requests over time."""
        return self.answered / self.seconds if self.seconds > 0 else 0.0

    @property
    def items_per_second(self) -> float:
        """Answered strips over time."""
        return self.items / self.seconds if self.seconds > 0 else 0.0

    @property
    def rate_reached(self) -> bool:
        """Whether all but a hundredth of what was due was sent by the end."""
        return self.backlog <= max(1.0, _BACKLOG_SHARE * (self.started + self.backlog))

    @property
    def generator_bound(self) -> bool:
        """Whether the generator was busy, or kept from its processor, enough to be what was measured."""
        bearable = min(LATE, _BUSY_LAG * self.latencies.get("p50", LATE / _BUSY_LAG))
        return self.cpu >= _BUSY_CPU or self.lag[0] >= bearable


def latency_table(samples: array[float]) -> dict[str, float]:
    """Percentiles and the maximum, in seconds; empty where there is no sample."""
    if not samples:
        return {}
    ordered = np.sort(np.frombuffer(samples))
    return {name: percentile(ordered, each) for name, each in PERCENTILES.items()} | {"max": float(ordered[-1])}


def lag_pair(samples: array[float]) -> tuple[float, float]:
    """Median and 99th percentile in seconds; zeros where there is no sample."""
    ordered = np.sort(np.frombuffer(samples)) if samples else np.zeros(1)
    return percentile(ordered, 500), percentile(ordered, 990)
