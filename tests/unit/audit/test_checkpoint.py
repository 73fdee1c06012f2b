from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa
from hypothesis import given, settings
from hypothesis import strategies as st

from pericard.audit import checkpoint, default_origin, open_head
from pericard.audit import note as notes
from pericard.errors import AuditLogInvalid
from pericard.keys import LogKey, LogVerifier

ROOT = bytes(range(32))
ORIGIN = "log.example/ward"


@pytest.fixture
def note(key: LogKey) -> bytes:
    return checkpoint.sign(ORIGIN, 12, ROOT, key)


def test_a_head_reads_back(key: LogKey, note: bytes) -> None:
    assert open_head(note, ORIGIN, key.verifier) == notes.Head(ORIGIN, 12, ROOT)
    assert notes.claims(note) == notes.Head(ORIGIN, 12, ROOT)
    assert note.startswith(
        b"log.example/ward\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n\xe2\x80\x94 log.example/ward "
    )
    assert open_head(checkpoint.sign(ORIGIN, 0, ROOT, key), ORIGIN, key.verifier).size == 0


def test_key_ids_and_signatures_are_those_of_the_note_format_s_own_example() -> None:
    # the example in the documentation of golang.org/x/mod/sumdb/note
    name, identifier, public = "PeterNeumann", "c74f20a3", "ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    text = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    raw = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    verifier = LogVerifier(base64.b64decode(public)[1:])
    assert checkpoint.key_id(name, verifier).hex() == identifier == raw[:4].hex()
    verifier.verify(text, raw[4:])


def test_the_default_origin_comes_from_the_public_key(key: LogKey) -> None:
    origin = default_origin(key.verifier)
    assert origin.startswith("pericard/")
    assert len(origin) == len("pericard/") + 16
    assert default_origin(LogKey(bytes(64)).verifier) != origin
    checkpoint.check_origin(origin)


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "é", "x" * 256, "a\x7f"])
def test_an_origin_is_a_plain_name(origin: str) -> None:
    with pytest.raises(AuditLogInvalid, match="not a name"):
        checkpoint.check_origin(origin)


def test_every_flipped_bit_is_found(key: LogKey, note: bytes) -> None:
    for place in range(len(note)):
        for bit in range(8):
            forged = bytearray(note)
            forged[place] ^= 1 << bit
            with pytest.raises(AuditLogInvalid):
                open_head(bytes(forged), ORIGIN, key.verifier)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_other_bytes_are_a_head(data: bytes) -> None:
    with pytest.raises(AuditLogInvalid):
        open_head(data, ORIGIN, LogKey(bytes(range(64))).verifier)


def test_another_log_s_head_is_named_as_such(key: LogKey, note: bytes) -> None:
    with pytest.raises(AuditLogInvalid, match=r"is of the log 'log\.example/ward', wanted 'another'"):
        open_head(note, "another", key.verifier)
    with pytest.raises(AuditLogInvalid, match="not signed by this log key"):
        open_head(note, ORIGIN, LogKey(bytes(64)).verifier)


def test_a_signature_under_our_key_id_must_verify(key: LogKey, note: bytes) -> None:
    altered = note.replace(b"\n12\n", b"\n13\n")
    with pytest.raises(AuditLogInvalid, match="of 13 records, was altered after it was signed"):
        open_head(altered, ORIGIN, key.verifier)
    # a good one beside it does not help
    false_line = note.split(b"\n\n")[1][:-10] + b"AAAAAAAA=\n"
    with pytest.raises(AuditLogInvalid):
        open_head(note + false_line, ORIGIN, key.verifier)


# --- the second signature ---------------------------------------------------------------------------------------------


def lines(note: bytes) -> list[bytes]:
    return note.split(b"\n\n")[1].splitlines(keepends=True)


def test_a_published_head_has_a_second_signature(key: LogKey, note: bytes) -> None:
    published = checkpoint.attest(note, key)
    assert published.startswith(note)
    assert open_head(published, ORIGIN, key.verifier, published=True) == notes.Head(ORIGIN, 12, ROOT)
    assert checkpoint.algorithms(published, key.verifier) == ("Ed25519", "ML-DSA-44")
    assert len(published) < 4096


def test_the_second_signature_has_the_form_of_its_specification(key: LogKey, note: bytes) -> None:
    """Written out from C2SP tlog-cosignature, and checked with the library alone."""
    second = key.verifier.second
    assert second is not None
    raw = base64.b64decode(lines(checkpoint.attest(note, key))[1].split(b" ")[2])
    name = ORIGIN.encode()
    assert raw[:4] == hashlib.sha256(name + b"\n\x06" + second).digest()[:4]
    assert raw[4:12] == bytes(8)
    wanted = b"subtree/v1\n\0" + bytes([len(name)]) + name + bytes(8) + bytes([len(name)]) + name
    wanted += bytes(8) + (12).to_bytes(8, "big") + ROOT
    mldsa.MLDSA44PublicKey.from_public_bytes(second).verify(raw[12:], wanted)


def test_a_head_that_should_have_it_and_does_not_is_refused(key: LogKey, note: bytes) -> None:
    alone = LogVerifier(key.verifier.public)
    assert open_head(note, ORIGIN, key.verifier).size == 12  # inside a log
    with pytest.raises(AuditLogInvalid, match="has no ML-DSA-44 signature"):
        open_head(note, ORIGIN, key.verifier, published=True)
    for each in (note, checkpoint.attest(note, key)):
        assert open_head(each, ORIGIN, alone, published=True).size == 12  # who does not know the key passes it over
        assert checkpoint.algorithms(each, alone) == ("Ed25519",)


