"""The audit log's keys: Ed25519 for heads, and a commitment key for what records conceal.

The verifier (``log.pub``) leaves the machine; the commitment key never does. Losing the commitment key loses the
ability to open old records, not to verify them.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from pericard.errors import BadSignature, KeyFileInvalid
from pericard.keys.files import (
    read_public_file,
    read_secret_file,
    write_private_file,
    write_public_file,
)
from pericard.keys.secrets import take, wipe

_PRIVATE = "pericard-log-key-v1"
_PUBLIC = "pericard-log-v1"
SECRET_SIZE = 64
PUBLIC_SIZE = 32


class LogVerifier:
    """The public half: checks the signature under a head."""

    def __init__(self, public: bytes) -> None:
        """Take the 32-byte Ed25519 public key."""
        if len(public) != PUBLIC_SIZE:
            raise KeyFileInvalid(f"log verifier: holds {len(public)} bytes, wanted {PUBLIC_SIZE}")
        self.public = public
        self._key = ed25519.Ed25519PublicKey.from_public_bytes(public)

    @classmethod
    def read(cls, path: Path) -> LogVerifier:
        """Read ``log.pub``."""
        return cls(read_public_file(path, _PUBLIC, PUBLIC_SIZE))

    def write(self, path: Path) -> None:
        """Write ``log.pub``."""
        write_public_file(path, _PUBLIC, self.public, comment="public: auditors verify the log with this")

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a raw Ed25519 signature.

        Raises:
            BadSignature: it does not verify.
        """
        try:
            self._key.verify(signature, message)
        except InvalidSignature as error:
            raise BadSignature("log head: the signature does not verify with this key") from error


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
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(memoryview(secret)[:32])
        self.commitment_key = bytearray(secret[32:])
        self.verifier = LogVerifier(self._key.public_key().public_bytes_raw())

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
        """Sign a head; 64 bytes."""
        return self._key.sign(message)
