"""Strangers who send wrong credentials as fast as they are refused: ``flood.py PORT CONNECTIONS SECONDS KEEP``.

Prints what came back, as JSON.

Each connection asks again as soon as it was answered; with KEEP 0 through a new connection each time. A connection that
the server closes is made anew.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time
from collections import Counter

_ASK = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer pcd_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\nContent-Length: 2\r\n\r\n{}"
)
_ANSWERED = b'"request_id":"'  # stands at the end of a refusal, behind everything that is read here


class Flood:
    """All connections of one flood."""

    def __init__(self, port: int, *, keep: bool) -> None:
        self._port, self._keep = port, keep
        self._selector = selectors.DefaultSelector()
        self.counts: Counter[str] = Counter()

    def dial(self) -> None:
        """One more connection, which asks at once."""
        sock = socket.socket()
        try:
            sock.connect(("127.0.0.1", self._port))
        except OSError as error:
            self.counts[errno.errorcode.get(error.errno or 0, "unknown")] += 1
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ)
        self._ask(sock)

    def run(self, connections: int, seconds: float) -> float:
        """Flood for a while; the seconds that it took."""
        begun = time.monotonic()
        while (left := begun + seconds - time.monotonic()) > 0:
            for _ in range(connections - len(self._selector.get_map())):
                self.dial()
            for key, _ in self._selector.select(min(left, 0.1)):
                self._heard(key.fileobj)  # type: ignore[arg-type]  # sockets alone were registered
        return time.monotonic() - begun

    def _ask(self, sock: socket.socket) -> None:
        try:
            sock.send(_ASK)
            self.counts["asked"] += 1
        except OSError:
            self._drop(sock)

    def _heard(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.counts["closed"] += 1
            self._drop(sock)
            return
        self.counts[data[9:12].decode("latin-1")] += 1
        if self._keep and _ANSWERED in data and b"connection: close" not in data:
            self._ask(sock)
        else:
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()


def main() -> None:
    """Flood, and say what came back."""
    port, connections, seconds, keep = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1"
    flood = Flood(port, keep=keep)
    taken = flood.run(connections, seconds)
    sys.stdout.write(json.dumps({"seconds": taken, **flood.counts}) + "\n")


if __name__ == "__main__":
    main()
