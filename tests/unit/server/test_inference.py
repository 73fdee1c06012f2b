"""Rows on their way to a played engine and back: several with errors, callers that leave, traces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering import CATALOG, Desk, catalog
from played_engine import until

from pericard.auth import Grant, Principal
from pericard.edge.catalog import Catalog
from pericard.edge.http import Gone, Head
from pericard.edge.inference import Inference, Row, Terms, trace_of
from pericard.errors import Cancelled, InvalidInput, PericardError
from pericard.pipe import Answer, FrameType
from pericard.pipe.frames import unpack_question

MODEL = Catalog(CATALOG).model("m")
TERMS = Terms(5.0)
RIS = Principal("ris", "abc", (Grant(frozenset({"predict"}), ("*",)),))


def strips(*values: tuple[float, float]) -> list[Row | PericardError]:
    return [(np.array(value, dtype="<f4"),) for value in values]


def head(**headers: str) -> Head:
    return Head("POST", "/predict", {"x-request-id": "r-7", **headers}, "192.0.2.1", Gone())


class Bench(Desk):
    """Asks for rows, and hears what the engine would be told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.noted: list[str] = []
        self.inference = Inference(self.link, lambda error, _head, who: self.noted.append(f"{who.name} {error.code}"))

    def asking(
        self, rows: list[Row | PericardError], at: Head | None = None, terms: Terms = TERMS
    ) -> asyncio.Task[list[Answer | PericardError]]:
        return asyncio.ensure_future(self.inference.begin(rows, MODEL, terms, head=at or head(), principal=RIS).wait())


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]:
    def start(check: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        bench = Bench(tmp_path)

        async def whole() -> None:
            await bench.attach()
            await check(bench)
            bench.link.close()
            await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(whole(), 20))
        bench.engine.sock.close()

    return start


Run = Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]


