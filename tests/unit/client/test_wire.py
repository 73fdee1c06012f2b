"""The wire: golden pairs that the server's tests read too, and replies that are not what they should be."""

import json
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pericard_client import wire
from pericard_client.errors import ClientError, NotSendable, ServerError, Unavailable, UnexpectedReply, refusals
from pericard_client.models import ModelMetadata, PredictResult

VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "http").glob("*.json"))


def load(name: str) -> dict[str, Any]:
    return json.loads(next(path for path in VECTORS if path.stem == name).read_text())


def reply(response: dict[str, Any]) -> wire.Reply:
    return wire.Reply(response["status"], response["headers"], json.dumps(response["body"]).encode())


def built(asked: dict[str, Any]) -> wire.Request:
    token = asked["headers"].get("authorization", "").removeprefix("Bearer ") or None
    request_id = asked["headers"]["x-request-id"]
    if asked["method"] == "GET":
        return wire.get_request(asked["path"], token=token, request_id=request_id)
    body = dict(asked["body"])
    return wire.predict_request(body.pop("inputs"), **body, token=token, request_id=request_id)


def parsed(asked: dict[str, Any], response: wire.Reply) -> object:
    path = asked["path"]
    if path == "/predict":
        return wire.parse_prediction(response, strips=len(asked["body"]["inputs"]))
    if path == "/readyz":
        return wire.parse_ready(response)
    return wire.parse_models(response) if path == "/v2/models" else wire.parse_metadata(response)


def test_there_is_a_pair_for_every_kind_of_answer() -> None:
    assert len(VECTORS) >= 9
    assert {load(path.stem)["expect"] for path in VECTORS} == {
        *("ok", "contract-mismatch", "unauthenticated", "forbidden", "overloaded", "unknown-model")
    }


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_the_request_is_built_byte_for_byte(path: Path) -> None:
    asked = load(path.stem)["request"]
    request = built(asked)
    assert (request.method, request.path, dict(request.headers)) == (asked["method"], asked["path"], asked["headers"])
    body = b"" if asked["body"] is None else json.dumps(asked["body"], separators=(",", ":")).encode()
    assert request.body == body


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_the_response_is_read_or_refused_as_expected(path: Path) -> None:
    pair = load(path.stem)
    if pair["expect"] == "ok":
        assert parsed(pair["request"], reply(pair["response"])) is not None
        return
    with pytest.raises(ServerError) as caught:
        parsed(pair["request"], reply(pair["response"]))
    assert caught.value.code == pair["expect"]
    assert type(caught.value) is refusals()[pair["expect"]]
    assert (caught.value.status, caught.value.request_id) == (pair["response"]["status"], "golden-0001")
    assert caught.value.message == pair["response"]["body"].get("detail", "no model of that name is served")


def test_every_field_of_a_prediction_is_kept() -> None:
    pair = load("predict-several-strips")
    result = parsed(pair["request"], reply(pair["response"]))
    assert isinstance(result, PredictResult)
    first, flat, failed, last = result.predictions
    assert (first.number("score"), first.series("timeline"), first.number("timeline")) == (0.006, (0.001, 0.006), None)
    assert (last.number("score"), last.number("absent"), last.series("score")) == (0.97, None, ())
    assert first.receipt is not None
    assert first.receipt.index == 18
    assert (flat.status, flat.outputs, flat.error and flat.error.code) == ("not_interpretable", {}, "not-interpretable")
    assert (failed.status, failed.receipt, failed.error and failed.error.code) == ("error", None, "backend-failed")
    assert (result.model.sequence, result.licence, result.request_ids) == (1, "valid", ("golden-0001",))


def test_every_field_of_the_metadata_is_kept() -> None:
    metadata = parsed(load("metadata")["request"], reply(load("metadata")["response"]))
    assert isinstance(metadata, ModelMetadata)
    assert metadata.identity.name == "ecg-anomaly"
    assert metadata.inputs[0].shape == (-1, 1, 8)
    assert metadata.signal is not None
    assert (metadata.signal.sampling_rate, metadata.signal.leads) == (250.0, (("II", "MLII"),))
    assert metadata.score is not None
    assert metadata.timeline is not None
    assert (metadata.score.threshold, metadata.timeline.frame_seconds) == (0.9, 0.016)
    assert metadata.licence_not_after is not None
    assert metadata.licence_not_after.isoformat() == "2027-11-23T00:00:00+00:00"


def test_a_newer_servers_fields_are_passed_over() -> None:
    for name in ("predict-several-strips", "metadata"):
        pair = load(name)
        plain = parsed(pair["request"], reply(pair["response"]))
        fields = json.dumps(pair["response"]["body"]).replace("{", '{"new": {"deep": [1, null]}, ')
        if name == "predict-several-strips":  # a new output is a field with a meaning
            fields = fields.replace('"outputs": {"new": {"deep": [1, null]}, ', '"outputs": {')
        newer = wire.Reply(200, {}, fields.encode())
        assert parsed(pair["request"], newer) == plain


