"""The plaintext's layout: what is packed is found again, and an index that does not add up is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from pericard import canonical
from pericard.errors import MalformedModel
from pericard.sealed import Source, artifact

Index = dict[str, Any]
WEIGHTS = memoryview(struct.pack("<6f", *range(6)))


def answers() -> tuple[tuple[tuple[Source, ...], tuple[Source, ...]], ...]:
    question = Source("ecg", "answer", "float32", (1, 2), memoryview(bytes(8)))
    answer = Source("score", "answer", "int64", (1,), memoryview(struct.pack("<q", 9)))
    return (((question,), (answer,)), ((question,), (answer,)))


@pytest.fixture
def packed() -> bytes:
    tensors = (
        Source("conv.weight", "parameter", "float32", (2, 3), WEIGHTS),
        Source("scale", "buffer", "bool", (), memoryview(b"\1")),
        Source("non" + "e" * 200, "constant", "float16", (0, 4), memoryview(b"")),
    )
    size, parts = artifact.pack(b"graph", tensors, answers())
    plain = b"".join(parts)
    assert len(plain) == size
    return plain


def reindexed(plain: bytes, change: Callable[[Index], object]) -> memoryview:
    """The same plaintext with another index; a tensor's long name takes up or gives the difference in length."""
    (length,) = struct.unpack_from("<I", plain)
    index = canonical.decode(plain[4 : 4 + length], limit=1 << 20)
    change(index)
    if type(index["tensors"]) is list and isinstance(index["tensors"][-1], dict):
        spare = length - len(canonical.encode(index))
        name = index["tensors"][-1]["name"]
        index["tensors"][-1]["name"] = (name + "e" * spare)[:512] if spare > 0 else name[: len(name) + spare]
    encoded = canonical.encode(index)
    return memoryview(struct.pack("<I", len(encoded)) + encoded + plain[4 + length :])


def test_an_index_that_does_not_change_is_accepted(packed: bytes) -> None:
    assert artifact.parse(reindexed(packed, dict.copy), subject="it")


def test_what_was_packed_is_found_again(packed: bytes) -> None:
    found = artifact.parse(memoryview(packed), subject="it")

    offset, size = found.graph
    assert packed[offset : offset + size] == b"graph"
    weight, scale, none = found.tensors
    assert (weight.name, weight.role, weight.dtype, weight.shape) == ("conv.weight", "parameter", "float32", (2, 3))
    assert packed[weight.offset : weight.offset + weight.size] == WEIGHTS
    assert packed[scale.offset : scale.offset + scale.size] == b"\1"
    assert (none.size, none.shape) == (0, (0, 4))
    assert len(found.known_answers) == 2
    (answer,) = found.known_answers[1].outputs
    assert struct.unpack_from("<q", packed, answer.offset) == (9,)


def test_every_part_begins_on_a_line_of_the_cache(packed: bytes) -> None:
    found = artifact.parse(memoryview(packed), subject="it")

    parts = [tensor for answer in found.known_answers for tensor in (*answer.inputs, *answer.outputs)]
    assert all(offset % 64 == 0 for offset in (found.graph[0], *(part.offset for part in (*found.tensors, *parts))))


def test_the_length_of_an_index_that_names_its_own_length_settles() -> None:
    for count in range(1, 40):
        tensors = tuple(Source(f"t{number}", "buffer", "uint8", (9,), memoryview(bytes(9))) for number in range(count))
        size, parts = artifact.pack(b"g" * count * 50, tensors, answers())
        plain = b"".join(parts)
        assert len(plain) == size
        assert len(artifact.parse(memoryview(plain), subject="it").tensors) == count


def test_bytes_that_do_not_fit_their_shape_are_not_packed() -> None:
    with pytest.raises(ValueError, match="tensor w: 24 bytes do not fit its shape"):
        artifact.pack(b"g", (Source("w", "parameter", "float32", (7,), WEIGHTS),), answers())


