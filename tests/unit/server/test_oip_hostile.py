"""Inference requests that are not: each is refused by its own name and with a word on what is wrong, at once."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oip_requests import LENGTH, SAMPLES, binary_input, framed, json_input, model, parse, strips, tensor

from pericard.edge.oip import PRIORITY_LEVELS
from pericard.errors import InvalidInput, MalformedRequest, PericardError, RequestTooLarge

GOOD = strips(2)
TAIL = GOOD.tobytes()
HUGE = 1 << 70


def whole(**changes: Any) -> dict[str, Any]:
    """A good request with top-level fields replaced."""
    return {"inputs": [json_input(GOOD)], **changes}


def given(**changes: Any) -> dict[str, Any]:
    """A good request with fields of its input replaced."""
    return {"inputs": [json_input(GOOD, **changes)]}


def text(replaced: str, by: str, value: dict[str, Any] | None = None) -> bytes:
    """A good request as text, with a part replaced."""
    good = json.dumps(value or whole(id="x", parameters={"unit": "mV"}))
    assert replaced in good
    return good.replace(replaced, by, 1).encode()


NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "a space": b" ",
    "garbage": b"\x00\xff\x80",
    "a list": b"[]",
    "null": b"null",
    "no inputs": b"{}",
    "a cut body": json.dumps(whole()).encode()[:-3],
    "two bodies": json.dumps(whole()).encode() * 2,
    "a tail": json.dumps(whole()).encode() + b" x",
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(whole()).encode(),
    "UTF-16": json.dumps(whole()).encode("utf-16"),
    "not UTF-8 in the id": b'{"id":"\xff","inputs":[]}',
    "not UTF-8 in a parameter": b'{"parameters":{"a":"\xff"},"inputs":[]}',
    "a lone surrogate": text('"x"', '"\\ud800"'),
    "100 000 lists": b"[" * 100_000 + b"]" * 100_000,
    "100 000 lists as inputs": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100 000 lists as a parameter": text('"mV"', "[" * 30_000 + "]" * 30_000),
    "100 000 lists as a shape": text("[2, 1, 6]", "[" * 100_000 + "]" * 100_000),
    "100 000 lists as data": text("[0.0,", "[" * 100_000 + "0" + "]" * 100_000 + ",[", given()).replace(
        b"11.0]", b"1]]"
    ),
    "an unknown field": json.dumps(whole(model="tiny")).encode(),
    "an unknown field of an input": json.dumps(given(dtype="FP32")).encode(),
    "an unknown field of an output": json.dumps(whole(outputs=[{"name": "score", "shape": [1]}])).encode(),
    "a field twice": text('"id": "x"', '"id": "x", "id": "y"'),
    "a field twice, once escaped": text('"id": "x"', '"id": "x", "\\u0069d": "y"'),
    "inputs twice": text('"id": "x"', '"inputs": [], "id": "x"'),
    "data twice": text('"data": [', '"data": [5], "data": ['),
    "a shape twice": text('"shape": [', '"shape": [1, 1, 6], "shape": ['),
    "a parameter twice": text('"unit": "mV"', '"unit": "mV", "unit": "uV"'),
    "NaN": text("[2, 1, 6]", "[NaN, 1, 6]"),
    "NaN in data": text("[0.0", "[NaN"),
    "Infinity in data": text("[0.0", "[Infinity"),
    "minus Infinity in data": text("[0.0", "[-Infinity"),
    "an id that is a number": json.dumps(whole(id=7)).encode(),
    "an id that is long": json.dumps(whole(id="x" * 257)).encode(),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_bodies_that_are_not_a_request(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse(body)


MALFORMED: dict[str, tuple[Any, str]] = {
    "inputs that are a number": (whole(inputs=1), "inputs"),
    "inputs that are an object": (whole(inputs=json_input(GOOD)), "inputs"),
    "no inputs": (whole(inputs=[]), "ecg: is missing"),
    "an input of another name": (given(name="emg"), "'emg': model tiny has none"),
    "an input twice": (whole(inputs=[json_input(GOOD)] * 2), "is there twice"),
    "an input without data": (whole(inputs=[{**json_input(GOOD), "data": None}]), "neither data nor"),
    "strings": (given(datatype="BYTES", data=["a"] * 12), "BYTES, and no model here takes strings"),
    "a shape that is text": (given(shape="2,1,6"), "shape"),
    "a shape of floats": (given(shape=[2.0, 1, SAMPLES]), "shape"),
    "a shape of booleans": (given(shape=[True, True, SAMPLES]), "shape"),
    "data that is a number": (given(data=1), "nested 0 deep"),
    "data that is text": (given(data="1,2,3"), "nested 0 deep"),
    "data that is an object": (given(data={"0": 1}), "nested 0 deep"),
    "data nested otherwise": (given(data=[GOOD[0, 0].tolist(), GOOD[1, 0].tolist()]), "nested 2 deep"),
    "data nested too deep": (given(data=[GOOD.tolist()]), "nested 4 deep"),
    "outputs that are an object": (whole(outputs={"name": "score"}), "outputs"),
    "an output that is text": (whole(outputs=["score"]), "outputs"),
    "an output of another name": (whole(outputs=[{"name": "class"}]), "'class': model tiny has none"),
    "an output twice": (whole(outputs=[{"name": "score"}] * 2), "is there twice"),
    "1000 outputs": (whole(outputs=[{"name": "score"}] * 1000), "is there twice"),
    "a binary flag that is a number": (whole(parameters={"binary_data_output": 1}), "true or false"),
    "a binary flag that is text": (
        whole(outputs=[{"name": "score", "parameters": {"binary_data": "true"}}]), "true or false"),
    "parameters that are a list": (whole(parameters=[]), "parameters"),
    "a parameter that is null": (whole(parameters={"x": None}), "parameters"),
    "a parameter that is a list": (whole(parameters={"x": [1]}), "parameters"),
    "a parameter that is an object": (given(parameters={"x": {}}), "parameters"),
    "a rate that is text": (whole(parameters={"sampling_rate": "250"}), "sampling_rate"),
    "a rate that is true": (whole(parameters={"sampling_rate": True}), "sampling_rate"),
    "a rate beyond numbers": (whole(parameters={"sampling_rate": 10**400}), "parameters|sampling_rate"),
    "a unit that is a number": (whole(parameters={"unit": 1}), "unit"),
    "leads that are a number": (whole(parameters={"leads": 2}), "leads"),
    "a priority that is text": (whole(parameters={"priority": "1"}), "priority must be an integer"),
    "a priority that is true": (whole(parameters={"priority": True}), "priority must be an integer"),
    "a priority that is half": (whole(parameters={"priority": 1.5}), "priority must be an integer"),
    "a negative priority": (whole(parameters={"priority": -1}), "priority must be an integer"),
    "a priority beyond the levels": (whole(parameters={"priority": PRIORITY_LEVELS + 1}), "priority must be"),
    "a negative time-out": (whole(parameters={"timeout": -1}), "timeout must be an integer"),
    "an endless time-out": (whole(parameters={"timeout": 1 << 63}), "timeout must be an integer"),
    "a time-out that is text": (whole(parameters={"timeout": "1s"}), "timeout must be an integer"),
    "a class asked for": (
        whole(outputs=[{"name": "score", "parameters": {"classification": 3}}]), "classification extension is not"),
    "an output in shared memory": (
        whole(outputs=[{"name": "score", "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 4}}]),
        "shared memory is not offered"),
    "an input in shared memory": (
        given(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 4}), "shared memory is not offered"),
    "binary without a length header": ({"inputs": [binary_input(GOOD)]}, "length is missing"),
    **{
        f"the reserved name {name}": (whole(parameters={name: 1}), "is refused")
        for name in ("sequence_id", "sequence_start", "sequence_end", "headers", "triton_enable_x", "triton_")
    },
}  # fmt: skip


@pytest.mark.parametrize(("value", "word"), MALFORMED.values(), ids=MALFORMED)
def test_requests_that_break_the_protocol(value: Any, word: str) -> None:
    with pytest.raises(MalformedRequest, match=word):
        parse(value)


UNFIT: dict[str, tuple[Any, str]] = {
    "another type": (given(datatype="FP64"), "the model takes FP32"),
    "no type": (given(datatype="float32"), "the model takes FP32"),
    "another length": (given(shape=[2, 1, 5], data=[0] * 10), r"the model takes \[rows, 1, 6\]"),
    "another depth": (given(shape=[12]), r"the model takes \[rows, 1, 6\]"),
    "no shape": (given(shape=[]), r"the model takes \[rows, 1, 6\]"),
    "no rows": (given(shape=[0, 1, SAMPLES], data=[]), r"the model takes \[rows, 1, 6\]"),
    "negative rows": (given(shape=[-2, 1, SAMPLES]), r"the model takes"),
    "two negative axes": (given(shape=[-2, -1, SAMPLES]), r"the model takes"),
    "the model's own shape": (given(shape=[-1, 1, SAMPLES]), r"the model takes"),
    "a huge axis": (given(shape=[2, HUGE, SAMPLES]), r"the model takes"),
    "a product that overflows": (given(shape=[1 << 32, 1 << 32, 1 << 32]), r"the model takes"),
    "a product that overflows to the right one": (given(shape=[2, 1, SAMPLES + (1 << 63)]), r"the model takes"),
    "10 000 axes": (given(shape=[1] * 10_000), r"the model takes"),
    "too few values": (given(data=[0] * 11), "holds 11 values"),
    "too many values": (given(data=[0] * 13), "holds 13 values"),
    "no values": (given(data=[]), "holds 1 values"),
    "a ragged list": (given(data=[[[0] * 5], [[0] * 7]]), "regular|nested"),
    "an empty list inside": (given(data=[[[]], [[0] * 12]]), "holds 13 values"),
    "an empty list beside a long one": (given(data=[[[]], [[0] * 11]]), "regular|nested"),
    "rows the wrong way": (given(data=[[[0] * 6, [0] * 6]]), "nested as its shape"),
    "text inside": (given(data=["0"] * 12), "regular list of FP32"),
    "null inside": (given(data=[None] * 12), "regular list of FP32"),
    "true inside": (given(data=[True] * 12), "regular list of FP32"),
    "a list inside": (given(data=[0, [0]] + [0] * 10), "regular list"),
    "what is too large for the type": (given(data=[1e39] + [0] * 11), "row 0 holds a value that is not a finite FP32"),
    "what is too large for any": (text("[0.0", "[1e999"), "regular list of FP32"),
}


@pytest.mark.parametrize(("value", "word"), UNFIT.values(), ids=UNFIT)
def test_tensors_that_do_not_fit_the_model(value: Any, word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        parse(value)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int8", 128), ("int8", -129), ("uint8", -1), ("uint8", 256), ("int16", 1 << 15), ("int64", 1 << 63),
        ("int32", 1.5), ("int32", 1.0), ("int32", True), ("int32", HUGE), ("int32", 10**300), ("bool", 2),
        ("bool", -1), ("bool", 1.0), ("bool", HUGE), ("bool", "true"),
    ],
)  # fmt: skip
def test_values_that_the_type_does_not_have(dtype: str, value: Any) -> None:
    sent = strips(1, dtype, (3,))
    for data in ([0, value, 0], [[0, value, 0]]):
        with pytest.raises(InvalidInput):
            parse({"inputs": [json_input(sent, data=data)]}, model(tensor(dtype=dtype, shape=(3,))))


def test_half_precision_has_no_json_form() -> None:
    sent = strips(1, "float16", (3,))
    with pytest.raises(MalformedRequest, match="FP16, which has no JSON form"):
        parse({"inputs": [json_input(sent)]}, model(tensor(dtype="float16", shape=(3,))))


# --- binary data ------------------------------------------------------------------------------------------------------


def binary(size: Any = 48, tail: bytes = TAIL) -> tuple[bytes, dict[str, str]]:
    return framed({"inputs": [binary_input(GOOD, parameters={"binary_data_size": size})]}, tail)


@pytest.mark.parametrize("size", [-1, True, 48.0, 48.5, "48", HUGE, 1 << 63])
def test_a_size_that_is_no_size(size: Any) -> None:
    body, headers = binary(size)
    with pytest.raises(MalformedRequest, match="binary_data_size"):
        parse(body, headers=headers)


@pytest.mark.parametrize(
    ("size", "tail", "error", "word"),
    [
        (49, TAIL, MalformedRequest, "announces 49 bytes, 48 are left"),
        (48, TAIL[:-1], MalformedRequest, "announces 48 bytes, 47 are left"),
        (48, b"", MalformedRequest, "announces 48 bytes, 0 are left"),
        (48, TAIL + b"x", MalformedRequest, "1 bytes are left over"),
        (47, TAIL, InvalidInput, "has 47 bytes"),
        (0, TAIL, InvalidInput, "has 0 bytes"),
        (0, b"", InvalidInput, "has 0 bytes"),
        (96, TAIL * 2, InvalidInput, "has 96 bytes"),
    ],
)
def test_sizes_that_do_not_add_up(size: int, tail: bytes, error: type[PericardError], word: str) -> None:
    body, headers = binary(size, tail)
    with pytest.raises(error, match=word):
        parse(body, headers=headers)


@pytest.mark.parametrize("length", ["-1", "+5", " 5", "5 ", "1e2", "0x10", "", "five", "5, 5", "٥", "9" * 400, "1.0"])
def test_a_length_that_is_none(length: str) -> None:
    body, _ = binary()
    with pytest.raises(MalformedRequest, match="is not a number of bytes"):
        parse(body, headers={LENGTH: length})


def test_a_length_beyond_the_body() -> None:
    body, _ = binary()
    with pytest.raises(MalformedRequest, match=f"is {len(body) + 1}, the body has {len(body)}"):
        parse(body, headers={LENGTH: str(len(body) + 1)})


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_a_length_that_cuts_elsewhere(shift: int) -> None:
    body, headers = binary()
    with pytest.raises(MalformedRequest):
        parse(body, headers={LENGTH: str(int(headers[LENGTH]) + shift)})


def test_a_length_with_json_alone_leaves_nothing_over() -> None:
    body, headers = framed(whole(), b"rest")
    with pytest.raises(MalformedRequest, match="4 bytes are left over"):
        parse(body, headers=headers)


def test_data_and_a_size() -> None:
    body, headers = framed(given(parameters={"binary_data_size": len(TAIL)}), TAIL)
    with pytest.raises(MalformedRequest, match="both data and"):
        parse(body, headers=headers)


def test_every_input_has_as_many_rows() -> None:
    entry = model(tensor("a"), tensor("b"))
    body, headers = framed({"inputs": [binary_input(GOOD, "a"), json_input(strips(1), "b")]}, TAIL)
    with pytest.raises(InvalidInput, match="different numbers of rows"):
        parse(body, entry, headers)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bytes_that_are_no_finite_number(bad: float) -> None:
    for dtype in ("float16", "float32", "float64"):
        sent = strips(3, dtype)
        sent[1, 0, 4] = bad
        body, headers = framed({"inputs": [binary_input(sent)]}, sent.tobytes())
        with pytest.raises(InvalidInput, match="row 1 holds a value that is not a finite"):
            parse(body, model(tensor(dtype=dtype)), headers)


def test_bytes_that_are_no_bool() -> None:
    sent = strips(2, "bool", (3,))
    body, headers = framed({"inputs": [binary_input(sent)]}, b"\0\1\0\1\0\2")
    with pytest.raises(InvalidInput, match="row 1 holds a byte that is neither 0 nor 1"):
        parse(body, model(tensor(dtype="bool", shape=(3,))), headers)


@pytest.mark.parametrize("body", [b"", TAIL, TAIL[:23], TAIL[:25], json.dumps(whole()).encode()])
def test_a_raw_body_of_another_size(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="are 24"):
        parse(body, headers={LENGTH: "0"})


def test_a_raw_body_for_several_inputs() -> None:
    with pytest.raises(MalformedRequest, match="has 2 inputs"):
        parse(TAIL, model(tensor("a"), tensor("b")), {LENGTH: "0"})


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [9, 1 << 40, HUGE])
def test_too_many_rows(rows: int) -> None:
    with pytest.raises(RequestTooLarge, match="holds more than 8 rows"):
        parse(given(shape=[rows, 1, SAMPLES]))
    assert len(parse(given(shape=[8, 1, SAMPLES], data=[0] * 48)).rows) == 8


def repeated(part: str, count: int, value: str = "[%s]") -> str:
    return value % ",".join([part] * count)


FLOODS: dict[str, Callable[[], bytes]] = {
    "a million outputs": lambda: text('"id"', '"outputs": ' + repeated('{"name":"score"}', 10**6) + ', "id"'),
    "a million numbers as outputs": lambda: text('"id"', '"outputs": ' + repeated("1", 10**6) + ', "id"'),
    "a million inputs": lambda: b'{"inputs":' + repeated('{"name":"ecg"}', 10**6).encode() + b"}",
    "200 000 whole inputs": lambda: (
        b'{"inputs":' + repeated('{"name":"","datatype":"","shape":0}', 200_000).encode() + b"}"
    ),
    "a million numbers as inputs": lambda: b'{"inputs":' + repeated("1", 10**6).encode() + b"}",
    "a million axes": lambda: text("[2, 1, 6]", repeated("1", 10**6)),
    "a million digits in a shape": lambda: text("[2, 1, 6]", "[" + "1" * 10**6 + "]"),
    "10 000 digits in a shape": lambda: text("[2, 1, 6]", "[" + "1" * 10**4 + "]"),
    "a million values too many": lambda: text("[0.0, 1.0", repeated("0.5", 10**6)[:-1]),
    "a value of a million digits": lambda: text("[0.0", "[" + "1" * 10**6),
    "a value with a million digits behind the point": lambda: text("[0.0", "[NaN0." + "1" * 10**6),
    "a million parameters": lambda: text('"unit"', repeated('"a":1', 10**6, "%s") + ', "unit"'),
    "a megabyte of id": lambda: text('"x"', '"' + "x" * 10**6 + '"'),
    "a megabyte of spaces": lambda: text('"id"', " " * 10**6 + '"id"'),
    "a megabyte of brackets": lambda: text("[0.0", "[" * 10**6),
    "a megabyte of braces": lambda: text('"mV"', '"' + "{" * 10**6 + '"'),
    "a megabyte of unknown field": lambda: text('"id"', '"ID": "' + "x" * 10**6 + '", "id"'),
    "a megabyte of data given twice": lambda: text('"data": [', '"data": ' + repeated("0", 10**6) + ', "data": ['),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_floods_cost_little(flood: Callable[[], bytes]) -> None:
    body = flood()
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises((MalformedRequest, InvalidInput, RequestTooLarge)) as caught:
            parse(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2
    assert peak < 3 * len(body) + (8 << 20)
    assert len(caught.value.message) < 500


def test_objects_are_counted_before_they_are_made() -> None:
    with pytest.raises(RequestTooLarge, match="more than 4096 JSON objects"):
        parse(FLOODS["200 000 whole inputs"]())
