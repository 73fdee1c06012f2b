"""What the audit room's tests share: one fixed key, a clock that ticks once per group, a quick directory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pericard.audit import AuditLog
from pericard.keys import LogKey

Opener = Callable[..., AuditLog]


@pytest.fixture(scope="session")
def key() -> LogKey:
    return LogKey(bytes(range(64)))


@pytest.fixture
def opened(quick: Path, key: LogKey) -> Iterator[Opener]:
    """Open logs under ``quick``; whatever the test leaves open is closed."""
    ticks = itertools.count(1_790_000_000_000_000_000, 1_000_000)
    logs: list[AuditLog] = []

    def make(name: str = "log", **options: object) -> AuditLog:
        settings = {"key": key, "clock": lambda: next(ticks), **options}
        logs.append(AuditLog.open(quick / name, **settings))
        return logs[-1]

    yield make
    for log in logs:
        log.close()
