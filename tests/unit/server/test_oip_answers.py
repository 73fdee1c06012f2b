"""What the protocol's routes say: inference responses, metadata, configuration, readiness, index and statistics."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oip_requests import LENGTH, Answered, json_input, model, output, parse, strips, tensor

from pericard.edge import oip
from pericard.errors import BackendFailed, MalformedRequest, RequestTooLarge

SCORES = np.array([0.25, 0.75], "float32")
TIMELINES = np.arange(6, dtype="float32").reshape(2, 3)


def two_rows(**asked: Any) -> oip.InferRequest:
    return parse({"inputs": [json_input(strips(2))], **asked})


def answers(*columns: np.ndarray) -> list[Answered]:
    return [
        Answered(b"".join(column[row].tobytes() for column in columns), log_index=10 + row)
        for row in range(len(columns[0]))
    ]


def render(request: oip.InferRequest, **parameters: Any) -> tuple[dict[str, str], dict[str, Any], bytes]:
    headers, body = oip.render(request, answers(SCORES, TIMELINES), model(), parameters=parameters)
    length = int(headers.get(LENGTH, len(body)))
    return headers, json.loads(body[:length]), body[length:]


def test_json_response() -> None:
    headers, value, tail = render(two_rows(id="q-1"), licence="valid", grace=False)
    assert headers == {"content-type": "application/json"}
    assert tail == b""
    receipts = json.loads(value["parameters"].pop("receipts"))
    assert receipts == [{"index": index, "leaf": "1e" * 32, "opening_key": "0b" * 32} for index in (10, 11)]
    assert value == {
        "model_name": "tiny",
        "model_version": "3",
        "id": "q-1",
        "parameters": {"licence": "valid", "grace": False},
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.25, 0.75]},
            {"name": "timeline", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]},
        ],
    }


def test_no_id_none_echoed() -> None:
    assert "id" not in render(two_rows())[1]
    assert render(two_rows(id=""))[1]["id"] == ""


def test_binary_response_in_the_order_that_was_asked() -> None:
    asked = [{"name": "timeline", "parameters": {"binary_data": True}}, {"name": "score"}]
    headers, value, tail = render(two_rows(outputs=asked))
    assert headers["content-type"] == "application/octet-stream"
    timeline, score = value["outputs"]
    assert timeline == {
        "name": "timeline", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}
    }  # fmt: skip
    assert score["data"] == [0.25, 0.75]
    assert tail == TIMELINES.tobytes()


def test_all_binary() -> None:
    headers, value, tail = render(two_rows(parameters={"binary_data_output": True}))
    assert [found["parameters"]["binary_data_size"] for found in value["outputs"]] == [8, 24]
    assert tail == SCORES.tobytes() + TIMELINES.tobytes()
    assert headers[LENGTH].isdigit()


@given(
    column=st.sampled_from(["bool", "int8", "uint8", "int64", "float64", "float32"]).flatmap(
        lambda kind: arrays.arrays(
            kind, (2, 2, 2), elements=st.floats(-1e6, 1e6, width=32) if kind.startswith("float") else None
        )
    )
)
def test_json_numbers_are_the_values_exactly(column: np.ndarray) -> None:
    entry = model(outputs=(output("x", column.dtype.name, (2, 2)),))
    request = parse({"inputs": [json_input(strips(2))]}, entry)
    _, body = oip.render(request, answers(column), entry, parameters={})
    (found,) = json.loads(body)["outputs"]
    assert found["shape"] == [2, 2, 2]
    assert np.array(found["data"], column.dtype).tobytes() == column.tobytes()


@pytest.mark.parametrize("given", [[], [Answered(bytes(16))], [Answered(bytes(16)), Answered(bytes(15))]])
def test_an_answer_of_another_size_is_no_answer(given: list[Answered]) -> None:
    with pytest.raises(BackendFailed, match="outputs' size"):
        oip.render(two_rows(), given, model(), parameters={})


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_server_metadata_lists_what_is_understood() -> None:
    found = oip.server_metadata("1.2", "ab", {"state": "unlocked"})
    assert {"binary_tensor_data", "statistics", "schedule_policy", "model_repository"} <= set(found["extensions"])
    assert found["environment"] == {"state": "unlocked"}
    assert not {"sequence", "classification", "system_shared_memory", "cuda_shared_memory"} & set(found["extensions"])


def test_model_metadata() -> None:
    found = oip.model_metadata("tiny", model(), "ab", versions=["2", "3"])
    assert found["versions"] == ["2", "3"]
    assert found["inputs"] == [{"name": "ecg", "datatype": "FP32", "shape": [-1, 1, 6]}]
    assert found["outputs"][1] == {"name": "timeline", "datatype": "FP32", "shape": [-1, 3]}
    assert found["parameters"]["score"] == {"output": "score", "threshold": 0.5}
    assert oip.model_metadata("tiny", model(), "ab")["versions"] == ["3"]


def test_configuration_is_what_load_generators_read() -> None:
    found = oip.model_configuration("tiny", model(tensor(), tensor("age", "int64", (2,))))
    assert found["name"] == "tiny"
    assert found["max_batch_size"] == 8
    assert found["input"] == [
        {"name": "ecg", "data_type": "TYPE_FP32", "dims": [1, 6]},
        {"name": "age", "data_type": "TYPE_INT64", "dims": [2]},
    ]
    assert found["output"][0] == {
        "name": "score", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}
    }  # fmt: skip
    assert found["version_policy"] == {"specific": {"versions": [3]}}
    batching = found["dynamic_batching"]
    assert 1 <= batching["default_priority_level"] <= batching["priority_levels"] == oip.PRIORITY_LEVELS


def test_readiness_is_said_in_every_client_s_words() -> None:
    assert oip.live(ready=False) == {"live": True, "ready": False}
    assert oip.server_ready(ready=True) == {"live": True, "ready": True}
    assert oip.model_ready("tiny", ready=True) == {"name": "tiny", "ready": True}
    for found in (oip.server_ready(ready=False), oip.model_ready("tiny", ready=False, reason="it is loading")):
        assert found["ready"] is False
        assert isinstance(found["error"], str)


# --- repository and statistics ----------------------------------------------------------------------------------------

ENTRIES = [
    {"name": "tiny", "version": 3, "state": "READY", "reason": "", "path": "/secret"},
    {"name": "tiny", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"},
    {"name": "other", "version": "1", "state": "READY", "reason": ""},
]


def test_index_shows_what_the_caller_may_see() -> None:
    found = oip.index(ENTRIES, lambda name: name == "tiny")
    assert found == [
        {"name": "tiny", "version": "3", "state": "READY", "reason": ""},
        {"name": "tiny", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"},
    ]
    assert oip.index(ENTRIES, lambda name: name == "tiny", ready=True) == found[:1]
    assert oip.index(ENTRIES, lambda _: False) == []


def test_statistics_of_what_the_caller_may_see() -> None:
    def found(**which: str) -> list[tuple[str, str]]:
        shown = oip.statistics(ENTRIES, lambda name: name == "tiny", **which)["model_stats"]
        return [(entry["name"], str(entry["version"])) for entry in shown]

    assert found() == found(name="tiny") == [("tiny", "3"), ("tiny", "2")]
    assert found(name="tiny", version="2") == [("tiny", "2")]
    assert found(name="other") == []


def test_index_request() -> None:
    assert [oip.parse_index(body) for body in (b"", b"{}", b'{"ready":false}', b'{"ready":true}')] == [
        False, False, False, True
    ]  # fmt: skip


def test_load_and_unload_requests() -> None:
    for body in (b"", b"{}", b'{"parameters":{}}'):
        oip.parse_load(body)
        oip.parse_unload(body)
    oip.parse_unload(b'{"parameters":{"unload_dependents":true}}')


@pytest.mark.parametrize(
    ("read", "body"),
    [
        *((oip.parse_index, body) for body in (b"[]", b"null", b'{"ready":1}', b'{"ready":true,"ready":false}', b"{")),
        (oip.parse_index, b'{"state":"READY"}'),
        (oip.parse_load, b'{"parameters":{"config":"{}"}}'),
        (oip.parse_load, b'{"parameters":{"file:1/model.pt":"AAAA"}}'),
        (oip.parse_load, b'{"parameters":{"unload_dependents":true}}'),
        (oip.parse_load, b'{"config":"{}"}'),
        (oip.parse_load, b'{"parameters":[1]}'),
        (oip.parse_unload, b'{"parameters":{"unload_dependents":"yes"}}'),
        (oip.parse_unload, b'{"parameters":{"force":true}}'),
        (oip.parse_unload, b"[" * 60_000),
        (oip.parse_unload, b'{"parameters":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001),
    ],
)
def test_administration_takes_nothing_else(read: Any, body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read(body)


@pytest.mark.parametrize("read", [oip.parse_index, oip.parse_load, oip.parse_unload])
def test_administration_bodies_are_small(read: Any) -> None:
    with pytest.raises(RequestTooLarge):
        read(b" " * (64 << 10) + b"{}")
