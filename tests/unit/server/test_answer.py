"""The answer function beside an engine that is silent, gone, or says what it should not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pericard.auth import TokenFile
from pericard.edge.answer import Answerer
from pericard.edge.http import Head, Response
from pericard.edge.limits import Limits
from pericard.pipe import EngineLink, Frame, FrameReader, FrameType, encode

ENTRY = {
    "identity": {"name": "m", "version": "1", "sequence": 1, "manifest": "ab", "publisher": "cd"},
    "platform": "x",
    "intended_use": "",
    "inputs": [{"name": "x", "dtype": "float32", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [
        {"name": "y", "dtype": "float32", "datatype": "FP32", "shape": [-1], "meaning": "score", "threshold": None}
    ],
    "signal": None,
    "licence": "valid",
    "licence_not_after": "2027-01-01T00:00:00Z",
}
CATALOG = {"runtime": "ef", "models": {"m": ENTRY}}
BODY = b'{"model": "m", "inputs": [[1, 2], [3, 4]]}'


class Desk:
    """An answerer, and the engine's end of its pipe in the hands of the test."""

    def __init__(self, folder: Path, *, answer_seconds: float = 5.0) -> None:
        tokens = TokenFile(folder / "tokens.json")
        issued = tokens.create("ris", operations=("predict", "metadata", "metrics"), models=("m",), days=1)
        self.headers = {"authorization": f"Bearer {issued.token}", "content-type": "application/json"}
        self.told = asyncio.Event()
        self.link = EngineLink(self.told.set)
        self.answerer = Answerer(self.link, tokens, Limits(answer_seconds=answer_seconds), version="test")
        self.engine, self._theirs = socket.socketpair()
        self.engine.settimeout(5)
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    async def attach(self, catalog: dict[str, Any] = CATALOG) -> None:
        await self.link.attach(self._theirs)
        await self.tell(catalog)

    async def tell(self, catalog: dict[str, Any]) -> None:
        self.told.clear()
        self.engine.sendall(encode(FrameType.CATALOG, 0, catalog))
        await self.told.wait()

    async def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        async def read() -> bytes:
            return body

        return await self.answerer.answer(Head(method, path, self.headers, "192.0.2.1"), read)

    async def frame(self) -> Frame:
        while not self._frames:
            self._frames += self._reader.feed(await asyncio.to_thread(self.engine.recv, 1 << 16))
        return self._frames.pop(0)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    def start(check: Callable[[Desk], Coroutine[Any, Any, None]], **options: Any) -> None:
        desk = Desk(tmp_path, **options)

        async def whole() -> None:
            await check(desk)
            desk.link.close()
            await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(whole(), 20))
        desk.engine.close()

    return start


def code(response: Response) -> str:
    return str(json.loads(response.body).get("code", ""))


def test_an_engine_that_never_answers_is_not_waited_for(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", b'{"model": "m", "inputs": [1, 2]}'))
        question = await desk.frame()
        assert question.meta["deadline_ms"] == 200
        response = await asked

        assert (response.status, code(response)) == (504, "deadline-exceeded")
        found = [await desk.frame(), await desk.frame()]
        assert [frame.type for frame in found] == [FrameType.CANCEL, FrameType.EVENT]
        assert found[0].request == question.request
        # the engine forgets what is cancelled, so that the edge says that it was late
        assert (found[1].meta["code"], found[1].meta["principal"]) == ("deadline-exceeded", "ris")

    run(check, answer_seconds=0.2)


def test_metrics_that_never_come_are_not_waited_for(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        response = await desk.ask("GET", "/metrics")
        assert (response.status, code(response)) == (504, "deadline-exceeded")

    run(check, answer_seconds=0.1)


def test_an_engine_that_dies_while_it_is_asked(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", BODY))
        await desk.frame()
        desk.engine.close()
        response = await asked

        # each item has its own error; the rest comes from what was known
        value = json.loads(response.body)
        assert response.status == 200
        assert [one["error"]["code"] for one in value["predictions"]] == ["engine-away", "engine-away"]
        assert (value["model"]["name"], value["licence"]) == ("m", "valid")
        again = await desk.ask("POST", "/predict", BODY)
        assert (again.status, code(again)) == (503, "engine-away")

    run(check)


def test_an_error_that_is_not_for_callers_says_nothing(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", BODY))
        for _ in range(2):
            frame = await desk.frame()
            secret = {"code": "key-file-exposed", "message": "/etc/identity.key: is open", "hint": "chmod"}
            desk.engine.sendall(encode(FrameType.ERROR, frame.request, secret))
        response = await asked

        for one in json.loads(response.body)["predictions"]:
            assert one == {"status": "error", "error": {"code": "internal-error", "detail": "the server failed"}}

    run(check)


def test_what_an_unfit_item_was_is_told_to_the_engine(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        response = await desk.ask("POST", "/predict", b'{"model": "m", "inputs": [1]}')
        assert (response.status, code(response)) == (422, "invalid-input")
        event = await desk.frame()
        assert event.type is FrameType.EVENT
        assert (event.meta["code"], event.meta["credential"] != "") == ("invalid-input", True)

    run(check)


def test_an_answer_shorter_than_the_model_says_is_our_mistake(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", b'{"model": "m", "inputs": [1, 2]}'))
        frame = await desk.frame()
        meta = {"receipt": {}, "model": ENTRY["identity"], "runtime": "ef", "licence": "valid"}
        desk.engine.sendall(encode(FrameType.ANSWER, frame.request, meta, b"\0"))
        response = await asked
        assert (response.status, code(response)) == (500, "internal-error")

    run(check)
    assert "answer failed: ValueError" in caplog.text


def test_a_cancelled_request_is_cancelled_at_the_engine(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        asked = asyncio.ensure_future(desk.ask("POST", "/predict", BODY))
        first, second = await desk.frame(), await desk.frame()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        cancelled = {(await desk.frame()).request for _ in range(2)}
        assert cancelled == {first.request, second.request}

    run(check)


@pytest.mark.parametrize("licence", ["licence-expired", "licence-not-yet-valid"])
def test_readiness_is_the_licences(run: Callable[..., None], licence: str) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach({"runtime": "ef", "models": {"m": {**ENTRY, "licence": licence}}})
        assert (await desk.ask("GET", "/readyz")).status == 503
        assert (await desk.ask("GET", "/v2/models/m/ready")).status == 503
        await desk.tell(CATALOG)
        assert (await desk.ask("GET", "/readyz")).status == 200

    run(check)


def test_an_engine_without_a_model_is_not_ready(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach({"runtime": "ef", "models": {}})
        assert (await desk.ask("GET", "/readyz")).status == 503
        response = await desk.ask("POST", "/predict", b'{"inputs": [1, 2]}')
        assert code(response) == "malformed-request"

    run(check)


def test_metadata_of_a_model_that_is_no_signal(run: Callable[..., None]) -> None:
    async def check(desk: Desk) -> None:
        await desk.attach()
        parameters = json.loads((await desk.ask("GET", "/v2/models/m")).body)["parameters"]
        assert "signal" not in parameters
        assert "timeline" not in parameters
        assert parameters["score"] == {"output": "y", "threshold": None}

    run(check)