def test_every_row_is_written_and_asked_about_on_its_own(run: Run) -> None:
    async def check(bench: Bench) -> None:
        task = bench.asking(strips((1, 2), (3, 4)), head(traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01"), Terms(1.5, 3))
        frames = [await bench.engine.next() for _ in range(2)]
        assert [bench.engine.row(frame) for frame in frames] == [
            np.array(pair, dtype="<f4").tobytes() for pair in ((1, 2), (3, 4))
        ]
        for frame in frames:
            question = unpack_question(frame)
            assert (question.model, question.deadline_ms, question.priority) == (1, 1500, 3)
            assert (question.request_id, question.trace) == (b"r-7", b"ab" * 16)
            assert json.loads(question.caller) == {"principal": "ris", "credential": "abc", "address": "192.0.2.1"}
        bench.engine.answer(frames[1].request, data=b"second")
        bench.engine.answer(frames[0].request, data=b"first")
        answers = await task
        assert [answer.entry.data for answer in answers if isinstance(answer, Answer)] == [b"first", b"second"]
        assert (bench.held, bench.noted) == (0, [])

    run(check)


def test_rows_that_are_errors_keep_their_places_and_are_told_of(run: Run) -> None:
    async def check(bench: Bench) -> None:
        bad = InvalidInput("item: is none")
        (first,), (last,) = strips((1, 2)), strips((3, 4))
        task = bench.asking([bad, first, bad, last])
        frames = [await bench.engine.next() for _ in range(2)]
        bench.engine.say(FrameType.ERROR, frames[0].request, {"code": "overloaded", "message": "full", "hint": "later"})
        bench.engine.answer(frames[1].request, data=b"last")
        answers = await task

        assert [one.code if isinstance(one, PericardError) else one.entry.data for one in answers] == [
            "invalid-input", "overloaded", "invalid-input", b"last",
        ]  # fmt: skip
        assert bench.noted == ["ris invalid-input"] * 2  # what the engine said itself, it is not told

    run(check)


def test_only_errors_ask_nobody(run: Run) -> None:
    async def check(bench: Bench) -> None:
        answers = await bench.asking([InvalidInput("item: is none")] * 3)
        assert len(answers) == 3
        assert bench.held == 0

    run(check)


def test_a_row_that_finds_no_place_is_its_own_error(run: Run) -> None:
    async def check(bench: Bench) -> None:
        slot = bench.link.reserve(bench.free - 64)
        task = bench.asking(strips((1, 2), (3, 4)))
        frame = await bench.engine.next()
        bench.engine.answer(frame.request, data=b"first")
        first, second = await task
        assert isinstance(first, Answer)
        assert isinstance(second, PericardError)
        assert (second.code, bench.noted) == ("overloaded", ["ris overloaded"])
        bench.link.release(slot)
        assert bench.held == 0

    run(check)


def test_an_engine_that_is_another_by_now_is_away(run: Run) -> None:
    async def check(bench: Bench) -> None:
        bench.link.close()
        answers = await bench.asking(strips((1, 2)))
        assert [one.code for one in answers if isinstance(one, PericardError)] == ["engine-away"]

    run(check)


# --- callers that leave -----------------------------------------------------------------------------------------------


def test_who_leaves_takes_every_question_along(run: Run) -> None:
    async def check(bench: Bench) -> None:
        at = head()
        task = bench.asking(strips((1, 2), (3, 4)), at)
        frames = [await bench.engine.next() for _ in range(2)]
        neighbour = bench.asking(strips((5, 6)))
        theirs = await bench.engine.next()

        at.gone.happen()
        with pytest.raises(Cancelled):
            await task
        cancelled = {(frame.type, frame.request) for frame in [await bench.engine.next() for _ in range(2)]}
        assert cancelled == {(FrameType.CANCEL, frame.request) for frame in frames}
        assert bench.held == 3 * 64  # the engine may still read what it did not answer
        for frame in frames:
            bench.engine.say(FrameType.ERROR, frame.request, {"code": "cancelled", "message": "left", "hint": None})
        await until(lambda: bench.held == 64)
        bench.engine.answer(theirs.request, data=b"theirs")
        (answer,) = await neighbour
        assert isinstance(answer, Answer)
        assert (answer.entry.data, bench.held, bench.noted) == (b"theirs", 0, [])

    run(check)


def test_who_left_before_it_was_asked_is_not_waited_for(run: Run) -> None:
    async def check(bench: Bench) -> None:
        at = head()
        at.gone.happen()
        with pytest.raises(Cancelled):
            await bench.asking(strips((1, 2)), at)
        assert [(await bench.engine.next()).type for _ in range(2)] == [FrameType.INFER, FrameType.CANCEL]

    run(check)


def test_who_leaves_between_two_answers_gets_none(run: Run) -> None:
    async def check(bench: Bench) -> None:
        at = head()
        task = bench.asking(strips((1, 2), (3, 4), (5, 6)), at)
        first, second, third = [await bench.engine.next() for _ in range(3)]
        bench.engine.answer(first.request)
        bench.engine.say(FrameType.ERROR, third.request, {"code": "overloaded", "message": "full", "hint": None})
        await until(lambda: bench.held == 64)
        at.gone.happen()
        with pytest.raises(Cancelled):
            await task
        frame = await bench.engine.next()
        assert (frame.type, frame.request) == (FrameType.CANCEL, second.request)

    run(check)


def test_who_leaves_after_the_answer_changes_nothing(run: Run) -> None:
    async def check(bench: Bench) -> None:
        at = head()
        task = bench.asking(strips((1, 2)), at)
        bench.engine.answer((await bench.engine.next()).request)
        await task
        at.gone.happen()
        bench.asking(strips((3, 4))).add_done_callback(lambda done: done.exception())
        assert (await bench.engine.next()).type is FrameType.INFER  # and no CANCEL before it

    run(check)


def test_a_server_that_stops_cancels_at_the_engine_too(run: Run) -> None:
    async def check(bench: Bench) -> None:
        task = bench.asking(strips((1, 2), (3, 4)))
        numbers = {(await bench.engine.next()).request for _ in range(2)}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {(await bench.engine.next()).request for _ in range(2)} == numbers

    run(check)


def test_a_late_answer_is_our_own_clock_s_word_and_told_of(run: Run) -> None:
    async def check(bench: Bench) -> None:
        task = bench.asking(strips((1, 2), (3, 4)), terms=Terms(0.1))
        first, second = [await bench.engine.next() for _ in range(2)]
        bench.engine.answer(second.request, data=b"in time")
        answers = await task
        assert [one.code if isinstance(one, PericardError) else one.entry.data for one in answers] == [
            "deadline-exceeded", b"in time",
        ]  # fmt: skip
        assert bench.noted == ["ris deadline-exceeded"]
        frame = await bench.engine.next()
        assert (frame.type, frame.request) == (FrameType.CANCEL, first.request)

    run(check)


def test_what_is_remembered_of_callers_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard.edge.inference._MOST_CALLERS", 3)

    async def check(bench: Bench) -> None:
        for number in range(10):
            at = Head("POST", "/predict", {}, f"192.0.2.{number}")
            task = bench.asking(strips((1, 2)), at)
            frame = await bench.engine.next()
            assert json.loads(unpack_question(frame).caller)["address"] == at.address
            bench.engine.answer(frame.request)
            await task
            assert len(bench.inference._callers) <= 3

    run(check)


def test_numbers_take_the_input_s_type_and_several_inputs_lie_behind_each_other(run: Run) -> None:
    spec = {"dtype": "float32", "datatype": "FP32", "shape": [-1, 2]}
    inputs = [{**spec, "name": "x"}, {**spec, "name": "n", "dtype": "int16", "datatype": "INT16"}]
    model = Catalog(catalog({"inputs": inputs})).model("m")

    async def check(bench: Bench) -> None:
        row: Row = (np.array([0.1, 1e39]), np.array([[-5, 7]], dtype=np.int64))
        task = asyncio.ensure_future(bench.inference.begin([row], model, TERMS, head=head(), principal=RIS).wait())
        frame = await bench.engine.next()
        expected = np.array([0.1, np.inf], "<f4").tobytes() + np.array([-5, 7], "<i2").tobytes()
        assert bench.engine.row(frame) == expected
        bench.engine.answer(frame.request)
        await task

    run(check)


# --- traces -----------------------------------------------------------------------------------------------------------

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACES = {
    f"00-{ID}-00f067aa0ba902b7-01": ID,
    f"00-{ID}-00f067aa0ba902b7-00": ID,
    f"cc-{ID}-00f067aa0ba902b7-01-what-a-later-version-adds": ID,
    "": "",
    "00": "",
    f"ff-{ID}-00f067aa0ba902b7-01": "",  # forbidden
    f"00-{'0' * 32}-00f067aa0ba902b7-01": "",  # names nothing
    f"00-{ID.upper()}-00f067aa0ba902b7-01": "",
    f"00-{ID[:-1]}-00f067aa0ba902b7-01": "",
    f"00-{ID}0-00f067aa0ba902b7-01": "",
    f"00-{ID}-00f067aa0ba902b7": "",
    f"00-{ID}-00f067aa0ba902b7-01x": "",
    f"00-{ID}-00f067aa0ba902b7-01, 00-{ID}-00f067aa0ba902b7-01": "",  # sent twice
    f"00-{ID}-00f067aa0ba902b7-01\n": "",
    "x" * 10_000: "",
}


@pytest.mark.parametrize(("given", "expected"), TRACES.items(), ids=range(len(TRACES)))
def test_a_trace_id_is_taken_from_a_valid_traceparent_alone(given: str, expected: str) -> None:
    assert trace_of(Head("POST", "/predict", {"traceparent": given} if given else {}, "")) == expected.encode()
