"""A flood of strangers through the network: valid callers are answered, nothing is synced, and every refusal counts."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serving
from entrances import Door, Keys, Reply, bearer, door, predict_body, replies

from pericard.audit import log as audit_log
from pericard.engine.main import Engine

WRONG = b"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer pcd_wrong\r\nContent-Length: 2\r\n\r\n{}"
FLOODING = 8


class Flood:
    """Connections that send a wrong credential as fast as they are refused, and come again when they are closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.statuses: list[int] = []
        self.asked = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(FLOODING)]

    def _run(self) -> None:
        while not self._over.is_set():
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
                while not self._over.is_set():
                    sock.sendall(WRONG)
                    with self._lock:
                        self.asked += 1
                    reply = received(sock)
                    if reply is None:
                        break
                    with self._lock:
                        self.statuses.append(reply.status)
                    if reply.headers.get("connection") == "close":
                        break

    @contextmanager
    def pouring(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(10)


def received(sock: socket.socket) -> Reply | None:
    """One response; None if the server hung up."""
    found = b""
    while part := sock.recv(1 << 16):
        found += part
        head, _, body = found.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head)
        if size and len(body) >= int(size[1]):
            (reply,) = replies(found)
            return reply
    return None


@contextmanager
def opened(
    folder: Path, loop: serving.Loop, tokens: Path, failures: int | None, connections: int
) -> Iterator[tuple[Engine, Door]]:
    place = serving.Site(folder / "site")
    options = {"failures": failures, "connections": connections, "refusals_log": str(folder / "refusals.log")}
    with place.engine(place.seal()) as engine, door(engine, tokens, loop, **options) as made:
        yield engine, made


def counted(found: Door, keys: Keys) -> float:
    text = found.network.ask("GET", "/metrics", bearer(keys.good)).body.decode()
    match = re.search(r'pericard_requests_total\{code="unauthenticated"\} (\S+)', text)
    return float(match[1]) if match else 0.0


def logged(path: Path) -> int:
    return sum(int(line.rpartition("count=")[2]) for line in path.read_text().splitlines())


@pytest.mark.parametrize("way", ["uvicorn", "direct"])
@pytest.mark.parametrize("failures", [10, None])
def test_a_flood_costs_no_sync_and_little_log_and_every_refusal_counts(
    tmp_path: Path,
    loop: serving.Loop,
    tokens: Path,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    failures: int | None,
) -> None:
    headers = {**bearer(keys.good), "content-type": "application/json"}
    syncs = []
    real = audit_log.os.fdatasync
    with opened(tmp_path, loop, tokens, failures, 512) as (engine, made):
        found = made.by(way)
        monkeypatch.setattr(audit_log.os, "fdatasync", lambda descriptor: (syncs.append(1), real(descriptor))[1])
        flood = Flood(found.network.port)
        records = engine._log.next_index
        longest = 0.0
        with flood.pouring():
            end = time.monotonic() + 2.5
            answered = 0
            while time.monotonic() < end:
                begun = time.monotonic()
                reply = found.network.ask("POST", "/predict", headers, predict_body(serving.GOOD))
                longest = max(longest, time.monotonic() - begun)
                assert reply.status == 200
                answered += 1
                time.sleep(0.02)
        assert engine._log.next_index - records == answered
        assert len(syncs) < answered + 5  # the log's own clock may have rung
        assert longest < 1.0  # no valid caller waits for a refusal's time to be over
        if failures is None:
            assert len(flood.statuses) > 100
        else:
            assert len(flood.statuses) <= failures + FLOODING * 5  # 0.25, 0.5, 1 and 2 seconds
        assert set(flood.statuses) == {401}
        deadline = time.monotonic() + 5
        while (counted(found, keys) < flood.asked or logged(tmp_path / "refusals.log") < flood.asked) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.1)
        assert counted(found, keys) == logged(tmp_path / "refusals.log") == flood.asked
    assert (tmp_path / "refusals.log").stat().st_size < 10_000


def test_refusals_hold_no_more_connections_than_their_share(
    tmp_path: Path, loop: serving.Loop, tokens: Path, keys: Keys
) -> None:
    with opened(tmp_path, loop, tokens, 1, 32) as (
        _,
        found,
    ):  # of 32, a quarter may wait, and half of that for one address
        flood = Flood(found.network.port)
        with flood.pouring():
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                assert found.network.ask("GET", "/v2", bearer(keys.good)).status == 200
                time.sleep(0.02)
        assert set(flood.statuses) == {401, 429}
