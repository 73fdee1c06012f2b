"""The quick way through a body takes less than the careful one, and never anything else: arbitrary bodies tell.

Whatever the quick reader accepts, the careful parser accepts too, with the same fields and the same bits in every row;
a number that is beyond the model's float is the one thing that they refuse in different places.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pericard.edge import predict
from pericard.edge.quick import Reader
from pericard.errors import InvalidInput, MalformedRequest

LIMIT = 3
SHAPES = [(1, 3), (2, 2), (3,), (1,), (2, 1, 2)]
DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint64", "bool"]
SIGNAL = {"sampling_rate": 250.0, "unit": "mV", "leads": [["II"]]}
FIELDS = ["inputs", "model", "version", "sampling_rate", "unit", "leads", "dtype", "gain", "other", "Inputs"]


def entry(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "dtype": dtype, "shape": [-1, *shape]}], "outputs": [], "signal": None}


reader = Reader()


def twice(body: bytes, model: dict[str, Any], limit: int = LIMIT) -> tuple[tuple[Any, ...], list[Any]] | None:
    """The same, and from a reader that knows the text around the numbers by then; both say the same."""
    found = quickly(body, model, limit)
    again = quickly(body, model, limit)
    assert (found is None) == (again is None)
    if found is not None and again is not None:
        assert found[0] == again[0]
        assert [row.tobytes() for row in found[1]] == [row.tobytes() for row in again[1]]
    return found


def quickly(body: bytes, model: dict[str, Any], limit: int = LIMIT) -> tuple[tuple[Any, ...], list[Any]] | None:
    """Fields and rows in the model's type, as they would be written for the engine."""
    quick = reader.read(body)
    if quick is None:
        return None
    rows = quick.rows(model, limit=limit)
    if rows is None:
        return None
    dtype = np.dtype(model["inputs"][0]["dtype"])
    fields = tuple(quick.frame.fields)
    with np.errstate(over="ignore"):
        return fields, [row.astype(dtype) for (row,) in rows]


def agree(body: bytes, model: dict[str, Any], limit: int = LIMIT) -> bool:
    """Hold both ways against each other; whether the quick one took it."""
    found = twice(body, model, limit)
    if found is None:
        return False
    fields, rows = found
    request = predict.parse(body)
    assert (request.model, request.version, request.sampling_rate, request.unit, request.leads) == fields
    careful = predict.rows(request, "m", model, limit=limit)
    assert len(careful) == len(rows)
    for one, row in zip(careful, rows, strict=True):
        if isinstance(one, InvalidInput):
            assert "does not fit" in one.message
            assert not np.isfinite(row).all()  # and then the engine refuses it
        else:
            assert isinstance(one, tuple)
            assert one[0].dtype == row.dtype
            assert one[0].tobytes() == row.tobytes()
    return True


# --- arbitrary JSON ---------------------------------------------------------------------------------------------------

EDGES = [2**7, 2**8, 2**15, 2**16, 2**31, 2**32, 2**53, 2**63, 2**64]
integers = st.integers(-3, 3) | st.sampled_from(
    [sign * (edge + by) for edge in EDGES for by in (-1, 0, 1) for sign in (1, -1)]
)
literals = st.sampled_from(
    ["-0", "-0.0", "1e0", "1E+2", "1.0", "0.1", "3.4028235e38", "3.4028236e38", "1e39", "65504", "65520", "1e400",
     "5e-324", "01", "+1", ".5", "1.", "0x1", "NaN", "Infinity", "-Infinity", "true", "false", "null", '"1"', "{}",
     '{"a":1}', "[]", "[1]", "1e", "--1", "9007199254740993", "0.1000000000000000055511151231257827", "1e-400"]
)  # fmt: skip
numbers = (integers.map(str) | st.floats(allow_nan=False, allow_infinity=False).map(repr)) | literals
texts = st.text(max_size=6) | st.sampled_from(["[", "]", "[[", ",", '"', "\\", "m", "II", "\ud800", "\x00", "ecg"])
strings = texts.map(json.dumps)
arbitrary = st.recursive(
    numbers | strings,
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: "[" + ",".join(parts) + "]"),
    max_leaves=12,
)


