"""P2: what opens other formats for encrypted models, tried on ours, with the daemon's way in and a real model.

Each attack works, or is documented as possible, against a format in use: names and shapes that nobody authenticates,
plain files that load although keys are configured, a marker of encryption that can be removed, tensors that are left in
the clear, tags that bind nobody who knows the key. The insider here is a hospital with a grant, so he has the file key.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sealed_regions import Load, Watch, refusal, watched

from pericard import canonical
from pericard.keys import Identity, PublisherKey, Signature
from pericard.sealed import grant as grants
from pericard.sealed import layout
from pericard.trust import Policy

Parts = Any  # a conftest's class cannot be imported
Index = dict[str, Any]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """No attack gets to the plaintext's index, and no buffer is let go of full."""
    seen = watched(monkeypatch)
    yield seen
    assert seen.reached == []
    assert seen.dirty == 0


@pytest.fixture
def load(policy: Policy, identity: Identity, now: int, quick: Path) -> Load:
    return Load(policy, identity, now, quick)


@pytest.fixture(scope="module")
def parts(sealed_model: Path, take_apart: Callable[[Path], Parts]) -> Parts:
    return take_apart(sealed_model)


class Insider:
    """A hospital that opened the file: it knows the file key, and all that follows from it."""

    def __init__(self, parts: Parts, publisher_key: PublisherKey, identity: Identity) -> None:
        manifest = hashlib.sha256(parts.manifest).hexdigest()
        grant = grants.verify(*parts.grants[1], publisher_key.publisher, manifest=manifest)
        self.file_id, self.parts = bytes.fromhex(parts.fields()["file_id"]), parts
        self._key = bytes(grant.unwrap(identity))
        self.aead = AESGCM(self.derived("payload", 32))
        assert len(parts.chunks) == 1
        self.nonce = (int.from_bytes(self.derived("nonce", 12)) ^ 1).to_bytes(12)
        self.associated = self.file_id + bytes(8) + b"\1"
        self.plain = self.aead.decrypt(self.nonce, parts.chunks[0], self.associated)

    def derived(self, label: str, size: int) -> bytes:
        return HKDF(SHA512(), size, self.file_id, b"pericard/v1/" + label.encode()).derive(self._key)

    def encrypted(self, plain: bytes) -> Parts:
        """The file with another plaintext under the right key, nonce and associated data."""
        assert len(plain) == len(self.plain)
        return replace(self.parts, chunks=(self.aead.encrypt(self.nonce, plain, self.associated),))

    def reindexed(self, change: Callable[[Index], None]) -> Parts:
        """The file with another index of the same length."""
        (length,) = struct.unpack_from("<I", self.plain)
        index = json.loads(self.plain[4 : 4 + length])
        change(index)
        encoded = canonical.encode(index)
        assert len(encoded) == length
        assert encoded != self.plain[4 : 4 + length]
        return self.encrypted(self.plain[:4] + encoded + self.plain[4 + length :])


@pytest.fixture(scope="module")
def insider(parts: Parts, publisher_key: PublisherKey, identity: Identity) -> Insider:
    return Insider(parts, publisher_key, identity)


def named_again(parts: Parts) -> Parts:
    """With a manifest that names the chunks that are there, under the old signatures."""
    fields = parts.fields()
    fields["payload"]["chunks"] = [hashlib.sha256(chunk).hexdigest() for chunk in parts.chunks]
    return replace(parts, manifest=canonical.encode(fields))


def signed_by(key: PublisherKey, parts: Parts, *, names: tuple[Signature, ...] = ()) -> Parts:
    """Manifest and grants signed by somebody, perhaps under the key ids of somebody else."""

    def sign(domain: str, body: bytes) -> tuple[Signature, ...]:
        made = key.sign(domain, body)
        return tuple(replace(one, key_id=name.key_id) for one, name in zip(made, names or made, strict=True))

    return replace(
        parts,
        signatures=sign(layout.MANIFEST_DOMAIN, parts.manifest),
        grants=tuple((body, sign(layout.GRANT_DOMAIN, body)) for body, _ in parts.grants),
    )


def refused_however_signed(parts: Parts, stranger: PublisherKey, load: Load) -> None:
    """Whatever a manifest says: unsigned, signed by a stranger, and by a stranger in the publisher's name."""
    for forged, reason in (
        (parts, "ed"),
        (replace(parts, signatures=()), "stranger"),
        (replace(parts, signatures=parts.signatures[:1]), "needs"),
        (signed_by(stranger, parts), "stranger"),
        (signed_by(stranger, parts, names=parts.signatures), "ed"),
    ):
        assert refusal("model", load(forged.data())) == reason


def test_the_untouched_model_answers(parts: Parts, insider: Insider, load: Load) -> None:
    assert load(parts.data()) == ("open", "")
    assert b'"conv.weight"' in insider.plain
    # who knows the key can make the very same chunk, so what is refused below is refused for what it says
    assert insider.encrypted(insider.plain).data() == parts.data()


# --- names and shapes


