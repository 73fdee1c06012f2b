"""The process keeps its memory to itself. Each test hardens a process of its own, never the one that tests."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pericard import hardening
from pericard.errors import HardeningError
from pericard.hardening import PrivateMemory, lock_secret

NOBODY = 65534
SECONDS = 30

# A process that holds a secret and says where; it drops root first, since setuid makes a process dumpable or not.
VICTIM = f"""
import ctypes, os, sys
from pericard import hardening
if os.getuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
if sys.argv[1] == "hardened":
    hardening.harden()
else:
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
secret = ctypes.create_string_buffer(b"a secret of the victim's")
print(ctypes.addressof(secret), flush=True)
sys.stdin.read()
"""
# Another process of the same user, which tries what such a process can try.
ATTACKER = f"""
import ctypes, os, sys
if os.getuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
pid, address = int(sys.argv[1]), int(sys.argv[2])
libc, read = ctypes.CDLL(None), []
for name in ("mem", "environ", "maps"):
    try:
        with open(f"/proc/{{pid}}/{{name}}", "rb", buffering=0) as file:
            if name == "mem":
                file.seek(address)
            read += [name] if file.read(8) else []
    except OSError:
        pass
if libc.ptrace(16, pid, 0, 0) == 0:
    read.append("ptrace")
print(*read)
"""


def python(code: str, *words: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(code: str, *words: object) -> str:
    with python(code, *words) as process:
        out, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error
    return out.strip()


@pytest.fixture
def attack() -> Iterator[Callable[[str], set[str]]]:
    """Start a victim, hardened or not, and return what another process of its user could read."""
    with contextlib.ExitStack() as stack:

        def run(kind: str) -> set[str]:
            victim = stack.enter_context(python(VICTIM, kind))
            stack.callback(victim.kill)
            assert victim.stdout is not None
            address = victim.stdout.readline().strip()
            return set(said(ATTACKER, victim.pid, address).split())

        yield run


def test_a_hardened_process_says_so() -> None:
    flags = said(
        "import os, resource; from pericard import hardening; hardening.harden(); "
        "print(*resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)), "
        "*[line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')], "
        "hardening._libc.prctl(3, 0, 0, 0, 0))"
    )

    assert flags == "0 0 0o77 1 0"


def test_no_process_of_the_same_user_reads_its_memory(attack: Callable[[str], set[str]]) -> None:
    assert attack("hardened") == set()


def test_the_attack_would_succeed_on_a_process_that_is_not_hardened(attack: Callable[[str], set[str]]) -> None:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and scope.read_text().strip() != "0":
        pytest.skip("this host's Yama forbids it for every process")

    assert {"mem", "environ"} <= attack("open")


def test_a_crash_leaves_no_core_file(tmp_path: Path) -> None:
    """Even where the limit was raised before and the folder can be written."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    code = (
        "import os, resource, signal; from pericard import hardening; "
        f"resource.setrlimit(resource.RLIMIT_CORE, ({hard}, {hard})); hardening.harden(); "
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    process = python(code, cwd=tmp_path)
    process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGSEGV
    assert list(tmp_path.iterdir()) == []

    process = python(code, cwd=tmp_path)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.communicate()
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)


def test_a_process_ends_with_its_parent() -> None:
    """The child holds a pipe open; once its parent is killed, the pipe closes."""
    read, write = os.pipe()
    child = (
        "import os, sys, time; from pericard import hardening; hardening.die_with_parent(os.getppid()); "
        f"os.write({write}, b'ready'); time.sleep({SECONDS})"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], pass_fds=[{write}])"
    process = subprocess.Popen([sys.executable, "-c", parent], pass_fds=[write])
    os.close(write)
    try:
        assert os.read(read, 5) == b"ready"
        process.kill()
        process.wait(SECONDS)
        readable, _, _ = select.select([read], [], [], SECONDS)
        assert readable
        assert os.read(read, 1) == b""
    finally:
        os.close(read)
        process.kill()
        process.wait()


def test_a_process_whose_parent_is_gone_already_ends_at_once() -> None:
    with python("from pericard import hardening; hardening.die_with_parent(1 << 22); print('alive')") as process:
        out, _ = process.communicate(timeout=SECONDS)

    assert (process.returncode, out) == (1, "")


def test_what_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(HardeningError, match="the flag: the kernel refused: invalid argument"):
        hardening._prctl(-1, 0, "the flag")


def test_core_dumps_that_cannot_be_switched_off_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(hardening.resource, "setrlimit", refuse)
    mask = os.umask(0)
    try:
        with pytest.raises(HardeningError, match="core dumps: cannot be switched off"):
            hardening.harden()
    finally:
        os.umask(mask)


