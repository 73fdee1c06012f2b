"""The FastAPI entrance: declares the routes, and calls the answer function for each of them.

FastAPI's own parsing, validation and error handling are not used: what it would answer, it would answer differently
from every other entrance.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi import Response as HttpResponse
from starlette.requests import ClientDisconnect
from starlette.routing import request_response

from pericard.edge import asgi, description
from pericard.edge.answer import ROUTES, Answerer
from pericard.edge.limits import Limits, read_body
from pericard.errors import MalformedRequest

_PLAIN = str.maketrans("", "", "{}")


def create_app(answerer: Answerer, *, version: str) -> FastAPI:
    """The application: every declared route, and one for everything else, all through the answer function."""
    app = FastAPI(
        title="Pericard",
        version=version,
        description="Sealed models behind authentication and evidence. See docs/spec/http-api.md.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    endpoint = _endpoint(answerer)
    anything = request_response(endpoint)
    for route in ROUTES:
        app.add_api_route(
            route.path,
            endpoint,
            methods=[route.method],
            name=f"{route.method} {route.path}",
            summary=route.summary,
            openapi_extra=description.operation(route),
            response_model=None,
            operation_id=f"{route.method.lower()}{route.path.replace('/', '_').translate(_PLAIN)}",
        )
    app.mount("/", anything)  # every other path, and every other method
    app.router.default = anything  # what is not even a path
    return app


def _endpoint(answerer: Answerer) -> Callable[[Request], Awaitable[HttpResponse]]:
    async def endpoint(request: Request) -> HttpResponse:
        answered = await answerer.answer(asgi.head_of(request.scope), lambda: _read(request, answerer.limits))
        return HttpResponse(content=answered.body, status_code=answered.status, headers=dict(answered.headers))

    return endpoint


async def _read(request: Request, limits: Limits) -> bytes:
    try:
        return await read_body(request.stream(), limits)
    except ClientDisconnect as error:
        raise MalformedRequest("body: ended before its end") from error


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    return {**app.openapi(), "components": description.components()}
