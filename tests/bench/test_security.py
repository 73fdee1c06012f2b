"""The benchmark of security is trusted only as far as its own checks: what it takes away, pours and says."""

from __future__ import annotations

import contextlib
import importlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parent / "security"
OWN = ("prices", "verdicts", "without")
MACHINE = {
    "processor": "a processor", "virtual": True, "cores": 2, "memory_gib": 4, "kernel": "6.1", "python": "3.11",
    "versions": {"torch": "1"},
}  # fmt: skip

STRIPPED = """
import without
from pericard.edge import credentials, native, predict
from pericard.edge.oip import response
from pericard.engine.service import Service
before = (credentials.authenticate, native.require, predict.prediction, response.hexlify, Service._recorded)
for strip in without.STRIP.values():
    strip()
after = (credentials.authenticate, native.require, predict.prediction, response.hexlify, Service._recorded)
assert not set(map(id, before)) & set(map(id, after))
assert credentials.authenticate(None, None).may("predict", "any")
assert len(Service._recorded(None, [1, 2], 0)) == 2
try:
    without.replace(credentials, "no_such_part", None)
except SystemExit as error:
    print(error)
"""


@pytest.fixture
def prices() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path[:0] = [str(BENCH), str(BENCH.parent / "serve")]
    yield importlib.import_module("prices")
    sys.path[:] = before
    for name in OWN:
        sys.modules.pop(name, None)


def test_every_part_that_is_taken_away_is_still_where_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRIPPED],
        env={"PYTHONPATH": str(BENCH)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "has no no_such_part any more" in done.stdout


class Door:
    """A server that refuses everybody, and says 429 to every third and hangs up."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.dialled = self.asked = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.dialled += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                self.asked += 1
                late = self.asked % 3 == 0
                body = b'{"request_id":"x"}'
                lines = b"HTTP/1.1 429 Too Many\r\nconnection: close\r\n" if late else b"HTTP/1.1 401 Unauthorized\r\n"
                connection.sendall(lines + b"content-length: %d\r\n\r\n" % len(body) + body)
                if late:
                    return


@pytest.mark.parametrize("keep", [True, False])
def test_the_flood_counts_what_came_back(*, keep: bool) -> None:
    door = Door()
    done = subprocess.run(
        [sys.executable, BENCH / "flood.py", str(door.port), "3", "0.5", str(int(keep))],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip

    found = json.loads(done.stdout)
    assert found["asked"] >= found["401"] + found["429"] >= found["asked"] - 3
    assert found["401"] > 10
    assert found["429"] > 5
    assert door.dialled >= (found["429"] if keep else found["asked"] - 3)


def step(cpu: float, rate: float = 100.0, **more: Any) -> dict[str, Any]:
    return {"cpu_us": cpu, "rate": rate, "p50_ms": 1.0, "p99_ms": 2.0, "foreign": 0.0, **more}


def filled(prices: ModuleType, *, factor: float = 1.2, rate: float = 95.0, told: int = 1000, text: int = 5000) -> Any:
    found = prices.Found()
    for number in range(3):
        found.price(("small", "json", 32), "on", number, step(100 * factor))
        found.price(("small", "json", 32), "off", number, step(100))
        found.flood(None, number, step(100))
        poured = {"asked": 400, "401": 400, "seconds": 20.0}
        found.flood("kept", number, step(100 * 100 / rate, rate, flood=poured))
    found.logged(audit=1000, text=text, said=0, told=told)
    return found


def test_goals_are_reached_or_not(prices: ModuleType) -> None:
    text, exact = prices.report(filled(prices), MACHINE)

    assert exact
    assert "small json 32: at most 1.35 times the CPU: reached, 1.20 (1.20–1.20)" in text
    assert "90% of their throughput: reached, 0.95 (0.95–0.95)" in text
    assert "less than 1000000 bytes in all logs: reached, 6000" in text

    text, _ = prices.report(filled(prices, factor=1.4, rate=80, text=2_000_000), MACHINE)
    assert text.count("NOT reached") == 3


def test_refusals_that_were_not_counted_are_seen(prices: ModuleType) -> None:
    text, exact = prices.report(filled(prices, told=100), MACHINE)

    assert not exact
    assert "not all were counted" in text
