"""What the OpenAPI document says of each route: the shapes of answers and errors, written once and only for readers.

Nothing here parses or builds an answer; a contract test holds real answers against these shapes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from pericard.edge.evidence import QUERY
from pericard.edge.gate import OPEN, PARTS, Route


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


class Health(msgspec.Struct):
    """Health under ``/v2``; clients differ in which of the two fields they read."""

    live: bool
    ready: bool
    error: str | UnsetType = UNSET


class ModelReady(msgspec.Struct):
    """Whether one model can answer."""

    name: str
    ready: bool
    error: str | UnsetType = UNSET


class Environment(msgspec.Struct):
    """What was found of the installed runtime at the start, and what else decides how it computes."""

    mode: Literal["off", "warn", "enforce"]
    state: Literal["verified", "drifted", "unlocked", "off"]
    kind: Literal["conda", "pip"]
    lock: str | None
    digest: str
    findings: int
    cpu: str
    driver: str | None
    cuda: str | None
    cudnn: str | None


class Server(msgspec.Struct):
    """Server metadata; ``runtime`` is the digest of the installed distributions."""

    name: str
    version: str
    extensions: list[str]
    runtime: str
    environment: Environment


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
    """One item, or a list of items, or base64 text of them, and what the samples are."""

    inputs: list[Any] | str
    model: str | None = None
    version: str | None = None
    sampling_rate: float | None = None
    unit: str | None = None
    leads: list[str] | None = None
    dtype: str | None = None
    gain: float | None = None


class Configuration(msgspec.Struct):
    """What clients and tools of the protocol ask of a model's configuration."""

    name: str
    platform: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]
    dynamic_batching: dict[str, Any]


class Statistics(msgspec.Struct):
    """The statistics extension's entries, one for each version."""

    model_stats: list[dict[str, Any]]


class IndexEntry(msgspec.Struct):
    """One version, and why it is not ready."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING"]
    reason: str


class Operated(msgspec.Struct):
    """A model that was loaded or unloaded."""

    model: str
    version: str | UnsetType = UNSET


class InferTensor(msgspec.Struct):
    """A tensor of the protocol; ``data`` is left out where its bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str | float | bool] | UnsetType = UNSET
    data: list[Any] | UnsetType = UNSET


class InferQuestion(msgspec.Struct):
    """An inference request of the protocol."""

    inputs: list[InferTensor]
    id: str | UnsetType = UNSET
    parameters: dict[str, str | float | bool] | UnsetType = UNSET
    outputs: list[dict[str, Any]] | UnsetType = UNSET


class InferAnswer(msgspec.Struct):
    """An inference response of the protocol; ``parameters`` names model, runtime, licence and receipts."""

    model_name: str
    model_version: str
    parameters: dict[str, str | float | bool]
    outputs: list[InferTensor]
    id: str | UnsetType = UNSET


class AuditRecords(msgspec.Struct):
    """Records of the audit log in order; ``next`` is where to go on, and ``size`` how many there are."""

    log: str
    size: int
    next: int
    records: list[dict[str, Any]]
    from_: int = msgspec.field(name="from")


class AuditReceipt(msgspec.Struct):
    """A record's bytes as text, its inclusion proof in hex, and the signed head that it leads to."""

    index: int
    record: str
    proof: list[str]
    head: str


_SCHEMAS = (
    Problem, Error, Live, Ready, Health, ModelReady, Server, Models, Model, Answer, Question, Configuration, Statistics,
    IndexEntry, Operated, InferQuestion, InferAnswer, AuditRecords, AuditReceipt,
)  # fmt: skip
_ANSWERS: dict[str, type[msgspec.Struct]] = {
    "/livez": Live,
    "/v2/health/live": Health,
    "/readyz": Ready,
    "/v2/health/ready": Health,
    "/v2": Server,
    "/v2/models": Models,
    "/v2/models/stats": Statistics,
    "/v2/models/{name}": Model,
    "/v2/models/{name}/ready": ModelReady,
    "/v2/models/{name}/config": Configuration,
    "/v2/models/{name}/stats": Statistics,
    "/v2/models/{name}/infer": InferAnswer,
    "/v2/repository/index": IndexEntry,
    "/v2/repository/models/{name}/load": Operated,
    "/v2/repository/models/{name}/unload": Operated,
    "/predict": Answer,
    "/audit/records": AuditRecords,
    "/audit/receipts/{index}": AuditReceipt,
}
_NOT_READY = ("/readyz", "/v2/health/ready", "/v2/models/{name}/ready")
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_TEXT = {"/metrics": "Prometheus text", "/audit/checkpoint": "a C2SP checkpoint: a signed note"}
#: What the engine is asked for, which may be late.
_ASKS = (
    "/metrics", "/stats", "/index", "/load", "/unload", "/infer", "/predict", "/records", "/checkpoint", "/{index}",
)  # fmt: skip


