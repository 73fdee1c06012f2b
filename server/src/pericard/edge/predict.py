"""``POST /predict``: the body, the contract, and the answer's form.

What the manifest declares is mandatory: a strip of another sampling rate gets a wrong score that looks right, so a
declaration that is missing or different is refused with what to do, never guessed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pericard.edge.problems import said
from pericard.errors import ContractMismatch, InvalidInput, MalformedRequest, PericardError
from pericard.pipe import Frame

Model = dict[str, Any]

_OPENING = re.compile(rb"[\s\[]*")
_MOST_FIELDS = 64 << 10


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /predict``."""

    inputs: msgspec.Raw
    model: str | None = None
    sampling_rate: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None


@dataclass(slots=True)
class Item:
    """One strip: its bytes for the engine, or why it has none."""

    data: bytes = b""
    error: PericardError | None = None


def parse(body: bytes) -> PredictRequest:
    """Read a body.

    Raises:
        MalformedRequest: it is not the JSON that the interface describes.
    """
    try:
        request = msgspec.json.decode(body, type=PredictRequest)
        _refuse_repetition(body, bytes(request.inputs))
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise MalformedRequest(f"body: {_plain(error)}", hint="see docs/spec/http-api.md for the fields") from error
    return request


def _refuse_repetition(body: bytes, inputs: bytes) -> None:
    """A field that stands twice means one thing to us and another to whoever reads the first one; msgspec takes both.

    ``inputs`` is taken out first, so that the slower parser sees only the few bytes that are left.
    """
    rest = body
    if inputs.startswith(b"["):
        place = body.find(inputs[:32])  # a long needle is searched for slowly
        if not body.startswith(inputs, place):
            place = body.find(inputs)
        rest = body[:place] + b"null" + body[place + len(inputs) :]
    if len(rest) > _MOST_FIELDS:
        raise ValueError(f"its fields beside inputs are larger than {_MOST_FIELDS} bytes")
    json.loads(rest, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a field stands in it twice")


def check_contract(request: PredictRequest, name: str, model: Model) -> None:
    """Hold what the caller declares against what the manifest declares.

    Raises:
        ContractMismatch: something is missing or different.
    """
    signal = model["signal"]
    given = (request.sampling_rate, request.unit, request.leads)
    if signal is None:
        if given != (None, None, None):
            raise ContractMismatch(f"model {name}: takes no sampling rate, unit or leads", hint="leave them out")
        return
    rate, unit, leads = signal["sampling_rate"], signal["unit"], signal["leads"]
    if request.sampling_rate is None or request.unit is None or request.leads is None:
        raise ContractMismatch(
            f"model {name}: needs sampling_rate, unit and leads",
            hint=f"this model takes {rate:g} Hz, {unit}, leads {_leads(leads)}",
        )
    if request.sampling_rate != rate:
        raise ContractMismatch(
            f"sampling_rate: got {request.sampling_rate:g} Hz, model {name} needs {rate:g} Hz",
            hint=f"resample to {rate:g} Hz, or send the file with pericard-client, which does",
        )
    if request.unit != unit:
        raise ContractMismatch(
            f"unit: got {request.unit[:16]!r}, model {name} needs {unit!r}", hint=f"convert the samples to {unit}"
        )
    if len(request.leads) != len(leads) or any(
        given not in accepted for given, accepted in zip(request.leads, leads, strict=True)
    ):
        raise ContractMismatch(
            f"leads: got {', '.join(lead[:16] for lead in request.leads[:16]) or 'none'}, model {name} needs "
            f"{_leads(leads)}",
            hint="send the leads that the model was made for, in this order",
        )


def items(request: PredictRequest, name: str, model: Model, *, limit: int) -> list[Item]:
    """Cut the nested lists into items, each checked on its own.

    Raises:
        MalformedRequest: ``inputs`` is not nested lists of the model's depth, or holds no or too many items.
    """
    if len(model["inputs"]) != 1:
        raise MalformedRequest(f"model {name}: has several inputs, which /predict does not take")
    spec = model["inputs"][0]
    shape: list[int] = spec["shape"][1:]
    raw = bytes(request.inputs)
    if raw.count(b",") >= limit * math.prod(shape):  # cheap, and before millions of parts are made
        raise MalformedRequest(f"inputs: holds more numbers than {limit} items of shape {shape}")
    depth = _depth(raw)
    squeezed = len(shape) == 2 and shape[0] == 1  # noqa: PLR2004  (one channel: the list around it may be left out)
    if depth == len(shape) + 1 or (squeezed and depth == len(shape)):
        parts = _parts(raw)
    elif depth == len(shape) or (squeezed and depth == 1):
        parts = [raw]
    else:
        raise MalformedRequest(
            f"inputs: is a list nested {depth} deep, model {name} takes items of shape {shape}",
            hint="one item, or a list of items",
        )
    if not 1 <= len(parts) <= limit:
        raise MalformedRequest(f"inputs: holds {len(parts)} items, allowed are 1 to {limit}")
    return [_item(part, spec["dtype"], shape) for part in parts]


def _item(raw: bytes, dtype: str, shape: list[int]) -> Item:
    depth = _depth(raw)
    squeezed = depth == 1 and len(shape) == 2 and shape[0] == 1  # noqa: PLR2004  (one channel)
    try:
        array = _array(raw, dtype, depth) if depth == len(shape) or squeezed else None
    except (msgspec.DecodeError, ValueError, OverflowError):
        array = None
    if array is None:
        return Item(error=InvalidInput(f"item: is not a regular array of {dtype} numbers, wanted shape {shape}"))
    if squeezed:
        array = array[np.newaxis]
    if list(array.shape) != shape:
        return Item(
            error=InvalidInput(
                f"item: has shape {list(array.shape)}, wanted {shape}",
                hint="cut or window the recording to this length",
            )
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return Item(error=InvalidInput(f"item: holds a number that does not fit {dtype}"))
    return Item(data=array.tobytes())


def _array(raw: bytes, dtype: str, depth: int) -> NDArray[np.generic]:
    """The numbers in a type; what has no exact place in an integer type is refused, not rounded."""
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):  # what does not fit becomes an infinity, which is refused
            return np.array(msgspec.json.decode(raw, type=_nested(depth, float)), dtype=dtype)
    values = msgspec.json.decode(raw, type=_nested(depth, int))
    array = np.array(values, dtype=dtype)  # raises for what is too large
    if dtype == "bool" and not np.array_equal(array, np.array(values)):
        raise ValueError("neither 0 nor 1")
    return array


@cache
def _nested(depth: int, of: Any) -> Any:  # noqa: ANN401  (a type, as msgspec takes it)
    """Lists of lists of a number; ``depth`` is at most a shape's length."""
    return list[_nested(depth - 1, of)] if depth else of  # type: ignore[misc]  # made when it runs


def _depth(raw: bytes) -> int:
    match = _OPENING.match(raw)
    return match[0].count(b"[") if match else 0


def _parts(raw: bytes) -> list[bytes]:
    try:
        return [bytes(part) for part in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    except msgspec.DecodeError as error:
        raise MalformedRequest(f"inputs: {_plain(error)}") from error


def prediction(frame: Frame, model: Model) -> dict[str, Any]:
    """One item's answer, as JSON will show it."""
    if "not_interpretable" in frame.meta:
        error = {"code": "not-interpretable", "detail": frame.meta["not_interpretable"]}
        return {"status": "not_interpretable", "error": error, "receipt": frame.meta["receipt"]}
    outputs, offset = {}, 0
    for output in model["outputs"]:
        shape = output["shape"][1:]
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(frame.body, dtype=output["dtype"], count=count, offset=offset).reshape(shape)
        outputs[output["name"]] = array.tolist()
        offset += array.nbytes
    return {"status": "ok", "outputs": outputs, "receipt": frame.meta["receipt"]}


def failure(error: PericardError) -> dict[str, Any]:
    """One item's error, among others."""
    code, detail, hint = said(error)
    found = {"code": code, "detail": detail}
    if hint:
        found["hint"] = hint
    return {"status": "error", "error": found}


def _leads(leads: list[list[str]]) -> str:
    return ", ".join(" or ".join(names) for names in leads)


def _plain(error: Exception) -> str:
    """Msgspec's words without what the caller sent."""
    return str(error).split("\n", maxsplit=1)[0][:200].lower()
