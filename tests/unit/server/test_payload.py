"""The encrypted part: the key schedule written out once more, and what each chunk is bound to."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pericard.errors import CorruptPayload, WrongFileKey
from pericard.sealed.payload import ChunkCipher, rechunk, split, stored_length

FILE_KEY = bytes(range(32))
FILE_ID = bytes(range(100, 132))
CHUNK = 1 << 20


def hkdf(label: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-512, at most one block of output."""
    secret = hmac.digest(FILE_ID, FILE_KEY, "sha512")
    return hmac.digest(secret, b"pericard/v1/" + label + b"\x01", "sha512")[:length]


@pytest.fixture
def cipher() -> ChunkCipher:
    return ChunkCipher(bytearray(FILE_KEY), FILE_ID)


def decrypt(
    cipher: ChunkCipher, stored: bytes, index: int, *, last: bool, length: int, digest: bytes | None = None
) -> bytes:
    target = bytearray(length)
    cipher.decrypt_into(
        index,
        last=last,
        stored=memoryview(stored),
        digest=digest or hashlib.sha256(stored).digest(),
        target=memoryview(target),
        subject="it",
    )
    return bytes(target)


@pytest.mark.parametrize(("index", "last"), [(0, False), (0, True), (7, False), (1 << 40, True)])
def test_a_chunk_is_what_the_specification_says(index: int, last: bool, cipher: ChunkCipher) -> None:
    stored = cipher.encrypt(index, last=last, plain=b"plaintext")

    base = int.from_bytes(hkdf(b"nonce", 12))
    nonce = (base ^ (index * 2 + last)).to_bytes(12)
    associated = FILE_ID + index.to_bytes(8) + bytes([last])
    assert AESGCM(hkdf(b"payload", 32)).decrypt(nonce, stored, associated) == b"plaintext"
    assert cipher.commitment == hkdf(b"commitment", 32)
    assert len(stored) == stored_length(9) == 25


def test_a_chunk_opens_in_its_own_place_only(cipher: ChunkCipher) -> None:
    stored = cipher.encrypt(3, last=False, plain=b"plaintext")

    assert decrypt(cipher, stored, 3, last=False, length=9) == b"plaintext"
    other_file = ChunkCipher(bytearray(FILE_KEY), bytes(32))
    other_key = ChunkCipher(bytearray(32), FILE_ID)
    for by, index, last in ((cipher, 4, False), (cipher, 3, True), (other_file, 3, False), (other_key, 3, False)):
        with pytest.raises(CorruptPayload, match=f"chunk {index} does not decrypt"):
            decrypt(by, stored, index, last=last, length=9)


def test_the_signed_hash_is_checked_first(cipher: ChunkCipher) -> None:
    stored = cipher.encrypt(0, last=True, plain=b"plaintext")

    with pytest.raises(CorruptPayload, match="chunk 0 is not the one that the publisher signed"):
        decrypt(cipher, stored, 0, last=True, length=9, digest=bytes(32))


def test_another_file_key_is_seen_before_anything_is_decrypted(cipher: ChunkCipher) -> None:
    cipher.require(hkdf(b"commitment", 32), subject="it")

    with pytest.raises(WrongFileKey, match="it: the grant holds another key"):
        cipher.require(bytes(32), subject="it")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [(0, True, 0, 1)]),
        (CHUNK, [(0, True, 0, CHUNK)]),
        (CHUNK + 1, [(0, False, 0, CHUNK), (1, True, CHUNK, 1)]),
        (2 * CHUNK, [(0, False, 0, CHUNK), (1, True, CHUNK, CHUNK)]),
    ],
)
def test_only_the_last_chunk_is_marked_and_may_be_short(size: int, expected: list[tuple[int, bool, int, int]]) -> None:
    assert list(split(size)) == expected


def pieces(plain: bytes, length: int) -> Iterator[bytes]:
    yield b""
    for place in range(0, len(plain), length):
        yield plain[place : place + length]
        yield b""


@pytest.mark.parametrize("length", [1 << 10, CHUNK - 1, CHUNK, 3 * CHUNK])
def test_a_stream_of_any_pieces_is_cut_into_chunks(length: int) -> None:
    plain = hashlib.shake_128(b"plain").digest(2 * CHUNK + 100)
    found = [(index, last, bytes(view)) for index, last, view in rechunk(pieces(plain, length), len(plain))]

    assert [(index, last) for index, last, _ in found] == [(0, False), (1, False), (2, True)]
    assert b"".join(view for _, _, view in found) == plain


def test_the_buffer_of_a_stream_is_wiped_at_its_end() -> None:
    stream = rechunk([b"secret" * 100], 600)
    _, _, view = next(stream)
    assert view == b"secret" * 100

    assert next(stream, None) is None
    assert view == bytes(600)


@pytest.mark.parametrize(
    ("parts", "size", "reason"),
    [
        ([b"abc"], 4, "ended 1 bytes before the end of chunk 0"),
        ([], 1, "ended 1 bytes"),
        ([b"abc"], 2, "holds more than 2 bytes"),
        ([b"ab", b"", b"c"], 2, "holds more than 2 bytes"),
    ],
)
def test_a_stream_of_another_size_is_refused(parts: list[bytes], size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(rechunk(parts, size))
