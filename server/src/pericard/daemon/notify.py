"""systemd's readiness protocol (sd_notify): one datagram to ``$NOTIFY_SOCKET``, nothing if it is not set."""

from __future__ import annotations

import contextlib
import os
import socket


def tell(state: str) -> None:
    """Tell systemd, if it started us; a failure to do so is not ours to die of."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
