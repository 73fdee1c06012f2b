"""What a fresh conda prefix must be able to do before anything is sealed or served in it.

Usage: ``python smoke.py VERSION``. Conda links ``cryptography`` with its own OpenSSL, so the algorithms of a sealed
model are used here, not looked up. The file ships in the package: it holds no secret and stays small.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pericard.keys import Identity, PublisherKey


def commands_answer(version: str) -> None:
    """Both commands start and are of this version."""
    for command in ("pericard", "pericard-client"):
        said = subprocess.run([command, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
        assert version in said, f"{command} --version says {said!r}, not {version}"


def keys_work(folder: Path) -> None:
    """An X-Wing grant opens, and both signatures of a publisher verify."""
    identity = Identity.generate(folder / "identity.key")
    wrapped = identity.recipient.wrap(b"file key", info=b"grant")
    assert identity.unwrap(wrapped, info=b"grant") == b"file key"

    publisher = PublisherKey.generate(folder / "publisher.key")
    publisher.publisher.verify("smoke", b"manifest", publisher.sign("smoke", b"manifest"), subject="smoke")


def chunks_decrypt_in_place() -> None:
    """AES-256-GCM decrypts into a buffer that the caller owns and can wipe."""
    cipher = AESGCM(bytes(32))
    plaintext, nonce = os.urandom(1 << 20), bytes(12)
    buffer = bytearray(len(plaintext))
    cipher.decrypt_into(nonce, cipher.encrypt(nonce, plaintext, None), None, buffer)
    assert buffer == plaintext


def torch_computes() -> None:
    """Torch and numpy of this prefix fit each other."""
    assert torch.ones(3).numpy().sum() == 3  # noqa: PLR2004  three ones


def main() -> None:
    """Run every check; the first that fails ends the build."""
    commands_answer(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        keys_work(Path(folder))
    chunks_decrypt_in_place()
    torch_computes()
    print(f"smoke: pericard {sys.argv[1]} works in {sys.prefix}")


if __name__ == "__main__":
    main()
