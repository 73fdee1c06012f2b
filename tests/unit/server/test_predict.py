"""Bodies of ``POST /predict`` for every shape and type that a model may have, without an engine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pericard.edge import predict
from pericard.edge.predict import Item
from pericard.errors import ContractMismatch, InvalidInput, MalformedRequest
from pericard.pipe import Frame, FrameType

INTEGERS = ["uint8", "int8", "int16", "int32", "int64"]


def model(dtype: str = "float32", shape: tuple[int, ...] = (2, 3), **changes: Any) -> dict[str, Any]:
    """A catalog entry, as the engine sends it."""
    spec = {"name": "x", "dtype": dtype, "datatype": "?", "shape": [-1, *shape]}
    return {"inputs": [spec], "outputs": [], "signal": None, **changes}


def cut(inputs: Any, entry: dict[str, Any], limit: int = 8) -> list[Item]:
    text = inputs if isinstance(inputs, str) else json.dumps(inputs)
    request = predict.parse(b'{"inputs":%s}' % text.encode())
    return predict.items(request, "m", entry, limit=limit)


def arrays_of(found: list[Item], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    assert all(item.error is None for item in found), [item.error for item in found]
    return np.array([np.frombuffer(item.data, dtype=dtype).reshape(shape) for item in found])


@st.composite
def batches(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    dtype = draw(st.sampled_from([*INTEGERS, "float32", "float64", "bool"]))
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=5, max_side=3))
    count = draw(st.integers(1, 4))
    kind = np.dtype(dtype)
    elements = st.floats(-1e6, 1e6, width=32) if kind.kind == "f" else None
    return dtype, draw(arrays.arrays(kind, (count, *shape), elements=elements))


@given(made=batches())
def test_what_is_sent_is_what_the_engine_gets(made: tuple[str, np.ndarray]) -> None:
    dtype, batch = made
    numbers = batch.astype(int) if dtype == "bool" else batch

    found = cut(numbers.tolist(), model(dtype, batch.shape[1:]))

    assert (arrays_of(found, dtype, batch.shape[1:]) == batch).all()


@given(made=batches())
def test_one_item_needs_no_list_around_it(made: tuple[str, np.ndarray]) -> None:
    dtype, batch = made
    numbers = batch.astype(int) if dtype == "bool" else batch

    found = cut(numbers[0].tolist(), model(dtype, batch.shape[1:]))

    assert (arrays_of(found, dtype, batch.shape[1:]) == batch[:1]).all()


@pytest.mark.parametrize("inputs", [[1, 2, 3], [[1, 2, 3]], [[[1, 2, 3]]]])
def test_a_single_channel_may_be_left_out(inputs: Any) -> None:
    found = cut(inputs, model(shape=(1, 3)))

    assert arrays_of(found, "float32", (1, 3)).tolist() == [[[1, 2, 3]]]


def test_several_items_of_a_single_channel() -> None:
    for inputs in ([[1, 2, 3], [4, 5, 6]], [[[1, 2, 3]], [[4, 5, 6]]]):
        assert arrays_of(cut(inputs, model(shape=(1, 3))), "float32", (1, 3)).tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", "256"),
        ("uint8", "-1"),
        ("int8", "128"),
        ("int16", "-32769"),
        ("int32", "2147483648"),
        ("int64", "9223372036854775808"),
        ("int64", "1e3"),
        ("int32", "1.5"),
        ("int32", "1.0"),
        ("int32", "true"),
        ("int32", '"1"'),
        ("int32", "null"),
        ("bool", "2"),
        ("bool", "-1"),
        ("bool", "0.5"),
        ("bool", "true"),
        ("float32", "1e39"),
        ("float32", "-1e39"),
        ("float16", "70000"),
        ("float64", "1e400"),
        ("float32", "true"),
    ],
)
def test_a_number_that_does_not_fit_is_refused_and_never_bent(dtype: str, value: str) -> None:
    bad, good = cut(f"[[{value}, 0], [1, 0]]", model(dtype, (2,)))

    assert isinstance(bad.error, InvalidInput)
    assert bad.data == b""
    assert good.error is None


def test_large_integers_keep_every_digit() -> None:
    value = 2**53 + 1

    (item,) = cut([value, -value], model("int64", (2,)))

    assert np.frombuffer(item.data, dtype="int64").tolist() == [value, -value]


@pytest.mark.parametrize("inputs", ["7", '"x"', "null", "{}", "true", "[[[[[1]]]]]", "[[[[]]]]"])
def test_what_is_nested_otherwise_is_malformed(inputs: str) -> None:
    with pytest.raises(MalformedRequest):
        cut(inputs, model(shape=(2, 3)))


@pytest.mark.parametrize(
    "inputs", ["[]", "[[1, 2, 3]]", "[[1], [2]]", "[[1,2,3],[4,5]]", "[[1,2,3],4]", "[[1,2,3],[[4,5,6]]]"]
)
def test_one_item_of_another_shape_is_unfit(inputs: str) -> None:
    if inputs == "[]":
        with pytest.raises(MalformedRequest):
            cut(inputs, model(shape=(2, 3)))
        return
    (item,) = cut(inputs, model(shape=(2, 3)))

    assert isinstance(item.error, InvalidInput)


def test_an_empty_batch_is_malformed() -> None:
    with pytest.raises(MalformedRequest):
        cut("[]", model(shape=(2, 3)))
    (item,) = cut("[[[]]]", model(shape=(2, 3)))
    assert item.error is not None


def test_the_number_of_items_is_limited() -> None:
    assert len(cut([[1]] * 8, model(shape=(1,)))) == 8
    for inputs in ([[1]] * 9, [[]] * 100_000, [0] * 100_000):
        with pytest.raises(MalformedRequest):
            cut(inputs, model(shape=(1,)))


def test_a_model_with_several_inputs_is_not_for_this_route() -> None:
    entry = model()
    entry["inputs"] *= 2

    with pytest.raises(MalformedRequest, match="several inputs"):
        cut([[1]], entry)


def test_a_deeply_nested_item_costs_nothing() -> None:
    deep = "[" * 500 + "]" * 500

    first, second = cut(f"[[[1,2,3],[4,5,6]],[{deep},{deep}]]", model(shape=(2, 3)))

    assert first.error is None
    assert isinstance(second.error, InvalidInput)


# --- the contract -----------------------------------------------------------------------------------------------------

SIGNAL = {"sampling_rate": 250.0, "unit": "mV", "leads": [["I"], ["II", "MLII"]]}


def declared(**fields: Any) -> predict.PredictRequest:
    given_fields = {"sampling_rate": 250, "unit": "mV", "leads": ["I", "II"], **fields}
    left = {name: value for name, value in given_fields.items() if value is not None}
    return predict.parse(json.dumps({"inputs": [], **left}).encode())


def test_what_is_declared_as_it_must_be_passes() -> None:
    for leads in (["I", "II"], ["I", "MLII"]):
        predict.check_contract(declared(leads=leads), "m", model(signal=SIGNAL))


@pytest.mark.parametrize(
    "fields",
    [
        {"leads": ["II", "I"]},
        {"leads": ["I"]},
        {"leads": ["I", "II", "III"]},
        {"sampling_rate": 250.5},
        {"unit": "uV"},
        {"unit": None},
    ],
    ids=str,
)
def test_anything_else_is_a_mismatch_that_says_what_is_needed(fields: dict[str, Any]) -> None:
    with pytest.raises(ContractMismatch) as error:
        predict.check_contract(declared(**fields), "m", model(signal=SIGNAL))

    assert error.value.hint


def test_a_model_without_a_signal_takes_no_declaration() -> None:
    bare = predict.parse(b'{"inputs": []}')
    predict.check_contract(bare, "m", model())
    with pytest.raises(ContractMismatch, match="takes no sampling rate"):
        predict.check_contract(declared(), "m", model())


# --- answers ----------------------------------------------------------------------------------------------------------


def test_outputs_are_cut_in_order_and_shape() -> None:
    outputs = [
        {"name": "score", "dtype": "float32", "shape": [-1]},
        {"name": "map", "dtype": "int16", "shape": [-1, 2, 2]},
        {"name": "flag", "dtype": "bool", "shape": [-1, 1]},
    ]
    body = np.float32(0.5).tobytes() + np.arange(4, dtype="int16").tobytes() + b"\x01"
    frame = Frame(FrameType.ANSWER, 1, {"receipt": {"index": 1}}, body)

    found = predict.prediction(frame, model(outputs=outputs))

    assert found["outputs"] == {"score": 0.5, "map": [[0, 1], [2, 3]], "flag": [True]}
    assert found["receipt"] == {"index": 1}


@pytest.mark.parametrize("text", [b'{"inputs":[1],"inputs":[1]}', b'{"inputs":[[1,2]],"unit":"a","unit":"b"}'])
def test_a_field_that_stands_twice_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedRequest, match="twice"):
        predict.parse(text)


@pytest.mark.parametrize("model_name", ["[[1, 2]]", "[[1, 2], [3", "x" * 100])
def test_a_field_that_holds_what_inputs_hold_is_no_repetition(model_name: str) -> None:
    inputs = [[1, 2], [3, 4]] * 20
    text = json.dumps({"model": json.dumps(inputs)[:40] + model_name, "inputs": inputs})

    assert predict.parse(text.encode()).model == json.dumps(inputs)[:40] + model_name
    with pytest.raises(MalformedRequest, match="twice"):
        predict.parse(text[:-1].encode() + b', "model": "y"}')
