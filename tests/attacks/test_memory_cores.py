"""P1 when the process is killed by the kernel: a crash leaves no core.

Two walls, and each is tried alone: RLIMIT_CORE 0, and not dumpable. The kernel's own word is the flag in the exit
status; where its cores are plain files, the folder is looked at as well, and a process without walls does leave one.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import pytest
from vault import Vault
from watched import LOAD, Process, child, count_in_file, root_only

#: Loads behind the walls that the options name, then dies of a segmentation fault.
CRASH = f"""{LOAD}
import resource, signal
most = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
if "limit" not in options:
    resource.setrlimit = lambda *_: None  # a limit that was lowered could not be raised again
if "walls" in options:
    hardening.harden()
if "walls" in options and "dumpable" not in options:
    hardening._prctl(hardening._PR_SET_DUMPABLE, 1, "dumpable flag")
model = load()
ask(model)
flag = hardening._libc.prctl(hardening._PR_GET_DUMPABLE, 0, 0, 0, 0)
step(f"loaded {{resource.getrlimit(resource.RLIMIT_CORE)[0]}} {{flag}}")
os.kill(os.getpid(), signal.SIGSEGV)
"""


def pattern() -> str:
    return Path("/proc/sys/kernel/core_pattern").read_text().strip()


def cores_are_plain_files() -> bool:
    """Whether this host puts a core into the working folder of the process that crashed, if it may be one."""
    allowed = resource.getrlimit(resource.RLIMIT_CORE)[1] != 0
    return allowed and bool(pattern()) and "/" not in pattern() and not pattern().startswith("|")


def crash(process: Process) -> int:
    """Let it crash; the whole exit status, which says whether the kernel wrote a core."""
    assert process.popen.stdin is not None
    process.popen.stdin.write("\n")
    process.popen.stdin.flush()
    _, status = os.waitpid(process.pid, 0)
    process.popen.returncode = os.waitstatus_to_exitcode(status)  # it is gone; nobody needs to wait for it again
    assert os.WTERMSIG(status) == signal.SIGSEGV
    return status


@pytest.mark.parametrize(
    "walls",
    [
        "limit dumpable",
        pytest.param("dumpable", id="not dumpable alone"),
        pytest.param(
            "limit",
            id="limit alone",
            marks=pytest.mark.skipif(not cores_are_plain_files(), reason="a limit of 0 does not stop a pipe"),
        ),
    ],
)
def test_a_crash_leaves_no_core(walls: str, vault: Vault, now: int, tmp_path: Path) -> None:
    root_only()
    with child(CRASH, vault.folder, now, "walls", *walls.split(), cwd=tmp_path) as process:
        limit, flag = process.wait_for("loaded").split()[1:]
        assert limit == "0" if "limit" in walls else limit == str(resource.getrlimit(resource.RLIMIT_CORE)[1])
        assert (flag == "0") == ("dumpable" in walls)
        status = crash(process)
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not cores_are_plain_files(), reason="this host hands cores to a program or another folder")
def test_without_walls_there_would_be_a_core_and_even_that_holds_no_weights(
    vault: Vault, now: int, tmp_path: Path
) -> None:
    """The crash is a real one, and the third wall is the memory's own."""
    root_only()
    with child(CRASH, vault.folder, now, cwd=tmp_path) as process:
        process.wait_for("loaded")
        assert process.count(vault.weights) == dict.fromkeys(vault.weights, 1)
        status = crash(process)
    assert os.WCOREDUMP(status)
    (core,) = tmp_path.iterdir()
    found = count_in_file(core, vault.needles | {"its folder": str(vault.folder).encode()})
    core.unlink()
    assert found.pop("its folder") >= 1, "the core is one of this process's memory"
    assert found == dict.fromkeys(vault.needles, 0)


def test_the_walls_can_be_seen_from_outside(vault: Vault, now: int) -> None:
    with child(CRASH, vault.folder, now, "walls", "limit", "dumpable") as process:
        process.wait_for("loaded")
        assert re.search(r"Max core file size\s+0\s+0", Path(f"/proc/{process.pid}/limits").read_text())
        assert "NoNewPrivs:\t1" in Path(f"/proc/{process.pid}/status").read_text()
