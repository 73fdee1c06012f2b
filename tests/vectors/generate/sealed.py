"""Make the sealed model's test vectors: ``python tests/vectors/generate/sealed.py [--anew] [directory]``.

One failure per file. Keys, file key, file id and times are fixed, so manifests, chunks and ``examples.json`` come out
the same every time; HPKE and ML-DSA draw random numbers, so the files as a whole do not. Therefore a vector that is
there is kept, and only missing ones are made, unless ``--anew`` is given. What the files mean stands in
``tests/vectors/sealed/README.md``.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pericard import canonical
from pericard.keys import Identity, PublisherKey, Signature
from pericard.sealed import Description, HostBounds, Manifest, Output, Source, Tolerance, artifact, layout
from pericard.sealed import grant as grants
from pericard.sealed.manifest import Payload
from pericard.sealed.payload import ChunkCipher, _derive
from pericard.tensors import TensorSpec

PUBLISHER = PublisherKey(bytes(range(64)))
STRANGER = PublisherKey(bytes(64))
IDENTITY = Identity(bytes(range(64, 96)))
ARCHIVE = Identity(bytes(range(96, 128)))
FILE_KEY = bytes(range(128, 160))
FILE_ID = bytes(range(160, 192))
NOW = 1_790_000_000  # 2026-09-21T14:13:20Z
DAY = 86_400
RUNTIME = "ab" * 32

Grant = tuple[bytes, tuple[Signature, ...]]
VECTORS: dict[str, tuple[Callable[[], Parts | bytes], dict[str, str]]] = {}


@dataclass(frozen=True)
class Parts:
    """A sealed file, section by section."""

    manifest: bytes
    signatures: tuple[Signature, ...]
    grants: tuple[Grant, ...]
    payload: bytes

    def data(self) -> bytes:
        """The file."""
        sections = (
            self.manifest,
            layout.pack_signatures(self.signatures),
            layout.pack_grants(tuple(layout.pack_grant(*one) for one in self.grants)),
        )
        return assemble(*sections, self.payload)


def assemble(manifest: bytes, signatures: bytes, section: bytes, payload: bytes) -> bytes:
    """Sections, whatever they are, with lengths that fit."""
    lengths = layout.Lengths(len(manifest), len(signatures), len(section))
    head = layout.pack_header(lengths) + manifest + signatures + section
    return head.ljust(lengths.payload_offset, b"\0") + payload


def plaintext(*, weights: bool = True) -> bytes:
    """An artifact: a graph of two bytes, one weight, one known answer."""
    weight = Source("weight", "parameter", "float32", (2,), memoryview(struct.pack("<2f", 1, 2)))
    question = Source("x", "answer", "float32", (1, 2), memoryview(struct.pack("<2f", 3, 4)))
    answer = Source("y", "answer", "float32", (1,), memoryview(struct.pack("<f", 11)))
    return b"".join(artifact.pack(b"{}", (weight,) * weights, (((question,), (answer,)),))[1])


PLAIN = plaintext()


def chunk(plain: bytes = PLAIN, *, last: bool = True) -> bytes:
    """The only chunk."""
    return ChunkCipher(bytearray(FILE_KEY), FILE_ID).encrypt(0, last=last, plain=plain)


def description(**changes: Any) -> Description:
    """What the manifest says of the model."""
    about = Description(
        "vector", "1.0.0", 3, 2, "exported", "Vector vendor", "test vectors", (TensorSpec("x", "float32", (-1, 2)),),
        (Output(TensorSpec("y", "float32", (-1,)), "score", 0.5),), None, 4, (1, 4), {"cpu": Tolerance(1e-6, 1e-5)},
        RUNTIME, None,
    )  # fmt: skip
    return replace(about, **changes)


def manifest_of(stored: bytes, size: int, **changes: Any) -> bytes:
    """The manifest of one chunk."""
    cipher = ChunkCipher(bytearray(FILE_KEY), FILE_ID)
    payload = Payload(size, cipher.commitment, (hashlib.sha256(stored).digest(),))
    return Manifest(FILE_ID, NOW, PUBLISHER.publisher.id, description(**changes), payload).encode()


def grant_of(manifest: bytes, identity: Identity = IDENTITY, *, key: bytes = FILE_KEY, **dates: int) -> Grant:
    """A grant for thirty days and a fortnight's grace."""
    terms = {"not_before": NOW - DAY, "not_after": NOW + 30 * DAY, "grace_days": 14} | dates
    digest = hashlib.sha256(manifest).hexdigest()
    made = grants.make(bytearray(key), identity.recipient, PUBLISHER, manifest=digest, **terms)
    (one,) = layout.unpack_grants(layout.pack_grants((made,)), subject="vector")
    return one


