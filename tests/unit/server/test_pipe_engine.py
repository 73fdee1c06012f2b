"""The engine's end: an edge that is gone, stuck or hostile loses its connection, in bounded time, and nothing else."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hostile_frames import HOSTILE, QUESTION

from pericard.errors import PipeError
from pericard.pipe import EdgeLink, Frame, FrameReader, FrameType, create, encode, engine_end, frames
from pericard.pipe.region import MIN_SIZE, Region


class Edge:
    """The other end of an ``EdgeLink``."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(5)
        region = create(MIN_SIZE)
        self.region = Region(os.dup(region))
        self.link = EdgeLink(theirs, region)

    def gone(self) -> bool:
        """Whether the engine hung up; reads what is left."""
        with contextlib.suppress(ConnectionResetError):
            while self.sock.recv(1 << 20):
                pass
        return True

    def close(self) -> None:
        self.link.close()
        self.sock.close()


@pytest.fixture
def edge() -> Iterator[Edge]:
    made = Edge()
    yield made
    made.close()


def test_frames_are_read_as_far_as_they_are_there(edge: Edge) -> None:
    assert edge.link.read() == []
    data = frames.pack_question(1, QUESTION) + encode(FrameType.CANCEL, 1, {})
    edge.sock.sendall(data[:-1])
    assert [frame.type for frame in edge.link.read()] == [FrameType.INFER]
    edge.sock.sendall(data[-1:])
    assert edge.link.read() == [Frame(FrameType.CANCEL, 1, b"{}", b"")]
    assert edge.link.open


def test_frames_go_back(edge: Edge) -> None:
    edge.link.catalog({"models": {}})
    edge.link.send([encode(FrameType.REPLY, number, {}, b"y") for number in range(3)])
    reader, found = FrameReader(), []
    while len(found) < 4:
        found += reader.feed(edge.sock.recv(1 << 16))

    assert found[0] == (FrameType.CATALOG, 0, b'{"models":{}}', b"")
    assert [frame.request for frame in found[1:]] == [0, 1, 2]


def test_rows_are_read_where_the_edge_wrote_them(edge: Edge) -> None:
    slot = edge.region.reserve(3)
    slot.view[:] = b"row"

    assert bytes(edge.link.row(QUESTION._replace(offset=slot.offset, size=3))) == b"row"
    with pytest.raises(PipeError):
        edge.link.row(QUESTION._replace(offset=MIN_SIZE - 2, size=3))


WRONG = HOSTILE | {
    "a body": frames.pack(FrameType.EVENT, 0, b"{}", b"x"),
    "a long head": struct.pack("<2sBBQII", b"PF", 5, 0, 0, (64 << 10) + 1, 0),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_an_edge_that_breaks_the_rules_is_cut_off(edge: Edge, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    edge.sock.sendall(data)
    with caplog.at_level(logging.WARNING):
        assert edge.link.read() == []

    assert "edge cut off" in caplog.text
    assert not edge.link.open
    assert edge.gone()
    assert edge.link.read() == []  # and that stays so


def test_an_edge_that_hangs_up_is_gone_quietly(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    assert edge.link.open
    edge.sock.close()
    edge.link.read()

    assert not edge.link.open
    edge.link.send([b"late"])
    edge.link.catalog({})
    assert caplog.text == ""


def test_closed_it_answers_nobody_and_nothing_breaks(edge: Edge) -> None:
    edge.link.close()
    edge.link.close()
    edge.link.send([b"late"])

    assert edge.link.read() == []
    assert edge.gone()


def test_memory_that_is_not_sealed_is_refused() -> None:
    ours, theirs = socket.socketpair()
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, MIN_SIZE)
    with ours, theirs, pytest.raises(PipeError):
        EdgeLink(theirs, loose)


def test_many_threads_send_whole_frames(edge: Edge) -> None:
    def send(number: int) -> None:
        for _ in range(50):
            edge.link.send([encode(FrameType.REPLY, number, {}, bytes([number]) * 30_000)])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    reader, found = FrameReader(), []
    while len(found) < 200:
        found += reader.feed(edge.sock.recv(1 << 16))
    for thread in threads:
        thread.join(5)

    assert all(frame.body == bytes([frame.request]) * 30_000 for frame in found)
    assert edge.link.open


@pytest.mark.parametrize("pause", [None, 0.2, 0.02], ids=["reads nothing", "reads a little", "reads often"])
def test_a_stuck_edge_is_cut_off_in_bounded_time(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, pause: float | None
) -> None:
    """However it reads: taking a part of a buffer within each wait must not buy it another wait."""
    monkeypatch.setattr(engine_end, "_SEND_SECONDS", 1)
    stop = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(pause) and edge.sock.recv(1 << 15):
                pass

    reading = threading.Thread(target=trickle)
    if pause is not None:
        reading.start()
    started = time.monotonic()
    edge.link.send([bytes(64 << 20)])
    seconds = time.monotonic() - started
    stop.set()
    if pause is not None:
        reading.join(5)

    assert seconds < 4
    assert not edge.link.open
    assert edge.gone()


def test_a_stuck_edge_that_is_closed_lets_its_sender_go(edge: Edge) -> None:
    """The socket is closed only once nobody sends on it: its number may be another edge's a moment later."""
    sending = threading.Thread(target=lambda: edge.link.send([bytes(8 << 20)]))
    sending.start()
    time.sleep(0.1)
    assert sending.is_alive()
    started = time.monotonic()
    edge.link.close()
    sending.join(5)

    assert time.monotonic() - started < 2
    assert not sending.is_alive()
