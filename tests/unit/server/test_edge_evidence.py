"""The audit log's routes: what is asked of the engine, and what is not asked of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from answering import Desk
from played_engine import run

from pericard.edge.http import Head, Response
from pericard.pipe import FrameType

CALLER = {"principal": "ris", "address": "192.0.2.1", "request": "r-1"}


def at_desk(folder: Path, check: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        desk = Desk(folder)
        await desk.attach()
        await check(desk)
        desk.link.close()
        await asyncio.sleep(0)
        desk.engine.sock.close()

    run(whole())


async def ask(desk: Desk, path: str, query: str = "") -> Response:
    async def read() -> bytes:
        raise AssertionError("a body was read")

    headers = {**desk.headers, "x-request-id": "r-1"}
    return await desk.answerer.answer(Head("GET", path, headers, "192.0.2.1", query=query), read)


@pytest.mark.parametrize(
    ("path", "query", "asked"),
    [
        ("/audit/records", "", {"ask": "audit-records", "from": 0, "limit": 100}),
        ("/audit/records", "from=17&limit=1000", {"ask": "audit-records", "from": 17, "limit": 1000}),
        ("/audit/records", "limit=1", {"ask": "audit-records", "from": 0, "limit": 1}),
        ("/audit/checkpoint", "", {"ask": "audit-checkpoint"}),
        ("/audit/receipts/0017", "", {"ask": "audit-receipt", "index": 17}),
    ],
)
def test_the_engine_is_asked_in_the_callers_name(tmp_path: Path, path: str, query: str, asked: dict[str, Any]) -> None:
    async def check(desk: Desk) -> None:
        answer = asyncio.ensure_future(ask(desk, path, query))
        frame = await desk.engine.next()
        said = frame.meta
        assert said.pop("credential")
        assert (frame.type, said) == (FrameType.ASK, {**asked, **CALLER})
        desk.engine.say(FrameType.REPLY, frame.request, {}, b"as it is")
        response = await answer
        assert (response.status, response.body) == (200, b"as it is")
        kind = "text/plain; charset=utf-8" if path.endswith("checkpoint") else "application/json"
        assert response.headers == {"content-type": kind, "x-request-id": "r-1", "cache-control": "no-store"}

    at_desk(tmp_path, check)


@pytest.mark.parametrize(
    "query",
    ["from", "from=", "from=-1", "from=1.5", "from=1&from=1", "limit=0", "limit=1001", "index=1",
     "from=%C2%B2", "from=99999999999999999", "a=1&b=2&c=3", "&", "from=1;limit=2", "from=9999999999999999"],
)  # fmt: skip
def test_a_query_that_cannot_be_meant_is_refused(tmp_path: Path, query: str) -> None:
    async def check(desk: Desk) -> None:
        response = await ask(desk, "/audit/records", query)
        assert (response.status, json.loads(response.body)["code"]) == (400, "malformed-request")
        assert (await desk.engine.next()).type is FrameType.EVENT  # and it was not asked

    at_desk(tmp_path, check)


@pytest.mark.parametrize("path", ["/audit/receipts/", "/audit/receipts/-1", "/audit/receipts/1e3", "/audit/receipts/1/",
                                  "/audit/receipts/12345678901234567", "/audit", "/audit/records/"])  # fmt: skip
def test_other_paths_do_not_exist(tmp_path: Path, path: str) -> None:
    async def check(desk: Desk) -> None:
        assert (await ask(desk, path)).status == 404

    at_desk(tmp_path, check)


def test_a_record_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    async def check(desk: Desk) -> None:
        answer = asyncio.ensure_future(ask(desk, "/audit/receipts/9"))
        frame = await desk.engine.next()
        said = {"code": "unknown-record", "message": "record 9: is not in the log", "hint": None}
        desk.engine.say(FrameType.ERROR, frame.request, said)
        response = await answer
        assert (response.status, json.loads(response.body)["code"]) == (404, "unknown-record")
        assert (await desk.engine.next()).meta["code"] == "unknown-record"

    at_desk(tmp_path, check)
