"""Routes, and what stands before every one of them: no route without a permission, no path that is not in the table."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pericard.auth import Principal
from pericard.edge.http import Head, ReadBody, Response
from pericard.edge.inference import Pending
from pericard.edge.upstream import Upstream
from pericard.errors import MethodNotAllowed, PericardError, UnknownRoute
from pericard.pipe import Answer

OPEN = ""  # the permission of a route that needs none

_MOST_FOUND = 1024
PARTS = {"name": "[a-z0-9][a-z0-9._-]{0,63}", "version": "[0-9]{1,16}", "index": "[0-9]{1,16}"}


class Call(NamedTuple):
    """One request behind the gate."""

    head: Head
    principal: Principal | None
    found: Found
    read: ReadBody | None = None  # None if the body is there

    @property
    def name(self) -> str:
        """The model in the path, or empty."""
        return self.found.name

    @property
    def version(self) -> str:
        """Its version in the path, or empty."""
        return self.found.version

    @property
    def record(self) -> str:
        """The index of a record in the path, or empty."""
        return self.found.record

    @property
    def caller(self) -> dict[str, str]:
        """Who asks, as the engine records it."""
        known = self.known
        return {
            "principal": known.name,
            "credential": known.credential,
            "address": self.head.address,
            "request": self.request_id,
        }

    @property
    def request_id(self) -> str:
        """What names the request."""
        return self.head.request_id

    @property
    def known(self) -> Principal:
        """The principal; only open routes have none."""
        if self.principal is None:
            raise AssertionError("an open route asked for its principal")
        return self.principal

    async def body(self) -> bytes:
        """The body, at most the limit, within its time; raises ``RequestError``."""
        if self.read is None:
            raise AssertionError("a body was read that is there already")
        return await self.read()


class Underway(NamedTuple):
    """An inference that the engine has: its rows, and what makes a response of them."""

    pending: Pending
    finish: Callable[[list[Answer | PericardError]], Response]


#: Answers a request, and may wait.
Handler = Callable[[Upstream, Call], Awaitable[Response]]
#: Makes an inference of a request and its body, and does not wait.
Begin = Callable[[Upstream, Call, bytes | memoryview], Underway]


@dataclass(frozen=True, slots=True)
class Route:
    """One route: what it is and what it needs; a handler, or what begins an inference."""

    method: str
    path: str
    permission: str
    handler: Handler | None
    summary: str
    begin: Begin | None = None
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        """Compile the path: each of :data:`PARTS` may stand in it in braces."""
        pattern = re.escape(self.path)
        for part, form in PARTS.items():
            pattern = pattern.replace(rf"\{{{part}\}}", f"(?P<{part}>{form})")
        object.__setattr__(self, "pattern", re.compile(pattern))


class Found(NamedTuple):
    """What a request's method and path say."""

    route: Route
    name: str = ""
    version: str = ""
    record: str = ""


class Routes:
    """A table of routes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Take every route that there is."""
        self._routes = tuple(routes)
        self._plain = {(route.method, route.path): Found(route) for route in routes if "{" not in route.path}
        self._others = [route for route in routes if "{" in route.path]
        self._found: dict[tuple[str, str], Found] = {}

    def match(self, head: Head) -> Found:
        """The route of a request, and the model's name and version in its path.

        Raises:
            UnknownRoute, MethodNotAllowed: there is none.
        """
        asked = (head.method, head.path)
        found = self._plain.get(asked) or self._found.get(asked)
        if found is not None:
            return found
        for route in self._others:
            match = route.pattern.fullmatch(head.path) if route.method == head.method else None
            if match is not None:
                parts = match.groupdict()
                if len(self._found) >= _MOST_FOUND:
                    self._found.clear()
                found = self._found[asked] = Found(route, *(parts.get(part) or "" for part in PARTS))
                return found
        methods = self.methods(head.path)
        if methods:
            raise MethodNotAllowed(f"method: {head.method[:16]} is not for this path", hint=f"use {', '.join(methods)}")
        raise UnknownRoute("path: there is nothing here")

    def methods(self, path: str) -> list[str]:
        """The methods that a path knows."""
        return sorted({route.method for route in self._routes if route.pattern.fullmatch(path)})
