"""When each token was used last: kept in memory, and written beside the token file now and then.

It is for whoever cleans up, and decides nothing: what cannot be read is unknown, and a write that fails is tried again
with the next one. No request waits for a write, and none is synced: a crash loses a minute.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

import msgspec

from pericard import durable

_FORMAT = "pericard/token-uses/v1"
_LARGEST = 4 << 20


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    uses: dict[str, int]


class Uses:
    """The last uses of a site's tokens, by their ids, in Unix seconds."""

    def __init__(self, path: Path) -> None:
        """Use a file; several processes may write it, and the latest use counts."""
        self._path = path
        self._noted: dict[str, int] = {}

    def note(self, token_id: str, now: float) -> None:
        """A token was used."""
        self._noted[token_id] = int(now)

    def write(self, known: Collection[str]) -> None:
        """Write what was noted since the last time, for those of the ``known`` ids.

        Raises:
            OSError: it cannot be written; what was noted is kept for the next time.
        """
        noted, self._noted = self._noted, {}
        if not noted:
            return
        try:
            with durable.locked(self._path):
                found = self.read()
                for token_id, moment in noted.items():
                    found[token_id] = max(moment, found.get(token_id, 0))
                _write(self._path, {key: moment for key, moment in found.items() if key in known})
        except OSError:
            self._noted = noted | self._noted
            raise

    def read(self) -> dict[str, int]:
        """What was written last; nothing if that cannot be read."""
        try:
            contents = msgspec.json.decode(durable.read(self._path, limit=_LARGEST), type=_Contents)
        except (OSError, ValueError, RecursionError, msgspec.DecodeError):
            return {}
        return dict(contents.uses) if contents.format == _FORMAT else {}


def _write(path: Path, uses: dict[str, int]) -> None:
    """Replace the file in one step; it need not outlive a power cut, so nothing waits for the disk."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(msgspec.json.encode(_Contents(_FORMAT, uses)))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
