"""Heads as text: their form, and the published one that a log's directory keeps.

Rules of this module: no keys and no trust. A head is a C2SP tlog-checkpoint (origin, size, root) in a C2SP signed note;
extension lines are refused. What a note claims here is believed by nobody until ``checkpoint`` has verified it.
"""

from __future__ import annotations

import base64
import binascii
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pericard.errors import AuditLogInvalid

MAX_NOTE: Final = 16 * 1024
MAX_SIGNATURES: Final = 16
MAX_SIZE: Final = 2**53
KEY_ID_SIZE: Final = 4
DASH: Final = "\N{EM DASH} "
FILE: Final = "checkpoint"

_TEMPORARY = ".checkpoint.tmp"
_ROOT_SIZE = 32


@dataclass(frozen=True, slots=True)
class Head:
    """The tree at one moment.

    Attributes:
        origin: the name of the log.
        size: the number of records in the tree.
        root: the tree's 32-byte root hash.
    """

    origin: str
    size: int
    root: bytes


def body(origin: str, size: int, root: bytes) -> bytes:
    """The three lines that are signed."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode('ascii')}\n".encode()


def claims(note: bytes) -> Head:
    """What a note says, believed by nobody until :func:`pericard.audit.checkpoint.open_head` verified it.

    Raises:
        AuditLogInvalid: it is malformed.
    """
    return parse(note)[0]


def load(directory: Path) -> bytes | None:
    """The head that the log last published in its directory, unverified; None if there is none."""
    try:
        descriptor = os.open(directory / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        # one byte more than allowed, so that a longer file is refused and not cut
        return os.read(descriptor, MAX_NOTE + 1)
    finally:
        os.close(descriptor)


def store(directory: Path, note: bytes) -> None:
    """Publish a head: replace the directory's checkpoint in one step that survives a power failure."""
    temporary = directory / _TEMPORARY
    with suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o640), "wb") as file:
        file.write(note)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / FILE)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse(note: bytes) -> tuple[Head, bytes, list[tuple[str, bytes, bytes]]]:
    """Split a note into its head, the signed text, and (name, key id, signature) of every signature line.

    Raises:
        AuditLogInvalid: it is malformed.
    """
    if len(note) > MAX_NOTE:
        raise AuditLogInvalid(f"log head: is longer than {MAX_NOTE} bytes")
    try:
        return _split(note.decode("utf-8"))
    except ValueError as error:
        raise AuditLogInvalid("log head: is not a signed checkpoint of three lines") from error


def _split(note: str) -> tuple[Head, bytes, list[tuple[str, bytes, bytes]]]:
    text, _, tail = note.partition("\n\n")
    origin, size, root = text.split("\n")
    head = Head(origin, _decimal(size), _base64(root))
    *lines, end = tail.split("\n")
    if end or not origin.isprintable() or len(head.root) != _ROOT_SIZE or not 0 < len(lines) <= MAX_SIGNATURES:
        raise ValueError("lines")
    return head, f"{text}\n".encode(), [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, data = line.removeprefix(DASH).split(" ")
    raw = _base64(data)
    if not line.startswith(DASH) or not line.isprintable() or not name or "+" in name or len(raw) <= KEY_ID_SIZE:
        raise ValueError("signature line")
    return name, raw[:KEY_ID_SIZE], raw[KEY_ID_SIZE:]


def _decimal(text: str) -> int:
    if len(text) > len(str(MAX_SIZE)) or str(number := int(text)) != text or not 0 <= number <= MAX_SIZE:
        raise ValueError("size")
    return number


def _base64(text: str) -> bytes:
    data = binascii.a2b_base64(text, strict_mode=True)
    # the unused bits of the last digit must be zero, or one signature would have several spellings
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("base64")
    return data
