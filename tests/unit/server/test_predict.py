"""Bodies of ``POST /predict`` for every shape and type that a model may have, without an engine."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from answering import catalog
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pericard.edge import predict
from pericard.edge.catalog import Catalog
from pericard.edge.inference import Row
from pericard.errors import BackendFailed, ContractMismatch, InvalidInput, MalformedRequest, PericardError
from pericard.pipe import Answer, Entry, Kind

INTEGERS = ["uint8", "int8", "int16", "int32", "int64"]


def model(dtype: str = "float32", shape: tuple[int, ...] = (2, 3), **changes: Any) -> dict[str, Any]:
    """A catalog entry, as the engine sends it."""
    spec = {"name": "x", "dtype": dtype, "datatype": "?", "shape": [-1, *shape]}
    return {"inputs": [spec], "outputs": [], "signal": None, **changes}


def cut(inputs: Any, entry: dict[str, Any], limit: int = 8) -> list[Row | PericardError]:
    text = inputs if isinstance(inputs, str) else json.dumps(inputs)
    request = predict.parse(b'{"inputs":%s}' % text.encode())
    return predict.rows(request, "m", entry, limit=limit)


def array_of(row: Row | PericardError) -> Any:
    assert isinstance(row, tuple), row
    (array,) = row
    return array


def arrays_of(found: list[Row | PericardError], dtype: str, shape: tuple[int, ...]) -> Any:
    made = [array_of(row) for row in found]
    assert {(array.dtype, array.shape) for array in made} == {(np.dtype(dtype), shape)}
    return np.array(made)


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

    assert isinstance(bad, InvalidInput)
    assert array_of(good).tolist() == [1, 0]


def test_large_integers_keep_every_digit() -> None:
    value = 2**53 + 1

    (item,) = cut([value, -value], model("int64", (2,)))

    assert array_of(item).tolist() == [value, -value]


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

    assert isinstance(item, InvalidInput)


def test_an_empty_batch_is_malformed() -> None:
    with pytest.raises(MalformedRequest):
        cut("[]", model(shape=(2, 3)))
    (item,) = cut("[[[]]]", model(shape=(2, 3)))
    assert isinstance(item, InvalidInput)


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

    assert array_of(first).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert isinstance(second, InvalidInput)


def test_a_strip_that_is_too_short_is_the_engine_s_to_judge_where_there_is_a_signal() -> None:
    signal = {"sampling_rate": 250.0, "unit": "mV", "leads": [["II"]]}
    for inputs in ([1, 2], [[1, 2]], [[[1, 2]]]):
        (item,) = cut(inputs, model(shape=(1, 3), signal=signal))
        assert array_of(item).tolist() == [[1, 2]]
    for inputs in ([], [[]], [1, 2, 3, 4]):
        try:
            (item,) = cut(inputs, model(shape=(1, 3), signal=signal))
        except MalformedRequest:
            assert inputs == []
        else:
            assert isinstance(item, InvalidInput)
    assert isinstance(cut([1, 2], model(shape=(1, 3)))[0], InvalidInput)


# --- base64 -----------------------------------------------------------------------------------------------------------


def test_text_is_base64_of_whole_strips() -> None:
    batch = np.arange(12, dtype="<f4").reshape(2, 2, 3)
    text = base64.b64encode(batch.tobytes()).decode()

    assert (arrays_of(cut(text_of(text), model()), "float32", (2, 3)) == batch).all()


def text_of(text: str, **fields: Any) -> str:
    return json.dumps(text) + "".join(f', "{name}": {json.dumps(value)}' for name, value in fields.items())


def test_text_of_a_recorder_has_a_gain() -> None:
    text = base64.b64encode(np.array([200, -100, 1], dtype="<i2").tobytes()).decode()

    (item,) = cut(text_of(text, dtype="int16", gain=200), model(shape=(3,)))

    assert array_of(item).tolist() == [1.0, -0.5, np.float32(0.005)]


@pytest.mark.parametrize("text", ["AAAA!", "AAA", "ÄÖÜ=", "AA AA", "AAAA\n", "A" * 5])
def test_text_that_is_not_base64_is_malformed(text: str) -> None:
    with pytest.raises(MalformedRequest, match="base64"):
        cut(text_of(text), model())


@pytest.mark.parametrize("fields", [{"dtype": "int16"}, {"gain": 200}, {"dtype": "float32"}])
def test_type_and_gain_are_for_bytes_alone(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest, match="base64"):
        cut(json.dumps([1, 2, 3]) + text_of("", **fields)[2:], model(shape=(3,)))


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

    found = json.loads(predict.prediction(answer(body), served(outputs)))

    assert (found["status"], found["outputs"]) == ("ok", {"score": 0.5, "map": [[0, 1], [2, 3]], "flag": [True]})
    assert found["receipt"] == {"log": "log-1", "index": 9, "leaf": "6c" * 32, "opening_key": "6b" * 32}
    for wrong in (body[:-1], body + b"\0", b""):
        with pytest.raises(BackendFailed):
            predict.prediction(answer(wrong), served(outputs))


def test_a_strip_that_was_not_interpretable_has_a_receipt_and_no_outputs() -> None:
    outputs = [{"name": "score", "dtype": "float32", "shape": [-1]}]

    flat = answer("flat, wie ein Brett: –".encode(), Kind.NOT_INTERPRETABLE)
    found = json.loads(predict.prediction(flat, served(outputs)))

    assert found["error"] == {"code": "not-interpretable", "detail": "flat, wie ein Brett: –"}
    assert (found["status"], found["receipt"]["index"], "outputs" in found) == ("not_interpretable", 9, False)


def answer(data: bytes, kind: Kind = Kind.OK) -> Answer:
    return Answer({"log": "log-1"}, Entry(1, 9, b"l" * 32, b"k" * 32, kind, data))


def served(outputs: list[dict[str, Any]]) -> Any:
    return Catalog(catalog({"outputs": outputs})).model("m")


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
