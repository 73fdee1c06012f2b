"""The entry of a child process: ``python -I -m pericard.daemon.child ROLE PARENT CONTROL VALUES [LISTENER [PROXY]]``.

The last arguments are descriptor numbers. Hardening comes before a value is read; the engine locks itself in before it
reads a secret, and imports torch after that. Values come through a pipe: two u32 lengths, JSON, and for the engine the
log key's secret and the live identities' seeds, the current one first. For a later load the engine asks for the seeds
again, over the control socket that only the supervisor holds the other end of; they come through a pipe of their own,
and are wiped once the load has ended.
Only the supervisor stops a child: signals that were sent to the whole family must not end the engine before the edge.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import queue
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pericard import confinement, durable, hardening
from pericard.engine.values import EngineValues
from pericard.errors import KeySourceUnavailable, PericardError, PipeError
from pericard.keys import Identity, LogKey, wipe
from pericard.keys.identity import SEED_SIZE
from pericard.keys.log import SECRET_SIZE

if TYPE_CHECKING:  # it brings torch, which is imported after hardening
    from pericard.engine.main import Engine

_LENGTHS = struct.Struct("<II")
_MAX_VALUES = 1 << 20
_MOST_IDENTITIES = 2
_TICK_SECONDS = 30.0
_THRESHOLDS = (20_000, 20, 50)
_CONTROL_SIZE = 64
_CONTROL_DESCRIPTORS = 2
_KEYS_SECONDS = 10.0
_PATIENCE_SECONDS = 600.0


def main(arguments: list[str]) -> int:
    """Run one child; the exit status."""
    role, parent, control_fd, values_fd, *rest = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format=f"pericard {role}: %(levelname)s: %(message)s", level=logging.WARNING)
    control = socket.socket(fileno=int(control_fd))
    try:
        hardening.die_with_parent(int(parent))
        hardening.harden()
        hardening.forbid_temporary_files()
        if role == "engine":
            _engine(control, int(values_fd))
        elif role == "forward":
            _forward(control, int(values_fd))
        else:
            _edge(control, int(values_fd), *(socket.socket(fileno=int(number)) for number in rest))
    except PericardError as error:
        say(control, {"failed": {"code": error.code, "message": error.message, "hint": error.hint}})
        return 1
    except Exception as error:
        if os.environ.get("PERICARD_TRACEBACK"):
            raise
        message = f"{role}: something went wrong inside ({type(error).__name__})"
        hint = "PERICARD_TRACEBACK=1 shows where; please report it"
        say(control, {"failed": {"code": PericardError.code, "message": message, "hint": hint}})
        return 1
    return 0


def say(control: socket.socket, message: dict[str, object]) -> None:
    """Tell the supervisor; if it is gone, the kernel is about to end us anyway."""
    try:
        control.setblocking(True)
        control.send(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))
    except OSError:
        return


def _engine(control: socket.socket, values_fd: int) -> None:
    text, secret_size = _read_text(values_fd)
    values = msgspec.json.decode(text, type=EngineValues)
    confined = _confine(values)
    secrets = _read_secrets(values_fd, secret_size)
    try:
        log_key, identity, previous = _keys(secrets)
    finally:
        wipe(secrets)
    from pericard.engine.main import Engine  # noqa: PLC0415  (brings torch, once nothing can get out)

    asking = _Identities(control)
    engine = Engine(values, identity, log_key, previous=previous, identities=asking, confinement=confined)
    del identity, previous  # the models are open; nothing here needs them again
    engine.start(lambda: os._exit(70))
    _settle_memory()
    _obey(control, engine, asking)


def _confine(values: EngineValues) -> dict[str, Any]:
    """Lock the engine in; afterwards it changes files in two folders only, the audit log's and the trust state's."""
    log = Path(values.audit_directory)
    with contextlib.suppress(OSError):  # the log says what is wrong with its folder
        log.mkdir(mode=0o750)  # from inside no folder can be made
        durable.sync_folder(log.parent)
    return confinement.confine(
        writable=[log, Path(values.trust_state).parent],
        devices=[] if set(values.devices) == {"cpu"} else confinement.cuda_devices(),
        require=values.require,
    )


class _Identities:
    """Asks the supervisor for the live identities; called on the thread that loads."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._given: queue.Queue[int] = queue.Queue(1)

    def __call__(self) -> tuple[Identity, ...]:
        """The live identities, the current one first.

        Raises:
            KeySourceUnavailable: they did not come.
        """
        unavailable = KeySourceUnavailable("identity: the supervisor did not give it again", hint="restart the server")
        try:
            while True:  # what came too late for whoever asked before
                os.close(self._given.get_nowait())
        except queue.Empty:
            pass
        try:
            os.write(self._control.fileno(), b'{"keys": true}')
            descriptor = self._given.get(timeout=_KEYS_SECONDS)
        except (OSError, queue.Empty) as error:
            raise unavailable from error
        seeds = bytearray(_MOST_IDENTITIES * SEED_SIZE)
        try:
            size = os.readv(descriptor, [seeds])  # written at once, before it was handed over
            return _identities(memoryview(seeds)[:size])
        except OSError as error:
            raise unavailable from error
        finally:
            wipe(seeds)
            os.close(descriptor)

    def hand(self, descriptor: int) -> None:
        """Hand over what the supervisor gave; never waits."""
        try:
            self._given.put_nowait(descriptor)
        except queue.Full:
            os.close(descriptor)


