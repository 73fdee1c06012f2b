"""A passphrase, stretched with Argon2id (RFC 9106).

The passphrase is bytes, as they were typed or piped in, without the line's end. It comes through a descriptor or from
the terminal, straight into memory that is wiped; never through the environment, an argument, or Python's text.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import select
import termios
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from pericard.errors import KeyFileInvalid, KeySourceUnavailable, UnlockRefused
from pericard.keys import wipe
from pericard.unlock.locked import KEY_SIZE, decode_base64
from pericard.unlock.source import Parameters

#: RFC 9106's second recommended option: 3 passes over 64 MiB in 4 lanes, 128 bits of salt.
MEMORY_KIB, ITERATIONS, LANES, SALT_SIZE = 64 * 1024, 3, 4, 16
#: What a new passphrase needs at least, in bytes; four random words have more.
SHORTEST = 12
LONGEST = 1024
#: How long a person or a program may take to give one.
SECONDS = 45.0
_TERMINAL = "/dev/tty"


class _Stretching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lock's parameters; the upper bounds keep a hostile file from eating the host's memory or time."""

    iterations: Annotated[int, msgspec.Meta(ge=1, le=16)]
    lanes: Annotated[int, msgspec.Meta(ge=1, le=16)]
    memory_kib: Annotated[int, msgspec.Meta(ge=MEMORY_KIB, le=2 * 1024 * 1024)]
    salt: str


class PassphraseLock:
    """Turns a passphrase into a key; asks for it once, when it is first needed."""

    def __init__(self, ask: Callable[[], bytearray]) -> None:
        """Take what gives the passphrase; it is wiped by :meth:`close`."""
        self._ask = ask
        self._passphrase: bytearray | None = None

    def make(self, recipient: str) -> tuple[bytearray, dict[str, Any]]:
        """A key from the passphrase and a fresh salt; see ``Lock.make``.

        Raises:
            UnlockRefused: the passphrase is too short for a new lock.
        """
        salt = base64.b64encode(os.urandom(SALT_SIZE)).decode("ascii")
        stretching = _Stretching(iterations=ITERATIONS, lanes=LANES, memory_kib=MEMORY_KIB, salt=salt)
        if len(self._asked()) < SHORTEST:
            raise UnlockRefused(
                f"passphrase: is too short to lock identity {recipient[:16]} with",
                hint=f"take at least {SHORTEST} characters; four or five random words are easy to keep",
            )
        return self._stretch(stretching), msgspec.structs.asdict(stretching)

    def open(self, parameters: Parameters, recipient: str) -> bytearray:
        """The key from the passphrase and the file's parameters; see ``Lock.open``."""
        try:
            stretching = msgspec.convert(dict(parameters), type=_Stretching, strict=True)
        except msgspec.ValidationError as error:
            raise KeyFileInvalid(f"identity {recipient[:16]}: passphrase lock: {str(error).lower()}") from error
        return self._stretch(stretching)

    def close(self) -> None:
        """Wipe the passphrase."""
        if self._passphrase is not None:
            wipe(self._passphrase)
            self._passphrase = None

    def _asked(self) -> bytearray:
        if self._passphrase is None:
            self._passphrase = self._ask()
        return self._passphrase

    def _stretch(self, how: _Stretching) -> bytearray:
        try:
            salt = decode_base64(how.salt)
            if len(salt) != SALT_SIZE:
                raise ValueError(f"holds a salt of {len(salt)} bytes, wanted {SALT_SIZE}")
        except ValueError as error:
            raise KeyFileInvalid(f"passphrase lock: {error}") from error
        key = bytearray(KEY_SIZE)
        stretch = Argon2id(
            salt=salt, length=KEY_SIZE, iterations=how.iterations, lanes=how.lanes, memory_cost=how.memory_kib
        )
        try:
            # the stubs want bytes; the call takes any buffer, and bytes could not be wiped
            stretch.derive_into(self._asked(), key)  # type: ignore[arg-type]
        except MemoryError as error:
            raise KeySourceUnavailable(
                f"passphrase lock: needs {how.memory_kib >> 10} MiB of memory, and there is not so much"
            ) from error
        return key


