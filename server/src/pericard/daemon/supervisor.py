"""The supervisor: starts engine, edges and forwarder, joins them, starts again what ended, and stops in order.

It holds its secrets in locked memory from the first start to the last; it parses no byte that came from the network,
and what unlocks an identity from anywhere but a plain file does so in a process of its own. A child that is refused
at the first start (a tampered model, a taken log) ends the daemon with that child's own error. After that a child that
ends is started again, with a growing pause, for as long as the daemon runs. Nothing that a child does holds it up or
ends it: a start takes a bounded time, and a message that is none costs the child its life. The engine keeps no
identity; for a later load it asks for it here, over its own control socket, and gets it through a new pipe. Whether
the forwarder runs is nobody's condition: its end delays evidence, and neither ends nor delays the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import math
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

from pericard import environment, hardening
from pericard.daemon import notify, unlocking, values
from pericard.errors import PipeError, from_code
from pericard.keys import LogKey
from pericard.pipe import create
from pericard.settings import Settings

_logger = logging.getLogger(__name__)
_CONTROL_SIZE = 1 << 16
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_LONGEST_FORWARD_PAUSE = 60.0
_STEADY_SECONDS = 30.0
_START_SECONDS = 900.0  # of one child: models are read, decrypted and asked their known questions
_ENGINE_STOP_SECONDS = 15.0
_FORWARD_STOP_SECONDS = 3.0  # for the last records and their head; what is left goes after the next start
_END_SECONDS = 2.0  # from a child's last word to its end
_KILL_SECONDS = 30.0  # a killed engine's memory may be large, and a device may hold on to it


class _Failure(msgspec.Struct, frozen=True):
    code: str
    message: str
    hint: str | None = None


class _Told(msgspec.Struct, frozen=True):
    """A child's message.

    Attributes:
        ready: what it is ready for.
        failed: why it cannot start.
        joined: an edge heard what the engine serves.
        lost: an edge was cut off from the engine, and wants another pipe.
        keys: the engine needs the identities.
        serving: what the engine serves now.
    """

    ready: str | None = None
    failed: _Failure | None = None
    joined: bool = False
    lost: bool = False
    keys: bool = False
    serving: str | None = None


@dataclass(slots=True)
class Child:
    """One child process and its control socket; the daemon serves only while those that are vital do."""

    role: str
    vital: bool = True
    process: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    ready: bool = False
    joined: bool = False
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    again_at: float = field(default=0.0)


class Supervisor:
    """Runs the daemon until it is told to stop."""

    def __init__(
        self, settings: Settings, *, announce: Callable[[str], None], runtime: environment.Judgement | None = None
    ) -> None:
        """Harden, read the secrets, bind the socket.

        Args:
            settings: checked settings.
            announce: called once, with a line for people, when the daemon serves.
            runtime: what was found of the installed runtime.

        Raises:
            PericardError: a key, a certificate or the address cannot be used.
        """
        hardening.harden()
        self._settings = settings
        self._runtime = runtime
        self._announce = announce
        self._log_secret = hardening.lock_secret(LogKey.read_secret(Path(settings.audit.key)))
        found = unlocking.seeds(values.unlock_values(settings))
        self._identities = [hardening.lock_secret(seed) for seed in found]
        if not all(secret.locked for secret in (self._log_secret, *self._identities)):
            _logger.warning("identity and log key: cannot be locked in memory; the limit is RLIMIT_MEMLOCK")
        self._listener = values.listen(settings)
        self._proxy = values.listen_proxy(settings)
        self._engine = Child("engine")
        self._edges = [Child("edge") for _ in range(settings.edges)]
        self._forwarders = [Child("forward", vital=False, again_at=math.inf)] if settings.forward else []
        self._children = (self._engine, *self._edges, *self._forwarders)
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._stopping = False
        self._served = False
        self._serving = ""

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; SIGHUP reloads certificate and models.

        Raises:
            PericardError: a child was refused or could not be started, the first time.
        """
        wakeup_read, wakeup_write = socket.socketpair()
        wakeup_read.setblocking(False)
        wakeup_write.setblocking(False)
        self._selector.register(wakeup_read, selectors.EVENT_READ, None)
        previous = signal.set_wakeup_fd(wakeup_write.fileno())
        handlers = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        try:
            for child in (self._engine, *self._edges):
                self._spawn(child)
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
            values.close_proxy(self._proxy)
            for secret in (self._log_secret, *self._identities):
                secret.close()

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _step(self, wakeup: socket.socket) -> None:
        for key, _ in self._selector.select(self._until_due()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    wakeup.recv(64)
            else:
                self._hear(key.data)
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP:
                for child in self._children:
                    if child.ready:  # one that is starting reads everything anyway
                        self._tell(child, b"reload")
            else:
                self._stopping = True
        for child in self._children:
            due = self._due(child)
            if self._stopping or due is None or time.monotonic() < due:
                continue
            if child.process is None:
                self._spawn(child)
            else:
                self._drop(child, f"was not ready after {_START_SECONDS:g} seconds")

    def _due(self, child: Child) -> float | None:
        """When something must be done about a child that says nothing: start it, or give its start up."""
        if child.process is None:
            return child.again_at
        return None if child.ready and self._served else child.started + _START_SECONDS

    def _until_due(self) -> float | None:
        due = [moment for child in self._children if (moment := self._due(child)) is not None]
        wait = max(0.0, min(due) - time.monotonic()) if due else math.inf
        return None if wait == math.inf else wait

    # --- children ----------------------------------------------------------------------------------------------------

    def _spawn(self, child: Child) -> None:
        """Start a child; one that cannot be started now is one that ended."""
        child.ready, child.joined, child.started = False, False, time.monotonic()
        try:
            self._start(child)
        except OSError as error:  # no process, no descriptor, or the interpreter is being replaced
            self._drop(child, f"could not be started: {(error.strerror or 'i/o error').lower()}")

    def _start(self, child: Child) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # a child that does not listen must not hold us up
        child.control = ours
        self._selector.register(ours, selectors.EVENT_READ, child)
        with theirs:
            read_end, write_end = os.pipe()
            try:
                self._execute(child, theirs.fileno(), read_end)
            except BaseException:
                os.close(write_end)
                raise
            finally:
                os.close(read_end)
        try:
            self._give_values(child, write_end)
        except BrokenPipeError:
            _logger.warning("%s ended before it read its values", child.role)
        finally:
            os.close(write_end)

    def _execute(self, child: Child, *inherited: int) -> None:
        if child.role == "edge":
            listeners = (self._listener,) if self._proxy is None else (self._listener, self._proxy)
            inherited = (*inherited, *(sock.fileno() for sock in listeners))
        # -I: no PYTHON* variable and no user site decides what a child imports; -B: it writes no bytecode
        command = [sys.executable, "-I", "-B", "-m", "pericard.daemon.child", child.role, str(os.getpid())]
        child.process = subprocess.Popen(
            [*command, *map(str, inherited)],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **hardening.ALLOCATOR},
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
        )

    def _give_values(self, child: Child, descriptor: int) -> None:
        secrets: tuple[memoryview, ...] = ()
        if child is self._engine:
            text = msgspec.json.encode(values.engine_values(self._settings, self._runtime))
            secrets = (self._log_secret.view, *(identity.view for identity in self._identities))
        elif child.role == "edge":
            text = msgspec.json.encode(values.edge_values(self._settings))
        else:
            text = msgspec.json.encode(values.forward_values(self._settings))
        lengths = struct.pack("<II", len(text), sum(secret.nbytes for secret in secrets))
        for part in (memoryview(lengths + text), *secrets):
            left = part
            while left.nbytes:
                left = left[os.write(descriptor, left) :]

    def _hear(self, child: Child) -> None:
        """One message from a child, or its end."""
        try:
            message = child.control.recv(_CONTROL_SIZE) if child.control else b""
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._ended(child)
            return
        try:
            self._heed(child, msgspec.json.decode(message, type=_Told))
        except (msgspec.DecodeError, RecursionError):
            self._drop(child, "sent a message that is none")

    def _heed(self, child: Child, told: _Told) -> None:
        if told.failed is not None:
            self._failed(child, told.failed)
        elif told.ready is not None and not child.ready:
            child.ready = True
            if child is self._engine:
                self._serving = told.ready
            for edge in self._edges if child is self._engine else [child]:
                if edge.vital:
                    self._join(edge)
        elif child is self._engine:
            self._hear_engine(told)
        elif told.lost:
            self._join(child)
        elif told.joined and self._engine.ready and not child.joined:
            child.joined = True
            self._joined()

    def _hear_engine(self, told: _Told) -> None:
        if told.keys:
            self._give_identities()
        if told.serving is not None:
            self._serving = told.serving
            if self._served:
                notify.tell(f"STATUS=serving {self._serving}")

    def _failed(self, child: Child, failure: _Failure) -> None:
        if not self._served and child.vital:
            raise from_code(failure.code, failure.message, failure.hint)
        _logger.error("%s was refused: %s", child.role, failure.message)

    def _ended(self, child: Child) -> None:
        """Forget an ended child and plan its restart."""
        status = self._reap(child)
        if not self._served and child.vital:
            killed = "it was killed, as the kernel does when memory runs out" if status == -signal.SIGKILL else None
            raise PipeError(f"{child.role}: ended at its start with status {status}", hint=killed)
        self._plan(child, f"ended with status {status}")

    def _drop(self, child: Child, reason: str) -> None:
        """End a child that is of no use, and plan its restart."""
        if child.process is not None:
            child.process.kill()
        self._reap(child)
        if not self._served and child.vital:
            raise PipeError(f"{child.role}: {reason}")
        self._plan(child, reason)

    def _plan(self, child: Child, reason: str) -> None:
        longest = _LONGEST_PAUSE if child.vital else _LONGEST_FORWARD_PAUSE
        steady = time.monotonic() - child.started > _STEADY_SECONDS
        child.pause = _FIRST_PAUSE if steady else min(child.pause * 2, longest)
        child.again_at = time.monotonic() + child.pause
        _logger.error("%s %s; it is started again in %.1f s", child.role, reason, child.pause)
        if child.vital:
            notify.tell(f"STATUS=waiting for the {child.role}, which {reason}")

    def _reap(self, child: Child) -> int | None:
        if child.control is not None:
            self._selector.unregister(child.control)
            child.control.close()
            child.control = None
        process, child.process, child.ready = child.process, None, False
        if process is None:
            return None
        for seconds in (_END_SECONDS, _KILL_SECONDS):
            try:
                return process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        _logger.error("%s was killed and does not end", child.role)  # the kernel's to solve; a later wait collects it
        return None

    def _join(self, edge: Child) -> None:
        """Once both are ready, give engine and edge each one end of a new pipe and its memory; old ends close."""
        if not (self._engine.ready and edge.ready):
            return
        edge.joined = False
        with contextlib.ExitStack() as ends:
            try:
                ours, theirs = map(ends.enter_context, socket.socketpair())
                region = create(self._settings.engine.shared_memory)
            except OSError as error:
                self._drop(edge, f"cannot be joined: {(error.strerror or 'i/o error').lower()}")
                return
            ends.callback(os.close, region)
            self._tell(self._engine, b"pipe", ours.fileno(), region)
            self._tell(edge, b"pipe", theirs.fileno(), region)

    def _give_identities(self) -> None:
        """Give the engine the live identities once more, through a pipe that holds all of them at once."""
        try:
            read_end, write_end = os.pipe()
        except OSError:
            _logger.exception("the identity could not be handed to the engine")  # who waits for it gives up
            return
        try:
            os.writev(write_end, [identity.view for identity in self._identities])
        finally:
            os.close(write_end)
        try:
            self._tell(self._engine, b"keys", read_end)
        finally:
            os.close(read_end)

    def _joined(self) -> None:
        """An edge knows what the engine serves: once every edge does for the first time, the daemon serves."""
        if not all(edge.joined for edge in self._edges):
            return
        if not self._served:
            self._served = True
            where = values.url(self._settings, self._listener)
            self._announce(f"serving {self._serving} on {where}")
            notify.tell("READY=1")
            for child in self._forwarders:  # now there is a log
                child.again_at = 0.0
        notify.tell(f"STATUS=serving {self._serving}")

    def _tell(self, child: Child, message: bytes, *descriptors: int) -> None:
        if child.control is None:
            return
        try:
            socket.send_fds(child.control, [message], descriptors)
        except BlockingIOError:
            _logger.error("%s does not listen any more", child.role)  # noqa: TRY400  (the message says it all)
            if child.process is not None:
                child.process.kill()  # its end is heard on the same socket
        except OSError:
            _logger.debug("%s no longer listens", child.role)

    def _stop(self) -> None:
        """Stop the edges first, so that what they accepted is still answered; then the engine, then who forwards."""
        drain = self._settings.limits.drain_seconds + _END_SECONDS
        notify.tell(
            f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((drain + _ENGINE_STOP_SECONDS + _FORWARD_STOP_SECONDS) * 1e6)}"
        )
        for children, seconds in (
            (self._edges, drain), ([self._engine], _ENGINE_STOP_SECONDS), (self._forwarders, _FORWARD_STOP_SECONDS)
        ):  # fmt: skip
            started = [(child, child.process) for child in children if child.process is not None]
            for child, _ in started:
                if child.ready:  # one that is still starting has nothing to finish
                    self._tell(child, b"stop")
            end = time.monotonic() + seconds
            for child, process in started:
                if child.ready:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=max(0.0, end - time.monotonic()))
                process.kill()  # nothing happens to one that has ended
                self._reap(child)


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Run the daemon; see :class:`Supervisor`.

    Raises:
        PericardError: it could not start.
    """
    Supervisor(settings, announce=announce, runtime=values.judged(settings)).run()
