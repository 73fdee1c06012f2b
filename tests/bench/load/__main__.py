"""Loading a sealed model, beside torch.load of the plain file, safetensors and two encrypted formats.

Each round takes every way once, in a new order, each in a process of its own, and the rates of the steps that loading
is made of. Peers stand in a folder of their own that only their processes see. Files go under ``build/`` and are
removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import Watch, describe
from rates import openssl_speed, openssl_version
from results import page, report
from ways import WAYS

ROOT = Path(__file__).resolve().parents[3]
PEERS = ROOT / "build" / "bench-peers"
PAGE = ROOT / "docs" / "benchmarks" / "load.md"
_SECONDS = 300
_SMALL = 64
_OURS = ("pericard-server", "cryptography", "torch", "numpy")
_THEIRS = ("safetensors", "tensorizer", "cryptotensors")


def _run(script: str, *words: object, peer: bool) -> Any:
    """Run a script of this folder and read its line of JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if peer:
        environment["PYTHONPATH"] = str(PEERS)
    found = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        env=environment,
    )
    if found.returncode:
        raise SystemExit(f"{script} {' '.join(map(str, words))}: ended with {found.returncode}\n{found.stderr}")
    return json.loads(found.stdout.splitlines()[-1])


def _round(names: list[str], folder: Path, digest: str, order: random.Random) -> dict[str, Any]:
    """Every way once, in a random order; then the rates."""
    found: dict[str, Any] = {}
    for name in order.sample(names, len(names)):
        found[name] = _run("measure.py", name, folder, peer=WAYS[name].peer)
        if found[name].pop("digest") != digest:
            raise SystemExit(f"{WAYS[name].label}: gave other tensors than were saved")
    found["rates"] = _run("measure.py", "rates", folder, peer=False)
    if openssl_version() is not None:
        found["openssl"] = openssl_speed()
    return found


def _versions(*, peers: bool) -> dict[str, str]:
    from cryptography.hazmat.backends.openssl import backend

    found = {name: version(name) for name in _OURS}
    found["cryptography's OpenSSL"] = backend.openssl_version_text().split()[1]
    host = openssl_version()
    if host is not None:
        found["the host's OpenSSL"] = host
    if peers:
        sys.path.append(str(PEERS))
        found |= {name: version(name) for name in _THEIRS}
        sys.path.pop()
    return found


def _measure(folder: Path, rounds: int, *, small: bool, peers: bool) -> tuple[list[dict[str, Any]], Any, Any]:
    """The rounds, the model, the machine."""
    names = [name for name, way in WAYS.items() if peers or not way.peer]
    files = sorted({WAYS[name].file for name in names})
    sys.stderr.write(f"load: writing {', '.join(files)}\n")
    model = _run("model.py", folder, _SMALL if small else 1, *files, peer=peers)
    order, watch, machine = random.Random(0), Watch(), describe()
    found = []
    for number in range(rounds):
        sys.stderr.write(f"load: round {number + 1} of {rounds}\n")
        found.append(_round(names, folder, model["digest"], order))
    return found, model, machine | {"others": watch.others(), "versions": _versions(peers=peers)}


def main() -> None:
    """Measure, print, and write the records and the page."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=load")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="a small model, to try the benchmark; writes no page")
    parser.add_argument("--no-peers", action="store_true", help="only what needs no other package; writes no page")
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks/load.md as it is")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder for files and records")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="load-", dir=options.out) as folder:
        rounds, model, machine = _measure(Path(folder), options.rounds, small=options.small, peers=not options.no_peers)
    records = options.out / "load.jsonl"
    with records.open("w", encoding="utf-8") as out:
        for entry in ({"machine": machine, "model": model}, *({"round": n, **each} for n, each in enumerate(rounds))):
            out.write(json.dumps(entry) + "\n")
    text = report(rounds, model, machine)
    sys.stdout.write(f"{text}\n")
    if not (options.small or options.no_peers or options.no_page):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(text), encoding="utf-8")


if __name__ == "__main__":
    main()
