"""Every way to load the model that is measured, and what each does by construction.

A way has two halves: ``prepare`` imports what it needs and reads keys, untimed; what it returns is the load itself,
which gives the tensors by name. A load may note how long its parts took in the :class:`Clock` that it is given.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]
KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20


@dataclass
class Clock:
    """Wall seconds of each part of a load, in order, and what else is worth keeping."""

    parts: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part."""
        start = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - start


Load = Callable[[Clock], Tensors]


@dataclass(frozen=True)
class Way:
    """One row.

    Attributes:
        label: what the row is called.
        file: what it reads.
        prepare: see the module.
        steps: what it must do with every byte, by the names of :mod:`rates`.
        rest: what its time is spent on where these steps do not explain it.
        peer: whether it needs packages that are not ours.
    """

    label: str
    file: str
    prepare: Callable[[Path], Load]
    steps: tuple[str, ...]
    rest: str
    peer: bool = False


def _torch_load(path: Path) -> Load:
    import torch

    return lambda _: torch.load(path, weights_only=True)


def _safetensors_clone(path: Path) -> Load:
    from safetensors.torch import load_file

    return lambda _: {name: tensor.clone() for name, tensor in load_file(path).items()}


def _tensorizer(path: Path) -> Load:
    from model import PEER_KEY
    from tensorizer import DecryptionParams, TensorDeserializer

    def load(_: Clock) -> Tensors:
        source = TensorDeserializer(str(path), device="cpu", encryption=DecryptionParams.from_key(PEER_KEY))
        return {name: source[name] for name in source}

    return load


def _cryptotensors(path: Path) -> Load:
    import cryptotensors.torch as cryptotensors

    os.environ["CRYPTOTENSOR_KEYS"] = path.with_suffix(".keys").read_text()
    return lambda _: cryptotensors.load_file(path)


def _raw(path: Path) -> Load:
    """The floor: the plain file's bytes into one new buffer, and views of it."""
    import torch

    def load(_: Clock) -> Tensors:
        with path.open("rb", buffering=0) as source:
            length = int.from_bytes(source.read(8), "little")
            index = json.loads(source.read(length))
            buffer = torch.empty(path.stat().st_size - 8 - length, dtype=torch.uint8)
            view, place = memoryview(buffer.numpy()), 0
            while place < len(view):
                place += source.readinto(view[place : place + 16 * MEBIBYTE]) or len(view)
        return {
            name: buffer[slice(*entry["span"])].view(_dtype(torch, entry["dtype"])).reshape(entry["shape"])
            for name, entry in index.items()
        }

    return load


def _dtype(torch: Any, name: str) -> Any:
    return getattr(torch, name.removeprefix("torch."))


def _sealed(path: Path) -> Load:
    """The product's own path, step by step as its loader takes it, up to tensors that a graph could be built around."""
    from model import IDENTITY, PUBLISHER

    from pericard.runtime.plaintext import hold
    from pericard.sealed import SealedModel

    def load(clock: Clock) -> Tensors:
        with clock.part("verify"):
            source = SealedModel(path)
            model = source.verify([PUBLISHER.publisher])
        with clock.part("unwrap"):
            (grant,) = model.grants_for(IDENTITY.recipient.id)
            cipher = model.unwrap(grant, IDENTITY)
        with clock.part("memory"):
            plaintext = hold(model.manifest.payload.size, "cpu")
        with clock.part("decrypt"):
            plaintext.decrypt(model, cipher, None)
        del cipher
        with clock.part("tensors"):
            found = plaintext.index(subject=model.subject)
            tensors = {tensor.name: plaintext.tensor(tensor) for tensor in found.tensors}
        source.close()
        clock.notes |= {"locked": plaintext.locked, "chunks": len(model.manifest.payload.chunks)}
        return tensors

    return load


def _sealed_without_hashes(path: Path) -> Load:
    """As :func:`_sealed`, but chunks are not held against their signed hashes.

    The product has no such switch and must have none. Here its cipher is replaced, and both halves of what that claims
    are checked: every chunk was decrypted by the replacement, and nothing as large as a chunk was hashed.
    """
    from pericard.sealed.payload import ChunkCipher

    load = _sealed(path)
    decrypted: list[int] = []

    def unhashed(
        cipher: Any, index: int, *, last: bool, stored: memoryview, target: memoryview, **_unused: object
    ) -> None:
        cipher._aead.decrypt_into(cipher._nonce(index, last), stored, cipher._associated(index, last), target)
        decrypted.append(index)

    sha256 = hashlib.sha256

    def small_only(data: Any = b"", **options: Any) -> Any:
        if memoryview(data).nbytes > MEBIBYTE // 2:
            raise AssertionError("a chunk was hashed after all: the replacement has to follow the product")
        return sha256(data, **options)

    def replaced(clock: Clock) -> Tensors:
        kept = ChunkCipher.decrypt_into
        ChunkCipher.decrypt_into = unhashed
        hashlib.sha256 = small_only
        try:
            tensors = load(clock)
        finally:
            ChunkCipher.decrypt_into, hashlib.sha256 = kept, sha256
        if sorted(decrypted) != list(range(clock.notes["chunks"])):
            raise AssertionError("chunks were decrypted elsewhere: the replacement has to follow the product")
        return tensors

    return replaced


#: The rows of loads, by the name that the records and the command line use.
WAYS = {
    "torch": Way("torch.load, plain file", "model.pt", _torch_load, ("fresh pages", "read"), "unzipping, unpickling"),
    "safetensors": Way(
        "safetensors load_file + clone",
        "model.safetensors",
        _safetensors_clone,
        ("mapped pages", "fresh pages", "copy"),
        "its own code",
        peer=True,
    ),
    "tensorizer": Way(
        "tensorizer, encrypted",
        "model.tensors",
        _tensorizer,
        ("fresh pages", "read"),
        "its XSalsa20-Poly1305 and copies",
        peer=True,
    ),
    "cryptotensors": Way(
        "cryptotensors, AES-256-GCM",
        "model.cryptotensors",
        _cryptotensors,
        ("fresh pages", "mapped pages"),
        "its AES-256-GCM and copies",
        peer=True,
    ),
    "raw": Way("raw readinto (the floor)", "model.raw", _raw, ("fresh pages", "read"), "its own code"),
    "sealed": Way(
        "Pericard, full verification",
        "model.sealed",
        _sealed,
        ("private pages", "read", "SHA-256", "AES-256-GCM"),
        "its own code",
    ),
    "unhashed": Way(
        "Pericard, no chunk hashes (here alone)",
        "model.sealed",
        _sealed_without_hashes,
        ("private pages", "read", "AES-256-GCM"),
        "its own code",
    ),
}
