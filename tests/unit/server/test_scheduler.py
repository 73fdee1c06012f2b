"""The queue: bounded, one version a batch, the urgent first and then the old; nothing is lost, doubled or left over."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from queued import FAR, Link, job, version

from pericard.engine import scheduler
from pericard.engine.repository import Served
from pericard.engine.scheduler import Scheduler
from pericard.errors import ModelNotReady, Overloaded, PipeError, RateLimited
from pericard.pipe import EdgeLink


@pytest.fixture
def links() -> Iterator[list[EdgeLink]]:
    made = [Link(), Link()]
    yield [one.link for one in made]
    for one in made:
        one.close()


@pytest.fixture
def link(links: list[EdgeLink]) -> EdgeLink:
    return links[0]


@pytest.fixture
def small() -> Served:
    return version(1, 1, 2)


@pytest.fixture
def large() -> Served:
    return version(2, 1, 2, 4)


def taken(found: Scheduler, now: float | None = None) -> list[int]:
    work = found.take(now)
    assert work is not None
    return [one.number for one in work.jobs]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_what_waits_up_to_the_largest_bucket(link: EdgeLink, large: Served) -> None:
    found = Scheduler(100)
    for number in range(6):
        found.submit(job(link, number, large))
    assert (len(found), large.waiting) == (6, 6)

    assert taken(found) == [0, 1, 2, 3]
    assert taken(found) == [4, 5]
    assert taken(found) == []
    assert (len(found), large.waiting) == (0, 6)  # until they are answered


def test_the_oldest_item_says_which_version_is_next(link: EdgeLink, small: Served, large: Served) -> None:
    found = Scheduler(100)
    for number, served in enumerate([small, large, small, large, small, large]):
        found.submit(job(link, number, served))

    assert taken(found) == [0, 2]
    assert taken(found) == [1, 3, 5]
    assert taken(found) == [4]


def test_the_urgent_come_first_and_age_decides_among_them(link: EdgeLink, small: Served, large: Served) -> None:
    found = Scheduler(100)
    for number, (served, priority) in enumerate(
        [(large, 3), (small, 2), (large, 2), (small, 1), (large, 1), (large, 2)]
    ):
        found.submit(job(link, number, served, priority=priority))

    assert taken(found) == [3, 1]  # the older of the two most urgent; its neighbour joins
    assert taken(found) == [4, 2, 5, 0]


def test_the_late_are_handed_out_apart_and_make_room(link: EdgeLink, small: Served) -> None:
    found = Scheduler(100)
    for number, deadline in enumerate([5.0, FAR, 5.0, FAR, FAR]):
        found.submit(job(link, number, small, deadline=deadline))

    work = found.take(10.0)
    assert work is not None
    assert ([one.number for one in work.late], [one.number for one in work.jobs]) == ([0, 2], [1, 3])
    assert taken(found, 10.0) == [4]


def test_who_is_late_keeps_nobody_from_his_turn(link: EdgeLink, small: Served, large: Served) -> None:
    found = Scheduler(100)
    found.submit(job(link, 1, small, deadline=5.0))
    found.submit(job(link, 2, large))

    work = found.take(10.0)
    assert work is not None
    assert ([one.number for one in work.late], [one.number for one in work.jobs]) == ([1], [2])


def test_on_the_stroke_of_the_deadline_one_is_not_late(link: EdgeLink, small: Served) -> None:
    found = Scheduler(100)
    found.submit(job(link, 1, small, deadline=10.0))

    assert taken(found, 10.0) == [1]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded(link: EdgeLink, large: Served) -> None:
    found = Scheduler(2)
    found.submit(job(link, 0, large))
    found.submit(job(link, 1, large))
    with pytest.raises(Overloaded):
        found.submit(job(link, 2, large))

    assert large.waiting == 2
    assert taken(found) == [0, 1]
    found.submit(job(link, 3, large))
    assert taken(found) == [3]


def test_one_caller_cannot_take_the_whole_queue(link: EdgeLink, large: Served) -> None:
    found = Scheduler(100, per_caller=2)
    first = [job(link, number, large) for number in range(2)]
    for one in first:
        found.submit(one)
    with pytest.raises(RateLimited) as refused:
        found.submit(job(link, 2, large))
    assert refused.value.hint
    found.submit(job(link, 3, large, who="b"))

    assert taken(found) == [0, 1, 3]
    with pytest.raises(RateLimited):  # what is in work counts, too
        found.submit(job(link, 4, large))
    found.finish(first[:1])
    found.submit(job(link, 5, large))
    found.cancel(link, 5)
    found.submit(job(link, 6, large))


def test_a_number_that_waits_already_is_refused_and_may_come_again_later(link: EdgeLink, large: Served) -> None:
    found = Scheduler(100)
    found.submit(job(link, 1, large))
    with pytest.raises(PipeError):
        found.submit(job(link, 1, large))

    assert (len(found), large.waiting) == (1, 1)
    assert taken(found) == [1]
    found.submit(job(link, 1, large))
    assert taken(found) == [1]


# --- who leaves -------------------------------------------------------------------------------------------------------


def test_a_cancelled_item_leaves_alone(links: list[EdgeLink], large: Served) -> None:
    found = Scheduler(100)
    jobs = [job(links[0], 1, large), job(links[0], 2, large), job(links[1], 1, large)]
    for one in jobs:
        found.submit(one)

    assert found.cancel(links[0], 1) is jobs[0]
    assert found.cancel(links[0], 1) is None
    assert found.cancel(links[0], 99) is None
    assert large.waiting == 2
    work = found.take()
    assert work is not None
    assert work.jobs == jobs[1:]
    assert found.cancel(links[0], 2) is None  # it is computed already


def test_an_edge_that_is_gone_takes_its_items_along(links: list[EdgeLink], small: Served, large: Served) -> None:
    found = Scheduler(100)
    mine = [job(links[0], number, small if number % 2 else large, priority=1 + number % 3) for number in range(9)]
    for one in [*mine, job(links[1], 1, large)]:
        found.submit(one)

    assert found.drop(links[0]) == mine
    assert found.drop(links[0]) == []
    assert (small.waiting, large.waiting, len(found)) == (0, 1, 1)
    assert taken(found) == [1]


def test_a_long_queue_is_left_quickly(link: EdgeLink, large: Served) -> None:
    """From its end on, one by one: what takes a walk through the line each time would take minutes."""
    count = 50_000
    found = Scheduler(count)
    for number in range(count):
        found.submit(job(link, number, large))
    started = time.monotonic()
    for number in reversed(range(1000, count)):
        assert found.cancel(link, number) is not None
    assert len(found.drop(link)) == 1000

    assert time.monotonic() - started < 10
    assert large.waiting == 0


# --- delay ------------------------------------------------------------------------------------------------------------


def test_a_delay_gives_a_batch_time_to_fill(link: EdgeLink, large: Served) -> None:
    found = Scheduler(100, delay=5.0)
    found.submit(job(link, 1, large, at=100.0))
    found.submit(job(link, 2, large, at=103.0))

    assert found.due() == 105.0
    assert taken(found, 104.9) == []
    assert taken(found, 105.0) == [1, 2]
    assert found.due() is None


def test_a_full_batch_and_a_stop_wait_for_nobody(link: EdgeLink, small: Served, large: Served) -> None:
    found = Scheduler(100, delay=5.0)
    for number in range(2):
        found.submit(job(link, number, small, at=100.0))
    assert found.due() == 0.0
    assert taken(found, 100.0) == [0, 1]

    found.submit(job(link, 3, large, at=100.0))
    assert taken(found, 100.0) == []
    found.stop()
    assert taken(found, 100.0) == [3]


def test_a_version_that_may_still_grow_keeps_no_other_back(link: EdgeLink, small: Served, large: Served) -> None:
    found = Scheduler(100, delay=5.0)
    found.submit(job(link, 1, large, at=100.0))
    for number in (2, 3):
        found.submit(job(link, number, small, at=101.0))

    assert taken(found, 101.0) == [2, 3]


def test_without_a_delay_what_waits_is_due(link: EdgeLink, large: Served) -> None:
    found = Scheduler(100)
    assert found.due() is None
    found.submit(job(link, 1, large))
    due = found.due()
    assert due is not None
    assert due <= time.monotonic()
    found.take()
    assert found.due() is None
    found.record({"event": "a"})
    assert found.due() == 0.0


# --- events, stop, settled --------------------------------------------------------------------------------------------


def test_events_come_with_the_next_batch_in_order(link: EdgeLink, large: Served) -> None:
    found = Scheduler(100)
    found.submit(job(link, 0, large))
    assert found.record({"event": "a"})
    assert found.record({"event": "b"})

    work = found.take()
    assert work is not None
    assert [event["event"] for event in work.events] == ["a", "b"]
    assert found.take() == ([], [], [])
    assert not found.take()


def test_events_are_bounded_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_MOST_EVENTS", 3)
    found = Scheduler(1)

    assert [found.record({"event": str(number)}) for number in range(5)] == [True, True, True, False, False]
    work = found.take()
    assert work is not None
    assert [event["event"] for event in work.events] == ["0", "1", "2"]  # those that were taken are kept
    assert found.record({"event": "again"})


def test_stopped_it_gives_out_what_waits_and_takes_nothing_more(link: EdgeLink, large: Served) -> None:
    found = Scheduler(100)
    found.submit(job(link, 1, large))
    found.stop()

    with pytest.raises(ModelNotReady):
        found.submit(job(link, 2, large))
    assert found.due() == 0.0
    assert taken(found) == [1]
    assert found.take() is None
    assert found.take() is None


def test_a_version_is_settled_once_the_last_is_answered(link: EdgeLink, small: Served, large: Served) -> None:
    found = Scheduler(100)
    jobs = [job(link, number, large) for number in range(3)]
    for one in [*jobs, job(link, 9, small)]:
        found.submit(one)
    assert not found.settled(large, 0.01)
    found.cancel(link, 2)
    assert taken(found) == [0, 1]
    assert not found.settled(large, 0.01)  # in work

    threading.Timer(0.05, lambda: found.finish(jobs[:2])).start()
    started = time.monotonic()
    assert found.settled(large, 10)
    assert time.monotonic() - started < 5


def test_threads_lose_nothing(links: list[EdgeLink], large: Served) -> None:
    found = Scheduler(100_000)
    seen: Counter[tuple[EdgeLink, int]] = Counter()
    left: Counter[tuple[EdgeLink, int]] = Counter()
    done = threading.Event()

    def submit(link: EdgeLink) -> None:
        for number in range(2000):
            found.submit(job(link, number, large))
            if number % 3 == 0 and found.cancel(link, number) is not None:
                left[link, number] += 1

    def take() -> None:
        while not done.is_set() or len(found):
            work = found.take()
            if work:
                seen.update((one.link, one.number) for one in work.jobs)
                found.finish(work.jobs)

    askers = [threading.Thread(target=submit, args=(link,)) for link in links]
    takers = [threading.Thread(target=take) for _ in range(2)]
    for thread in askers + takers:
        thread.start()
    for thread in askers:
        thread.join(60)
    done.set()
    for thread in takers:
        thread.join(60)

    assert set((seen + left).values()) == {1}
    assert len(seen + left) == 4000
    assert (large.waiting, len(found._callers)) == (0, 0)
