"""What the statistics extension of the Open Inference Protocol tells of one version of a model.

Counted by the engine's threads under the lock of whoever calls; durations are in nanoseconds and cumulative. A row of a
batch counts as one request: that is the unit that is queued, computed and recorded here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count ``count`` times ``seconds``."""
        self.count += count
        self.ns += int(seconds * 1e9) * count

    def body(self) -> dict[str, int]:
        """As the protocol writes it."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class BatchStatistics:
    """What batches of one size cost."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """Counted since the version was loaded."""

    last_inference: int = 0  # milliseconds since the epoch
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)

    def executed(self, size: int, copied: float, computed: float) -> None:
        """One forward pass over ``size`` rows: seconds for copying and checking them, and for the pass."""
        self.last_inference = int(time.time() * 1000)
        self.inference_count += size
        self.execution_count += 1
        batch = self.batches.setdefault(size, BatchStatistics())
        batch.compute_input.add(copied)
        batch.compute_infer.add(computed)

    def finished(self, size: int, seconds: float) -> None:
        """Records and answers of a pass over ``size`` rows."""
        self.batches.setdefault(size, BatchStatistics()).compute_output.add(seconds)

    def body(self, name: str, version: str) -> dict[str, object]:
        """As the protocol writes it."""
        phases = ("compute_input", "compute_infer", "compute_output")
        batches = sorted(self.batches.items())  # a copy: other threads count on
        rows = {
            phase: {
                "count": sum(getattr(found, phase).count * size for size, found in batches),
                "ns": sum(getattr(found, phase).ns * size for size, found in batches),
            }
            for phase in phases
        }
        nothing = Duration().body()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": self.success.body(),
                "fail": self.fail.body(),
                "queue": self.queue.body(),
                **rows,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {"batch_size": size, **{phase: getattr(found, phase).body() for phase in phases}}
                for size, found in batches
            ],
        }
