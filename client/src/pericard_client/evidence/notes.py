"""The log's public key, and the heads that it signed: C2SP checkpoints in signed notes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pericard_client.errors import HeadNotSigned, MalformedEvidence, VerifierMissing

_PUBLIC_SIZE = 32
_SECOND_SIZE = 1312
_SIZES = {"pericard-log-v1": _PUBLIC_SIZE, "pericard-log-v2": _PUBLIC_SIZE + _SECOND_SIZE}
_HASH_SIZE = 32
_KEY_ID_SIZE = 4
_LONGEST_FILE = 1 << 16
_LONGEST_NOTE = 16 << 10
_MOST_SIGNATURES = 16
_LARGEST_SIZE = 2**53
_ED25519 = b"\x01"
_ML_DSA_44 = b"\x06"
_NO_TIME = bytes(8)
_DASH = "\N{EM DASH} "
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Head:
    """What a log signed: its name, how many records it had, and their tree's root."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class LogKey:
    """A log's public key, and the log's name, which by default is made of it.

    Attributes:
        public: the Ed25519 public key, 32 bytes.
        origin: the log's name.
        second: the ML-DSA-44 public key, 1312 bytes; None where only the first one is known.
    """

    public: bytes
    origin: str
    second: bytes | None = None

    @classmethod
    def read(cls, path: Path, *, origin: str | None = None) -> LogKey:
        """Read ``log.pub``.

        Raises:
            MalformedEvidence: it is not a log's public key.
        """
        try:
            with path.open("rb") as file:
                text = file.read(_LONGEST_FILE).decode("ascii")
            (line,) = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
            kind, _, coded = line.strip().partition(" ")
            data = _base64(coded)
            if _SIZES.get(kind) != len(data):
                raise ValueError("kind")
        except (OSError, ValueError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "is not one of a log"
            raise MalformedEvidence(f"log key {path}: {reason}", hint="give the server's log.pub") from error
        public, second = data[:_PUBLIC_SIZE], data[_PUBLIC_SIZE:] or None
        return cls(public, origin or f"pericard/{hashlib.sha256(public).hexdigest()[:16]}", second)


def open_head(note: str, key: LogKey) -> Head:
    """Verify a signed note.

    Raises:
        MalformedEvidence: it is none.
        HeadNotSigned: it is of another log, not signed by this key, or altered.
    """
    try:
        head, text, signatures = _parse(note)
    except ValueError as error:
        raise MalformedEvidence("signed head: is not a checkpoint of three lines") from error
    if head.origin != key.origin:
        raise HeadNotSigned(f"signed head: is of the log {head.origin}, wanted {key.origin}")
    name = hashlib.sha256(key.origin.encode() + b"\n" + _ED25519 + key.public).digest()[:_KEY_ID_SIZE]
    ours = [signature for origin, identifier, signature in signatures if (origin, identifier) == (key.origin, name)]
    if not ours:
        raise HeadNotSigned(f"signed head: of {head.size} records, is not signed by this key")
    seconds = [] if key.second is None else [s for o, i, s in signatures if (o, i) == (key.origin, _second_id(key))]
    _check(key, text, head, ours, seconds)
    return head


def _second_id(key: LogKey) -> bytes:
    return hashlib.sha256(key.origin.encode() + b"\n" + _ML_DSA_44 + (key.second or b"")).digest()[:_KEY_ID_SIZE]


def _second_message(head: Head) -> bytes:
    """What C2SP tlog-cosignature signs of a whole tree, the log being its own cosigner and saying no time."""
    name = len(head.origin).to_bytes(1, "big") + head.origin.encode()
    return b"subtree/v1\n\0" + name + _NO_TIME + name + bytes(8) + head.size.to_bytes(8, "big") + head.root


def _check(key: LogKey, text: bytes, head: Head, ours: list[bytes], seconds: list[bytes]) -> None:
    """Check every signature that is the log's: Ed25519 over the text, ML-DSA-44 over the head."""
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  (the extra may not be installed)
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey  # noqa: PLC0415
    except ImportError as error:
        raise VerifierMissing("evidence: verifying it takes cryptography, which is not installed") from error
    try:
        for signature in ours:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature, text)
        for signature in seconds:
            if signature[: len(_NO_TIME)] != _NO_TIME:
                raise ValueError("time")
            second = MLDSA44PublicKey.from_public_bytes(key.second or b"")
            second.verify(signature[len(_NO_TIME) :], _second_message(head))
    except (InvalidSignature, ValueError) as error:
        raise HeadNotSigned(f"signed head: of {head.size} records, was altered after it was signed") from error


def _parse(note: str) -> tuple[Head, bytes, list[tuple[str, bytes, bytes]]]:
    if len(note.encode()) > _LONGEST_NOTE:
        raise ValueError("length")
    text, _, tail = note.partition("\n\n")
    origin, size, root = text.split("\n")
    *lines, end = tail.split("\n")
    whole = not end and origin.isprintable() and _DECIMAL.fullmatch(size) and 0 < len(lines) <= _MOST_SIGNATURES
    head = Head(origin, int(size) if whole else -1, _base64(root))
    if not 0 <= head.size <= _LARGEST_SIZE or len(head.root) != _HASH_SIZE:
        raise ValueError("head")
    return head, f"{text}\n".encode(), [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, coded = line.removeprefix(_DASH).split(" ")
    raw = _base64(coded)
    if not line.startswith(_DASH) or not line.isprintable() or not name or "+" in name or len(raw) <= _KEY_ID_SIZE:
        raise ValueError("signature")
    return name, raw[:_KEY_ID_SIZE], raw[_KEY_ID_SIZE:]


def _base64(text: str) -> bytes:
    data = binascii.a2b_base64(text, strict_mode=True)
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("base64")
    return data
