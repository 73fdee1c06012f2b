"""How far the forwarder is, for the metrics: what its status file says, read when somebody asks.

Rules of this module: the forwarder is another process, and nothing here waits for it. A file that is missing, damaged
or old is said to be so (``pericard_forward_up`` 0); the lag is counted from what the log holds and what was
acknowledged last, so it grows on while the forwarder is down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pericard import durable

_LONGEST: Final = 4096
_OLD_SECONDS: Final = 90.0  # a session that waits for the collector may be silent for a while


class _Status(msgspec.Struct):
    """As ``docs/spec/forwarding.md`` lists it."""

    time: float
    cursor: int
    oldest: float | None
    connected: bool
    sent: int
    sessions: int
    missing: int
    error: str | None = None


class Forwarding(Collector):
    """Metrics of the forwarder; register it."""

    def __init__(self, path: Path, size: Callable[[], int]) -> None:
        """Take where the status file is, and who knows how many records the log holds."""
        self._path = path
        self._size = size

    def collect(self) -> Iterator[Metric]:
        """Read the file and give what it says."""
        now, found = time.time(), self._read()
        running = found is not None and now - found.time < _OLD_SECONDS
        status = found or _Status(0.0, 0, None, connected=False, sent=0, sessions=0, missing=0)
        lag = max(0, self._size() - status.cursor)
        since = status.oldest or (now if running else status.time)
        age = max(0.0, now - since) if lag and found else 0.0
        yield _gauge("up", "1 while the forwarder has a session with the collector.", running and status.connected)
        yield _gauge("lag_records", "Records in the audit log that the collector has not acknowledged.", lag)
        yield _gauge("oldest_unsent_seconds", "Age of the oldest record that is not acknowledged.", age)
        yield _gauge("missing_records", "Records that were to be sent and are not in the log.", status.missing)
        yield _counter("sent_records", "Records acknowledged since the forwarder began.", status.sent)
        yield _counter("sessions", "Sessions with the collector since the forwarder began.", status.sessions)

    def describe(self) -> Iterator[Metric]:
        """What it is asked at its registration: the names, which are the same whatever the file says."""
        return self.collect()

    def _read(self) -> _Status | None:
        try:
            return msgspec.json.decode(durable.read(self._path, limit=_LONGEST), type=_Status)
        except (OSError, msgspec.DecodeError):
            return None


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pericard_forward_{name}", words, value=float(value))


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"pericard_forward_{name}", words, value=float(value))
