"""The one interface of every key source."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pericard.errors import ConfigError
from pericard.unlock.file import PlainFile


class KeySource(Protocol):
    """Something that can unlock an identity."""

    def seed(self) -> bytearray:
        """The identity's 32-byte seed; the caller wipes it.

        Raises:
            PericardError: it cannot be had; the message says why and holds no secret.
        """
        ...


def source_for(kind: str, path: Path) -> KeySource:
    """The key source that the configuration names.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind != "file":
        raise ConfigError(f"identity.unlock: {kind!r} is not a key source", hint="the only source so far is 'file'")
    return PlainFile(path)