def test_names_and_shapes_of_tensors_are_not_in_the_clear(parts: Parts) -> None:
    data = parts.data()
    for name in (b"conv.weight", b"head.weight", b"graph_module", b'"role"', b"torch.ops"):
        assert name not in data


def test_swapped_names(insider: Insider, foreign_key: PublisherKey, load: Load, watch: Watch) -> None:
    def swap(index: Index) -> None:
        names = {"conv.bias": "head.bias", "head.bias": "conv.bias"}
        for tensor in index["tensors"]:
            tensor["name"] = names.get(tensor["name"], tensor["name"])

    forged = insider.reindexed(swap)
    assert refusal("model", load(forged.data())) == "chunk"
    refused_however_signed(named_again(forged), foreign_key, load)


def test_changed_shapes(insider: Insider, parts: Parts, foreign_key: PublisherKey, load: Load, watch: Watch) -> None:
    def reshape(index: Index) -> None:
        (weight,) = [tensor for tensor in index["tensors"] if tensor["name"] == "conv.weight"]
        assert weight["shape"] == [3, 1, 8]
        weight["shape"] = [8, 1, 3]

    forged = insider.reindexed(reshape)
    assert refusal("model", load(forged.data())) == "chunk"
    refused_however_signed(named_again(forged), foreign_key, load)

    fields = parts.fields()
    fields["inputs"][0]["shape"] = [-1, 1, 32]
    refused_however_signed(replace(parts, manifest=canonical.encode(fields)), foreign_key, load)


# --- plain files


def plain_pt() -> bytes:
    out = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(3, 1, 8)}, out)
    return out.getvalue()


