"""How fast one caller may ask: its burst at once, then its rate, and never at another's cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pericard.engine import rates
from pericard.engine.rates import NO_LIMITS, Limits, Rates
from pericard.errors import RateLimited


def admitted(found: Rates, principal: str, now: float, limits: Limits = NO_LIMITS) -> bool:
    try:
        found.admit(principal, now, limits)
    except RateLimited:
        return False
    return True


def test_without_a_rate_there_is_no_limit() -> None:
    found = Rates()

    assert all(admitted(found, "a", 0.0) for _ in range(1000))
    assert found._buckets == {}


def test_a_burst_then_the_rate() -> None:
    found = Rates(2.0, burst=3)

    assert [admitted(found, "a", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [admitted(found, "a", 10.5) for _ in range(2)] == [True, False]
    assert [admitted(found, "a", 100.0) for _ in range(4)] == [True, True, True, False]


def test_a_principals_own_limits_come_before_everybodys() -> None:
    found, own = Rates(1000.0, burst=1000), Limits(rate=2.0, burst=3)

    assert [admitted(found, "a", 10.0, own) for _ in range(4)] == [True, True, True, False]
    assert all(admitted(found, "b", 10.0, NO_LIMITS) for _ in range(1000))
    assert [admitted(found, "a", 10.5, own) for _ in range(2)] == [True, False]
    assert admitted(Rates(), "a", 0.0, Limits(rate=0.5, burst=1))
    assert [admitted(found, "c", 0.0, Limits(burst=2)) for _ in range(3)] == [True, True, False]


def test_a_refusal_says_how_long_and_costs_nothing() -> None:
    found = Rates(0.5)
    found.admit("a", 0.0)
    for _ in range(100):
        with pytest.raises(RateLimited) as refused:
            found.admit("a", 0.5)
        assert refused.value.hint == "wait 1.5 seconds"
        assert refused.value.message.startswith("a: ")

    with pytest.raises(RateLimited) as refused:
        found.admit("a", 1.9999)
    assert refused.value.hint == "wait 0.1 seconds"
    assert admitted(found, "a", 2.0)


def test_callers_do_not_share() -> None:
    found = Rates(1.0)

    assert [admitted(found, name, 0.0) for name in "abab"] == [True, True, False, False]


@given(
    rate=st.floats(0.1, 100), burst=st.integers(1, 20),
    steps=st.lists(st.floats(0, 3), min_size=1, max_size=60), start=st.floats(0, 1e6),
)  # fmt: skip
def test_never_more_than_the_burst_and_the_rate(rate: float, burst: int, steps: list[float], start: float) -> None:
    found, now, times = Rates(rate, burst), start, []
    for step in steps:
        now += step
        if admitted(found, "a", now):
            times.append(now)

    assert times[0] == start + steps[0]
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + (times[last] - begin) * rate + 1e-6


def test_a_flood_of_names_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MOST_BUCKETS", 100)
    found = Rates(1.0, burst=2)
    for number in range(1000):
        assert admitted(found, f"name {number}", 0.0)
        assert len(found._buckets) <= 100


def test_those_that_are_full_again_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MOST_BUCKETS", 3)
    found = Rates(1.0, burst=1)
    for name, now in (("old", 0.0), ("older", 0.1), ("busy", 5.0)):
        found.admit(name, now)
    found.admit("new", 5.1)

    assert set(found._buckets) == {"busy", "new"}
    assert not admitted(found, "busy", 5.2)  # what it spent is not forgiven
