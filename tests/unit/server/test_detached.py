"""Grants after sealing: made from the header alone, in files of their own or embedded, and found beside their model."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pericard.errors import (
    BadGrant,
    BadSignature,
    CorruptPayload,
    KeyFileInvalid,
    NoGrant,
    NotWritten,
    PericardError,
    WrongFileKey,
)
from pericard.keys import Identity, PublisherKey
from pericard.sealed import SealedModel, Term, embed, grants_beside, layout, read_grants, write_grants
from pericard.sealed import container as containers
from pericard.sealed import grant as grants

DAY = 86_400
PLAIN = bytes(range(256)) * 5000  # two chunks


@pytest.fixture
def path(seal_bytes: Callable[..., Path], tmp_path: Path) -> Path:
    """A file for the archive and the hospital; this test may change it."""
    mine = tmp_path / "ecg.sealed"
    mine.write_bytes(seal_bytes(PLAIN).read_bytes())
    return mine


@pytest.fixture
def term(stranger: Identity, now: int) -> Term:
    return Term(stranger.recipient, now, now + DAY, 3)


Grant = Callable[..., tuple[bytes, ...]]


@pytest.fixture
def grant(path: Path, archive: Identity, publisher_key: PublisherKey, term: Term) -> Grant:
    def run(
        *terms: Term, who: Identity = archive, key: PublisherKey = publisher_key, file: Path = path
    ) -> tuple[bytes, ...]:
        with SealedModel(file) as source:
            return source.verify([publisher_key.publisher]).grant(who, key, terms or (term,))

    return run


def plaintext(path: Path, identity: Identity, key: PublisherKey, *beside: Path) -> bytes:
    with SealedModel(path) as source:
        model = source.verify([key.publisher])
        for file in beside:
            for body, signatures in read_grants(file):
                model.add_grant(body, signatures, subject=file.name)
        target = bytearray(model.manifest.payload.size)
        model.decrypt_into(model.unwrap(model.grants_for(identity.recipient.id)[-1], identity), memoryview(target))
        return bytes(target)


# --- making


def test_a_later_grant_opens_the_file_for_whom_it_was_made(
    path: Path, grant: Grant, stranger: Identity, publisher_key: PublisherKey, tmp_path: Path
) -> None:
    before = path.read_bytes()
    with pytest.raises(NoGrant):
        plaintext(path, stranger, publisher_key)
    write_grants(tmp_path / "ecg.grant", grant())

    assert plaintext(path, stranger, publisher_key, tmp_path / "ecg.grant") == PLAIN
    assert path.read_bytes() == before
    assert (tmp_path / "ecg.grant").stat().st_mode & 0o777 == 0o644
    ((body, _),) = read_grants(tmp_path / "ecg.grant")
    assert b'"grace_days":3' in body


def test_one_file_may_grant_to_many(
    path: Path, grant: Grant, identity: Identity, stranger: Identity, publisher_key: PublisherKey, now: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    write_grants(
        tmp_path / "all.grant",
        grant(Term(stranger.recipient, now, now + 1, 0), Term(identity.recipient, now, now + 9 * DAY, 0)),
    )
    for who in (identity, stranger):
        assert plaintext(path, who, publisher_key, tmp_path / "all.grant") == PLAIN


def test_the_payload_is_not_needed_to_grant(path: Path, grant: Grant) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:  # holes where the chunks were; only the length is asked for
        with SealedModel(path) as source:
            file.truncate(source.payload_offset)
        file.truncate(size)
    assert len(grant()) == 1

    os.truncate(path, size - 1)
    with pytest.raises(CorruptPayload):
        grant()


def test_only_its_publisher_can_grant(grant: Grant, foreign_key: PublisherKey, stranger: Identity) -> None:
    with pytest.raises(BadGrant, match=r"ecg\.sealed: only its publisher, [0-9a-f]{16}, can grant it"):
        grant(key=foreign_key)
    with pytest.raises(NoGrant):
        grant(who=stranger)


def test_any_identity_that_opens_it_will_do_with_the_publishers_key(grant: Grant, identity: Identity) -> None:
    assert grant(who=identity)


@pytest.mark.parametrize(("begin", "end", "grace"), [(5, 5, 0), (6, 5, 0), (0, 1 << 40, 0), (0, 5, 367)])
def test_dates_out_of_order_are_not_granted(begin: int, end: int, grace: int, grant: Grant, stranger: Identity) -> None:
    with pytest.raises(BadGrant, match="not in order"):
        grant(Term(stranger.recipient, begin, end, grace))


def test_an_archive_with_another_key_in_its_grant_grants_nothing(
    seal_bytes: Callable[..., Path], archive: Identity, publisher_key: PublisherKey, term: Term, now: int
) -> None:
    with SealedModel(seal_bytes(PLAIN, terms=(term,))) as source:
        model = source.verify([publisher_key.publisher])
        wrong = grants.make(
            bytearray(32), archive.recipient, publisher_key,
            manifest=model.manifest_hash, not_before=0, not_after=now, grace_days=0,
        )  # fmt: skip
        ((body, signatures),) = layout.unpack_grants(layout.pack_grants((wrong,)), subject="it")
        model.add_grant(body, signatures)
        with pytest.raises(WrongFileKey):
            model.grant(archive, publisher_key, (term,))


def test_the_file_key_is_wiped(grant: Grant, stranger: Identity, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytearray] = []
    real = grants.Grant.unwrap

    def unwrap(self: grants.Grant, identity: Identity) -> bytearray:
        seen.append(real(self, identity))
        assert any(seen[-1])
        return seen[-1]

    monkeypatch.setattr(grants.Grant, "unwrap", unwrap)
    grant()
    with pytest.raises(BadGrant):
        grant(Term(stranger.recipient, now, now, 0))
    assert len(seen) == 2
    assert not any(map(any, seen))


# --- embedding


def test_embedding_keeps_every_old_grant_and_the_payload(
    path: Path, grant: Grant, identity: Identity, archive: Identity, stranger: Identity, publisher_key: PublisherKey,
    tmp_path: Path,
) -> None:  # fmt: skip
    with SealedModel(path) as source:
        embed(source, grant(), tmp_path / "new.sealed")
        with pytest.raises(NotWritten, match=r"ecg\.sealed: exists already"):
            embed(source, grant(), path)  # never in a file's place, nor in its own

    assert (tmp_path / "new.sealed").stat().st_mode & 0o777 == 0o644
    for who in (identity, archive, stranger):
        assert plaintext(tmp_path / "new.sealed", who, publisher_key) == PLAIN
    for file, count in ((tmp_path / "new.sealed", 3), (path, 2)):
        with SealedModel(file) as source:
            assert len(source.packed_grants) == count
    assert sorted(found.name for found in tmp_path.iterdir()) == ["ecg.sealed", "new.sealed"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_ranges_cannot_be_copied_the_file_is_sent(
    code: int, path: Path, grant: Grant, stranger: Identity, publisher_key: PublisherKey, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(containers, "_COPY_STEP", 100_000)
    with SealedModel(path) as source:
        embed(source, grant(), tmp_path / "new.sealed")
    assert plaintext(tmp_path / "new.sealed", stranger, publisher_key) == PLAIN


def test_what_fails_on_the_way_leaves_nothing(
    path: Path, grant: Grant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, before = grant(), path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for answer, error in ((full, NotWritten), (lambda *_: 0, CorruptPayload)):
        monkeypatch.setattr(os, "copy_file_range", answer)
        with SealedModel(path) as source, pytest.raises(error):
            embed(source, made, tmp_path / "new.sealed")
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["ecg.sealed"]


def test_no_more_grants_are_embedded_than_a_writer_may(path: Path, grant: Grant, tmp_path: Path) -> None:
    (made,) = grant()
    with SealedModel(path) as source, pytest.raises(BadGrant, match="would hold 4097 grants"):
        embed(source, (made,) * (layout.MAX_EMBEDDED - 1), tmp_path / "new.sealed")


# --- reading


def test_a_grant_file_is_never_replaced(grant: Grant, tmp_path: Path) -> None:
    write_grants(tmp_path / "ecg.grant", grant())
    before = (tmp_path / "ecg.grant").read_bytes()
    with pytest.raises(NotWritten, match="exists already"):
        write_grants(tmp_path / "ecg.grant", grant())
    with pytest.raises(NotWritten, match="no such file"):
        write_grants(tmp_path / "missing" / "ecg.grant", grant())
    assert (tmp_path / "ecg.grant").read_bytes() == before


def test_what_is_no_grant_file_is_refused_by_its_name(grant: Grant, tmp_path: Path) -> None:
    good = layout.pack_grants(grant())
    os.mkfifo(tmp_path / "pipe.grant")
    (tmp_path / "folder.grant").mkdir()
    spoiled: dict[str, bytes] = {
        "empty": b"", "none": b"\0\0", "short": good[:-1], "long": good + b"\0", "count": b"\x02\0" + good[2:],
        "model": layout.MAGIC + good, "text": b"not a grant",
    }  # fmt: skip
    for name, data in spoiled.items():
        (tmp_path / f"{name}.grant").write_bytes(data)
    with (tmp_path / "large.grant").open("wb") as file:
        file.truncate(layout.MAX_GRANTS + 1)
    for name in (*spoiled, "pipe", "folder", "large", "missing"):
        with pytest.raises(BadGrant, match=rf"^{name}\.grant: "):
            read_grants(tmp_path / f"{name}.grant")


def test_every_prefix_and_flipped_bit_of_a_grant_file_is_refused(
    path: Path, grant: Grant, publisher_key: PublisherKey, tmp_path: Path
) -> None:
    good = layout.pack_grants(grant())
    file = tmp_path / "ecg.grant"

    def added(data: bytes) -> None:
        file.write_bytes(data)
        with SealedModel(path) as source:
            model = source.verify([publisher_key.publisher])
            for body, signatures in read_grants(file):
                model.add_grant(body, signatures, subject=file.name)

    added(good)
    for data in (
        *(good[:end] for end in range(0, len(good), 101)),
        *(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(0, len(good), 53)),
    ):
        with pytest.raises((BadGrant, BadSignature), match=r"^ecg\.grant: ") as caught:
            added(data)
        assert caught.value.code in {"bad-grant", "bad-signature"}


def test_grants_are_found_by_their_names_alone(path: Path, tmp_path: Path) -> None:
    mine = ["ecg.grant", "ecg.2027.grant", "ecg.ward.b.grant"]
    for name in (*mine, "ecg2.grant", "ecg.grant.bak", "other.grant", "ecg", ".grant", "ecg.notice", "xecg.grant"):
        (tmp_path / name).touch()

    assert [found.name for found in grants_beside(path)] == sorted(mine)
    assert grants_beside(tmp_path / "other.sealed") == [tmp_path / "other.grant"]


def test_a_model_with_a_longer_name_keeps_its_own_grants(path: Path, tmp_path: Path) -> None:
    (tmp_path / "ecg.child.sealed").touch()
    for name in ("ecg.grant", "ecg.2027.grant", "ecg.child.grant", "ecg.child.2027.grant", "ecg.children.grant"):
        (tmp_path / name).touch()

    assert [found.name for found in grants_beside(path)] == ["ecg.2027.grant", "ecg.children.grant", "ecg.grant"]
    assert [found.name for found in grants_beside(tmp_path / "ecg.child.sealed")] == [
        "ecg.child.2027.grant",
        "ecg.child.grant",
    ]


def test_more_grant_files_than_anybody_needs_are_refused(path: Path, tmp_path: Path) -> None:
    for number in range(64):
        (tmp_path / f"ecg.{number}.grant").touch()
    assert len(grants_beside(path)) == 64
    (tmp_path / "ecg.grant").touch()
    with pytest.raises(BadGrant, match=r"ecg\.sealed: 65 grant files lie beside it, at most 64"):
        grants_beside(path)


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PericardError, match="cannot be read: no such file"):
        grants_beside(tmp_path / "gone" / "ecg.sealed")


# --- recipients of another kind

OTHERS = {
    "age": b"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n",
    "age, post-quantum": b"age1pq1" + b"q" * 100 + b"\n",
    "ssh": b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@example\n",
    "32 raw bytes": bytes(range(32)),
    "32 bytes as ours": b"pericard-recipient-v1 " + b"A" * 43 + b"=\n",
    "pem": b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEA" + b"A" * 43 + b"=\n-----END PUBLIC KEY-----\n",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_recipients_without_ml_kem_are_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    from pericard.cli.licence import recipient

    (tmp_path / "it.pub").write_bytes(OTHERS[kind])
    with pytest.raises(KeyFileInvalid, match=r"it\.pub: (?:is no key file of ours|holds 32 bytes of key)") as caught:
        recipient(tmp_path / "it.pub")
    assert caught.value.code == "key-file-invalid"
    assert caught.value.hint is not None
    assert "only X-Wing recipients are taken" in caught.value.hint


def test_our_other_keys_are_named_with_what_to_give_instead(tmp_path: Path, publisher_key: PublisherKey) -> None:
    from pericard.sealed import recipients

    Identity.generate(tmp_path / "identity.key")
    publisher_key.publisher.write(tmp_path / "vendor.pub")
    for name, words in (("identity.key", "give identity.pub"), ("vendor.pub", "that is a publisher's key")):
        with pytest.raises(KeyFileInvalid, match=rf"{name}: is a 'pericard-[a-z0-9-]+' file") as caught:
            recipients.read(tmp_path / name)
        assert words in (caught.value.hint or "")


def test_a_recipient_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    from pericard.cli.licence import recipient

    with pytest.raises(KeyFileInvalid, match="no such file") as caught:
        recipient(tmp_path / "it.pub")
    hint: Any = caught.value.hint
    assert hint is None
