"""A bounded run of the coverage-guided fuzzer: an edge may say what it likes to the engine, and only breaks rules."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_frames import QUESTION

from pericard.pipe import FrameType, encode, frames

FUZZER = Path(__file__).parents[1] / "fuzz" / "fuzz_pipe_frames.py"
RUNS = 40_000
SEEDS = [
    frames.pack_question(1, QUESTION), frames.pack_question(1, QUESTION) + encode(FrameType.CANCEL, 1, {}),
    *(encode(FrameType.ASK, 1, {"ask": name, "model": "m"}) for name in ("metrics", "index", "statistics", "load")),
    encode(FrameType.EVENT, 0, {"event": "refused", "code": "forbidden", "address": "a", "principal": "p"}),
    encode(FrameType.HEARD, 0, {"generation": 5}),
]  # fmt: skip
WORDS = [
    "ask",
    "event",
    "refused",
    "generation",
    "principal",
    "metrics",
    "null",
    "[]",
    "{}",
    "1e5",
    "\\\\ud800",
    "[[[[",
]


def test_whatever_an_edge_says_only_breaks_rules(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("atheris is missing: it stands in constraints/dev.txt")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(seed)
    (tmp_path / "words").write_text("".join(f'"{word}"\n' for word in WORDS))
    options = [
        f"-runs={RUNS}", "-max_total_time=20", "-seed=20261128", "-max_len=4000", "-timeout=5", "-rss_limit_mb=0",
        "-malloc_limit_mb=256", f"-dict={tmp_path / 'words'}", f"-artifact_prefix={tmp_path}/",
    ]  # fmt: skip
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    found = subprocess.run(
        [sys.executable, FUZZER, corpus, *options],
        cwd=tmp_path, env=plain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100, check=False,
    )  # fmt: skip
    covered = [int(number) for number in re.findall(r"^#\d+\s+\w+\s+cov: (\d+)", found.stdout, re.MULTILINE)]
    (done,) = re.findall(r"^#(\d+)\s+DONE", found.stdout, re.MULTILINE) or [0]

    assert found.returncode == 0, found.stdout[-6000:]
    assert int(done) > RUNS // 40  # on a busy machine the time ends it first
    assert covered[0] > 50  # what reads is instrumented
    assert covered[-1] > covered[0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("crash", "oom", "timeout"))] == []
