"""Identity and recipient: the one kind of key that a model can be sealed for.

HPKE (RFC 9180, base mode) with X-Wing (ML-KEM-768 and X25519), HKDF-SHA256 and AES-256-GCM. The private half is
X-Wing's 32-byte seed, expanded as in draft-connolly-cfrg-xwing-kem §5.2 (SHAKE-256 to 96 bytes: ML-KEM d‖z, then the
X25519 scalar), so any X-Wing implementation can use the same key.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from pericard.errors import BadGrant, KeyFileInvalid
from pericard.keys.files import (
    encode_line,
    read_public_file,
    read_secret_file,
    replace_private_file,
    write_private_file,
    write_public_file,
)
from pericard.keys.secrets import take, wipe

#: The word before the key in a plain identity file.
IDENTITY = "pericard-identity-v1"
_RECIPIENT = "pericard-recipient-v1"
SEED_SIZE = 32
_MLKEM_PUBLIC = 1184
PUBLIC_SIZE = _MLKEM_PUBLIC + 32
#: What wrapping adds to a secret: the ML-KEM ciphertext, the ephemeral X25519 key, the tag.
WRAP_OVERHEAD = 1088 + 32 + 16
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class Recipient:
    """The public half: whom a model is sealed for.

    Attributes:
        id: SHA-256 of the encoded public key, in hex; names the recipient in grants and logs.
    """

    def __init__(self, public: bytes) -> None:
        """Take the 1216-byte X-Wing public key (ML-KEM-768 encapsulation key, then X25519)."""
        if len(public) != PUBLIC_SIZE:
            raise KeyFileInvalid(f"recipient key: holds {len(public)} bytes, wanted {PUBLIC_SIZE}")
        self.public = public
        self.id = hashlib.sha256(public).hexdigest()
        try:
            self._key = hpke.MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
                x25519.X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
            )
        except ValueError as error:
            raise KeyFileInvalid("recipient key: is not an X-Wing public key") from error

    @classmethod
    def read(cls, path: Path) -> Recipient:
        """Read ``identity.pub``."""
        return cls(read_public_file(path, _RECIPIENT, PUBLIC_SIZE))

    def write(self, path: Path, *, comment: str = "public: give this to the model's vendor") -> None:
        """Write ``identity.pub``."""
        write_public_file(path, _RECIPIENT, self.public, comment=comment)

    def wrap(self, secret: bytes | bytearray, *, info: bytes) -> bytes:
        """Encrypt a short secret for this recipient, bound to ``info``.

        Raises:
            KeyFileInvalid: the public key is one that nobody can have made (its X25519 half is of low order).
        """
        try:
            return _SUITE.encrypt(secret, self._key, info=info)
        except ValueError as error:
            raise KeyFileInvalid(f"recipient {self.id[:16]}: is not an X-Wing public key") from error

    def __str__(self) -> str:
        return encode_line(_RECIPIENT, self.public)


class Identity:
    """The private half: opens what was sealed for its recipient."""

    def __init__(self, seed: bytes | bytearray) -> None:
        """Take the 32-byte X-Wing seed; the caller still owns and wipes it."""
        if len(seed) != SEED_SIZE:
            raise KeyFileInvalid(f"identity: holds {len(seed)} bytes, wanted {SEED_SIZE}")
        expanded = take(hashlib.shake_256(seed).digest(96))
        try:
            parts = memoryview(expanded)  # a slice of the bytearray itself would be one more copy of the secret
            kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(parts[:64])
            curve = x25519.X25519PrivateKey.from_private_bytes(parts[64:])
        finally:
            wipe(expanded)
        self._key = hpke.MLKEM768X25519PrivateKey(kem, curve)
        self.recipient = Recipient(kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw())

    @classmethod
    def read(cls, path: Path) -> Identity:
        """Read a plain 0600 identity file."""
        seed = cls.read_seed(path)
        try:
            return cls(seed)
        finally:
            wipe(seed)

    @staticmethod
    def read_seed(path: Path, *, shared: int = 0) -> bytearray:
        """Read only the seed from a plain identity file; the caller wipes it; ``shared`` as for secret files."""
        return read_secret_file(path, IDENTITY, SEED_SIZE, shared=shared)

    @staticmethod
    def write_seed(path: Path, seed: bytearray, recipient: str, *, replace: bool = False) -> None:
        """Write a plain identity file, mode 0600; only ``replace`` puts it in the place of one that is there."""
        write = replace_private_file if replace else write_private_file
        write(path, IDENTITY, seed, comment=f"private: identity {recipient[:16]}; never share")

    @classmethod
    def generate(cls, path: Path) -> Identity:
        """Make a new identity and write its private file."""
        seed = take(os.urandom(SEED_SIZE))
        try:
            made = cls(seed)
            cls.write_seed(path, seed, made.recipient.id)
        finally:
            wipe(seed)
        return made

    def unwrap(self, wrapped: bytes, *, info: bytes) -> bytearray:
        """Decrypt what :meth:`Recipient.wrap` made with the same ``info``; the caller wipes the result.

        Raises:
            BadGrant: it was made for another key or another ``info``, or was altered.
        """
        try:
            return take(_SUITE.decrypt(wrapped, self._key, info=info))
        except (InvalidTag, ValueError) as error:
            raise BadGrant("grant: does not open with this identity") from error