def from_descriptor(descriptor: int, *, seconds: float = SECONDS) -> bytearray:
    """Read a passphrase: one line, or everything up to the end; the descriptor is closed, the caller wipes.

    Raises:
        KeySourceUnavailable: the descriptor is not open, or nothing whole came in time.
        UnlockRefused: what came is empty, too long, or more than one line.
    """
    subject = f"passphrase: descriptor {descriptor}"
    try:
        return _line(descriptor, subject, seconds)
    except OSError as error:
        raise KeySourceUnavailable(
            f"{subject}: cannot be read: {(error.strerror or 'i/o error').lower()}",
            hint=f"pass one that is open for reading, such as {descriptor}<FILE in a shell",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def from_terminal(
    what: str, *, twice: bool = False, option: str = "--passphrase-fd", seconds: float = SECONDS
) -> bytearray:
    """Ask on the controlling terminal, without echo; the caller wipes.

    Args:
        what: whose passphrase; stands in the question.
        twice: ask again and compare, for a new one.
        option: of the command line, that names a descriptor instead.
        seconds: how long each answer may take.

    Raises:
        KeySourceUnavailable: there is no terminal, or no answer came in time.
        UnlockRefused: the answer is empty, too long, or the two differ.
    """
    try:
        terminal = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise KeySourceUnavailable(
            f"passphrase: there is no terminal to ask for {what}",
            hint=f"give it through a descriptor instead: {option}{'' if twice else ', passphrase_fd in server.yaml'}",
        ) from error
    try:
        first = _ask(terminal, f"Passphrase for {what}: ", seconds)
        if twice:
            _compare(first, terminal, seconds)
        return first
    except (OSError, termios.error) as error:
        raise KeySourceUnavailable("passphrase: the terminal cannot be read") from error
    finally:
        os.close(terminal)


def _compare(first: bytearray, terminal: int, seconds: float) -> None:
    try:
        second = _ask(terminal, "Once more: ", seconds)
    except BaseException:
        wipe(first)
        raise
    same = hmac.compare_digest(first, second)
    wipe(second)
    if not same:
        wipe(first)
        raise UnlockRefused("passphrase: the two are not the same")


def _ask(terminal: int, question: str, seconds: float) -> bytearray:
    before = termios.tcgetattr(terminal)
    silent = [*before[:3], before[3] & ~termios.ECHO | termios.ICANON | termios.ISIG, *before[4:]]
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
        os.write(terminal, question.encode())
        return _line(terminal, "passphrase", seconds)
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        os.write(terminal, b"\n")


def _line(descriptor: int, subject: str, seconds: float) -> bytearray:
    """One line without its end, read into a buffer that is wiped."""
    deadline = time.monotonic() + seconds
    buffer, size = bytearray(LONGEST + 2), 0  # room for the line's end
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    try:
        while b"\n" not in buffer and size < len(buffer):
            if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise KeySourceUnavailable(f"{subject}: nothing whole came within {seconds:g} seconds")
            read = os.readv(descriptor, [memoryview(buffer)[size:]])
            if not read:
                break
            size += read
        return _cut(buffer, size, subject)
    finally:
        wipe(buffer)


def _cut(buffer: bytearray, size: int, subject: str) -> bytearray:
    end = buffer.find(b"\n", 0, size)
    if end >= 0 and end + 1 != size:
        raise UnlockRefused(f"{subject}: holds more than one line")
    length = size if end < 0 else end - (end > 0 and buffer[end - 1] == ord("\r"))
    if not 0 < length <= LONGEST:
        raise UnlockRefused(f"{subject}: is empty" if not length else f"{subject}: is longer than {LONGEST} bytes")
    return bytearray(memoryview(buffer)[:length])  # from a view in one step: a slice's assignment makes one more copy
