"""The audit log's keys: Ed25519 for every head, ML-DSA-44 beside it for published ones, and one to commit with.

The verifier (``log.pub``) leaves the machine; the commitment key never does. Losing the commitment key loses the
ability to open old records, not to verify them. The ML-DSA seed derives from the Ed25519 seed, so that a private file
of before has both; whoever computes the Ed25519 *scalar* from its public key still lacks the seed, which a hash hides.
A public file of before has Ed25519 alone, and verifies that alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pericard.errors import BadSignature, KeyFileInvalid
from pericard.keys.files import (
    read_public_file_of,
    read_secret_file,
    write_private_file,
    write_public_file,
)
from pericard.keys.secrets import take, wipe

_PRIVATE = "pericard-log-key-v1"
_PUBLIC = "pericard-log-v2"
_PUBLIC_ALONE = "pericard-log-v1"
_SEED_SIZE = 32
_SECOND_CONTEXT = b"pericard 2026-11-29 audit log: ML-DSA-44 seed"
SECRET_SIZE = 64
PUBLIC_SIZE = 32
SECOND_SIZE = 1312


class LogVerifier:
    """The public half: checks the signatures under a head.

    Attributes:
        public: the Ed25519 public key; it alone names the log.
        second: the ML-DSA-44 public key; None where only the first one is known.
    """

    def __init__(self, public: bytes, second: bytes | None = None) -> None:
        """Take the 32-byte Ed25519 public key, and the 1312-byte ML-DSA-44 public key if it is known."""
        if len(public) != PUBLIC_SIZE or (second is not None and len(second) != SECOND_SIZE):
            raise KeyFileInvalid(f"log verifier: holds {len(public) + len(second or b'')} bytes, wanted {PUBLIC_SIZE}")
        self.public = public
        self.second = second
        self._key = ed25519.Ed25519PublicKey.from_public_bytes(public)
        self._second = None if second is None else mldsa.MLDSA44PublicKey.from_public_bytes(second)

    @classmethod
    def read(cls, path: Path) -> LogVerifier:
        """Read ``log.pub``, of either version."""
        both = PUBLIC_SIZE + SECOND_SIZE
        data = read_public_file_of(path, {_PUBLIC_ALONE: PUBLIC_SIZE, _PUBLIC: both})
        return cls(data[:PUBLIC_SIZE], data[PUBLIC_SIZE:] or None)

    def write(self, path: Path) -> None:
        """Write ``log.pub``."""
        kind = _PUBLIC_ALONE if self.second is None else _PUBLIC
        data = self.public + (self.second or b"")
        write_public_file(path, kind, data, comment="public: auditors verify the log with this")

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a raw Ed25519 signature.

        Raises:
            BadSignature: it does not verify.
        """
        try:
            self._key.verify(signature, message)
        except InvalidSignature as error:
            raise BadSignature("log head: the signature does not verify with this key") from error

    def verify_second(self, message: bytes, signature: bytes) -> None:
        """Check a raw ML-DSA-44 signature.

        Raises:
            BadSignature: it does not verify, or this verifier does not have that key.
        """
        if self._second is None:
            raise BadSignature("log head: there is no ML-DSA-44 key to verify it with")
        try:
            self._second.verify(signature, message)
        except InvalidSignature as error:
            raise BadSignature("log head: the ML-DSA-44 signature does not verify with this key") from error


class LogKey:
    """The private half.

    Attributes:
        verifier: the public half.
        commitment_key: 32 bytes, from which each record's opening key is derived.
    """

    def __init__(self, secret: bytes | bytearray) -> None:
        """Take 64 bytes: Ed25519 seed, then the commitment key; the caller still owns and wipes them."""
        if len(secret) != SECRET_SIZE:
            raise KeyFileInvalid(f"log key: holds {len(secret)} bytes, wanted {SECRET_SIZE}")
        # a slice of the bytearray itself would be one more copy of the secret
        seed = memoryview(secret)[:_SEED_SIZE]
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        derived = take(HKDF(hashes.SHA512(), _SEED_SIZE, salt=None, info=_SECOND_CONTEXT).derive(seed))
        try:
            self._second = mldsa.MLDSA44PrivateKey.from_seed_bytes(derived)
        finally:
            wipe(derived)
        self.commitment_key = bytearray(secret[_SEED_SIZE:])
        self.verifier = LogVerifier(
            self._key.public_key().public_bytes_raw(), self._second.public_key().public_bytes_raw()
        )

    @classmethod
    def read(cls, path: Path) -> LogKey:
        """Read ``log.key``."""
        secret = cls.read_secret(path)
        try:
            return cls(secret)
        finally:
            wipe(secret)

    @staticmethod
    def read_secret(path: Path) -> bytearray:
        """Read only the 64 secret bytes; the caller wipes them."""
        return read_secret_file(path, _PRIVATE, SECRET_SIZE)

    @classmethod
    def generate(cls, path: Path) -> LogKey:
        """Make a new log key and write its private file."""
        secret = take(os.urandom(SECRET_SIZE))
        try:
            write_private_file(path, _PRIVATE, secret, comment="private: audit log key; only the engine uses it")
            return cls(secret)
        finally:
            wipe(secret)

    def sign(self, message: bytes) -> bytes:
        """Sign a head with Ed25519; 64 bytes."""
        return self._key.sign(message)

    def sign_second(self, message: bytes) -> bytes:
        """Sign a head with ML-DSA-44; 2420 bytes, different ones each time."""
        return self._second.sign(message)
