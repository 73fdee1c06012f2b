"""The daemon with a collector: its records arrive, and the forwarder's fate is not the daemon's."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from collector import Authority, played
from integration_site import Site, running

pytestmark = pytest.mark.integration


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_records_arrive_and_the_forwarder_may_die(site: Site, strip: list[float]) -> None:
    authority = Authority(site.folder)
    certificate, key = authority.issue("forwarder")
    with played(authority) as there:
        forward = {
            "host": "127.0.0.1", "port": there.port, "name": "localhost", "ca": authority.path.name,
            "certificate": certificate.name, "key": key.name, "checkpoint_seconds": 1.0,
        }  # fmt: skip
        with (site.folder / "server.yaml").open("a") as settings:
            settings.write(f"forward: {json.dumps(forward)}\n")
        with running(site) as daemon:

            def events() -> list[str]:
                """By index, each once: a forwarder that was killed sends some again."""
                found = re.findall(r" pericard - (\S+) \[\S+ idx=\"(\d+)\"", b"\n".join(there.taken).decode())
                return [event for _, event in sorted({int(index): event for event, index in found}.items())]

            until(lambda: "model-loaded" in events())
            forwarder = daemon.children()["forward"]
            assert _denied(forwarder)
            assert daemon.predict(strip).status == 200
            until(lambda: events().count("predict") == 1)
            os.kill(forwarder, signal.SIGKILL)
            assert daemon.predict(strip).status == 200
            until(lambda: daemon.children().get("forward", forwarder) != forwarder)
            until(lambda: events().count("predict") == 2)
            second = daemon.children()["forward"]
            os.kill(daemon.pid, signal.SIGHUP)  # it is started again, with its certificates as they are then
            until(lambda: daemon.children().get("forward", second) != second)
            metrics = daemon.request("/metrics", token=site.metrics_token).body["text"]
            assert "pericard_forward_missing_records 0.0" in str(metrics)
            until(lambda: "pericard_forward_up 1.0" in str(
                daemon.request("/metrics", token=site.metrics_token).body["text"]
            ))  # fmt: skip
            assert daemon.stop() == 0
        indices = [int(found) for found in re.findall(rb' idx="(\d+)"', b"\n".join(there.taken))]
        assert sorted(set(indices)) == list(range(max(indices) + 1))
        assert events()[-1] == "stop", "the last record goes out before the end"
        assert b" checkpoint [" in there.taken[-1]


def _denied(pid: int) -> bool:
    """Whether the kernel says that the process has no capability and gets no new privileges."""
    status = Path(f"/proc/{pid}/status").read_text()
    return "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