def test_no_library_finds_a_place_for_temporary_files(tmp_path: Path) -> None:
    """Not even root does, and not by default in the working folder either."""
    code = """
import os, subprocess, sys, tempfile
from pericard import hardening
hardening.forbid_temporary_files()
for make in (tempfile.NamedTemporaryFile, tempfile.mkdtemp, tempfile.TemporaryFile, tempfile.mkstemp):
    try:
        make()
        print(make.__name__)
    except OSError:
        pass
try:
    os.makedirs(os.path.join(os.environ["TORCHINDUCTOR_CACHE_DIR"], "sub"))
    print("cache")
except OSError:
    pass
tempfile.NamedTemporaryFile(dir=sys.argv[1]).close()
print("done")
"""
    with python(code, tmp_path, cwd=tmp_path) as process:
        out, error = process.communicate(timeout=SECONDS)

    assert (process.returncode, out.split()) == (0, ["done"]), error
    assert list(tmp_path.iterdir()) == []


# --- swap


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Filename\tType\tSize\tUsed\tPriority\n", False),
        ("Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1 0 -2\n", True),
        (FileNotFoundError(), False),
        (PermissionError(), True),
    ],
)
def test_swap_is_assumed_where_it_cannot_be_ruled_out(
    text: str | OSError, *, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, encoding: str) -> str:
        assert str(path) == "/proc/swaps"
        if isinstance(text, OSError):
            raise text
        return text

    monkeypatch.setattr(hardening.Path, "read_text", read_text)
    assert hardening.swap_in_use() is expected


# --- private memory


def flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise LookupError(address)


def test_private_memory_is_zero_and_left_out_of_core_dumps() -> None:
    with PrivateMemory(10_000) as memory:
        flags = flags_at(memory._address)

        assert memory.view == bytes(10_000)
        assert "dd" in flags
        assert ("lo" in flags) is memory.locked
        memory.view[:] = b"x" * 10_000
        memory.wipe()
        assert memory.view == bytes(10_000)


def test_memory_beyond_the_limit_is_reported_as_not_locked() -> None:
    locked = said(
        f"""
import os, resource
from pericard.hardening import PrivateMemory
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
if os.getuid() == 0:
    os.setgid({NOBODY}), os.setuid({NOBODY})
print(PrivateMemory(4096).locked, PrivateMemory(1 << 20).locked)
"""
    )

    assert locked == "True False"


def test_closing_zeroes_even_what_is_still_held() -> None:
    memory = PrivateMemory(100)
    held = memory.view
    held[:] = b"s" * 100
    memory.close()

    assert held == bytes(100)
    held.release()
    memory.close()
    memory.close()
    memory.wipe()  # nothing is left to wipe, and that is fine


def test_a_secret_is_moved_not_copied() -> None:
    secret = bytearray(b"a seed of thirty-two bytes......")
    with lock_secret(secret) as held:
        assert secret == bytes(32)
        assert held.view == b"a seed of thirty-two bytes......"


def test_nothing_is_still_something_to_map() -> None:
    with PrivateMemory(0) as memory:
        assert len(memory.view) == 0


def test_secret_memory_gives_root_nothing_or_is_refused_with_the_reason() -> None:
    read = said(
        """
import os
from pericard.errors import HardeningError
from pericard.hardening import PrivateMemory
try:
    memory = PrivateMemory(8192, secret=True)
except HardeningError as error:
    print("refused", error.message)
else:
    memory.view[:] = b"x" * 8192
    with open("/proc/self/mem", "rb", 0) as all:
        all.seek(memory._address)
        try:
            print("read", all.read(16))
        except OSError as error:
            print(error.errno, memory.locked, bytes(memory.view[:2]))
"""
    )

    assert read == "5 True b'xx'" or read.startswith("refused secret memory: 8192 bytes cannot be had: ")


def test_secret_memory_beyond_the_limit_says_which_limit() -> None:
    told = said(
        f"""
import os, resource
from pericard.errors import HardeningError
from pericard.hardening import PrivateMemory
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
if os.getuid() == 0:
    os.setgid({NOBODY}), os.setuid({NOBODY})
try:
    PrivateMemory(1 << 20, secret=True)
except HardeningError as error:
    print(error.hint)
"""
    )

    assert "RLIMIT_MEMLOCK" in told or "memfd_secret" in told


@pytest.mark.parametrize("user", ["as we are", "nobody"])
def test_without_a_network_even_loopback_is_gone_and_files_stay_ours(user: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        made = Path(folder) / "made"
        command = [sys.executable, "-c", WITHOUT_NETWORK, str(made)]
        if user == "nobody":
            if os.getuid() != 0:
                pytest.skip("needs root to become nobody")
            command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        owner = made.stat().st_uid

    dropped, reason = done.stdout.split(maxsplit=1)
    assert (dropped, reason.strip()) in {("True", "Network is unreachable"), ("False", "Connection refused")}
    assert owner == (NOBODY if user == "nobody" else os.getuid())


WITHOUT_NETWORK = """
import socket, sys
from pericard import hardening
dropped = hardening.drop_network()
open(sys.argv[1], "w").close()
try:
    socket.create_connection(("127.0.0.1", 1), 1)
except OSError as error:
    print(dropped, error.strerror)
"""