def sign(body: bytes, domain: str = layout.GRANT_DOMAIN, by: PublisherKey = PUBLISHER) -> tuple[Signature, ...]:
    """Both signatures."""
    return by.sign(domain, body)


def signed(manifest: bytes, stored: bytes, *made: Grant) -> Parts:
    """A file whose manifest the publisher signed; with our grant if no other is given."""
    return Parts(manifest, sign(manifest, layout.MANIFEST_DOMAIN), made or (grant_of(manifest),), stored)


def whole(plain: bytes = PLAIN, **changes: Any) -> Parts:
    """A good file."""
    stored = chunk(plain)
    return signed(manifest_of(stored, len(plain), **changes), stored)


def edited(body: bytes, **changes: Any) -> bytes:
    """Canonical JSON with other fields."""
    return canonical.encode(canonical.decode(body, limit=1 << 20) | changes)


def resigned(**changes: Any) -> Parts:
    """A good file but for fields of its manifest, all of it signed again."""
    stored = chunk()
    return signed(edited(manifest_of(stored, len(PLAIN)), **changes), stored)


def bounded(**host: Any) -> Parts:
    """A good file but for what it asks of the host."""
    return resigned(runtime={"sealed_in": RUNTIME, "required": None, "host": host})


def flip(data: bytes, place: int) -> bytes:
    """One bit turned round."""
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def with_signatures(change: Callable[[Signature, Signature], tuple[Signature, ...]]) -> Parts:
    """A good file but for the signatures under its manifest."""
    found = whole()
    return replace(found, signatures=change(*found.signatures))


def with_grant(change: Callable[[bytes, tuple[Signature, ...]], Grant]) -> Parts:
    """A good file but for its grant."""
    found = whole()
    return replace(found, grants=(change(*found.grants[0]),))


def regranted(**changes: Any) -> Parts:
    """A good file but for fields of its grant, which is signed again."""

    def change(body: bytes, _: tuple[Signature, ...]) -> Grant:
        other = edited(body, **changes)
        return other, sign(other)

    return with_grant(change)


def rewritten(old: bytes, new: bytes) -> Parts:
    """A good file but for some bytes of its manifest, which is signed like this."""
    stored = chunk()
    return signed(manifest_of(stored, len(PLAIN)).replace(old, new, 1), stored)


def relength(place: int, length: int) -> bytes:
    """A good file but for a length in its header."""
    data = whole().data()
    return data[:place] + struct.pack("<I", length) + data[place + 4 :]


def sections(*, after_signatures: bytes = b"", after_grants: bytes = b"", grants: bytes | None = None) -> bytes:
    """A good file with more in a section, or with another grants section."""
    found = whole()
    section = grants or layout.pack_grants(tuple(layout.pack_grant(*one) for one in found.grants))
    signatures = layout.pack_signatures(found.signatures) + after_signatures
    return assemble(found.manifest, signatures, section + after_grants, found.payload)


def altered(place: int) -> bytes:
    """A good file with one bit turned round."""
    data = whole().data()
    return flip(data, place % len(data))


def reindexed(change: Callable[[dict[str, Any]], object]) -> Parts:
    """A good file but for the index in its plaintext."""
    (length,) = struct.unpack_from("<I", PLAIN)
    index = canonical.decode(PLAIN[4 : 4 + length], limit=1 << 20)
    change(index)
    index_bytes = canonical.encode(index)
    return whole(struct.pack("<I", len(index_bytes)) + index_bytes + PLAIN[4 + length :])


def two_grants() -> Parts:
    """The archive's grant stands before ours."""
    found = whole()
    return replace(found, grants=(grant_of(found.manifest, ARCHIVE, not_after=(1 << 40) - 1), *found.grants))


def by_a_stranger() -> Parts:
    """Everything is signed by somebody whom nobody pinned."""
    manifest = edited(whole().manifest, publisher={"id": STRANGER.publisher.id, "name": "Vector vendor"})
    body, _ = grant_of(manifest)
    return Parts(
        manifest, sign(manifest, layout.MANIFEST_DOMAIN, STRANGER), ((body, sign(body, by=STRANGER)),), chunk()
    )


