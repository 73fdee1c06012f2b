"""Opening a sealed model, step by step. Attacks on the bytes stand in ``tests/attacks/test_sealed_tampering.py``."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pericard.errors import (
    BadGrant,
    BadSignature,
    CorruptPayload,
    MalformedModel,
    NoGrant,
    NotSealed,
    UntrustedPublisher,
)
from pericard.keys import Identity, Publisher, PublisherKey
from pericard.sealed import SealedModel, Term, VerifiedModel, chunks, layout
from pericard.sealed import grant as grants

PLAIN = hashlib.shake_128(b"plain").digest((1 << 20) + 1000)
SealBytes = Callable[..., Path]


@pytest.fixture(scope="module")
def path(seal_bytes: SealBytes) -> Path:
    return seal_bytes(PLAIN)


def verify(path: Path, publisher_key: PublisherKey) -> VerifiedModel:
    """Verified; the file stays open for the test."""
    return SealedModel(path).verify([publisher_key.publisher])


def decrypted(model: VerifiedModel, identity: Identity) -> bytearray:
    (grant,) = model.grants_for(identity.recipient.id)
    target = bytearray(model.manifest.payload.size)
    model.decrypt_into(model.unwrap(grant, identity), memoryview(target))
    return target


# --- the whole way


def test_the_hospital_and_the_archive_read_what_was_sealed(
    path: Path, publisher_key: PublisherKey, identity: Identity, archive: Identity
) -> None:
    with SealedModel(path) as source:
        model = source.verify([publisher_key.publisher])

        assert model.publisher.id == publisher_key.publisher.id
        assert model.manifest_hash == hashlib.sha256(source.manifest_bytes).hexdigest()
        assert decrypted(model, identity) == decrypted(model, archive) == PLAIN


def test_progress_is_told_up_to_the_end(path: Path, publisher_key: PublisherKey, identity: Identity) -> None:
    model = verify(path, publisher_key)
    (grant,) = model.grants_for(identity.recipient.id)
    told: list[tuple[int, int]] = []
    target = memoryview(bytearray(len(PLAIN)))
    model.decrypt_into(model.unwrap(grant, identity), target, progress=lambda done, size: told.append((done, size)))

    assert told[-1] == (len(PLAIN), len(PLAIN))
    assert told == sorted(told)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_workers_gives_the_same_bytes(
    workers: int, seal_bytes: SealBytes, publisher_key: PublisherKey, identity: Identity
) -> None:
    plain = random.Random(workers).randbytes(5 * (1 << 20) + 1)
    model = verify(seal_bytes(plain), publisher_key)
    target = bytearray(len(plain))
    grant = model.grants_for(identity.recipient.id)[0]
    model.decrypt_into(model.unwrap(grant, identity), memoryview(target), workers=workers)

    assert target == plain


@pytest.mark.parametrize("workers", [1, 3])
def test_of_several_damaged_chunks_the_first_is_named_and_the_buffer_is_zeroed(
    workers: int, seal_bytes: SealBytes, publisher_key: PublisherKey, identity: Identity, tmp_path: Path
) -> None:
    plain = bytes(range(256)) * 4096 * 6
    data = bytearray(seal_bytes(plain).read_bytes())
    for chunk in (2, 3, 5):
        data[len(data) - (6 - chunk) * ((1 << 20) + 16)] ^= 1
    (tmp_path / "damaged.sealed").write_bytes(data)
    model = verify(tmp_path / "damaged.sealed", publisher_key)
    target = bytearray(b"x" * len(plain))
    cipher = model.unwrap(model.grants_for(identity.recipient.id)[0], identity)

    with pytest.raises(CorruptPayload, match="chunk 2 "):
        model.decrypt_into(cipher, memoryview(target), workers=workers)
    assert not any(target)


def test_an_interrupt_stops_every_worker_and_zeroes_the_buffer(
    seal_bytes: SealBytes, publisher_key: PublisherKey, identity: Identity
) -> None:
    plain = bytes(1 << 20) * 8
    model = verify(seal_bytes(plain), publisher_key)
    target = bytearray(b"x" * len(plain))
    cipher = model.unwrap(model.grants_for(identity.recipient.id)[0], identity)

    def interrupted(done: int, size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.decrypt_into(cipher, memoryview(target), progress=interrupted)
    assert not any(target)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decrypt")]


def test_two_seals_of_one_model_share_no_key_and_no_ciphertext(
    path: Path, seal_bytes: SealBytes, publisher_key: PublisherKey
) -> None:
    one, two = verify(path, publisher_key).manifest, verify(seal_bytes(PLAIN), publisher_key).manifest

    assert one.description == two.description
    assert one.file_id != two.file_id
    assert one.payload.commitment != two.payload.commitment
    assert not set(one.payload.chunks) & set(two.payload.chunks)


# --- who


def test_without_a_grant_the_refusal_says_what_to_do(
    path: Path, publisher_key: PublisherKey, stranger: Identity
) -> None:
    with pytest.raises(NoGrant, match=r"model.sealed: holds no grant for identity [0-9a-f]{16}$") as caught:
        verify(path, publisher_key).grants_for(stranger.recipient.id)

    assert caught.value.hint is not None
    assert caught.value.hint.startswith("send the public half of identity ")


def test_another_identity_does_not_open_a_grant(path: Path, publisher_key: PublisherKey, stranger: Identity) -> None:
    model = verify(path, publisher_key)

    for grant in model.grants:
        with pytest.raises(BadGrant, match="does not open with this identity"):
            model.unwrap(grant, stranger)


def test_only_a_pinned_publisher_counts(
    path: Path, seal_bytes: SealBytes, publisher_key: PublisherKey, foreign_key: PublisherKey
) -> None:
    foreign = seal_bytes(b"plain", signer=foreign_key)

    for file, pinned in ((path, []), (path, [foreign_key.publisher]), (foreign, [publisher_key.publisher])):
        with pytest.raises(UntrustedPublisher, match="was not signed by a publisher that this site pinned"):
            SealedModel(file).verify(pinned)
    both = [foreign_key.publisher, publisher_key.publisher]
    assert SealedModel(path).verify(both).publisher.id == publisher_key.publisher.id
    assert SealedModel(foreign).verify(iter(both)).publisher.id == foreign_key.publisher.id


def test_publishers_that_share_one_key_are_told_apart(
    path: Path, publisher_key: PublisherKey, foreign_key: PublisherKey
) -> None:
    """As in a rotation of one of the two keys: the publisher is whose two keys both are named."""
    own, other = publisher_key.publisher.public, foreign_key.publisher.public
    halves = [Publisher(own[:32] + other[32:]), Publisher(other[:32] + own[32:])]

    assert SealedModel(path).verify([*halves, publisher_key.publisher]).publisher.id == publisher_key.publisher.id
    for half in halves:
        with pytest.raises(BadSignature, match="is by another key"):
            SealedModel(path).verify([half])


def test_the_manifest_must_name_the_publisher_who_signed_it(
    path: Path, tmp_path: Path, publisher_key: PublisherKey
) -> None:
    """Signed with the pinned key, but said to be someone else's."""
    source = SealedModel(path)
    manifest = source.manifest_bytes.replace(publisher_key.publisher.id.encode(), b"0" * 64)
    signatures = layout.pack_signatures(publisher_key.sign(layout.MANIFEST_DOMAIN, manifest))
    data = bytearray(path.read_bytes())
    data[20 : 20 + len(manifest)] = manifest
    data[20 + len(manifest) : 20 + len(manifest) + len(signatures)] = signatures
    (tmp_path / "it").write_bytes(data)

    with pytest.raises(MalformedModel, match="names another publisher than the one that signed it"):
        verify(tmp_path / "it", publisher_key)


