"""The locked identity file: one construction for every lock (``docs/spec/identity-file.md``).

The lock gives a 32-byte key-encryption key that is used once. AES-256-GCM over the seed, with everything else that
the file says as associated data. What comes out must be the identity that the file names, so a key that opens the
ciphertext by design of an attacker gains him nothing.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pericard import canonical
from pericard.errors import KeyFileInvalid, UnlockRefused
from pericard.keys import (
    Identity,
    kind_of,
    overwriting,
    read_private_body,
    replace_private_file,
    wipe,
    write_private_file,
)
from pericard.keys.identity import IDENTITY, SEED_SIZE
from pericard.unlock.source import Lock, Parameters

FORMAT = "pericard/locked-identity/v1"
#: The word before the body in a locked identity file.
LOCKED = "pericard-locked-identity-v1"
KEY_SIZE = 32
MAX_BODY = 16 * 1024
_NONCE_SIZE = 12
_SEALED_SIZE = _NONCE_SIZE + SEED_SIZE + 16
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_RECIPIENT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LockedIdentity:
    """What stands in a locked identity file; none of it is secret.

    Attributes:
        recipient: id of the identity.
        kind: of the lock.
        parameters: from which the lock finds its key again.
        sealed: nonce (12 bytes), encrypted seed (32), tag (16).
    """

    recipient: str
    kind: str
    parameters: Parameters
    sealed: bytes

    @classmethod
    def seal(cls, seed: bytearray, kind: str, lock: Lock) -> LockedIdentity:
        """Lock a seed, and open it again as a start would, so that what cannot be opened is never written.

        Raises:
            PericardError: the lock cannot be had, or does not open what it locked.
        """
        with overwriting():
            made = cls._seal(seed, kind, lock)
        made.parse(made.encode(), subject="locked identity")
        wipe(made.open(lock))
        return made

    @classmethod
    def _seal(cls, seed: bytearray, kind: str, lock: Lock) -> LockedIdentity:
        recipient = Identity(seed).recipient.id
        key, parameters = lock.make(recipient)
        try:
            cipher = _cipher(key, kind)
        finally:
            wipe(key)
        nonce = os.urandom(_NONCE_SIZE)
        bound = _bound(recipient, kind, parameters)
        return cls(recipient, kind, parameters, nonce + cipher.encrypt(nonce, seed, bound))

    def open(self, lock: Lock) -> bytearray:
        """The seed; the caller wipes it.

        Raises:
            UnlockRefused: the lock's key is not the one, or the file was altered.
            PericardError: the lock gives no key.
        """
        with overwriting():
            return self._open(lock)

    def _open(self, lock: Lock) -> bytearray:
        key = lock.open(self.parameters, self.recipient)
        try:
            cipher = _cipher(key, self.kind)
        finally:
            wipe(key)
        seed = bytearray(SEED_SIZE)
        nonce, sealed = self.sealed[:_NONCE_SIZE], self.sealed[_NONCE_SIZE:]
        try:
            cipher.decrypt_into(nonce, sealed, _bound(self.recipient, self.kind, self.parameters), seed)
            if Identity(seed).recipient.id != self.recipient:
                wipe(seed)
                raise UnlockRefused(f"identity {self.recipient[:16]}: another one is locked in its place")
        except InvalidTag as error:
            wipe(seed)
            raise UnlockRefused(
                f"identity {self.recipient[:16]}: does not open with what the lock {self.kind} gave",
                hint="a wrong passphrase, the key of another lock, or a file that was altered",
            ) from error
        return seed

    @classmethod
    def read(cls, path: Path) -> LockedIdentity:
        """Read a locked identity file, mode 0600.

        Raises:
            KeyFileExposed: other users of the host could read it.
            KeyFileInvalid: it is missing, plain, or not what the specification says.
        """
        return cls.parse(read_private_body(path, LOCKED), subject=str(path))

    @classmethod
    def parse(cls, body: bytes, *, subject: str) -> LockedIdentity:
        """Read the decoded body of a file; raises ``KeyFileInvalid``."""
        try:
            found = canonical.decode(body, limit=MAX_BODY)
            if found.keys() != {"format", "lock", "recipient", "sealed"} or found["format"] != FORMAT:
                raise ValueError("is of another format")
            recipient, lock, sealed = found["recipient"], found["lock"], found["sealed"]
            if not (isinstance(recipient, str) and _RECIPIENT.fullmatch(recipient)):
                raise ValueError("names no recipient")
            if not (isinstance(lock, dict) and _is_kind(lock.get("kind"))):
                raise ValueError("names no lock")
            data = decode_base64(sealed)
            if len(data) != _SEALED_SIZE:
                raise ValueError(f"holds {len(data)} sealed bytes, wanted {_SEALED_SIZE}")
        except ValueError as error:
            raise KeyFileInvalid(f"{subject}: {error}") from error
        parameters = {name: value for name, value in lock.items() if name != "kind"}
        return cls(recipient, lock["kind"], parameters, data)

    def encode(self) -> bytes:
        """The body of a file."""
        members = _members(self.recipient, self.kind, self.parameters)
        return canonical.encode({**members, "sealed": base64.b64encode(self.sealed).decode("ascii")})

    def write(self, path: Path, *, replace: bool = False) -> None:
        """Write a locked identity file, mode 0600; only ``replace`` puts it in the place of one that is there."""
        write = replace_private_file if replace else write_private_file
        write(path, LOCKED, self.encode(), comment=f"identity {self.recipient[:16]}, locked: {self.kind}")


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A locked identity file and what opens it."""

    path: Path
    kind: str
    lock: Lock

    def seed(self) -> bytearray:
        """The seed.

        Raises:
            KeyFileInvalid: the file is plain, or has another lock.
            PericardError: the lock gives no key, or another one.
        """
        found = read(self.path)
        if found is None or found.kind != self.kind:
            lock = found.kind if found else "file"
            raise KeyFileInvalid(
                f"{self.path}: has the lock {lock}, and identity.unlock says {self.kind}",
                hint=f"change identity.unlock, or `pericard identity relock {self.path} --to {self.kind}`",
            )
        return found.open(self.lock)


def read(path: Path) -> LockedIdentity | None:
    """What a locked identity file says, or None if the file is a plain one.

    Raises:
        KeyFileError: it is neither, cannot be read, or others could read it.
    """
    return None if kind_of(path) == IDENTITY else LockedIdentity.read(path)


def decode_base64(text: object) -> bytes:
    """Padded base64 in its one form; raises ``ValueError``."""
    if not isinstance(text, str):
        raise ValueError("holds something that is not base64")  # noqa: TRY004  (callers map one exception type)
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise ValueError("holds something that is not base64") from error
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("holds base64 that is not in its one form")
    return data


def _is_kind(value: object) -> bool:
    return isinstance(value, str) and _KIND.fullmatch(value) is not None


def _members(recipient: str, kind: str, parameters: Parameters) -> dict[str, Any]:
    return {"format": FORMAT, "lock": {**parameters, "kind": kind}, "recipient": recipient}


def _bound(recipient: str, kind: str, parameters: Parameters) -> bytes:
    """The associated data: everything that the file says but the sealed seed."""
    try:
        return canonical.encode(_members(recipient, kind, parameters))
    except ValueError as error:
        raise KeyFileInvalid(f"lock {kind}: its parameters are not canonical: {error}") from error


def _cipher(key: bytearray, kind: str) -> AESGCM:
    if len(key) != KEY_SIZE:
        raise UnlockRefused(f"lock {kind}: gave {len(key)} bytes of key, wanted {KEY_SIZE}")
    return AESGCM(key)
