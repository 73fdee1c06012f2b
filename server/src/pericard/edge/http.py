"""A request's head and a response, as plain values: what every entrance makes of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Head:
    """Everything of a request but its body.

    Attributes:
        method: upper case.
        path: as it was sent, without query, not normalised.
        headers: lower-case names; a header that came twice is joined with ``", "``.
        address: of the peer.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    address: str

    def request_id(self) -> str:
        """The caller's ``X-Request-Id`` if it is well formed, else a new one."""
        given = self.headers.get("x-request-id", "")
        return given if _REQUEST_ID.fullmatch(given) else os.urandom(12).hex()


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


#: Reads the body, at most the limit, within its time; raises ``RequestError``.
ReadBody = Callable[[], Awaitable[bytes]]


def json_response(value: object, *, request_id: str, status: int = 200) -> Response:
    """A JSON response."""
    headers = {"content-type": "application/json", "x-request-id": request_id, "cache-control": "no-store"}
    return Response(status, headers, msgspec.json.encode(value))
