"""The engine's end: a thread reads frames, any thread answers.

An edge that does not read its answers is cut off after a bounded wait, so that it cannot hold the engine up.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable

from pericard.errors import PericardError, PipeError
from pericard.pipe.frames import Frame, FrameReader, FrameType, Meta, encode

_SEND_SECONDS = 5
_READ_SIZE = 1 << 18
_logger = logging.getLogger(__name__)


class EdgeLink:
    """A connection to one edge."""

    def __init__(self, sock: socket.socket, handler: Callable[[EdgeLink, Frame], None]) -> None:
        """Start reading; ``handler`` is called on the reading thread for every frame."""
        self._sock = sock
        self._handler = handler
        self._lock = threading.Lock()
        sock.setblocking(True)
        # a send that takes longer means that the edge no longer reads
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_SECONDS, 0))
        self._thread = threading.Thread(target=self._read, name="edge-link", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def send(self, frames: Iterable[bytes]) -> None:
        """Send encoded frames in one go; an edge that is gone or stuck is dropped."""
        left = memoryview(b"".join(frames))
        with self._lock:
            latest = time.monotonic() + _SEND_SECONDS
            try:
                while left:
                    left = left[self._sock.send(left) :]  # waits at most _SEND_SECONDS
                    if left and time.monotonic() > latest:  # an edge that takes a byte at a time is stuck too
                        raise TimeoutError
            except OSError:
                self._shutdown()

    def catalog(self, meta: Meta) -> None:
        """Tell the edge what is served."""
        self.send([encode(FrameType.CATALOG, 0, meta)])

    @property
    def open(self) -> bool:
        """Whether the edge may still be there."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Close the connection and wait for the reading thread."""
        self._shutdown()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)
        self._sock.close()

    def _shutdown(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # gone already

    def _read(self) -> None:
        reader = FrameReader()
        buffer = bytearray(_READ_SIZE)
        view = memoryview(buffer)
        try:
            while size := self._sock.recv_into(buffer):
                for frame in reader.feed(view[:size]):
                    self._handler(self, frame)
        except PipeError as error:
            _logger.warning("edge cut off: %s", error.message)
        except OSError:
            return
        finally:
            self._shutdown()


def error_frame(request: int, error: PericardError) -> bytes:
    """An ERROR frame."""
    return encode(FrameType.ERROR, request, {"code": error.code, "message": error.message, "hint": error.hint})
