"""P2, as a table: every region of a sealed model, of a detached grant and of a notice, under every operation.

A cell names the reason of its refusal; a reason has a code and a message, and no message is that of two reasons. Models
go through ``runtime.loader.load``, the daemon's way in, with a watch on what must not be reached: the plaintext's
parser, a tensor, a backend; and every buffer is zeroed. ``=`` stands where an operation changes nothing. What was moved
breaks the first rule of the framing that it meets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sealed_regions import (
    Load,
    Verdict,
    Watch,
    grant_fields,
    means,
    model_fields,
    notice_fields,
    operations,
    refusal,
    table,
    watched,
)

from pericard.errors import PericardError
from pericard.keys import Identity, PublisherKey
from pericard.sealed import SealedModel, Source, Term, artifact, layout, notice
from pericard.sealed import grant as grants
from pericard.trust import Policy

Three = tuple[bytes, bytes, bytes]
Terms = tuple[Term, ...]

MODEL = """
region                      flip      drop     repeat   append   same      other
magic                       magic     magic    moved    moved    =         =
manifest length             kind      moved    moved    moved    =         =
signatures length           rest      moved    moved    moved    =         =
grants length               g-cut     moved    moved    moved    =         =
manifest                    ed        moved    moved    moved    ed        ed
signature count             cut       moved    moved    moved    =         =
ed25519 algorithm           kind      moved    moved    moved    =         =
ed25519 key id              ed-key    moved    moved    moved    =         ed-key
ed25519 length              kind      moved    moved    moved    =         =
ed25519 signature           ed        moved    moved    moved    ed        ed
ml-dsa algorithm            kind      moved    moved    moved    =         =
ml-dsa key id               ml-key    moved    moved    moved    =         ml-key
ml-dsa length               kind      moved    moved    moved    =         =
ml-dsa signature            ml        moved    moved    moved    ml        ml
grant count                 g-cut     moved    moved    moved    =         =
grant 1 length              g-kind    moved    moved    moved    =         =
grant 1 body                g-ed      moved    moved    moved    g-ed      g-ed
grant 1 signature count     g-kind    moved    moved    moved    =         =
grant 1 ed25519 algorithm   g-kind    moved    moved    moved    =         =
grant 1 ed25519 key id      g-ed-key  moved    moved    moved    =         g-ed-key
grant 1 ed25519 length      g-kind    moved    moved    moved    =         =
grant 1 ed25519 signature   g-ed      moved    moved    moved    g-ed      g-ed
grant 1 ml-dsa algorithm    g-kind    moved    moved    moved    =         =
grant 1 ml-dsa key id       g-ml-key  moved    moved    moved    =         g-ml-key
grant 1 ml-dsa length       g-kind    moved    moved    moved    =         =
grant 1 ml-dsa signature    g-ml      moved    moved    moved    g-ml      g-ml
grant 2 length              g-kind    moved    moved    moved    =         =
grant 2 body                g-ed      moved    moved    moved    g-ed      g-ed
grant 2 signature count     g-cut     moved    moved    moved    =         =
grant 2 ed25519 algorithm   g-kind    moved    moved    moved    =         =
grant 2 ed25519 key id      g-ed-key  moved    moved    moved    =         g-ed-key
grant 2 ed25519 length      g-kind    moved    moved    moved    =         =
grant 2 ed25519 signature   g-ed      moved    moved    moved    g-ed      g-ed
grant 2 ml-dsa algorithm    g-kind    moved    moved    moved    =         =
grant 2 ml-dsa key id       g-ml-key  moved    moved    moved    =         g-ml-key
grant 2 ml-dsa length       g-kind    moved    padding  padding  =         =
grant 2 ml-dsa signature    g-ml      padding  padding  long     g-ml      g-ml
padding                     padding   padding  long     long     =         =
chunk 1 ciphertext          chunk     short    long     long     chunk     chunk
chunk 1 tag                 chunk     short    long     long     chunk     chunk
chunk 2 ciphertext          chunk     short    long     long     chunk     chunk
chunk 2 tag                 chunk     short    long     long     chunk     chunk
chunk 3 ciphertext          chunk     short    long     long     chunk     chunk
chunk 3 tag                 chunk     short    long     long     chunk     chunk
"""
GRANT = """
region                      flip      drop     repeat   append   same      other
grant count                 rest      moved    moved    moved    =         =
grant 1 length              kind      moved    moved    moved    =         =
grant 1 body                ed        moved    moved    moved    ed        ed
grant 1 signature count     cut       moved    moved    moved    =         =
grant 1 ed25519 algorithm   kind      moved    moved    moved    =         =
grant 1 ed25519 key id      ed-key    moved    moved    moved    =         ed-key
grant 1 ed25519 length      kind      moved    moved    moved    =         =
grant 1 ed25519 signature   ed        moved    moved    moved    ed        ed
grant 1 ml-dsa algorithm    kind      moved    moved    moved    =         =
grant 1 ml-dsa key id       ml-key    moved    moved    moved    =         ml-key
grant 1 ml-dsa length       kind      moved    moved    moved    =         =
grant 1 ml-dsa signature    ml        moved    moved    moved    ml        ml
"""
NOTICE = """
region                      flip      drop     repeat   append   same      other
length                      frame     moved    moved    moved    =         =
body                        ed        moved    moved    moved    ed        ed
signature count             frame     moved    moved    moved    =         =
ed25519 algorithm           frame     moved    moved    moved    =         =
ed25519 key id              ed-key    moved    moved    moved    =         ed-key
ed25519 length              frame     moved    moved    moved    =         =
ed25519 signature           ed        moved    moved    moved    ed        ed
ml-dsa algorithm            frame     moved    moved    moved    =         =
ml-dsa key id               ml-key    moved    moved    moved    =         ml-key
ml-dsa length               frame     moved    moved    moved    =         =
ml-dsa signature            ml        moved    moved    moved    ml        ml
"""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return watched(monkeypatch)


@pytest.fixture
def load(policy: Policy, identity: Identity, now: int, quick: Path) -> Load:
    return Load(policy, identity, now, quick)


@pytest.fixture(scope="module")
def make(seal_bytes: Callable[..., Path]) -> Callable[..., Path]:
    """Seal an artifact of three chunks."""

    def run(seed: bytes, **how: Any) -> Path:
        weight = Source("w", "parameter", "uint8", (1 << 21,), memoryview(hashlib.shake_128(seed).digest(1 << 21)))
        answer = Source("a", "answer", "uint8", (1,), memoryview(b"\5"))
        _, parts = artifact.pack(b"{}", (weight,), (((answer,), (answer,)),))
        return seal_bytes(b"".join(parts), **how)

    return run


@pytest.fixture(scope="module")
def same(make: Callable[..., Path]) -> Path:
    """Another file of the same publisher."""
    return make(b"same", version="1.0.1", sequence=4, floor=3)


@pytest.fixture(scope="module")
def files(make: Callable[..., Path], same: Path, foreign_key: PublisherKey) -> Three:
    """Ours, another of the same publisher, and one of another publisher; every region of the same length."""
    found = make(b"ours").read_bytes(), same.read_bytes(), make(b"other", signer=foreign_key).read_bytes()
    assert len({tuple(map(len, model_fields(data).values())) for data in found}) == 1
    return found


@pytest.fixture(scope="module")
def withheld(make: Callable[..., Path], terms: Terms) -> Path:
    """A sealed model that only the archive may open."""
    return make(b"withheld", terms=terms[:1])


@pytest.fixture(scope="module")
def sections(
    withheld: Path, same: Path, terms: Terms, publisher_key: PublisherKey, foreign_key: PublisherKey, archive: Identity
) -> Three:
    """Detached grants for the hospital: ours, one for another file, and one for ours by another publisher."""
    found = []
    for path, by in ((withheld, publisher_key), (same, publisher_key), (withheld, foreign_key)):
        with SealedModel(path) as source:
            model = source.verify([publisher_key.publisher])
        file_key = model.grants_for(archive.recipient.id)[0].unwrap(archive)
        packed = grants.for_term(file_key, terms[1], by, manifest=model.manifest_hash)
        found.append(layout.pack_grants((packed,)))
    return found[0], found[1], found[2]


@pytest.fixture(scope="module")
def notices(publisher_key: PublisherKey, foreign_key: PublisherKey, now: int) -> Three:
    """Notices: ours, a later one of the same publisher, and one by another publisher."""
    made = ((publisher_key, 5), (publisher_key, 9), (foreign_key, 5))
    ours, same, other = (notice.make(key, "tiny", floor=floor, issued=now) for key, floor in made)
    return ours, same, other


# --- the tables


def test_the_tables_are_whole(files: Three, sections: Three, notices: Three) -> None:
    for text, cut, data in (
        (MODEL, model_fields, files[0]), (GRANT, grant_fields, sections[0]), (NOTICE, notice_fields, notices[0]),
    ):  # fmt: skip
        fields = cut(data)
        assert list(dict.fromkeys(region for region, _, _ in table(text))) == list(fields)
        assert b"".join(fields.values()) == data


def test_the_watch_sees_what_opens(sealed_model: Path, load: Load, watch: Watch) -> None:
    assert load(sealed_model.read_bytes()) == ("open", "")
    assert set(watch.reached) == {"parser", "tensor", "backend"}
    assert (watch.closed, watch.dirty) == (2, 2)  # the artifact, and the weights that were folded


def test_what_nobody_touched_gets_to_its_graph(files: Three, load: Load, watch: Watch) -> None:
    """So whatever stops a cell of the table before, stops it because of the cell."""
    for data in files[:2]:
        assert load(data)[0] == "forbidden-graph"
    assert set(watch.reached) == {"parser", "tensor", "backend"}
    assert load(files[2])[0] == "untrusted-publisher"


@pytest.mark.parametrize("operation", ["flip", "drop", "repeat", "append", "same", "other"])
def test_every_region_of_a_sealed_model(operation: str, files: Three, load: Load, watch: Watch) -> None:
    ours, same, other = map(model_fields, files)
    cells = [(region, reason) for region, how, reason in table(MODEL) if how == operation]
    for region, reason in cells:
        data = operations(ours, same, other, region)[operation]
        assert (data == files[0]) is (reason == "=")
        if reason != "=":
            assert means(reason, refusal("model", load(data))), (region, operation)
    assert watch.reached == []
    assert watch.dirty == 0
    assert watch.closed == sum(reason == "chunk" for _, reason in cells)  # nothing earlier even had a buffer


def test_every_region_of_a_detached_grant(sections: Three, withheld: Path, load: Load, watch: Watch) -> None:
    model = withheld.read_bytes()
    assert load(model)[0] == "no-grant"
    assert load(model, sections[0])[0] == "forbidden-graph"  # it is what opens the file
    watch.reached.clear()

    ours, same, other = map(grant_fields, sections)
    for region, how, reason in table(GRANT):
        section = operations(ours, same, other, region)[how]
        assert (section == sections[0]) is (reason == "=")
        if reason != "=":
            assert means(reason, refusal("grant", load(model, section))), (region, how)
    assert watch.reached == []


def test_every_region_of_a_notice(notices: Three, publisher_key: PublisherKey) -> None:
    def verdict(data: bytes) -> Verdict:
        try:
            notice.verify(data, [publisher_key.publisher], subject="it")
        except PericardError as error:
            return error.code, error.message
        return "open", ""

    ours, same, other = map(notice_fields, notices)
    assert verdict(notices[0]) == verdict(notices[1]) == ("open", "")
    for region, how, reason in table(NOTICE):
        data = operations(ours, same, other, region)[how]
        assert (data == notices[0]) is (reason == "=")
        if reason != "=":
            assert means(reason, refusal("notice", verdict(data))), (region, how)
