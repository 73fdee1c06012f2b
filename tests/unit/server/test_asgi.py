"""The raw entrance: the same answers as the application's to the last byte, and callers that leave are heard."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import serving
from answering import Desk
from entrances import Reply, bearer, infer_body, predict_body
from holding import WAYS, Holding, holding, numbers
from serving import CLIPPED, FAILING, FLAT, GOOD, OTHER

from pericard.audit import records
from pericard.edge.asgi import GONE, RawEntrance, head_of
from pericard.edge.http import Gone
from pericard.pipe import FrameType

PATH = pytest.mark.parametrize("path", WAYS)
INFER = "/v2/models/ecg-anomaly/infer"


@pytest.fixture(scope="module", params=["uvicorn", "direct"])
def server(
    tmp_path_factory: pytest.TempPathFactory, loop: serving.Loop, request: pytest.FixtureRequest
) -> Iterator[Holding]:
    with holding(tmp_path_factory.mktemp("held"), loop, request.param) as made:
        yield made


# --- one voice --------------------------------------------------------------------------------------------------------

JSON = {"content-type": "application/json"}
ASKED: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "a strip": ("POST", "/predict", JSON, predict_body(GOOD)),
    "strips of every kind": ("POST", "/predict", JSON, predict_body([GOOD, FLAT, CLIPPED, FAILING, GOOD[:-1]])),
    "a flat strip": ("POST", "/predict", JSON, predict_body(FLAT)),
    "one that fails": ("POST", "/predict", JSON, predict_body(FAILING)),
    "another rate": ("POST", "/predict", JSON, predict_body(GOOD, sampling_rate=500)),
    "no JSON": ("POST", "/predict", JSON, b"{"),
    "another type": ("POST", "/predict", {"content-type": "text/plain"}, b"x"),
    "a query": ("POST", "/predict?a=b", JSON, predict_body(GOOD)),
    "infer": ("POST", INFER, {}, infer_body(GOOD + OTHER, rows=2)),
    "infer, a version": ("POST", "/v2/models/ecg-anomaly/versions/1/infer", {}, infer_body(GOOD)),
    "infer, a version that is not there": ("POST", "/v2/models/ecg-anomaly/versions/7/infer", {}, infer_body(GOOD)),
    "infer, a flat strip": ("POST", INFER, {}, infer_body(FLAT)),
    "infer, another model": ("POST", "/v2/models/missing/infer", {}, infer_body(GOOD)),
    "HEAD": ("HEAD", "/predict", {}, b""),
    "GET": ("GET", INFER, {}, b""),
    "another spelling": ("POST", "/predict/", JSON, predict_body(GOOD)),
    "an escaped spelling": ("POST", "/%70redict", JSON, predict_body(GOOD)),
    "an escaped slash": ("POST", "/v2/models/ecg-anomaly%2finfer", JSON, infer_body(GOOD)),
    "health": ("GET", "/livez", {}, b""),
    "metadata": ("GET", "/v2/models/ecg-anomaly", {}, b""),
}
_OWN = re.compile(rb'(\\?"(?:index|leaf|opening_key)\\?":)(?:\d+|\\?"[0-9a-f]{64}\\?")')


def same(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    """A reply without what is an answer's own: its place in the log, and what a server adds."""
    left = {
        name: value for name, value in reply.headers.items() if name not in {"date", "content-length", "connection"}
    }
    return reply.status, left, _OWN.sub(rb"\1_", reply.body)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_every_entrance_answers_alike_to_the_last_byte(
    server: Holding, asked: tuple[str, str, dict[str, str], bytes]
) -> None:
    method, target, headers, body = asked
    sent = {**bearer(server.keys.good), "x-request-id": "study-1", **headers}
    found = {name: same(entrance.ask(method, target, sent, body)) for name, entrance in server.door.entrances.items()}

    raw = found["raw"]
    assert raw[1]["x-request-id"] == "study-1"
    for name, reply in found.items():
        if method == "HEAD":  # the answer function itself does not know who reads
            assert reply[:2] == raw[:2], name
        else:
            assert reply == raw, name


def test_what_is_no_inference_goes_to_the_others() -> None:
    seen: list[str] = []

    async def others(scope: Any, receive: Any, send: Any) -> None:
        seen.append(f"{scope['type']} {scope.get('method', '')} {scope.get('path', '')}")

    async def check() -> None:
        entrance = RawEntrance(None, others)  # type: ignore[arg-type]  # it is not to be asked
        for method, path in (
            ("GET", "/predict"),
            ("POST", "/predict/x"),
            ("POST", "/v2/repository/index"),
            ("HEAD", "/"),
        ):
            await entrance({"type": "http", "method": method, "path": path}, None, None)  # type: ignore[arg-type]
        await entrance({"type": "lifespan"}, None, None)  # type: ignore[arg-type]

    asyncio.run(check())
    assert seen == [
        "http GET /predict",
        "http POST /predict/x",
        "http POST /v2/repository/index",
        "http HEAD /",
        "lifespan  ",
    ]


