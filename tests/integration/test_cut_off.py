"""An edge that was cut off from the engine, while both live, finds its way back by itself."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from pathlib import Path

import pytest
from integration_site import Daemon

pytestmark = pytest.mark.integration

_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438
_BOUND_SECONDS = 20


def pipes_of(pid: int) -> list[socket.socket]:
    """Our own descriptors of the stream sockets that a process holds; it takes root."""
    handle = os.pidfd_open(pid)
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if not str(entry.readlink()).startswith("socket:"):
            continue
        descriptor = _libc.syscall(_PIDFD_GETFD, handle, int(entry.name), 0)
        assert descriptor >= 0, os.strerror(ctypes.get_errno())
        sock = socket.socket(fileno=descriptor)
        if (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
            found.append(sock)
        else:
            sock.close()
    os.close(handle)
    return found


def test_an_edge_that_was_cut_off_is_joined_again(daemon: Daemon, strip: list[float]) -> None:
    if os.geteuid() != 0:
        if "CI" in os.environ:
            pytest.fail("it takes root to reach into the engine")
        pytest.skip("it takes root to reach into the engine")
    before = daemon.children()
    assert daemon.predict(strip).status == 200

    (pipe,) = pipes_of(before["engine"])
    with pipe:
        pipe.shutdown(socket.SHUT_RDWR)

    deadline = time.monotonic() + _BOUND_SECONDS
    while (status := daemon.predict(strip).status) != 200:
        assert status == 503
        assert time.monotonic() < deadline, "the edge was never joined again"
        time.sleep(0.05)
    assert daemon.children() == before  # nobody had to be started again