# --- detached grants


def test_a_detached_grant_lets_a_new_hospital_in(
    path: Path, publisher_key: PublisherKey, archive: Identity, stranger: Identity
) -> None:
    model = verify(path, publisher_key)
    (grant,) = model.grants_for(archive.recipient.id)
    file_key = grant.unwrap(archive)
    packed = grants.make(
        file_key, stranger.recipient, publisher_key,
        manifest=model.manifest_hash, not_before=0, not_after=1 << 39, grace_days=0,
    )  # fmt: skip
    ((body, signatures),) = layout.unpack_grants(layout.pack_grants((packed,)), subject="detached")
    model.add_grant(body, signatures)

    assert decrypted(model, stranger) == PLAIN


def test_a_detached_grant_is_checked_like_an_embedded_one(
    path: Path, publisher_key: PublisherKey, foreign_key: PublisherKey
) -> None:
    model = verify(path, publisher_key)
    body, signatures = SealedModel(path).packed_grants[0]

    with pytest.raises(BadSignature):
        model.add_grant(body, foreign_key.sign(layout.GRANT_DOMAIN, body))
    with pytest.raises(BadSignature):
        model.add_grant(body + b" ", signatures)
    other = body.replace(model.manifest_hash.encode(), b"0" * 64)
    with pytest.raises(BadGrant, match="another sealed model"):
        model.add_grant(other, publisher_key.sign(layout.GRANT_DOMAIN, other))
    assert len(model.grants) == 2


