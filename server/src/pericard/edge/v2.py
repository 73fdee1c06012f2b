"""Handlers of the Open Inference Protocol: between the pure functions of ``oip``, callers and the engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pericard.edge import encoding, oip, predict, problems
from pericard.edge.catalog import Model
from pericard.edge.gate import Call, Underway
from pericard.edge.http import Response, json_response
from pericard.edge.inference import Terms
from pericard.edge.upstream import Upstream
from pericard.errors import ModelRefused, NotInterpretable, PericardError
from pericard.pipe import Answer
from pericard.pipe.frames import DEFAULT_PRIORITY

_LOAD_SECONDS = 900.0  # a model is read, decrypted and asked its known questions


async def live(upstream: Upstream, call: Call) -> Response:
    """The edge runs."""
    return json_response(oip.live(ready=upstream.any_ready), request_id=call.request_id)


async def ready(upstream: Upstream, call: Call) -> Response:
    """Some model can answer."""
    found = upstream.any_ready
    status = 200 if found else 503
    return json_response(oip.server_ready(ready=found), request_id=call.request_id, status=status)


async def server(upstream: Upstream, call: Call) -> Response:
    """Server metadata."""
    value = oip.server_metadata(upstream.version, upstream.catalog.runtime, upstream.catalog.environment)
    return json_response(value, request_id=call.request_id)


async def models(upstream: Upstream, call: Call) -> Response:
    """Names of the models that the caller may see."""
    names = [name for name in upstream.catalog.names if call.known.may("metadata", name)]
    return json_response({"models": names}, request_id=call.request_id)


async def model(upstream: Upstream, call: Call) -> Response:
    """Model metadata."""
    found = upstream.model(call.name, call.version)
    versions = upstream.catalog.versions(call.name)
    value = oip.model_metadata(call.name, found.entry, upstream.catalog.runtime, versions)
    return json_response(value, request_id=call.request_id)


async def model_ready(upstream: Upstream, call: Call) -> Response:
    """Whether one model can answer."""
    found = upstream.model(call.name, call.version)
    if found.ready:
        return json_response(oip.model_ready(call.name, ready=True), request_id=call.request_id)
    value = oip.model_ready(call.name, ready=False, reason=str(found.entry["reason"]))
    return json_response(value, request_id=call.request_id, status=503)


async def configuration(upstream: Upstream, call: Call) -> Response:
    """Model configuration."""
    found = upstream.model(call.name, call.version)
    versions = upstream.catalog.versions(call.name)
    return json_response(oip.model_configuration(call.name, found.entry, versions), request_id=call.request_id)


async def statistics(upstream: Upstream, call: Call) -> Response:
    """What the models that the caller may see did so far."""
    if call.name:
        upstream.model(call.name, call.version)  # raises if there is none
    said, _ = await upstream.ask("statistics")
    value = oip.statistics(said["model_stats"], _visible(call), name=call.name or None, version=call.version or None)
    return json_response(value, request_id=call.request_id)


async def index(upstream: Upstream, call: Call) -> Response:
    """Every version that the caller may see, and why one is not ready."""
    only_ready = oip.parse_index(await call.body())
    said, _ = await upstream.ask("index")
    return json_response(oip.index(said["index"], _visible(call), ready=only_ready), request_id=call.request_id)


async def load(upstream: Upstream, call: Call) -> Response:
    """Load a model, or the newest version of it."""
    oip.parse_load(await call.body())
    return await _operate(upstream, call, "load")


async def unload(upstream: Upstream, call: Call) -> Response:
    """Unload a model until it is loaded again."""
    oip.parse_unload(await call.body())
    return await _operate(upstream, call, "unload")


def infer(upstream: Upstream, call: Call, body: bytes | memoryview) -> Underway:
    """Score rows by the Open Inference Protocol."""
    head, limits = call.head, upstream.limits
    if "content-encoding" in head.headers:
        body = encoding.unpack(body, head.headers, limit=limits.body_bytes)
    found = upstream.model(call.name, call.version)
    request = upstream.plans.parse(body, head.headers, found.entry, limit_rows=limits.items)
    predict.check_contract(request.contract, found.name, found.entry)
    terms = _terms(request, limits.answer_seconds)
    pending = upstream.inference.begin(request.rows, found, terms, head=head, principal=call.known)
    return Underway(pending, partial(_inferred, upstream, call, found, request))


def _inferred(
    upstream: Upstream, call: Call, model: Model, request: oip.InferRequest, answers: list[Answer | PericardError]
) -> Response:
    for answer in answers:
        error = _flaw(answer)
        if error is not None:  # not raised: the engine knows of it
            return problems.response(error, request_id=call.request_id, v2=True)
    good = [answer for answer in answers if isinstance(answer, Answer)]
    parameters = upstream.parameters.of(good[0].shared)
    headers, text = oip.render(request, [answer.entry for answer in good], model.entry, parameters=parameters)
    accept = call.head.headers.get("accept-encoding")
    if accept is not None:
        packed, text = encoding.pack(text, accept)
        headers |= packed
    headers["x-request-id"], headers["cache-control"] = call.request_id, "no-store"
    return Response(200, headers, text)


def _terms(request: oip.InferRequest, most: float) -> Terms:
    seconds = most if request.timeout_us is None else min(most, request.timeout_us / 1e6)
    return Terms(seconds, request.priority or DEFAULT_PRIORITY)


def _flaw(answer: Answer | PericardError) -> PericardError | None:
    """Why a row has no outputs; the request then fails as a whole, since the protocol has no errors of rows."""
    if isinstance(answer, PericardError):
        return answer
    return None if answer.flaw is None else NotInterpretable(answer.flaw)


def _visible(call: Call) -> Callable[[str], bool]:
    return lambda name: call.known.may("metadata", name)


async def _operate(upstream: Upstream, call: Call, name: str) -> Response:
    try:
        done, _ = await upstream.ask(name, {**call.caller, "model": call.name}, seconds=_LOAD_SECONDS)
    except PericardError as error:
        if error.code in problems.STATUS:
            raise
        # an administrator may hear the code, not the words, which name files
        raise ModelRefused(
            f"model {call.name}: was not taken: {error.code}", hint="the daemon's log says more"
        ) from error
    return json_response(done, request_id=call.request_id)
