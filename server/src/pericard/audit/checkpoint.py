"""Signing and believing heads.

Rules of this module: a signature is Ed25519 over the head's text, named by origin and key id as in C2SP signed-note;
signatures of unknown keys are ignored, one under our name that does not verify refuses the note. Nothing else in this
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


def sign(origin: str, size: int, root: bytes, key: LogKey) -> bytes:
    """Sign a head; returns the whole note."""
    text = body(origin, size, root)
    signature = base64.b64encode(key_id(origin, key.verifier) + key.sign(text))
    return b"%s\n%s%s %s\n" % (text, DASH.encode(), origin.encode(), signature)


def open_head(note: bytes, origin: str, verifier: LogVerifier) -> Head:
    """Verify a signed head.

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
    return head
