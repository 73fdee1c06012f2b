"""The engine's end: whoever waits for frames reads them, any thread answers.

An edge that does not read its answers is cut off after a bounded wait, so that it cannot hold the engine up.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Iterable

from pericard.errors import PericardError, PipeError
from pericard.pipe.frames import Frame, FrameReader, FrameType, Meta, Question, encode
from pericard.pipe.region import Window

_SEND_SECONDS = 5
_READ_SIZE = 1 << 18
_MOST_HEAD = 64 << 10  # what an edge has to say is short; its rows lie in the region
_logger = logging.getLogger(__name__)


class EdgeLink:
    """A connection to one edge.

    Attributes:
        open: whether the edge may still be there.
        heard: generation of the catalog that the edge rests on; changed by whoever reads the frames.
    """

    def __init__(self, sock: socket.socket, region: int) -> None:
        """Take a connected socket and the descriptor of the edge's region.

        Raises:
            PipeError: the region is not one.
        """
        self._sock = sock
        self._window = Window(region)
        self._reader = FrameReader(head=_MOST_HEAD, body=0)
        self._buffer = bytearray(_READ_SIZE)
        self._lock = threading.Lock()
        self.open = True
        self.heard = -1
        sock.setblocking(False)
        self._room = select.poll()
        self._room.register(sock, select.POLLOUT)

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._sock.fileno()

    def read(self) -> list[Frame]:
        """The frames that are there now; an edge that is gone, or breaks the rules, is one that is not ``open``."""
        try:
            size = self._sock.recv_into(self._buffer)
            if size:
                return self._reader.feed(memoryview(self._buffer)[:size])
        except BlockingIOError:
            return []
        except PipeError as error:
            self.cut_off(error)
        except OSError:
            pass
        self.shut_down()
        return []

    def row(self, question: Question) -> memoryview:
        """The row that a question names; it may change while it is read.

        Raises:
            PipeError: it lies outside of the region.
        """
        return self._window.row(question.offset, question.size)

    def send(self, frames: Iterable[bytes]) -> None:
        """Send encoded frames in one go; an edge that is gone, or did not take them in time, is dropped."""
        left = memoryview(b"".join(frames))
        with self._lock:
            latest = time.monotonic() + _SEND_SECONDS
            try:
                while left:
                    try:
                        left = left[self._sock.send(left) :]
                    except BlockingIOError:
                        self._wait_for_room(latest)
            except OSError:
                self.shut_down()

    def _wait_for_room(self, latest: float) -> None:
        """Wait until the edge took some; one that takes a byte at a time is stuck too."""
        seconds = latest - time.monotonic()
        if seconds <= 0 or not self._room.poll(seconds * 1000):
            raise TimeoutError

    def catalog(self, meta: Meta) -> None:
        """Tell the edge what is served."""
        self.send([encode(FrameType.CATALOG, 0, meta)])

    def cut_off(self, error: PipeError) -> None:
        """Drop an edge that broke the rules."""
        _logger.warning("edge cut off: %s", error.message)
        self.shut_down()

    def shut_down(self) -> None:
        """Drop the edge; the socket stays ours until :meth:`close`."""
        self.open = False
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # gone already

    def close(self) -> None:
        """Close the connection, once nobody sends: the descriptor's number may soon be another's."""
        self.shut_down()
        with self._lock:
            self._sock.close()


def error_frame(request: int, error: PericardError, **more: object) -> bytes:
    """An ERROR frame."""
    return encode(FrameType.ERROR, request, {"code": error.code, "message": error.message, "hint": error.hint, **more})