# --- files that are none


@pytest.mark.parametrize(
    "data",
    [b"", b"PERICRD", b"PERICRD\x02" + bytes(12), b"pericrd\x01" + bytes(12), b"\x7fELF" + bytes(100), bytes(19)],
)
def test_what_has_no_magic_is_not_a_sealed_model(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(data)

    with pytest.raises(NotSealed, match="it: is not a sealed model"):
        SealedModel(tmp_path / "it")


def test_what_is_not_a_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(NotSealed, match="is not a regular file"):
            SealedModel(path)
    with pytest.raises(NotSealed, match="cannot be read: no such file or directory"):
        SealedModel(tmp_path / "missing")


def test_a_file_that_cannot_be_read_is_refused(path: Path, publisher_key: PublisherKey, identity: Identity) -> None:
    """An error of the disk is an answer too, before and after the signatures."""
    source = SealedModel(path)
    model = source.verify([publisher_key.publisher])
    source.close()

    with pytest.raises(NotSealed, match="cannot be read: bad file descriptor"):
        source._section(0, 20)
    with pytest.raises(CorruptPayload, match="its payload cannot be read: bad file descriptor"):
        decrypted(model, identity)


def test_no_descriptor_is_left_open(path: Path, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"PERICRD\x01" + bytes(12))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with SealedModel(path) as source:
        source.close()
    for _ in range(3):
        with pytest.raises(MalformedModel):
            SealedModel(tmp_path / "it")

    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- lengths and limits


def header(manifest: int, signatures: int, grants: int) -> bytes:
    return layout.MAGIC + struct.pack("<III", manifest, signatures, grants)


@pytest.mark.parametrize(
    ("lengths", "section"),
    [
        ((0, 10, 10), "manifest"),
        (((4 << 20) + 1, 10, 10), "manifest"),
        ((10, 0, 10), "signatures section"),
        ((10, (16 << 10) + 1, 10), "signatures section"),
        ((10, 10, 0), "grants section"),
        ((10, 10, (32 << 20) + 1), "grants section"),
        ((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), "manifest"),
    ],
)
def test_a_length_beyond_its_limit_is_refused_before_it_is_read(
    lengths: tuple[int, int, int], section: str, tmp_path: Path
) -> None:
    (tmp_path / "it").write_bytes(header(*lengths))

    with pytest.raises(MalformedModel, match=f"it: the {section} claims"):
        SealedModel(tmp_path / "it")


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"\x01", "is cut short"),
        (b"\x01" + b"\x01" + bytes(32), "is cut short"),
        (b"\x01" + b"\x01" + bytes(32) + b"\x40\x00" + bytes(63), "a signature is cut short"),
        (b"\x01" + b"\x03" + bytes(32) + b"\x40\x00" + bytes(64), "unknown kind 3 and 64 bytes"),
        (b"\x01" + b"\x01" + bytes(32) + b"\x41\x00" + bytes(65), "unknown kind 1 and 65 bytes"),
        (b"\x00\x00", "1 bytes are left over"),
    ],
)
def test_a_signature_block_that_does_not_add_up_is_refused(block: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(header(1, len(block), 2) + b"m" + block + b"\0\0" + bytes(8192))

    with pytest.raises(MalformedModel, match=reason):
        SealedModel(tmp_path / "it")


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (b"\x00", "is cut short"),
        (b"\x01\x00", "is cut short"),
        (b"\x01\x00" + struct.pack("<I", 5) + b"{}", "grant 0 claims 5 bytes"),
        (b"\x01\x00" + struct.pack("<I", 0), "grant 0 claims 0 bytes"),
        (b"\x01\x00" + struct.pack("<I", (16 << 10) + 1) + bytes(16 << 10), "grant 0 claims 16385 bytes"),
        (b"\x01\x00" + struct.pack("<I", 2) + b"{}\x01", "signature block is cut short"),
        (b"\x01\x00" + struct.pack("<I", 2) + b"{}\x00\x00", "1 bytes are left over after the last grant"),
        (b"\x00\x00\x00", "1 bytes are left over"),
    ],
)
def test_a_grants_section_that_does_not_add_up_is_refused(section: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(header(1, 1, len(section)) + b"m\0" + section + bytes(8192))

    with pytest.raises(MalformedModel, match=reason):
        SealedModel(tmp_path / "it")


def test_a_file_without_signatures_is_nobodys(tmp_path: Path, publisher_key: PublisherKey) -> None:
    (tmp_path / "it").write_bytes(header(2, 1, 2) + b"{}\0\0\0" + bytes(8192))

    with pytest.raises(UntrustedPublisher):
        verify(tmp_path / "it", publisher_key)


# --- decryption


def test_a_buffer_of_another_size_is_refused(path: Path, publisher_key: PublisherKey, identity: Identity) -> None:
    model = verify(path, publisher_key)
    (grant,) = model.grants_for(identity.recipient.id)

    with pytest.raises(ValueError, match="wanted 1049576"):
        model.decrypt_into(model.unwrap(grant, identity), memoryview(bytearray(5)))


@pytest.mark.parametrize("kept", [1, 5000, -1])
def test_a_file_that_shrinks_while_it_is_read_leaves_no_plaintext(
    kept: int, path: Path, tmp_path: Path, publisher_key: PublisherKey, identity: Identity
) -> None:
    (tmp_path / "it").write_bytes(path.read_bytes())
    model = verify(tmp_path / "it", publisher_key)
    (grant,) = model.grants_for(identity.recipient.id)
    size = (tmp_path / "it").stat().st_size
    os.truncate(tmp_path / "it", size + kept if kept < 0 else size - kept)
    target = bytearray(b"x" * len(PLAIN))

    with pytest.raises(CorruptPayload, match="ends inside its payload"):
        model.decrypt_into(model.unwrap(grant, identity), memoryview(target))
    assert target == bytes(len(PLAIN))


def test_a_chunk_that_changes_after_the_signatures_verified_is_refused(
    path: Path, tmp_path: Path, publisher_key: PublisherKey, identity: Identity
) -> None:
    (tmp_path / "it").write_bytes(path.read_bytes())
    model = verify(tmp_path / "it", publisher_key)
    with (tmp_path / "it").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))

    with pytest.raises(CorruptPayload, match="chunk 1 is not the one"):
        decrypted(model, identity)


