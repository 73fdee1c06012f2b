"""One batch: what is wrong with a row is its own error, and its neighbours' answers keep every bit."""

from __future__ import annotations

import dataclasses
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import CLIPPED, FAILING, FLAT, GOOD, OTHER, row

from pericard.audit import commit
from pericard.engine import records
from pericard.engine.batch import Batcher, Item, late
from pericard.engine.repository import Repository
from pericard.engine.scheduler import Caller, Job
from pericard.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotInterpretable
from pericard.pipe import EdgeLink, Question, Slot, create
from pericard.pipe.region import MIN_SIZE, Region
from pericard.runtime.loader import LoadedModel
from pericard.tensors import TensorSpec

KEY = bytes(32)
NAN, INFINITE, SHORT, LONG = [*GOOD[:7], float("nan")], [*GOOD[:7], float("-inf")], GOOD[:6], [*GOOD, 0.1]


class Bench:
    """A batcher, and an edge's region to write rows into."""

    def __init__(self, model: LoadedModel) -> None:
        self._other, theirs = socket.socketpair()
        region = create(MIN_SIZE)
        self.region = Region(os.dup(region))
        self.link = EdgeLink(theirs, region)
        self.served = Repository(runtime="ab" * 32).make([model])
        self.batcher = Batcher(self.served, 0)
        self._numbers = itertools.count(1)

    def item(self, samples: list[float] | bytes) -> Item:
        data = samples if isinstance(samples, bytes) else row(samples)
        slot = self.region.reserve(len(data))
        slot.view[:] = data
        return self.at(slot)

    def at(self, slot: Slot) -> Item:
        question = Question(slot.offset, slot.size, 1, 5000, 2, b"r", b"", b"{}")
        return Item(Job(self.link, next(self._numbers), question, self.served, Caller("a", "b", "c"), 1e9))

    def compute(self, *rows: list[float] | bytes) -> list[Item]:
        items = [self.item(samples) for samples in rows]
        self.batcher.compute(items)
        return items

    def close(self) -> None:
        self.link.close()
        self._other.close()


@pytest.fixture
def make() -> Iterator[Callable[[LoadedModel], Bench]]:
    made: list[Bench] = []

    def new(model: LoadedModel) -> Bench:
        made.append(Bench(model))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture
def bench(make: Callable[[LoadedModel], Bench], tiny_model: LoadedModel) -> Bench:
    return make(tiny_model)


def codes(items: list[Item]) -> list[str]:
    return ["ok" if item.error is None else item.error.code for item in items]


def direct(model: LoadedModel, *rows: list[float]) -> list[bytes]:
    """What the model itself says of these rows in one padded bucket."""
    size = next(bucket for bucket in model.buckets if bucket >= len(rows))
    batch = np.zeros((size, 1, serving.SAMPLES), np.float32)
    batch[: len(rows), 0] = rows
    outputs = model.infer((batch,))
    return [b"".join(output[place].tobytes() for output in outputs) for place in range(len(rows))]


def test_rows_are_answered_as_the_model_itself_would(bench: Bench, tiny_model: LoadedModel) -> None:
    rows = [GOOD, OTHER, [-one for one in GOOD]]
    items = bench.compute(*rows)

    assert [item.answer for item in items] == direct(tiny_model, *rows)
    assert [(item.bucket, item.place) for item in items] == [(4, 0), (4, 1), (4, 2)]
    assert all(item.computed > 0 and item.queued >= 0 for item in items)
    assert bench.batcher.expected(3) == items[0].computed
    assert bench.batcher.expected(8) == float("inf")


