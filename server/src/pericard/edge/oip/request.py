"""An inference request: JSON alone, JSON with the tensors' bytes behind it, or one tensor's bytes alone.

The JSON ends where ``Inference-Header-Content-Length`` says; behind it stand the tensors that name a
``binary_data_size``, in the order of the JSON, and nothing else. A length of 0 is a raw request: the whole body is the
one input's only row. No content type is asked for, since the protocol's clients send none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pericard.edge.oip import inputs, json_text
from pericard.edge.oip.json_text import Parameters
from pericard.errors import MalformedRequest, RequestTooLarge
from pericard.pipe.frames import PRIORITIES

Model = dict[str, Any]

#: Highest number of a priority: 1 is served first, and 0 stands for the default.
PRIORITY_LEVELS = PRIORITIES
#: Of a deadline in microseconds, and of a tensor's size.
_MOST = (1 << 63) - 1
LENGTH_HEADER = "inference-header-content-length"
_MOST_DIGITS = 15
_MOST_FIELDS = 64 << 10  # bytes of JSON beside the tensors' data
_MOST_OBJECTS = 4096
_LONGEST_ID = 256
_NAME_SHOWN = 64
_JSONLESS = {"FP16", "BF16"}


@dataclass(frozen=True, slots=True)
class Contract:
    """What the caller says of the samples; the manifest decides whether it has to."""

    sampling_rate: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None


@dataclass(slots=True)
class InferRequest:
    """What a caller asks.

    Attributes:
        id: to be echoed.
        rows: per row one C-contiguous array per input of the model, in the manifest's order, of its type and row
            shape; views into the body where it was binary, so not always aligned, and read-only.
        outputs: wanted outputs in the request's order, and whether each shall be binary.
        contract: what the samples are said to be.
        priority: 0 is the default, 1 comes first, up to :data:`PRIORITY_LEVELS`.
        timeout_us: microseconds after which nobody waits; None if the caller set none.
        raw: it was a raw request.
        forms: what its responses have in common, by their number of rows; kept by whoever renders them.
    """

    id: str | None
    rows: list[tuple[NDArray[np.generic], ...]]
    outputs: tuple[tuple[str, bool], ...]
    contract: Contract
    priority: int
    timeout_us: int | None
    raw: bool
    forms: dict[int, object] = field(default_factory=dict)

    def again(self, rows: list[tuple[NDArray[np.generic], ...]]) -> InferRequest:
        """The same request with other rows."""
        return InferRequest(
            self.id, rows, self.outputs, self.contract, self.priority, self.timeout_us, self.raw, self.forms
        )


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: msgspec.Raw
    parameters: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_Input]
    id: str | None = None
    model_name: str | None = None  # not of the protocol, but KServe's client sends it
    parameters: msgspec.Raw = msgspec.Raw()
    outputs: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: msgspec.Raw = msgspec.Raw()


def parse(body: bytes, headers: Mapping[str, str], model: Model, *, limit_rows: int) -> InferRequest:
    """Read an inference request for a model.

    Args:
        body: without its content encoding.
        headers: lower-case names.
        model: the catalog's entry.
        limit_rows: most rows.

    Raises:
        MalformedRequest: it is not what the protocol describes, or does not name the model's tensors.
        InvalidInput: its tensors do not fit the model.
        RequestTooLarge: it holds too many rows, fields or objects.
    """
    length = _json_length(headers, len(body))
    if length == 0:
        return _raw(body, model)
    text = body if length is None else body[:length]
    tail = memoryview(body)[len(text) :]
    if text.count(b"{") > _MOST_OBJECTS:  # cheap, and before any of them is made
        raise RequestTooLarge(f"body: holds more than {_MOST_OBJECTS} JSON objects")
    request = json_text.decode(text, _Body, "body")
    _check_fields(text, request.inputs)
    _check_names(request, model)
    given = json_text.parameters(request.parameters, "request")
    outputs = _outputs(request, given, model)
    return InferRequest(
        id=request.id,
        rows=_rows(request.inputs, tail, model, limit_rows, framed=length is not None),
        outputs=outputs,
        contract=_contract(given),
        priority=json_text.whole(given, "priority", "request", most=PRIORITY_LEVELS) or 0,
        timeout_us=json_text.whole(given, "timeout", "request", most=_MOST) or None,
        raw=False,
    )


def _json_length(headers: Mapping[str, str], size: int) -> int | None:
    """Bytes of JSON at the body's start, or None if all of it is."""
    value = headers.get(LENGTH_HEADER)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > _MOST_DIGITS:
        raise MalformedRequest(f"{LENGTH_HEADER}: is not a number of bytes")
    if int(value) > size:
        raise MalformedRequest(f"{LENGTH_HEADER}: is {int(value)}, the body has {size} bytes")
    return int(value)


def _raw(body: bytes, model: Model) -> InferRequest:
    """One row of the only input, all outputs binary; there is no place to say what the samples are."""
    if len(model["inputs"]) != 1:
        raise MalformedRequest(
            f"model {model['identity']['name']}: has {len(model['inputs'])} inputs, and a raw request carries one",
            hint="send the JSON header, and its length",
        )
    column = inputs.from_bytes(memoryview(body), model["inputs"][0], 1)
    return InferRequest(
        id=None,
        rows=[(column[0, ...],)],
        outputs=tuple((spec["name"], True) for spec in model["outputs"]),
        contract=Contract(),
        priority=0,
        timeout_us=None,
        raw=True,
    )


