"""The queue: bounded, one model a batch, oldest first, and nothing waits that nobody waits for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pericard.engine import scheduler
from pericard.engine.scheduler import Job, Scheduler
from pericard.errors import ModelNotReady, Overloaded
from pericard.pipe import EdgeLink

BATCH = {"small": 2, "large": 4}


@pytest.fixture(scope="module")
def link() -> Iterator[EdgeLink]:
    ours, theirs = socket.socketpair()
    made = EdgeLink(theirs, lambda *_: None)
    yield made
    made.close()
    ours.close()


def queue(limit: int = 100) -> Scheduler:
    return Scheduler(limit, lambda name: BATCH.get(name, 1))


def job(link: EdgeLink, number: int, model: str = "large") -> Job:
    return Job(link, number, {"model": model}, b"", time.monotonic() + 5)


def taken(found: Scheduler) -> list[int]:
    work = found.take(0)
    assert work is not None
    return [one.request for one in work[0]]


def test_a_batch_is_what_waits_up_to_the_largest(link: EdgeLink) -> None:
    found = queue()
    for number in range(6):
        found.submit(job(link, number))
    assert len(found) == 6

    assert taken(found) == [0, 1, 2, 3]
    assert taken(found) == [4, 5]
    assert taken(found) == []
    assert len(found) == 0


def test_the_oldest_item_says_which_model_is_next(link: EdgeLink) -> None:
    found = queue()
    for number, model in enumerate(["small", "large", "small", "large", "small", "unknown", "large"]):
        found.submit(job(link, number, model))

    assert taken(found) == [0, 2]  # the largest batch of "small"
    assert taken(found) == [1, 3, 6]
    assert taken(found) == [4]
    assert taken(found) == [5]


@given(models=st.lists(st.sampled_from(["small", "large", "unknown"]), max_size=30))
def test_nobody_is_lost_or_doubled_and_within_a_model_the_order_holds(models: list[str]) -> None:
    ours, theirs = socket.socketpair()
    link = EdgeLink(theirs, lambda *_: None)
    found = queue()
    for number, model in enumerate(models):
        found.submit(job(link, number, model))
    batches = []
    while batch := taken(found):
        batches.append(batch)
    link.close()
    ours.close()

    assert sorted(number for batch in batches for number in batch) == list(range(len(models)))
    for batch in batches:
        kinds = {models[number] for number in batch}
        assert len(kinds) == 1
        assert len(batch) <= BATCH.get(kinds.pop(), 1)
    for kind in set(models):
        assert [n for batch in batches for n in batch if models[n] == kind] == [
            n for n, model in enumerate(models) if model == kind
        ]


def test_the_queue_is_bounded(link: EdgeLink) -> None:
    found = queue(limit=2)
    found.submit(job(link, 0))
    found.submit(job(link, 1))

    with pytest.raises(Overloaded):
        found.submit(job(link, 2))
    assert taken(found) == [0, 1]
    found.submit(job(link, 3))
    assert taken(found) == [3]


def test_a_cancelled_item_is_marked_and_only_that_one(link: EdgeLink) -> None:
    ours, theirs = socket.socketpair()
    other = EdgeLink(theirs, lambda *_: None)
    found = queue()
    jobs = [job(link, 1), job(link, 2), job(other, 1)]
    for one in jobs:
        found.submit(one)

    found.cancel(link, 1)
    found.cancel(link, 99)

    assert [one.cancelled for one in jobs] == [True, False, False]
    other.close()
    ours.close()


def test_events_come_with_the_next_batch_in_order(link: EdgeLink) -> None:
    found = queue()
    found.submit(job(link, 0))
    assert found.record({"event": "a"})
    assert found.record({"event": "b"})

    work = found.take(0)
    assert work is not None
    assert [event["event"] for event in work[1]] == ["a", "b"]
    assert found.take(0) == ([], [])


def test_events_are_bounded_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_MOST_EVENTS", 3)
    found = queue()

    assert [found.record({"event": str(number)}) for number in range(5)] == [True, True, True, False, False]
    work = found.take(0)
    assert work is not None
    assert [event["event"] for event in work[1]] == ["0", "1", "2"]  # those that were taken are kept
    assert found.record({"event": "again"})


def test_taking_waits_for_work_and_no_longer(link: EdgeLink) -> None:
    found = queue()
    started = time.monotonic()
    assert found.take(0.05) == ([], [])
    assert 0.04 < time.monotonic() - started < 2

    threading.Timer(0.05, lambda: found.submit(job(link, 1))).start()
    started = time.monotonic()
    work = found.take(10)
    assert work is not None
    assert [one.request for one in work[0]] == [1]
    assert time.monotonic() - started < 5


def test_stopped_it_gives_out_what_waits_and_takes_nothing_more(link: EdgeLink) -> None:
    found = queue()
    found.submit(job(link, 1))
    found.stop()

    with pytest.raises(ModelNotReady):
        found.submit(job(link, 2))
    assert taken(found) == [1]
    assert found.take(10) is None
    assert found.take(10) is None


def test_stopping_wakes_who_waits() -> None:
    found = queue()
    threading.Timer(0.05, found.stop).start()
    started = time.monotonic()

    assert found.take(10) is None
    assert time.monotonic() - started < 5
