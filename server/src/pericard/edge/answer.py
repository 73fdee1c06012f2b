"""The one answer function.

Every entrance turns its request into a head and a body, or a way to read it. The order is fixed: (1) limits on the
head, (2) the route, (3) credential, (4) permission on the server or the model in the path, (5) body, (6) what it means,
(7) permission on the model in the body, (8) the engine. An entrance that can wait asks :meth:`Answerer.answer`; one
that is called back takes the same steps one by one (``admit``, ``permit``, ``begin``). A route that is not in the table
does not exist, and the table has no route without a permission except those that say so. What is refused before the
engine heard of it is told to the engine as an event; the engine counts and records everything else itself.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pericard.auth import Authority, require
from pericard.edge import credentials, evidence, native, problems, v2
from pericard.edge.gate import OPEN, Begin, Call, Found, Handler, Route, Routes, Underway
from pericard.edge.http import Head, ReadBody, Response
from pericard.edge.limits import Limits, check_head
from pericard.edge.refusals_log import RefusalsLog
from pericard.edge.upstream import Upstream
from pericard.errors import Cancelled, MethodNotAllowed, PericardError, RateLimited, Unauthenticated
from pericard.pipe import EngineLink

Reply = Callable[[Response], None]

_logger = logging.getLogger(__name__)

_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"


def _both(
    method: str, path: str, permission: str, handler: Handler | None, summary: str, begin: Begin | None = None
) -> tuple[Route, ...]:
    """A route of a model, and the same for one version of it."""
    return tuple(Route(method, start + path, permission, handler, summary, begin) for start in (_MODEL, _VERSION))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/livez", OPEN, native.live, "The edge runs."),
    Route("GET", "/readyz", OPEN, native.ready, "Some model can answer."),
    Route("POST", "/predict", "predict", None, "Score one or several strips.", native.score),
    Route("GET", "/metrics", "metrics", native.metrics, "Prometheus metrics."),
    Route("GET", "/audit/records", "audit", evidence.records, "Records of the audit log."),
    Route(
        "GET", "/audit/checkpoint", "audit", evidence.checkpoint, "The signed head over all that is durable, published."
    ),
    Route("GET", "/audit/receipts/{index}", "audit", evidence.receipt, "A record and the proof that it is in the log."),
    Route("GET", "/v2", "metadata", v2.server, "Server metadata."),
    Route("GET", "/v2/health/live", OPEN, v2.live, "The edge runs."),
    Route("GET", "/v2/health/ready", OPEN, v2.ready, "Some model can answer."),
    Route("GET", "/v2/models", "metadata", v2.models, "Names of the models that the caller may see."),
    Route("GET", "/v2/models/stats", "metadata", v2.statistics, "Statistics of the models that the caller may see."),
    *_both("GET", "", "metadata", v2.model, "Model metadata."),
    *_both("GET", "/ready", "metadata", v2.model_ready, "Whether one model can answer."),
    *_both("GET", "/config", "metadata", v2.configuration, "Model configuration."),
    *_both("GET", "/stats", "metadata", v2.statistics, "Statistics of one model."),
    *_both("POST", "/infer", "predict", None, "Score rows by the Open Inference Protocol.", v2.infer),
    Route("POST", "/v2/repository/index", "metadata", v2.index, "Every version, and why one is not ready."),
    Route("POST", "/v2/repository/models/{name}/load", "admin", v2.load, "Load a model, or its newest version."),
    Route("POST", "/v2/repository/models/{name}/unload", "admin", v2.unload, "Unload a model."),
)


class Answerer:
    """Answers requests with the help of an engine."""

    def __init__(
        self,
        link: EngineLink,
        authority: Authority,
        limits: Limits,
        *,
        version: str,
        refusals_log: RefusalsLog | None = None,
    ) -> None:
        """Take the engine's link, who may, the limits, and the text log of refused credentials."""
        self._authority = authority
        self._routes = Routes(ROUTES)
        self.limits = limits
        self.upstream = Upstream(link, limits, version=version, refusals_log=refusals_log)
        self.refused = self.upstream.refused

    async def answer(self, head: Head, read: ReadBody) -> Response:
        """Answer one request; never raises but on cancellation."""
        call: Call | None = None
        try:
            call = self.admit(head, read=read)
            self.permit(call)
            route = call.found.route
            if route.handler is not None:
                return await route.handler(self.upstream, call)
            underway = self._begin(call, await call.body())
            return underway.finish(await underway.pending.wait())
        except Exception as error:  # noqa: BLE001  (a mistake of ours must not answer in another voice, or with data)
            response = self.failure(error, head, call)
        if response.after:
            await asyncio.sleep(response.after)
        return response

    def admit(self, head: Head, found: Found | None = None, read: ReadBody | None = None) -> Call:
        """Find out what a request asks for, and who asks.

        Args:
            head: of the request.
            found: of a call with the very same method, path and headers, if there was one.
            read: reads the body; None if it is there.

        Raises:
            PericardError: it is refused.
        """
        if found is None:
            check_head(head, self.limits)
            try:
                found = self._routes.match(head)
            except PericardError:
                credentials.authenticate(head, self._authority)  # strangers do not learn which paths exist
                raise
        principal = None
        if found.route.permission != OPEN:
            principal = credentials.authenticate(head, self._authority)
        return Call(head, principal, found, read)

    def permit(self, call: Call) -> None:
        """Let a caller do what its path says.

        Raises:
            Forbidden: it was not granted.
        """
        permission = call.found.route.permission
        if permission != OPEN:
            require(call.known, permission, call.name or None)

    def begin(self, call: Call, body: bytes | memoryview, reply: Reply) -> None:
        """Answer an inference that was let in and whose body is there; never raises, and does not wait.

        Args:
            call: what :meth:`admit` gave.
            body: whole.
            reply: gets the response, at once or later.
        """
        try:
            underway = self._begin(call, body)
        except Exception as error:  # noqa: BLE001  (as in answer)
            reply(self.failure(error, call.head, call))
        else:
            underway.pending.then(partial(self._finish, call, underway, reply))

    def _begin(self, call: Call, body: bytes | memoryview) -> Underway:
        begin = call.found.route.begin
        if begin is None:
            raise AssertionError("a route has neither a handler nor a beginning")
        return begin(self.upstream, call, body)

    def _finish(self, call: Call, underway: Underway, reply: Reply) -> None:
        try:
            response = underway.finish(underway.pending.found())
        except Exception as error:  # noqa: BLE001  (as in answer)
            response = self.failure(error, call.head, call)
        try:
            reply(response)
        except Exception:  # noqa: BLE001  (what comes of one answer must not harm the next, which came with it)
            _logger.critical("a response was not written")

    def failure(self, error: Exception, head: Head, call: Call | None) -> Response:
        """What went wrong with a request as a response, and told to the engine if it does not know of it."""
        if not isinstance(error, PericardError):
            where = traceback.extract_tb(error.__traceback__)[-1]
            _logger.critical("answer failed: %s in %s, line %s", type(error).__name__, where.name, where.lineno)
            error = PericardError("answer: failed")
        if not isinstance(error, Cancelled):  # the engine knows, and nobody reads this
            self.upstream.note(error, head, None if call is None else call.principal)
        after, more = 0.0, {}
        if isinstance(error, Unauthenticated):
            try:
                after = self.upstream.delays.failed(head.address)
            except RateLimited as limited:
                error, more = limited, {"connection": "close"}
        response = problems.response(error, request_id=head.request_id, v2=head.path.startswith("/v2"))
        if after or more:
            return replace(response, headers={**response.headers, **more}, after=after)
        if isinstance(error, MethodNotAllowed):
            allow = ", ".join(self._routes.methods(head.path))
            return replace(response, headers={**response.headers, "allow": allow})
        return response
