"""Steps of the clock are recorded once, and what is corrected little by little is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pericard.audit import AuditLog, time_of_last
from pericard.audit.record import stamp
from pericard.engine.clockwatch import ClockWatch
from pericard.keys import LogKey

SECOND = 1_000_000_000


class Clocks:
    """A clock that is set, one that is not, and what was recorded."""

    def __init__(self) -> None:
        self.wall, self.steady, self.full = 1_790_000_000 * SECOND, 77 * SECOND, False
        self.told: list[dict[str, Any]] = []
        self.watch = ClockWatch(self._record, lambda: False, wall=lambda: self.wall, steady=lambda: self.steady)

    def _record(self, event: dict[str, Any]) -> bool:
        if not self.full:
            self.told.append(event)
        return not self.full

    def passed(self, steady: float, wall: float) -> None:
        self.steady += int(steady * SECOND)
        self.wall += int(wall * SECOND)
        self.watch.look()


@pytest.mark.parametrize(("wall", "said"), [(3661, 3600_000 + 1000), (-59, -119_000), (60.6, 600), (59.4, -600)])
def test_a_step_is_told_once(wall: float, said: int) -> None:
    clocks = Clocks()
    clocks.passed(60, wall)
    (event,) = clocks.told
    assert (event["event"], event["when"], event["synchronised"]) == ("clock-stepped", "running", False)
    assert event["milliseconds"] == said
    clocks.passed(60, 60)
    assert len(clocks.told) == 1


def test_what_is_slewed_or_slept_through_is_no_step() -> None:
    clocks = Clocks()
    for _ in range(100):
        clocks.passed(60, 60.4)
        clocks.passed(86_400, 86_400)
    assert clocks.told == []


def test_a_step_that_could_not_be_recorded_is_told_later() -> None:
    clocks = Clocks()
    clocks.full = True
    clocks.passed(60, 600)
    clocks.full = False
    clocks.passed(60, 60)
    assert [event["milliseconds"] for event in clocks.told] == [540_000]


def test_a_start_before_the_newest_record_is_told() -> None:
    clocks = Clocks()
    for ahead, said in ((-5, []), (0.4, []), (3600, [-3_600_000])):
        clocks.watch.begin(stamp(clocks.wall + int(ahead * SECOND)))
        assert [event["milliseconds"] for event in clocks.told] == said
    assert clocks.told[0]["when"] == "start"


def test_the_real_clocks_agree() -> None:
    told: list[dict[str, Any]] = []
    watch = ClockWatch(lambda event: not told.append(event), lambda: True)
    watch.look()
    assert told == []


def test_the_time_of_the_last_record(quick: Path) -> None:
    key = LogKey(bytes(range(64)))
    ticks = iter((0, SECOND, 2 * SECOND))
    with AuditLog.open(quick / "log", key=key, clock=lambda: next(ticks)) as log:
        assert time_of_last(quick / "log", log.next_index) is None
        log.commit([{"event": "a"}, {"event": "b"}])
        log.commit([{"event": "c"}])
        assert time_of_last(quick / "log", 3) == stamp(SECOND)
        assert time_of_last(quick / "log", 2) == stamp(0)
