"""The one answer function.

Every entrance turns its request into a head and a way to read the body, and calls :meth:`Answerer.answer`. The order is
fixed: (1) limits on the head, (2) the route, (3) credential, (4) permission on the server or the model in the path,
(5) body, (6) what it means, (7) permission on the model in the body, (8) the engine. A route that is not in the
table does not exist, and the table has no route without a permission except those that say so. What is refused before
the engine heard of it is told to the engine as an event; the engine counts and records everything else itself.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import replace

from pericard.auth import Principal, TokenFile, require
from pericard.edge import credentials, native, problems, v2
from pericard.edge.gate import OPEN, Call, Handler, Route, Routes
from pericard.edge.http import Head, ReadBody, Response
from pericard.edge.limits import Limits, check_head
from pericard.edge.upstream import Upstream
from pericard.errors import Cancelled, MethodNotAllowed, PericardError
from pericard.pipe import EngineLink

_logger = logging.getLogger(__name__)

_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"


def _both(method: str, path: str, permission: str, handler: Handler, summary: str) -> tuple[Route, ...]:
    """A route of a model, and the same for one version of it."""
    return tuple(Route(method, start + path, permission, handler, summary) for start in (_MODEL, _VERSION))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/livez", OPEN, native.live, "The edge runs."),
    Route("GET", "/readyz", OPEN, native.ready, "Some model can answer."),
    Route("POST", "/predict", "predict", native.score, "Score one or several strips."),
    Route("GET", "/metrics", "metrics", native.metrics, "Prometheus metrics."),
    Route("GET", "/v2", "metadata", v2.server, "Server metadata."),
    Route("GET", "/v2/health/live", OPEN, v2.live, "The edge runs."),
    Route("GET", "/v2/health/ready", OPEN, v2.ready, "Some model can answer."),
    Route("GET", "/v2/models", "metadata", v2.models, "Names of the models that the caller may see."),
    Route("GET", "/v2/models/stats", "metadata", v2.statistics, "Statistics of the models that the caller may see."),
    *_both("GET", "", "metadata", v2.model, "Model metadata."),
    *_both("GET", "/ready", "metadata", v2.model_ready, "Whether one model can answer."),
    *_both("GET", "/config", "metadata", v2.configuration, "Model configuration."),
    *_both("GET", "/stats", "metadata", v2.statistics, "Statistics of one model."),
    *_both("POST", "/infer", "predict", v2.infer, "Score rows by the Open Inference Protocol."),
    Route("POST", "/v2/repository/index", "metadata", v2.index, "Every version, and why one is not ready."),
    Route("POST", "/v2/repository/models/{name}/load", "admin", v2.load, "Load a model, or its newest version."),
    Route("POST", "/v2/repository/models/{name}/unload", "admin", v2.unload, "Unload a model."),
)


class Answerer:
    """Answers requests with the help of an engine."""

    def __init__(self, link: EngineLink, tokens: TokenFile, limits: Limits, *, version: str) -> None:
        """Take the engine's link, the site's tokens and the limits."""
        self._tokens = tokens
        self._routes = Routes(ROUTES)
        self.limits = limits
        self.upstream = Upstream(link, limits, version=version)
        self.refused = self.upstream.refused

    async def answer(self, head: Head, read: ReadBody) -> Response:
        """Answer one request; never raises but on cancellation."""
        principal: Principal | None = None
        try:
            check_head(head, self.limits)
            try:
                route, name, version = self._routes.match(head)
            except PericardError:
                credentials.authenticate(head, self._tokens)  # strangers do not learn which paths exist
                raise
            if route.permission != OPEN:
                principal = credentials.authenticate(head, self._tokens)
                require(principal, route.permission, name or None)
            return await route.handler(self.upstream, Call(head, principal, read, name, version))
        except PericardError as error:
            return self._refusal(head, principal, error)
        except Exception as error:  # noqa: BLE001  (a mistake of ours must not answer in another voice, or with data)
            where = traceback.extract_tb(error.__traceback__)[-1]
            _logger.critical("answer failed: %s in %s, line %s", type(error).__name__, where.name, where.lineno)
            return self._refusal(head, principal, PericardError("answer: failed"))

    def _refusal(self, head: Head, principal: Principal | None, error: PericardError) -> Response:
        if not isinstance(error, Cancelled):  # the engine knows, and nobody reads this
            self.upstream.note(error, head, principal)
        response = problems.response(error, request_id=head.request_id(), v2=head.path.startswith("/v2"))
        if isinstance(error, MethodNotAllowed):
            allow = ", ".join(self._routes.methods(head.path))
            return replace(response, headers={**response.headers, "allow": allow})
        return response
