"""Errors as HTTP: the only table of statuses, RFC 9457 problems, and the ``/v2`` form."""

from __future__ import annotations

import msgspec

from pericard.edge.http import Response
from pericard.errors import PericardError

#: Stable code → HTTP status. A code that is not here is a 500 that says nothing.
STATUS: dict[str, int] = {
    "malformed-request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "unknown-route": 404,
    "unknown-model": 404,
    "unknown-record": 404,
    "method-not-allowed": 405,
    "request-timeout": 408,
    "request-too-large": 413,
    "unsupported-media-type": 415,
    "contract-mismatch": 422,
    "invalid-input": 422,
    "not-interpretable": 422,
    "rate-limited": 429,
    "model-refused": 422,
    "overloaded": 503,
    "engine-away": 503,
    "model-not-ready": 503,
    "audit-unavailable": 503,
    "licence-expired": 503,
    "licence-not-yet-valid": 503,
    "deadline-exceeded": 504,
    "backend-failed": 500,
}
_RETRY_AFTER = {
    "overloaded": "1",
    "rate-limited": "1",
    "engine-away": "1",
    "model-not-ready": "5",
    "audit-unavailable": "5",
    "deadline-exceeded": "1",
}
_TYPE = "https://pericard.example/problems/"


def status_of(error: PericardError) -> int:
    """The HTTP status of an error."""
    return STATUS.get(error.code, 500)


def said(error: PericardError) -> tuple[str, str, str | None]:
    """Code, detail and hint as a caller may read them."""
    if error.code in STATUS:
        return error.code, error.message, error.hint
    return "internal-error", "the server failed", None


def response(error: PericardError, *, request_id: str, v2: bool = False) -> Response:
    """An error as a response: a problem, or ``{"error": …}`` under ``/v2``."""
    status = status_of(error)
    code, detail, hint = said(error)
    headers = {"x-request-id": request_id, "cache-control": "no-store"}
    if error.code in _RETRY_AFTER:
        headers["retry-after"] = _RETRY_AFTER[error.code]
    if status == 401:  # noqa: PLR2004  (RFC 9110 §15.5.2)
        headers["www-authenticate"] = "Bearer"
    if v2:
        headers |= {"content-type": "application/json", "x-error-code": code}
        return Response(status, headers, msgspec.json.encode({"error": detail}))
    headers["content-type"] = "application/problem+json"
    problem = {
        "type": _TYPE + code,
        "title": code.replace("-", " "),
        "status": status,
        "code": code,
        "detail": detail,
        **({"hint": hint} if hint else {}),
        "request_id": request_id,
    }
    return Response(status, headers, msgspec.json.encode(problem))
