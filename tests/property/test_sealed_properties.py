"""Whatever is written is read back the same, and no bytes at all make a reader fail in a way of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed_strategies import manifests, objects, tensors, values

from pericard import canonical
from pericard.errors import ForbiddenGraph, KeyFileError, MalformedModel, PericardError, TrustStateInvalid
from pericard.keys import Identity, PublisherKey, Signature
from pericard.sealed import Manifest, SealedModel, Source, artifact, layout, manifest
from pericard.sealed import grant as grants
from pericard.sealed.payload import rechunk, split
from pericard.trust import TrustState

quick = settings(deadline=None, max_examples=40)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to overwrite with each example."""
    return tmp_path_factory.mktemp("property") / "it"


# --- canonical JSON


@given(objects)
@quick
def test_canonical_json_round_trips(value: dict[str, Any]) -> None:
    encoded = canonical.encode(value)

    assert canonical.decode(encoded, limit=len(encoded)) == value
    assert encoded == json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


@given(st.binary(max_size=200) | any_json.map(lambda value: json.dumps(value).encode()))
@quick
def test_what_is_decoded_encodes_to_the_very_same_bytes(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert canonical.encode(canonical.decode(data, limit=10_000)) == data


# --- layout


signatures = st.tuples(
    st.sampled_from([(1, 64), (2, 3309)]), st.binary(min_size=32, max_size=32), st.binary(max_size=8)
).map(lambda made: Signature(made[0][0], made[1], made[2].ljust(made[0][1], b"\0")))
blocks = st.lists(signatures, max_size=3).map(tuple)
packed = st.lists(st.tuples(st.binary(min_size=1, max_size=300), blocks), max_size=4)


@given(st.integers(1, 4 << 20), st.integers(1, 16 << 10), st.integers(1, 32 << 20))
@quick
def test_the_header_round_trips(manifest_size: int, signatures_size: int, grants_size: int) -> None:
    lengths = layout.Lengths(manifest_size, signatures_size, grants_size)

    assert layout.unpack_header(layout.pack_header(lengths), subject="it") == lengths
    assert lengths.payload_offset % 4096 == 0
    assert 0 <= lengths.payload_offset - (20 + manifest_size + signatures_size + grants_size) < 4096


@given(blocks, st.binary(max_size=10))
@quick
def test_a_signature_block_round_trips(made: tuple[Signature, ...], rest: bytes) -> None:
    block = layout.pack_signatures(made)

    assert layout.unpack_signatures(rest + block + rest, len(rest), subject="it") == (made, len(rest) + len(block))


@given(packed)
@quick
def test_a_grants_section_round_trips(made: list[tuple[bytes, tuple[Signature, ...]]]) -> None:
    section = layout.pack_grants(tuple(layout.pack_grant(*grant) for grant in made))

    assert layout.unpack_grants(section, subject="it") == made


@given(packed, st.data())
@quick
def test_a_grants_section_cut_anywhere_is_refused(made: list[Any], data: st.DataObject) -> None:
    section = layout.pack_grants(tuple(layout.pack_grant(*grant) for grant in made))
    cut = section[: data.draw(st.integers(0, len(section) - 1))]

    with pytest.raises(MalformedModel):
        layout.unpack_grants(cut, subject="it")


# --- manifest


@given(manifests())
@quick
def test_a_manifest_round_trips(made: Manifest) -> None:
    found = manifest.parse(made.encode(), subject="it")

    assert found.encode() == made.encode()
    assert replace(found, description=made.description) == made
    assert (found.description.inputs, found.description.buckets) == (made.description.inputs, made.description.buckets)


@given(st.binary(max_size=300) | objects.map(canonical.encode))
@quick
def test_no_bytes_make_the_manifests_reader_fail_otherwise(data: bytes) -> None:
    with pytest.raises(MalformedModel):
        manifest.parse(data, subject="it")


@given(manifests(), st.data())
@quick
def test_no_value_makes_the_manifests_reader_fail_otherwise(made: Manifest, data: st.DataObject) -> None:
    fields: Any = canonical.decode(made.encode(), limit=layout.MAX_MANIFEST)
    holder = fields
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], dict | list) or not holder[key] or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(values)
    with contextlib.suppress(MalformedModel):
        assert manifest.parse(canonical.encode(fields), subject="it").encode() == canonical.encode(fields)


# --- grants, artifacts, chunks


@given(objects)
@quick
def test_no_signed_object_makes_the_grants_reader_fail_otherwise(value: dict[str, Any]) -> None:
    signer = PublisherKey(bytes(range(64)))
    body = canonical.encode(value)
    with pytest.raises(PericardError):
        grants.verify(body, signer.sign(layout.GRANT_DOMAIN, body), signer.publisher, manifest="00" * 32)


