"""Routes, and what stands before every one of them: no route without a permission, no path that is not in the table."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pericard.auth import Principal
from pericard.edge.http import Head, ReadBody, Response
from pericard.edge.upstream import Upstream
from pericard.errors import MethodNotAllowed, UnknownRoute

OPEN = ""  # the permission of a route that needs none

_MOST_FOUND = 1024
PARTS = {"name": "[a-z0-9][a-z0-9._-]{0,63}", "version": "[0-9]{1,16}"}


class Call(NamedTuple):
    """One request behind the gate."""

    head: Head
    principal: Principal | None
    read: ReadBody
    name: str  # the model in the path, or empty
    version: str  # its version in the path, or empty

    @property
    def request_id(self) -> str:
        """What names the request."""
        return self.head.request_id()

    @property
    def known(self) -> Principal:
        """The principal; only open routes have none."""
        if self.principal is None:
            raise AssertionError("an open route asked for its principal")
        return self.principal


Handler = Callable[[Upstream, Call], Awaitable[Response]]


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
        """Compile the path: ``{name}`` stands for one model name, ``{version}`` for a sequence number."""
        pattern = re.escape(self.path)
        for part, form in PARTS.items():
            pattern = pattern.replace(rf"\{{{part}\}}", f"(?P<{part}>{form})")
        object.__setattr__(self, "pattern", re.compile(pattern))


class Routes:
    """A table of routes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Take every route that there is."""
        self._routes = tuple(routes)
        self._plain = {(route.method, route.path): route for route in routes if "{" not in route.path}
        self._others = [route for route in routes if "{" in route.path]
        self._found: dict[tuple[str, str], tuple[Route, str, str]] = {}

    def match(self, head: Head) -> tuple[Route, str, str]:
        """The route of a request, and the model's name and version in its path.

        Raises:
            UnknownRoute, MethodNotAllowed: there is none.
        """
        asked = (head.method, head.path)
        route = self._plain.get(asked)
        if route is not None:
            return route, "", ""
        found = self._found.get(asked)
        if found is not None:
            return found
        for route in self._others:
            match = route.pattern.fullmatch(head.path) if route.method == head.method else None
            if match is not None:
                parts = match.groupdict()
                if len(self._found) >= _MOST_FOUND:
                    self._found.clear()
                self._found[asked] = (route, parts.get("name") or "", parts.get("version") or "")
                return self._found[asked]
        methods = self.methods(head.path)
        if methods:
            raise MethodNotAllowed(f"method: {head.method[:16]} is not for this path", hint=f"use {', '.join(methods)}")
        raise UnknownRoute("path: there is nothing here")

    def methods(self, path: str) -> list[str]:
        """The methods that a path knows."""
        return sorted({route.method for route in self._routes if route.pattern.fullmatch(path)})