def second_grant_altered() -> Parts:
    """Our grant is good, the archive's is not."""
    found = whole()
    body, signatures = grant_of(found.manifest, ARCHIVE)
    return replace(found, grants=(*found.grants, (flip(body, 60), signatures)))


def granted(make: Callable[[bytes], Grant]) -> Parts:
    """A good file with a grant that is made for its manifest."""
    found = whole()
    return replace(found, grants=(make(found.manifest),))


def unused_bits() -> Parts:
    """The same wrapped key in other base64: four bits of it say nothing."""
    text = canonical.decode(grant_of(whole().manifest)[0], limit=1 << 20)["wrapped_key"]
    return regranted(wrapped_key=text[:-3] + chr(ord(text[-3]) + 1) + text[-2:])


def wrapped_for_another() -> Parts:
    """The archive's grant under our name."""
    return granted(
        lambda manifest: (
            body := edited(grant_of(manifest, ARCHIVE)[0], recipient=IDENTITY.recipient.id),
            sign(body),
        )
    )


def last_not_marked() -> Parts:
    """The only chunk is encrypted as if another followed."""
    stored = chunk(last=False)
    return signed(manifest_of(stored, len(PLAIN)), stored)


def vector(name: str, expect: str, why: str, make: Callable[[], Parts | bytes], **headers: object) -> None:
    """Register a vector: the code it must be refused with, or ``success``."""
    about = {"expect": expect, "why": why, "now": str(NOW)} | {key: str(value) for key, value in headers.items()}
    VECTORS[name] = (make, about)


GOOD: dict[str, object] = {"plaintext": hashlib.sha256(PLAIN).hexdigest(), "licence": "valid"}
BOUNDS = HostBounds(("avx2", "fma"), "550.120", "12.10", "9")
HOST: dict[str, object] = {"cpu": "avx2 fma sse2", "driver": "550.120.0", "cuda": "13", "cudnn": "9.0.0"}
CREATED = b'"created":%d,' % NOW
# fmt: off

# good files
vector("good", "success", "Nothing is wrong.", whole, **GOOD)
vector("good-with-two-grants", "success", "A grant for the archive stands before ours.", two_grants, **GOOD)
vector("good-with-signatures-in-the-other-order", "success", "ML-DSA-65 first: the order says nothing.",
       lambda: with_signatures(lambda ed, ml: (ml, ed)), **GOOD)
vector("good-on-its-keys-last-second", "success", "The site's trust in the key ends now.", whole, **GOOD, until=NOW)
vector("good-of-kind-onnx", "success", "The other kind; its graph is not read here either.",
       lambda: whole(kind="onnx"), **GOOD)
vector("good-in-grace", "success", "The last second of the grace days.",
       whole, **(GOOD | {"licence": "grace"}), now=NOW + 44 * DAY)

vector("good-on-a-host-that-suits", "success", "The CPU has more, and each version is the least or later.",
       lambda: whole(required_host=BOUNDS), **GOOD, **HOST)
vector("good-on-a-host-without-cuda", "success", "Bounds of CUDA do not concern who computes on the CPU.",
       lambda: whole(required_host=BOUNDS), **GOOD, cpu=HOST["cpu"])

# (1) magic, lengths, limits
vector("empty", "not-a-sealed-model", "No byte at all.", bytes)
vector("header-cut", "not-a-sealed-model", "The header lacks its last byte.", lambda: whole().data()[:19])
vector("another-version", "not-a-sealed-model", "The magic of a version that does not exist.",
       lambda: whole().data().replace(b"PERICRD\x01", b"PERICRD\x02", 1))
vector("zip-archive", "not-a-sealed-model", "The first bytes of a zip archive, as a .pt2 has them.",
       lambda: b"PK\x03\x04" + bytes(60))
vector("manifest-of-no-length", "malformed-sealed-model", "The header says that the manifest has no bytes.",
       lambda: relength(8, 0))
vector("manifest-over-the-limit", "malformed-sealed-model", "The header says 4 MiB and one byte.",
       lambda: relength(8, (4 << 20) + 1))
vector("grants-beyond-the-file", "malformed-sealed-model", "The file ends inside its grants.",
       lambda: whole().data()[:6000])

# (2) sections
vector("signature-of-unknown-algorithm", "malformed-sealed-model", "Algorithm 3 does not exist.",
       lambda: with_signatures(lambda ed, ml: (replace(ed, algorithm=3), ml)))
