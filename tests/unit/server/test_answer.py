"""The answer function beside an engine that is silent, gone, or says what it should not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from answering import CATALOG, Desk, catalog
from played_engine import until

from pericard.edge.http import Response
from pericard.pipe import FrameType, Kind
from pericard.pipe.frames import unpack_question

BODY = b'{"model": "m", "inputs": [[1, 2], [3, 4]]}'
ONE = b'{"model": "m", "inputs": [1, 2]}'
INFER = "/v2/models/m/infer"
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}


def infer_body(**changes: Any) -> bytes:
    return json.dumps({"inputs": [TENSOR], **changes}).encode()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    def start(check: Callable[[Desk], Coroutine[Any, Any, None]], **options: Any) -> None:
        desk = Desk(tmp_path, **options)

        async def whole() -> None:
            await desk.attach()
            await check(desk)
            desk.link.close()
            await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(whole(), 20))
        desk.engine.sock.close()

    return start


def code(response: Response) -> str:
    return response.headers.get("x-error-code") or str(json.loads(response.body).get("code", ""))


#: The same question on both routes, and what shows their errors.
ROUTES = pytest.mark.parametrize(("path", "body"), [("/predict", ONE), (INFER, infer_body())])


@ROUTES
def test_an_engine_that_never_answers_is_not_waited_for(run: Callable[..., None], path: str, body: bytes) -> None:
    async def check(desk: Desk) -> None:
        asked = asyncio.ensure_future(desk.ask("POST", path, body))
        question = await desk.engine.next()
        assert unpack_question(question).deadline_ms == 200
        response = await asked

        assert (response.status, code(response)) == (504, "deadline-exceeded")
        found = [await desk.engine.next(), await desk.engine.next()]
        assert [frame.type for frame in found] == [FrameType.CANCEL, FrameType.EVENT]
        assert found[0].request == question.request
        # to the engine its caller left, so that the edge says that it was late
        assert (found[1].meta["code"], found[1].meta["principal"]) == ("deadline-exceeded", "ris")

    run(check, answer_seconds=0.2)


@ROUTES
def test_what_the_engine_refused_it_is_not_told_again(run: Callable[..., None], path: str, body: bytes) -> None:
    async def check(desk: Desk) -> None:
        for said in ("overloaded", "backend-failed", "rate-limited", "model-not-ready"):
            asked = asyncio.ensure_future(desk.ask("POST", path, body))
            frame = await desk.engine.next()
            desk.engine.say(FrameType.ERROR, frame.request, {"code": said, "message": "m", "hint": None})
            assert code(await asked) == said
        await desk.ask("GET", "/v2/models/missing")
        frame = await desk.engine.next()  # the first thing that is told
        assert (frame.type, frame.meta["code"]) == (FrameType.EVENT, "forbidden")

    run(check)


@ROUTES
def test_a_strip_that_cannot_be_read_is_an_error_and_no_event(run: Callable[..., None], path: str, body: bytes) -> None:
    async def check(desk: Desk) -> None:
        asked = asyncio.ensure_future(desk.ask("POST", path, body))
        number = (await desk.engine.next()).request
        desk.engine.answer(number, head=desk.shared, data=b"the strip is flat", kind=Kind.NOT_INTERPRETABLE)
        response = await asked
        if path == INFER:
            assert (response.status, code(response)) == (422, "not-interpretable")
            assert json.loads(response.body) == {"error": "the strip is flat"}
        else:
            (one,) = json.loads(response.body)["predictions"]
            assert one["error"] == {"code": "not-interpretable", "detail": "the strip is flat"}
        desk.headers["authorization"] = "Bearer wrong"
        await desk.ask("GET", "/v2")
        assert (await desk.engine.next()).meta["code"] == "unauthenticated"

    run(check)


def test_a_region_that_is_full_is_an_overload_that_the_engine_is_told_of(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        slot = desk.link.reserve(desk.free)
        for path, body in (("/predict", ONE), (INFER, infer_body())):
            response = await desk.ask("POST", path, body)
            assert (response.status, code(response)) == (503, "overloaded")
            frame = await desk.engine.next()
            assert (frame.type, frame.meta["code"], frame.meta["principal"]) == (FrameType.EVENT, "overloaded", "ris")
        desk.link.release(slot)
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", ONE))
        desk.engine.answer((await desk.engine.next()).request, head=desk.shared, data=bytes(4))
        assert (await asked).status == 200

    run(check)


def test_one_row_s_error_is_the_whole_answer_of_the_protocol(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        tensor = {**TENSOR, "shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]}
        asked = asyncio.ensure_future(desk.ask("POST", INFER, infer_body(inputs=[tensor])))
        first, second, third = [await desk.engine.next() for _ in range(3)]
        desk.engine.answer(first.request, third.request, head=desk.shared, data=bytes(4))
        desk.engine.say(FrameType.ERROR, second.request, {"code": "backend-failed", "message": "failed", "hint": None})
        response = await asked
        assert (response.status, json.loads(response.body)) == (500, {"error": "failed"})
        await until(lambda: desk.held == 0)

    run(check)


def test_an_answer_names_what_answered(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        asked = asyncio.ensure_future(desk.ask("POST", INFER, infer_body(id="study-1")))
        frame = await desk.engine.next()
        desk.engine.answer(frame.request, head=desk.shared, data=b"\0\0\x80?")
        value = json.loads((await asked).body)
        parameters = value.pop("parameters")
        assert value == {
            "model_name": "m", "model_version": "1", "id": "study-1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}],
        }  # fmt: skip
        assert json.loads(parameters.pop("receipts")) == [
            {"index": frame.request, "leaf": (b"l" * 32).hex(), "opening_key": (b"k" * 32).hex()}
        ]
        assert parameters == {"version": "1", "manifest": "ab", "runtime": "ef", "licence": "valid", "log": "log-1"}

    run(check)


def test_priority_and_timeout_of_the_protocol_reach_the_engine(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        for given, (priority, deadline) in (
            ({}, (2, 5000)),
            ({"priority": 1}, (1, 5000)),
            ({"priority": 3, "timeout": 2_000_000}, (3, 2000)),
            ({"priority": 0, "timeout": 1_999_001}, (2, 2000)),  # never shorter than what the edge waits
            ({"timeout": 90_000_000}, (2, 5000)),
        ):
            asked = asyncio.ensure_future(desk.ask("POST", INFER, infer_body(parameters=given)))
            frame = await desk.engine.next()
            question = unpack_question(frame)
            assert (question.priority, question.deadline_ms) == (priority, deadline)
            desk.engine.answer(frame.request, head=desk.shared, data=bytes(4))
            assert (await asked).status == 200

    run(check)


@pytest.mark.parametrize("name", ["load", "unload"])
def test_an_operation_is_the_engine_s_and_its_refusal_says_no_more_than_a_code(
    run: Callable[..., None], name: str
) -> None:
    async def check(desk: Desk) -> None:
        for said, shown in (("not-sealed", "model-refused"), ("unknown-model", "unknown-model")):
            asked = asyncio.ensure_future(desk.ask("POST", f"/v2/repository/models/m/{name}", b"{}"))
            frame = await desk.engine.next()
            assert (frame.type, frame.meta["ask"], frame.meta["model"]) == (FrameType.ASK, name, "m")
            assert frame.meta["principal"] == "ris"
            secret = {"code": said, "message": "/srv/models/m.sealed: is none", "hint": None}
            desk.engine.say(FrameType.ERROR, frame.request, secret)
            response = await asked
            assert code(response) == shown
            assert (b"/srv" in response.body) == (said == shown)
            assert (await desk.engine.next()).type is FrameType.EVENT

    run(check)


def test_metrics_that_never_come_are_not_waited_for(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        response = await desk.ask("GET", "/metrics")
        assert (response.status, code(response)) == (504, "deadline-exceeded")

    run(check, answer_seconds=0.1)


def test_an_engine_that_dies_while_it_is_asked(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", BODY))
        await desk.engine.next()
        desk.engine.sock.close()
        response = await asked

        # each item has its own error; the rest comes from what was known
        value = json.loads(response.body)
        assert response.status == 200
        assert [one["error"]["code"] for one in value["predictions"]] == ["engine-away", "engine-away"]
        assert (value["model"]["name"], value["runtime"], value["licence"]) == ("m", "ef", "valid")
        again = await desk.ask("POST", "/predict", BODY)
        assert (again.status, code(again)) == (503, "engine-away")

    run(check)


def test_an_error_that_is_not_for_callers_says_nothing(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", BODY))
        for _ in range(2):
            frame = await desk.engine.next()
            secret = {"code": "key-file-exposed", "message": "/etc/identity.key: is open", "hint": "chmod"}
            desk.engine.say(FrameType.ERROR, frame.request, secret)
        response = await asked

        for one in json.loads(response.body)["predictions"]:
            assert one == {"status": "error", "error": {"code": "internal-error", "detail": "the server failed"}}

    run(check)


def test_what_an_unfit_item_was_is_told_to_the_engine(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        response = await desk.ask("POST", "/predict", b'{"model": "m", "inputs": [1]}')
        assert (response.status, code(response)) == (422, "invalid-input")
        event = await desk.engine.next()
        assert event.type is FrameType.EVENT
        assert (event.meta["code"], event.meta["credential"] != "") == ("invalid-input", True)

    run(check)


@ROUTES
def test_an_answer_shorter_than_the_model_says_is_none(run: Callable[..., None], path: str, body: bytes) -> None:
    async def check(desk: Desk) -> None:
        asked = asyncio.ensure_future(desk.ask("POST", path, body))
        frame = await desk.engine.next()
        desk.engine.answer(frame.request, head=desk.shared, data=b"\0")
        response = await asked
        assert (response.status, code(response)) == (500, "backend-failed")

    run(check)


def test_a_cancelled_request_is_cancelled_at_the_engine(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", BODY))
        first, second = await desk.engine.next(), await desk.engine.next()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        cancelled = {(await desk.engine.next()).request for _ in range(2)}
        assert cancelled == {first.request, second.request}

    run(check)


@pytest.mark.parametrize("licence", ["licence-expired", "licence-not-yet-valid"])
def test_readiness_is_the_licences(run: Callable[..., None], licence: str) -> None:
    async def check(desk: Desk) -> None:
        await desk.tell(catalog({"ready": False, "licence": licence, "reason": "licence: is over"}))
        assert (await desk.ask("GET", "/readyz")).status == 503
        assert (await desk.ask("GET", "/v2/models/m/ready")).status == 503
        assert (await desk.ask("GET", "/v2/health/ready")).status == 503
        await desk.tell(CATALOG)
        assert (await desk.ask("GET", "/readyz")).status == 200

    run(check)


def test_an_engine_without_a_model_is_not_ready(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.tell({**CATALOG, "models": {}})
        assert (await desk.ask("GET", "/readyz")).status == 503
        response = await desk.ask("POST", "/predict", b'{"inputs": [1, 2]}')
        assert code(response) == "malformed-request"

    run(check)


def test_metadata_of_a_model_that_is_no_signal(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        parameters = json.loads((await desk.ask("GET", "/v2/models/m")).body)["parameters"]
        assert "signal" not in parameters
        assert "timeline" not in parameters
        assert parameters["score"] == {"output": "y", "threshold": None}

    run(check)
