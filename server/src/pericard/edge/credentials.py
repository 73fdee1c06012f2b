"""From a request's head to a credential."""

from __future__ import annotations

from pericard.auth import Authority, Principal
from pericard.edge.http import Head
from pericard.errors import Unauthenticated

_LONGEST = 8192  # of a token with claims and a signature


def authenticate(head: Head, authority: Authority) -> Principal:
    """The principal behind a request: by its token if it brings one, else by the certificate of its connection.

    Raises:
        Unauthenticated: there is no credential, or it is not valid.
    """
    value = head.headers.get("authorization", "")
    scheme, _, token = value.partition(" ")
    if not value and head.certificate is not None:
        return authority.certificate(head.certificate)
    if not value:
        raise Unauthenticated("credential: is missing", hint="send Authorization: Bearer <token>")
    if scheme.lower() != "bearer" or not token or len(token) > _LONGEST:
        raise Unauthenticated("credential: is not a bearer token", hint="send Authorization: Bearer <token>")
    return authority.bearer(token)
