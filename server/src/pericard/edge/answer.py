"""The one answer function.

Every entrance (FastAPI's routes today, faster ones later) turns its request into a head and a way to read the body, and
calls :meth:`Answerer.answer`. The order is fixed: (1) limits on the head, (2) the route, (3) credential, (4) permission
on the server, (5) body, (6) what it means, (7) permission on the model, (8) the engine. A route that is not in the
table does not exist, and the table has no route without a permission except those that say so. What is refused before
the engine heard of it is told to the engine as an event; the engine counts and records everything else itself.
"""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pericard.auth import Principal, TokenFile, require
from pericard.edge import credentials, oip, predict, problems
from pericard.edge.http import Head, ReadBody, Response, json_response
from pericard.edge.limits import Limits, check_head
from pericard.edge.predict import Item, Model
from pericard.errors import (
    DeadlineExceeded,
    EngineAway,
    MalformedRequest,
    MethodNotAllowed,
    PericardError,
    UnknownModel,
    UnknownRoute,
    UnsupportedMedia,
)
from pericard.pipe import EngineLink, Frame

_logger = logging.getLogger(__name__)

OPEN = ""  # the permission of a route that needs none


class Call(NamedTuple):
    """One request behind the gate."""

    head: Head
    principal: Principal | None
    read: ReadBody
    request_id: str
    name: str  # the model in the path, or empty

    @property
    def known(self) -> Principal:
        """The principal; only open routes have none."""
        if self.principal is None:
            raise AssertionError("an open route asked for its principal")
        return self.principal


