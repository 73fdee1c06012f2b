"""``POST /predict``: the body, the contract, and the answer's form.

What the manifest declares is mandatory: a strip of another sampling rate gets a wrong score that looks right, so a
declaration that is missing or different is refused with what to do, never guessed. A body that is as it should be goes
through :mod:`pericard.edge.quick`; whatever is not comes here, where every strip is looked at on its own.
"""

from __future__ import annotations

import json
import math
import re
from binascii import hexlify
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pericard.edge import samples
from pericard.edge.catalog import Entry, Model
from pericard.edge.inference import Row
from pericard.edge.problems import said
from pericard.errors import BackendFailed, ContractMismatch, InvalidInput, MalformedRequest, PericardError
from pericard.pipe import Answer

_OPENING = re.compile(rb"[\s\[]*")
_MOST_FIELDS = 64 << 10


class Declared(Protocol):
    """What a caller says of its samples."""

    @property
    def sampling_rate(self) -> float | None: ...  # noqa: D102  (as the manifest's)
    @property
    def unit(self) -> str | None: ...  # noqa: D102
    @property
    def leads(self) -> tuple[str, ...] | None: ...  # noqa: D102


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /predict``; ``inputs`` is nested lists, or base64 text whose ``dtype`` is given."""

    inputs: msgspec.Raw
    model: str | None = None
    version: str | None = None
    sampling_rate: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None
    dtype: str | None = None
    gain: float | None = None


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


def check_contract(request: Declared, name: str, model: Entry) -> None:
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


def rows(request: PredictRequest, name: str, model: Entry, *, limit: int) -> list[Row | PericardError]:
    """Cut the inputs into strips, each checked on its own.

    Raises:
        MalformedRequest: ``inputs`` is not nested lists of the model's depth, or holds no or too many strips.
    """
    spec = only_input(name, model)
    raw = bytes(request.inputs)
    if raw.startswith(b'"'):
        data = samples.from_base64(raw)
        return list(samples.rows(data, request.dtype, request.gain, spec, limit=limit))
    if request.dtype is not None or request.gain is not None:
        raise MalformedRequest("dtype, gain: are for inputs in base64", hint="leave them out, or send inputs as base64")
    shape: list[int] = spec["shape"][1:]
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
    return [_row(part, spec["dtype"], shape, judged=model["signal"] is not None) for part in parts]


def only_input(name: str, model: Entry) -> dict[str, Any]:
    """The model's one input.

    Raises:
        MalformedRequest: it has several.
    """
    if len(model["inputs"]) != 1:
        raise MalformedRequest(
            f"model {name}: has several inputs, which /predict does not take",
            hint=f"use POST /v2/models/{name}/infer",
        )
    spec: dict[str, Any] = model["inputs"][0]
    return spec


def _row(raw: bytes, dtype: str, shape: list[int], *, judged: bool) -> Row | PericardError:
    """One strip, or why it is none; a shorter one is the engine's to judge where the manifest declares a signal."""
    depth = _depth(raw)
    squeezed = depth == 1 and len(shape) == 2 and shape[0] == 1  # noqa: PLR2004  (one channel)
    try:
        array = _array(raw, dtype, depth) if depth == len(shape) or squeezed else None
    except (msgspec.DecodeError, ValueError, OverflowError):
        array = None
    if array is None:
        return InvalidInput(f"item: is not a regular array of {dtype} numbers, wanted shape {shape}")
    if squeezed:
        array = array[np.newaxis]
    found = list(array.shape)
    shorter = judged and found[:-1] == shape[:-1] and 0 < found[-1] < shape[-1]
    if found != shape and not shorter:
        return InvalidInput(
            f"item: has shape {found}, wanted {shape}", hint="cut or window the recording to this length"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return InvalidInput(f"item: holds a number that does not fit {dtype}")
    return (array,)


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


class Said:
    """The beginning of an answer's body: what the engine says of all rows of a batch is written once."""

    def __init__(self) -> None:
        self._shared: Any = None
        self._text = b""

    def text(self, shared: Mapping[str, Any]) -> bytes:
        """Up to the request's id."""
        if shared is not self._shared:
            said = {name: shared[name] for name in ("model", "runtime", "licence")}
            self._text, self._shared = msgspec.json.encode(said)[:-1] + b',"request_id":"', shared
        return self._text


def body(start: bytes, request_id: str, answers: Iterable[Answer | PericardError], model: Model) -> bytes:
    """The body of an answer, from what its rows share on; a request's id needs no escaping."""
    found = [
        msgspec.json.encode(failure(answer)) if isinstance(answer, PericardError) else prediction(answer, model)
        for answer in answers
    ]
    return b"".join((start, request_id.encode("ascii"), b'","predictions":[', b",".join(found), b"]}"))


def prediction(answer: Answer, model: Model) -> bytes:
    """One strip's answer, as JSON."""
    entry = answer.entry
    receipt = b'"receipt":{"log":%b,"index":%d,"leaf":"%b","opening_key":"%b"}}' % (
        msgspec.json.encode(answer.shared["log"]), entry.log_index,
        hexlify(entry.leaf), hexlify(entry.opening_key),
    )  # fmt: skip
    if answer.flaw is not None:
        error = {"code": "not-interpretable", "detail": answer.flaw}
        return b'{"status":"not_interpretable","error":%b,%b' % (msgspec.json.encode(error), receipt)
    if len(entry.data) != model.answer_bytes:
        raise BackendFailed(f"model {model.name}: the answer is not of the outputs' size")
    outputs = {
        output.name: np.frombuffer(entry.data, output.dtype, output.count, output.start).reshape(output.shape).tolist()
        for output in model.outputs
    }
    return b'{"status":"ok","outputs":%b,%b' % (msgspec.json.encode(outputs), receipt)


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