def test_a_second_signature_of_something_else_is_refused(key: LogKey, note: bytes) -> None:
    other = checkpoint.attest(checkpoint.sign(ORIGIN, 13, ROOT, key), key)
    elsewhere = checkpoint.attest(checkpoint.sign(ORIGIN, 12, bytes(32), key), key)
    good = lines(checkpoint.attest(note, key))[1]
    raw = base64.b64decode(good.split(b" ")[2])
    flipped = good[: good.rindex(b" ") + 1] + base64.b64encode(raw[:500] + bytes([raw[500] ^ 1]) + raw[501:]) + b"\n"
    timed = good[: good.rindex(b" ") + 1] + base64.b64encode(raw[:4] + b"\1" + raw[5:]) + b"\n"
    for line in (lines(other)[1], lines(elsewhere)[1], flipped, timed, good[:-20] + b"AAAA\n"):
        for rest in (b"", good):  # a good one beside it does not help
            with pytest.raises(AuditLogInvalid):
                open_head(note + rest + line, ORIGIN, key.verifier)
    # Ed25519 must hold as well
    with pytest.raises(AuditLogInvalid, match="not signed by this log key"):
        open_head(note.partition(b"\xe2\x80\x94")[0] + good, ORIGIN, key.verifier, published=True)


def test_signatures_of_others_are_ignored_up_to_sixteen(key: LogKey, note: bytes) -> None:
    witness = checkpoint.sign("witness.example/w", 12, ROOT, LogKey(bytes(64))).split(b"\n\n")[1]
    assert open_head(note + 15 * witness, ORIGIN, key.verifier).size == 12
    with pytest.raises(AuditLogInvalid, match="three lines"):
        open_head(note + 16 * witness, ORIGIN, key.verifier)
    with pytest.raises(AuditLogInvalid, match="longer than"):
        open_head(note + b"\xe2\x80\x94 w " + b"A" * notes.MAX_NOTE + b"\n", ORIGIN, key.verifier)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n12\n", b"\n012\n"),
        (b"\n12\n", b"\n-1\n"),
        (b"\n12\n", b"\n+12\n"),
        (b"\n12\n", b"\n1_2\n"),
        (b"\n12\n", b"\n9007199254740993\n"),
        (b"\n12\n", b"\n99999999999999999999999\n"),
        (b"\n12\n", b"\n\n"),
        (b"Hh8=\n", b"Hh9=\n"),
        (b"Hh8=\n", b"Hh8\n"),
        (b"Hh8=\n", b"Hh8=\nextension\n"),
        (b"AAECAwQF", b"AAEC"),
        (b"\n\n", b"\n"),
        (b"\n\n", b"\n\n\n"),
        (b"\xe2\x80\x94 ", b"- "),
        (b"\xe2\x80\x94 log", b"\xe2\x80\x94 lo+g"),
        (b"\xe2\x80\x94 log.example/ward", b"\xe2\x80\x94 "),
        (b"log.example/ward\n", b"log.example\x01/ward\n"),
        (b"log", b"\xff"),
    ],
)
def test_every_other_spelling_is_malformed(note: bytes, old: bytes, new: bytes) -> None:
    assert old in note
    with pytest.raises(AuditLogInvalid, match="not a signed checkpoint of three lines"):
        notes.claims(note.replace(old, new, 1))


@pytest.mark.parametrize(
    "tail", [b"\n", b"x", b"\xe2\x80\x94 w AAAA\n", b"\xe2\x80\x94 w AAAAAB==\n", b"\xe2\x80\x94 w\x07 AAAAAAA=\n"]
)
def test_malformed_signature_lines_are_refused(note: bytes, tail: bytes) -> None:
    with pytest.raises(AuditLogInvalid, match="three lines"):
        notes.claims(note + tail)
    with pytest.raises(AuditLogInvalid, match="three lines"):
        notes.claims(note[:-1])


def test_publishing_replaces_in_one_step(quick: Path, note: bytes) -> None:
    assert notes.load(quick) is None
    (quick / ".checkpoint.tmp").write_bytes(b"left by a crash")
    notes.store(quick, b"old")
    notes.store(quick, note)
    assert notes.load(quick) == note
    assert [entry.name for entry in quick.iterdir()] == ["checkpoint"]


def test_a_checkpoint_that_is_too_long_is_not_cut_to_fit(quick: Path, note: bytes, key: LogKey) -> None:
    (quick / "checkpoint").write_bytes(note + b"\n" * notes.MAX_NOTE)
    found = notes.load(quick)
    assert found is not None
    with pytest.raises(AuditLogInvalid, match="longer than"):
        open_head(found, ORIGIN, key.verifier)


def test_a_link_in_the_checkpoint_s_place_is_not_followed(quick: Path, note: bytes) -> None:
    (quick / "elsewhere").write_bytes(note)
    (quick / "checkpoint").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        notes.load(quick)
    (quick / "checkpoint").unlink()
    os.mkfifo(quick / "checkpoint")
    assert notes.load(quick) == b""
