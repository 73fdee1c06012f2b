"""The two interfaces of the room: what gives an identity, and what locks one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

#: What stands in an identity file about its lock: canonical JSON, nothing secret.
Parameters = Mapping[str, Any]


class KeySource(Protocol):
    """Something that can unlock an identity."""

    def seed(self) -> bytearray:
        """The identity's 32-byte seed; the caller wipes it.

        Raises:
            PericardError: it cannot be had; the message says why and holds no secret.
        """
        ...


class Lock(Protocol):
    """Something that holds a 32-byte key-encryption key, or can make it again."""

    def make(self, recipient: str) -> tuple[bytearray, dict[str, Any]]:
        """A fresh key, and the parameters from which this lock finds it again.

        Args:
            recipient: id of the identity that is being locked; a lock that can binds the key to it.

        Returns:
            The key, which the caller wipes, and parameters for the identity file: canonical JSON without ``kind``.

        Raises:
            KeySourceUnavailable: what holds the key cannot be reached, or is not there.
            UnlockRefused: it answered, and refused.
        """
        ...

    def open(self, parameters: Parameters, recipient: str) -> bytearray:
        """The key that :meth:`make` made with these parameters; the caller wipes it.

        The parameters are unproven when they come in: whoever can write the file chose them.

        Raises:
            KeyFileInvalid: the parameters are not ones that this lock makes.
            KeySourceUnavailable: what holds the key cannot be reached, or is not there.
            UnlockRefused: it answered, and refused.
        """
        ...

    def close(self) -> None:
        """Wipe what the lock keeps, such as a passphrase."""
        ...
