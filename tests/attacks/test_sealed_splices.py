"""P2, beyond one region: whole parts of other files, chunks in every order, terms, blocks, counts, older versions.

Everything here is well formed, so that signatures and hashes have to tell. What is expected of a splice follows from
the order of the steps, and is worked out by rule; ``test_sealed_matrix.py`` turns over the bytes themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sealed_regions import Load, Watch, grant_fields, model_fields, notice_fields, refusal, watched

from pericard import canonical
from pericard.errors import PericardError
from pericard.keys import Identity, Publisher, PublisherKey, Signature
from pericard.sealed import SealedModel, Source, artifact, detached, layout, notice
from pericard.trust import Policy

VECTORS = Path(__file__).parents[1] / "vectors" / "sealed"
SECTIONS = ("manifest", "signatures", "grants", "chunks")
DAY = 86_400
Parts = Any  # a conftest's class cannot be imported


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Nothing here gets further than to its plaintext's index, unless a test says so; no buffer is let go of full."""
    seen = watched(monkeypatch)
    yield seen
    assert seen.reached == []
    assert seen.dirty == 0


@pytest.fixture
def load(policy: Policy, identity: Identity, now: int, quick: Path) -> Load:
    return Load(policy, identity, now, quick)


@pytest.fixture(scope="module")
def make(seal_bytes: Callable[..., Path], take_apart: Callable[[Path], Parts]) -> Callable[..., Parts]:
    """Seal an artifact of three chunks, and take the file apart."""

    def run(seed: bytes, **how: Any) -> Parts:
        weight = Source("w", "parameter", "uint8", (1 << 21,), memoryview(hashlib.shake_128(seed).digest(1 << 21)))
        answer = Source("a", "answer", "uint8", (1,), memoryview(b"\5"))
        _, parts = artifact.pack(b"{}", (weight,), (((answer,), (answer,)),))
        return take_apart(seal_bytes(b"".join(parts), **how))

    return run


@pytest.fixture(scope="module")
def ours(make: Callable[..., Parts]) -> Parts:
    return make(b"ours")


@pytest.fixture(scope="module")
def same(make: Callable[..., Parts]) -> Parts:
    """Another file of the same publisher, for the same hospitals."""
    return make(b"same", version="1.0.1", sequence=4, floor=3)


@pytest.fixture(scope="module")
def other(make: Callable[..., Parts], foreign_key: PublisherKey) -> Parts:
    """A file of another publisher, for the same hospitals."""
    return make(b"other", signer=foreign_key)


def test_what_was_put_together_again_opens(ours: Parts, same: Parts, other: Parts, load: Load) -> None:
    assert [refusal("model", load(parts.data())) for parts in (ours, same, other)] == ["opens", "opens", "stranger"]


# --- parts of other files


def told(taken: set[str], source: str) -> str:
    """What refuses a file of ours with these sections of another: the first step that sees two files."""
    if source == "other":
        steps = (("signatures", "stranger"), ("manifest", "ed"), ("grants", "g-ed-key"), ("chunks", "chunk"))
        return next(reason for section, reason in steps if section in taken)
    together = {section for section in SECTIONS if (section in taken) is ("manifest" in taken)}
    steps = (("signatures", "ed"), ("grants", "g-other"), ("chunks", "chunk"))
    return next(reason for section, reason in steps if section not in together)