Handler = Callable[["Answerer", Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route: what it is and what it needs."""

    method: str
    path: str
    permission: str
    handler: Handler
    summary: str
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        """Compile the path: ``{name}`` stands for one model name."""
        pattern = re.escape(self.path).replace(r"\{name\}", r"(?P<name>[a-z0-9][a-z0-9._-]{0,63})")
        object.__setattr__(self, "pattern", re.compile(pattern))


class Answerer:
    """Answers requests with the help of an engine."""

    def __init__(self, link: EngineLink, tokens: TokenFile, limits: Limits, *, version: str) -> None:
        """Take the engine's link, the site's tokens and the limits."""
        self._link = link
        self._tokens = tokens
        self.limits = limits
        self._version = version

    async def answer(self, head: Head, read: ReadBody) -> Response:
        """Answer one request; never raises but on cancellation."""
        request_id = head.request_id()
        principal: Principal | None = None
        try:
            check_head(head, self.limits)
            try:
                route, name = _match(head)
            except PericardError:
                credentials.authenticate(head, self._tokens)  # strangers do not learn which paths exist
                raise
            if route.permission != OPEN:
                principal = credentials.authenticate(head, self._tokens)
                require(principal, route.permission, name or None)
            return await route.handler(self, Call(head, principal, read, request_id, name))
        except PericardError as error:
            return self._refusal(head, principal, error, request_id)
        except Exception as error:  # noqa: BLE001  (a mistake of ours must not answer in another voice, or with data)
            where = traceback.extract_tb(error.__traceback__)[-1]
            _logger.critical("answer failed: %s in %s, line %s", type(error).__name__, where.name, where.lineno)
            return self._refusal(head, principal, PericardError("answer: failed"), request_id)

    def _refusal(self, head: Head, principal: Principal | None, error: PericardError, request_id: str) -> Response:
        self._note(head, principal, error, request_id)
        response = problems.response(error, request_id=request_id, v2=head.path.startswith("/v2"))
        if isinstance(error, MethodNotAllowed):
            return replace(response, headers={**response.headers, "allow": ", ".join(_methods(head.path))})
        return response

    def refused(self, error: PericardError, address: str) -> None:
        """Tell the engine of a stranger's refusal; nobody waits for it."""
        self._link.event({"event": "refused", "code": error.code, "address": address})

    def _note(self, head: Head, principal: Principal | None, error: PericardError, request_id: str) -> None:
        """Tell the engine of a refusal that it does not know of; nobody waits for it."""
        if principal is None:
            self.refused(error, head.address)
            return
        caller = {"principal": principal.name, "credential": principal.credential, "request": request_id}
        self._link.event({"event": "refused", "code": error.code, "address": head.address, **caller})

    # --- routes ------------------------------------------------------------------------------------------------------

    async def live(self, call: Call) -> Response:
        """The edge runs."""
        return json_response({"live": True}, request_id=call.request_id)

    async def ready(self, call: Call) -> Response:
        """Some model can answer."""
        models = (self._link.catalog or {}).get("models", {})
        ready = any(map(oip.ready, models.values()))
        return json_response({"ready": ready}, request_id=call.request_id, status=200 if ready else 503)

    async def metrics(self, call: Call) -> Response:
        """Prometheus text."""
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                text = await self._link.metrics()
        except TimeoutError as error:
            raise self._late() from error
        headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8", "x-request-id": call.request_id}
        return Response(200, headers, text)

    async def server(self, call: Call) -> Response:
        """Server metadata."""
        return json_response(oip.server_metadata(self._version, self._catalog()["runtime"]), request_id=call.request_id)

    async def models(self, call: Call) -> Response:
        """Names of the models that the caller may see."""
        names = [name for name in self._catalog()["models"] if call.known.may("metadata", name)]
        return json_response({"models": names}, request_id=call.request_id)

    async def model(self, call: Call) -> Response:
        """Model metadata."""
        value = oip.model_metadata(call.name, self._model(call.name), self._catalog()["runtime"])
        return json_response(value, request_id=call.request_id)

    async def model_ready(self, call: Call) -> Response:
        """Whether one model can answer."""
        ready = oip.ready(self._model(call.name))
        value = {"name": call.name, "ready": ready}
        return json_response(value, request_id=call.request_id, status=200 if ready else 503)

    async def predict(self, call: Call) -> Response:
        """Score one or several items."""
        kind = call.head.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or "content-encoding" in call.head.headers:
            raise UnsupportedMedia(
                f"content-type: {kind[:60] or 'none'!r} is not accepted here", hint="send application/json, not encoded"
            )
        request = predict.parse(await call.read())
        name = request.model if request.model is not None else self._only_model(call.known)
        require(call.known, "predict", name[:64])
        model = self._model(name)
        predict.check_contract(request, name, model)
        found = predict.items(request, name, model, limit=self.limits.items)
        answers = await asyncio.gather(*(self._infer(item, name, call) for item in found))
        if len(answers) == 1 and isinstance(answers[0], PericardError):
            return problems.response(answers[0], request_id=call.request_id)
        first = next((answer for answer in answers if isinstance(answer, Frame)), None)
        catalog = self._link.catalog or {}
        value = {
            "model": first.meta["model"] if first else model["identity"],
            "runtime": first.meta["runtime"] if first else catalog.get("runtime", ""),
            "licence": first.meta["licence"] if first else model["licence"],
            "request_id": call.request_id,
            "predictions": [
                predict.failure(answer) if isinstance(answer, PericardError) else predict.prediction(answer, model)
                for answer in answers
            ],
        }
        return json_response(value, request_id=call.request_id)

    async def _infer(self, item: Item, name: str, call: Call) -> Frame | PericardError:
        if item.error is not None:
            self._note(call.head, call.known, item.error, call.request_id)
            return item.error
        meta = {
            "model": name,
            "principal": call.known.name,
            "credential": call.known.credential,
            "request": call.request_id,
            "address": call.head.address,
            "deadline_ms": int(self.limits.answer_seconds * 1000),
        }
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                return await self._link.infer(meta, item.data)
        except TimeoutError:
            late = self._late()  # the engine forgets who no longer waits, so it is told
            self._note(call.head, call.known, late, call.request_id)
            return late
        except PericardError as error:
            return error

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"answer: did not come within {self.limits.answer_seconds:g} seconds", hint="try again later"
        )

    def _catalog(self) -> dict[str, Any]:
        if self._link.catalog is None:
            raise EngineAway("engine: is not there at the moment", hint="try again in a second")
        return self._link.catalog

    def _model(self, name: str) -> Model:
        model: Model | None = self._catalog()["models"].get(name)
        if model is None:
            raise UnknownModel(f"model {name[:64]}: is not served here")
        return model

    def _only_model(self, principal: Principal) -> str:
        names = [name for name in self._catalog()["models"] if principal.may("predict", name)]
        if len(names) != 1:
            raise MalformedRequest(
                "model: is missing, and more or less than one could be meant", hint='name it: {"model": "…"}'
            )
        return str(names[0])


def _match(head: Head) -> tuple[Route, str]:
    for route in ROUTES:
        match = route.pattern.fullmatch(head.path)
        if match is not None and route.method == head.method:
            return route, match.groupdict().get("name") or ""
    methods = _methods(head.path)
    if methods:
        raise MethodNotAllowed(f"method: {head.method[:16]} is not for this path", hint=f"use {', '.join(methods)}")
    raise UnknownRoute("path: there is nothing here")


def _methods(path: str) -> list[str]:
    return sorted({route.method for route in ROUTES if route.pattern.fullmatch(path)})


ROUTES: tuple[Route, ...] = (
    Route("GET", "/livez", OPEN, Answerer.live, "The edge runs."),
    Route("GET", "/readyz", OPEN, Answerer.ready, "Some model can answer."),
    Route("GET", "/v2/health/live", OPEN, Answerer.live, "The edge runs."),
    Route("GET", "/v2/health/ready", OPEN, Answerer.ready, "Some model can answer."),
    Route("POST", "/predict", "predict", Answerer.predict, "Score one or several items."),
    Route("GET", "/metrics", "metrics", Answerer.metrics, "Prometheus metrics."),
    Route("GET", "/v2", "metadata", Answerer.server, "Server metadata."),
    Route("GET", "/v2/models", "metadata", Answerer.models, "Names of the models that the caller may see."),
    Route("GET", "/v2/models/{name}", "metadata", Answerer.model, "Model metadata."),
    Route("GET", "/v2/models/{name}/ready", "metadata", Answerer.model_ready, "Whether one model can answer."),
)
