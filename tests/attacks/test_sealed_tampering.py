"""P2: a sealed file that was altered, cut, re-ordered or spliced is refused before anything of it is parsed.

Each attack is refused with its own code. ``opened`` is the daemon's way in up to the plaintext, so whatever gets
through is a failure here. Signatures, grants and time stand in ``test_sealed_authority.py``.
"""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pericard import canonical
from pericard.keys import Identity, PublisherKey
from pericard.sealed import grant as grants
from pericard.sealed import layout
from pericard.sealed.payload import ChunkCipher, _derive

CHUNK = (1 << 20) + 16
PLAIN = hashlib.shake_128(b"plain").digest((2 << 20) + 5000)  # three chunks, the last one short
Opened = Callable[..., bytearray]
Refused = Callable[..., str]
Parts = Any  # a conftest's class cannot be imported


@pytest.fixture(scope="module")
def path(seal_bytes: Callable[..., Path]) -> Path:
    return seal_bytes(PLAIN)


@pytest.fixture(scope="module")
def parts(path: Path, take_apart: Callable[[Path], Parts]) -> Parts:
    return take_apart(path)


def boundaries(parts: Parts) -> list[int]:
    """Where a field of the header, a section, the padding or a chunk begins, and where the file ends."""
    places = [0, 8, 12, 16, 20]
    for section in parts.sections():
        places.append(places[-1] + len(section))
    payload = -(-places[-1] // 4096) * 4096
    return [*places, *(payload + CHUNK * number for number in range(len(parts.chunks))), len(parts.data())]


def test_what_was_taken_apart_and_put_together_opens(path: Path, parts: Parts, opened: Opened) -> None:
    assert parts.data() == path.read_bytes()
    assert opened(parts.data()) == PLAIN


# --- single bits


def flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def test_one_flipped_bit_anywhere_is_refused(parts: Parts, refused: Refused) -> None:
    data, chance = parts.data(), random.Random(20260921)
    head = boundaries(parts)[8]
    places = [chance.randrange(len(data)) for _ in range(100)] + [chance.randrange(head) for _ in range(100)]

    codes = {refused(flipped(data, place, chance.randrange(8))) for place in places}
    assert codes == {"bad-signature", "corrupt-payload", "malformed-sealed-model"}


def test_one_flipped_bit_at_every_boundary_is_refused(parts: Parts, refused: Refused) -> None:
    data = parts.data()
    places = {place + step for place in boundaries(parts) for step in (-1, 0, 1)} & set(range(len(data)))
    assert len(places) > 30

    for place in places:
        for bit in (0, 7):
            refused(flipped(data, place, bit))


def test_one_flipped_bit_in_every_byte_of_the_signature_blocks_headers_is_refused(
    parts: Parts, refused: Refused
) -> None:
    data, start = parts.data(), 20 + len(parts.manifest)

    codes = {refused(flipped(data, place, 3)) for place in range(start, start + 36)}
    assert codes == {"bad-signature", "malformed-sealed-model"}


def test_no_zero_of_the_padding_may_be_anything_else(parts: Parts, refused: Refused) -> None:
    data, (begin, end) = parts.data(), boundaries(parts)[7:9]
    assert data[begin:end] == bytes(end - begin)

    for place in (begin, (begin + end) // 2, end - 1):
        assert refused(flipped(data, place, 0)) == "malformed-sealed-model"


# --- length


def test_a_file_cut_anywhere_is_refused(parts: Parts, refused: Refused) -> None:
    data = parts.data()
    for length in sorted({place + step for place in boundaries(parts) for step in (-1, 0, 1)}):
        if 0 <= length < len(data):
            head, expected = boundaries(parts)[8], "malformed-sealed-model"
            if length < 20:
                expected = "not-a-sealed-model"
            elif length >= head:
                expected = "corrupt-payload"
            assert refused(data[:length]) == expected, length


@pytest.mark.parametrize("more", [b"\0", b"x", bytes(4096), bytes(CHUNK)])
def test_bytes_after_the_last_chunk_are_refused(more: bytes, parts: Parts, refused: Refused) -> None:
    assert refused(parts.data() + more) == "corrupt-payload"


def test_lengths_that_move_a_boundary_are_refused(parts: Parts, refused: Refused) -> None:
    """The header is not signed: no other division of the same bytes may mean something."""
    data = parts.data()
    lengths = struct.unpack_from("<III", data, 8)
    for first in range(3):
        for second in range(3):
            for step in (1, 35, 3309):
                moved = list(lengths)
                moved[first] += step
                moved[second] -= step
                if first != second and moved[second] > 0:
                    refused(data[:8] + struct.pack("<III", *moved) + data[20:])


# --- chunks


def with_chunks(parts: Parts, *order: int) -> bytes:
    return replace(parts, chunks=tuple(parts.chunks[number] for number in order)).data()


@pytest.mark.parametrize(
    "order",
    [(1, 0, 2), (0, 0, 2), (1, 1, 2), (0, 2), (0, 1), (1, 2), (), (0, 1, 2, 2), (0, 1, 1, 2), (2, 0, 1), (0, 1, 2, 0)],
)
def test_swapped_repeated_and_dropped_chunks_are_refused(
    order: tuple[int, ...], parts: Parts, refused: Refused
) -> None:
    assert refused(with_chunks(parts, *order)) == "corrupt-payload"


def test_an_empty_payload_is_refused(parts: Parts, refused: Refused) -> None:
    for chunks in ((b"",), tuple(bytes(len(chunk)) for chunk in parts.chunks)):
        assert refused(replace(parts, chunks=chunks).data()) == "corrupt-payload"


def multiply(left: int, right: int) -> int:
    """In the field of GCM (NIST SP 800-38D §6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = (right >> 1) ^ (0xE1 << 120 if right & 1 else 0)
    return product


def insider(chunk: bytes, file_key: bytearray, file_id: bytes) -> bytes:
    """Other ciphertext under the same GCM tag, as anyone can make it who knows the key."""
    key = _derive(file_key, file_id, b"payload", 32)
    block_cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305  (one block: GCM's hash subkey)
    subkey = int.from_bytes(block_cipher.encryptor().update(bytes(16)))
    forged, change = bytearray(chunk), 1 << 64
    for block, value in ((5, change), (6, multiply(change, subkey))):
        place = slice(16 * block, 16 * block + 16)
        forged[place] = (int.from_bytes(forged[place]) ^ value).to_bytes(16)
    return bytes(forged)


def test_a_recipient_who_knows_the_file_key_cannot_forge_a_chunk(
    parts: Parts, refused: Refused, archive: Identity, publisher_key: PublisherKey
) -> None:
    fields = parts.fields()
    file_id = bytes.fromhex(fields["file_id"])
    manifest = hashlib.sha256(parts.manifest).hexdigest()
    file_key = grants.verify(*parts.grants[0], publisher_key.publisher, manifest=manifest).unwrap(archive)
    forged = insider(parts.chunks[0], file_key, file_id)
    assert forged != parts.chunks[0]

    # the cipher alone would take it: the tag is right
    target = bytearray(1 << 20)
    ChunkCipher(file_key, file_id).decrypt_into(
        0, last=False, stored=memoryview(forged), digest=hashlib.sha256(forged).digest(),
        target=memoryview(target), subject="it",
    )  # fmt: skip
    assert target != PLAIN[: 1 << 20]

    assert refused(replace(parts, chunks=(forged, *parts.chunks[1:])).data()) == "corrupt-payload"
    # and a manifest that names it is not the publisher's
    fields["payload"]["chunks"][0] = hashlib.sha256(forged).hexdigest()
    renamed = replace(parts, manifest=canonical.encode(fields), chunks=(forged, *parts.chunks[1:]))
    assert refused(renamed.data()) == "bad-signature"


def test_a_recipient_who_knows_the_file_key_cannot_encrypt_another_model(
    parts: Parts, refused: Refused, archive: Identity, publisher_key: PublisherKey
) -> None:
    manifest = hashlib.sha256(parts.manifest).hexdigest()
    file_key = grants.verify(*parts.grants[0], publisher_key.publisher, manifest=manifest).unwrap(archive)
    cipher = ChunkCipher(file_key, bytes.fromhex(parts.fields()["file_id"]))
    own = cipher.encrypt(2, last=True, plain=bytes(5000))

    assert refused(replace(parts, chunks=(*parts.chunks[:2], own)).data()) == "corrupt-payload"


# --- parts of another file of the same publisher


@pytest.fixture(scope="module")
def other(seal_bytes: Callable[..., Path], take_apart: Callable[[Path], Parts]) -> Parts:
    """Another genuine file: same publisher, recipients and size."""
    return take_apart(seal_bytes(PLAIN[::-1], version="1.0.1", sequence=4))


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ({"chunks"}, "corrupt-payload"),
        ({"grants"}, "bad-grant"),
        ({"signatures"}, "bad-signature"),
        ({"manifest"}, "bad-signature"),
        ({"manifest", "signatures"}, "bad-grant"),
        ({"manifest", "signatures", "grants"}, "corrupt-payload"),
        ({"grants", "chunks"}, "bad-grant"),
        ({"manifest", "signatures", "chunks"}, "bad-grant"),
    ],
)
def test_parts_of_another_sealed_file_do_not_fit(
    names: set[str], code: str, parts: Parts, other: Parts, opened: Opened, refused: Refused
) -> None:
    spliced = replace(parts, **{name: getattr(other, name) for name in names})

    assert refused(spliced.data()) == code
    assert opened(other.data()) == PLAIN[::-1]


def test_one_chunk_and_one_grant_of_another_file_do_not_fit(parts: Parts, other: Parts, refused: Refused) -> None:
    chunks = (*parts.chunks[:2], other.chunks[2])
    assert refused(replace(parts, chunks=chunks).data()) == "corrupt-payload"
    # every grant is verified, not only ours
    mixed = (other.grants[0], parts.grants[1])
    assert refused(replace(parts, grants=mixed).data()) == "bad-grant"


# --- what is no sealed model at all


def archive_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


PLAIN_MODELS: dict[str, Callable[[], bytes]] = {
    "safetensors": lambda: struct.pack("<Q", 2) + b"{}" + bytes(100),
    "zip": lambda: archive_of(model=b"plain"),
    "pickle": lambda: b"\x80\x04\x95" + bytes(100),
    "onnx": lambda: b"\x08\x08\x12\x07pytorch" + bytes(100),
    "gguf": lambda: b"GGUF\x03\0\0\0" + bytes(100),
    "hdf5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
    "nothing": lambda: b"",
    "a zip behind the magic": lambda: layout.MAGIC[:7] + b"\x02" + archive_of(model=b"plain"),
}


@pytest.mark.parametrize("kind", PLAIN_MODELS)
def test_a_plain_model_is_never_accepted(kind: str, refused: Refused) -> None:
    assert refused(PLAIN_MODELS[kind]()) == "not-a-sealed-model"


def test_a_plain_pt2_is_never_accepted(tiny_pt2: Path, refused: Refused) -> None:
    assert refused(tiny_pt2.read_bytes()) == "not-a-sealed-model"


def test_a_sealed_file_that_is_also_a_zip_is_only_a_sealed_file(parts: Parts, refused: Refused) -> None:
    """Zip archives are found from their end; ours end with the last chunk."""
    assert refused(parts.data() + archive_of(model=b"plain")) == "corrupt-payload"