vector("signature-of-another-length", "malformed-sealed-model", "An Ed25519 signature of 65 bytes.",
       lambda: with_signatures(lambda ed, ml: (replace(ed, value=ed.value + b"\0"), ml)))
vector("bytes-after-the-signatures", "malformed-sealed-model", "One byte more than the signatures section needs.",
       lambda: sections(after_signatures=b"\0"))
vector("bytes-after-the-grants", "malformed-sealed-model", "One byte more than the grants section needs.",
       lambda: sections(after_grants=b"\0"))
vector("grant-of-no-length", "malformed-sealed-model", "The section holds one grant of no bytes.",
       lambda: sections(grants=b"\1\0" + bytes(4) + b"\0"))
vector("padding-not-zero", "malformed-sealed-model", "The last byte before the payload is not zero.",
       lambda: altered(-len(chunk()) - 1))

# (3) signatures
vector("no-signature", "untrusted-publisher", "The block holds none.", lambda: with_signatures(lambda *_: ()))
vector("another-publisher", "untrusted-publisher", "Manifest and grants are signed by somebody else.", by_a_stranger)
vector("manifest-altered", "bad-signature", "One bit of the manifest.", lambda: altered(100))
vector("ed25519-altered", "bad-signature", "One bit of the Ed25519 signature.",
       lambda: with_signatures(lambda ed, ml: (replace(ed, value=flip(ed.value, 5)), ml)))
vector("ml-dsa-altered", "bad-signature", "One bit of the ML-DSA-65 signature.",
       lambda: with_signatures(lambda ed, ml: (ed, replace(ml, value=flip(ml.value, 5)))))
vector("ml-dsa-missing", "bad-signature", "Ed25519 alone is not enough.", lambda: with_signatures(lambda ed, _: (ed,)))
vector("ed25519-missing", "bad-signature", "ML-DSA-65 alone is not enough.",
       lambda: with_signatures(lambda _, ml: (ml,)))
vector("ed25519-twice", "bad-signature", "Both are there, one of them twice.",
       lambda: with_signatures(lambda ed, ml: (ed, ed, ml)))
vector("signed-as-a-grant", "bad-signature", "The manifest is signed for the grants' domain.",
       lambda: replace(found := whole(), signatures=sign(found.manifest)))

# (4) the manifest
vector("manifest-not-canonical", "malformed-sealed-model", "A space after the first colon; signed like this.",
       lambda: rewritten(b":", b": "))
vector("manifest-with-a-key-twice", "malformed-sealed-model", "The created time stands twice; signed like this.",
       lambda: rewritten(CREATED, CREATED * 2))
vector("manifest-with-a-fraction", "malformed-sealed-model", "The created time has a fraction; signed like this.",
       lambda: rewritten(CREATED, CREATED.replace(b",", b".0,")))
vector("manifest-with-an-unknown-field", "malformed-sealed-model", "Signed, and nobody knows what it would mean.",
       lambda: resigned(extra=1))
vector("manifest-of-another-format", "malformed-sealed-model", "Signed, for a later version.",
       lambda: resigned(format="pericard/sealed-model/v2"))
vector("manifest-without-a-signal", "malformed-sealed-model", "The field must be there, also where it is null.",
       lambda: rewritten(b'"signal":null,', b""))
vector("floor-above-the-sequence", "malformed-sealed-model", "It withdraws itself.", lambda: whole(floor=4))
vector("publisher-of-another-name", "malformed-sealed-model", "The pinned publisher signed another one's name.",
       lambda: resigned(publisher={"id": STRANGER.publisher.id, "name": "Vector vendor"}))
vector("manifest-of-another-kind", "malformed-sealed-model", "A kind that nobody knows; signed like this.",
       lambda: rewritten(b'"kind":"exported"', b'"kind":"pickle"'))
vector("manifest-with-half-a-surrogate-pair", "malformed-sealed-model", "No text holds it; signed like this.",
       lambda: rewritten(b'"intended_use":"', b'"intended_use":"\\ud800'))
vector("manifest-with-true-for-a-number", "malformed-sealed-model", "True is not 1; signed like this.",
       lambda: rewritten(b'"sequence":3', b'"sequence":true'))
vector("sequence-above-all", "malformed-sealed-model", "A sequence of 2^53; signed like this.",
       lambda: rewritten(b'"sequence":3', b'"sequence":%d' % (1 << 53)))
