"""``POST /predict``: the body, the contract, and the answer's form.

What the manifest declares is mandatory: a strip of another sampling rate gets a wrong score that looks right, so a
declaration that is missing or different is refused with what to do, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pericard.errors import ContractMismatch, InvalidInput, MalformedRequest, PericardError
from pericard.pipe import Frame

Model = dict[str, Any]

_OPENING = re.compile(rb"[\s\[]*")


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
        return msgspec.json.decode(body, type=PredictRequest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"body: {_plain(error)}", hint="see docs/spec/http-api.md for the fields") from error


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
    try:
        values: Any = msgspec.json.decode(raw, type=_NESTED[_depth(raw)])
        with np.errstate(over="ignore"):  # what does not fit becomes an infinity, which is refused below
            array = np.array(values, dtype=dtype)
    except (msgspec.DecodeError, KeyError, ValueError, OverflowError):
        return Item(error=InvalidInput(f"item: is not a regular array of numbers, wanted shape {shape}"))
    if array.ndim == 1 and len(shape) == 2 and shape[0] == 1:  # noqa: PLR2004  (one channel)
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


_NESTED: dict[int, Any] = {1: list[float], 2: list[list[float]], 3: list[list[list[float]]]}


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
    found = {"code": error.code, "detail": error.message}
    if error.hint:
        found["hint"] = error.hint
    return {"status": "error", "error": found}


def _leads(leads: list[list[str]]) -> str:
    return ", ".join(" or ".join(names) for names in leads)


def _plain(error: Exception) -> str:
    """Msgspec's words without what the caller sent."""
    return str(error).split("\n", maxsplit=1)[0][:200].lower()