@given(st.data())
@quick
def test_no_value_makes_the_grants_reader_fail_otherwise(data: st.DataObject) -> None:
    signer = PublisherKey(bytes(range(64)))
    made = grants.make(
        bytearray(32), Identity(bytes(32)).recipient, signer,
        manifest="00" * 32, not_before=1, not_after=2, grace_days=0,
    )  # fmt: skip
    ((body, _),) = layout.unpack_grants(layout.pack_grants((made,)), subject="it")
    fields = canonical.decode(body, limit=layout.MAX_GRANT)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(values | st.integers(0, 5))
    changed = canonical.encode(fields)
    with contextlib.suppress(PericardError):
        grants.verify(changed, signer.sign(layout.GRANT_DOMAIN, changed), signer.publisher, manifest="00" * 32)


@given(st.binary(max_size=100), st.lists(tensors, max_size=5, unique_by=lambda source: source.name))
@quick
def test_an_artifact_round_trips(graph: bytes, made: list[Source]) -> None:
    answer = Source("a", "answer", "uint8", (1,), memoryview(b"\5"))
    size, parts = artifact.pack(graph, tuple(made), (((answer,), (answer,)),))
    plain = b"".join(parts)
    found = artifact.parse(memoryview(plain), subject="it")

    assert len(plain) == size
    assert plain[found.graph[0] : sum(found.graph)] == graph
    assert [(t.name, t.dtype, t.shape, t.size) for t in found.tensors] == [
        (source.name, source.dtype, source.shape, len(source.data)) for source in made
    ]


@given(st.binary(max_size=300), st.integers(0, 400))
@quick
def test_no_bytes_make_the_artifacts_reader_fail_otherwise(data: bytes, length: int) -> None:
    for plain in (data, length.to_bytes(4, "little") + data):
        with pytest.raises(MalformedModel):
            artifact.parse(memoryview(plain), subject="it")


@given(objects, st.sampled_from(["format", "graph", "tensors", "known_answers"]), values)
@quick
def test_no_index_makes_the_artifacts_reader_fail_otherwise(more: dict[str, Any], key: str, value: Any) -> None:
    good = {"format": artifact.FORMAT, "graph": {"offset": 0, "size": 0}, "tensors": [], "known_answers": [{}]}
    for index in (more, good | {key: value}, good | {"tensors": [value]}, good | {"known_answers": [value]}):
        encoded = canonical.encode(index)
        with pytest.raises(MalformedModel):
            artifact.parse(memoryview(len(encoded).to_bytes(4, "little") + encoded), subject="it")


@given(st.lists(st.binary(max_size=50), max_size=8))
@quick
def test_a_stream_keeps_every_byte_in_order(parts: list[bytes]) -> None:
    plain = b"".join(parts)
    if plain:
        assert b"".join(bytes(view) for _, _, view in rechunk(parts, len(plain))) == plain


@given(st.integers(1, 1 << 24))
@quick
def test_chunks_cover_a_payload_without_a_gap(size: int) -> None:
    position = 0
    for index, (number, last, offset, length) in enumerate(split(size)):
        assert (number, offset) == (index, position)
        assert 0 < length <= 1 << 20
        position += length
        assert last is (position == size)
    assert position == size


# --- files


@given(st.binary(max_size=400), st.booleans(), st.lists(st.integers(0, 40), min_size=3, max_size=3))
@quick
def test_no_file_makes_opening_fail_otherwise(file: Path, data: bytes, magic: bool, lengths: list[int]) -> None:
    header = layout.MAGIC + b"".join(length.to_bytes(4, "little") for length in lengths) if magic else b""
    file.write_bytes(header + data)

    with pytest.raises(PericardError), SealedModel(file) as source:
        source.verify([PublisherKey(bytes(64)).publisher])


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda data: b"pericard-identity-v1 " + data))
@quick
def test_no_file_makes_a_keys_reader_fail_otherwise(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    file.chmod(0o600)

    with pytest.raises(KeyFileError):
        Identity.read(file)


@given(st.binary(max_size=200) | objects.map(canonical.encode))
@quick
def test_no_file_makes_the_trust_state_fail_otherwise(file: Path, data: bytes) -> None:
    file.write_bytes(data)

    with pytest.raises(TrustStateInvalid):
        TrustState(file)


@given(st.binary(max_size=300) | any_json.map(lambda value: json.dumps(value).encode()))
@quick
def test_no_bytes_make_the_graphs_check_fail_otherwise(data: bytes) -> None:
    from pericard.runtime import graph

    with pytest.raises(ForbiddenGraph):
        graph.check(data)


def places(value: Any) -> list[tuple[Any, Any]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in ((value, key), *places(item))]


@pytest.fixture(scope="module")
def check_graph() -> Callable[[bytes], None]:
    from pericard.runtime import graph

    return graph.check


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_no_value_makes_the_graphs_check_fail_otherwise(
    tiny_graph: bytes, check_graph: Callable[[bytes], None], data: st.DataObject
) -> None:
    program = json.loads(tiny_graph)
    found = places(program)
    holder, key = found[data.draw(st.integers(0, len(found) - 1))]
    holder[key] = data.draw(any_json)
    with contextlib.suppress(ForbiddenGraph):
        check_graph(json.dumps(program).encode())
