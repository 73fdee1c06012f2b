"""The model that is loaded, in every format: 50 matrices and 40 small tensors of random numbers.

Run as ``python model.py FOLDER SCALE [KIND…]``, in a process of its own, since peers are imported; the numbers come
from a fixed seed, so every process makes the same ones. ``SCALE`` divides the first axis of each matrix: 1 for the
model of 755 MB, more for a trial of the benchmark itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pericard.keys import Identity, PublisherKey
from pericard.sealed import Description, Output, Source, Term, Tolerance, artifact, seal
from pericard.tensors import TensorSpec

State = dict[str, torch.Tensor]

#: Keys of nobody: what is measured does not depend on them.
PUBLISHER = PublisherKey(bytes(range(64)))
IDENTITY = Identity(b"benchmark".ljust(32))
PEER_KEY = bytes(range(32))

_DAY = 86_400


def state(scale: int) -> State:
    """The tensors by name."""
    generator = torch.Generator().manual_seed(0)
    made: State = {}
    for place in range(40):
        made[f"block{place:02}.weight"] = torch.randn(1024 // scale, 4096, generator=generator)
        made[f"block{place:02}.bias"] = torch.randn(4096, generator=generator)
    for place in range(10):
        made[f"table{place:02}.weight"] = torch.randn(2048 // scale, 2048, generator=generator).to(torch.bfloat16)
    return made


def raw(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, without a copy."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def _plain(path: Path, made: State) -> None:
    torch.save(made, path)


def _joined(path: Path, made: State) -> None:
    """The tensors' bytes one after the other, behind an index: what a plain file can be at its simplest."""
    index, place = {}, 0
    for name, tensor in made.items():
        index[name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "span": [place, place + tensor.nbytes]}
        place += tensor.nbytes
    head = json.dumps(index).encode()
    with path.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for tensor in made.values():
            out.write(raw(tensor))


def _safetensors(path: Path, made: State) -> None:
    from safetensors.torch import save_file

    save_file(made, path)


def _tensorizer(path: Path, made: State) -> None:
    from tensorizer import EncryptionParams, TensorSerializer

    serializer = TensorSerializer(str(path), encryption=EncryptionParams(key=PEER_KEY))
    serializer.write_state_dict(made)
    serializer.close()


def _cryptotensors(path: Path, made: State) -> None:
    import cryptotensors.torch as cryptotensors
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    signing = Ed25519PrivateKey.generate()
    encryption = {"kty": "oct", "alg": "aes256gcm", "k": text(PEER_KEY), "kid": "encryption"}
    signature = {
        "kty": "okp",
        "alg": "ed25519",
        "d": text(signing.private_bytes_raw()),
        "x": text(signing.public_key().public_bytes_raw()),
        "kid": "signature",
    }
    cryptotensors.save_file(made, path, config={"enc_key": encryption, "sign_key": signature})
    path.with_suffix(".keys").write_text(json.dumps({"keys": [encryption, signature]}))


def _sealed(path: Path, made: State) -> None:
    about = Description(
        name="random",
        version="1",
        sequence=1,
        floor=0,
        kind="exported",
        publisher_name="Benchmark",
        intended_use="loading is measured; nothing is computed",
        inputs=(TensorSpec("input", "float32", (-1, 8)),),
        outputs=(Output(TensorSpec("output", "float32", (-1, 1))),),
        signal=None,
        max_batch=1,
        buckets=(1,),
        tolerance={"cpu": Tolerance(1e-6, 1e-5)},
        sealed_in="00" * 32,
        required_runtime=None,
    )
    weights = tuple(
        Source(name, "parameter", str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), raw(tensor))
        for name, tensor in made.items()
    )
    question = Source("input", artifact.ANSWER, "float32", (1, 8), memoryview(bytes(32)))
    answer = Source("output", artifact.ANSWER, "float32", (1, 1), memoryview(bytes(4)))
    packed = artifact.pack(b"{}", weights, (((question,), (answer,)),))
    now = int(time.time())
    seal(path, about, packed, signer=PUBLISHER, terms=(Term(IDENTITY.recipient, now - _DAY, now + 30 * _DAY, 0),))


#: File names, and how each is written.
WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "model.pt": _plain,
    "model.raw": _joined,
    "model.sealed": _sealed,
    "model.safetensors": _safetensors,
    "model.tensors": _tensorizer,
    "model.cryptotensors": _cryptotensors,
}


def main() -> None:
    """Write the files that the command line names."""
    folder, scale, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    made = state(scale)
    for name in names:
        WRITERS[name](folder / name, made)
    size = sum(tensor.nbytes for tensor in made.values())
    sys.stdout.write(json.dumps({"bytes": size, "tensors": len(made), "digest": digest(made)}) + "\n")


def digest(made: State) -> str:
    """SHA-256 over every name and every byte."""
    hashed = hashlib.sha256()
    for name in sorted(made):
        hashed.update(name.encode() + b"\0")
        hashed.update(raw(made[name]))
    return hashed.hexdigest()


if __name__ == "__main__":
    main()
