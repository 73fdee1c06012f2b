"""The plain identity file, mode 0600."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pericard.errors import KeyFileInvalid
from pericard.keys import Identity, kind_of
from pericard.unlock.locked import LOCKED


@dataclass(frozen=True, slots=True)
class PlainFile:
    """Reads the seed from a file that only its owner may read."""

    path: Path

    def seed(self) -> bytearray:
        """The seed; raises ``KeyFileExposed`` or ``KeyFileInvalid``."""
        if kind_of(self.path) == LOCKED:
            raise KeyFileInvalid(
                f"{self.path}: is locked", hint="identity.unlock names the lock; `pericard identity show` says which"
            )
        return Identity.read_seed(self.path)