@st.composite
def nested(draw: st.DrawFn, shape: tuple[int, ...]) -> str:
    """Lists of about this shape: sometimes one too many, one too few, or something else."""
    if not shape:
        return (
            draw(st.integers(0, 9).map(str) | st.floats(-5, 5).map(repr)) if draw(st.integers(0, 9)) else draw(numbers)
        )
    size = shape[0] if draw(st.integers(0, 9)) else draw(st.integers(0, 4))
    return "[" + ",".join(draw(nested(shape[1:])) for _ in range(size)) + "]"


@st.composite
def bodies(draw: st.DrawFn, shape: tuple[int, ...]) -> bytes:
    forms = [shape, (draw(st.integers(1, 4)), *shape)]
    if shape[0] == 1:
        forms += [shape[1:] or shape, (2, *shape[1:])]
    inputs = draw(st.sampled_from(forms).flatmap(nested) | arbitrary)
    fields = [("inputs", inputs)]
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=5)):
        value = {"inputs": st.just(inputs), "sampling_rate": numbers, "leads": st.lists(strings, max_size=3).map(
            lambda parts: "[" + ",".join(parts) + "]") | arbitrary}.get(name, strings | arbitrary)  # fmt: skip
        fields.append((name, draw(value)))
    spelt = [(json.dumps(name) if draw(st.integers(0, 9)) else escaped(name), value) for name, value in fields]
    space = draw(st.sampled_from(["", " ", "\n\t", "\ufeff", "\x0b"]))
    parts = [f"{name}{space if space.isspace() else ''}:{value}" for name, value in draw(st.permutations(spelt))]
    text = space + "{" + ",".join(parts) + "}" + draw(st.sampled_from(["", " ", "x", "{}", "\x00"]))
    return text.encode("utf-8", "surrogatepass")


def escaped(name: str) -> str:
    return f'"\\u{ord(name[0]):04x}{name[1:]}"'


