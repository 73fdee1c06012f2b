"""The supervisor: starts engine and edge, joins them, starts again what ended, and stops in order.

It reads two secrets once and keeps them locked; it parses no byte that came from the network. A child that is refused
at the first start (a tampered model, a taken log) ends the daemon with that child's own error. After that a child that
ends is started again, with a growing pause, for as long as the daemon runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import msgspec

from pericard import hardening
from pericard.daemon import notify, values
from pericard.errors import ConfigError, from_code
from pericard.keys import LogKey
from pericard.settings import Settings
from pericard.unlock import source_for

_logger = logging.getLogger(__name__)
_CONTROL_SIZE = 1 << 16
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_STEADY_SECONDS = 30.0
_ENGINE_STOP_SECONDS = 15.0
_KILL_SECONDS = 2.0


@dataclass(slots=True)
class Child:
    """One child process and its control socket."""

    role: str
    process: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    ready: bool = False
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    again_at: float = field(default=0.0)


class Supervisor:
    """Runs the daemon until it is told to stop."""

    def __init__(self, settings: Settings, *, announce: Callable[[str], None]) -> None:
        """Harden, read the secrets, bind the socket.

        Args:
            settings: checked settings.
            announce: called once, with a line for people, when the daemon serves.

        Raises:
            PericardError: a key, a certificate or the address cannot be used.
        """
        hardening.harden()
        self._settings = settings
        self._announce = announce
        self._identity = hardening.lock_secret(
            source_for(settings.identity.unlock, Path(settings.identity.path)).seed()
        )
        self._log_secret = hardening.lock_secret(LogKey.read_secret(Path(settings.audit.key)))
        self._listener = values.listen(settings)
        self._engine, self._edge = Child("engine"), Child("edge")
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._stopping = False
        self._served = False
        self._serving = ""

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; SIGHUP reloads the certificate.

        Raises:
            PericardError: a child was refused at the first start.
        """
        wakeup_read, wakeup_write = socket.socketpair()
        wakeup_read.setblocking(False)
        wakeup_write.setblocking(False)
        self._selector.register(wakeup_read, selectors.EVENT_READ, None)
        previous = signal.set_wakeup_fd(wakeup_write.fileno())
        handlers = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        try:
            self._spawn(self._engine)
            self._spawn(self._edge)
            while not self._stopping:
                self._step(wakeup_read)
        finally:
            self._stop()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            self._selector.close()
            for sock in (wakeup_read, wakeup_write, self._listener):
                sock.close()
            self._identity.close()
            self._log_secret.close()

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _step(self, wakeup: socket.socket) -> None:
        for key, _ in self._selector.select(self._until_restart()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    wakeup.recv(64)
            else:
                self._hear(key.data)
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP:
                self._tell(self._edge, b"reload")
            else:
                self._stopping = True
        for child in (self._engine, self._edge):
            if child.process is None and not self._stopping and time.monotonic() >= child.again_at:
                self._spawn(child)

    def _until_restart(self) -> float | None:
        waits = [child.again_at - time.monotonic() for child in (self._engine, self._edge) if child.process is None]
        return max(0.0, min(waits)) if waits else None

    # --- children ----------------------------------------------------------------------------------------------------

    def _spawn(self, child: Child) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_end, write_end = os.pipe()
        inherited = [theirs.fileno(), read_end]
        if child.role == "edge":
            inherited.append(self._listener.fileno())
        # -I: no PYTHON* variable and no user site decides what a child imports; -B: it writes no bytecode
        command = [sys.executable, "-I", "-B", "-m", "pericard.daemon.child", child.role, str(os.getpid())]
        try:
            child.process = subprocess.Popen(
                [*command, *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **hardening.ALLOCATOR},
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
            )
        finally:
            theirs.close()
            os.close(read_end)
        child.control, child.ready, child.started = ours, False, time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ, child)
        try:
            self._give_values(child, write_end)
        except BrokenPipeError:
            _logger.warning("%s ended before it read its values", child.role)
        finally:
            os.close(write_end)

    def _give_values(self, child: Child, descriptor: int) -> None:
        secrets: tuple[memoryview, ...] = ()
        if child is self._edge:
            text = msgspec.json.encode(values.edge_values(self._settings))
        else:
            text = msgspec.json.encode(values.engine_values(self._settings))
            secrets = (self._identity.view, self._log_secret.view)
        for part in (memoryview(struct.pack("<I", len(text)) + text), *secrets):
            left = part
            while left.nbytes:
                left = left[os.write(descriptor, left) :]

    def _hear(self, child: Child) -> None:
        """One message from a child, or its end."""
        try:
            message = child.control.recv(_CONTROL_SIZE) if child.control else b""
        except OSError:
            message = b""
        if not message:
            self._ended(child)
            return
        told = json.loads(message)
        if "failed" in told:
            self._failed(child, told["failed"])
        elif "ready" in told:
            child.ready = True
            if child is self._engine:
                self._serving = told["ready"]
            self._join()
        elif "joined" in told:
            self._joined()

    def _failed(self, child: Child, failure: dict[str, str | None]) -> None:
        error = from_code(str(failure["code"]), str(failure["message"]), failure["hint"])
        if not self._served:
            raise error
        _logger.error("%s was refused: %s", child.role, error.message)

    def _ended(self, child: Child) -> None:
        """Forget an ended child and plan its restart."""
        status = self._reap(child)
        if not self._served:
            raise ConfigError(f"{child.role}: ended at its start with status {status}")
        steady = time.monotonic() - child.started > _STEADY_SECONDS
        child.pause = _FIRST_PAUSE if steady else min(child.pause * 2, _LONGEST_PAUSE)
        child.again_at = time.monotonic() + child.pause
        _logger.error("%s ended with status %s; it is started again in %.1f s", child.role, status, child.pause)

    def _reap(self, child: Child) -> int | None:
        if child.control is not None:
            self._selector.unregister(child.control)
            child.control.close()
            child.control = None
        process, child.process, child.ready = child.process, None, False
        if process is None:
            return None
        try:
            return process.wait(timeout=_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(timeout=_KILL_SECONDS)

    def _join(self) -> None:
        """Once both are ready, give each one end of a new pipe; old ends close themselves."""
        if not (self._engine.ready and self._edge.ready):
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._tell(self._engine, b"pipe", ours.fileno())
            self._tell(self._edge, b"pipe", theirs.fileno())

    def _joined(self) -> None:
        """The edge knows what the engine serves: from the first time on, the daemon serves."""
        if not self._served:
            self._served = True
            where = values.url(self._settings, self._listener)
            self._announce(f"serving {self._serving} on {where}")
            notify.tell(f"READY=1\nSTATUS=serving {self._serving}")

    def _tell(self, child: Child, message: bytes, *descriptors: int) -> None:
        if child.control is None:
            return
        try:
            socket.send_fds(child.control, [message], descriptors)
        except OSError:
            _logger.debug("%s no longer listens", child.role)  # its end is heard on the same socket

    def _stop(self) -> None:
        """Stop the edge first, so that what it accepted is still answered; then the engine."""
        notify.tell("STOPPING=1")
        for child, seconds in (
            (self._edge, self._settings.limits.drain_seconds + _KILL_SECONDS),
            (self._engine, _ENGINE_STOP_SECONDS),
        ):
            if child.process is not None:
                self._tell(child, b"stop")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout=seconds)
                if child.process.poll() is None:
                    child.process.kill()
                self._reap(child)


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Run the daemon; see :class:`Supervisor`.

    Raises:
        PericardError: it could not start.
    """
    Supervisor(settings, announce=announce).run()