CHANGES: dict[str, tuple[Callable[[Index], object], str]] = {
    "another format": (lambda i: i.update(format="pericard/artifact/v2"), "it has other fields"),
    "one more field": (lambda i: i.update(code="import os"), "it has other fields"),
    "one more field of the graph": (lambda i: i["graph"].update(kind="pickle"), "graph has other fields"),
    "a graph that is a list": (lambda i: i.update(graph=[64, 5]), "'keys'"),
    "tensors that are a number": (lambda i: i.update(tensors=5), "len"),
    "a tensor that is a number": (lambda i: i.update(tensors=[5]), "'keys'"),
    "one more field of a tensor": (lambda i: i["tensors"][0].update(device="cuda"), "a tensor has other fields"),
    "a tensor without a role": (lambda i: i["tensors"][0].pop("role"), "a tensor has other fields"),
    "one more field of an answer": (lambda i: i["known_answers"][0].update(a=1), "a known answer has other fields"),
    "answers that are a list": (lambda i: i.update(known_answers=[[]]), "'keys'"),
    "no known answer": (lambda i: i.update(known_answers=[]), "no known answer"),
    "too many known answers": (lambda i: i.update(known_answers=[{}] * 65), "too many"),
    "too many tensors": (lambda i: i.update(tensors=[5] * ((1 << 17) + 1)), "too many"),
    "two tensors of one name": (lambda i: i["tensors"][1].update(name="conv.weight"), "two tensors have one name"),
    "a name with a space": (lambda i: i["tensors"][0].update(name="conv weight"), "a bad name"),
    "a name that is a number": (lambda i: i["tensors"][0].update(name=5), "expected string"),
    "an unknown role": (lambda i: i["tensors"][0].update(role="answer"), "bad role or type"),
    "an answer's role": (lambda i: i["known_answers"][0]["inputs"][0].update(role="buffer"), "bad role or type"),
    "an unknown type": (lambda i: i["tensors"][0].update(dtype="object"), "bad role or type"),
    "a type that is a list": (lambda i: i["tensors"][0].update(dtype=[]), "unhashable"),
    "a negative axis": (lambda i: i["tensors"][0].update(shape=[-2, -3]), "bad shape"),
    "an axis of truth": (lambda i: i["tensors"][1].update(shape=[True]), "bad shape"),
    "too many axes": (lambda i: i["tensors"][1].update(shape=[1] * 17), "bad shape"),
    "a shape that is a text": (lambda i: i["tensors"][0].update(shape="23"), "bad shape"),
    "a size that does not fit the shape": (lambda i: i["tensors"][0].update(shape=[2, 4]), "does not fit its shape"),
    "a graph of negative size": (lambda i: i["graph"].update(size=-1), "a bad offset or size"),
    "an offset of truth": (lambda i: i["graph"].update(offset=True), "a bad offset or size"),
    "an offset that is not aligned": (lambda i: moved(i["graph"], 1), "does not follow"),
    "a gap": (lambda i: moved(i["graph"], 64), "does not follow"),
    "a part in the index": (lambda i: i["graph"].update(offset=0), "does not follow"),
    "a part over another": (lambda i: moved(i["tensors"][1], -64), "does not follow"),
    "a part beyond the end": (lambda i: i["graph"].update(size=10**9), "lies outside"),
    "a last part that ends early": (
        lambda i: i["known_answers"][1]["outputs"][0].update(dtype="int32", size=4),
        "4 bytes belong to no part",
    ),
}


def moved(part: Index, by: int) -> None:
    part["offset"] += by


@pytest.mark.parametrize("change", CHANGES)
def test_an_index_that_does_not_add_up_is_refused(change: str, packed: bytes) -> None:
    alter, reason = CHANGES[change]
    with pytest.raises(MalformedModel, match=f"it: the artifact's index is not valid: .*{reason}"):
        artifact.parse(reindexed(packed, alter), subject="it")


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        struct.pack("<I", 2) + b"{}",
        struct.pack("<I", 5) + b"{}",
        struct.pack("<I", (64 << 20) + 1) + b"{}",
        struct.pack("<I", 0xFFFFFFFF) + b"{}",
        b"PK\3\4" + bytes(100),
        b"\x80\x02" + bytes(100),
    ],
)
def test_what_is_not_an_artifact_is_refused(plain: bytes) -> None:
    with pytest.raises(MalformedModel, match="index is not valid"):
        artifact.parse(memoryview(plain), subject="it")
