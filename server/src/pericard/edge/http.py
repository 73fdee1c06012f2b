"""A request's head and a response, as plain values: what every entrance makes of its own."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from pericard.auth import Certificate

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OURS = os.urandom(8).hex()  # a process's requests are numbered, and no other process has these names
_numbers = itertools.count(1)


class Gone:
    """Whether a caller left before its answer, and what happens then; an entrance that cannot tell never says so."""

    __slots__ = ("_callback", "happened")

    def __init__(self) -> None:
        self.happened = False
        self._callback: Callable[[], None] | None = None

    def then(self, callback: Callable[[], None]) -> None:
        """Call back once the caller left; at once if it has."""
        if self.happened:
            callback()
        else:
            self._callback = callback

    def forget(self) -> None:
        """Nobody needs to hear of it any more."""
        self._callback = None

    def happen(self) -> None:
        """The caller left."""
        if not self.happened:
            self.happened = True
            callback, self._callback = self._callback, None
            if callback is not None:
                callback()


@dataclass(slots=True)
class Head:
    """Everything of a request but its body.

    Attributes:
        method: upper case.
        path: as it was sent, without query, not normalised.
        headers: lower-case names; a header that came twice is joined with ``", "``.
        address: of the peer.
        gone: hears of it when the caller leaves.
        query: what stands behind the path's question mark, as it was sent.
        certificate: that the peer of this connection proved to have the key of.
        request_id: what names the request.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    address: str
    gone: Gone = field(default_factory=Gone)
    query: str = ""
    certificate: Certificate | None = None
    request_id: str = field(init=False)

    def __post_init__(self) -> None:
        """Take the caller's ``X-Request-Id`` if it is well formed, else make a new name for the request."""
        given = self.headers.get("x-request-id")
        named = given is not None and _REQUEST_ID.fullmatch(given)
        self.request_id = given if given is not None and named else f"{_OURS}{next(_numbers):08x}"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response.

    Attributes:
        after: seconds before it may be written.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    after: float = 0.0


#: Reads the body, at most the limit, within its time; raises ``RequestError``.
ReadBody = Callable[[], Awaitable[bytes]]


def json_headers(request_id: str) -> dict[str, str]:
    """The headers of a JSON response."""
    return {"content-type": "application/json", "x-request-id": request_id, "cache-control": "no-store"}


def json_response(value: object, *, request_id: str, status: int = 200) -> Response:
    """A JSON response."""
    return Response(status, json_headers(request_id), msgspec.json.encode(value))
