"""Samples as bytes instead of JSON numbers: what ``application/octet-stream`` and base64 carry.

Little-endian, row-major, strip after strip, nothing before, between or behind. ``float32`` goes to models that take it.
``int16`` is what recorders write; for a model that takes floats its ``gain`` says how many units of it are one of the
declared unit, and a value is the quotient. Nothing is guessed: a type without its gain is refused.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pericard.edge.inference import Row
from pericard.errors import InvalidInput, MalformedRequest

_TYPES: dict[str, np.dtype[np.generic]] = {"float32": np.dtype("<f4"), "int16": np.dtype("<i2")}
_PREFIX = "x-pericard-"
FIELDS = ("model", "version", "sampling-rate", "unit", "leads", "dtype", "gain")
_LONGEST = 256


class Sent(msgspec.Struct):
    """What headers say of samples in the body."""

    model: str | None = None
    version: str | None = None
    sampling_rate: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None
    dtype: str | None = None
    gain: float | None = None


def described(headers: Mapping[str, str]) -> Sent:
    """Read ``X-Pericard-Model``, ``-Version``, ``-Sampling-Rate``, ``-Unit``, ``-Leads``, ``-Dtype`` and ``-Gain``.

    Raises:
        MalformedRequest: one of them is unknown, too long, or not what it should be.
    """
    given = {name[len(_PREFIX) :]: value for name, value in headers.items() if name.startswith(_PREFIX)}
    unknown = set(given) - set(FIELDS)
    if unknown or any(len(value) > _LONGEST for value in given.values()):
        raise MalformedRequest(
            "headers: say something of the samples that is not understood",
            hint="X-Pericard- … " + ", ".join(name.title() for name in FIELDS),
        )
    leads = given.get("leads")
    return Sent(
        given.get("model"),
        given.get("version"),
        _number(given, "sampling-rate"),
        given.get("unit"),
        None if leads is None else tuple(lead.strip() for lead in leads.split(",")),
        given.get("dtype"),
        _number(given, "gain"),
    )


def _number(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=float)  # as in a JSON body: no other spelling of a number is understood
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedRequest(f"x-pericard-{name}: is not a number") from error


def from_base64(raw: bytes) -> bytes:
    """The bytes in a JSON string of base64.

    Raises:
        MalformedRequest: it is no base64.
    """
    try:
        return base64.b64decode(msgspec.json.decode(raw, type=str).encode("ascii"), validate=True)
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise MalformedRequest("inputs: is text that is not base64") from error


def rows(
    data: bytes | memoryview, dtype: str | None, gain: float | None, spec: Mapping[str, Any], *, limit: int
) -> list[Row]:
    """Cut bytes into strips of a model's one input.

    Args:
        data: whole strips.
        dtype: what they are; None means what the model takes.
        gain: units of the samples that are one of the declared unit.
        spec: the model's input.
        limit: most strips.

    Raises:
        MalformedRequest, InvalidInput: there are not 1 to ``limit`` whole strips, or of a type that is not taken.
    """
    taken = np.dtype(spec["dtype"])
    sent = _TYPES.get(dtype or spec["dtype"], taken if dtype in {None, spec["dtype"]} else None)
    if sent is None:
        raise InvalidInput(
            f"dtype: {str(dtype)[:20]!r} is not taken", hint=f"send {spec['dtype']}, or int16 with its gain"
        )
    scaled = sent != taken
    if scaled and not (sent.kind == "i" and taken.kind == "f"):
        raise InvalidInput(f"dtype: {dtype} is not taken by a model of {spec['dtype']}", hint=f"send {spec['dtype']}")
    if (gain is not None) != scaled or (gain is not None and not gain > 0):
        raise InvalidInput(
            "gain: is needed for int16 samples of a model that takes floats, and only there",
            hint="units of the recorder for one of the declared unit, as 200 for 200 units per mV",
        )
    shape = spec["shape"][1:]
    count, rest = divmod(len(data), math.prod(shape) * sent.itemsize)
    if rest or not 1 <= count <= limit:
        raise InvalidInput(
            f"samples: are {len(data)} bytes, wanted 1 to {limit} times {math.prod(shape)} values of {sent.name}",
            hint="cut or window the recording to the model's length",
        )
    array: NDArray[np.generic] = np.frombuffer(data, sent).reshape(count, *shape)
    if gain is not None:
        with np.errstate(over="ignore"):  # what does not fit becomes an infinity, which the engine refuses
            array = np.divide(array, gain, dtype=np.float64).astype(taken)
    return [(row,) for row in array]
