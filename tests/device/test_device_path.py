"""P1 on a device: weights reach it through two chunks of host memory, and nothing of them stays on the host.

There is no accelerator here. The fake device of ``fake_device.cpp`` has memory that the host cannot read, and
asynchronous copies that really are late; what it cannot show (the driver's own buffers, device memory after the process
ended) is for ``make test-cuda``. Every fault that the test is there to find is planted once and found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_device
import numpy as np
import pytest
from foreign_memory import on_host

from pericard.hardening import ALLOCATOR
from pericard.keys import Identity
from pericard.runtime import loader
from pericard.sealed import SealedModel
from pericard.sealed.layout import CHUNK_SIZE
from pericard.trust import Policy

SCRIPT = Path(__file__).with_name("load_on_fake_device.py")
SECONDS = 100
WINDOW = 24
STAGES = 2
FAULTS = {
    "none": set(),
    "bytes-left-behind": {"weights stay on the host"},
    "staging-not-wiped": {"weights stay on the host"},
    "wiped-before-the-copy-ended": {"refused: malformed-sealed-model"},  # the device got zeros
    "hidden-full-copy": {"weights stay on the host", "the device was read back"},
    "whole-model-on-the-host": {"more than two chunks on the host", "copied as a whole"},
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if fake_device.compiler() is None:
        assert not os.environ.get("CI"), "g++ is missing; make system installs it"
        pytest.skip("needs g++")
    return fake_device.build(tmp_path_factory.mktemp("device"))


def run(library: Path, sealed: Path, fault: str, windows: list[bytes]) -> dict[str, Any]:
    """Load in another process; what it told, and what was seen in its memory."""
    command = [sys.executable, str(SCRIPT), str(library), str(sealed), fault]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ALLOCATOR
    ) as process:
        assert process.stdin
        assert process.stdout
        seen: dict[str, Any] = {}
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    return seen | json.loads(line)
                seen[line.strip()] = on_host(process.pid, windows)
                process.stdin.write("\n")
                process.stdin.flush()
        finally:
            process.kill()
    raise AssertionError(f"it ended with status {process.returncode}")


def faults(found: dict[str, Any], answer: list[float]) -> set[str]:
    """What is wrong with a load."""
    if found["refused"]:
        return {f"refused: {found['refused']}"}
    wrong = {
        "other answers": not np.allclose(found["answer"], answer, rtol=1e-6),
        "more than two chunks on the host": found["during"] > STAGES,
        "weights stay on the host": found["after"] > 0,
        "copied as a whole": found["to_device_largest"] > CHUNK_SIZE,
        "the device was read back": found["to_host_largest"] > CHUNK_SIZE // 4,
        "weights stay on the device": found["left_on_device"] > 0,
    }
    return {name for name, is_so in wrong.items() if is_so}


@pytest.mark.timeout(SECONDS * 2)
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_reach_a_device_in_two_chunks_and_leave_none_behind(
    fault: str, library: Path, large_model: Path, weights: Any,
    identity: Identity, policy: Policy, now: int,
) -> None:  # fmt: skip
    flat = weights.tobytes()
    windows = [flat[place : place + WINDOW] for place in range(CHUNK_SIZE // 2, len(flat), CHUNK_SIZE)]  # one a chunk
    with SealedModel(large_model) as source:
        on_cpu = loader.load(source.verify(policy.publishers), identity, policy, device="cpu", now=now)
    answer = on_cpu(np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 64))["score"].tolist()
    on_cpu.close()

    found = run(library, large_model, fault, windows)

    assert faults(found, answer) == FAULTS[fault]
    if fault == "none":
        assert found["during"] > 0  # the test would see weights where they are
        assert found["to_device_bytes"] >= len(flat)


def test_host_code_that_touches_device_memory_dies(library: Path) -> None:
    program = (
        "import sys, ctypes; sys.path.insert(0, sys.argv[2]); import fake_device; from pathlib import Path\n"
        "fake_device.register(Path(sys.argv[1])); import torch\n"
        "ctypes.string_at(torch.zeros(8, device='fake').data_ptr(), 4)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(library), str(SCRIPT.parent)], timeout=SECONDS, check=False
    )
    assert ended.returncode < 0
