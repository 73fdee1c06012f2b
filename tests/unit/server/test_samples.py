"""Samples as bytes: what headers say of them, how they are cut, and every refusal."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pericard.edge import samples
from pericard.errors import InvalidInput, MalformedRequest

FLOATS = {"name": "x", "dtype": "float32", "shape": [-1, 2, 3]}


def spec(dtype: str = "float32", *shape: int) -> dict[str, Any]:
    return {"name": "x", "dtype": dtype, "shape": [-1, *(shape or (2, 3))]}


def cut(data: bytes, dtype: str | None = None, gain: float | None = None, **changes: Any) -> Any:
    found = samples.rows(data, dtype, gain, changes.pop("spec", FLOATS), limit=changes.pop("limit", 4))
    return np.array([row for (row,) in found])


# --- headers ----------------------------------------------------------------------------------------------------------


def test_headers_say_what_json_fields_say() -> None:
    found = samples.described(
        {
            "x-pericard-model": "ecg-anomaly",
            "x-pericard-version": "3",
            "x-pericard-sampling-rate": "250",
            "x-pericard-unit": "mV",
            "x-pericard-leads": "I, II,III",
            "x-pericard-dtype": "int16",
            "x-pericard-gain": "200.5",
            "x-request-id": "r-1",
            "content-type": "application/octet-stream",
        }
    )

    assert found == samples.Sent("ecg-anomaly", "3", 250.0, "mV", ("I", "II", "III"), "int16", 200.5)


def test_what_is_not_said_is_nothing() -> None:
    assert samples.described({"content-type": "application/octet-stream"}) == samples.Sent()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-pericard-invented", "1"),
        ("x-pericard-", "1"),
        ("x-pericard-sampling_rate", "250"),
        ("x-pericard-unit", "m" * 257),
        ("x-pericard-sampling-rate", ""),
        ("x-pericard-sampling-rate", "250 Hz"),
        ("x-pericard-sampling-rate", "nan"),
        ("x-pericard-sampling-rate", "inf"),
        ("x-pericard-sampling-rate", "250, 250"),  # sent twice
        ("x-pericard-gain", "1e999"),
        ("x-pericard-gain", "2_00"),
        ("x-pericard-gain", "0x10"),
    ],
)
def test_what_is_not_understood_is_malformed(name: str, value: str) -> None:
    with pytest.raises(MalformedRequest) as error:
        samples.described({name: value})
    assert len(error.value.message) < 200


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "uint8", "int64", "bool"])
@pytest.mark.parametrize("named", [True, False])
def test_bytes_of_the_model_s_own_type_are_taken_as_they_are(dtype: str, named: bool) -> None:
    batch = (np.arange(18).reshape(3, 2, 3) % 2).astype(dtype)

    found = cut(batch.tobytes(), dtype if named else None, spec=spec(dtype))

    assert (found.dtype, found.shape, found.tobytes()) == (np.dtype(dtype), (3, 2, 3), batch.tobytes())


@given(data=st.binary(min_size=24, max_size=24))
def test_no_bit_of_a_float_is_changed(data: bytes) -> None:
    assert cut(data).tobytes() == data  # what is not finite, the engine refuses


@given(values=st.lists(st.integers(-32768, 32767), min_size=6, max_size=6), gain=st.floats(1e-3, 1e5))
def test_a_recorder_s_numbers_are_divided_by_their_gain(values: list[int], gain: float) -> None:
    found = cut(np.array(values, "<i2").tobytes(), "int16", gain)

    assert found.dtype == np.float32
    assert found.ravel().tolist() == [float(np.float32(value / gain)) for value in values]


@pytest.mark.parametrize("gain", [1e-310, 1e-40])
def test_a_gain_that_leads_beyond_every_number_gives_infinities_for_the_engine_to_refuse(gain: float) -> None:
    found = cut(np.array([1, -1, 0, 5, 6, 7], "<i2").tobytes(), "int16", gain)

    assert np.isinf(found.ravel()[[0, 1]]).all()
    assert found.ravel()[2] == 0


@pytest.mark.parametrize("gain", [None, 0.0, -200.0, float("nan")])
def test_a_recorder_s_numbers_without_a_gain_are_refused(gain: float | None) -> None:
    with pytest.raises(InvalidInput, match="gain"):
        cut(bytes(12), "int16", gain)


@pytest.mark.parametrize(
    ("dtype", "taken"), [("float32", "float32"), (None, "float32"), ("int16", "int16"), (None, "int16")]
)
def test_a_gain_where_none_belongs_is_refused(dtype: str | None, taken: str) -> None:
    with pytest.raises(InvalidInput, match="gain"):
        cut(bytes(24), dtype, 200.0, spec=spec(taken))


@pytest.mark.parametrize(
    ("dtype", "taken"),
    [
        ("float32", "int16"),
        ("float32", "float64"),
        ("int16", "int32"),
        ("int16", "bool"),
        ("float64", "float32"),
        ("int8", "float32"),
        (">f4", "float32"),
        ("O", "float32"),
        ("", "float64"),
        ("x" * 500, "float32"),
    ],
)
def test_another_type_is_refused_and_not_bent(dtype: str, taken: str) -> None:
    with pytest.raises(InvalidInput) as error:
        cut(bytes(48), dtype, None, spec=spec(taken))
    assert len(error.value.message) < 200


@pytest.mark.parametrize("size", [0, 1, 23, 25, 47, 24 * 5, 24 * 1000])
def test_what_is_not_one_to_four_whole_strips_is_refused(size: int) -> None:
    with pytest.raises(InvalidInput, match=f"are {size} bytes"):
        cut(bytes(size))
    assert len(cut(bytes(24))) == 1
    assert len(cut(bytes(96))) == 4


# --- base64 -----------------------------------------------------------------------------------------------------------


@given(data=st.binary(max_size=100))
def test_base64_is_its_bytes(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert samples.from_base64(json.dumps(text).encode()) == data


@pytest.mark.parametrize(
    "raw", [b'"AAA"', b'"AAAA\\u0000"', b'"AA=A"', b'"A A="', b'"\xff"', b'"', b"[]", b'"-_-_"', b'"\\ud800"']
)
def test_what_is_not_base64_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedRequest):
        samples.from_base64(raw)
