# ruff: noqa: INP001  a script of the image, in no package
"""The image's health check: exits 0 while ``GET /livez`` on the container's own loopback answers 200.

Usage: ``python3 -I livez.py HOST PORT [--plain]``. Standard library only. The certificate is not verified: it names
the hospital's host and not the loopback address, nothing secret is sent, and only the status is used.
"""

import http.client
import ssl
import sys

_TIMEOUT_SECONDS = 3


def alive(host: str, port: int, *, tls: bool) -> bool:
    """Whether the server on this machine says that it lives; a refused or broken connection says no."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=context)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if alive(sys.argv[1], int(sys.argv[2]), tls="--plain" not in sys.argv[3:]) else 1)