@st.composite
def cases(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    shape = draw(st.sampled_from(SHAPES))
    return draw(bodies(shape)), entry(draw(st.sampled_from(DTYPES)), shape)


@settings(max_examples=600, deadline=None)
@given(case=cases())
def test_the_quick_way_takes_nothing_that_the_careful_one_would_not(case: tuple[bytes, dict[str, Any]]) -> None:
    agree(*case)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
@example(b"")
@example(b'\xef\xbb\xbf{"inputs":[1]}')
@example(b'{"inputs":[1]}' + bytes(64))
def test_arbitrary_bytes_too(data: bytes) -> None:
    agree(data, entry("float32", (1,)))


@settings(max_examples=300, deadline=None)
@given(values=st.lists(st.floats(width=64, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_every_float_is_the_same_to_the_last_bit(values: list[float]) -> None:
    for dtype in ("float64", "float32", "float16"):
        assert agree(json.dumps({"inputs": values}).encode(), entry(dtype, (3,)))


# --- what it is for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "bool"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_body_as_it_should_be_is_taken(dtype: str, shape: tuple[int, ...]) -> None:
    batch = np.arange(2 * int(np.prod(shape))).reshape(2, *shape)
    for inputs in (batch, batch[0]):
        body = {
            "model": "m",
            "inputs": inputs.tolist(),
            "sampling_rate": 250,
            "unit": "mV",
            "leads": ["II", "V[1]"][:1],
        }
        for text in (json.dumps(body), json.dumps(body, indent=1)):
            assert agree(text.encode(), entry(dtype, shape))


@pytest.mark.parametrize(
    "inputs", [[1, 2, 3], [[1, 2, 3]], [[[1, 2, 3]]], [[1, 2, 3], [4, 5, 6]], [[[1, 2, 3]], [[4, 5, 6]]]]
)
def test_the_list_around_a_single_channel_may_be_left_out(inputs: Any) -> None:
    assert agree(json.dumps({"inputs": inputs}).encode(), entry("float32", (1, 3)))


LEFT = {
    "twice": b'{"inputs":[1,2,3],"inputs":[1,2,3]}',
    "twice, spelt otherwise": b'{"inputs":[1,2,3],"\\u0069nputs":[1,2,3]}',
    "a name twice": b'{"inputs":[1,2,3],"model":"m","model":"n"}',
    "a name twice, once as nothing": b'{"model":null,"inputs":[1,2,3],"\\u006dodel":"n"}',
    "an unknown field": b'{"inputs":[1,2,3],"x":1}',
    "no inputs": b'{"model":"m"}',
    "a byte order mark": b'\xef\xbb\xbf{"inputs":[1,2,3]}',
    "not an object": b"[1,2,3]",
    "text": b'{"inputs":"AAAA"}',
    "a type": b'{"inputs":[1,2,3],"dtype":"float32"}',
    "a bracket in a text": b'{"inputs":[1,2,3],"model":"["}',
    "a number as a name": b'{"inputs":[1,2,3],"model":1}',
    "true as a rate": b'{"inputs":[1,2,3],"sampling_rate":true}',
    "a long name": b'{"inputs":[1,2,3],"model":"' + b"m" * 257 + b'"}',
    "a long name of a lead": b'{"inputs":[1,2,3],"leads":["' + b"I" * 257 + b'"]}',
    "many leads": b'{"inputs":[1,2,3],"leads":["II"' + b',"II"' * 64 + b"]}",
    "text as leads": b'{"inputs":[1,2,3],"leads":"II"}',
    "lists as leads": b'{"inputs":[1,2,3],"leads":[["II"]]}',
    "too short": b'{"inputs":[1,2]}',
    "too long": b'{"inputs":[1,2,3,4]}',
    "too many": b'{"inputs":[[1,2,3],[1,2,3],[1,2,3],[1,2,3]]}',
    "none": b'{"inputs":[]}',
    "lists of different length": b'{"inputs":[[1,2,3],[1,2,3,4]]}',
    "six values in another form": b'{"inputs":[[1,2],[3,4],[5,6]]}',
    "a list for a number": b'{"inputs":[1,[2],3]}',
    "true": b'{"inputs":[1,true,3]}',
    "null": b'{"inputs":[1,null,3]}',
    "a word": b'{"inputs":[1,NaN,3]}',
    "behind it": b'{"inputs":[1,2,3]}x',
    "not utf-8": b'{"inputs":[1,2,3],"model":"\xff"}',
}


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT.keys())
def test_whatever_is_unusual_is_left_to_the_careful_way(body: bytes) -> None:
    assert quickly(body, entry("float32", (3,))) is None


def test_a_boolean_model_is_left_to_the_careful_way() -> None:
    assert quickly(b'{"inputs":[1,0,1]}', entry("bool", (3,))) is None


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_at_the_limits_of_their_type(dtype: str) -> None:
    info = np.iinfo(dtype)
    for value in (info.min, info.max):
        assert agree(json.dumps({"inputs": [int(value)]}).encode(), entry(dtype, (1,)))
    for value in (int(info.min) - 1, int(info.max) + 1):
        assert quickly(json.dumps({"inputs": [value]}).encode(), entry(dtype, (1,))) is None
    assert quickly(b'{"inputs":[1.0]}', entry(dtype, (1,))) is None


@pytest.mark.parametrize("part", [b"0,", b"[],", b"[0,0,0],", b"[[[0]]],"])
def test_a_flood_of_values_or_lists_is_neither_walked_through_nor_made_into_an_array(part: bytes) -> None:
    body = b'{"inputs":[' + part * (4_000_000 // len(part)) + b"0]}"
    own = Reader()
    quick = own.read(body)
    if quick is not None:
        started = time.process_time()
        assert quick.rows(entry("float32", (3,)), limit=LIMIT) is None
        assert time.process_time() - started < 0.1
    with pytest.raises(MalformedRequest):
        predict.rows(predict.parse(body), "m", entry("float32", (3,)), limit=LIMIT)


def test_deep_nesting_costs_nothing() -> None:
    for depth in (100, 100_000):
        body = b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"
        assert quickly(body, entry("float32", (3,))) is None


def test_who_still_holds_the_last_body_costs_the_next_nothing() -> None:
    body = b'{"inputs":[1,2,3]}'
    own = Reader()
    held = own.read(body)
    other = b'{"inputs" :[1,2,3]}'
    assert own.read(other) is None  # goes the careful way
    assert own.read(other) is not None
    assert held is not None
    rows = held.rows(entry("float32", (3,)), limit=1)
    assert rows is not None
    assert rows[0][0].tolist() == [1, 2, 3]
