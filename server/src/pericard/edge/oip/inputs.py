"""One input tensor: its type, its shape, and its values, from JSON or from bytes.

The shape is compared with the model's, not multiplied out, so no size can overflow; the number of values is known and
compared before any of them is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pericard.edge.oip import json_text
from pericard.errors import InvalidInput, MalformedRequest, RequestTooLarge

Spec = Mapping[str, Any]

_OPENING = re.compile(rb"[\s\[]*")
_SHAPE_SHOWN = 80


def rows(datatype: str, shape: msgspec.Raw, spec: Spec, limit: int) -> int:
    """Hold a tensor's type and shape against the model's; how many rows it has.

    Raises:
        MalformedRequest: the shape is no list of integers, or the type is text.
        InvalidInput: they are not the model's.
        RequestTooLarge: there are more than ``limit`` rows.
    """
    what = f"input {spec['name']}"
    if datatype == "BYTES":
        raise MalformedRequest(f"{what}: is BYTES, and no model here takes strings", hint=f"send {spec['datatype']}")
    if datatype != spec["datatype"]:
        raise mismatch(f"{what}: is {datatype[:16]!r}, the model takes {spec['datatype']}")
    sizes = json_text.decode(shape, list[int], f"{what}: shape")
    if sizes[1:] != list(spec["shape"][1:]) or not sizes or sizes[0] < 1:
        raise mismatch(
            f"{what}: has shape {str(sizes[:16])[:_SHAPE_SHOWN]}, the model takes {_wanted(spec)}",
            hint="the first number counts the rows",
        )
    if sizes[0] > limit:
        raise RequestTooLarge(f"{what}: holds more than {limit} rows")
    return sizes[0]


def from_bytes(data: memoryview, spec: Spec, count: int) -> NDArray[np.generic]:
    """Rows from their bytes, as a view on them.

    Raises:
        InvalidInput: they are too few or too many, or hold a value that the model does not take.
    """
    kind = _kind(spec)
    shape = (count, *spec["shape"][1:])
    size = math.prod(shape) * kind.itemsize
    if len(data) != size:
        raise mismatch(f"input {spec['name']}: has {len(data)} bytes, {list(shape)} of {spec['datatype']} are {size}")
    if kind.kind != "b":
        array = np.frombuffer(data, kind).reshape(shape)
        _check_finite(array, spec)
        return array
    flags = np.frombuffer(data, np.uint8).reshape(shape)
    _check(flags <= 1, spec, "a byte that is neither 0 nor 1")
    return flags.view(np.bool_)


def from_json(text: bytes, spec: Spec, count: int) -> NDArray[np.generic]:
    """Rows from JSON: one flat list in row-major order, or lists within lists as the shape says.

    Raises:
        MalformedRequest: the type has no JSON form, or the lists are not nested as the shape says.
        InvalidInput: the values are too few or too many, or not of the type.
    """
    name, kind = spec["name"], _kind(spec)
    if kind == np.float16:
        raise MalformedRequest(
            f"input {name}: is {spec['datatype']}, which has no JSON form", hint="send it with binary_data_size"
        )
    shape = (count, *spec["shape"][1:])
    match = _OPENING.match(text)
    depth = match[0].count(b"[") if match else 0
    if depth not in {1, len(shape)}:
        raise MalformedRequest(f"input {name}: its data is a list nested {depth} deep, not 1 or {len(shape)}")
    commas = text.count(b",")  # regular lists have one less than values, however they are nested
    if commas != math.prod(shape) - 1:
        raise mismatch(f"input {name}: holds {commas + 1} values, shape {list(shape)} has {math.prod(shape)}")
    try:
        array = _numbers(text, kind, depth)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise mismatch(f"input {name}: its data is not a regular list of {spec['datatype']}") from error
    if array.shape not in {shape, (math.prod(shape),)}:
        raise mismatch(f"input {name}: its data is not nested as its shape says")
    array = array.reshape(shape)
    _check_finite(array, spec)
    return array


def mismatch(message: str, *, hint: str | None = None) -> InvalidInput:
    """The error of a tensor that does not fit."""
    return InvalidInput(message, hint=hint)


def _kind(spec: Spec) -> np.dtype[Any]:
    if spec["dtype"] == "bfloat16":  # numpy has none; such models are refused before they are served
        raise mismatch(f"input {spec['name']}: BF16 is not taken")
    return np.dtype(spec["dtype"]).newbyteorder("<")


def _wanted(spec: Spec) -> str:
    return f"[{', '.join(map(str, ('rows', *spec['shape'][1:])))}]"


def _numbers(text: bytes, kind: np.dtype[Any], depth: int) -> NDArray[np.generic]:
    """The numbers in a type; what has no exact place in an integer type is refused, not rounded."""
    if kind.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit becomes an infinity, which is refused
            return np.array(msgspec.json.decode(text, type=_nested(depth, float)), dtype=kind)
    if kind.kind == "b":
        flags = np.array(msgspec.json.decode(text, type=_nested(depth, bool | int)), dtype=np.int64)
        if ((flags != 0) & (flags != 1)).any():
            raise ValueError("neither true nor false")
        return flags.astype(np.bool_)
    return np.array(msgspec.json.decode(text, type=_nested(depth, int)), dtype=kind)  # raises for what is too large


@cache
def _nested(depth: int, of: Any) -> Any:  # noqa: ANN401  (a type, as msgspec takes it)
    """Lists of lists of a number; ``depth`` is at most a shape's length."""
    return list[_nested(depth - 1, of)] if depth else of  # type: ignore[misc]  # made when it runs


def _check_finite(array: NDArray[np.generic], spec: Spec) -> None:
    if array.dtype.kind == "f":
        _check(np.isfinite(array), spec, f"a value that is not a finite {spec['datatype']} number")


def _check(good: NDArray[np.bool_], spec: Spec, what: str) -> None:
    if not good.all():
        row = int(np.argmin(good.reshape(good.shape[0], -1).all(axis=1)))
        raise mismatch(f"input {spec['name']}: row {row} holds {what}")
