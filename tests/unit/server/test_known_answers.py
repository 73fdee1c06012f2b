"""Known answers: asked at every batch size, first and last in the batch, and never passed by what is not a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pericard.errors import BackendFailed, KnownAnswerMismatch
from pericard.runtime import known_answers
from pericard.sealed import Description, Output, Tolerance
from pericard.tensors import TensorSpec

Array = np.ndarray[Any, Any]
QUESTIONS = tuple(
    ((np.full((1, 3), number, np.float32),), (np.full((1,), number * 3, np.float32),)) for number in range(3)
)


class Backend:
    """Adds up each row; ``change`` alters the batch of answers."""

    def __init__(self, change: Callable[[Array], Any] = lambda answers: answers, device: str = "cpu") -> None:
        self.device = device
        self.asked: list[list[float]] = []
        self._change = change

    def infer(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        self.asked.append(inputs[0][:, 0].tolist())
        assert inputs[0].flags.c_contiguous
        answers = inputs[0].sum(1)
        return (np.asarray(self._change(answers)),)

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def description(tiny_description: Description) -> Description:
    return replace(
        tiny_description,
        inputs=(TensorSpec("rows", "float32", (-1, 3)),),
        outputs=(Output(TensorSpec("sum", "float32", (-1,))),),
        signal=None,
        tolerance={"cpu": Tolerance(1e-3, 1e-2)},
    )


def test_every_question_is_asked_at_every_bucket_first_and_last_and_among_others(description: Description) -> None:
    backend = Backend()

    assert known_answers.check(backend, QUESTIONS, description) == ((1, 4), None)
    assert backend.asked == [
        [0], [1], [2],
        [0, 1], [1, 2], [2, 0],
        [0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2],
    ]  # fmt: skip


def test_a_backend_without_a_signed_tolerance_is_refused_unasked(description: Description) -> None:
    backend = Backend(device="cuda:0")

    with pytest.raises(KnownAnswerMismatch, match="its publisher signed no tolerance for cuda"):
        known_answers.check(backend, QUESTIONS, description)
    assert backend.asked == []


def test_the_tolerance_of_a_device_is_that_of_its_kind(description: Description) -> None:
    known_answers.check(
        Backend(device="cuda:1"), QUESTIONS, replace(description, tolerance={"cuda": Tolerance(0.0, 0.0)})
    )


@pytest.mark.parametrize("off", [0.0, 9e-4, -9e-4])
def test_a_difference_within_the_tolerance_passes(off: float, description: Description) -> None:
    known_answers.check(Backend(lambda answers: answers + np.float32(off)), QUESTIONS, description)


def spoil(place: int, count: int | None = None, value: float = 99.0) -> Callable[[Array], Array]:
    def change(answers: Array) -> Array:
        if count in {None, len(answers)}:
            answers[place] = value
        return answers

    return change


WRONG_ALONE = [
    lambda answers: answers + np.float32(2e-3),
    lambda answers: answers * np.float32(1.02),
    lambda answers: answers * np.float32(np.nan),
    spoil(0),
    spoil(0, 1),
    spoil(0, 1, float("nan")),
]
WRONG_IN_BATCHES = [
    spoil(-1, 4),
    spoil(0, 4),
    spoil(-1, 2),
    spoil(1, 4),
    spoil(2, 4),
    spoil(-1, 4, float("nan")),
    spoil(-1, 4, float("inf")),
    spoil(-1, 4, float("-inf")),
    lambda answers: answers - answers.mean() + answers[0] if len(answers) > 1 else answers,
]


@pytest.mark.parametrize("change", WRONG_ALONE)
def test_a_model_that_is_wrong_alone_is_refused(change: Callable[[Array], Array], description: Description) -> None:
    with pytest.raises(KnownAnswerMismatch, match="batch 1: off by"):
        known_answers.check(Backend(change), QUESTIONS, description)


@pytest.mark.parametrize("change", WRONG_IN_BATCHES)
def test_a_model_that_is_wrong_only_in_batches_is_used_one_by_one(
    change: Callable[[Array], Array], description: Description
) -> None:
    buckets, reason = known_answers.check(Backend(change), QUESTIONS, description)

    assert buckets == (1,)
    assert reason is not None
    assert re.search(r"it answers one by one, not in batches of [24] \(model tiny: known answer .* off by", reason)


@pytest.mark.parametrize("change", [*WRONG_ALONE[:4], *WRONG_IN_BATCHES])
def test_without_a_bucket_of_one_there_is_nothing_to_fall_back_to(
    change: Callable[[Array], Array], description: Description
) -> None:
    with pytest.raises(KnownAnswerMismatch, match="off by"):
        known_answers.check(Backend(change), QUESTIONS, replace(description, buckets=(2, 4)))


def fails_beyond(count: int) -> Callable[[Array], Array]:
    def change(answers: Array) -> Array:
        if len(answers) > count:
            raise BackendFailed("model: the computation failed (RuntimeError)")
        return answers

    return change


def test_a_model_that_fails_in_batches_is_used_one_by_one(description: Description) -> None:
    buckets, reason = known_answers.check(Backend(fails_beyond(1)), QUESTIONS, description)

    assert buckets == (1,)
    assert reason == "it answers one by one, not in batches of 2 (model: the computation failed (RuntimeError))"
    with pytest.raises(BackendFailed):
        known_answers.check(Backend(fails_beyond(1)), QUESTIONS, replace(description, buckets=(4,)))
    with pytest.raises(BackendFailed):
        known_answers.check(Backend(fails_beyond(0)), QUESTIONS, description)


def test_a_model_for_single_items_is_asked_nothing_else(description: Description) -> None:
    backend = Backend(fails_beyond(1))

    assert known_answers.check(backend, QUESTIONS, known_answers.one_by_one(description)) == ((1,), None)
    assert backend.asked == [[0], [1], [2]]


def test_an_answer_of_another_shape_does_not_pass(description: Description) -> None:
    for change in (lambda answers: answers[:, None], lambda answers: answers.sum()):
        with pytest.raises(KnownAnswerMismatch, match="has shape"):
            known_answers.check(Backend(change), QUESTIONS, description)
    buckets, reason = known_answers.check(Backend(lambda answers: answers[:1]), QUESTIONS, description)
    assert buckets == (1,)
    assert "output sum has shape (1,) at batch 2" in (reason or "")


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("found", "wanted", "tolerance", "passes"),
    [
        (INF, INF, (1.0, 1.0), True),
        (-INF, INF, (1.0, 1.0), False),
        (5.0, INF, (1.0, 1.0), False),
        (INF, 5.0, (1.0, 1.0), False),
        (NAN, INF, (1.0, 1.0), False),
        (INF, NAN, (1.0, 1.0), False),
        (5.0, NAN, (1.0, 1.0), False),
        (NAN, NAN, (0.0, 0.0), True),
        (5.0, 5.0, (0.0, 0.0), True),
        (5.0, 5.0 + 1e-12, (0.0, 0.0), False),
        (1e308, -1e308, (1.0, 0.1), False),
        (2.0, 1.0, (1.0, 0.0), True),
        (2.0, 1.0, (0.0, 1.0), True),
        (2.1, 1.0, (0.0, 1.0), False),
    ],
)
def test_what_is_not_finite_matches_itself_only(
    found: float, wanted: float, tolerance: tuple[float, float], passes: bool
) -> None:
    for shape in ((), (3,), (2, 2)):
        off = known_answers._distance(np.full(shape, found), np.full(shape, wanted), Tolerance(*tolerance))
        assert (off <= 1.0) is passes


def test_no_values_are_no_difference() -> None:
    assert known_answers._distance(np.zeros((0, 3)), np.zeros((0, 3)), Tolerance(0.0, 0.0)) == 0.0