def _path(route: Route) -> str:
    """A route's path; of one version, that of its model."""
    return route.path.replace("/versions/{version}", "")


def operation(route: Route) -> dict[str, Any]:
    """What FastAPI cannot know of a route."""
    wanted: dict[str, Any] = {"security": [] if route.permission == OPEN else [{"bearer": []}]}
    if route.permission != OPEN:
        wanted["x-permission"] = route.permission
    parameters = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{form}$"}}
        for part, form in PARTS.items()
        if f"{{{part}}}" in route.path
    ] + _query(route)
    if parameters:
        wanted["parameters"] = parameters
    content = _asked(route)
    if content:
        wanted["requestBody"] = {"required": route.permission == "predict", "content": content}
    wanted["responses"] = {str(status): _response(route, status) for status in (200, *sorted(_errors(route)))}
    return wanted


def _query(route: Route) -> list[dict[str, Any]]:
    """What may stand behind the question mark."""
    if route.path != "/audit/records":
        return []
    return [
        {
            "name": name,
            "in": "query",
            "schema": {"type": "integer", "default": default, "minimum": least, "maximum": most},
        }
        for name, (default, least, most) in QUERY.items()
    ]


def _asked(route: Route) -> dict[str, Any]:
    """What a request's body may be."""
    if route.method != "POST":
        return {}
    if route.path == "/predict":
        return {"application/json": {"schema": _reference(Question)}, "application/octet-stream": _BYTES}
    if route.path.endswith("/infer"):
        return {"application/json": {"schema": _reference(InferQuestion)}, "application/octet-stream": _BYTES}
    return {"application/json": {"schema": {"type": "object"}}}


def _errors(route: Route) -> set[int]:
    statuses = {400, 408, 413, 500, 503}
    if route.path == "/audit/records":
        statuses |= {404}
    if route.permission != OPEN:
        statuses |= {401, 403, 429}
    if "{name}" in route.path or "{index}" in route.path:
        statuses |= {404}
    if route.path.endswith(_ASKS):
        statuses |= {504}
    if route.permission == "predict":
        statuses |= {404, 415, 422}
    if route.permission == "admin":
        statuses |= {422}
    return statuses


def _response(route: Route, status: int) -> dict[str, Any]:
    path = _path(route)
    if status == 200:  # noqa: PLR2004  (OK)
        return _answer(route, path)
    form, error = ("application/json", Error) if path.startswith("/v2") else ("application/problem+json", Problem)
    content: dict[str, Any] = {form: {"schema": _reference(error)}}
    if status != 503 or path not in _NOT_READY:  # noqa: PLR2004  (Service Unavailable)
        return {"description": "refused", "content": content}
    answer = _reference(_ANSWERS[path])
    both = {"anyOf": [answer, _reference(error)]}
    content["application/json"] = {"schema": both if form == "application/json" else answer}
    return {"description": "not ready, or refused", "content": content}


def _answer(route: Route, path: str) -> dict[str, Any]:
    if path in _TEXT:
        return {"description": _TEXT[path], "content": {"text/plain": {"schema": {"type": "string"}}}}
    schema: dict[str, Any] = _reference(_ANSWERS[path])
    if path == "/v2/repository/index":
        schema = {"type": "array", "items": schema}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if path.endswith("/infer"):
        content["application/octet-stream"] = _BYTES
    return {"description": route.summary, "content": content}


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def components() -> dict[str, Any]:
    """The schemas that :func:`operation` refers to, and how a caller shows who it is."""
    _, schemas = msgspec.json.schema_components(_SCHEMAS, ref_template="#/components/schemas/{name}")
    return {"schemas": schemas, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}}
