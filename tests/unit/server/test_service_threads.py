"""The engine's threads: several devices, whoever wants to be alone, catalogs on their way, a pass that takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from desk import Desk, Edge, until
from serving import FLAT, GOOD, OTHER, row

from pericard.audit import commit, opening_key
from pericard.audit.verify import verify
from pericard.pipe import FrameType, encode
from pericard.runtime.loader import LoadedModel


@pytest.fixture
def desk(tmp_path: Path, tiny_model: LoadedModel) -> Iterator[Desk]:
    made = Desk(tmp_path, tiny_model, queue=8)
    made.start()
    yield made
    made.close()


@pytest.fixture
def second(site: serving.Site, tiny_sealed: Path) -> Iterator[LoadedModel]:
    model = site.load(tiny_sealed)
    yield model
    model.close()


@pytest.fixture
def pair(tmp_path: Path, tiny_model: LoadedModel, second: LoadedModel) -> Iterator[Desk]:
    """Two devices of one kind."""
    made = Desk(tmp_path, tiny_model, second, queue=4096)
    made.start()
    yield made
    made.close()


class Held:
    """A model whose passes wait until they may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
        self.passes = 0
        self.entered, self.go = threading.Event(), threading.Event()
        self._real = model.infer
        monkeypatch.setattr(model, "infer", self._infer)

    def _infer(self, inputs: Any) -> Any:
        self.passes += 1
        self.entered.set()
        assert self.go.wait(20)
        return self._real(inputs)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, tiny_model: LoadedModel) -> Held:
    return Held(monkeypatch, tiny_model)


def put(desk: Desk, *strips: Any, edge: Edge | None = None, **changes: Any) -> list[int]:
    """Ask without reading on the engine's side: its own threads do."""
    whose = edge or desk.first
    numbers, data = whose.questions(list(strips), desk.served, **changes)
    whose.sock.sendall(data)
    return numbers


@contextmanager
def computing(desk: Desk, held: Held) -> Iterator[int]:
    """While a pass takes long; the number of its question."""
    (number,) = put(desk, GOOD)
    assert held.entered.wait(10)
    try:
        yield number
    finally:
        held.go.set()


# --- one device -------------------------------------------------------------------------------------------------------


def test_what_is_asked_is_answered_by_the_thread(desk: Desk) -> None:
    numbers = put(desk, GOOD, FLAT, OTHER)
    said = desk.first.said(*numbers)

    assert [said[number].outcome for number in numbers] == ["ok", "not-interpretable", "ok"]


def test_a_batch_is_what_arrived_meanwhile(desk: Desk, held: Held) -> None:
    with computing(desk, held):
        numbers = put(desk, *[OTHER] * 5)
        until(lambda: len(desk.scheduler) == 5)
    desk.first.said(*numbers)

    assert held.passes == 2


def test_overload_and_metrics_are_answered_while_a_pass_takes_long(desk: Desk, held: Held) -> None:
    with computing(desk, held) as number:
        waiting = put(desk, *[OTHER] * 8)
        refused = put(desk, *[OTHER] * 3)
        said = desk.first.said(*refused, seconds=5)
        assert [one.outcome for one in said.values()] == ["overloaded"] * 3
        desk.first.heard = []
        desk.first.sock.sendall(encode(FrameType.ASK, 7, {"ask": "metrics"}))
        until(lambda: any(frame.type is FrameType.REPLY for frame in desk.first.listen()))
        (reply,) = [frame for frame in desk.first.heard if frame.type is FrameType.REPLY]
        assert b"pericard_queue_depth 8.0" in reply.body
        assert not held.go.is_set()
    said = desk.first.said(number, *waiting)
    assert {one.outcome for one in said.values()} == {"ok"}