def _obey(control: socket.socket, engine: Engine, asking: _Identities) -> None:
    """Do what the supervisor says, until it says stop."""
    told = engine.serving
    say(control, {"ready": told})
    control.settimeout(_TICK_SECONDS)
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, _CONTROL_SIZE, _CONTROL_DESCRIPTORS)
        except TimeoutError:
            engine.tick()
            message, descriptors = b"tick", []
        if message == b"pipe" and len(descriptors) == _CONTROL_DESCRIPTORS:
            engine.attach(socket.socket(fileno=descriptors[0]), descriptors[1])
        elif message == b"keys" and len(descriptors) == 1:
            asking.hand(descriptors[0])
        elif message == b"reload":
            engine.reload()
        elif message == b"stop":
            engine.stop()
            return
        elif message == b"":
            os._exit(1)  # the supervisor is gone
        if engine.serving != told:
            told = engine.serving
            os.write(control.fileno(), json.dumps({"serving": told}).encode())


def _edge(control: socket.socket, values_fd: int, listener: socket.socket, proxy: socket.socket | None = None) -> None:
    from pericard.edge.main import Edge  # noqa: PLC0415  (after hardening)
    from pericard.edge.values import EdgeValues  # noqa: PLC0415

    text, secret_size = _read_text(values_fd)
    _read_secrets(values_fd, secret_size)
    edge = Edge(msgspec.json.decode(text, type=EdgeValues))
    say(control, {"ready": "edge"})

    async def serve() -> None:
        await edge.serve(listener, control, proxy)

    _settle_memory()
    import uvloop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def _forward(control: socket.socket, values_fd: int) -> None:
    from pericard.forward import Forwarder, ForwardValues  # noqa: PLC0415  (after hardening)

    text, secret_size = _read_text(values_fd)
    _read_secrets(values_fd, secret_size)
    values = msgspec.json.decode(text, type=ForwardValues)
    folder = Path(values.cursor).parent
    with contextlib.suppress(OSError):  # the cursor says what is wrong with its folder
        folder.mkdir(mode=0o700)
    confinement.shed(
        readable=[*map(Path, (values.directory, values.ca, values.certificate, values.key))], writable=[folder]
    )
    forwarder = Forwarder(values)
    say(control, {"ready": "forward"})
    stopping = threading.Event()
    threading.Thread(target=_hear_stop, args=(control, stopping), daemon=True).start()
    forwarder.run(stopping, patience=_PATIENCE_SECONDS)


def _hear_stop(control: socket.socket, stopping: threading.Event) -> None:
    """Any word ends the forwarder: after a reload it is started again, with the files as they are then."""
    control.recv(_CONTROL_SIZE)
    stopping.set()


def _settle_memory() -> None:
    """Keep what is there for good out of the garbage collector's rounds, and have it make fewer of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def _keys(secrets: bytearray) -> tuple[LogKey, Identity, Identity | None]:
    secret = bytearray(memoryview(secrets)[:SECRET_SIZE])
    try:
        identity, *previous = _identities(memoryview(secrets)[SECRET_SIZE:])
        return LogKey(secret), identity, previous[0] if previous else None
    finally:
        wipe(secret)


def _identities(given: memoryview) -> tuple[Identity, ...]:
    count, rest = divmod(len(given), SEED_SIZE)
    if rest or not 0 < count <= _MOST_IDENTITIES:
        raise PipeError("values: hold no keys")
    seeds = [bytearray(given[place * SEED_SIZE :][:SEED_SIZE]) for place in range(count)]
    try:
        return tuple(map(Identity, seeds))
    finally:
        for seed in seeds:
            wipe(seed)


def _read_text(descriptor: int) -> tuple[bytes, int]:
    """The values, and how many bytes of secrets stand behind them."""
    length, secret_size = _LENGTHS.unpack(_read_exactly(descriptor, _LENGTHS.size))
    if length > _MAX_VALUES or secret_size > _MAX_VALUES:
        raise PipeError("values: are larger than allowed")
    return bytes(_read_exactly(descriptor, length)), secret_size


def _read_secrets(descriptor: int, size: int) -> bytearray:
    secrets = _read_exactly(descriptor, size)
    os.close(descriptor)
    return secrets


def _read_exactly(descriptor: int, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        read = os.readv(descriptor, [view])
        if not read:
            raise PipeError("values: ended early")
        view = view[read:]
    return buffer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
