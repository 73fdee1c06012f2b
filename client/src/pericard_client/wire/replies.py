"""Replies: from status, headers and bytes to models, or to the error that the server named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NoReturn

from pericard_client.errors import Unavailable, UnexpectedReply, printable, refusal
from pericard_client.models import (
    ItemError,
    ModelIdentity,
    ModelMetadata,
    Prediction,
    PredictResult,
    Proof,
    Receipt,
    ScoreDescription,
    SignalContract,
    Status,
    TensorSpec,
    TimelineDescription,
)
from pericard_client.wire.fields import Fields

_SECONDS = re.compile(r"[0-9]{1,6}")
_STATUS: dict[str, Status] = {"ok": "ok", "not_interpretable": "not_interpretable", "error": "error"}


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole HTTP reply; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def parse_ready(reply: Reply) -> bool:
    """Whether the server can answer; a 503 of ``/readyz`` is an answer, too."""
    if reply.status not in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}:
        _refused(reply)
    return Fields.of_json(reply.body).flag("ready")


def parse_proof(reply: Reply) -> Proof:
    """A record with its proof; nothing of it is believed before it was verified."""
    body = _accepted(reply)
    return Proof(body.integer("index"), body.exact("record"), body.hashes("proof"), body.exact("head"))


def parse_models(reply: Reply) -> tuple[str, ...]:
    """The names of the models that the caller may use."""
    return _accepted(reply).texts("models")


def parse_metadata(reply: Reply) -> ModelMetadata:
    """The Open Inference Protocol metadata and Pericard's parameters."""
    body = _accepted(reply)
    parameters = body.part("parameters")
    return ModelMetadata(
        identity=_identity(parameters, body.text("name")),
        versions=body.texts("versions"),
        platform=body.text("platform"),
        inputs=tuple(_tensor(each) for each in body.parts("inputs")),
        outputs=tuple(_tensor(each) for each in body.parts("outputs")),
        runtime=parameters.text("runtime"),
        intended_use=parameters.maybe(parameters.text, "intended_use"),
        licence=parameters.maybe(parameters.text, "licence"),
        licence_not_after=parameters.maybe(parameters.time, "licence_not_after"),
        signal=_signal(parameters.maybe(parameters.part, "signal")),
        score=_score(parameters.maybe(parameters.part, "score")),
        timeline=_timeline(parameters.maybe(parameters.part, "timeline")),
    )


def parse_prediction(reply: Reply, *, strips: int) -> PredictResult:
    """The answer to ``POST /predict`` for that many strips."""
    body = _accepted(reply)
    model = body.part("model")
    predictions = tuple(_prediction(each) for each in body.parts("predictions"))
    if len(predictions) != strips:
        raise UnexpectedReply(f"predictions: {len(predictions)} came back for {strips} strips")
    return PredictResult(
        model=_identity(model, model.text("name")),
        runtime=body.text("runtime"),
        licence=body.text("licence"),
        request_ids=(body.text("request_id"),),
        predictions=predictions,
    )


def _accepted(reply: Reply) -> Fields:
    if reply.status != HTTPStatus.OK:
        _refused(reply)
    return Fields.of_json(reply.body)


def _refused(reply: Reply) -> NoReturn:
    """Raise what the server refused with: RFC 9457 problem details, or the Open Inference Protocol's error."""
    if reply.status < HTTPStatus.BAD_REQUEST:
        raise UnexpectedReply(
            f"server: status {reply.status} instead of an answer", hint="give the server's own address, not a redirect"
        )
    wait = reply.headers.get("retry-after", "")
    retry_after = int(wait) if _SECONDS.fullmatch(wait) else None
    request_id = printable(reply.headers.get("x-request-id", "")) or None
    try:
        body = Fields.of_json(reply.body)
        code = printable(reply.headers.get("x-error-code", "")) or body.text("code")
        detail = body.text("error" if body.maybe(body.text, "error") else "detail")
        hint = body.maybe(body.text, "hint")
        request_id = body.maybe(body.text, "request_id") or request_id
    except UnexpectedReply as error:
        message = f"server: status {reply.status} without a reason that this client knows"
        if reply.status == HTTPStatus.SERVICE_UNAVAILABLE:
            raise Unavailable(message, status=reply.status, retry_after=retry_after) from error
        raise UnexpectedReply(message, hint="something between here and the server may have answered") from error
    raise refusal(code, detail, status=reply.status, hint=hint, request_id=request_id, retry_after=retry_after)


def _identity(source: Fields, name: str) -> ModelIdentity:
    return ModelIdentity(
        name=name,
        version=source.text("version"),
        sequence=source.integer("sequence"),
        manifest=source.sha256("manifest"),
        publisher=source.text("publisher"),
    )


def _tensor(source: Fields) -> TensorSpec:
    return TensorSpec(source.text("name"), source.text("datatype"), source.integers("shape"))


def _signal(source: Fields | None) -> SignalContract | None:
    if source is None:
        return None
    accepted = source.text_lists("leads")
    rate = source.number("sampling_rate")
    if rate <= 0:
        raise UnexpectedReply(f"{source.where}.sampling_rate: not positive")
    if not accepted or not all(accepted):
        raise UnexpectedReply(f"{source.where}.leads: a channel without a name")
    return SignalContract(rate, source.text("unit"), accepted)


def _score(source: Fields | None) -> ScoreDescription | None:
    if source is None:
        return None
    return ScoreDescription(source.text("output"), source.maybe(source.number, "threshold"))


def _timeline(source: Fields | None) -> TimelineDescription | None:
    seconds = None if source is None else source.maybe(source.number, "frame_seconds")
    if source is None or seconds is None:  # a series whose frames have no length cannot be placed in time
        return None
    if seconds <= 0:
        raise UnexpectedReply(f"{source.where}.frame_seconds: not positive")
    return TimelineDescription(source.text("output"), seconds)


def _prediction(source: Fields) -> Prediction:
    status = _STATUS.get(source.text("status"))
    if status is None:
        raise UnexpectedReply(f"{source.where}.status: {source.text('status')} is not known")
    error = source.maybe(source.part, "error") if status == "ok" else source.part("error")
    receipt = source.maybe(source.part, "receipt") if status == "error" else source.part("receipt")
    outputs = source.part("outputs") if status == "ok" else None
    return Prediction(
        status=status,
        outputs={} if outputs is None else {name: outputs.values(name) for name in outputs.fields},
        error=None if error is None else ItemError(error.text("code"), error.text("detail")),
        receipt=None if receipt is None else _receipt(receipt),
    )


def _receipt(source: Fields) -> Receipt:
    return Receipt(
        log=source.text("log"),
        index=source.integer("index"),
        leaf=source.sha256("leaf"),
        opening_key=source.sha256("opening_key"),
    )
