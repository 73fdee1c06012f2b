"""``kill -9`` of each process under load: nothing acknowledged is lost, and the daemon recovers by itself."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Self

import pytest
from integration_site import Daemon, Site, pericard, running

pytestmark = pytest.mark.integration

ACKNOWLEDGED = 200
CALLERS = 8
BOUND_SECONDS = 60


class Load:
    """Callers that keep asking, and the receipts of what was acknowledged to them."""

    def __init__(self, daemon: Daemon, strip: list[float]) -> None:
        self._daemon = daemon
        self._strip = strip
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(CALLERS)
        self.receipts: list[dict[str, object]] = []
        self.unanswered: list[object] = []

    def __enter__(self) -> Self:
        self._running = [self._pool.submit(self._ask) for _ in range(CALLERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for asked in self._running:
            asked.result(timeout=30)
        self._pool.shutdown()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._daemon.predict(self._strip)
            except (OSError, HTTPException) as error:  # an answer may break off too
                self.unanswered.append(error)
                time.sleep(0.01)
                continue
            if answer.status == 200:
                self.receipts += [found["receipt"] for found in answer.body["predictions"]]
            else:
                assert answer.status == 503, answer.body
                self.unanswered.append(answer.body["code"])
                time.sleep(0.01)

    def until(self, count: int) -> None:
        deadline = time.monotonic() + BOUND_SECONDS
        while len(self.receipts) < count:
            assert time.monotonic() < deadline, f"only {len(self.receipts)} answers"
            time.sleep(0.01)


def assert_all_recorded(site: Site, receipts: list[dict[str, object]]) -> None:
    pericard("audit", "verify", "audit", "--key", "log.pub", cwd=site.folder)
    shown = pericard("audit", "show", "audit", "--json", "--limit", 1_000_000, cwd=site.folder).stdout
    recorded = {
        found["index"]: found for line in shown.splitlines() if (found := json.loads(line))["event"] == "predict"
    }
    assert len({receipt["index"] for receipt in receipts}) == len(receipts)
    assert not [receipt for receipt in receipts if receipt["index"] not in recorded]


@pytest.mark.parametrize("role", ["engine", "edge"])
def test_a_killed_child_comes_back_and_nothing_acknowledged_is_lost(site: Site, strip: list[float], role: str) -> None:
    with running(site) as daemon:
        first = daemon.children()
        with Load(daemon, strip) as load:
            load.until(ACKNOWLEDGED)
            os.kill(first[role], signal.SIGKILL)
            before = len(load.receipts)
            load.until(before + ACKNOWLEDGED)
        second = daemon.children()
        assert second[role] != first[role]
        other = "edge" if role == "engine" else "engine"
        assert second[other] == first[other]
        assert daemon.stop() == 0
    assert_all_recorded(site, load.receipts)


def test_a_killed_supervisor_takes_its_children_with_it(site: Site, strip: list[float]) -> None:
    with running(site) as daemon:
        children = daemon.children()
        with Load(daemon, strip) as load:
            load.until(ACKNOWLEDGED)
            daemon.process.kill()
            killed = time.monotonic()
            while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in children.values()):
                assert time.monotonic() - killed < 1.0, "a child outlived its supervisor by a second"
                time.sleep(0.01)
            daemon.process.wait(timeout=5)
    assert_all_recorded(site, load.receipts)
    with running(site) as daemon:
        assert daemon.predict(strip).status == 200
        assert daemon.stop() == 0
    assert_all_recorded(site, load.receipts)


def test_an_engine_that_keeps_dying_is_started_again_each_time(daemon: Daemon, strip: list[float]) -> None:
    for _ in range(2):
        os.kill(daemon.children()["engine"], signal.SIGKILL)
        deadline = time.monotonic() + 5
        while daemon.request("/readyz", token=None).status == 200:
            assert time.monotonic() < deadline
        answer = daemon.predict(strip)
        assert (answer.status, answer.body["code"]) == (503, "engine-away")
        assert answer.headers["retry-after"]
        assert daemon.request("/livez", token=None).status == 200
        daemon.wait_ready()
    assert daemon.predict(strip).status == 200


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
