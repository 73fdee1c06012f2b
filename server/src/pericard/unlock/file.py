"""The plain identity file, mode 0600."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pericard.keys import Identity


@dataclass(frozen=True, slots=True)
class PlainFile:
    """Reads the seed from a file that only its owner may read."""

    path: Path

    def seed(self) -> bytearray:
        """The seed; raises ``KeyFileExposed`` or ``KeyFileInvalid``."""
        return Identity.read_seed(self.path)
