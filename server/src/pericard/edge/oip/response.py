"""An inference response: JSON, and behind it the bytes of the outputs that were asked for in binary."""

from __future__ import annotations

import math
from binascii import hexlify
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from pericard.edge.oip.json_text import Value
from pericard.edge.oip.request import InferRequest, Model
from pericard.errors import BackendFailed

_LENGTH_HEADER = "inference-header-content-length"


class RowAnswer(Protocol):
    """What the engine said of one row.

    Attributes:
        data: all outputs, in the manifest's order, row-major, little-endian.
        log_index: of the row's record in the audit log.
        leaf: the record's hash.
        opening_key: opens the record's commitments.
    """

    @property
    def data(self) -> bytes | memoryview: ...  # noqa: D102  (said above)
    @property
    def log_index(self) -> int: ...  # noqa: D102
    @property
    def leaf(self) -> bytes: ...  # noqa: D102
    @property
    def opening_key(self) -> bytes: ...  # noqa: D102


def render(
    request: InferRequest, answers: Sequence[RowAnswer], model: Model, *, parameters: Mapping[str, Value]
) -> tuple[dict[str, str], bytes]:
    """The response to a request whose rows were all answered.

    Args:
        request: as it was parsed.
        answers: one per row, in order.
        model: the catalog's entry that answered.
        parameters: more to tell of the answer; ``receipts`` is added. The same object is taken to say the same.

    Returns:
        Headers and body.

    Raises:
        BackendFailed: an answer has not the size of the model's outputs.
    """
    rows = len(answers)
    form = request.forms.get(rows)
    if not isinstance(form, _Form) or form.parameters is not parameters:
        form = request.forms[rows] = _Form(request, rows, model, parameters)
    if rows != len(request.rows) or any(len(answer.data) != form.size for answer in answers):
        raise BackendFailed(f"model {model['identity']['name']}: the answer is not of the outputs' size")
    receipts = [
        b'{\\"index\\":%d,\\"leaf\\":\\"%b\\",\\"opening_key\\":\\"%b\\"}'
        % (found.log_index, hexlify(found.leaf), hexlify(found.opening_key))
        for found in answers
    ]  # JSON within a JSON string: what a parameter may be
    columns = [b"".join([answer.data[place] for answer in answers]) for place in form.places]
    head = b"".join((form.start, b",".join(receipts), form.middle, form.outputs or form.in_json(columns), b"}"))
    tail = [data for data, (_, binary) in zip(columns, request.outputs, strict=True) if binary]
    if not tail:
        return {"content-type": "application/json"}, head
    headers = {"content-type": "application/octet-stream", _LENGTH_HEADER: str(len(head))}
    return headers, b"".join((head, *tail))


class Parameters:
    """What an answer's parameters say of it; the same object as long as the engine says the same."""

    def __init__(self) -> None:
        self._shared: Any = None
        self._found: dict[str, Value] = {}

    def of(self, shared: Mapping[str, Any]) -> dict[str, Value]:
        """The parameters."""
        if shared is not self._shared:
            model = {name: shared["model"][name] for name in ("version", "manifest")}
            self._found = {**model, **{name: shared[name] for name in ("runtime", "licence", "log")}}
            self._shared = shared
        return self._found


class _Form:
    """What all responses to one request, for so many rows, have in common.

    Attributes:
        rows: how many.
        parameters: beside the receipts.
        size: bytes of a row's outputs.
        places: where each wanted output lies in them.
        start, middle: of the JSON, before and after the receipts.
        outputs: the JSON of all outputs, if it holds none of their values.
    """

    def __init__(self, request: InferRequest, rows: int, model: Model, parameters: Mapping[str, Value]) -> None:
        self.rows, self.parameters = rows, parameters
        columns, self.size = {}, 0
        for spec in model["outputs"]:
            columns[spec["name"]] = (spec, slice(self.size, self.size + _row_bytes(spec)))
            self.size += _row_bytes(spec)
        self._wanted = [(columns[name][0], binary) for name, binary in request.outputs]
        self.places = [columns[name][1] for name, _ in request.outputs]
        said = {
            "model_name": model["identity"]["name"],
            "model_version": str(model["identity"]["sequence"]),
            **({} if request.id is None else {"id": request.id}),
            "parameters": {**parameters, "receipts": ""},
        }
        self.start = msgspec.json.encode(said)[: -len(b'"}}')] + b"["
        self.middle = b']"},"outputs":'
        self.outputs = b"" if not all(binary for _, binary in self._wanted) else self.in_json([b""] * len(self._wanted))

    def in_json(self, columns: Sequence[bytes | memoryview]) -> bytes:
        """The outputs, with the values of those that are not binary."""
        made = []
        for (spec, binary), data in zip(self._wanted, columns, strict=True):
            found = {"name": spec["name"], "datatype": spec["datatype"], "shape": [self.rows, *spec["shape"][1:]]}
            if binary:
                found["parameters"] = {"binary_data_size": self.rows * _row_bytes(spec)}
            else:
                found["data"] = np.frombuffer(data, np.dtype(spec["dtype"]).newbyteorder("<")).tolist()
            made.append(found)
        return msgspec.json.encode(made)


def _row_bytes(spec: Mapping[str, Any]) -> int:
    return int(math.prod(spec["shape"][1:]) * np.dtype(spec["dtype"]).itemsize)