def test_many_recipients_fit(seal_bytes: SealBytes, publisher_key: PublisherKey, terms: tuple[Term, ...]) -> None:
    later = [replace(terms[1], not_after=terms[1].not_after + day) for day in range(20)]
    model = verify(seal_bytes(b"plain", terms=(*terms, *later)), publisher_key)

    assert len(model.grants) == 22
    assert len(model.grants_for(terms[1].recipient.id)) == 21


def test_a_second_interrupt_does_not_let_a_worker_write_after_the_wipe(
    seal_bytes: SealBytes, publisher_key: PublisherKey, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = b"p" * (1 << 20) * 6
    model = verify(seal_bytes(plain), publisher_key)
    cipher = model.unwrap(model.grants_for(identity.recipient.id)[0], identity)
    target = bytearray(len(plain))
    waits = 0

    def impatient(workers: list[object], timeout: float | None = None) -> object:
        nonlocal waits
        waits += 1
        if waits <= 3:
            raise KeyboardInterrupt
        return waited(workers, timeout=timeout)

    waited = chunks.wait
    monkeypatch.setattr(chunks, "wait", impatient)
    with pytest.raises(KeyboardInterrupt):
        model.decrypt_into(cipher, memoryview(target), workers=2)

    assert waits >= 4
    assert not any(target)
