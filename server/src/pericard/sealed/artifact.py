"""The plaintext of a sealed model: a graph, a table of tensors, known answers. No code, no archive, no pickle.

::

    index length u32 | index (canonical JSON) | graph | tensors…      each part at the next multiple of 64

Every part of the index names an offset and a size from the start of the plaintext; parts stand in the index's order,
without a gap but the padding. Tensors are row-major and little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pericard import canonical
from pericard.canonical import JSON
from pericard.errors import MalformedModel
from pericard.tensors import DTYPES

FORMAT = "pericard/artifact/v1"
ALIGNMENT = 64
ROLES = ("parameter", "buffer", "constant")
ANSWER = "answer"
_MAX_INDEX = 64 << 20
_MAX_TENSORS = 1 << 17
_MAX_KNOWN_ANSWERS = 64
_LENGTH = struct.Struct("<I")
HEAD_SIZE = _LENGTH.size
_TENSOR_NAME = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor in the plaintext: where it lies and how to read it."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """One synthetic question and the publisher's own answer; batch of one."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """The parsed index.

    Attributes:
        graph: ``(offset, size)`` of the graph's bytes.
        tensors: weights, in file order.
        known_answers: at least one.
    """

    graph: tuple[int, int]
    tensors: tuple[Tensor, ...]
    known_answers: tuple[KnownAnswer, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor on its way into an artifact: raw row-major little-endian bytes."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def pack(
    graph: bytes,
    tensors: tuple[Source, ...],
    known_answers: tuple[tuple[tuple[Source, ...], tuple[Source, ...]], ...],
) -> tuple[int, Iterator[bytes | memoryview]]:
    """Lay out an artifact; returns its size and the buffers that make it up, in order.

    Raises:
        ValueError: a tensor's bytes do not fit its shape.
    """
    answers = [source for inputs, outputs in known_answers for source in (*inputs, *outputs)]
    sources = [*tensors, *answers]
    for source in sources:
        if len(source.data.cast("B")) != math.prod(source.shape) * DTYPES[source.dtype][0]:
            raise ValueError(f"tensor {source.name}: {len(source.data)} bytes do not fit its shape")
    sizes = [len(graph), *(len(source.data.cast("B")) for source in sources)]
    index_length = 0
    while True:  # the index holds offsets that depend on its own length: settles after two or three rounds
        offsets = _offsets(_LENGTH.size + index_length, sizes)
        index = _index(offsets, sizes, tensors, known_answers)
        if len(index) == index_length:
            break
        index_length = len(index)
    head = _LENGTH.pack(len(index)) + index
    return offsets[-1] + sizes[-1], _stream(head, offsets, [graph, *(source.data for source in sources)])


def index_end(head: bytes | memoryview, *, subject: str) -> int:
    """Where the index ends, from the first :data:`HEAD_SIZE` bytes of the plaintext.

    Raises:
        MalformedModel: it claims more than an index may have.
    """
    try:
        (length,) = _LENGTH.unpack_from(head, 0)
        if length > _MAX_INDEX:
            raise ValueError(f"it claims {length} bytes")
    except (ValueError, struct.error) as error:
        raise MalformedModel(f"{subject}: the artifact's index is not valid: {error}") from error
    return HEAD_SIZE + int(length)


def parse(data: memoryview, *, subject: str, size: int | None = None) -> Artifact:
    """Read the index of a decrypted, verified plaintext.

    Args:
        data: the plaintext, or as much of it as holds the index.
        subject: the file's name, for errors.
        size: bytes of the whole plaintext, where ``data`` is only its beginning.

    Raises:
        MalformedModel: it is not an artifact, or a part lies outside, overlaps, or does not fit its shape.
    """
    end = index_end(data, subject=subject)
    try:
        value = canonical.decode(bytes(data[HEAD_SIZE:end]), limit=_MAX_INDEX)
        return _artifact(value, end, len(data) if size is None else size)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise MalformedModel(f"{subject}: the artifact's index is not valid: {error}") from error


def _offsets(start: int, sizes: list[int]) -> list[int]:
    offsets = []
    for size in sizes:
        start = -(-start // ALIGNMENT) * ALIGNMENT
        offsets.append(start)
        start += size
    return offsets


def _index(
    offsets: list[int],
    sizes: list[int],
    tensors: tuple[Source, ...],
    known_answers: tuple[tuple[tuple[Source, ...], tuple[Source, ...]], ...],
) -> bytes:
    places = iter(zip(offsets, sizes, strict=True))
    graph_offset, graph_size = next(places)

    def entry(source: Source) -> dict[str, JSON]:
        offset, size = next(places)
        return {
            "name": source.name,
            "role": source.role,
            "dtype": source.dtype,
            "shape": list(source.shape),
            "offset": offset,
            "size": size,
        }

    return canonical.encode(
        {
            "format": FORMAT,
            "graph": {"offset": graph_offset, "size": graph_size},
            "tensors": [entry(source) for source in tensors],
            "known_answers": [
                {"inputs": [entry(source) for source in inputs], "outputs": [entry(source) for source in outputs]}
                for inputs, outputs in known_answers
            ],
        }
    )


def _stream(head: bytes, offsets: list[int], blobs: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    yield head
    position = len(head)
    for offset, blob in zip(offsets, blobs, strict=True):
        yield bytes(offset - position)
        flat = memoryview(blob).cast("B")
        yield flat
        position = offset + len(flat)


def _artifact(value: Mapping[str, JSON], start: int, end: int) -> Artifact:
    if value.keys() != {"format", "graph", "tensors", "known_answers"} or value["format"] != FORMAT:
        raise ValueError("it has other fields than it should")
    graph = value["graph"]
    if graph.keys() != {"offset", "size"}:
        raise ValueError("graph has other fields than it should")
    if len(value["tensors"]) > _MAX_TENSORS or not 1 <= len(value["known_answers"]) <= _MAX_KNOWN_ANSWERS:
        raise ValueError("it holds too many tensors, or no known answer")
    tensors = tuple(_tensor(item, ROLES) for item in _items(value["tensors"], "tensors"))
    answers = tuple(_known_answer(item) for item in _items(value["known_answers"], "known answers"))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have one name")
    answered = [tensor for answer in answers for tensor in (*answer.inputs, *answer.outputs)]
    parts = [(graph["offset"], graph["size"]), *((part.offset, part.size) for part in (*tensors, *answered))]
    for offset, size in parts:
        if type(offset) is not int or type(size) is not int or size < 0:
            raise ValueError("a part has a bad offset or size")
        if offset != -(-start // ALIGNMENT) * ALIGNMENT or offset + size > end:
            raise ValueError(f"the part at {offset} does not follow the one before, or lies outside")
        start = offset + size
    if start != end:
        raise ValueError(f"{end - start} bytes belong to no part")
    return Artifact((graph["offset"], graph["size"]), tensors, answers)


def _items(value: JSON, name: str) -> list[JSON]:
    if not isinstance(value, list):  # empty text would do for an empty list below
        raise ValueError(f"bad {name}: not a list")  # noqa: TRY004  (one exception type)
    return value


def _known_answer(item: dict[str, JSON]) -> KnownAnswer:
    if item.keys() != {"inputs", "outputs"}:
        raise ValueError("a known answer has other fields than it should")
    return KnownAnswer(
        tuple(_tensor(tensor, (ANSWER,)) for tensor in _items(item["inputs"], "inputs")),
        tuple(_tensor(tensor, (ANSWER,)) for tensor in _items(item["outputs"], "outputs")),
    )


def _tensor(item: dict[str, JSON], roles: tuple[str, ...]) -> Tensor:
    if item.keys() != {"name", "role", "dtype", "shape", "offset", "size"}:
        raise ValueError("a tensor has other fields than it should")
    shape = tuple(_items(item["shape"], "shape"))
    tensor = Tensor(item["name"], item["role"], item["dtype"], shape, item["offset"], item["size"])
    if not _TENSOR_NAME.fullmatch(tensor.name):
        raise ValueError("a tensor has a bad name")
    if tensor.role not in roles or tensor.dtype not in DTYPES:
        raise ValueError(f"tensor {tensor.name}: bad role or type")
    if len(tensor.shape) > 16 or not all(type(n) is int and n >= 0 for n in tensor.shape):  # noqa: PLR2004
        raise ValueError(f"tensor {tensor.name}: bad shape")
    if tensor.size != math.prod(tensor.shape) * DTYPES[tensor.dtype][0]:
        raise ValueError(f"tensor {tensor.name}: its size does not fit its shape")
    return tensor
