"""The entry of a child process: ``python -I -m pericard.daemon.child ROLE PARENT CONTROL VALUES [LISTENER]``.

The last arguments are descriptor numbers. Hardening comes before a value is read, and torch is imported after it.
Values come through a pipe: two u32 lengths, JSON, and for the engine the log key's secret and the live identities'
seeds, the current one first.
Only the supervisor stops a child: signals that were sent to the whole family must not end the engine before the edge.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import sys

import msgspec

from pericard import hardening
from pericard.errors import PericardError, PipeError
from pericard.keys import Identity, LogKey, wipe
from pericard.keys.identity import SEED_SIZE
from pericard.keys.log import SECRET_SIZE

_LENGTHS = struct.Struct("<II")
_MAX_VALUES = 1 << 20
_MOST_IDENTITIES = 2
_TICK_SECONDS = 30.0
_CONTROL_SIZE = 64


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
        else:
            _edge(control, int(values_fd), socket.socket(fileno=int(rest[0])))
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
    from pericard.engine.values import EngineValues  # noqa: PLC0415  (after hardening)

    text, secrets = _read_values(values_fd)
    values = msgspec.json.decode(text, type=EngineValues)
    try:
        log_key, identity, previous = _keys(secrets)
    finally:
        wipe(secrets)
    from pericard.engine.main import Engine  # noqa: PLC0415  (brings torch, after hardening)

    engine = Engine(values, identity, log_key, previous=previous)
    del identity, previous  # the models are open; nothing here needs them again
    engine.start(lambda: os._exit(70))
    say(control, {"ready": engine.serving})
    control.settimeout(_TICK_SECONDS)
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, _CONTROL_SIZE, 1)
        except TimeoutError:
            engine.tick()
            continue
        if message == b"pipe" and descriptors:
            engine.attach(socket.socket(fileno=descriptors[0]))
        elif message == b"stop":
            engine.stop()
            return
        elif message == b"":
            os._exit(1)  # the supervisor is gone


def _edge(control: socket.socket, values_fd: int, listener: socket.socket) -> None:
    from pericard.edge.main import Edge  # noqa: PLC0415  (after hardening)
    from pericard.edge.values import EdgeValues  # noqa: PLC0415

    text, _ = _read_values(values_fd)
    edge = Edge(msgspec.json.decode(text, type=EdgeValues))
    say(control, {"ready": "edge"})

    async def serve() -> None:
        await edge.serve(listener, control)

    import uvloop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def _keys(secrets: bytearray) -> tuple[LogKey, Identity, Identity | None]:
    count, rest = divmod(len(secrets) - SECRET_SIZE, SEED_SIZE)
    if rest or not 0 < count <= _MOST_IDENTITIES:
        raise PipeError("values: hold no keys")
    parts = memoryview(secrets)
    seeds = [bytearray(parts[SECRET_SIZE + place * SEED_SIZE :][:SEED_SIZE]) for place in range(count)]
    secret = bytearray(parts[:SECRET_SIZE])
    try:
        identity, *previous = map(Identity, seeds)
        return LogKey(secret), identity, previous[0] if previous else None
    finally:
        for part in (secret, *seeds):
            wipe(part)


def _read_values(descriptor: int) -> tuple[bytes, bytearray]:
    length, secret_size = _LENGTHS.unpack(_read_exactly(descriptor, _LENGTHS.size))
    if length > _MAX_VALUES or secret_size > _MAX_VALUES:
        raise PipeError("values: are larger than allowed")
    text = bytes(_read_exactly(descriptor, length))
    secrets = _read_exactly(descriptor, secret_size)
    os.close(descriptor)
    return text, secrets


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
