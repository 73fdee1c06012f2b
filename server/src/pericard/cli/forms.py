"""Numbers as the bytes that they may have been: what was sent, and what was answered, without the model at hand.

Nothing here is believed. JSON does not say whether a number was a 32-bit float or an integer, and a record commits to a
tensor's bytes: so every type that could hold these numbers is offered, and the record's commitment decides.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pericard.errors import InvalidInput, ReceiptInvalid

_TYPES = ("<f4", "<f8", "<i8", "<i4")
_MOST_OUTPUTS = 6
_LARGEST = 256 << 20  # bytes of a file


def of_answer(outputs: Mapping[str, Any]) -> Iterator[bytes]:
    """All outputs of a prediction, one after the other as the answer has them.

    Raises:
        ReceiptInvalid: they are not numbers.
    """
    if not 0 < len(outputs) <= _MOST_OUTPUTS:
        raise ReceiptInvalid(
            f"saved answer: has {len(outputs)} outputs, at most {_MOST_OUTPUTS} can be held against it"
        )
    try:
        arrays = [_numbers(value) for value in outputs.values()]
    except (ValueError, TypeError) as error:
        raise ReceiptInvalid("saved answer: an output is not numbers") from error
    for parts in itertools.product(*(list(_forms(array)) for array in arrays)):
        yield b"".join(parts)


def of_strip(path: Path, item: int, count: int) -> Iterator[bytes]:
    """One strip of a file that was sent: a body of ``/predict`` or its inputs, an ``.npy``, or the bytes themselves.

    Args:
        path: the file.
        item: which strip, from 0.
        count: how many it holds.

    Raises:
        InvalidInput: it cannot be read as so many strips.
    """
    try:
        data = _read(path)
        if path.suffix == ".json":
            yield from _of_json(data, item, count)
        elif path.suffix == ".npy":
            yield from _forms(_strip(np.load(io.BytesIO(data), allow_pickle=False), item, count))
        else:
            size, rest = divmod(len(data), count)
            if rest or not size:
                raise ValueError("size")
            yield data[item * size : (item + 1) * size]
    except (OSError, EOFError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else f"is not {count} strips"
        raise InvalidInput(
            f"{path}: {reason}", hint="give what was sent: .json, .npy, or the samples' bytes"
        ) from error


def _of_json(data: bytes, item: int, count: int) -> Iterator[bytes]:
    value = json.loads(data)
    inputs, request = (value.get("inputs"), value) if isinstance(value, dict) else (value, {})
    if not isinstance(inputs, str):
        yield from _forms(_strip(_numbers(inputs), item, count))
        return
    samples = base64.b64decode(inputs, validate=True)
    gain = request.get("gain")
    if gain is None:
        yield from _forms(_strip(np.frombuffer(samples, np.uint8), item, count))
        return
    for kind in ("<f4", "<f8"):  # as the edge reads integers of a recorder
        array = np.divide(np.frombuffer(samples, "<i2"), float(gain), dtype=np.float64).astype(kind)
        yield _strip(array, item, count).tobytes()


def _strip(array: NDArray[Any], item: int, count: int) -> NDArray[Any]:
    size, rest = divmod(array.size, count)
    if rest or not size:
        raise ValueError("size")
    chosen: NDArray[Any] = array.reshape(count, size)[item]
    return chosen


def _numbers(value: Any) -> NDArray[Any]:  # noqa: ANN401  (a number, or lists of them)
    array = np.array(value)
    if array.dtype.kind not in "if" or not array.size:
        raise ValueError("numbers")
    return array


def _forms(array: NDArray[Any]) -> Iterator[bytes]:
    if array.dtype == np.uint8:
        yield array.tobytes()
        return
    for kind in _TYPES:
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit commits to nothing that was recorded
            yield array.astype(kind).tobytes()


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError("size")
    return data
