"""How far the forwarder came: one number in a file, replaced atomically."""

from __future__ import annotations

from pathlib import Path

from pericard import durable
from pericard.errors import ConfigError

_LONGEST = 20


class Cursor:
    """The index of the next record to send."""

    def __init__(self, path: Path) -> None:
        """Read the cursor; a missing file means the beginning.

        Raises:
            ConfigError: the file is not a cursor.
        """
        self._path = path
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            text = "0"
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as a cursor") from error
        if not text.isdigit() or len(text) > _LONGEST:
            raise ConfigError(
                f"{path}: is not a cursor", hint="it holds one number; remove it to send everything again"
            )
        self.position = int(text)

    def advance(self, position: int) -> None:
        """Remember durably that everything before ``position`` was taken."""
        try:
            durable.replace(self._path, f"{position}\n".encode("ascii"))
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error
        self.position = position
