"""Signing and believing heads.

Rules of this module: a signature is Ed25519 over the head's text, named by origin and key id as in C2SP signed-note; a
head that is published carries a second one, ML-DSA-44 as in C2SP tlog-cosignature, which the log makes of itself.
Signatures of unknown keys are ignored, one under our name that does not verify refuses the note. Nothing else in this
room decides whether a head is to be believed.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from pericard.audit.note import DASH, KEY_ID_SIZE, Head, body, parse
from pericard.errors import AuditLogInvalid, BadSignature
from pericard.keys import LogKey, LogVerifier

MAX_ORIGIN: Final = 255

_ED25519 = b"\x01"
_ML_DSA_44 = b"\x06"
_LABEL = b"subtree/v1\n\0"
_NO_TIME = bytes(8)  # a head of ours says nothing about when


def default_origin(verifier: LogVerifier) -> str:
    """The name of a log that was given none: ``pericard/`` and 16 hex digits of its public key's SHA-256."""
    return f"pericard/{hashlib.sha256(verifier.public).hexdigest()[:16]}"


def check_origin(origin: str) -> None:
    """A log's name is printable ASCII without spaces or plus signs, at most 255 long.

    Raises:
        AuditLogInvalid: it is not.
    """
    legal = origin.isascii() and origin.isprintable() and 0 < len(origin) <= MAX_ORIGIN
    if not legal or " " in origin or "+" in origin:
        raise AuditLogInvalid(
            "audit log: its origin is not a name",
            hint="use 1 to 255 printable ASCII characters without spaces and plus signs",
        )


def key_id(name: str, verifier: LogVerifier) -> bytes:
    """The four bytes by which a signature names its key (C2SP signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + verifier.public).digest()[:KEY_ID_SIZE]


def second_key_id(name: str, second: bytes) -> bytes:
    """The four bytes by which an ML-DSA-44 signature names its key (C2SP tlog-cosignature)."""
    return hashlib.sha256(name.encode() + b"\n" + _ML_DSA_44 + second).digest()[:KEY_ID_SIZE]


def second_message(head: Head) -> bytes:
    """What ML-DSA-44 signs: C2SP's ``cosigned_message`` of the whole tree, the log being its own cosigner."""
    name = len(head.origin).to_bytes(1, "big") + head.origin.encode()
    return b"".join((_LABEL, name, _NO_TIME, name, bytes(8), head.size.to_bytes(8, "big"), head.root))


def attest(note: bytes, key: LogKey) -> bytes:
    """A head of ours with its second signature, as it is published; returns the whole note."""
    head, *_ = parse(note)
    second = key.verifier.second
    if second is None:
        raise AssertionError("a private key has both halves")
    signed = _NO_TIME + key.sign_second(second_message(head))
    line = base64.b64encode(second_key_id(head.origin, second) + signed)
    return b"%s%s%s %s\n" % (note, DASH.encode(), head.origin.encode(), line)


def sign(origin: str, size: int, root: bytes, key: LogKey) -> bytes:
    """Sign a head; returns the whole note."""
    text = body(origin, size, root)
    signature = base64.b64encode(key_id(origin, key.verifier) + key.sign(text))
    return b"%s\n%s%s %s\n" % (text, DASH.encode(), origin.encode(), signature)


def open_head(note: bytes, origin: str, verifier: LogVerifier, *, published: bool = False) -> Head:
    """Verify a signed head.

    Args:
        note: the signed note.
        origin: the log's name.
        verifier: the log's public key.
        published: whether it must have the second signature too, where the verifier knows that key.

    Raises:
        AuditLogInvalid: it is malformed, of another log, not signed by this key, or altered after it was signed.
    """
    head, text, signatures = parse(note)
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
    seconds = _seconds(head, signatures, verifier)
    for signature in seconds:
        if signature[: len(_NO_TIME)] != _NO_TIME:
            raise AuditLogInvalid(f"log head: of {head.size} records, has a second signature with a time")
        try:
            verifier.verify_second(second_message(head), signature[len(_NO_TIME) :])
        except BadSignature as error:
            raise AuditLogInvalid(f"log head: of {head.size} records, was altered after it was signed") from error
    if published and verifier.second is not None and not seconds:
        raise AuditLogInvalid(
            f"log head: of {head.size} records, has no ML-DSA-44 signature",
            hint="a head from before the log had that key is verified with the log.pub of that time",
        )
    return head


def algorithms(note: bytes, verifier: LogVerifier) -> tuple[str, ...]:
    """What a head that was opened with this verifier is signed with, so far as the verifier can tell."""
    head, _, signatures = parse(note)
    return ("Ed25519", "ML-DSA-44") if _seconds(head, signatures, verifier) else ("Ed25519",)


def _seconds(head: Head, signatures: list[tuple[str, bytes, bytes]], verifier: LogVerifier) -> list[bytes]:
    if verifier.second is None:
        return []
    ours = (head.origin, second_key_id(head.origin, verifier.second))
    return [signature for name, identifier, signature in signatures if (name, identifier) == ours]