def test_a_pass_that_takes_long_for_once_holds_nobody_up_either(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        desk.first.said(*put(desk, GOOD))  # so that the next one is expected to be as short
    (model,) = desk.served.models
    held = Held(monkeypatch, model)
    with computing(desk, held):
        waiting = put(desk, *[OTHER] * 8)
        assert [one.outcome for one in desk.first.said(*put(desk, OTHER), seconds=5).values()] == ["overloaded"]
    assert {one.outcome for one in desk.first.said(*waiting).values()} == {"ok"}
    assert not desk.service._long.is_set()  # and then nobody reads beside the thread


def test_who_leaves_while_a_pass_takes_long_costs_none(desk: Desk, held: Held) -> None:
    with computing(desk, held) as number:
        left, stays = put(desk, GOOD, OTHER)
        desk.first.sock.sendall(encode(FrameType.CANCEL, left, {}))
        assert desk.first.said(left)[left].outcome == "cancelled"
    said = desk.first.said(number, stays)
    desk.stop()

    assert (held.passes, said[stays].outcome, len(desk.records())) == (2, "ok", 2)
    assert desk.records()[1]["bucket"] == 1


def receptions() -> list[threading.Thread]:
    """The threads that read in the place of busy ones, of every engine in this process."""
    return [thread for thread in threading.enumerate() if thread.name == "reception"]


def test_it_stops_while_a_pass_takes_long_and_answers_what_waits(desk: Desk, held: Held) -> None:
    before = set(receptions())
    with computing(desk, held) as number:
        waiting = put(desk, OTHER, OTHER)
        until(lambda: len(desk.scheduler) == 2)
        desk.service.stop()
        late = put(desk, OTHER)
        assert desk.first.said(*late)[late[0]].outcome == "model-not-ready"
    said = desk.first.said(number, *waiting)
    desk.stop()

    assert {one.outcome for one in said.values()} == {"ok"}
    until(lambda: set(receptions()) <= before)


# --- whoever wants to be alone ----------------------------------------------------------------------------------------


def test_a_call_runs_between_two_batches(desk: Desk, held: Held) -> None:
    with computing(desk, held):
        done = desk.service.call(lambda: desk.log.commit([{"event": "model-loaded"}])[0].index)
        time.sleep(0.05)
        assert not done.done()
    assert done.result(10) == 1
    assert [record["event"] for record in desk.records()] == ["predict", "model-loaded"]


def test_what_a_call_raises_is_its_caller_s(desk: Desk) -> None:
    def fails() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        desk.service.call(fails).result(10)
    assert desk.first.said(*put(desk, GOOD))


def test_a_call_that_was_given_up_does_nothing(desk: Desk, held: Held) -> None:
    done: list[int] = []
    with computing(desk, held) as number:
        future = desk.service.call(lambda: done.append(1))
        assert future.cancel()
    desk.first.said(number)
    desk.service.call(lambda: None).result(10)

    assert done == []


def test_calls_of_many_threads_never_run_beside_another(pair: Desk) -> None:
    inside, most = [], []

    def work() -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()

    futures: list[Future[None]] = []
    threads = [
        threading.Thread(target=lambda: futures.extend(pair.service.call(work) for _ in range(20))) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    numbers = put(pair, *[GOOD] * 50)
    for thread in threads:
        thread.join()
    for future in futures:
        future.result(20)
    pair.first.said(*numbers)

    assert (len(most), max(most)) == (60, 1)


def test_every_call_is_carried_out_however_late_it_comes(desk: Desk) -> None:
    made: list[Future[int]] = []
    enough = threading.Event()

    def call() -> None:
        while not enough.is_set():
            made.append(desk.service.call(lambda: 1))

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(0.05)
    desk.stop()
    enough.set()
    caller.join(10)

    assert desk.service.call(lambda: 2).result(0) == 2  # without a thread, at once
    assert sum(future.result(5) for future in made) == len(made) > 0


# --- several devices --------------------------------------------------------------------------------------------------


def test_two_devices_write_one_order_of_records(pair: Desk) -> None:
    generator = np.random.default_rng(5)
    strips = {}
    for _ in range(60):
        some = [generator.normal(0, 0.5, 8).astype("<f4").tolist() for _ in range(5)]
        strips |= dict(zip(put(pair, *some), some, strict=True))
        time.sleep(0.001)
    said = pair.first.said(*strips, seconds=20)
    pair.stop()

    records = pair.records()
    assert [record["index"] for record in records] == list(range(300))
    assert sorted(one.answered.log_index for one in said.values()) == list(range(300))
    for number, strip in strips.items():
        answer = said[number].answered
        record = records[answer.log_index]
        assert answer.opening_key == opening_key(pair.key.commitment_key, answer.log_index)
        assert record["input"] == commit(answer.opening_key, "input", row(strip))
        assert record["answer"] == commit(answer.opening_key, "answer", answer.data)
    assert verify(pair.directory, verifier=pair.key.verifier).size == 300
    counted = pair.statistics()
    assert counted["inference_stats"]["success"]["count"] == counted["inference_count"] == 300
    assert pair.metric("pericard_requests_total", code="ok") == 300


def test_two_devices_compute_at_the_same_time(
    pair: Desk, second: LoadedModel, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=10)

    def meeting(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda inputs: (both.wait(), real(inputs))[1]

    for model in (tiny_model, second):
        monkeypatch.setattr(model, "infer", meeting(model.infer))
    first = put(pair, GOOD)
    until(lambda: both.n_waiting == 1)
    said = pair.first.said(*first, *put(pair, GOOD))

    one, other = said.values()
    assert one.answered.data == other.answered.data
    assert {one.answered.log_index, other.answered.log_index} == {0, 1}


def test_one_held_device_holds_nobody_up(pair: Desk, held: Held) -> None:
    numbers = put(pair, GOOD)
    while not held.entered.wait(0.05):  # until the first device, whose passes are held, got one
        pair.first.said(*numbers)
        numbers = put(pair, GOOD)
    others = put(pair, *[OTHER] * 20)

    assert {one.outcome for one in pair.first.said(*others).values()} == {"ok"}
    assert pair.service.call(lambda: 7).result(10) == 7
    held.go.set()
    assert pair.first.said(*numbers)[numbers[0]].outcome == "ok"


def test_a_stop_ends_every_thread(pair: Desk) -> None:
    before = set(receptions())
    numbers = put(pair, *[GOOD] * 100)
    until(lambda: len(pair.scheduler) > 0 or len(pair.records()) > 0)
    pair.first.said(*numbers)
    pair.stop()

    assert len(pair.records()) == 100
    until(lambda: len(receptions()) < len(before))


# --- catalogs on their way --------------------------------------------------------------------------------------------


def heard(edge: Edge, generation: int) -> None:
    edge.sock.sendall(encode(FrameType.HEARD, 0, {"generation": generation}))


def catalogs(edge: Edge) -> list[int]:
    return [int(frame.meta["generation"]) for frame in edge.listen() if frame.type is FrameType.CATALOG]


def test_an_edge_is_told_what_is_served_and_whenever_that_changes(desk: Desk, tiny_model: LoadedModel) -> None:
    first = desk.repository.generation
    until(lambda: catalogs(desk.first) == [first])
    desk.serve(tiny_model)
    desk.service.announce()
    latest = desk.repository.generation
    until(lambda: catalogs(desk.first) == [first, latest])
    late = desk.edge()
    until(lambda: catalogs(late) == [latest])
    assert latest > first


def test_a_version_is_settled_once_every_edge_heard_and_nobody_asks(desk: Desk, held: Held) -> None:
    other = desk.edge()
    with computing(desk, held) as number:
        desk.repository.retire(desk.served)
        desk.service.announce()
        generation = desk.repository.generation
        assert not desk.service.settled(desk.served, 0.05)
        heard(desk.first, generation)
        heard(other, generation - 1)
        assert not desk.service.settled(desk.served, 0.1)  # one edge rests on an older catalog
        heard(other, generation)
        assert not desk.service.settled(desk.served, 0.1)  # and one question is in work
    assert desk.service.settled(desk.served, 10)
    assert desk.first.said(number)[number].outcome == "ok"  # it was asked in time


def test_an_edge_that_is_gone_is_not_waited_for(desk: Desk) -> None:
    other = desk.edge()
    desk.repository.retire(desk.served)
    desk.service.announce()
    heard(desk.first, desk.repository.generation)
    assert not desk.service.settled(desk.served, 0.05)
    other.sock.close()

    assert desk.service.settled(desk.served, 10)


def test_what_was_settled_is_forgotten(desk: Desk) -> None:
    desk.first.said(*put(desk, GOOD))
    desk.repository.retire(desk.served)
    desk.service.announce()
    heard(desk.first, desk.repository.generation)
    assert desk.service.settled(desk.served, 10)

    assert desk.service._batchers == ({},)
    assert (desk.service._statistics, desk.service._heads, desk.service.statistics()) == ({}, {}, [])
