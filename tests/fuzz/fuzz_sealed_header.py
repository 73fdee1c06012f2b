"""Coverage-guided fuzzing of what reads a sealed model before its plaintext is decrypted, and of the plaintext's index.

``python tests/fuzz/fuzz_sealed_header.py CORPUS [libFuzzer's options]``. The first byte of an input chooses the reader.
Signatures are taken as good, since no fuzzer makes one, and the parsers have to stand without them. JSON is changed
value by value as well as byte by byte, and read once more in its canonical form, which no other change keeps by chance.
Whatever is not a refusal by name is a crash; so is an answer that does not read back the same.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["pericard"]):
    from pericard import canonical
    from pericard.errors import BadGrant, BadNotice, MalformedModel, SealedModelError, TrustError
    from pericard.keys import Publisher, PublisherKey, Signature
    from pericard.sealed import SealedModel, artifact, layout, manifest, notice
    from pericard.sealed import grant as grants

JSON = Any
LIMIT = 1 << 20
VALUES = (None, True, False, 0, 1, -1, 2**53, 2**63 - 1, -(2**63), 2**63, 0.5, "", "a", "\0", "00" * 32, [], {}, [[]])


class Believer(Publisher):
    """A publisher who signed everything."""

    def claimed(self, signatures: tuple[Signature, ...]) -> int:
        return 1 + len(signatures)

    def verify(self, domain: str, message: bytes, signatures: tuple[Signature, ...], *, subject: str) -> None:
        pass


PUBLISHER = Believer(PublisherKey(bytes(range(64))).publisher.public)
MANIFEST = "00" * 32
IT = os.memfd_create("it")


def mended(data: bytes) -> bytes:
    """The JSON at the front in canonical form, if there is any."""
    with contextlib.suppress(ValueError, RecursionError):
        return canonical.encode(json.JSONDecoder().raw_decode(data.decode("latin-1"))[0])
    return data


def read_file(data: bytes) -> None:
    """The whole file, up to its end."""
    os.ftruncate(IT, 0)
    os.pwrite(IT, data, 0)
    with contextlib.suppress(SealedModelError, TrustError), SealedModel(Path(f"/proc/self/fd/{IT}")) as source:
        source.verify([PUBLISHER])


def read_manifest(data: bytes) -> None:
    """A manifest means what its bytes say."""
    for body in (data, mended(data)):
        with contextlib.suppress(MalformedModel):
            assert manifest.parse(body, subject="it").encode() == body


def read_grants(data: bytes) -> None:
    """A grants section, and each grant in it."""
    with contextlib.suppress(MalformedModel, BadGrant):
        found = layout.unpack_grants(data, subject="it")
        assert layout.pack_grants(tuple(layout.pack_grant(*packed) for packed in found)) == data
        for body, signatures in found:
            grants.verify(body, signatures, PUBLISHER, manifest=MANIFEST)


def read_grant(data: bytes) -> None:
    """A grant's body."""
    for body in (data, mended(data)):
        with contextlib.suppress(BadGrant):
            assert grants.verify(body, (), PUBLISHER, manifest=MANIFEST).not_after > 0


def read_notice(data: bytes) -> None:
    """A notice: a body with its length, and what follows as its signatures."""
    body = mended(data[4:])
    for file in (data, len(body).to_bytes(4, "little") + body + b"\0"):
        with contextlib.suppress(BadNotice):
            assert 0 < notice.verify(file, [PUBLISHER], subject="it").floor < 1 << 53


def read_canonical(data: bytes) -> None:
    """Canonical JSON has one form."""
    with contextlib.suppress(ValueError):
        assert canonical.encode(canonical.decode(data, limit=LIMIT)) == data


def read_index(data: bytes) -> None:
    """An artifact's parts lie inside it, one after the other, up to its end."""
    index = mended(data[4:])
    for plain in (data, len(index).to_bytes(4, "little") + index + data[4 + len(index) :]):
        with contextlib.suppress(MalformedModel):
            found = artifact.parse(memoryview(plain), subject="it")
            answered = [part for answer in found.known_answers for part in (*answer.inputs, *answer.outputs)]
            ends = [sum(found.graph), *(part.offset + part.size for part in (*found.tensors, *answered))]
            assert ends == sorted(ends)
            assert ends[-1] == len(plain)


READERS: tuple[Callable[[bytes], None], ...] = (
    read_file, read_manifest, read_grants, read_grant, read_notice, read_canonical, read_index,
)  # fmt: skip


def one(data: bytes) -> None:
    """One input."""
    if data:
        READERS[data[0] % len(READERS)](data[1:])


def nodes(value: JSON) -> Iterator[tuple[JSON, JSON]]:
    """Each place in a value, as its holder and its key there."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from nodes(value[key])


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """Libfuzzer's own change, or another value at one place of the JSON that is in it."""
    chance, start = random.Random(seed), data.find(b"{")
    if start >= 0 and chance.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError, IndexError):
            value, end = json.JSONDecoder().raw_decode(text := data[start:].decode("latin-1"))
            places = list(nodes(value))
            holder, key = chance.choice(places)
            there, here = chance.choice(places)
            match chance.randrange(4):
                case 0:
                    holder[key] = chance.choice(VALUES)
                case 1:
                    holder[key] = copy.deepcopy(there[here])
                case 2:
                    del holder[key]
                case _:
                    holder[key] = [holder[key]] * chance.randrange(4)
            made = data[:start] + json.dumps(value, separators=(",", ":")).encode() + text[end:].encode("latin-1")
            return made if len(made) <= most else data[:most]
    return bytes(atheris.Mutate(data, most))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one, custom_mutator=mutated)
    atheris.Fuzz()
