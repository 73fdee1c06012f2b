"""Servers as process trees on a core of their own, what they cost, and one load step against one of them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pericard.hardening import ALLOCATOR

_HERE = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_AWAKE_SECONDS = 0.05  # what a server does that was long asleep is not measured
_STOP_SECONDS = 20
_STEP_SECONDS = 150

#: The same for every server. The allocator's settings are those that Pericard sets for itself.
ENVIRONMENT = {
    **{name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ},
    **ALLOCATOR,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
}


def cores() -> tuple[int, int]:
    """The core of the servers, and that of everything else."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SystemExit("serve: needs two cores, one for the server and one for the generator")
    return allowed[0], allowed[1]


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def settle(core: int) -> None:
    """Keep this process off the servers' core, and let processes that a server left behind come to us."""
    os.sched_setaffinity(0, {core})
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pinned(core: int, command: Sequence[object]) -> list[str]:
    """A command that runs on one core, with all that it starts."""
    return ["taskset", "-c", str(core), *map(str, command)]


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: Sequence[int]) -> dict[int, float]:
    """User and system time of each process from the kernel's own clock, which counts nanoseconds, not ticks."""
    found = {}
    for pid in pids:
        try:
            found[pid] = time.clock_gettime(~pid << 3 | 2)  # the kernel's number for the CPU clock of a process
        except OSError:
            continue
    return found


def busy_seconds(core: int) -> float:
    """Time in which a core was used by anybody or taken by the hypervisor."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    fields = [int(field) / _TICKS for field in line.split()[1:9]]
    return sum(fields) - fields[3] - fields[4]


@dataclass(eq=False)
class Server:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    tls: bool = False
    _known: list[int] = field(default_factory=list)  # its processes, when it was last told to end

    def pids(self) -> list[int]:
        """Its processes."""
        return tree(self.process.pid)

    def last_words(self) -> str:
        """The end of its log, in one line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-300:] or "it said nothing"

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self) -> None:
        """Let it do nothing: some servers that nobody asks still look around hundreds of times a second."""
        self._signal(signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let a paused server work for a while."""
        self._signal(signal.SIGCONT)
        time.sleep(_AWAKE_SECONDS)
        try:
            yield
        finally:
            self.pause()

    def end(self) -> None:
        """Tell it to end. What it started is remembered first: once it is gone, nobody knows whose that was."""
        self._known = self._known or self.pids()
        self.process.terminate()
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and whatever it started."""
        self.end()
        pids = self._known
        try:
            self.process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in pids[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)  # it is ours since its parent is gone
            except (ProcessLookupError, ChildProcessError):
                continue


@contextmanager
def started(
    name: str,
    port: int,
    model: str,
    command: Sequence[object],
    environment: Mapping[str, str],
    *,
    folder: Path,
    core: int,
) -> Iterator[Server]:
    """Run a server on a core; it may not be ready yet. Its log stays."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            pinned(core, command),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=folder,
            env={**ENVIRONMENT, "HOME": str(folder), "BENCH_MODEL": model, **environment},
        )  # fmt: skip
    server = Server(name, port, process, log)
    try:
        yield server
    finally:
        server.stop()


class Generator:
    """The load generator, built for this machine."""

    def __init__(self, folder: Path, core: int, server_core: int) -> None:
        """Build it; without OpenSSL's headers it speaks no TLS."""
        self._program, self._core, self._server_core = folder / "generator", core, server_core
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(self._program), str(_HERE / "generator.c")]
        tls = subprocess.run([*command, "-DWITH_TLS", "-lssl", "-lcrypto", "-lm"], capture_output=True, check=False)
        self.tls = tls.returncode == 0
        if not self.tls:
            subprocess.run([*command, "-lm"], check=True)

    def step(
        self, server: Server, questions: Path, *, connections: int, seconds: float = 0, rate: float = 0
    ) -> dict[str, Any]:
        """Load one server: what it answered, what that cost, and what others used of its core meanwhile.

        Returns:
            What the generator prints, and: ``cpu_us`` per answer of the server's whole tree, ``rate`` of answers,
            ``foreign`` share of the core; or ``error`` alone.
        """
        words = [server.port, connections, seconds, rate, int(server.tls), questions]
        with subprocess.Popen(
            pinned(self._core, [self._program, *words]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            if process.stdout is None:
                raise AssertionError("a pipe was asked for")
            process.stdout.readline()
            before, busy = cpu_seconds(server.pids()), busy_seconds(self._server_core)
            try:
                out, err = process.communicate("\n", timeout=seconds + _STEP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                return {"error": "the generator did not end"}
            after, busy = cpu_seconds(server.pids()), busy_seconds(self._server_core) - busy
        if process.returncode:
            return {"error": err.strip()[-300:] or f"the generator ended with {process.returncode}"}
        found: dict[str, Any] = json.loads(out)
        used = sum(spent - before.get(pid, 0.0) for pid, spent in after.items())
        answers, elapsed = found["right"], max(found["seconds"], 1e-9)
        if before.keys() - after.keys():
            return {"error": "a process of the server ended during the step"}
        if found["wrong"]:
            return {"error": f"{found['wrong']} wrong answers; {err.strip()[:300]}", "wrong": found["wrong"]}
        if found["refused"] or found["broken"]:
            return {"error": f"{found['refused']} refused, {found['broken']} broken; {err.strip()[:300]}"}
        costs = {"cpu_us": used / answers * 1e6, "rate": answers / elapsed}
        return found | costs | {"foreign": max(busy - used, 0.0) / elapsed}


def alone(model: str, seconds: float, *, folder: Path, core: int) -> dict[str, Any]:
    """What the bare model and an ``fdatasync`` take, measured in a process on the servers' core."""
    done = subprocess.run(
        pinned(core, [sys.executable, _HERE / "alone.py", seconds, folder]),
        capture_output=True, text=True, check=True, timeout=_STEP_SECONDS,
        env={**ENVIRONMENT, "PYTHONPATH": str(_HERE / "servers"), "BENCH_MODEL": model},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found
