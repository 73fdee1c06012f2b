"""P1 against those who read a process's memory from outside: a core taken by root, a process of the same user, and
root itself where the site asked for secret memory.

Each attack is first seen to succeed: on a marker in the very same core, on the same process without hardening.
"""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import watched
from vault import Vault
from watched import NOBODY, PLAIN, SECONDS, Process, child, core_of, count_in_file, lacking, mappings, masked, root_only

from pericard.runtime import loader

#: Keeps a secret on the heap that came masked, then loads as ever.
MARKED = f"""
import sys
masked = sys.argv.pop()
marker = bytearray(len(masked) // 2)
for place in range(len(marker)):
    marker[place] = 255 - int(masked[2 * place : 2 * place + 2], 16)
{PLAIN}
"""

#: Becomes the same user, then tries what a debugger would; prints what succeeded.
READER = f"""
import ctypes, os, sys
from process_memory import count
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
ATTACH, DETACH = 16, 17
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
pid, needle = int(sys.argv[1]), bytes(255 - byte for byte in bytes.fromhex(sys.argv[2]))
found = []
try:
    if count(pid, {{"needle": needle}})["needle"]:
        found.append("mem")
except OSError:
    pass
try:
    if open(f"/proc/{{pid}}/environ", "rb").read():
        found.append("environ")
except OSError:
    pass
if libc.ptrace(ATTACH, pid, None, None) == 0:
    os.waitpid(pid, 0)
    libc.ptrace(DETACH, pid, None, None)
    found.append("ptrace")
print(" ".join(found))
"""


@pytest.fixture
def open_vault(vault: Vault) -> Iterator[Vault]:
    """The vault where any user can get to it, as its own; pytest's folders are root's alone."""
    root_only()
    folder = Path(tempfile.mkdtemp(prefix="vault-"))
    try:
        shutil.copytree(vault.folder, folder, dirs_exist_ok=True)
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        yield Vault(folder, vault.weights, vault.keys, vault.expanded)
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Marked:
    """A process with a secret on its heap, which a core of it must hold."""

    process: Process
    marker: bytes


def read_by_the_same_user(process: Process, needle: bytes) -> set[str]:
    """What a second process of the same user gets hold of."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(process.pid), masked(needle)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(watched.__file__).parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def may_debug_siblings() -> bool:
    """Whether this host lets a user debug a process that is not a child; Yama's first level and above forbid it."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return not scope.exists() or scope.read_text().strip() == "0"


def test_a_core_taken_by_root_holds_no_weights_and_no_keys(vault: Vault, now: int, tmp_path: Path) -> None:
    root_only()
    marker = os.urandom(32)
    with child(MARKED, vault.folder, now, "hardened", masked(marker)) as process:
        process.wait_for("loaded")
        assert process.count(vault.weights) == dict.fromkeys(vault.weights, 1)
        core = core_of(process.pid, tmp_path)
        found = count_in_file(core, vault.needles | {"marker": marker})
        core.unlink()
    assert found.pop("marker") >= 1, "the core is one of this process's memory"
    assert found == dict.fromkeys(vault.needles, 0)


def test_a_process_of_the_same_user_reads_nothing(open_vault: Vault, now: int) -> None:
    weights = open_vault.weights["middle"]
    with child(PLAIN, open_vault.folder, now, "nobody", "hardened") as process:
        process.wait_for("loaded")
        assert process.count({"weights": weights}) == {"weights": 1}
        assert f"\nUid:\t{NOBODY}\t" in Path(f"/proc/{process.pid}/status").read_text()
        assert read_by_the_same_user(process, weights) == set()


def test_without_hardening_it_would_read_everything(open_vault: Vault, now: int) -> None:
    """The attack is real."""
    weights = open_vault.weights["middle"]
    with child(PLAIN, open_vault.folder, now, "nobody") as process:
        process.wait_for("loaded")
        found = read_by_the_same_user(process, weights)
    assert found == ({"mem", "environ", "ptrace"} if may_debug_siblings() else {"environ"})


# --- memory: secret


@pytest.fixture
def secret(vault: Vault, now: int) -> Iterator[Marked]:
    """A process that loaded into memory which the kernel itself cannot read."""
    if "secret" not in inspect.signature(loader.load).parameters:
        pytest.skip("the loader has no secret memory yet")
    root_only()
    marker = os.urandom(32)
    with child(MARKED, vault.folder, now, "hardened", "secret", masked(marker)) as process:
        line = process.wait_for("")
        if line.startswith("refused: secret memory"):
            lacking(f"this kernel has no memfd_secret for us: {line}")
        assert line == "loaded"
        yield Marked(process, marker)


def test_root_reads_nothing_of_secret_memory(secret: Marked, vault: Vault) -> None:
    process = secret.process
    areas = mappings(process.pid, "secretmem")
    assert areas, "the weights are somewhere else"
    assert sum(end - start for start, end in areas) >= (vault.folder / "model.sealed").stat().st_size * 0.9
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for start, _ in areas:
            memory.seek(start)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                memory.read(4096)
    assert secret.process.count(vault.needles) == dict.fromkeys(vault.needles, 0)


def test_a_core_taken_by_root_holds_nothing_of_secret_memory(secret: Marked, vault: Vault, tmp_path: Path) -> None:
    core = core_of(secret.process.pid, tmp_path)
    found = count_in_file(core, vault.needles | {"marker": secret.marker})
    core.unlink()
    assert found.pop("marker") >= 1
    assert found == dict.fromkeys(vault.needles, 0)


def test_secret_memory_is_given_back_on_close(secret: Marked, vault: Vault) -> None:
    secret.process.proceed("closed")
    assert secret.process.count(vault.needles) == dict.fromkeys(vault.needles, 0)