BAD = {
    "nan": (NAN, InvalidInput), "infinite": (INFINITE, InvalidInput), "flat": (FLAT, NotInterpretable),
    "clipped": (CLIPPED, NotInterpretable), "short": (SHORT, NotInterpretable), "long": (LONG, InvalidInput),
    "no whole sample": (b"123", InvalidInput), "nothing": (b"", InvalidInput),
    "failing": (FAILING, BackendFailed),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_bad_row_changes_no_bit_of_its_neighbours(
    bench: Bench, tiny_model: LoadedModel, name: str, place: int
) -> None:
    bad, kind = BAD[name]
    good: list[Any] = [GOOD, OTHER, [-one for one in GOOD]]
    alone = direct(tiny_model, *good)
    items = bench.compute(*good[:place], bad, *good[place:])
    spoilt = items.pop(place)

    assert type(spoilt.error) is kind
    assert (spoilt.answer, spoilt.bucket if kind is not BackendFailed else 0) == (None, 0)
    assert codes(items) == ["ok"] * 3
    if kind is BackendFailed:  # found by halving, so its neighbours were computed in smaller batches, as they say
        assert {item.bucket for item in items} <= {1, 4}
        for item, samples in zip(items, good, strict=True):
            batch = np.zeros((item.bucket, 1, serving.SAMPLES), np.float32)
            batch[item.place] = samples
            again = tiny_model.infer((batch,))
            assert b"".join(output[item.place].tobytes() for output in again) == item.answer
    else:
        assert [item.answer for item in items] == alone


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(["good", "other", *BAD]), min_size=1, max_size=8))
def test_any_mixture_answers_the_good_and_commits_to_what_each_one_sent(
    bench: Bench, tiny_model: LoadedModel, kinds: list[str]
) -> None:
    sent: list[Any] = [{"good": GOOD, "other": OTHER}.get(kind) or BAD[kind][0] for kind in kinds]
    items = bench.compute(*sent)

    for item, kind, samples in zip(items, kinds, sent, strict=True):
        assert (item.error is None) == (item.answer is not None) == (kind in {"good", "other"})
        data = samples if isinstance(samples, bytes) else row(samples)
        if kind == "long":
            assert item.inputs == ()  # an edge could have its whole region copied and hashed for every row
        else:
            assert b"".join(part.tobytes() for part in item.inputs) == data
        if item.bucket and item.answer is not None:
            batch = np.zeros((item.bucket, 1, serving.SAMPLES), np.float32)
            batch[item.place] = samples
            outputs = tiny_model.infer((batch,))
            assert b"".join(output[item.place].tobytes() for output in outputs) == item.answer
    for slot in items:
        bench.region.release(Slot(slot.job.question.offset, slot.job.question.size, memoryview(b""), bench.region))


def test_all_failing_rows_fail_alone_and_the_next_batch_is_untouched(bench: Bench, tiny_model: LoadedModel) -> None:
    assert codes(bench.compute(*[FAILING] * 8)) == ["backend-failed"] * 8
    assert codes(bench.compute(FAILING)) == ["backend-failed"]

    assert [item.answer for item in bench.compute(GOOD)] == direct(tiny_model, GOOD)


# --- the three cases of a batch that is not isolated ------------------------------------------------------------------


def test_whoever_leaves_while_the_batch_computes_leaves_the_others_their_answers(
    bench: Bench, tiny_model: LoadedModel
) -> None:
    """An answer belongs to its item, which the batch holds: there is no table that a leaver could take a line from."""
    items = [bench.item(GOOD) for _ in range(4)]
    bench.link.shut_down()  # the edge of all of them
    bench.batcher.compute(items)

    assert [item.answer for item in items] == direct(tiny_model, GOOD, GOOD, GOOD, GOOD)


def test_too_many_values_fail_alone(bench: Bench, tiny_model: LoadedModel) -> None:
    items = bench.compute([*OTHER, 1.0], OTHER)

    assert codes(items) == ["invalid-input", "ok"]
    assert items[1].answer == direct(tiny_model, OTHER)[0]