def test_what_a_manifest_leaves_out_is_none() -> None:
    pair = load("metadata")
    kept = {"version", "sequence", "manifest", "publisher", "runtime"}
    parameters = pair["response"]["body"]["parameters"]
    parameters["score"]["threshold"] = parameters["timeline"]["frame_seconds"] = None
    metadata = wire.parse_metadata(reply(pair["response"]))
    assert (metadata.score and metadata.score.threshold, metadata.timeline) == (None, None)
    pair["response"]["body"]["parameters"] = {key: value for key, value in parameters.items() if key in kept}
    metadata = wire.parse_metadata(reply(pair["response"]))
    assert (metadata.signal, metadata.score, metadata.timeline, metadata.licence_not_after) == (None,) * 4


SCORES = ("predictions", 0, "outputs", "score")
WRONG: list[tuple[str, tuple[str | int, ...], object]] = [
    ("predict-ok", ("model",), []),
    ("predict-ok", ("model", "manifest"), "AB" * 32),
    ("predict-ok", ("model", "sequence"), True),
    ("predict-ok", ("model", "sequence"), 1.0),
    ("predict-ok", ("runtime",), None),
    ("predict-ok", ("request_id",), 7),
    ("predict-ok", ("predictions",), {}),
    ("predict-ok", ("predictions",), []),
    ("predict-ok", ("predictions", 0), "ok"),
    ("predict-ok", ("predictions", 0, "status"), "perhaps"),
    ("predict-ok", ("predictions", 0, "outputs"), None),
    ("predict-ok", ("predictions", 0, "receipt"), None),
    ("predict-ok", ("predictions", 0, "receipt", "leaf"), "00"),
    ("predict-ok", SCORES, "0.1"),
    ("predict-ok", SCORES, True),
    ("predict-ok", SCORES, [[0.5, None]]),
    ("predict-ok", SCORES, [[[[[[[[[0.5]]]]]]]]]),
    ("predict-ok", SCORES, 10**400),
    ("predict-not-interpretable", ("predictions", 0, "error"), None),
    ("predict-not-interpretable", ("predictions", 0, "receipt"), None),
    ("predict-several-strips", ("predictions", 2, "error", "code"), None),
    ("metadata", ("parameters",), None),
    ("metadata", ("inputs", 0, "shape"), [-1, 1.5]),
    ("metadata", ("versions",), [1]),
    ("metadata", ("parameters", "signal", "leads"), ["II"]),
    ("metadata", ("parameters", "signal", "leads"), []),
    ("metadata", ("parameters", "signal", "leads"), [[]]),
    ("metadata", ("parameters", "signal", "sampling_rate"), 0),
    ("metadata", ("parameters", "score", "threshold"), [0.9]),
    ("metadata", ("parameters", "timeline", "frame_seconds"), -1),
    ("metadata", ("parameters", "licence_not_after"), "soon"),
    ("models", ("models",), [None]),
    ("ready", ("ready",), "yes"),
]


@pytest.mark.parametrize(("name", "place", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_type_is_refused_by_name(name: str, place: tuple[str | int, ...], value: object) -> None:
    pair = load(name)
    spot: Any = pair["response"]["body"]
    for step in place[:-1]:
        spot = spot[step]
    spot[place[-1]] = value
    with pytest.raises(UnexpectedReply) as caught:
        parsed(pair["request"], reply(pair["response"]))
    assert str(next(step for step in reversed(place) if isinstance(step, str))) in caught.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'"ok"', b'{"ready": NaN}', b'{"ready": true, "ready": false}', b"\xff", b"[" * 100_000],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        wire.parse_ready(wire.Reply(200, {}, body))


def test_a_number_too_large_for_64_bits_is_refused() -> None:
    body = json.dumps(load("predict-ok")["response"]["body"]).replace("0.006", "1e999")
    with pytest.raises(UnexpectedReply, match="finite"):
        wire.parse_prediction(wire.Reply(200, {}, body.encode()), strips=1)


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "words"),
    [
        (302, {"location": "https://elsewhere.example/"}, b"", UnexpectedReply, "302"),
        (502, {"content-type": "text/html"}, b"<html>", UnexpectedReply, "502"),
        (400, {}, b'{"error": 3}', UnexpectedReply, "400"),
        (503, {"retry-after": "2"}, b"<html>", Unavailable, "503"),
        (418, {}, b'{"code": "new-code", "detail": "new"}', ServerError, "new"),
        (503, {}, b'{"code": "new-code", "detail": "new"}', Unavailable, "new"),
    ],
)
def test_a_refusal_without_known_reason(
    status: int, headers: dict[str, str], body: bytes, kind: type, words: str
) -> None:
    with pytest.raises(ClientError, match=words) as caught:
        wire.parse_models(wire.Reply(status, headers, body))
    assert type(caught.value) is kind
    if b"new-code" in body:
        assert caught.value.code == "new-code"


