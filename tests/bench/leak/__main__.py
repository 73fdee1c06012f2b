"""Resident memory over 500 loads and unloads of a model, and over 200 000 requests to a daemon.

The loads go through a whole engine in this process: file, signatures, key, decryption, graph, known answers, audit log,
and out again; each cycle ends with a collection and a ``malloc_trim``, so that what is left is held. The requests go
over HTTP to a daemon of its own, whose engine and edge are measured from outside. What grows by more than the limit
fails the run. Files go under ``build/`` and are removed at the end.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine import Watch, describe
from tables import table

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 0.02
_WARM_CYCLES = 50
_WARM_REQUESTS = 20_000
_CLIENTS = 8
_START_SECONDS = 180
_NAME = "ecg-anomaly"
_WHO = {"principal": "bench"}

sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
import serving  # noqa: E402  (the tests' own site)


def resident(pid: int | str = "self") -> int:
    """Resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise SystemExit(f"leak: process {pid} has no memory")


def settled() -> int:
    """Resident memory of this process once everything that nobody holds is gone."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def cycles(folder: Path, count: int) -> list[int]:
    """Load and unload so often after the warm-up; resident memory after that, and after each tenth of the rest."""
    site = serving.Site(folder / "loads")
    path = site.seal()
    found = []
    step = max(1, count // 10)
    with site.engine(path, recheck_seconds=0.0) as engine:
        for number in range(_WARM_CYCLES + count + 1):
            if number >= _WARM_CYCLES and (number - _WARM_CYCLES) % step == 0:
                found.append(settled())
                sys.stderr.write(f"leak: {number} cycles, {found[-1]} KiB\n")
            engine._admin("unload", {"model": _NAME, **_WHO})
            engine._admin("load", {"model": _NAME, **_WHO})
    return found


def requests(folder: Path, count: int) -> dict[str, list[int]]:
    """Ask a daemon so often after the warm-up; resident memory of its processes after the warm-up and at the end."""
    site = serving.Site(folder / "requests")
    site.seal()
    (site.folder / "server.yaml").write_text(f"models: [{_NAME}.sealed]\nlisten: {{port: 0}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pericard"]
    token = subprocess.run(
        [*command, "token", "create", "bench", "--model", "*", "--tokens", "tokens.json"],
        cwd=site.folder, capture_output=True, text=True, check=True, timeout=_START_SECONDS,
    ).stdout.strip()  # fmt: skip
    daemon = subprocess.Popen(
        [*command, "serve", "--config", "server.yaml"], cwd=site.folder, stderr=subprocess.PIPE, text=True
    )
    try:
        port = _port(daemon)
        children = _children(daemon.pid)
        _ask(port, token, min(_WARM_REQUESTS, count))
        before = {role: resident(pid) for role, pid in children.items()}
        _ask(port, token, count)
        return {role: [before[role], resident(pid)] for role, pid in children.items()}
    finally:
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait(timeout=60)


def _port(daemon: subprocess.Popen[str]) -> int:
    assert daemon.stderr is not None
    for line in daemon.stderr:
        if ": serving " in line:
            return int(line.rpartition(":")[2])
    raise SystemExit("leak: the daemon did not start")


def _children(pid: int) -> dict[str, int]:
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        found[words[words.index(b"pericard.daemon.child") + 1].decode()] = int(child)
    return found


def _ask(port: int, token: str, count: int) -> None:
    body = json.dumps({"model": _NAME, "inputs": serving.GOOD, **serving.CONTRACT}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    bad: list[int] = []

    def ask(times: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(times):
            connection.request("POST", "/predict", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != http.HTTPStatus.OK:
                bad.append(answer.status)

    threads = [threading.Thread(target=ask, args=(count // _CLIENTS,)) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if bad:
        raise SystemExit(f"leak: {len(bad)} requests were not answered, the first with {bad[0]}")


def growth(found: list[int]) -> float:
    """How much more is held at the end than at the beginning, as a share."""
    return found[-1] / found[0] - 1


def main() -> None:
    """Measure, print, and write the records; fail if memory grew by more than the limit."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=leak")
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--requests", type=int, default=200_000, help="0 leaves the daemon out")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder for files and records")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    watch, started = Watch(), time.monotonic()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="leak-", dir=options.out) as folder:
        if options.requests:
            measured = requests(Path(folder), options.requests)
            found |= {f"{role}, {options.requests} requests": sizes for role, sizes in measured.items()}
        if options.cycles:
            found[f"{options.cycles} loads and unloads"] = cycles(Path(folder), options.cycles)
    machine = {**describe(), "others": watch.others(), "seconds": round(time.monotonic() - started)}
    (options.out / "leak.jsonl").write_text(json.dumps({"machine": machine, "kib": found}) + "\n", encoding="utf-8")
    rows = [(name, f"{sizes[0]}", f"{sizes[-1]}", f"{growth(sizes):+.2%}") for name, sizes in found.items()]
    sys.stdout.write(table(("what", "KiB before", "KiB after", "growth"), rows) + "\n")
    if any(growth(sizes) > LIMIT for sizes in found.values()):
        raise SystemExit(f"leak: something grew by more than {LIMIT:.0%}")


if __name__ == "__main__":
    main()