vector("host-that-asks-for-nothing", "malformed-sealed-model", "It is there and says nothing; signed like this.",
       lambda: bounded(cpu_flags=[], driver=None, cuda=None, cudnn=None))
vector("host-with-flags-out-of-order", "malformed-sealed-model", "They have one order; signed like this.",
       lambda: bounded(cpu_flags=["fma", "avx2"], driver=None, cuda=None, cudnn=None))
vector("host-with-a-word-for-a-version", "malformed-sealed-model", "A version is numbers; signed like this.",
       lambda: bounded(cpu_flags=[], driver="latest", cuda=None, cudnn=None))
vector("host-with-an-unknown-bound", "malformed-sealed-model", "Signed, and nobody knows what it would mean.",
       lambda: bounded(cpu_flags=["avx2"], driver=None, cuda=None, cudnn=None, memory="1"))
vector("no-encryption", "malformed-sealed-model", "The publisher asks for no cipher.",
       lambda: rewritten(b'"aead":"A256GCM"', b'"aead":"none"'))

# (5) grants
vector("grant-with-a-later-end", "bad-signature", "The last day was edited.",
       lambda: with_grant(lambda body, by: (edited(body, not_after=NOW + 300 * DAY), by)))
vector("grant-by-another-publisher", "bad-signature", "Made and signed by somebody who knows the file key.",
       lambda: with_grant(lambda body, _: (body, sign(body, by=STRANGER))))
vector("grant-signed-once", "bad-signature", "Ed25519 alone is not enough here either.",
       lambda: with_grant(lambda body, by: (body, by[:1])))
vector("somebody-elses-grant-altered", "bad-signature", "Ours is good; but every grant is verified.",
       second_grant_altered)
vector("grant-for-another-file", "bad-grant", "A good grant of the same publisher for another manifest.",
       lambda: granted(lambda manifest: grant_of(edited(manifest, created=5))))
vector("grant-that-ends-before-it-begins", "bad-grant", "Signed by mistake.",
       lambda: regranted(not_after=NOW - 2 * DAY))
vector("grant-with-an-unknown-field", "bad-grant", "Signed, and nobody knows what it would mean.",
       lambda: regranted(hosts=5))
vector("grant-with-a-short-key", "bad-grant", "The wrapped key lacks a byte; signed.",
       lambda: regranted(wrapped_key="AAAA"))

vector("grant-with-unused-bits", "bad-grant", "The last bits of the base64 are not zero; signed.", unused_bits)

# (6) the end
vector("payload-cut", "corrupt-payload", "The last byte is missing.", lambda: whole().data()[:-1])
vector("bytes-after-the-payload", "corrupt-payload", "One byte more.", lambda: whole().data() + b"\0")

# the site's own rules
vector("no-grant-for-us", "no-grant", "Only the archive may open it.",
       lambda: granted(lambda manifest: grant_of(manifest, ARCHIVE)))
vector("before-the-first-second", "licence-not-yet-valid", "One second too early.", whole, now=NOW - DAY - 1)
vector("after-the-grace-days", "licence-expired", "One second too late.", whole, now=NOW + 44 * DAY + 1)
vector("publisher-whose-key-ended", "untrusted-publisher", "The site's trust in the key ended a second ago.",
       whole, until=NOW - 1)
vector("below-the-floor", "version-withdrawn", "The site has served a version that withdrew sequence 3.",
       whole, floor=4)
vector("another-runtime", "runtime-not-allowed", "The manifest demands a runtime that is not the site's.",
       lambda: whole(required_runtime="cd" * 32), runtime=RUNTIME)

vector("cpu-that-lacks-a-flag", "runtime-not-allowed", "The CPU can do one of two things that are asked.",
       lambda: whole(required_host=BOUNDS), **HOST | {"cpu": "avx2 sse2"})
vector("driver-that-is-too-old", "runtime-not-allowed", "Versions are numbers: 550.54 is before 550.120.",
       lambda: whole(required_host=BOUNDS), **HOST | {"driver": "550.54"})
vector("cuda-that-is-too-old", "runtime-not-allowed", "12.4 is before 12.10.",
       lambda: whole(required_host=BOUNDS), **HOST | {"cuda": "12.4"})
vector("cudnn-that-nobody-tells", "runtime-not-allowed", "What cannot be told meets no bound.",
       lambda: whole(required_host=BOUNDS), **{name: text for name, text in HOST.items() if name != "cudnn"})

# (7) (8) the file key
vector("key-wrapped-for-somebody-else", "bad-grant", "It names us; its ciphertext is the archive's.",
       wrapped_for_another)
