"""What a proxy on this host says of its clients; believed on its own Unix socket, and on no other listener.

The proxy ends TLS, verifies certificates, and says for every request who it was: ``X-Client-Address``,
``X-Client-Verify`` (``NONE`` or ``SUCCESS``) and, after ``SUCCESS``, ``X-Client-Certificate``, the PEM text
URL-encoded, as nginx's ``$ssl_client_escaped_cert``. A request without the first two comes from a proxy that was not
set up to say them, and would let its clients say them instead: it is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from pericard.auth import PROXIED, Certificate, read_certificate
from pericard.errors import MalformedRequest

_HINT = "the proxy sets X-Client-Address, X-Client-Verify and X-Client-Certificate for every request"


class Client(NamedTuple):
    """A proxy's client: its address, and the certificate that the proxy verified."""

    address: str
    certificate: Certificate | None


def client(headers: Mapping[str, str]) -> Client:
    """Who a request is from.

    Raises:
        MalformedRequest: the proxy does not say it, or not so that it can be read.
    """
    verified, certificate = headers.get("x-client-verify"), headers.get("x-client-certificate")
    address = _address(headers.get("x-client-address", ""))
    if verified == "NONE" and certificate is None:
        return Client(address, None)
    found = _certificate(certificate) if verified == "SUCCESS" and certificate is not None else None
    if found is None:
        raise MalformedRequest("x-client-verify: does not go with a certificate that can be read", hint=_HINT)
    return Client(address, found)


@lru_cache(1024)
def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise MalformedRequest("x-client-address: is not an address", hint=_HINT) from error


@lru_cache(1024)
def _certificate(text: str) -> Certificate | None:
    return read_certificate(unquote(text, "latin-1").encode("latin-1"), trust=PROXIED)
