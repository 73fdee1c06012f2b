"""The benchmark of loading is trusted only as far as its own checks: a small run, and each check made to fail."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parent
MODULES = ("machine", "measure", "model", "rates", "results", "tables", "ways")
PAGE = BENCH.parents[1] / "docs" / "benchmarks" / "load.md"

#: Loads the small model's file in every way of ours, then with the product broken in the ways that must be noticed.
CHECKS = """
import hashlib, json, sys
from pathlib import Path
import model
from cryptography.exceptions import InvalidTag
from ways import WAYS, Clock
from pericard.errors import CorruptPayload
from pericard.sealed import SealedModel

folder = Path(sys.argv[1])
path = folder / "model.sealed"
model.WRITERS["model.sealed"](path, model.state(64))
large, sha256 = [], hashlib.sha256

def counted(data=b"", **options):
    if len(data) > 1 << 19:
        large.append(len(data))
    return sha256(data, **options)

clock = Clock()
hashlib.sha256 = counted
WAYS["sealed"].prepare(path)(clock)
hashlib.sha256 = sha256
found = {"chunks": clock.notes["chunks"], "hashed": len(large)}
WAYS["unhashed"].prepare(path)(Clock())
found["restored"] = hashlib.sha256 is sha256

def refused(way):
    try:
        WAYS[way].prepare(path)(Clock())
    except (AssertionError, CorruptPayload, InvalidTag) as error:
        return type(error).__name__
    return "nothing"

kept = SealedModel.read_chunk
def hashing(self, offset, target):
    kept(self, offset, target)
    hashlib.sha256(target)
SealedModel.read_chunk = hashing
found["hashes elsewhere"] = refused("unhashed")
SealedModel.read_chunk = kept
data = bytearray(path.read_bytes())
data[-(5 << 20)] ^= 1
path.write_bytes(data)
found["flipped bit"] = [refused("sealed"), refused("unhashed")]
print(json.dumps(found))
"""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(BENCH), str(BENCH / "load")])},
    )


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for folder in (BENCH, BENCH / "load"):
        monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("results")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_small_run_gives_rows_goals_and_records_and_leaves_no_model_behind(tmp_path: Path) -> None:
    before = PAGE.stat().st_mtime_ns if PAGE.exists() else None
    done = run(BENCH / "load", "--small", "--no-peers", "--rounds", 1, "--out", tmp_path)

    assert done.returncode == 0, done.stderr
    for label in ("torch.load, plain file", "raw readinto", "Pericard, full verification", "Pericard, no chunk hashes"):
        assert label in done.stdout
    assert done.stdout.count("\ngoal: ") == 3
    first, only = map(json.loads, (tmp_path / "load.jsonl").read_text().splitlines())
    assert first["machine"]["cores"] >= 1
    assert set(only) >= {"round", "torch", "raw", "sealed", "unhashed", "rates"}
    assert all(only[way]["wall"] > 0 and only[way]["cpu"] > 0 for way in ("torch", "raw", "sealed", "unhashed"))
    assert [path.name for path in tmp_path.iterdir()] == ["load.jsonl"]
    assert (PAGE.stat().st_mtime_ns if PAGE.exists() else None) == before, "a small run is not for the page"


def test_the_rows_measure_what_they_say(tmp_path: Path) -> None:
    done = run("-c", CHECKS, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["chunks"] > 10
    # the last chunk is as long as it happens to be
    assert found["hashed"] in {found["chunks"], found["chunks"] - 1}
    assert found["restored"]
    assert found["hashes elsewhere"] == "AssertionError"
    assert found["flipped bit"] == ["CorruptPayload", "InvalidTag"], "the hash, and without it the cipher's own tag"


def measured(**walls: float) -> dict[str, Any]:
    """A round in which every way takes the CPU time that it takes wall time."""
    steps = ("fresh pages", "private pages", "mapped pages", "read", "copy", "SHA-256", "AES-256-GCM")
    found: dict[str, Any] = {
        way: {"wall": wall, "cpu": wall, "peak": 104, "parts": {"decrypt": wall}, "notes": {"locked": True}}
        for way, wall in walls.items()
    }
    return found | {"rates": {step: {"wall": 0.001, "cpu": 0.001} for step in steps}}


def test_a_goal_is_the_median_of_ratios_within_rounds(results: ModuleType) -> None:
    rounds = [
        measured(torch=1.0, sealed=1.2, unhashed=0.8),
        measured(torch=10.0, sealed=12.5, unhashed=8.0),  # a disturbed round, on both sides
        measured(torch=1.0, sealed=1.4, unhashed=0.6),
    ]
    full, unhashed, peak = results.goals(rounds, 100)

    assert full.found == pytest.approx(1.25)
    assert str(full).endswith("found 1.25 (rounds 1.20 to 1.40): reached")
    assert str(unhashed).endswith("found 0.80 (rounds 0.60 to 0.80): NOT reached")
    assert peak.found == pytest.approx(1.04)


def test_what_limits_a_row_is_the_dearest_step_or_what_the_steps_leave(results: ModuleType) -> None:
    one = measured(torch=1.0, sealed=1.0, unhashed=1.0)
    one["rates"]["SHA-256"]["cpu"] = 0.006

    assert results.limit("sealed", [one], 100).startswith("SHA-256 60%")
    assert results.limit("torch", [one], 100).startswith("unzipping, unpickling 80%")


def test_the_report_says_when_the_machine_was_not_quiet(results: ModuleType) -> None:
    machine = {
        "processor": "P", "cores": 2, "memory_gib": 1, "virtual": False, "instructions": ["aes"], "kernel": "6",
        "libc": "glibc", "python": "3.11", "versions": {"torch": "2"},
    }  # fmt: skip
    one, model = measured(torch=1.0, sealed=1.0, unhashed=1.0), {"bytes": 100, "tensors": 1}

    assert "NOT QUIET" in results.report([one], model, machine | {"others": 0.06})
    quiet = results.report([one], model, machine | {"others": 0.01})
    assert "NOT QUIET" not in quiet
    assert "    goal: " in results.page(quiet)
