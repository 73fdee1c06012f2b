"""Inference requests that are good: JSON, binary, mixed, raw, and what is read from their parameters."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oip_requests import LENGTH, Array, batch, binary_input, framed, json_input, model, output, parse, strips, tensor

from pericard.edge import oip
from pericard.edge.oip import Contract
from pericard.errors import InvalidInput, MalformedRequest

NUMBERS = ["uint8", "int8", "int16", "int32", "int64", "float32", "float64"]


@st.composite
def batches(draw: st.DrawFn, *more: str) -> Array:
    kind = np.dtype(draw(st.sampled_from([*NUMBERS, "bool", *more])))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, max_side=3))
    elements = st.floats(-1e4, 1e4, width=16) if kind.kind == "f" else None
    return draw(arrays.arrays(kind, (draw(st.integers(1, 4)), *shape), elements=elements))


def of(array: Array) -> dict[str, Any]:
    return model(tensor(dtype=array.dtype.name, shape=array.shape[1:]))


def assert_same(found: oip.InferRequest, sent: Array) -> None:
    assert len(found.rows) == len(sent)
    for (row,), wanted in zip(found.rows, sent, strict=True):
        assert isinstance(row, np.ndarray)
        assert row.dtype == sent.dtype
        assert row.shape == sent.shape[1:]
        assert row.flags.c_contiguous
        assert row.tobytes() == wanted.tobytes()


@given(sent=batches(), nested=st.booleans())
def test_json_values_are_the_rows(sent: Array, nested: bool) -> None:
    assert_same(parse({"inputs": [json_input(sent, nested=nested)]}, of(sent)), sent)


@given(sent=batches("float16"))
def test_bytes_are_the_rows(sent: Array) -> None:
    body, headers = framed({"inputs": [binary_input(sent)]}, sent.tobytes())
    assert_same(parse(body, of(sent), headers), sent)


@given(sent=batches("float16"))
def test_a_raw_body_is_one_row(sent: Array) -> None:
    found = parse(sent[0].tobytes(), of(sent), {LENGTH: "0"})
    assert_same(found, sent[:1])
    assert found.raw
    assert found.outputs == (("score", True), ("timeline", True))
    assert found.contract == Contract()


def test_binary_rows_are_views_into_the_body() -> None:
    body, headers = framed({"inputs": [binary_input(strips(2))]}, strips(2).tobytes())
    start = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    for (row,) in parse(body, headers=headers).rows:
        assert start < row.__array_interface__["data"][0] < start + len(body)


def test_tensors_may_stand_in_any_order_and_form() -> None:
    entry = model(tensor("a", "int16", (2,)), tensor("b"), tensor("c", "bool", (3,)))
    a, b, c = strips(2, "int16", (2,)), strips(2), strips(2, "bool", (3,))
    head = {"inputs": [binary_input(c, "c"), json_input(b, "b"), binary_input(a, "a")]}
    body, headers = framed(head, c.tobytes(), a.tobytes())
    found = parse(body, entry, headers)
    assert [len(row) for row in found.rows] == [3, 3]
    for place, sent in enumerate((a, b, c)):
        assert (batch(found, place) == sent).all()


def test_json_alone_may_say_its_length() -> None:
    body, headers = framed({"inputs": [json_input(strips())]})
    assert (batch(parse(body, headers=headers)) == strips()).all()


def test_a_bool_is_true_false_one_or_zero() -> None:
    sent = strips(1, "bool", (4,))
    for data in ([False, True, False, True], [0, 1, 0, 1], [[False, 1, 0, True]]):
        assert_same(parse({"inputs": [json_input(sent, data=data)]}, of(sent)), sent)


def test_json_numbers_become_the_nearest_of_the_type() -> None:
    sent = [0.1, 1, -2e-3, 1e30, 16777217, 3.4028234e38]
    (row,) = parse({"inputs": [json_input(strips(), data=sent)]}).rows[0]
    assert row.tolist() == np.array(sent, "float32").reshape(1, -1).tolist()


def test_null_is_as_good_as_nothing() -> None:
    sent = {**json_input(strips()), "parameters": None}
    found = parse({"id": None, "parameters": None, "outputs": None, "inputs": [sent]})
    assert found.id is None
    assert found.outputs == (("score", False), ("timeline", False))


@pytest.mark.parametrize(
    ("asked", "parameters", "wanted"),
    [
        (None, {}, [("score", False), ("timeline", False)]),
        (None, {"binary_data_output": True}, [("score", True), ("timeline", True)]),
        ([], {"binary_data_output": True}, [("score", True), ("timeline", True)]),
        ([{"name": "timeline"}], {}, [("timeline", False)]),
        ([{"name": "timeline"}, {"name": "score"}], {}, [("timeline", False), ("score", False)]),
        ([{"name": "score", "parameters": {"binary_data": True}}], {}, [("score", True)]),
        ([{"name": "score", "parameters": {"binary_data": False}}], {"binary_data_output": True}, [("score", False)]),
        ([{"name": "score", "parameters": {"sort": "up"}}], {"binary_data_output": True}, [("score", True)]),
    ],
)
def test_outputs_are_as_asked(asked: Any, parameters: Any, wanted: list[tuple[str, bool]]) -> None:
    value = {"inputs": [json_input(strips())], "parameters": parameters, "outputs": asked}
    assert parse(value).outputs == tuple(wanted)


def test_half_precision_comes_back_in_binary_only() -> None:
    entry = model(outputs=(output(), output("half", "float16")))
    value = {"inputs": [json_input(strips())]}
    with pytest.raises(MalformedRequest, match="half: is FP16, which has no JSON form"):
        parse(value, entry)
    assert parse({**value, "outputs": [{"name": "score"}]}, entry).outputs == (("score", False),)
    named = [{"name": "half", "parameters": {"binary_data": True}}]
    assert parse({**value, "outputs": named}, entry).outputs == (("half", True),)


def test_parameters_say_what_the_samples_are() -> None:
    def contract(**given: Any) -> Contract:
        return parse({"inputs": [json_input(strips())], "parameters": given}).contract

    assert contract() == Contract(None, None, None)
    assert contract(sampling_rate=250, unit="mV", leads="II") == Contract(250.0, "mV", ("II",))
    assert contract(sampling_rate=249.5, leads="I, II,V1") == Contract(249.5, None, ("I", "II", "V1"))


def test_parameters_say_when() -> None:
    def when(**given: Any) -> tuple[int, int | None]:
        found = parse({"inputs": [json_input(strips())], "parameters": given})
        return found.priority, found.timeout_us

    assert when() == (0, None)
    assert when(priority=0, timeout=0) == (0, None)
    assert when(priority=1, timeout=5_000) == (1, 5_000)
    assert when(priority=oip.PRIORITY_LEVELS, timeout=(1 << 63) - 1) == (oip.PRIORITY_LEVELS, (1 << 63) - 1)


def test_parameters_of_nobody_are_ignored() -> None:
    given = {"my_own": "x", "number": 1.5, "flag": True}
    value = {"inputs": [json_input(strips(), parameters={"content_type": "np"})], "parameters": given}
    assert len(parse(value).rows) == 1


@pytest.mark.parametrize("name", ["abc", "", "ü" * 256, 'quoted "\\'])
def test_the_id_is_kept(name: str) -> None:
    assert parse({"id": name, "inputs": [json_input(strips())]}).id == name


def test_the_model_may_be_named_as_kserve_does() -> None:
    value = {"model_name": "tiny", "inputs": [json_input(strips())]}
    assert len(parse(value).rows) == 1
    with pytest.raises(MalformedRequest, match="the path names tiny"):
        parse({**value, "model_name": "other"})


def test_whitespace_between_everything() -> None:
    text = json.dumps({"inputs": [json_input(strips(2), nested=True)]}, indent=3).encode()
    assert (batch(parse(b"\n " + text + b"\r\n\t")) == strips(2)).all()


def test_one_row_does_not_see_another() -> None:
    """The three ways in which a batch of another server mixed its callers: each request is whole, or refused."""
    entry = model(tensor(shape=(2,)))
    for data in ([1, 2, 999], [20]):  # together as many as two rows have
        with pytest.raises(InvalidInput, match="shape"):
            parse({"inputs": [{"name": "ecg", "shape": [1, 2], "datatype": "FP32", "data": data}]}, entry)
