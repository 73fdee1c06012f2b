"""Tensor specifications: names, types and shapes."""

from __future__ import annotations

import numpy as np
import pytest

from pericard.tensors import DTYPES, TensorSpec


def test_a_specification_knows_its_row() -> None:
    spec = TensorSpec("ecg", "float32", (-1, 12, 5000))

    assert spec.row_shape == (12, 5000)
    assert spec.row_bytes == 12 * 5000 * 4
    assert spec.datatype == "FP32"
    assert TensorSpec("score", "bfloat16", (-1,)).row_bytes == 2


@pytest.mark.parametrize("dtype", sorted(DTYPES.keys() - {"bfloat16"}))
def test_sizes_are_those_of_numpy(dtype: str) -> None:
    assert DTYPES[dtype][0] == np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "reason"),
    [
        ("", "float32", (-1,), "is not allowed"),
        ("ECG", "float32", (-1,), "is not allowed"),
        ("ecg\n", "float32", (-1,), "is not allowed"),
        ("../ecg", "float32", (-1,), "is not allowed"),
        ("e" * 65, "float32", (-1,), "is not allowed"),
        ("ecg", "complex64", (-1,), "is not known"),
        ("ecg", "float32", (), "1 to 8 axes"),
        ("ecg", "float32", (1, 5), "begin with -1"),
        ("ecg", "float32", (-1,) * 9, "1 to 8 axes"),
        ("ecg", "float32", (-1, 0), "positive and bounded"),
        ("ecg", "float32", (-1, -1), "positive and bounded"),
        ("ecg", "float32", (-1, 1 << 21, 1 << 20), "positive and bounded"),
    ],
)
def test_a_bad_specification_is_refused(name: str, dtype: str, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TensorSpec(name, dtype, shape)