def test_retry_after_is_read_in_seconds_alone() -> None:
    for header, seconds in (("7", 7), ("-1", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("9999999", None)):
        with pytest.raises(Unavailable) as caught:
            wire.parse_models(wire.Reply(503, {"retry-after": header}, b""))
        assert caught.value.retry_after == seconds


def test_a_servers_words_cannot_drive_a_terminal() -> None:
    body = {"code": "invalid-input", "detail": "a\x1b[2J\x07\nb\ud800", "hint": "\u202ec"}
    with pytest.raises(ServerError) as caught:
        wire.parse_models(wire.Reply(422, {}, json.dumps(body).encode()))
    assert (caught.value.message, caught.value.hint) == ("a?[2J? b?", "?c")


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_samples_arrive_as_the_same_32_bits(values: list[float]) -> None:
    request = wire.predict_request(
        [[values]], model=None, sampling_rate=250.0, unit="mV", leads=["II"], token=None, request_id="r"
    )
    body = json.loads(request.body)
    sent = body["inputs"][0][0]
    assert [struct.pack("<f", value) for value in sent] == [struct.pack("<f", value) for value in values]
    assert list(body) == ["inputs", "sampling_rate", "unit", "leads"]
    assert body["sampling_rate"] == 250
    assert isinstance(body["sampling_rate"], int)


def ask(**changes: Any) -> wire.Request:
    values: dict[str, Any] = {"strips": [[[0.0, 1.0]]], "model": "m", "sampling_rate": 250, "unit": "mV"}
    values |= {"leads": ["II"], "token": None, "request_id": "r"} | changes
    return wire.predict_request(values.pop("strips"), **values)


@pytest.mark.parametrize(
    "changes",
    [
        {"strips": []},
        {"strips": 3.0},
        {"strips": [["a"]]},
        {"strips": [[[1.0, 2.0]], [[1.0]]]},
        {"strips": [[[float("nan")]]]},
        {"strips": [[[1e39]]]},
        {"strips": [[[1.0]]], "leads": ["I", "II"]},
        {"strips": [[[[1.0]]]]},
        {"sampling_rate": float("inf")},
        {"token": ""},
        {"token": "a\r\nx-evil: 1"},
        {"token": "tökén"},
    ],
)
def test_what_cannot_be_sent_is_refused_here(changes: dict[str, Any]) -> None:
    with pytest.raises(NotSendable) as caught:
        ask(**changes)
    assert str(changes.get("token") or "x-evil") not in caught.value.message


@pytest.mark.parametrize(
    ("strips", "leads", "shape"),
    [
        ([1, 2, 3], ["II"], (1, 1, 3)),
        ([[1, 2, 3], [4, 5, 6]], ["II"], (2, 1, 3)),
        ([[1, 2, 3], [4, 5, 6]], ["I", "II"], (1, 2, 3)),
        ([[[1, 2, 3], [4, 5, 6]]], ["I", "II"], (1, 2, 3)),
    ],
)
def test_the_shorter_shapes_of_the_contract(strips: object, leads: list[str], shape: tuple[int, ...]) -> None:
    assert np.shape(json.loads(ask(strips=strips, leads=leads).body)["inputs"]) == shape


@pytest.mark.parametrize("name", ["", "../models", "a/b", "a?x", "é"])
def test_a_name_that_is_no_model_never_becomes_a_path(name: str) -> None:
    with pytest.raises(NotSendable):
        wire.metadata_path(name)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 1, 2500), [1]),
        ((32, 1, 8), [32]),
        ((33, 1, 8), [17, 16]),
        ((15, 12, 5000), [5, 5, 5]),
        ((2, 1, 10**6), [1, 1]),
    ],
)
def test_many_strips_travel_in_balanced_requests(shape: tuple[int, ...], sizes: list[int]) -> None:
    assert [len(batch) for batch in wire.batches(np.zeros(shape, np.float32))] == sizes


def test_nothing_secret_shows_in_a_repr() -> None:
    request = ask(token="very-secret")
    assert "very-secret" not in repr(request)
    assert "inputs" not in repr(request)


def test_the_pairs_share_one_model() -> None:
    for path in VECTORS:
        body = deepcopy(load(path.stem))["request"]["body"]
        assert body is None or np.shape(body["inputs"])[1:] == (1, 8)
