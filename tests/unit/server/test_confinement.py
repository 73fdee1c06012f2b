"""The tables stand in the kernel's headers, the filter does what it says for every call, and nothing starts by half.

What a process really cannot do any more is in ``tests/attacks/test_confinement.py``.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from watched import environment, lacking

from pericard import confinement, settings
from pericard.confinement import calls, landlock, seccomp
from pericard.confinement.calls import MACHINES, OTHER, REFUSED, Machine
from pericard.daemon import values
from pericard.engine.values import EngineValues
from pericard.errors import ConfigError, HardeningError

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
PID = 4711
KILLED, LET_THROUGH, REFUSED_HERE, NOT_KNOWN = "killed", "let through", "EPERM", "ENOSYS"
MACHINE_NAMES = tuple(MACHINES)


def header(name: str) -> dict[str, int]:
    """The numbers that this host's kernel headers give to a machine's calls."""
    for path in map(Path, HEADERS[name]):
        if path.exists():
            found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", path.read_text(), re.MULTILINE)
            return {call: int(number) for call, number in found}
    lacking(f"the kernel's headers for {name} are not installed")
    return {}


# --- the tables


@pytest.mark.parametrize("name", MACHINE_NAMES)
def test_every_number_is_the_headers(name: str) -> None:
    known, ours = header(name), MACHINES[name].numbers
    assert {call: known[call] for call in ours if call in known} == {
        call: number for call, number in ours.items() if call in known
    }
    # what this header is too old for has, since 5.1, one number on every machine
    assert {call for call in ours if call not in known} <= {
        call for call, (a, b) in (REFUSED | OTHER).items() if a == b
    }


@pytest.mark.parametrize("name", MACHINE_NAMES)
def test_what_the_table_says_a_machine_lacks_its_header_lacks(name: str) -> None:
    known = header(name)
    assert not [call for call in REFUSED | OTHER if call not in MACHINES[name].numbers and call in known]


def test_no_number_stands_twice() -> None:
    for machine in MACHINES.values():
        assert len(set(machine.numbers.values())) == len(machine.numbers)


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(HardeningError, match="system calls of riscv64 are not known"):
        calls.this_machine()


# --- the filter, run by an interpreter of our own for both machines


def judge(machine: Machine, number: int, *arguments: int, arch: int | None = None) -> str:
    """What the filter does with a call."""
    words = [number, machine.arch if arch is None else arch, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    code: Sequence[tuple[int, int, int, int]] = seccomp.program(machine, PID)
    place, accumulator = 0, 0
    while True:
        kind, yes, no, value = code[place]
        place += 1
        if kind == 0x20:
            accumulator = words[value // 4]
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x06:
            return {
                0x80000000: KILLED, 0x7FFF0000: LET_THROUGH, 0x50000 | errno.EPERM: REFUSED_HERE,
                0x50000 | errno.ENOSYS: NOT_KNOWN,
            }[value]  # fmt: skip
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[kind]
            place += yes if holds else no


@pytest.fixture(params=MACHINE_NAMES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return MACHINES[request.param]


def test_the_filter_refuses_what_the_table_says_and_nothing_else(machine: Machine) -> None:
    named = set(machine.numbers.values())
    refused = {number for call, number in machine.numbers.items() if call in REFUSED}
    for number in range(600):
        verdict = judge(machine, number)
        if number in refused:
            assert verdict == REFUSED_HERE
        elif number not in named:
            assert verdict == LET_THROUGH


def test_the_kernel_takes_a_program_of_this_length(machine: Machine) -> None:
    assert len(seccomp.program(machine, PID)) <= 4096
    assert all(max(yes, no) < 256 for _, yes, no, _ in seccomp.program(machine, PID))


def test_another_set_of_calls_ends_the_process(machine: Machine) -> None:
    for other in (0x40000003, 0x40000028, 0xC000003E, 0xC00000B7):
        verdict = judge(machine, 63, arch=other)  # read or uname
        assert verdict == (LET_THROUGH if other == machine.arch else KILLED)
    if machine.foreign:
        assert judge(machine, 0x40000000) == judge(machine, 0x40000027) == judge(machine, 0xFFFFFFFF) == KILLED


THREAD = 0x00010000 | 0x100 | 0x200 | 0x400 | 0x800 | 0x40000 | 0x80000 | 0x100000 | 0x200000


@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ("clone", (THREAD,), LET_THROUGH),  # as glibc makes a thread
        ("clone", (17,), REFUSED_HERE),
        ("clone", (0x4000 | 0x100 | 17,), REFUSED_HERE),  # vfork
        *(("clone", (THREAD | 1 << bit,), REFUSED_HERE) for bit in (17, 25, 26, 27, 28, 29, 30)),  # namespaces
        ("clone3", (0, 88), NOT_KNOWN),
        ("kill", (PID, 9), LET_THROUGH),
        ("kill", (PID + 1, 9), REFUSED_HERE),
        ("kill", (0, 9), REFUSED_HERE),
        ("kill", (-1, 9), REFUSED_HERE),
        ("kill", (-PID, 9), REFUSED_HERE),
        ("kill", (PID + 1 | PID << 32, 9), REFUSED_HERE),  # the kernel reads the low half
        ("tgkill", (PID, PID + 5, 6), LET_THROUGH),
        ("tgkill", (PID + 1, PID + 1, 6), REFUSED_HERE),
        ("rt_sigqueueinfo", (PID + 1, 9), REFUSED_HERE),
        ("rt_tgsigqueueinfo", (PID + 1, PID + 1, 9), REFUSED_HERE),
        ("prlimit64", (0, 8), LET_THROUGH),
        ("prlimit64", (PID, 8), LET_THROUGH),
        ("prlimit64", (PID + 1, 8), REFUSED_HERE),
        ("move_pages", (PID + 1,), REFUSED_HERE),
        ("migrate_pages", (PID + 1,), REFUSED_HERE),
        ("ioctl", (0, 0x5412), REFUSED_HERE),
        ("ioctl", (0, 0x5412 | 1 << 32), REFUSED_HERE),
        ("ioctl", (0, 0x541C), REFUSED_HERE),
        ("ioctl", (0, 0x8901), REFUSED_HERE),
        ("ioctl", (0, 0x8902), REFUSED_HERE),
        ("ioctl", (0, 0x5401), LET_THROUGH),  # is it a terminal
        ("ioctl", (0, 0xC020462A), LET_THROUGH),  # one of CUDA's
        ("fcntl", (0, 8), REFUSED_HERE),
        ("fcntl", (0, 10), REFUSED_HERE),
        ("fcntl", (0, 15), REFUSED_HERE),
        ("fcntl", (0, 1030), LET_THROUGH),
        ("prctl", (4, 1), REFUSED_HERE),
        ("prctl", (1, 0), REFUSED_HERE),
        ("prctl", (0x59616D61, 1), REFUSED_HERE),
        ("prctl", (35, 1), REFUSED_HERE),
        ("prctl", (15, 0), LET_THROUGH),  # a thread's name
        ("fchmod", (3, 0o600), LET_THROUGH),
        ("fchmod", (3, 0o400), LET_THROUGH),
        *(("fchmod", (3, 0o600 | 1 << bit), REFUSED_HERE) for bit in (0, 1, 2, 3, 4, 5, 6, 9, 10, 11)),
    ],
)
def test_arguments_are_looked_at(machine: Machine, call: str, arguments: tuple[int, ...], verdict: str) -> None:
    assert judge(machine, machine.numbers[call], *arguments) == verdict


#: What torch, glibc, the log and the pipe need; the filter must not know them.
NEEDED = (
    "read write openat close mmap mprotect munmap futex recvfrom recvmsg sendto sendmsg memfd_create fdatasync fsync "
    "ftruncate renameat unlinkat ppoll eventfd2 mlock2 madvise getrandom rt_sigaction rt_sigprocmask sched_setaffinity "
    "clock_adjtime adjtimex flock mkdirat dup3 set_robust_list exit_group memfd_secret"
)


@pytest.mark.parametrize("name", MACHINE_NAMES)
def test_what_the_engine_needs_passes(name: str) -> None:
    known = header(name) | {"memfd_secret": 447}
    for call in NEEDED.split():
        if call in known:
            assert judge(MACHINES[name], known[call]) == LET_THROUGH, call


# --- Landlock by version


@pytest.mark.parametrize(
    ("abi", "files", "network", "scopes"),
    [
        (1, 0x1FFF, 0, 0), (2, 0x3FFF, 0, 0), (3, 0x7FFF, 0, 0), (4, 0x7FFF, 3, 0), (5, 0xFFFF, 3, 0),
        (6, 0xFFFF, 3, 3), (7, 0xFFFF, 3, 3), (9, 0xFFFF, 3, 3),
    ],
)  # fmt: skip
def test_a_version_of_landlock_is_asked_for_what_it_knows(abi: int, files: int, network: int, scopes: int) -> None:
    assert landlock.handled(abi) == (files, network, scopes)


def test_nothing_that_is_given_runs_or_makes_anything_but_files() -> None:
    for rights in (landlock.READ, landlock.KEEP, landlock.DEVICE):
        assert rights & 1 == 0  # execute
        assert rights & 0x1E90 == 0  # remove folders; make devices, folders, sockets, pipes, links
    assert landlock.READ & ~0b1100 == 0


def test_what_was_not_locked_in_says_so() -> None:
    found = confinement.absent()
    assert set(found["layers"]) == set(confinement.LAYERS)
    assert not any(found["layers"].values())
    assert json.loads(json.dumps(found)) == found


# --- what a site may require


def test_a_site_may_require_landlock_and_never_leave_seccomp_out(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"

    def required(words: str) -> tuple[str, ...]:
        path.write_text(f"models: [a.sealed]\n{words}")
        return values.engine_values(settings.load(path)).require

    assert required("") == required("engine: {require: [seccomp]}") == ("seccomp",)
    assert required("engine: {require: [seccomp, landlock]}") == ("seccomp", "landlock")
    for words in ("[]", "[landlock]"):
        with pytest.raises(ConfigError, match=r"engine\.require must name seccomp"):
            required(f"engine: {{require: {words}}}")
    with pytest.raises(ConfigError, match="invalid enum value 'apparmor'"):
        required("engine: {require: [seccomp, apparmor]}")


# --- before keys are read


DENIED = """
import ctypes, os, struct, sys
from pericard.confinement import calls
number = calls.this_machine().numbers["seccomp"]
code = b"".join(struct.pack("=HBBI", *step) for step in
    ((0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)))
