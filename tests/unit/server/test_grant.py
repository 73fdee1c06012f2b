"""Grants: made by the publisher, for one recipient, one file and one time; every field is bound to the key inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pericard import canonical
from pericard.errors import BadGrant, BadSignature
from pericard.keys import Identity, PublisherKey, Signature
from pericard.sealed import SealedModel, layout
from pericard.sealed import grant as grants

MANIFEST = "cd" * 32
FILE_KEY = bytearray(range(32))
DATES = {"not_before": 1000, "not_after": 2000, "grace_days": 3}


@pytest.fixture
def packed(publisher_key: PublisherKey, identity: Identity) -> tuple[bytes, tuple[Signature, ...]]:
    made = grants.make(FILE_KEY, identity.recipient, publisher_key, manifest=MANIFEST, **DATES)
    ((body, signatures),) = layout.unpack_grants(layout.pack_grants((made,)), subject="it")
    return body, signatures


def test_a_grant_gives_the_file_key_to_its_recipient(
    packed: tuple[bytes, tuple[Signature, ...]], publisher_key: PublisherKey, identity: Identity
) -> None:
    grant = grants.verify(*packed, publisher_key.publisher, manifest=MANIFEST)

    assert (grant.recipient, grant.manifest) == (identity.recipient.id, MANIFEST)
    assert (grant.not_before, grant.not_after, grant.grace_days) == (1000, 2000, 3)
    assert grant.unwrap(identity) == FILE_KEY


def test_nobody_else_opens_it(
    packed: tuple[bytes, tuple[Signature, ...]], publisher_key: PublisherKey, stranger: Identity
) -> None:
    grant = grants.verify(*packed, publisher_key.publisher, manifest=MANIFEST)

    with pytest.raises(BadGrant, match="does not open with this identity"):
        grant.unwrap(stranger)


@pytest.mark.parametrize(
    "change",
    [
        {"recipient": "00" * 32},
        {"manifest": "00" * 32},
        {"not_before": 999},
        {"not_after": 2001},
        {"grace_days": 366},
    ],
)
def test_the_key_opens_only_under_the_terms_it_was_wrapped_for(
    change: dict[str, Any],
    packed: tuple[bytes, tuple[Signature, ...]],
    publisher_key: PublisherKey,
    identity: Identity,
) -> None:
    """Even a publisher cannot give one grant's ciphertext other terms."""
    grant = grants.verify(*packed, publisher_key.publisher, manifest=MANIFEST)

    with pytest.raises(BadGrant, match="does not open"):
        replace(grant, **change).unwrap(identity)


def test_a_grant_for_another_file_is_refused(
    packed: tuple[bytes, tuple[Signature, ...]], publisher_key: PublisherKey
) -> None:
    with pytest.raises(BadGrant, match="made for another sealed model"):
        grants.verify(*packed, publisher_key.publisher, manifest="00" * 32)


def test_only_the_publishers_signature_over_these_bytes_counts(
    packed: tuple[bytes, tuple[Signature, ...]], publisher_key: PublisherKey, foreign_key: PublisherKey
) -> None:
    body, signatures = packed
    longer = body.replace(b'"not_after":2000', b'"not_after":9000')
    as_manifest = publisher_key.sign(layout.MANIFEST_DOMAIN, body)

    for altered, by in (
        (longer, signatures),
        (body, foreign_key.sign(layout.GRANT_DOMAIN, body)),
        (longer, foreign_key.sign(layout.GRANT_DOMAIN, longer)),
        (body, as_manifest),
        (body, signatures[:1]),
        (body, ()),
    ):
        with pytest.raises(BadSignature, match="grant"):
            grants.verify(altered, by, publisher_key.publisher, manifest=MANIFEST)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "pericard/grant/v2"}, "other fields"),
        ({"extra": 1}, "other fields"),
        ({"grace_days": None}, "bad date"),
        ({"grace_days": 367}, "bad date"),
        ({"grace_days": -1}, "bad date"),
        ({"not_before": True}, "bad date"),
        ({"not_before": 2000}, "bad date"),
        ({"not_before": "1000"}, "bad date"),
        ({"not_after": 1 << 40}, "bad date"),
        ({"recipient": "AB" * 32}, "bad recipient"),
        ({"recipient": 5}, "bad recipient"),
        ({"manifest": "ab"}, "bad manifest"),
        ({"wrapped_key": ""}, "bad wrapped_key"),
        ({"wrapped_key": None}, "bad wrapped_key"),
        ({"wrapped_key": "é"}, "bad wrapped_key"),
        ({"wrapped_key": "AAAA" * 3}, "bad wrapped_key"),
        ({"wrapped_key": "*" * 1560}, "bad wrapped_key"),
        ({"wrapped_key": base64.b64encode(bytes(1167)).decode()}, "bad wrapped_key"),
    ],
)
def test_what_a_publisher_signed_must_be_a_grant_all_the_same(
    change: dict[str, Any],
    reason: str,
    packed: tuple[bytes, tuple[Signature, ...]],
    publisher_key: PublisherKey,
) -> None:
    body = canonical.encode(canonical.decode(packed[0], limit=layout.MAX_GRANT) | change)

    with pytest.raises(BadGrant, match=reason):
        grants.verify(body, publisher_key.sign(layout.GRANT_DOMAIN, body), publisher_key.publisher, manifest=MANIFEST)


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{ "format":1}', b"\xff", b"{" * 100])
def test_what_a_publisher_signed_must_be_canonical(body: bytes, publisher_key: PublisherKey) -> None:
    with pytest.raises(BadGrant, match="grant: "):
        grants.verify(body, publisher_key.sign(layout.GRANT_DOMAIN, body), publisher_key.publisher, manifest=MANIFEST)


@pytest.mark.parametrize(
    ("before", "after", "grace"),
    [(5, 5, 0), (6, 5, 0), (-1, 5, 0), (0, 1 << 40, 0), (0, 5, -1), (0, 5, 367)],
)
def test_a_grant_with_dates_out_of_order_is_not_made(
    before: int, after: int, grace: int, publisher_key: PublisherKey, identity: Identity
) -> None:
    with pytest.raises(BadGrant, match="the dates are not in order"):
        grants.make(
            FILE_KEY, identity.recipient, publisher_key,
            manifest=MANIFEST, not_before=before, not_after=after, grace_days=grace,
        )  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
def test_an_embedded_grant_that_fails_is_named_by_file_and_number(
    number: int, seal_bytes: Callable[..., Path], publisher_key: PublisherKey, foreign_key: PublisherKey
) -> None:
    path = seal_bytes(b"plain")
    source = SealedModel(path)
    good = source.packed_grants[0]
    body = good[0].replace(hashlib.sha256(source.manifest_bytes).hexdigest().encode(), b"0" * 64)

    for bad, kind in (
        ((good[0], foreign_key.sign(layout.GRANT_DOMAIN, good[0])), BadSignature),
        ((body, publisher_key.sign(layout.GRANT_DOMAIN, body)), BadGrant),
    ):
        source.packed_grants = (*(good,) * number, bad, good)
        with pytest.raises(kind, match=rf"^{path.name}: grant {number}: "):
            source.verify([publisher_key.publisher])
