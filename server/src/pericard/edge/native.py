"""Handlers of the daemon's own routes: health, metrics, and ``POST /predict``."""

from __future__ import annotations

from functools import partial

from pericard.auth import require
from pericard.edge import encoding, predict, problems, samples
from pericard.edge.catalog import Model
from pericard.edge.gate import Call, Underway
from pericard.edge.http import Response, json_headers, json_response
from pericard.edge.inference import Row
from pericard.edge.upstream import Upstream
from pericard.errors import PericardError, UnsupportedMedia
from pericard.pipe import Answer

_JSON, _BYTES = "application/json", "application/octet-stream"


async def live(upstream: Upstream, call: Call) -> Response:
    """The edge runs."""
    del upstream
    return json_response({"live": True}, request_id=call.request_id)


async def ready(upstream: Upstream, call: Call) -> Response:
    """Some model can answer."""
    found = upstream.any_ready
    return json_response({"ready": found}, request_id=call.request_id, status=200 if found else 503)


async def metrics(upstream: Upstream, call: Call) -> Response:
    """Prometheus text."""
    _, text = await upstream.ask("metrics")
    headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8", "x-request-id": call.request_id}
    return Response(200, headers, text)


def score(upstream: Upstream, call: Call, body: bytes | memoryview) -> Underway:
    """Score one or several strips."""
    headers = call.head.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {_JSON, _BYTES}:
        raise UnsupportedMedia(
            f"content-type: {kind[:60] or 'none'!r} is not accepted here",
            hint=f"send {_JSON}, or samples as {_BYTES}",
        )
    if "content-encoding" in headers:
        body = encoding.unpack(body, headers, limit=upstream.limits.body_bytes)
    model, rows = _of_json(upstream, call, bytes(body)) if kind == _JSON else _of_bytes(upstream, call, body)
    runtime = upstream.catalog.runtime
    pending = upstream.inference.begin(rows, model, upstream.terms, head=call.head, principal=call.known)
    return Underway(pending, partial(_scored, upstream.said, call, model, runtime))


def _scored(
    said: predict.Said, call: Call, model: Model, runtime: str, answers: list[Answer | PericardError]
) -> Response:
    if len(answers) == 1 and isinstance(answers[0], PericardError):
        return problems.response(answers[0], request_id=call.request_id)
    shared = next((answer.shared for answer in answers if isinstance(answer, Answer)), None)
    if shared is None:  # without a single good row, what was known when they were asked about
        shared = {"model": model.entry["identity"], "runtime": runtime, "licence": model.entry["licence"]}
    text = predict.body(said.text(shared), call.request_id, answers, model)
    return Response(200, json_headers(call.request_id), text)


def _of_json(upstream: Upstream, call: Call, body: bytes) -> tuple[Model, list[Row | PericardError]]:
    """Model and strips of a JSON body: the quick way if it is as it should be, else the careful one."""
    quick = upstream.reader.read(body)
    if quick is not None:
        frame = quick.frame
        model = _meant(upstream, call, frame.fields.model, frame.fields.version)
        if frame.agreed is not model:
            predict.only_input(model.name, model.entry)
            predict.check_contract(frame.fields, model.name, model.entry)
            frame.agreed = model
        found = quick.rows(model.entry, limit=upstream.limits.items)
        if found is not None:
            return model, list(found)
    request = predict.parse(body)
    model = _meant(upstream, call, request.model, request.version)
    predict.check_contract(request, model.name, model.entry)
    return model, predict.rows(request, model.name, model.entry, limit=upstream.limits.items)


def _of_bytes(upstream: Upstream, call: Call, body: bytes | memoryview) -> tuple[Model, list[Row | PericardError]]:
    """Model and strips of a body of samples, which headers describe."""
    sent = samples.described(call.head.headers)
    model = _meant(upstream, call, sent.model, sent.version)
    spec = predict.only_input(model.name, model.entry)
    predict.check_contract(sent, model.name, model.entry)
    return model, list(samples.rows(body, sent.dtype, sent.gain, spec, limit=upstream.limits.items))


def _meant(upstream: Upstream, call: Call, name: str | None, version: str | None) -> Model:
    """The model that a caller names, if it may use it."""
    meant = upstream.only_model(call.known) if name is None else name
    require(call.known, "predict", meant[:64])
    return upstream.model(meant, version or "")
