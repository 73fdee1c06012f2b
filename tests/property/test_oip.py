"""Arbitrary bodies and headers: only refusals by name come out of what reads the Open Inference Protocol, soon."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oip_requests import LENGTH, binary_input, framed, json_input, model, strips, tensor

from pericard.edge import encoding, oip
from pericard.errors import InvalidInput, MalformedRequest, RequestError, RequestTooLarge

ENTRY = model(tensor("a"), tensor("b", "int16", (2,)), tensor("c", "bool", (3,)))
LONE = model()
GOOD = {
    "id": "x",
    "parameters": {"binary_data_output": True, "priority": 1, "timeout": 5, "sampling_rate": 250, "leads": "I,II"},
    "inputs": [
        json_input(strips(2), "a"),
        binary_input(strips(2, "int16", (2,)), "b"),
        json_input(strips(2, "bool", (3,)), "c", nested=True),
    ],
    "outputs": [{"name": "timeline", "parameters": {"binary_data": False}}, {"name": "score"}],
}
TAIL = strips(2, "int16", (2,)).tobytes()
BODY, HEADERS = framed(GOOD, TAIL)
WORDS = [
    "id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "a", "b", "c", "ecg", "score", "FP32",
    "INT16", "BOOL", "BYTES", "binary_data_size", "binary_data", "binary_data_output", "priority", "timeout", "leads",
    "sampling_rate", "sequence_id", "classification", "model_name", "tiny", "triton_x", "shared_memory_region",
]  # fmt: skip

keys = st.sampled_from(WORDS) | st.text(max_size=5)
atoms = st.none() | st.booleans() | st.integers() | st.floats() | keys | st.sampled_from([0, 1, 2, 6, 8, -1, 1 << 63])
values = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=5), max_leaves=25
)
lengths = st.none() | st.integers(-2, 900).map(str) | st.text(max_size=8)


LEAVES = (MalformedRequest, InvalidInput, RequestTooLarge)


def attempt(body: bytes, headers: dict[str, str], entry: dict[str, Any]) -> oip.InferRequest | None:
    """Parse; what was accepted holds every promise, what was not was refused by name, and neither took long."""
    started = time.process_time()
    try:
        found = oip.parse(body, headers, entry, limit_rows=4)
    except LEAVES:
        found = None
    else:
        hold(found, entry)
    assert time.process_time() - started < 2
    return found


def hold(found: oip.InferRequest, entry: dict[str, Any]) -> None:
    assert 1 <= len(found.rows) <= 4
    for row in found.rows:
        for array, spec in zip(row, entry["inputs"], strict=True):
            assert array.dtype == np.dtype(spec["dtype"])
            assert array.shape == tuple(spec["shape"][1:])
            assert array.flags.c_contiguous
            assert np.isfinite(array).all()
            if array.dtype == np.bool_:
                assert set(array.tobytes()) <= {0, 1}
    names = [name for name, _ in found.outputs]
    assert names
    assert len(set(names)) == len(names)
    assert set(names) <= {spec["name"] for spec in entry["outputs"]}
    assert 0 <= found.priority <= oip.PRIORITY_LEVELS
    assert found.timeout_us is None or found.timeout_us > 0


def test_the_start_is_good() -> None:
    assert attempt(BODY, HEADERS, ENTRY) is not None


@given(body=st.binary(max_size=300), length=lengths, entry=st.sampled_from([ENTRY, LONE]))
def test_arbitrary_bytes(body: bytes, length: str | None, entry: dict[str, Any]) -> None:
    attempt(body, {} if length is None else {LENGTH: length}, entry)


@given(value=values, tail=st.binary(max_size=60), length=lengths)
def test_arbitrary_json(value: Any, tail: bytes, length: str | None) -> None:
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    attempt(text, {}, LONE)
    attempt(text + tail, {LENGTH: str(len(text)) if length is None else length}, ENTRY)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_good_request_with_one_thing_changed(data: st.DataObject) -> None:
    changed = json.loads(json.dumps(GOOD))
    place: Any = changed
    for _ in range(data.draw(st.integers(0, 3))):
        inner = [
            part for part in (place.values() if isinstance(place, dict) else place) if isinstance(part, dict | list)
        ]
        if not inner:
            break
        place = data.draw(st.sampled_from(inner))
    if isinstance(place, dict):
        place[data.draw(st.sampled_from([*place, *WORDS]))] = data.draw(values)
    elif place and data.draw(st.booleans()):
        place[data.draw(st.integers(0, len(place) - 1))] = data.draw(values)
    else:
        place.append(data.draw(values))
    attempt(*framed(changed, TAIL), ENTRY)


@given(place=st.integers(0, len(BODY) - 1), byte=st.integers(0, 255), length=st.integers(0, len(BODY)))
def test_a_good_request_with_one_byte_changed(place: int, byte: int, length: int) -> None:
    attempt(BODY[:place] + bytes([byte]) + BODY[place + 1 :], HEADERS, ENTRY)
    attempt(BODY[:length], HEADERS, ENTRY)
    attempt(BODY, {LENGTH: str(length)}, ENTRY)


@given(body=st.binary(max_size=120) | values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
def test_administration(body: bytes) -> None:
    for read in (oip.parse_index, oip.parse_load, oip.parse_unload):
        with contextlib.suppress(RequestError):
            read(body)


@given(body=st.binary(max_size=80), name=st.text(max_size=12) | st.sampled_from(["gzip", "deflate"]))
def test_encodings(body: bytes, name: str) -> None:
    with contextlib.suppress(RequestError):
        assert len(encoding.unpack(body, {"content-encoding": name}, limit=80)) <= 80
    headers, packed = encoding.pack(body * 20, name)
    assert headers or packed == body * 20