def test_values_of_one_never_enter_the_answer_of_another(bench: Bench, tiny_model: LoadedModel) -> None:
    """One sends a value too many, the next one too few: together they have the right number."""
    items = bench.compute([*OTHER, 2.9], OTHER[:7], GOOD)

    assert codes(items) == ["invalid-input", "not-interpretable", "ok"]
    assert items[2].answer == direct(tiny_model, GOOD)[0]


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_an_edge_that_rewrites_its_row_gets_an_answer_and_a_commitment_to_one_and_the_same(
    bench: Bench, tiny_model: LoadedModel
) -> None:
    """The engine copies once: what it checked, computed and committed to is that copy, whatever the row is by then."""
    slots = [bench.region.reserve(32) for _ in range(8)]
    states = [row(GOOD), row(OTHER), row(NAN), row(FLAT), row(FAILING)]
    done = threading.Event()

    def rewrite() -> None:
        for data in itertools.cycle(states):
            for slot in slots:
                slot.view[:] = data
            if done.is_set():
                return

    thread = threading.Thread(target=rewrite)
    thread.start()
    seen = set()
    end = time.monotonic() + 30
    try:
        while time.monotonic() < end and len(seen) < 4:
            items = [bench.at(slot) for slot in slots]
            bench.batcher.compute(items)
            for item in items:
                data = b"".join(part.tobytes() for part in item.inputs)
                record = records.prediction(item, KEY, runtime="r", device="cpu", threads=1)
                assert record["input"] == commit(KEY, "input", data)
                seen.add(record["outcome"])
                values = np.frombuffer(data, np.float32)
                if item.error is None:
                    assert np.isfinite(values).all()
                    assert np.ptp(values) >= 0.02
                    batch = np.zeros((item.bucket, 1, serving.SAMPLES), np.float32)
                    batch[item.place] = values
                    outputs = tiny_model.infer((batch,))
                    assert b"".join(output[item.place].tobytes() for output in outputs) == item.answer
                elif isinstance(item.error, InvalidInput):
                    assert not np.isfinite(values).all()
    finally:
        done.set()
        thread.join(10)

    assert {"ok", "invalid-input"} <= seen


def test_a_row_that_is_rewritten_afterwards_changes_nothing(bench: Bench) -> None:
    slot = bench.region.reserve(32)
    slot.view[:] = row(GOOD)
    item = bench.at(slot)
    bench.batcher.compute([item])
    slot.view[:] = row(OTHER)

    assert b"".join(part.tobytes() for part in item.inputs) == row(GOOD)


# --- other models -----------------------------------------------------------------------------------------------------


class Sum:
    """A backend of two inputs, one of them of truths: what a model may declare beyond signals."""

    device = "cpu"
    paths: dict[int, str] = {}  # noqa: RUF012  (never changed)

    def infer(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        numbers, truths = inputs
        with np.errstate(over="ignore"):
            return (numbers.sum(axis=1) * 1e38, truths.sum(axis=1).astype(np.int16))

    def close(self) -> None:
        pass


@pytest.fixture
def two(make: Callable[[LoadedModel], Bench], tiny_model: LoadedModel) -> Bench:
    bench = make(tiny_model)
    inputs = (TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "bool", (-1, 3)))
    about = dataclasses.replace(serving.description(), inputs=inputs, signal=None)
    bench.served = dataclasses.replace(bench.served, about=about, models=(Sum(),))  # type: ignore[arg-type]
    bench.batcher = Batcher(bench.served, 0)
    return bench


def two_inputs(numbers: list[float], truths: bytes) -> bytes:
    return np.array(numbers, "<f4").tobytes() + truths


def test_several_inputs_lie_one_after_the_other(two: Bench) -> None:
    items = two.compute(two_inputs([0.25, 0.5], b"\1\0\1"), two_inputs([0.0, 0.5], b"\1\1\1"))

    answers = [item.answer or b"" for item in items]
    assert [np.frombuffer(answer[:4], "<f4")[0] for answer in answers] == [np.float32(0.75e38), np.float32(0.5e38)]
    assert [answer[4:] for answer in answers] == [b"\2\0", b"\3\0"]
    assert [len(item.inputs) for item in items] == [2, 2]


def test_what_is_neither_true_nor_false_and_what_overflows_fail_alone(two: Bench) -> None:
    items = two.compute(
        two_inputs([1.0, 1.0], b"\1\2\1"), two_inputs([9.0, 0.0], bytes(3)), two_inputs([1.0, 1.0], bytes(3))
    )

    assert codes(items) == ["invalid-input", "backend-failed", "ok"]
    assert "neither true nor false" in str(items[0].error)


def test_who_comes_to_his_turn_too_late(bench: Bench) -> None:
    found = late(bench.item(GOOD).job)

    assert isinstance(found.error, DeadlineExceeded)
    assert (found.inputs, found.answer, found.bucket) == ((), None, 0)
