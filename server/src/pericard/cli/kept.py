"""What a caller kept, from files: the saved answer with its receipt, and the strip that was sent.

Neither is believed. A receipt is held against the log, and a strip against the record's commitment: a strip that was
read in another way than the server read it is another input, and that is what the commitment says.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pericard.engine.replay import Claim
from pericard.errors import InvalidInput, ReceiptInvalid
from pericard.tensors import TensorSpec

_LARGEST = 256 << 20  # bytes of a file
_FORM = "give the saved answer of /predict, one of its predictions, or a receipt: log, index, leaf, opening_key"
_HASH = re.compile(r"[0-9a-f]{64}")


def claim(path: Path, item: int | None) -> Claim:
    """Read a saved answer, one prediction of it, or a bare receipt.

    Args:
        path: the file.
        item: which prediction, from 0; None where there is one.

    Raises:
        ReceiptInvalid: it is none of these, or has no such item, or that one no receipt.
    """
    value = _saved(path)
    if isinstance(value, dict) and isinstance(value.get("predictions"), list):
        value = value["predictions"][_which(value["predictions"], item, path, "predictions", ReceiptInvalid)]
    outputs = None
    if isinstance(value, dict) and "status" in value:
        if not isinstance(value.get("receipt"), dict):
            raise ReceiptInvalid(f"{path}: the prediction has status {value['status']!s:.32} and no receipt")
        outputs, value = value.get("outputs"), value["receipt"]
    return _claim(value, outputs, path)


def place(path: Path, item: int | None) -> tuple[int, int]:
    """Which prediction of a saved answer was chosen, from 0, and how many it has; raises as :func:`claim`."""
    value = _saved(path)
    found = value.get("predictions") if isinstance(value, dict) else None
    if not isinstance(found, list):
        return 0, 1
    return _which(found, item, path, "predictions", ReceiptInvalid), len(found)


def _saved(path: Path) -> object:
    try:
        value: object = json.loads(_read(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ReceiptInvalid(f"{path}: {_reason(error, 'is not JSON')}", hint=_FORM) from error
    return value


def _claim(value: object, outputs: object, path: Path) -> Claim:
    fields = value if isinstance(value, dict) else {}
    log, index, leaf, key = (fields.get(name) for name in ("log", "index", "leaf", "opening_key"))
    named = isinstance(log, str) and type(index) is int and index >= 0
    if not named or not all(isinstance(text, str) and _HASH.fullmatch(text) for text in (leaf, key)):
        raise ReceiptInvalid(f"{path}: holds no receipt", hint=_FORM)
    if outputs is not None and not isinstance(outputs, dict):
        raise ReceiptInvalid(f"{path}: its outputs are not an object of names", hint=_FORM)
    return Claim(str(log), int(str(index)), str(leaf), bytes.fromhex(str(key)), outputs)


def row(path: Path, specs: Sequence[TensorSpec], item: int | None) -> bytes:
    """Read one strip as the model takes it: every input's bytes, row-major, little-endian.

    Args:
        path: ``.json`` as sent to ``/predict`` (or only its inputs), ``.npy``, ``.csv``, or else the bytes themselves.
        specs: the model's inputs.
        item: which strip, from 0; None where there is one.

    Raises:
        InvalidInput: it cannot be read, or does not fit the model.
    """
    try:
        data = _read(path)
        if path.suffix not in {".json", ".npy", ".csv"}:
            return _raw(data, sum(spec.row_bytes for spec in specs), item, path)
        if len(specs) != 1:
            raise InvalidInput(f"{path}: the model has several inputs", hint="give their bytes, one after the other")
        read = {".json": _json, ".npy": _npy, ".csv": _csv}[path.suffix]
        strips = read(data, specs[0])
        chosen = strips[_which(strips, item, path, "strips", InvalidInput)]
        with np.errstate(over="ignore"):  # an infinity is not what was asked; the commitment will say so
            array = np.array(chosen, dtype=specs[0].dtype)
    except (OSError, EOFError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"{path}: {_reason(error, f'is not {path.suffix[1:]} of numbers')}") from error
    wanted = specs[0].row_shape
    if array.shape not in {wanted, wanted[1:] if wanted[:1] == (1,) else wanted}:
        raise InvalidInput(f"{path}: holds an array of shape {list(array.shape)}, one strip is {list(wanted)}")
    return array.tobytes()


def _raw(data: bytes, size: int, item: int | None, path: Path) -> bytes:
    if not data or len(data) % size:
        raise InvalidInput(f"{path}: holds {len(data)} bytes, one strip is {size}")
    starts = range(0, len(data), size)
    start = starts[_which(starts, item, path, "strips", InvalidInput)]
    return data[start : start + size]


def _json(data: bytes, spec: TensorSpec) -> Sequence[Any]:
    """The strips of a request's body; lists around one channel may be left out, as on the wire."""
    value = json.loads(data)
    inputs = value.get("inputs") if isinstance(value, dict) else value
    if isinstance(inputs, str):
        return _samples(inputs, value if isinstance(value, dict) else {}, spec)
    return _cut(inputs, _depth(inputs), spec)


def _samples(text: str, request: dict[str, Any], spec: TensorSpec) -> Sequence[Any]:
    """Samples in base64, as the edge reads them."""
    from pericard.edge import samples

    taken = {"dtype": spec.dtype, "shape": spec.shape}
    data, most = base64.b64decode(text, validate=True), max(1, len(text))
    return [one for (one,) in samples.rows(data, request.get("dtype"), request.get("gain"), taken, limit=most)]


def _npy(data: bytes, spec: TensorSpec) -> Sequence[Any]:
    array: NDArray[np.generic] = np.load(io.BytesIO(data), allow_pickle=False)
    return _cut(array, array.ndim, spec)


def _csv(data: bytes, spec: TensorSpec) -> Sequence[Any]:
    """A sample a line and a lead a column, or a strip a line; a line of names above is passed over."""
    lines = data.decode("utf-8-sig").splitlines()
    if lines and re.search(r"[a-df-zA-DF-Z]", lines[0]):
        del lines[0]
    table = np.array([[float(cell) for cell in line.split(",")] for line in lines if line.strip()])
    shape = spec.row_shape
    if table.T.shape == shape:
        return [table.T]
    return (
        [line.reshape(shape) for line in table]
        if table.ndim == len(shape) and table[0].size == _size(shape)
        else [table]
    )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _cut(value: Any, depth: int, spec: TensorSpec) -> Sequence[Any]:  # noqa: ANN401  (lists of lists, or an array)
    axes = len(spec.row_shape)
    several = depth == axes + 1 or (depth == axes and spec.row_shape[:1] == (1,))
    return value if several else [value]


def _depth(value: object) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _which(
    found: Sequence[Any], item: int | None, path: Path, what: str, refusal: type[ReceiptInvalid | InvalidInput]
) -> int:
    """The place of what was chosen; a single one needs no choice, and is the one whatever was chosen elsewhere."""
    if len(found) == 1:
        return 0
    if item is None or item >= len(found):
        raise refusal(f"{path}: holds {len(found)} {what}", hint="--item N says which, from 0")
    return item


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"is larger than {_LARGEST} bytes")
    return data


def _reason(error: Exception, otherwise: str) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror.lower()}"
    return str(error) if str(error).startswith("is larger") else otherwise
