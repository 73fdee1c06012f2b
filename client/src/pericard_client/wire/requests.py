"""Requests: path, headers and body bytes from the caller's values, which are checked before anything is sent."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pericard_client.errors import NotSendable

STRIPS_PER_REQUEST = 32
"""How many strips travel together: one request must fit the server's queue and its deadline, not only its limits."""
_BODY_BYTES = 7 << 20
_BYTES_PER_NUMBER = 16  # an upper bound of a 32-bit float's shortest decimal form and its comma
_AXES = 3  # strips, channels, time
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; ``path`` is relative to the server's address."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


def get_request(path: str, *, token: str | None, request_id: str) -> Request:
    """A ``GET``; ``path`` as the contract lists it."""
    return Request("GET", path, _headers(token, request_id))


def metadata_path(model: str) -> str:
    """Where a model's description stands.

    Raises:
        NotSendable: the name cannot be one of a model.
    """
    if not _MODEL.fullmatch(model):
        raise NotSendable(f"model: {model!r} cannot be the name of a model")
    return f"/v2/models/{model}"


def predict_request(
    strips: npt.ArrayLike,
    *,
    model: str | None,
    sampling_rate: float,
    unit: str,
    leads: Sequence[str],
    token: str | None,
    request_id: str,
) -> Request:
    """``POST /predict`` for strips ``[N][C][T]``.

    Values travel as 32-bit floats in their shortest decimal form, which the server reads back to the same bits.

    Raises:
        NotSendable: the shape does not fit the leads, or a value is not finite.
    """
    samples = as_strips(strips, len(leads))
    # numpy writes a 32-bit float shortest; its float64 twin would carry eight digits of noise.
    inputs = [[[float(value) for value in row] for row in strip] for strip in samples.astype(str).tolist()]
    body: dict[str, object] = {} if model is None else {"model": model}
    body |= {"inputs": inputs, "sampling_rate": _shortest(sampling_rate), "unit": unit, "leads": list(leads)}
    headers = {**_headers(token, request_id), "content-type": "application/json"}
    return Request("POST", "/predict", headers, json.dumps(body, separators=(",", ":"), allow_nan=False).encode())


def as_strips(strips: npt.ArrayLike, channels: int) -> npt.NDArray[np.float32]:
    """The strips as ``[N][C][T]`` of finite 32-bit floats; ``[C][T]``, and for one channel ``[T]`` and ``[N][T]``, too.

    Raises:
        NotSendable: no such shape, no sample, or a value that is not finite.
    """
    try:
        with np.errstate(over="ignore"):
            samples = np.asarray(strips, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise NotSendable("strips: not numbers, or strips of different lengths") from error
    if samples.ndim == 1 or (samples.ndim == _AXES - 1 and channels == 1):
        samples = np.atleast_2d(samples)[:, np.newaxis, :]
    elif samples.ndim == _AXES - 1:
        samples = samples[np.newaxis]
    if samples.ndim != _AXES or samples.shape[1] != channels or samples.size == 0:
        shape = "x".join(str(size) for size in np.shape(strips)) or "no axis"
        raise NotSendable(f"strips: shape {shape} is not strips by {channels} leads by time")
    if not np.isfinite(samples).all():
        raise NotSendable("strips: a value is not a finite 32-bit float")
    return samples


def batches(samples: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Strips ``[N][C][T]`` in requests of nearly equal size, none too large for the server."""
    fitting = _BODY_BYTES // (_BYTES_PER_NUMBER * samples[0].size)
    each = max(1, min(STRIPS_PER_REQUEST, fitting))
    return np.array_split(samples, math.ceil(len(samples) / each))


def _headers(token: str | None, request_id: str) -> dict[str, str]:
    headers = {"accept": "application/json, application/problem+json", "x-request-id": request_id}
    if token is None:
        return headers
    if not _TOKEN.fullmatch(token):
        raise NotSendable("token: it is empty or holds a character that no token has")
    return {"authorization": f"Bearer {token}", **headers}


def _shortest(number: float) -> float:
    if not math.isfinite(number):
        raise NotSendable("sampling_rate: not a finite number")
    return int(number) if float(number).is_integer() else float(number)