def _check_fields(text: bytes, tensors: Sequence[_Input]) -> None:
    """Bound and re-read what stands beside the data, which only needs a cheaper parser than the one for names."""
    rest, place = [], 0
    for data in (tensor.data for tensor in tensors if not json_text.absent(tensor.data)):
        start = _address(data) - _address(text)  # it is a view into the text
        rest += [text[place:start], b"0"]
        place = start + len(memoryview(data))
    fields = b"".join((*rest, text[place:]))
    if len(fields) > _MOST_FIELDS:
        raise RequestTooLarge(f"body: its JSON beside the data is larger than {_MOST_FIELDS} bytes")
    json_text.refuse_repetition(fields)


def _address(buffer: bytes | msgspec.Raw) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def _check_names(request: _Body, model: Model) -> None:
    name = model["identity"]["name"]
    if request.model_name is not None and request.model_name != name:
        raise MalformedRequest(f"model_name: is {request.model_name[:_NAME_SHOWN]!r}, the path names {name}")
    if request.id is not None and len(request.id) > _LONGEST_ID:
        raise MalformedRequest(f"id: is longer than {_LONGEST_ID} characters")


# --- inputs -----------------------------------------------------------------------------------------------------------


def _rows(
    tensors: Sequence[_Input], tail: memoryview, model: Model, limit: int, *, framed: bool
) -> list[tuple[NDArray[np.generic], ...]]:
    specs = {spec["name"]: spec for spec in model["inputs"]}
    name = model["identity"]["name"]
    columns: dict[str, NDArray[np.generic]] = {}
    used = 0
    for tensor in tensors:
        if tensor.name not in specs:
            raise MalformedRequest(
                f"input {tensor.name[:_NAME_SHOWN]!r}: model {name} has none of this name", hint=_takes(specs)
            )
        if tensor.name in columns:
            raise MalformedRequest(f"input {tensor.name}: is there twice")
        column, size = _column(tensor, specs[tensor.name], tail[used:], limit, framed=framed)
        columns[tensor.name] = column
        used += size
    if used != len(tail):
        raise MalformedRequest(f"body: {len(tail) - used} bytes are left over behind its tensors")
    missing = [known for known in specs if known not in columns]
    if missing:
        raise MalformedRequest(f"input {missing[0]}: is missing", hint=_takes(specs))
    counts = {column.shape[0] for column in columns.values()}
    if len(counts) != 1:
        raise inputs.mismatch(f"inputs: hold different numbers of rows ({', '.join(map(str, sorted(counts)))})")
    ordered = [columns[known] for known in specs]
    return [tuple(column[row, ...] for column in ordered) for row in range(counts.pop())]


def _takes(specs: Mapping[str, Any]) -> str:
    return f"it takes {', '.join(specs)}"


def _column(
    tensor: _Input, spec: Mapping[str, Any], tail: memoryview, limit: int, *, framed: bool
) -> tuple[NDArray[np.generic], int]:
    """All rows of one input, and how many bytes of the tail they are."""
    what = f"input {tensor.name}"
    given = json_text.parameters(tensor.parameters, what)
    size = json_text.whole(given, "binary_data_size", what, most=_MOST)
    rows = inputs.rows(tensor.datatype, tensor.shape, spec, limit)
    if size is None:
        if json_text.absent(tensor.data):
            raise MalformedRequest(f"{what}: has neither data nor a binary_data_size")
        return inputs.from_json(bytes(tensor.data), spec, rows), 0
    if not json_text.absent(tensor.data):
        raise MalformedRequest(f"{what}: has both data and a binary_data_size")
    if not framed:
        raise MalformedRequest(
            f"{what}: is binary, and the header {LENGTH_HEADER} is missing", hint="it tells where the JSON ends"
        )
    if size > len(tail):
        raise MalformedRequest(f"{what}: announces {size} bytes, {len(tail)} are left in the body")
    return inputs.from_bytes(tail[:size], spec, rows), size


# --- outputs and parameters -------------------------------------------------------------------------------------------


def _outputs(request: _Body, given: Parameters, model: Model) -> tuple[tuple[str, bool], ...]:
    binary = json_text.flag(given, "binary_data_output", "request", default=False)
    datatypes = {spec["name"]: spec["datatype"] for spec in model["outputs"]}
    named = [] if json_text.absent(request.outputs) else json_text.decode(request.outputs, list[_Output], "outputs")
    wanted: dict[str, bool] = {}
    for output in named:
        what = f"output {output.name[:_NAME_SHOWN]!r}"
        if output.name not in datatypes:
            raise MalformedRequest(
                f"{what}: model {model['identity']['name']} has none of this name",
                hint=f"it has {', '.join(datatypes)}",
            )
        if output.name in wanted:
            raise MalformedRequest(f"{what}: is there twice")
        own = json_text.parameters(output.parameters, what)
        wanted[output.name] = json_text.flag(own, "binary_data", what, default=binary)
    wanted = wanted or dict.fromkeys(datatypes, binary)
    for name, as_bytes in wanted.items():
        if datatypes[name] in _JSONLESS and not as_bytes:
            raise MalformedRequest(
                f"output {name}: is {datatypes[name]}, which has no JSON form", hint="ask for binary_data"
            )
    return tuple(wanted.items())


def _contract(given: Parameters) -> Contract:
    rate, unit, leads = given.get("sampling_rate"), given.get("unit"), given.get("leads")
    if rate is not None and (isinstance(rate, bool | str) or not math.isfinite(_real(rate))):
        raise MalformedRequest("request: parameter sampling_rate must be a number, in Hz")
    if not isinstance(unit, str | None):
        raise MalformedRequest("request: parameter unit must be a string")
    if not isinstance(leads, str | None):
        raise MalformedRequest('request: parameter leads must be a string, such as "II" or "I,II"')
    return Contract(
        sampling_rate=None if rate is None else _real(rate),
        unit=unit,
        leads=None if leads is None else tuple(lead.strip() for lead in leads.split(",")),
    )


def _real(value: float | str) -> float:
    """A number as a float; what is too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