def scope_of(**changes: Any) -> dict[str, Any]:
    return {
        "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/%70redict", "client": ("192.0.2.1", 1),
        "headers": [(b"X-Twice", b"a"), (b"x-twice", b"b"), (b"x-latin", b"\xe9")], **changes,
    }  # fmt: skip


def test_a_head_is_what_was_sent() -> None:
    head = head_of(scope_of())

    assert head_of(scope_of(query_string=b"from=1&x=%e9")).query == "from=1&x=%e9"
    assert head.query == ""
    assert (head.method, head.path, head.address) == ("POST", "/%70redict", "192.0.2.1")
    assert head.headers == {"x-twice": "a, b", "x-latin": "é"}
    gone = Gone()
    assert head_of(scope_of(**{GONE: gone})).gone is gone
    assert head_of(scope_of(client=None, raw_path=None)).address == ""


def test_a_head_gets_no_body(tmp_path: Any) -> None:
    desk = Desk(tmp_path)
    sent: list[MutableMapping[str, Any]] = []

    async def check() -> None:
        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await RawEntrance(desk.answerer)(scope_of(method="HEAD", raw_path=b"/livez"), None, send)  # type: ignore[arg-type]

    asyncio.run(check())
    desk.engine.sock.close()
    desk._theirs.close()
    assert (sent[0]["type"], sent[1]["body"]) == ("http.response.start", b"")
    assert int(dict(sent[0]["headers"])[b"content-length"]) > 0


# --- callers that leave -----------------------------------------------------------------------------------------------


@PATH
def test_who_leaves_while_its_row_waits_costs_no_pass_and_changes_no_bit(server: Holding, path: str) -> None:
    before = server.counted("cancelled")
    with server.held(path):
        left = server.ask(path, FAILING, "who-left")  # it would fail the batch that it is in
        stays = [server.ask(path, OTHER), server.ask(path, GOOD)]
        server.waiting(3)
        left.leave()
        server.waiting(2)
    answers = [numbers(one.reply()) for one in stays]

    assert [len(batch) for batch in server.passes] == [1, 4]
    assert sorted(answers) == sorted(server.bits(OTHER, GOOD, bucket=4))
    assert server.counted("cancelled") == before + 1
    assert all(dict(record).get("request") != "who-left" for _, record in records(server.folder / "audit"))


@PATH
def test_who_leaves_while_its_row_is_computed_is_not_waited_for(server: Holding, path: str) -> None:
    with server.held(path, waiting=1):
        callers = [server.ask(path, strip) for strip in (GOOD, OTHER, GOOD, OTHER)]
        server.waiting(4)
    server.until(lambda: len(server.passes) == 2)  # all four are in it
    callers[1].leave()
    server.go()
    answers = [numbers(callers[place].reply()) for place in (0, 2, 3)]

    expected = server.bits(GOOD, OTHER, GOOD, OTHER, bucket=4)
    assert sorted(answers) == sorted([expected[0], expected[2], expected[3]])


@PATH
def test_a_flood_of_callers_that_leave_frees_every_place(server: Holding, path: str) -> None:
    with server.held(path):
        for _ in range(5):
            callers = [server.ask(path, GOOD) for _ in range(20)]
            server.waiting(20)
            for caller in callers:
                caller.leave()
            server.waiting(0)
    assert numbers(server.ask(path, OTHER).reply()) == server.bits(OTHER, bucket=1)[0]
    assert len(server.passes) == 2


def test_who_leaves_is_refused_nothing_that_is_recorded(tmp_path: Any) -> None:
    desk = Desk(tmp_path)

    async def check() -> None:
        await desk.attach()
        gone = Gone()
        asked = asyncio.ensure_future(
            desk.ask("POST", "/predict", json.dumps({"model": "m", "inputs": [1, 2]}).encode(), gone=gone)
        )
        question = await desk.engine.next()
        gone.happen()
        await asked
        frame = await desk.engine.next()
        assert (frame.type, frame.request) == (FrameType.CANCEL, question.request)
        desk.headers["authorization"] = "Bearer wrong"
        await desk.ask("GET", "/v2")
        assert (await desk.engine.next()).meta["code"] == "unauthenticated"  # the next event is another one's
        desk.link.close()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(check(), 20))
    desk.engine.sock.close()