vector("key-wrapped-for-other-terms", "bad-grant", "Other terms, signed; the ciphertext is bound to the old ones.",
       lambda: regranted(grace_days=15))
vector("another-file-key", "key-commitment-mismatch", "The grant holds another key than the manifest commits to.",
       lambda: granted(lambda manifest: grant_of(manifest, key=bytes(32))))

# (9) the chunks
vector("chunk-altered", "corrupt-payload", "One bit of the ciphertext.", lambda: altered(-40))
vector("tag-altered", "corrupt-payload", "One bit of the tag.", lambda: altered(-1))
vector("last-chunk-not-marked", "corrupt-payload", "Encrypted as if another chunk followed; signed like this.",
       last_not_marked)

# the plaintext
vector("artifact-without-an-answer", "malformed-sealed-model", "Known answers are not optional.",
       lambda: reindexed(lambda index: index.update(known_answers=[])))
vector("artifact-with-text-for-a-list", "malformed-sealed-model", "Empty text where the list of tensors should be.",
       lambda: whole(plaintext(weights=False).replace(b'"tensors":[]', b'"tensors":""')))
vector("artifact-with-a-part-over-another", "malformed-sealed-model", "The weight lies where the graph lies.",
       lambda: reindexed(lambda index: index["tensors"][0].update(offset=index["graph"]["offset"])))
vector("artifact-of-another-size-than-its-shape", "malformed-sealed-model", "Three numbers in eight bytes.",
       lambda: reindexed(lambda index: index["tensors"][0].update(shape=[3])))
# fmt: on


def examples() -> dict[str, object]:
    """What can be computed without random numbers."""
    file_key = bytearray(FILE_KEY)
    manifest = manifest_of(chunk(), len(PLAIN))
    fields = canonical.decode(grant_of(manifest)[0], limit=1 << 20)
    del fields["wrapped_key"]
    return {
        "publisher": {
            "seeds": bytes(range(64)).hex(),
            "id": PUBLISHER.publisher.id,
            "public": PUBLISHER.publisher.public.hex(),
            "key_ids": [signature.key_id.hex() for signature in sign(b"")],
        },
        "identity": {
            "seed": bytes(range(64, 96)).hex(),
            "recipient": IDENTITY.recipient.id,
            "public": IDENTITY.recipient.public.hex(),
        },
        "archive": {"seed": bytes(range(96, 128)).hex(), "recipient": ARCHIVE.recipient.id},
        "runtime": RUNTIME,
        "file_key": FILE_KEY.hex(),
        "file_id": FILE_ID.hex(),
        **{name: _derive(file_key, FILE_ID, name.encode(), size).hex() for name, size in
           (("payload", 32), ("nonce", 12), ("commitment", 32))},
        "plaintext": PLAIN.hex(),
        "chunks": [
            {"index": index, "last": last, "stored": ChunkCipher(file_key, FILE_ID).encrypt(
                index, last=last, plain=PLAIN).hex()}
            for index, last in ((0, True), (0, False), (1, True), (1 << 20, False))
        ],
        "manifest": manifest.decode("ascii"),
        "manifest_hash": hashlib.sha256(manifest).hexdigest(),
        "ed25519_signature": sign(manifest, layout.MANIFEST_DOMAIN)[0].value.hex(),
        "hpke_info": (b"pericard/v1/wrap\0" + canonical.encode(fields)).hex(),
    }  # fmt: skip


def encoded(about: dict[str, str], data: bytes) -> bytes:
    """Header lines, an empty line, the file."""
    return "".join(f"{name}: {value}\n" for name, value in about.items()).encode("ascii") + b"\n" + data


def generate(target: Path, *, anew: bool = False) -> None:
    """Write the vectors that are missing below ``target``, or all of them; and remove what is none any more."""
    target.mkdir(parents=True, exist_ok=True)
    for path in target.glob("*.vector"):
        if path.stem not in VECTORS:
            path.unlink()
    for name, (make, about) in VECTORS.items():
        path = target / f"{name}.vector"
        if anew or not path.exists():
            made = make()
            path.write_bytes(encoded(about, made if isinstance(made, bytes) else made.data()))
    (target / "examples.json").write_text(json.dumps(examples(), indent=1) + "\n", "ascii")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--anew"]
    generate(Path(words[0]) if words else Path(__file__).parents[1] / "sealed", anew="--anew" in sys.argv)
