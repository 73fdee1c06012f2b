"""Callers who share a batch harm nobody: three ways in which another server's batching did, asked over HTTP here.

There, one caller who left while the batch computed left the others without an answer for ever; one malformed request
failed all of them; and two whose errors in length made up for each other got each other's values. Every caller here is
a connection of its own, and a pass is held until all of them wait for the next one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import serving
from entrances import infer_body, predict_body
from holding import Caller, Holding, holding, numbers
from serving import FAILING, FLAT, GOOD, OTHER

INFER = "/v2/models/ecg-anomaly/infer"
PATH = pytest.mark.parametrize("path", ["/predict", INFER])
THIRD = [value / 2 for value in GOOD]


@pytest.fixture(scope="module", params=["uvicorn", "direct"])
def server(
    tmp_path_factory: pytest.TempPathFactory, loop: serving.Loop, request: pytest.FixtureRequest
) -> Iterator[Holding]:
    with holding(tmp_path_factory.mktemp("isolated"), loop, request.param) as made:
        yield made


def body(path: str, values: list[float], **changes: object) -> bytes:
    """A request whose values may be as many as they like, whatever its shape says."""
    return infer_body(values, **changes) if path == INFER else predict_body(values, **changes)


@PATH
def test_one_who_leaves_while_its_batch_computes_leaves_the_others_their_answers(server: Holding, path: str) -> None:
    with server.held(path, waiting=1):
        callers = []
        for place, strip in enumerate((GOOD, OTHER, THIRD, GOOD), start=1):
            callers.append(server.ask(path, strip))
            server.waiting(place)  # so that their places in the batch are known
    server.until(lambda: len(server.passes) == 2)
    assert len(server.passes[1]) == 4
    callers[1].leave()
    server.go()

    expected = server.bits(GOOD, OTHER, THIRD, GOOD, bucket=4)
    assert [numbers(callers[place].reply()) for place in (0, 2, 3)] == [expected[0], expected[2], expected[3]]
    assert numbers(server.ask(path, OTHER).reply()) == server.bits(OTHER, bucket=1)[0]  # and nobody after it waits


@PATH
def test_one_value_too_many_is_its_senders_error_alone(server: Holding, path: str) -> None:
    with server.held(path):
        good = server.ask(path, OTHER)
        server.waiting(1)
        bad = server.send(path, body(path, [*GOOD, 999.0]))
        assert (reply := bad.reply()).status == 422, reply
        assert reply.code == "invalid-input"

    assert numbers(good.reply()) == server.bits(OTHER, bucket=1)[0]
    assert not any((batch == 999.0).any() for batch in server.passes)


@PATH
def test_values_that_make_up_for_each_other_enter_no_other_answer(server: Holding, path: str) -> None:
    short = GOOD[:-1]
    with server.held(path):
        callers: list[Caller] = [server.send(path, body(path, values)) for values in ([*GOOD, 999.0], short)]
        good = server.ask(path, OTHER)
        # a short strip of a signal is the engine's to judge on one route, and the parser's on the other
        server.waiting(2 if path == "/predict" else 1)
    first, second = (caller.reply() for caller in callers)

    assert first.code == "invalid-input"
    if path == INFER:
        assert second.code == "invalid-input"
    else:
        (one,) = json.loads(second.body)["predictions"]
        assert (one["status"], "outputs" in one) == ("not_interpretable", False)
    assert numbers(good.reply()) == server.bits(OTHER, bucket=1)[0]
    assert not any((batch == 999.0).any() for batch in server.passes)


@PATH
def test_one_that_fails_the_whole_batch_fails_alone(server: Holding, path: str) -> None:
    with server.held(path):
        callers = []
        for place, strip in enumerate((GOOD, FAILING, OTHER, FLAT), start=1):
            callers.append(server.ask(path, strip))
            server.waiting(place)
    replies = [caller.reply() for caller in callers]

    assert replies[1].code == "backend-failed"
    for place, strip in ((0, GOOD), (2, OTHER)):
        assert numbers(replies[place]) == pytest.approx(server.bits(strip, bucket=1)[0], abs=1e-6)
    if path == INFER:
        assert replies[3].code == "not-interpretable"
    else:
        assert json.loads(replies[3].body)["predictions"][0]["status"] == "not_interpretable"


@PATH
def test_rows_of_one_request_that_make_up_for_each_other_are_refused(server: Holding, path: str) -> None:
    rows = [[*GOOD, 999.0], GOOD[:-1]]
    if path == INFER:
        tensor = {"name": "ecg", "shape": [2, 1, 8], "datatype": "FP32", "data": [[row] for row in rows]}
        reply = server.send(path, infer_body([], inputs=[tensor])).reply()
        assert reply.code == "invalid-input"
    else:
        reply = server.send(path, predict_body(rows)).reply()
        first, second = json.loads(reply.body)["predictions"]
        assert (first["error"]["code"], second["status"]) == ("invalid-input", "not_interpretable")