held = ctypes.create_string_buffer(code)
calls.prctl(38, 1)
calls.call("seccomp", 1, 0, struct.pack("@HP", len(code) // 8, ctypes.addressof(held)))
os.execv(sys.executable, [sys.executable, "-I", "-B", "-m", "pericard.daemon.child", *sys.argv[1:]])
"""


def started(tmp_path: Path, *require: str, deny: bool) -> tuple[dict[str, dict[str, str]], bytes]:
    """Start an engine that is never given its secrets; what it says, and what it did not read."""
    told = EngineValues(
        models=(), publishers="publishers.json", trust_state=str(tmp_path / "trust.json"),
        audit_directory=str(tmp_path / "audit"), devices=("cpu",), threads=1, memory="locked", memory_budget=None,
        queue=1, version="1", require=require,
    )  # fmt: skip
    text, secrets = msgspec.json.encode(told), b"s" * 96
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read_end, write_end = os.pipe()
    with ours, theirs:
        # what would be secrets lies in the pipe and must still lie there afterwards
        os.write(write_end, len(text).to_bytes(4, "little") + len(secrets).to_bytes(4, "little") + text + secrets)
        words = ["engine", str(os.getpid()), str(theirs.fileno()), str(read_end)]
        entry = ["-c", DENIED] if deny else ["-I", "-B", "-m", "pericard.daemon.child"]
        done = subprocess.run(
            [sys.executable, *entry, *words], pass_fds=(theirs.fileno(), read_end), env=environment(), timeout=60,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        ours.settimeout(5)
        said: dict[str, dict[str, str]] = json.loads(ours.recv(1 << 16))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as rest:
        return said, rest.read()


def test_without_seccomp_no_secret_is_read(tmp_path: Path) -> None:
    said, left = started(tmp_path, "seccomp", deny=True)
    assert said["failed"]["code"] == "hardening-unavailable"
    assert said["failed"]["message"] == "seccomp: is required and cannot be had: operation not permitted"
    assert left == b"s" * 96


def test_with_seccomp_the_secrets_are_read_next(tmp_path: Path) -> None:
    said, left = started(tmp_path, "seccomp", deny=False)
    assert said["failed"]["code"] != "hardening-unavailable"
    assert left == b""
    assert (tmp_path / "audit").is_dir()
