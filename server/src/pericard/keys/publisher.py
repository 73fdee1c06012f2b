"""Publisher keys: Ed25519 and ML-DSA-65 side by side, both always required.

Every signature is made over ``domain ‖ 0x00 ‖ message``, so that a signature for one purpose is worth nothing for
another. A signature names its algorithm and key, so a reader can say which one was missing.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa

from pericard.errors import BadSignature, KeyFileInvalid
from pericard.keys.files import (
    read_public_file,
    read_secret_file,
    write_private_file,
    write_public_file,
)
from pericard.keys.secrets import take, wipe

ED25519 = 1
ML_DSA_65 = 2
SECRET_SIZE = 64
SIGNATURE_SIZE = {ED25519: 64, ML_DSA_65: 3309}
_NAMES = {ED25519: "Ed25519", ML_DSA_65: "ML-DSA-65"}
_ED_PUBLIC = 32
_ML_PUBLIC = 1952
_PRIVATE = "pericard-publisher-key-v1"
_PUBLIC = "pericard-publisher-v1"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: algorithm number, 32-byte key id, and the signature's bytes."""

    algorithm: int
    key_id: bytes
    value: bytes


def _key_id(algorithm: int, public: bytes) -> bytes:
    return hashlib.sha256(bytes([algorithm]) + public).digest()


def _covered(domain: str, message: bytes) -> bytes:
    return domain.encode("ascii") + b"\0" + message


class Publisher:
    """The public half: what a site pins.

    Attributes:
        id: SHA-256 over both public keys, in hex.
    """

    def __init__(self, public: bytes) -> None:
        """Take both public keys, Ed25519 then ML-DSA-65 (1984 bytes)."""
        if len(public) != _ED_PUBLIC + _ML_PUBLIC:
            raise KeyFileInvalid(f"publisher: holds {len(public)} bytes, wanted {_ED_PUBLIC + _ML_PUBLIC}")
        self.public = public
        self.id = hashlib.sha256(public).hexdigest()
        ed, ml = public[:_ED_PUBLIC], public[_ED_PUBLIC:]
        self._ed = ed25519.Ed25519PublicKey.from_public_bytes(ed)
        self._ml = mldsa.MLDSA65PublicKey.from_public_bytes(ml)
        self._key_ids = {ED25519: _key_id(ED25519, ed), ML_DSA_65: _key_id(ML_DSA_65, ml)}

    @classmethod
    def read(cls, path: Path) -> Publisher:
        """Read ``publisher.pub``."""
        return cls(read_public_file(path, _PUBLIC, _ED_PUBLIC + _ML_PUBLIC))

    def write(self, path: Path) -> None:
        """Write ``publisher.pub``."""
        write_public_file(path, _PUBLIC, self.public, comment=f"public: publisher {self.id[:16]}; sites pin this")

    def claimed(self, signatures: tuple[Signature, ...]) -> int:
        """How many of the signatures *claim* to be this publisher's (says nothing of their validity)."""
        return sum(self._key_ids.get(signature.algorithm) == signature.key_id for signature in signatures)

    def verify(self, domain: str, message: bytes, signatures: tuple[Signature, ...], *, subject: str) -> None:
        """Check that exactly both algorithms signed the message for this domain.

        Raises:
            BadSignature: one is missing, doubled, of another key, or wrong.
        """
        by_algorithm = {signature.algorithm: signature for signature in signatures}
        if len(by_algorithm) != len(signatures) or by_algorithm.keys() != self._key_ids.keys():
            raise BadSignature(f"{subject}: needs one Ed25519 and one ML-DSA-65 signature")
        covered = _covered(domain, message)
        for algorithm, signature in sorted(by_algorithm.items()):
            if signature.key_id != self._key_ids[algorithm]:
                raise BadSignature(f"{subject}: the {_NAMES[algorithm]} signature is by another key")
            try:
                (self._ed if algorithm == ED25519 else self._ml).verify(signature.value, covered)
            except InvalidSignature as error:
                raise BadSignature(f"{subject}: the {_NAMES[algorithm]} signature does not verify") from error


class PublisherKey:
    """The private half: signs manifests and grants."""

    def __init__(self, seeds: bytes | bytearray) -> None:
        """Take both 32-byte seeds, Ed25519 then ML-DSA-65; the caller still owns and wipes them."""
        if len(seeds) != SECRET_SIZE:
            raise KeyFileInvalid(f"publisher key: holds {len(seeds)} bytes, wanted {SECRET_SIZE}")
        parts = memoryview(seeds)  # a slice of a bytearray itself would be one more copy of the secret
        self._ed = ed25519.Ed25519PrivateKey.from_private_bytes(parts[:32])
        self._ml = mldsa.MLDSA65PrivateKey.from_seed_bytes(parts[32:])
        ed, ml = self._ed.public_key().public_bytes_raw(), self._ml.public_key().public_bytes_raw()
        self.publisher = Publisher(ed + ml)
        self._key_ids = {ED25519: _key_id(ED25519, ed), ML_DSA_65: _key_id(ML_DSA_65, ml)}

    @classmethod
    def read(cls, path: Path) -> PublisherKey:
        """Read ``publisher.key``."""
        seeds = read_secret_file(path, _PRIVATE, SECRET_SIZE)
        try:
            return cls(seeds)
        finally:
            wipe(seeds)

    @classmethod
    def generate(cls, path: Path) -> PublisherKey:
        """Make a new publisher key pair and write its private file."""
        seeds = take(os.urandom(SECRET_SIZE))
        try:
            made = cls(seeds)
            write_private_file(
                path,
                _PRIVATE,
                seeds,
                comment=f"private: publisher {made.publisher.id[:16]}; keep offline",
            )
        finally:
            wipe(seeds)
        return made

    def sign(self, domain: str, message: bytes) -> tuple[Signature, ...]:
        """Sign with both algorithms."""
        covered = _covered(domain, message)
        return (
            Signature(ED25519, self._key_ids[ED25519], self._ed.sign(covered)),
            Signature(ML_DSA_65, self._key_ids[ML_DSA_65], self._ml.sign(covered)),
        )
