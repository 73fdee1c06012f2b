"""The raw ASGI entrance: what asks for inferences does not go through a web framework, which costs more than the rest.

It is the same answer function behind it, so the two ways differ in cost alone; a test asks everything of both. Whatever
is not an inference goes on to the application that was given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from pericard.edge.answer import Answerer
from pericard.edge.http import Gone, Head
from pericard.edge.limits import Limits, read_body
from pericard.errors import MalformedRequest

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where a server that knows puts the object that hears of a caller's leaving.
GONE = "pericard.gone"
#: Where a server that has the whole body already puts a function that gives it, once, or None.
ARRIVED = "pericard.arrived"
#: Where a server that verified a client's certificate puts it.
CERTIFICATE = "pericard.certificate"


def head_of(scope: Scope) -> Head:
    """A request's head from an ASGI scope."""
    path = scope.get("raw_path") or scope["path"].encode()
    client = scope["client"]
    gone = scope.get(GONE)
    return Head(
        scope["method"], path.decode("latin-1"), joined(scope["headers"]), client[0] if client else "",
        Gone() if gone is None else gone, scope.get("query_string", b"").decode("latin-1"), scope.get(CERTIFICATE),
    )  # fmt: skip


def joined(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as a head has them: lower-case names; a header that came twice is joined."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


class RawEntrance:
    """An ASGI application that answers inferences itself."""

    def __init__(self, answerer: Answerer, others: Application | None = None) -> None:
        """Answer through ``answerer``; what is not an inference goes to ``others``, or is answered here too."""
        self._answerer = answerer
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._others is not None and not (scope["type"] == "http" and is_inference(scope["method"], scope["path"])):
            await self._others(scope, receive, send)
            return
        limits = self._answerer.limits
        answered = await self._answerer.answer(head_of(scope), lambda: _body(scope, receive, limits))
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answered.headers.items()]
        headers.append((b"content-length", str(len(answered.body)).encode()))
        await send({"type": "http.response.start", "status": answered.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answered.body})


def is_inference(method: str, path: str) -> bool:
    """Whether a request asks for an inference, so far as its first line says; the routes decide."""
    return method == "POST" and (path == "/predict" or path.endswith("/infer"))


async def _body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    arrived = scope.get(ARRIVED)
    body: bytes | None = None if arrived is None else arrived()
    if body is None:
        return await read_body(_chunks(receive), limits)
    limits.check_body(len(body))  # nothing to wait for, so no clock is set
    return body


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MalformedRequest("body: ended before its end")
        more = message.get("more_body", False)
        yield message.get("body", b"")
