"""P2: only the pinned publisher's own signatures, grants and dates count, whatever else a file says.

The attackers here know more than a stranger: another publisher, a hospital that holds the file key, an operator who
turns the clock, and the publisher's own mistakes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pericard import canonical
from pericard.errors import TrustError
from pericard.keys import Identity, PublisherKey
from pericard.sealed import SealedModel, VerifiedModel, layout
from pericard.sealed import grant as grants
from pericard.trust import Policy

DAY = 86_400
PLAIN = hashlib.shake_128(b"plain").digest(9000)
Opened = Callable[..., bytearray]
Refused = Callable[..., str]
Parts = Any  # a conftest's class cannot be imported


@pytest.fixture(scope="module")
def parts(seal_bytes: Callable[..., Path], take_apart: Callable[[Path], Parts]) -> Parts:
    return take_apart(seal_bytes(PLAIN))


# --- signatures


def test_both_signatures_are_needed_once_each(
    parts: Parts, opened: Opened, refused: Refused, publisher_key: PublisherKey, foreign_key: PublisherKey
) -> None:
    ed, ml = parts.signatures
    foreign = foreign_key.sign(layout.MANIFEST_DOMAIN, parts.manifest)
    as_grant = publisher_key.sign(layout.GRANT_DOMAIN, parts.manifest)
    for signatures, code in (
        ((), "untrusted-publisher"),
        ((ed,), "bad-signature"),
        ((ml,), "bad-signature"),
        ((ed, ml, ml), "bad-signature"),
        ((ed, ed, ml), "bad-signature"),
        ((ed, ml, *foreign), "bad-signature"),
        ((ed, foreign[1]), "bad-signature"),
        ((foreign[0], ml), "bad-signature"),
        ((replace(ed, value=bytes(64)), ml), "bad-signature"),
        ((ed, replace(ml, value=bytes(3309))), "bad-signature"),
        ((replace(foreign[0], key_id=ed.key_id), ml), "bad-signature"),
        ((replace(ed, key_id=foreign[0].key_id), replace(ml, key_id=foreign[1].key_id)), "untrusted-publisher"),
        (as_grant, "bad-signature"),
        (foreign, "untrusted-publisher"),
    ):
        assert refused(replace(parts, signatures=signatures).data()) == code
    assert opened(replace(parts, signatures=(ml, ed)).data()) == PLAIN  # their order says nothing


def test_a_file_that_another_publisher_signed_again_is_refused(
    parts: Parts, refused: Refused, foreign_key: PublisherKey
) -> None:
    """Everything re-signed, also under the pinned publisher's name."""
    bodies = [body for body, _ in parts.grants]
    resigned = tuple((body, foreign_key.sign(layout.GRANT_DOMAIN, body)) for body in bodies)
    for manifest in (
        parts.manifest,
        canonical.encode(parts.fields() | {"publisher": {"id": foreign_key.publisher.id, "name": "Test vendor"}}),
    ):
        signatures = foreign_key.sign(layout.MANIFEST_DOMAIN, manifest)
        taken = replace(parts, manifest=manifest, signatures=signatures, grants=resigned)
        assert refused(taken.data()) == "untrusted-publisher"


def test_every_edit_of_the_manifest_breaks_its_signatures(parts: Parts, refused: Refused) -> None:
    def edit(section: str, **changes: object) -> bytes:
        fields = parts.fields()
        return canonical.encode(fields | {section: fields[section] | changes})

    for manifest in (
        edit("model", name="other"),
        edit("model", sequence=9),
        edit("model", floor=0),
        edit("model", intended_use="for everyone"),
        edit("runtime", required=None, sealed_in="00" * 32),
        edit("tolerance", cpu={"absolute_nano": 10**12, "relative_nano": 10**9}),
        edit("signal", sampling_rate_millihertz=500_000),
        edit("payload", commitment="00" * 32),
        parts.manifest.replace(b",", b", ", 1),
        b"{}",
        b"[" * 4096,
    ):
        assert refused(replace(parts, manifest=manifest).data()) == "bad-signature"


def test_nothing_is_read_as_json_before_its_signatures_verified(
    parts: Parts, refused: Refused, foreign_key: PublisherKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical, "decode", None)
    for signatures in (parts.signatures[:1], foreign_key.sign(layout.MANIFEST_DOMAIN, parts.manifest)):
        refused(replace(parts, signatures=signatures).data())
    refused(replace(parts, manifest=b"[" * 4096).data())


# --- grants and time


def edited(body: bytes, **changes: object) -> bytes:
    return canonical.encode(canonical.decode(body, limit=layout.MAX_GRANT) | changes)


@pytest.mark.parametrize(
    "changes",
    [{"not_before": 0}, {"not_after": (1 << 40) - 1}, {"grace_days": 366}, {"recipient": "00" * 32}, {"extra": 1}],
)
def test_a_grant_with_edited_terms_is_refused(
    changes: dict[str, object], parts: Parts, refused: Refused, foreign_key: PublisherKey
) -> None:
    body, signatures = parts.grants[1]
    longer = edited(body, **changes)
    for by in (signatures, foreign_key.sign(layout.GRANT_DOMAIN, longer), ()):
        assert refused(replace(parts, grants=(parts.grants[0], (longer, by))).data()) == "bad-signature"


