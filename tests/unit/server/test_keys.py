"""Keys: what a key file looks like, who may read it, that it is never overwritten, and what keys do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pericard.errors import BadGrant, BadSignature, KeyFileExposed, KeyFileInvalid
from pericard.keys import (
    Identity,
    LogKey,
    LogVerifier,
    Publisher,
    PublisherKey,
    Recipient,
    Signature,
    take,
    wipe,
)

PRIVATE: dict[str, tuple[Any, str, int]] = {
    "identity": (Identity, "pericard-identity-v1", 32),
    "publisher": (PublisherKey, "pericard-publisher-key-v1", 64),
    "log": (LogKey, "pericard-log-key-v1", 64),
}
PUBLIC: dict[str, tuple[Any, Callable[[Any], Any], str, int]] = {
    "recipient": (Recipient, lambda made: made.recipient, "pericard-recipient-v1", 1216),
    "publisher": (Publisher, lambda made: made.publisher, "pericard-publisher-v1", 1984),
    "log": (LogVerifier, lambda made: made.verifier, "pericard-log-v2", 1344),
}
OWNER = {"recipient": Identity, "publisher": PublisherKey, "log": LogKey}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk: no file may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def key_line(kind: str, data: bytes) -> str:
    return f"{kind} {base64.b64encode(data).decode()}\n"


# --- private files


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_key_file_is_one_line_that_only_its_owner_may_read(name: str, tmp_path: Path) -> None:
    made, kind, length = PRIVATE[name]
    path = tmp_path / "key"
    old_mask = os.umask(0)
    try:
        made.generate(path)
    finally:
        os.umask(old_mask)

    comment, line, rest = path.read_text("ascii").split("\n")
    assert comment.startswith("# private: ")
    assert line.split(" ")[0] == kind
    assert len(base64.b64decode(line.split(" ")[1], validate=True)) == length
    assert rest == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    identity = Identity.generate(tmp_path / "identity.key")
    publisher = PublisherKey.generate(tmp_path / "publisher.key")
    log = LogKey.generate(tmp_path / "log.key")

    assert Identity.read(tmp_path / "identity.key").recipient.id == identity.recipient.id
    assert PublisherKey.read(tmp_path / "publisher.key").publisher.id == publisher.publisher.id
    assert LogKey.read(tmp_path / "log.key").verifier.public == log.verifier.public
    assert LogKey.read(tmp_path / "log.key").commitment_key == log.commitment_key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o622, 0o601])
def test_a_private_key_that_others_could_touch_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    Identity.generate(path)
    path.chmod(mode)

    with pytest.raises(KeyFileExposed) as caught:
        Identity.read(path)

    assert f"{mode:04o}" in caught.value.message
    assert caught.value.hint is not None
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("name", PRIVATE)
def test_a_key_is_never_overwritten(name: str, tmp_path: Path) -> None:
    made, _, _ = PRIVATE[name]
    path = tmp_path / "key"
    path.write_text("what stands here stays")

    with pytest.raises(KeyFileInvalid, match="exists already"):
        made.generate(path)

    assert path.read_text() == "what stands here stays"
    assert list(tmp_path.iterdir()) == [path]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(KeyFileInvalid, match="exists already"):
        Identity.generate(tmp_path / "key")

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("size", [0, 1, 40])
def test_a_full_disk_leaves_no_half_key(size: int, tmp_path: Path) -> None:
    with largest_file(size), pytest.raises(KeyFileInvalid, match="cannot be written: file too large"):
        PublisherKey.generate(tmp_path / "key")

    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileInvalid, match=r"missing/key: cannot be written: no such file"):
        Identity.generate(tmp_path / "missing" / "key")


def test_a_file_that_a_crash_left_behind_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".key.{os.getpid()}.tmp").write_text("half a key")

    Identity.generate(tmp_path / "key")

    assert Identity.read(tmp_path / "key")


def damaged() -> dict[str, str]:
    good = key_line("pericard-identity-v1", bytes(range(32)))
    return {
        "empty": "",
        "only comments": "# private: identity\n",
        "two keys": good + good,
        "too short": key_line("pericard-identity-v1", bytes(31)),
        "too long": key_line("pericard-identity-v1", bytes(33)),
        "no key": "pericard-identity-v1\n",
        "not base64": "pericard-identity-v1 ***\n",
        "unpadded": good.replace("=", ""),
        "two words": good.replace("\n", " more\n"),
        "spaces": good.replace(" ", "  "),
        "another kind": key_line("pericard-recipient-v1", bytes(32)),
        "of a later version": key_line("pericard-identity-v2", bytes(32)),
        "binary": "\x00\x01\x02\n",
        "not ascii": "pericard-identity-v1é AAAA\n",
        "huge": good + "#" * 70_000,
    }


@pytest.mark.parametrize("what", damaged())
def test_a_damaged_key_file_is_refused_without_its_content(what: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    text = damaged()[what]
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(KeyFileInvalid) as caught:
        Identity.read(path)

    assert str(path) in caught.value.message
    assert not any(len(word) > 24 and word in caught.value.message for word in text.split())


def test_the_halves_and_kinds_are_told_apart(tmp_path: Path) -> None:
    identity = Identity.generate(tmp_path / "identity.key")
    identity.recipient.write(tmp_path / "identity.pub")

    with pytest.raises(KeyFileInvalid, match="is a 'pericard-identity-v1' file, wanted 'pericard-publisher-key-v1'"):
        PublisherKey.read(tmp_path / "identity.key")
    with pytest.raises(KeyFileInvalid, match="is a 'pericard-recipient-v1' file, wanted 'pericard-publisher-v1'"):
        Publisher.read(tmp_path / "identity.pub")
    with pytest.raises(KeyFileInvalid, match="is a 'pericard-identity-v1' file"):
        Recipient.read(tmp_path / "identity.key")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_public_half_is_no_leaked_private_one(mode: int, tmp_path: Path) -> None:
    for name, made in (("identity", Identity.generate), ("vendor", PublisherKey.generate), ("log", LogKey.generate)):
        key = made(tmp_path / f"{name}.key")
        half = getattr(key, {"identity": "recipient", "vendor": "publisher", "log": "verifier"}[name])
        half.write(tmp_path / f"{name}.pub")
        (tmp_path / f"{name}.pub").chmod(mode)
        with pytest.raises(KeyFileInvalid, match=rf"{name}\.pub: is the public half; the private one is") as caught:
            type(key).read(tmp_path / f"{name}.pub")
        assert str(caught.value.hint).endswith(f"{name}.key")


def test_a_private_key_beside_a_public_one_is_exposed_all_the_same(tmp_path: Path) -> None:
    Identity.generate(tmp_path / "identity.key").recipient.write(tmp_path / "identity.pub")
    both = (tmp_path / "identity.pub").read_bytes() + (tmp_path / "identity.key").read_bytes()
    (tmp_path / "both").write_bytes(both)
    (tmp_path / "both").chmod(0o644)
    with pytest.raises(KeyFileExposed):
        Identity.read(tmp_path / "both")


def test_what_is_not_a_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyFileInvalid, match="is not a regular file"):
        Identity.read(tmp_path / "pipe")
    with pytest.raises(KeyFileInvalid, match="is not a regular file"):
        Identity.read(tmp_path)
    with pytest.raises(KeyFileInvalid, match="cannot be read: no such file"):
        Identity.read(tmp_path / "missing")


def test_a_link_to_a_key_is_followed(tmp_path: Path) -> None:
    made = Identity.generate(tmp_path / "mounted")
    (tmp_path / "key").symlink_to("mounted")

    assert Identity.read(tmp_path / "key").recipient.id == made.recipient.id


# --- public files


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_key_file_round_trips(name: str, tmp_path: Path) -> None:
    kind, half, word, length = PUBLIC[name]
    public = half(OWNER[name].generate(tmp_path / "key"))
    path = tmp_path / "key.pub"
    public.write(path)

    assert kind.read(path).public == public.public
    assert len(public.public + (getattr(public, "second", None) or b"")) == length
    assert path.read_text("ascii").split("\n")[1].startswith(word + " ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(KeyFileInvalid, match="exists already"):
        public.write(path)


def test_a_recipient_prints_as_the_line_of_its_file(identity: Identity, tmp_path: Path) -> None:
    identity.recipient.write(tmp_path / "key.pub")

    assert str(identity.recipient) in (tmp_path / "key.pub").read_text().splitlines()


@pytest.mark.parametrize(
    ("kind", "length"),
    [(Recipient, 1215), (Publisher, 1983), (LogVerifier, 31), (Identity, 31), (PublisherKey, 65), (LogKey, 63)],
)
def test_keys_of_a_wrong_length_are_refused(kind: Callable[[bytes], object], length: int) -> None:
    with pytest.raises(KeyFileInvalid, match=f"holds {length} bytes"):
        kind(bytes(length))


def test_a_recipient_that_nobody_can_have_made_is_refused(identity: Identity) -> None:
    with pytest.raises(KeyFileInvalid, match="not an X-Wing"):
        Recipient(b"\xff" * 1216)  # an ML-KEM coefficient beyond the modulus
    low_order = Recipient(identity.recipient.public[:1184] + bytes(32))
    with pytest.raises(KeyFileInvalid, match="not an X-Wing"):
        low_order.wrap(bytes(32), info=b"")


# --- identity


def test_the_seed_expands_as_x_wing_says() -> None:
    # draft-connolly-cfrg-xwing-kem, appendix C, vector 1
    public = Identity(
        bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    ).recipient.public

    assert public[:32].hex() == "e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07131713fc14b2b5"
    assert public[-32:].hex() == "859edb06eff389b27dce59844570216223593d4ba32d9abac8cd049040ef6534"


def test_a_wrapped_key_opens_with_an_independent_hpke() -> None:
    """RFC 9180 base mode, written out: KEM 0x647a (X-Wing), KDF 0x0001, AEAD 0x0002."""
    seed, info = bytes(range(32)), b"some info"
    wrapped = Identity(seed).recipient.wrap(b"file key", info=info)

    expanded = hashlib.shake_256(seed).digest(96)
    lattice = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    curve = x25519.X25519PrivateKey.from_private_bytes(expanded[64:])
    ephemeral = wrapped[1088:1120]
    shared = hashlib.sha3_256(
        lattice.decapsulate(wrapped[:1088])
        + curve.exchange(x25519.X25519PublicKey.from_public_bytes(ephemeral))
        + ephemeral
        + curve.public_key().public_bytes_raw()
        + rb"\.//^" + b"\\"
    ).digest()  # fmt: skip
    suite = b"HPKE" + bytes.fromhex("647a 0001 0002")

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
        named = length.to_bytes(2) + b"HPKE-v1" + suite + label + context + b"\x01"
        return hmac.digest(secret, named, "sha256")[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key, nonce = expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)

    assert AESGCM(key).decrypt(nonce, wrapped[1120:], b"") == b"file key"


def test_only_the_same_identity_and_info_open_a_wrapped_key(identity: Identity, stranger: Identity) -> None:
    wrapped = identity.recipient.wrap(b"k" * 32, info=b"terms")

    assert identity.unwrap(wrapped, info=b"terms") == b"k" * 32
    for other, info in ((stranger, b"terms"), (identity, b"other terms"), (identity, b"")):
        with pytest.raises(BadGrant, match="does not open"):
            other.unwrap(wrapped, info=info)
    for place in (0, 1087, 1088, 1119, 1120, len(wrapped) - 1):
        altered = bytearray(wrapped)
        altered[place] ^= 1
        with pytest.raises(BadGrant, match="does not open"):
            identity.unwrap(bytes(altered), info=b"terms")
    for length in (0, 1119, 1120, len(wrapped) - 1):
        with pytest.raises(BadGrant, match="does not open"):
            identity.unwrap(wrapped[:length], info=b"terms")


# --- publisher


def test_both_signatures_are_always_needed(publisher_key: PublisherKey, foreign_key: PublisherKey) -> None:
    public = publisher_key.publisher
    ed, ml = publisher_key.sign("domain", b"message")
    foreign_ed, foreign_ml = foreign_key.sign("domain", b"message")
    public.verify("domain", b"message", (ml, ed), subject="it")

    for signatures in ((), (ed,), (ml,), (ed, ed), (ed, ml, ml), (ed, ml, foreign_ed)):
        with pytest.raises(BadSignature, match="needs one Ed25519 and one ML-DSA-65"):
            public.verify("domain", b"message", signatures, subject="it")
    for signatures, name in (((foreign_ed, ml), "Ed25519"), ((ed, foreign_ml), "ML-DSA-65")):
        with pytest.raises(BadSignature, match=f"the {name} signature is by another key"):
            public.verify("domain", b"message", signatures, subject="it")


def test_a_signature_is_for_one_message_in_one_domain(publisher_key: PublisherKey) -> None:
    public, signatures = publisher_key.publisher, publisher_key.sign("domain", b"message")

    for domain, message in (("domain", b"massage"), ("other", b"message"), ("domai", b"n\0message"), ("domain", b"")):
        with pytest.raises(BadSignature, match="does not verify"):
            public.verify(domain, message, signatures, subject="it")


@pytest.mark.parametrize("place", [0, 1])
def test_an_altered_signature_is_named(place: int, publisher_key: PublisherKey) -> None:
    signatures = list(publisher_key.sign("domain", b"message"))
    good = signatures[place]
    signatures[place] = Signature(good.algorithm, good.key_id, good.value[:-1] + bytes([good.value[-1] ^ 1]))

    with pytest.raises(BadSignature, match=f"the {('Ed25519', 'ML-DSA-65')[place]} signature does not verify"):
        publisher_key.publisher.verify("domain", b"message", tuple(signatures), subject="it")


def test_a_claim_is_counted_by_key(publisher_key: PublisherKey, foreign_key: PublisherKey) -> None:
    ed, ml = publisher_key.sign("domain", b"message")

    assert publisher_key.publisher.claimed((ed, ml)) == 2
    assert publisher_key.publisher.claimed((ed,)) == 1
    assert publisher_key.publisher.claimed((Signature(2, ed.key_id, ml.value),)) == 0
    assert foreign_key.publisher.claimed((ed, ml)) == 0


# --- log


def test_a_log_head_verifies_with_its_key_only() -> None:
    key, other = LogKey(bytes(range(64))), LogKey(bytes(64))
    signature = key.sign(b"head")

    key.verifier.verify(b"head", signature)
    for verifier, message in ((other.verifier, b"head"), (key.verifier, b"another head")):
        with pytest.raises(BadSignature, match="log head"):
            verifier.verify(message, signature)
    assert key.commitment_key == bytes(range(32, 64))


def test_a_log_key_has_a_second_half_that_follows_from_the_first(tmp_path: Path) -> None:
    key, other = LogKey(bytes(range(64))), LogKey(bytes(range(32)) + bytes(32))
    assert key.verifier.second == other.verifier.second  # the commitment key has no part in it
    assert key.verifier.second != LogKey(bytes(64)).verifier.second
    signature = key.sign_second(b"head")
    other.verifier.verify_second(b"head", signature)
    for verifier, message in (
        (LogKey(bytes(64)).verifier, b"head"),
        (key.verifier, b"another head"),
        (LogVerifier(key.verifier.public), b"head"),
    ):
        with pytest.raises(BadSignature, match="log head"):
            verifier.verify_second(message, signature)
    with pytest.raises(KeyFileInvalid):
        LogVerifier(key.verifier.public, bytes(31))


def test_a_log_s_public_file_of_before_is_still_read(tmp_path: Path) -> None:
    key = LogKey(bytes(range(64)))
    LogVerifier(key.verifier.public).write(tmp_path / "old.pub")
    assert (tmp_path / "old.pub").read_text().splitlines()[1].startswith("pericard-log-v1 ")
    found = LogVerifier.read(tmp_path / "old.pub")
    assert (found.public, found.second) == (key.verifier.public, None)
    data = base64.b64encode(key.verifier.public).decode()
    for line in (f"pericard-log-v2 {data}\n", f"pericard-log-v3 {data}\n"):
        (tmp_path / "wrong.pub").write_text(line)
        with pytest.raises(KeyFileInvalid):
            LogVerifier.read(tmp_path / "wrong.pub")


# --- secrets


def test_wiping_leaves_zeros() -> None:
    secret, seen = bytearray(b"secret"), bytearray(b"a secret part")
    wipe(secret)
    wipe(memoryview(seen)[2:8])
    wipe(bytearray())

    assert secret == bytes(6)
    assert seen == b"a " + bytes(6) + b" part"


def test_taking_a_secret_clears_the_bytes_that_held_it() -> None:
    original = os.urandom(32)
    expected = bytearray(original)

    assert take(original) == expected
    assert original == bytes(32)


def test_the_interpreters_own_short_bytes_are_left_alone() -> None:
    assert take(b"") == b""
    assert take(bytes([7])) == b"\x07"
    assert bytes([7]) == b"\x07"