def plain_safetensors() -> bytes:
    head = json.dumps({"conv.weight": {"dtype": "F32", "shape": [3, 1, 8], "data_offsets": [0, 96]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(96)


def plain_onnx() -> bytes:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def plain_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model.json", "{}")
    return out.getvalue()


PLAIN = {".pt": plain_pt, ".safetensors": plain_safetensors, ".onnx": plain_onnx, ".zip": plain_zip}


@pytest.mark.parametrize("kind", [*PLAIN, ".pt2"])
def test_a_plain_model_in_place_of_the_sealed_one(
    kind: str, tiny_pt2: Path, parts: Parts, load: Load, watch: Watch
) -> None:
    plain = tiny_pt2.read_bytes() if kind == ".pt2" else PLAIN[kind]()
    assert refusal("model", load(plain)) == "magic"
    assert refusal("model", load(layout.MAGIC + plain)) in {"limit", "ends"}
    # behind a genuine header, cut or filled up to the size that it names
    size = len(parts.chunks[0])
    for payload, reason in (
        (plain.ljust(size, b"\0")[:size], "chunk"),
        (plain.ljust(size + 1, b"\0"), "long"),
        (plain[:100], "short"),
    ):
        assert refusal("model", load(replace(parts, chunks=(payload,)).data())) == reason


def test_the_models_own_plaintext_in_place_of_its_ciphertext(
    insider: Insider, parts: Parts, foreign_key: PublisherKey, load: Load, watch: Watch
) -> None:
    bare = replace(parts, chunks=(insider.plain + bytes(16),))
    assert refusal("model", load(bare.data())) == "chunk"
    assert refusal("model", load(replace(parts, chunks=(insider.plain,)).data())) == "short"
    refused_however_signed(named_again(bare), foreign_key, load)


# --- the marker of encryption


def without(fields: Index, section: str, member: str | None = None) -> Index:
    if member is None:
        return {name: value for name, value in fields.items() if name != section}
    return fields | {section: {name: value for name, value in fields[section].items() if name != member}}


def test_the_marker_of_encryption_removed(
    insider: Insider, parts: Parts, publisher_key: PublisherKey, foreign_key: PublisherKey, load: Load, watch: Watch
) -> None:
    """Not even the publisher can sign a file that is not encrypted: there is no way to say it."""
    bare = replace(parts, chunks=(insider.plain + bytes(16),))
    fields = named_again(bare).fields()
    for edited in (
        *(fields | {"payload": fields["payload"] | {"aead": value}} for value in ("none", "", None, "A128GCM", 0, [])),
        without(fields, "payload", "aead"),
        without(fields, "payload", "commitment"),
        without(fields, "payload"),
    ):
        forged = replace(bare, manifest=canonical.encode(edited))
        refused_however_signed(forged, foreign_key, load)
        assert load(signed_by(publisher_key, forged).data())[0] == "malformed-sealed-model"


def test_a_file_without_grants_is_not_taken_for_a_plain_one(parts: Parts, load: Load, watch: Watch) -> None:
    assert refusal("model", load(replace(parts, grants=()).data())) == "nobody"


# --- encrypted in part


def test_a_chunk_in_the_clear_among_encrypted_ones(
    seal_bytes: Callable[..., Path],
    take_apart: Callable[[Path], Parts],
    publisher_key: PublisherKey,
    foreign_key: PublisherKey,
    archive: Identity,
    load: Load,
    watch: Watch,
) -> None:
    plain = hashlib.shake_128(b"plain").digest((2 << 20) + 5000)
    whole = take_apart(seal_bytes(plain))
    for number in range(3):
        chunks = list(whole.chunks)
        chunks[number] = plain[number << 20 :][: 1 << 20] + bytes(16)
        partial = replace(whole, chunks=tuple(chunks))
        assert refusal("model", load(partial.data())) == "chunk"
        refused_however_signed(named_again(partial), foreign_key, load)
        # signed by the publisher himself, with grants for it: its tag is none
        manifest = named_again(partial).manifest
        digest = hashlib.sha256(whole.manifest).hexdigest()
        key = grants.verify(*whole.grants[0], publisher_key.publisher, manifest=digest).unwrap(archive)
        hospital = Identity(b"hospital".ljust(32)).recipient
        packed = grants.make(key, hospital, publisher_key, manifest=hashlib.sha256(manifest).hexdigest(),
                             not_before=0, not_after=1 << 39, grace_days=0)  # fmt: skip
        section = layout.unpack_grants(layout.pack_grants((packed,)), subject="it")
        own = replace(signed_by(publisher_key, replace(partial, manifest=manifest)), grants=tuple(section))
        assert load(own.data()) == ("corrupt-payload", f"it: chunk {number} does not decrypt")
    assert watch.closed == 6


# --- the signature


def test_the_signature_removed(parts: Parts, load: Load, watch: Watch) -> None:
    data, (block, end) = parts.data(), (20 + len(parts.manifest), 20 + sum(map(len, parts.sections()[:2])))
    assert refusal("model", load(replace(parts, signatures=()).data())) == "stranger"
    assert refusal("model", load(data[:12] + bytes(4) + data[16:])) == "limit"  # a section of no bytes
    cut = data[:12] + bytes(4) + data[16:block] + data[end:]
    assert refusal("model", load(cut)) == "limit"
    for kept in parts.signatures:
        assert refusal("model", load(replace(parts, signatures=(kept,)).data())) == "needs"
    assert refusal("model", load(data[:block] + b"\0" + data[block + 1 :])) == "rest"


# --- a tag that binds nobody who knows the key (NIST SP 800-38D §6)

FIELD = (1 << 128) - 1


def times(left: int, right: int) -> int:
    """The product in GF(2^128), in GCM's order of bits."""
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = (right >> 1) ^ (0xE1 << 120 if right & 1 else 0)
    return product


def power(base: int, exponent: int) -> int:
    found = 1 << 127  # one
    while exponent:
        if exponent & 1:
            found = times(found, base)
        base, exponent = times(base, base), exponent >> 1
    return found


def forged(insider: Insider, wanted: bytes, at: int, free: int) -> bytes:
    """Another chunk with the identical tag: ``wanted`` stands at a block of its plaintext, and one free block pays.

    GHASH is the sum of each block times a power of H, so the change of the whole is nothing if the free block takes
    the sum of the other changes, divided by its own power of H.
    """
    stored, blocks = insider.parts.chunks[0], -(-len(insider.plain) // 16)
    assert free + 1 < blocks
    change = int.from_bytes(wanted) ^ int.from_bytes(insider.plain[16 * at :][: len(wanted)])
    changes = [change >> 128 * place & FIELD for place in reversed(range(len(wanted) // 16))]
    key = insider.derived("payload", 32)
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  (one block: GCM's hash subkey)
    subkey = int.from_bytes(encryptor.update(bytes(16)))

    def weight(block: int) -> int:
        return power(subkey, blocks - block + 1)  # after the last block comes that of the lengths

    owed = 0
    for place, delta in enumerate(changes, at):
        owed ^= times(delta, weight(place))
    pays = times(owed, power(weight(free), (1 << 128) - 2))  # x^(2^128 - 2) is 1/x
    made = bytearray(stored)
    for place, delta in (*enumerate(changes, at), (free, pays)):
        made[16 * place : 16 * place + 16] = (int.from_bytes(made[16 * place :][:16]) ^ delta).to_bytes(16)
    return bytes(made)


def test_other_ciphertext_with_the_identical_tag(
    insider: Insider, parts: Parts, foreign_key: PublisherKey, load: Load, watch: Watch
) -> None:
    stored = parts.chunks[0]
    at = len(insider.plain) // 32
    text = b"these are no longer the vendor's own weights, ha"
    assert len(text) % 16 == 0
    made = forged(insider, text, at, free=at + 5)

    # the attack is real: the tag is the same, and AES-GCM takes it
    assert made != stored
    assert made[-16:] == stored[-16:]
    assert insider.aead.decrypt(insider.nonce, made, insider.associated)[16 * at :].startswith(text)
    with pytest.raises(InvalidTag):  # and no chance: the block that pays has to be that one
        insider.aead.decrypt(insider.nonce, made[:-20] + bytes([made[-20] ^ 1]) + made[-19:], insider.associated)

    spliced = replace(parts, chunks=(made,))
    assert refusal("model", load(spliced.data())) == "chunk"
    assert watch.closed == 1
    refused_however_signed(named_again(spliced), foreign_key, load)
