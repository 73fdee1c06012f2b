"""A bounded run of the coverage-guided fuzzer: only refusals by name come out of what reads a sealed model."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
VECTORS = TESTS / "vectors" / "sealed"
FUZZER = TESTS / "fuzz" / "fuzz_sealed_header.py"
RUNS = 40_000
FILE, MANIFEST, GRANTS, GRANT, NOTICE, CANONICAL, INDEX = (bytes([number]) for number in range(7))


def body(name: str) -> bytes:
    return (VECTORS / f"{name}.vector").read_bytes().partition(b"\n\n")[2]


def seeds() -> list[bytes]:
    """Good inputs only, one for each reader: whatever is refused, and how, is for the fuzzer to find."""
    whole, plain = body("good"), bytes.fromhex(json.loads((VECTORS / "examples.json").read_text())["plaintext"])
    manifest, signatures, _ = struct.unpack_from("<III", whole, 8)
    grants = whole[20 + manifest + signatures :][: struct.unpack_from("<III", whole, 8)[2]]
    signal = {"sampling_rate_millihertz": 250_000, "unit": "mV", "leads": [["II", "MLII"]]}
    inputs = [{"name": "ecg", "dtype": "float32", "shape": [-1, 1, 64]}]
    sampled = json.loads(whole[20 : 20 + manifest]) | {"signal": signal, "inputs": inputs}
    (length,) = struct.unpack_from("<I", grants, 2)
    return [
        FILE + whole,
        MANIFEST + whole[20 : 20 + manifest],
        MANIFEST + json.dumps(sampled, sort_keys=True, separators=(",", ":")).encode(),
        GRANTS + body("grants/good"),
        GRANT + re.sub(rb'"manifest":"[0-9a-f]+"', b'"manifest":"' + b"0" * 64 + b'"', grants[6 : 6 + length]),
        NOTICE + body("notices/good"),
        CANONICAL + b'{"a":[1,-2,true,null,"\\u00e9\\n"],"b":{}}',
        INDEX + plain,
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The seeds, and beside them a dictionary of every member's name."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, seed in enumerate(seeds()):
        (folder / str(number)).write_bytes(seed)
    names = sorted(set(re.findall(rb'"([a-z_]+)":', b"".join(seeds()))))
    words = [*(name.decode() for name in names), "null", "true", "-1", "1.0", "1e5", "\\\\ud800", "[[[["]
    (tmp_path / "words").write_text("".join(f'"{word}"\n' for word in words))
    return folder


def fuzzed(corpus: Path, *, runs: int) -> subprocess.CompletedProcess[str]:
    options = [
        f"-runs={runs}", "-max_total_time=25", "-seed=20260921", "-max_len=24000", "-timeout=5",
        # its own count of resident memory begins with that of the process that started it
        "-rss_limit_mb=0", "-malloc_limit_mb=256",
        f"-dict={corpus.parent / 'words'}", f"-artifact_prefix={corpus.parent}/",
    ]  # fmt: skip
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it counts for itself
    return subprocess.run(
        ["prlimit", f"--data={1 << 30}", sys.executable, FUZZER, corpus, *options],
        cwd=corpus.parent, env=plain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100,
        check=False,
    )  # fmt: skip


def test_only_refusals_come_out_of_the_readers_of_a_sealed_model(corpus: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("atheris is missing: it stands in constraints/dev.txt")
    found = fuzzed(corpus, runs=RUNS)
    covered = [int(number) for number in re.findall(r"^#\d+\s+\w+\s+cov: (\d+)", found.stdout, re.MULTILINE)]
    (done,) = re.findall(r"^#(\d+)\s+DONE", found.stdout, re.MULTILINE) or [0]

    assert found.returncode == 0, found.stdout[-6000:]
    assert int(done) > RUNS // 20  # on a busy machine the time ends it first
    assert covered[0] > 100  # the readers are instrumented
    assert covered[-1] > covered[0] + 20  # and what it sees leads it on: ways to refuse that no seed takes
    assert [path.name for path in corpus.parent.iterdir() if path.name.startswith(("crash", "oom", "timeout"))] == []
