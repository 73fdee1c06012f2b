"""An inference response: JSON, and behind it the bytes of the outputs that were asked for in binary."""

from __future__ import annotations

import math
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
        body: all outputs, in the manifest's order, row-major, little-endian.
        index: of the row's record in the audit log.
        leaf: the record's hash, hex.
        opening_key: opens the record's commitments, hex.
    """

    @property
    def body(self) -> bytes | memoryview: ...  # noqa: D102  (said above)
    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def leaf(self) -> str: ...  # noqa: D102
    @property
    def opening_key(self) -> str: ...  # noqa: D102


def render(
    request: InferRequest, answers: Sequence[RowAnswer], model: Model, *, parameters: Mapping[str, Value]
) -> tuple[dict[str, str], bytes]:
    """The response to a request whose rows were all answered.

    Args:
        request: as it was parsed.
        answers: one per row, in order.
        model: the catalog's entry that answered.
        parameters: more to tell of the answer; ``receipts`` is added.

    Returns:
        Headers and body.

    Raises:
        BackendFailed: an answer has not the size of the model's outputs.
    """
    whole = sum(_row_bytes(spec) for spec in model["outputs"])
    if len(answers) != len(request.rows) or any(len(answer.body) != whole for answer in answers):
        raise BackendFailed(f"model {model['identity']['name']}: the answer is not of the outputs' size")
    bodies = [memoryview(answer.body) for answer in answers]
    columns, offset = {}, 0
    for spec in model["outputs"]:
        columns[spec["name"]] = (spec, slice(offset, offset + _row_bytes(spec)))
        offset += _row_bytes(spec)
    outputs, tail = [], []
    for name, binary in request.outputs:
        spec, place = columns[name]
        data = b"".join(body[place] for body in bodies)
        outputs.append(_output(spec, data, len(bodies), binary=binary))
        if binary:
            tail.append(data)
    receipts = [{"index": found.index, "leaf": found.leaf, "opening_key": found.opening_key} for found in answers]
    head = msgspec.json.encode(
        {
            "model_name": model["identity"]["name"],
            "model_version": str(model["identity"]["sequence"]),
            **({} if request.id is None else {"id": request.id}),
            "parameters": {**parameters, "receipts": msgspec.json.encode(receipts).decode()},
            "outputs": outputs,
        }
    )
    if not tail:
        return {"content-type": "application/json"}, head
    headers = {"content-type": "application/octet-stream", _LENGTH_HEADER: str(len(head))}
    return headers, b"".join((head, *tail))


def _output(spec: Mapping[str, Any], data: bytes, rows: int, *, binary: bool) -> dict[str, Any]:
    found = {"name": spec["name"], "datatype": spec["datatype"], "shape": [rows, *spec["shape"][1:]]}
    if binary:
        return {**found, "parameters": {"binary_data_size": len(data)}}
    return {**found, "data": np.frombuffer(data, np.dtype(spec["dtype"]).newbyteorder("<")).tolist()}


def _row_bytes(spec: Mapping[str, Any]) -> int:
    return int(math.prod(spec["shape"][1:]) * np.dtype(spec["dtype"]).itemsize)
