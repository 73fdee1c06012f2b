"""The one-shot process that unlocks the identity: ``python -I -B -m pericard.daemon.unlocking PARENT VALUES RESULT``.

A key source speaks TLS, runs tools, or is another package's code; so it runs here, beside nothing but its own
credential, and is gone before anything is served. It gives the seeds through a pipe, or says why not; the supervisor
waits a bounded time. A plain file needs none of this, the supervisor reads it itself.

What comes back: a u32 length, JSON, and as many seeds as it says.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import time
from io import FileIO

import msgspec

from pericard import hardening
from pericard.errors import KeySourceUnavailable, PericardError, from_code
from pericard.keys import wipe
from pericard.keys.identity import SEED_SIZE
from pericard.unlock import UnlockValues, unlock

_SECONDS = 60.0
_END_SECONDS = 2.0
_LENGTH = struct.Struct("<I")
_MAX_VALUES = 1 << 16
_MAX_SEEDS = 2
_MAX_RESULT = 1 << 16
_STANDARD = 2  # input, output and error stay open
_SUBJECT = "unlocking the identity"


class _Failure(msgspec.Struct, frozen=True):
    code: str
    message: str
    hint: str | None = None


class _Result(msgspec.Struct, frozen=True):
    """How many seeds follow, or why none do."""

    seeds: int = 0
    failed: _Failure | None = None


def seeds(values: UnlockValues, *, seconds: float = _SECONDS) -> list[bytearray]:
    """Every live identity's seed, the current one first; the caller wipes them.

    Args:
        values: how to unlock; descriptors that it names are closed here.
        seconds: how long it may take in all.

    Raises:
        KeySourceUnavailable: the process could not be started, did not end in time, or ended without a word.
        PericardError: what the key source said.
    """
    if values.kind == "file":
        return unlock(values)
    for descriptor in values.descriptors:
        _check_open(descriptor)
    result = bytearray(_MAX_RESULT)
    try:
        size = _run(values, result, time.monotonic() + seconds)
        return _parse(result, size)
    finally:
        wipe(result)
        for descriptor in values.descriptors:
            if descriptor > _STANDARD:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def _run(values: UnlockValues, result: bytearray, deadline: float) -> int:
    """Start the process and read what it says into ``result``; how much that was."""
    with contextlib.ExitStack() as ends:
        values_read, values_write = _pipe(ends)
        result_read, result_write = _pipe(ends)
        text = msgspec.json.encode(values)
        command = [sys.executable, "-I", "-B", "-m", "pericard.daemon.unlocking", str(os.getpid())]
        try:
            process = subprocess.Popen(
                [*command, str(values_read.fileno()), str(result_write.fileno())],
                pass_fds=(values_read.fileno(), result_write.fileno(), *values.descriptors),
                stdin=None if 0 in values.descriptors else subprocess.DEVNULL,
            )  # in our own session, so that it may ask on the terminal
        except OSError as error:
            raise KeySourceUnavailable(f"{_SUBJECT}: the process cannot be started") from error
        try:
            result_write.close()
            values_read.close()
            with values_write, contextlib.suppress(BrokenPipeError):
                values_write.write(text)  # fits the pipe
            return _read(result_read.fileno(), result, deadline)
        finally:
            _end(process)


def _pipe(ends: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    read, write = os.pipe()
    return ends.enter_context(FileIO(read, "r")), ends.enter_context(FileIO(write, "w"))


def _read(descriptor: int, result: bytearray, deadline: float) -> int:
    size, waiting = 0, select.poll()
    waiting.register(descriptor, select.POLLIN)
    while size < len(result):
        if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise KeySourceUnavailable(f"{_SUBJECT}: did not end in time")
        read = os.readv(descriptor, [memoryview(result)[size:]])
        if not read:
            break
        size += read
    return size


def _parse(result: bytearray, size: int) -> list[bytearray]:
    silent = KeySourceUnavailable(f"{_SUBJECT}: its process ended without a word")
    if size < _LENGTH.size:
        raise silent
    view = memoryview(result)[:size]
    (length,) = _LENGTH.unpack(view[: _LENGTH.size])
    head, rest = view[_LENGTH.size :][:length], view[_LENGTH.size + length :]
    try:
        told = msgspec.json.decode(head, type=_Result)
    except msgspec.DecodeError as error:
        raise silent from error
    if told.failed is not None:
        raise from_code(told.failed.code, told.failed.message, told.failed.hint)
    if not 0 < told.seeds <= _MAX_SEEDS or len(rest) != told.seeds * SEED_SIZE:
        raise silent
    return [bytearray(rest[place:][:SEED_SIZE]) for place in range(0, len(rest), SEED_SIZE)]


def _check_open(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError as error:
        raise KeySourceUnavailable(
            f"{_SUBJECT}: descriptor {descriptor} is not open",
            hint=f"start the daemon with it, such as {descriptor}<FILE in a shell, or OpenFile= in a unit",
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """It has said what it had to say, or had its time; asked first, so that it gives a terminal its echo back."""
    for stop in (process.poll, process.terminate, process.kill):
        stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
            return


# --- the process itself -----------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Unlock, and say so; the exit status."""
    parent, values_fd, result_fd = map(int, arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by exception, so that whatever is open is put back
    found: list[bytearray] = []
    try:
        hardening.die_with_parent(parent)
        hardening.harden()
        hardening.forbid_temporary_files()
        with FileIO(values_fd, "r") as given:
            values = msgspec.json.decode(given.read(_MAX_VALUES), type=UnlockValues)
        found = unlock(values)
        head = _Result(seeds=len(found))
    except PericardError as error:
        head = _Result(failed=_Failure(error.code, error.message, error.hint))
    except Exception as error:
        if os.environ.get("PERICARD_TRACEBACK"):
            raise
        message = f"{_SUBJECT}: something went wrong inside ({type(error).__name__})"
        head = _Result(failed=_Failure(PericardError.code, message, "PERICARD_TRACEBACK=1 shows where; please report"))
    text = msgspec.json.encode(head)
    with contextlib.suppress(BrokenPipeError):
        os.writev(result_fd, [_LENGTH.pack(len(text)), text, *found])  # fits the pipe
    for seed in found:
        wipe(seed)
    return 1 if head.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
