"""What the OpenAPI document says of each route: the shapes of answers and errors, written once and only for readers.

Nothing here parses or builds an answer; a contract test holds real answers against these shapes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from pericard.edge.answer import OPEN, Route


class Problem(msgspec.Struct):
    """RFC 9457; everywhere but under ``/v2``."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    hint: str | UnsetType = UNSET


class Error(msgspec.Struct):
    """Errors under ``/v2``; the code is in the ``X-Error-Code`` header."""

    error: str


class Live(msgspec.Struct):
    """The edge runs."""

    live: bool


class Ready(msgspec.Struct):
    """Whether some model can answer."""

    ready: bool


class ModelReady(msgspec.Struct):
    """Whether one model can answer."""

    name: str
    ready: bool


class Server(msgspec.Struct):
    """Server metadata."""

    name: str
    version: str
    extensions: list[str]
    runtime: str


class Models(msgspec.Struct):
    """Names of the models that the caller may see."""

    models: list[str]


class Tensor(msgspec.Struct):
    """An input or output; the first axis, -1, is the batch."""

    name: str
    datatype: str
    shape: list[int]


class Signal(msgspec.Struct):
    """What samples must be; for each lead, the names that are taken."""

    sampling_rate: float
    unit: str
    leads: list[list[str]]


class Score(msgspec.Struct):
    """The output that is a score, and its operating point."""

    output: str
    threshold: float | None


class Timeline(msgspec.Struct):
    """The output that is a number per frame, and a frame's length."""

    output: str
    frame_seconds: float | None


class Parameters(msgspec.Struct):
    """What Pericard knows of a model beyond the protocol."""

    version: str
    sequence: int
    manifest: str
    publisher: str
    runtime: str
    intended_use: str
    licence: str
    licence_not_after: str
    signal: Signal | UnsetType = UNSET
    score: Score | UnsetType = UNSET
    timeline: Timeline | UnsetType = UNSET


class Model(msgspec.Struct):
    """Model metadata of the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: Parameters


class Identity(msgspec.Struct):
    """What names a model; ``manifest`` is the SHA-256 of what its publisher signed."""

    name: str
    version: str
    sequence: int
    manifest: str
    publisher: str


class Receipt(msgspec.Struct):
    """Where the prediction stands in the audit log, and the key that opens its record."""

    log: str
    index: int
    leaf: str
    opening_key: str


class ItemError(msgspec.Struct):
    """Why one item has no outputs."""

    code: str
    detail: str
    hint: str | UnsetType = UNSET


class Prediction(msgspec.Struct):
    """One item's answer."""

    status: Literal["ok", "not_interpretable", "error"]
    outputs: dict[str, Any] | UnsetType = UNSET
    error: ItemError | UnsetType = UNSET
    receipt: Receipt | UnsetType = UNSET


class Answer(msgspec.Struct):
    """Answers of a request, one prediction per item, in order."""

    model: Identity
    runtime: str
    licence: Literal["valid", "grace"]
    request_id: str
    predictions: list[Prediction]


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """One item, or a list of items, and what the samples are."""

    inputs: list[Any]
    model: str | None = None
    sampling_rate: float | None = None
    unit: str | None = None
    leads: list[str] | None = None


_SCHEMAS = (Problem, Error, Live, Ready, ModelReady, Server, Models, Model, Answer, Question)
_ANSWERS: dict[str, type[msgspec.Struct]] = {
    "/livez": Live,
    "/v2/health/live": Live,
    "/readyz": Ready,
    "/v2/health/ready": Ready,
    "/v2": Server,
    "/v2/models": Models,
    "/v2/models/{name}": Model,
    "/v2/models/{name}/ready": ModelReady,
    "/predict": Answer,
}
_NOT_READY = ("/readyz", "/v2/health/ready", "/v2/models/{name}/ready")


def operation(route: Route) -> dict[str, Any]:
    """What FastAPI cannot know of a route."""
    named = "{name}" in route.path
    wanted: dict[str, Any] = {"security": [] if route.permission == OPEN else [{"bearer": []}]}
    if route.permission != OPEN:
        wanted["x-permission"] = route.permission
    if named:
        name = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}
        wanted["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": name}]
    if route.method == "POST":
        wanted["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(Question)}}}
    wanted["responses"] = {
        str(status): _response(route, status) for status in (200, *sorted(_errors(route, named=named)))
    }
    return wanted


def _errors(route: Route, *, named: bool) -> set[int]:
    statuses = {400, 408, 413, 500, 503}
    if route.permission != OPEN:
        statuses |= {401, 403}
    if named:
        statuses |= {404}
    if route.path == "/metrics":
        statuses |= {504}
    if route.method == "POST":
        statuses |= {404, 415, 422, 504}
    return statuses


def _response(route: Route, status: int) -> dict[str, Any]:
    if status == 200:  # noqa: PLR2004  (OK)
        if route.path == "/metrics":
            return {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
        schema = _reference(_ANSWERS[route.path])
        return {"description": route.summary, "content": {"application/json": {"schema": schema}}}
    form, error = ("application/json", Error) if route.path.startswith("/v2") else ("application/problem+json", Problem)
    content: dict[str, Any] = {form: {"schema": _reference(error)}}
    if status != 503 or route.path not in _NOT_READY:  # noqa: PLR2004  (Service Unavailable)
        return {"description": "refused", "content": content}
    answer = _reference(_ANSWERS[route.path])
    both = {"anyOf": [answer, _reference(error)]}
    content["application/json"] = {"schema": both if form == "application/json" else answer}
    return {"description": "not ready, or refused", "content": content}


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def components() -> dict[str, Any]:
    """The schemas that :func:`operation` refers to, and how a caller shows who it is."""
    _, schemas = msgspec.json.schema_components(_SCHEMAS, ref_template="#/components/schemas/{name}")
    return {"schemas": schemas, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}}
