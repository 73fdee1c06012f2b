"""From a request's head to a credential."""

from __future__ import annotations

from pericard.auth import Principal, TokenFile
from pericard.edge.http import Head
from pericard.errors import Unauthenticated

_LONGEST = 256


def authenticate(head: Head, tokens: TokenFile) -> Principal:
    """The principal behind a request.

    Raises:
        Unauthenticated: there is no credential, or it is not valid.
    """
    value = head.headers.get("authorization", "")
    scheme, _, token = value.partition(" ")
    if not value:
        raise Unauthenticated("credential: is missing", hint="send Authorization: Bearer <token>")
    if scheme.lower() != "bearer" or not token or len(token) > _LONGEST:
        raise Unauthenticated("credential: is not a bearer token", hint="send Authorization: Bearer <token>")
    return tokens.authenticate(token)
