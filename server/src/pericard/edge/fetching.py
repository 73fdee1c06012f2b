"""Fetches an issuer's keys: by the clock, over TLS, from one address, in bounded time and size; it follows nothing."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from contextlib import closing, suppress
from urllib.parse import urlsplit

from pericard.errors import ConfigError

_SECONDS = 10.0
_LARGEST = 256 << 10
_OK = 200


def fetch(url: str, ca: str | None) -> bytes:
    """The body of one GET; blocks for 10 seconds at most.

    Args:
        url: an ``https`` address.
        ca: PEM file of who vouches for it, or None for whom the system trusts.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        return _get(url, ca)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"{url}: cannot be fetched: {_reason(error)}") from error


def _get(url: str, ca: str | None) -> bytes:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError("it is no https address")
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=_SECONDS, context=context)
    with closing(connection):
        connection.connect()
        # a drop now and then would keep a time-out from coming
        late = threading.Timer(_SECONDS, _end, [connection.sock])
        late.daemon = True
        late.start()
        try:
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path or "/", headers={"Accept": "application/json", "Connection": "close"})
            response = connection.getresponse()
            if response.status != _OK:
                raise ValueError(f"it answers {response.status}")
            data = response.read(_LARGEST + 1)
        finally:
            late.cancel()
    if len(data) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST} bytes")
    return data


def _end(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    text = error.strerror if isinstance(error, OSError) else str(error)
    return (text or type(error).__name__).lower()