@pytest.mark.parametrize("source", ["same", "other"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sections_of_another_file(
    source: str, count: int, ours: Parts, same: Parts, other: Parts, load: Load, watch: Watch
) -> None:
    theirs = {"same": same, "other": other}[source]
    for taken in itertools.combinations(SECTIONS, count):
        spliced = replace(ours, **{section: getattr(theirs, section) for section in taken})
        assert refusal("model", load(spliced.data())) == told(set(taken), source), taken


@pytest.mark.parametrize("source", ["same", "other"])
def test_one_grant_or_one_chunk_of_another_file(
    source: str, ours: Parts, same: Parts, other: Parts, load: Load, watch: Watch
) -> None:
    theirs = {"same": same, "other": other}[source]
    for section in ("grants", "chunks"):
        for place in range(len(getattr(ours, section))):
            pieces = list(getattr(ours, section))
            pieces[place] = getattr(theirs, section)[place]
            assert refusal("model", load(replace(ours, **{section: tuple(pieces)}).data())) == told({section}, source)
    assert watch.closed == 3  # three chunks; no buffer for the grants


def test_chunks_in_every_order(ours: Parts, load: Load, watch: Watch) -> None:
    """Dropped, repeated, swapped: every way to fill two, three and four places with these three chunks."""
    size = sum(map(len, ours.chunks))
    for count in (0, 1, 2, 3, 4):
        for order in itertools.product(range(3), repeat=count):
            chunks = tuple(ours.chunks[number] for number in order)
            found = refusal("model", load(replace(ours, chunks=chunks).data()))
            made = sum(map(len, chunks))
            expected = "long" if made > size else "short" if made < size else "chunk"
            assert found == ("opens" if order == (0, 1, 2) else expected), order
    assert watch.reached.count("parser") == 1  # the one in order
    assert watch.dirty == 1
    watch.reached.clear()
    watch.dirty = 0


# --- what is signed


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [found for key, item in items for found in leaves(item, (*path, key))]
    yield from below or [path]


def changed(body: bytes, path: tuple[str | int, ...]) -> bytes:
    """Canonical JSON with another value of the same kind at one place."""
    fields = canonical.decode(body, limit=layout.MAX_MANIFEST)
    holder: Any = fields
    for key in path[:-1]:
        holder = holder[key]
    value = holder[path[-1]]
    holder[path[-1]] = {int: lambda: value + 1, str: lambda: value[:-1] + chr(ord(value[-1]) ^ 1)}.get(
        type(value), lambda: 0
    )()
    return canonical.encode(fields)


def masked(signatures: tuple[Signature, ...], names: tuple[Signature, ...]) -> tuple[Signature, ...]:
    """Signatures under the key ids of others."""
    return tuple(replace(one, key_id=name.key_id) for one, name in zip(signatures, names, strict=True))


def test_every_value_of_the_manifest(ours: Parts, load: Load, foreign_key: PublisherKey, watch: Watch) -> None:
    """Edited; edited and signed by a stranger; and that under the publisher's key ids."""
    paths = list(leaves(ours.fields()))
    assert len(paths) > 40
    for path in paths:
        manifest = changed(ours.manifest, path)
        theirs = foreign_key.sign(layout.MANIFEST_DOMAIN, manifest)
        for signatures, reason in (
            (ours.signatures, "ed"),
            (theirs, "stranger"),
            (masked(theirs, ours.signatures), "ed"),
            ((theirs[0], ours.signatures[1]), "ed-key"),
            ((ours.signatures[0], theirs[1]), "ed"),
        ):
            forged = replace(ours, manifest=manifest, signatures=signatures)
            assert refusal("model", load(forged.data())) == reason, path


def test_every_term_of_a_grant(ours: Parts, load: Load, foreign_key: PublisherKey, watch: Watch) -> None:
    archives, (body, signatures) = ours.grants
    paths = list(leaves(canonical.decode(body, limit=layout.MAX_GRANT)))
    assert len(paths) == 7
    for path in paths:
        edited = changed(body, path)
        theirs = foreign_key.sign(layout.GRANT_DOMAIN, edited)
        for by, reason in (
            (signatures, "g-ed"),
            (theirs, "g-ed-key"),
            (masked(theirs, signatures), "g-ed"),
            ((signatures[0], theirs[1]), "g-ed"),
        ):
            forged = replace(ours, grants=(archives, (edited, by)))
            assert refusal("model", load(forged.data())) == reason, path


def variants(own: tuple[Signature, ...], theirs: tuple[Signature, ...], elsewhere: tuple[Signature, ...]) -> Any:
    """Signature blocks, and why they do not do; a stranger is told where nothing else names the publisher."""
    (ed, ml), (foreign_ed, foreign_ml) = own, theirs
    return (
        ("none", (), "needs"),
        ("Ed25519 alone", (ed,), "needs"),
        ("ML-DSA-65 alone", (ml,), "needs"),
        ("one twice", (ed, ed, ml), "needs"),
        ("one twice, the other absent", (ed, ed), "needs"),
        ("a stranger's beside ours", (ed, ml, foreign_ed), "needs"),
        ("a stranger's alone", theirs, "ed-key"),
        ("a stranger's Ed25519", (foreign_ed, ml), "ed-key"),
        ("a stranger's ML-DSA-65", (ed, foreign_ml), "ml-key"),
        ("a stranger's Ed25519 in our name", (replace(foreign_ed, key_id=ed.key_id), ml), "ed"),
        ("a stranger's ML-DSA-65 in our name", (ed, replace(foreign_ml, key_id=ml.key_id)), "ml"),
        ("of zeros", (replace(ed, value=bytes(64)), ml), "ed"),
        ("of zeros, ML-DSA-65", (ed, replace(ml, value=bytes(3309))), "ml"),
        ("for another purpose", elsewhere, "ed"),
        ("for another purpose in part", (ed, elsewhere[1]), "ml"),
        ("in the other order", (ml, ed), "opens"),
    )


def test_every_signature_block(
    ours: Parts, load: Load, publisher_key: PublisherKey, foreign_key: PublisherKey, watch: Watch
) -> None:
    archives, (body, by) = ours.grants
    theirs = foreign_key.sign(layout.MANIFEST_DOMAIN, ours.manifest)
    elsewhere = publisher_key.sign(layout.GRANT_DOMAIN, ours.manifest)
    for name, block, reason in variants(ours.signatures, theirs, elsewhere):
        told = "stranger" if name in {"none", "a stranger's alone"} else reason
        assert refusal("model", load(replace(ours, signatures=block).data())) == told, name

    theirs = foreign_key.sign(layout.GRANT_DOMAIN, body)
    elsewhere = publisher_key.sign(layout.NOTICE_DOMAIN, body)
    for name, block, reason in variants(by, theirs, elsewhere):
        told = reason if reason == "opens" else f"g-{reason}"
        assert refusal("model", load(replace(ours, grants=(archives, (body, block))).data())) == told, name
    assert watch.reached.count("parser") == watch.dirty == 2  # the other order, twice
    watch.reached.clear()
    watch.dirty = 0


def test_the_number_and_the_order_of_grants(ours: Parts, load: Load) -> None:
    """They say nothing: whoever can write the file can leave a grant out, and gains nothing by it."""
    archives, hospitals = ours.grants
    for grants, reason in (
        ((hospitals, archives), "opens"),
        ((archives, hospitals, hospitals), "opens"),
        ((hospitals,), "opens"),
        ((archives,), "nobody"),
        ((archives, archives), "nobody"),
        ((), "nobody"),
    ):
        assert refusal("model", load(replace(ours, grants=grants).data())) == reason
    data = ours.data()
    place = 20 + len(ours.manifest) + len(ours.sections()[1])
    for count, reason in ((0, "g-rest"), (1, "g-rest"), (3, "g-cut"), (65535, "g-cut")):
        assert refusal("model", load(data[:place] + struct.pack("<H", count) + data[place + 2 :])) == reason


# --- older ones


def test_a_version_that_was_withdrawn(ours: Parts, same: Parts, load: Load, policy: Policy, watch: Watch) -> None:
    publisher = ours.fields()["publisher"]["id"]
    policy.state.commit(policy.state.current.with_floor(publisher, "tiny", 4))

    assert refusal("model", load(ours.data())) == "older"
    # its own manifest cannot be talked out of it, nor lent the younger one's
    assert refusal("model", load(replace(ours, manifest=changed(ours.manifest, ("model", "sequence"))).data())) == "ed"
    lent = replace(ours, manifest=same.manifest, signatures=same.signatures)
    assert refusal("model", load(lent.data())) == "g-other"


@pytest.mark.parametrize("magic", [b"PERICRD\0", b"PERICRD\2", b"PERICRD\xff", b"pericrd\1", b"PERICARD"])
def test_another_version_of_the_format(magic: bytes, ours: Parts, load: Load, watch: Watch) -> None:
    assert refusal("model", load(magic + ours.data()[8:])) == "magic"


# --- one bit of every byte


def body(name: str) -> bytes:
    return (VECTORS / f"{name}.vector").read_bytes().partition(b"\n\n")[2]


def flipped(path: Path, data: bytes) -> Iterator[int]:
    """The file with one bit turned round, at each byte after the other."""
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            file.seek(place)
            file.write(bytes([byte ^ 1 << place % 8]))
            yield place
            file.seek(place)
            file.write(bytes([byte]))
    assert path.read_bytes() == data


def test_one_bit_of_every_byte_of_a_sealed_model(policy: Policy, quick: Path, watch: Watch, now: int) -> None:
    data, codes = body("good-with-two-grants"), dict[str, int]()
    identity = Identity(bytes(range(64, 96)))  # that of the vectors
    load = Load(policy, identity, now, quick)
    assert load(data)[0] == "forbidden-graph"
    watch.reached.clear()
    watch.dirty = 0
    fields = model_fields(data)
    regions = [name for name, region in fields.items() for _ in region]

    for place in flipped(quick / "it", data):
        code = load.again()[0]
        codes[code] = codes.get(code, 0) + 1
        if not regions[place].startswith("chunk"):
            assert code in {"not-a-sealed-model", "malformed-sealed-model", "bad-signature"}, regions[place]
    assert codes["corrupt-payload"] == sum(len(fields[name]) for name in fields if name.startswith("chunk"))
    assert codes["not-a-sealed-model"] == 8
    assert sum(codes.values()) == len(data) > 12_000
    assert set(codes) == {"not-a-sealed-model", "malformed-sealed-model", "bad-signature", "corrupt-payload"}


def test_one_bit_of_every_byte_of_a_detached_grant_and_of_a_notice(quick: Path, publisher_key: PublisherKey) -> None:
    publisher = publisher_key.publisher
    (quick / "it.sealed").write_bytes(body("no-grant-for-us"))
    with SealedModel(quick / "it.sealed") as source:
        model = source.verify([publisher])

    def add(path: Path, _: Publisher) -> None:
        for packed in detached.read_grants(path):
            model.add_grant(*packed)

    def note(path: Path, by: Publisher) -> None:
        notice.read(path, [by])

    for name, fields, read, framing in (
        ("grants/good", grant_fields, add, "bad-grant"),
        ("notices/good", notice_fields, note, "bad-notice"),
    ):
        data, codes = body(name), set()
        assert b"".join(fields(data).values()) == data
        read_it: Callable[[Path, Publisher], None] = read
        for _ in flipped(quick / "it", data):
            with pytest.raises(PericardError) as caught:
                read_it(quick / "it", publisher)
            codes.add(caught.value.code)
        assert codes == {framing, "bad-signature"}
    assert len(model.grants) == 1