def test_a_grant_signed_again_by_another_key_is_refused(
    parts: Parts, refused: Refused, foreign_key: PublisherKey
) -> None:
    body, (ed, _) = parts.grants[1]
    foreign = foreign_key.sign(layout.GRANT_DOMAIN, body)
    for signatures in (foreign, (ed, foreign[1]), (ed,)):
        grants_ = (parts.grants[0], (body, signatures))
        assert refused(replace(parts, grants=grants_).data()) == "bad-signature"


def test_a_recipient_cannot_grant_others(
    parts: Parts, refused: Refused, identity: Identity, publisher_key: PublisherKey, foreign_key: PublisherKey, now: int
) -> None:
    """A hospital knows the file key; what it makes of it is not the publisher's."""
    manifest = hashlib.sha256(parts.manifest).hexdigest()
    file_key = grants.verify(*parts.grants[1], publisher_key.publisher, manifest=manifest).unwrap(identity)
    packed = grants.make(
        file_key, identity.recipient, foreign_key,
        manifest=manifest, not_before=0, not_after=now + 9999 * DAY, grace_days=0,
    )  # fmt: skip
    (own,) = layout.unpack_grants(layout.pack_grants((packed,)), subject="it")

    for grants_ in ((own,), (*parts.grants, own), (parts.grants[0], own)):
        assert refused(replace(parts, grants=grants_).data()) == "bad-signature"


def test_a_grant_by_the_publisher_with_another_key_inside_is_refused(
    parts: Parts, refused: Refused, identity: Identity, publisher_key: PublisherKey, now: int
) -> None:
    """Not even the publisher can make one ciphertext mean two models."""
    packed = grants.make(
        bytearray(32), identity.recipient, publisher_key,
        manifest=hashlib.sha256(parts.manifest).hexdigest(),
        not_before=now - DAY, not_after=now + DAY, grace_days=0,
    )  # fmt: skip
    (own,) = layout.unpack_grants(layout.pack_grants((packed,)), subject="it")

    assert refused(replace(parts, grants=(own,)).data()) == "key-commitment-mismatch"


def test_a_file_without_our_grant_is_refused(parts: Parts, refused: Refused) -> None:
    for kept in ((), parts.grants[:1]):
        assert refused(replace(parts, grants=kept).data()) == "no-grant"


@pytest.mark.parametrize(
    ("days", "code"),
    [(-2, "licence-not-yet-valid"), (45, "licence-expired"), (4000, "licence-expired")],
)
def test_outside_its_time_a_file_is_refused_before_its_key_is_unwrapped(
    days: int, code: str, parts: Parts, opened: Callable[..., bytearray], now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VerifiedModel, "unwrap", None)

    with pytest.raises(TrustError) as caught:
        opened(parts.data(), at=now + days * DAY)
    assert caught.value.code == code


def test_a_withdrawn_version_is_refused_for_ever(
    parts: Parts, refused: Refused, policy: Policy, seal_bytes: Callable[..., Path], now: int
) -> None:
    with SealedModel(seal_bytes(b"newer", version="2", sequence=9, floor=4)) as newer:
        policy.state.commit(policy.taught(newer.verify(policy.publishers)))

    assert refused(parts.data()) == "version-withdrawn"


def test_a_payload_that_is_not_encrypted_is_refused(
    parts: Parts, refused: Refused, publisher_key: PublisherKey
) -> None:
    """Even signed by the publisher: there is no way to say that a chunk is plain."""
    chunk = PLAIN[:5016]
    fields = parts.fields()
    fields["payload"] |= {"size": 5000, "chunks": [hashlib.sha256(chunk).hexdigest()]}
    manifest = canonical.encode(fields)
    digest = hashlib.sha256(manifest).hexdigest()
    old = hashlib.sha256(parts.manifest).hexdigest()
    cipher_less = replace(
        parts,
        manifest=manifest,
        signatures=publisher_key.sign(layout.MANIFEST_DOMAIN, manifest),
        grants=tuple(
            (body, publisher_key.sign(layout.GRANT_DOMAIN, body))
            for body in (body.replace(old.encode(), digest.encode()) for body, _ in parts.grants)
        ),
        chunks=(chunk,),
    )
    assert refused(cipher_less.data()) == "bad-grant"  # the wrapped key is bound to the old manifest

    for aead in ("none", "A128GCM", None):
        fields["payload"]["aead"] = aead
        manifest = canonical.encode(fields)
        signed = replace(
            cipher_less, manifest=manifest, signatures=publisher_key.sign(layout.MANIFEST_DOMAIN, manifest)
        )
        assert refused(signed.data()) == "malformed-sealed-model"
