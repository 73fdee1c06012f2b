"""Signed heads: what the log's key says about the tree, and the published one that a directory keeps.

Rules of this module: a head is a C2SP tlog-checkpoint (origin, size, root) in a C2SP signed note, signed with Ed25519;
extension lines are refused, signatures of unknown keys are ignored, as the note format demands. :func:`claims` says
what an unverified note claims, :func:`open_head` is the only one to be believed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pericard.errors import AuditLogInvalid, BadSignature
from pericard.keys import LogKey, LogVerifier

MAX_NOTE: Final = 16 * 1024
MAX_SIGNATURES: Final = 16
MAX_SIZE: Final = 2**53
FILE: Final = "checkpoint"

_TEMPORARY = ".checkpoint.tmp"
_MAX_ORIGIN = 255
_DASH = "\N{EM DASH} "
_ED25519 = b"\x01"
_KEY_ID_SIZE = 4
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


def default_origin(verifier: LogVerifier) -> str:
    """The name of a log that was given none: ``pericard/`` and 16 hex digits of its public key's SHA-256."""
    return f"pericard/{hashlib.sha256(verifier.public).hexdigest()[:16]}"


def check_origin(origin: str) -> None:
    """A log's name is printable ASCII without spaces or plus signs, at most 255 long.

    Raises:
        AuditLogInvalid: it is not.
    """
    legal = origin.isascii() and origin.isprintable() and 0 < len(origin) <= _MAX_ORIGIN
    if not legal or " " in origin or "+" in origin:
        raise AuditLogInvalid(
            "audit log: its origin is not a name",
            hint="use 1 to 255 printable ASCII characters without spaces and plus signs",
        )


def key_id(name: str, verifier: LogVerifier) -> bytes:
    """The four bytes by which a signature names its key (C2SP signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + verifier.public).digest()[:_KEY_ID_SIZE]


def body(origin: str, size: int, root: bytes) -> bytes:
    """The three lines that are signed."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode('ascii')}\n".encode()


def sign(origin: str, size: int, root: bytes, key: LogKey) -> bytes:
    """Sign a head; returns the whole note."""
    text = body(origin, size, root)
    signature = base64.b64encode(key_id(origin, key.verifier) + key.sign(text))
    return b"%s\n%s%s %s\n" % (text, _DASH.encode(), origin.encode(), signature)


def open_head(note: bytes, origin: str, verifier: LogVerifier) -> Head:
    """Verify a signed head.

    Raises:
        AuditLogInvalid: it is malformed, of another log, not signed by this key, or altered after it was signed.
    """
    head, text, signatures = _parse(note)
    if head.origin != origin:
        raise AuditLogInvalid(
            f"log head: is of the log {head.origin!r}, wanted {origin!r}",
            hint="give the log's own name and public key",
        )
    ours = (origin, key_id(origin, verifier))
    made = [signature for name, identifier, signature in signatures if (name, identifier) == ours]
    if not made:
        raise AuditLogInvalid(
            f"log head: of {head.size} records, is not signed by this log key",
            hint="give the public key of this log (log.pub)",
        )
    for signature in made:
        try:
            verifier.verify(text, signature)
        except BadSignature as error:
            raise AuditLogInvalid(f"log head: of {head.size} records, was altered after it was signed") from error
    return head


def claims(note: bytes) -> Head:
    """What a note says, believed by nobody until :func:`open_head` verified it.

    Raises:
        AuditLogInvalid: it is malformed.
    """
    return _parse(note)[0]


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


def _parse(note: bytes) -> tuple[Head, bytes, list[tuple[str, bytes, bytes]]]:
    """Split a note into its head, the signed text, and (name, key id, signature) of every signature line."""
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
    name, data = line.removeprefix(_DASH).split(" ")
    raw = _base64(data)
    if not line.startswith(_DASH) or not line.isprintable() or not name or "+" in name or len(raw) <= _KEY_ID_SIZE:
        raise ValueError("signature line")
    return name, raw[:_KEY_ID_SIZE], raw[_KEY_ID_SIZE:]


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
