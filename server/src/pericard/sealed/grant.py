"""A grant: lets one recipient open one file between two dates; signed by the publisher.

A recipient learns the file key, so dates that the publisher did not sign would be worth nothing. The HPKE ciphertext
is bound to every other field of the grant through HPKE's ``info``.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from pericard import canonical
from pericard.canonical import JSON
from pericard.errors import BadGrant
from pericard.keys import Identity, Publisher, PublisherKey, Recipient, Signature
from pericard.keys.identity import WRAP_OVERHEAD
from pericard.sealed.layout import GRANT_DOMAIN, MAX_GRANT, pack_grant
from pericard.sealed.payload import FILE_KEY_SIZE

FORMAT = "pericard/grant/v1"
_HEX = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"format", "recipient", "manifest", "not_before", "not_after", "grace_days", "wrapped_key"}
_MAX_TIME = 1 << 40
_MAX_GRACE_DAYS = 366


@dataclass(frozen=True, slots=True)
class Term:
    """For whom and when: one grant to be made.

    Attributes:
        recipient: whom.
        not_before: first second, Unix time.
        not_after: last second, Unix time.
        grace_days: days of service after ``not_after``.
    """

    recipient: Recipient
    not_before: int
    not_after: int
    grace_days: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant whose signatures verified.

    Attributes:
        recipient: id of the recipient.
        manifest: SHA-256 of the manifest it belongs to, hex.
        not_before: first second, Unix time.
        not_after: last second, Unix time.
        grace_days: signed days of service after ``not_after``.
        wrapped_key: HPKE ciphertext of the file key.
    """

    recipient: str
    manifest: str
    not_before: int
    not_after: int
    grace_days: int
    wrapped_key: bytes

    def unwrap(self, identity: Identity) -> bytearray:
        """The file key; the caller wipes it.

        Raises:
            BadGrant: it was not wrapped for this identity and these terms.
        """
        return identity.unwrap(self.wrapped_key, info=_info(self))


def make(
    file_key: bytearray,
    recipient: Recipient,
    signer: PublisherKey,
    *,
    manifest: str,
    not_before: int,
    not_after: int,
    grace_days: int,
) -> bytes:
    """Make one packed, signed grant.

    Raises:
        BadGrant: the dates are not in order or out of bounds.
    """
    if not 0 <= not_before < not_after < _MAX_TIME or not 0 <= grace_days <= _MAX_GRACE_DAYS:
        raise BadGrant(
            "grant: the dates are not in order",
            hint=f"not-before must be before not-after, and grace 0 to {_MAX_GRACE_DAYS} days",
        )
    unsealed = Grant(recipient.id, manifest, not_before, not_after, grace_days, b"")
    wrapped = recipient.wrap(file_key, info=_info(unsealed))
    body = canonical.encode(_fields(unsealed) | {"wrapped_key": base64.b64encode(wrapped).decode("ascii")})
    return pack_grant(body, signer.sign(GRANT_DOMAIN, body))


def for_term(file_key: bytearray, term: Term, signer: PublisherKey, *, manifest: str) -> bytes:
    """As :func:`make`, for one term."""
    return make(
        file_key,
        term.recipient,
        signer,
        manifest=manifest,
        not_before=term.not_before,
        not_after=term.not_after,
        grace_days=term.grace_days,
    )


def verify(
    body: bytes, signatures: tuple[Signature, ...], publisher: Publisher, *, manifest: str, subject: str = "grant"
) -> Grant:
    """Verify a grant's signatures, then read it, then check that it belongs to this manifest.

    Raises:
        BadSignature: the publisher did not sign it.
        BadGrant: it is malformed, or made for another file.
    """
    publisher.verify(GRANT_DOMAIN, body, signatures, subject=subject)
    try:
        grant = _parse(canonical.decode(body, limit=MAX_GRANT))
        if grant.manifest != manifest:
            raise ValueError("was made for another sealed model")
    except ValueError as error:
        raise BadGrant(f"{subject}: {error}") from error
    return grant


def _parse(value: dict[str, JSON]) -> Grant:
    if value.keys() != _FIELDS or value["format"] != FORMAT:
        raise ValueError("has other fields than it should")
    times = [value["not_before"], value["not_after"], value["grace_days"]]
    if not all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number < _MAX_TIME for number in times
    ):
        raise ValueError("has a bad date")
    not_before, not_after, grace_days = times
    if not_before >= not_after or grace_days > _MAX_GRACE_DAYS:
        raise ValueError("has a bad date")
    for name in ("recipient", "manifest"):
        if not isinstance(value[name], str) or not _HEX.fullmatch(value[name]):
            raise ValueError(f"has a bad {name}")
    wrapped = _wrapped(value["wrapped_key"])
    return Grant(value["recipient"], value["manifest"], not_before, not_after, grace_days, wrapped)


def _wrapped(text: JSON) -> bytes:
    try:
        wrapped = binascii.a2b_base64(text.encode("ascii"), strict_mode=True) if isinstance(text, str) else b""
    except ValueError as error:
        raise ValueError("has a bad wrapped_key") from error
    # one text for one ciphertext: the decoder lets unused bits be anything
    if len(wrapped) != FILE_KEY_SIZE + WRAP_OVERHEAD or base64.b64encode(wrapped).decode("ascii") != text:
        raise ValueError("has a bad wrapped_key")
    return wrapped


def _fields(grant: Grant) -> dict[str, JSON]:
    return {
        "format": FORMAT,
        "recipient": grant.recipient,
        "manifest": grant.manifest,
        "not_before": grant.not_before,
        "not_after": grant.not_after,
        "grace_days": grant.grace_days,
    }


def _info(grant: Grant) -> bytes:
    return b"pericard/v1/wrap\0" + canonical.encode(_fields(grant))
