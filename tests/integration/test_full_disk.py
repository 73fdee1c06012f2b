"""The audit log on a disk that is really full: no answer, the reason, and recovery without a restart (P10)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from integration_site import Daemon, Site, pericard, running

from pericard.audit import records

pytestmark = pytest.mark.integration

SIZE = 1 << 20
LEFT = 48 << 10  # what the log has before the disk is full
MOST_ASKED = 500


def lacking(reason: str) -> NoReturn:
    """In CI, what a test needs and cannot have is a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture
def small(site: Site) -> Iterator[Path]:
    """The log's folder is a file system of its own, of a megabyte."""
    folder = site.folder / "audit"
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0750", "none", folder],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if mounted.returncode:
        lacking(f"no file system may be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], timeout=30, check=True)


def fill(folder: Path) -> Path:
    """Leave the log little room."""
    ballast = folder / "ballast"
    found = os.statvfs(folder)
    ballast.write_bytes(bytes(found.f_bavail * found.f_frsize - LEFT))
    return ballast


def refused(daemon: Daemon, strip: list[float], receipts: list[dict[str, object]]) -> None:
    """Ask until the disk is full."""
    for _ in range(MOST_ASKED):
        answer = daemon.predict(strip)
        if answer.status != 200:
            assert (answer.status, answer.body["code"]) == (503, "audit-unavailable")
            assert answer.headers["retry-after"]
            return
        receipts += [found["receipt"] for found in answer.body["predictions"]]  # type: ignore[attr-defined]
    raise AssertionError("the disk did not become full")


def test_a_full_disk_is_said_and_left_behind_without_a_restart(site: Site, strip: list[float], small: Path) -> None:
    receipts: list[dict[str, object]] = []
    with running(site) as daemon:
        children = daemon.children()
        for _ in range(2):
            ballast = fill(small)
            refused(daemon, strip, receipts)
            answer = daemon.predict(strip)
            assert (answer.status, answer.body["code"]) == (503, "audit-unavailable"), "and it stays so"
            metrics = daemon.request("/metrics", token=site.metrics_token).body["text"]
            assert "pericard_audit_available 0.0" in str(metrics)
            ballast.unlink()
            deadline = time.monotonic() + 10
            while (answer := daemon.predict(strip)).status != 200:
                assert answer.body["code"] == "audit-unavailable"
                assert time.monotonic() < deadline, "it did not recover"
                time.sleep(0.1)
            receipts += [found["receipt"] for found in answer.body["predictions"]]  # type: ignore[attr-defined]
        assert daemon.children() == children, "nobody was started again"
        assert daemon.stop() == 0
        assert len(receipts) > 16
        pericard("audit", "verify", "audit", "--key", "log.pub", cwd=site.folder)
        recorded = {index for index, record in records(small) if record["event"] == "predict"}
        acknowledged = [receipt["index"] for receipt in receipts]
        assert len(set(acknowledged)) == len(acknowledged)
        assert not set(acknowledged) - recorded
