"""What a site remembers: the highest floor per publisher and model, and the latest time it recorded.

One canonical JSON file, replaced atomically. A missing file is an empty state; a damaged one is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from pericard import canonical
from pericard.canonical import JSON
from pericard.errors import TrustStateInvalid

_FORMAT = "pericard/trust-state/v1"
_LIMIT = 1 << 20
_KEY = re.compile(r"[0-9a-f]{64}/[a-z0-9][a-z0-9._-]{0,63}")


class TrustState:
    """Floors and licence time, kept in a file.

    Attributes:
        latest_time: the latest Unix time that was recorded.
    """

    def __init__(self, path: Path) -> None:
        """Read the state.

        Raises:
            TrustStateInvalid: the file is there and damaged, or cannot be read.
        """
        self._path = path
        self._floors: dict[str, int] = {}
        self.latest_time = 0
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise TrustStateInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
        self._load(data)

    def _load(self, data: bytes) -> None:
        try:
            value = canonical.decode(data, limit=_LIMIT)
            floors, latest = value["floors"], value["latest_time"]
            if value.keys() != {"format", "floors", "latest_time"} or value["format"] != _FORMAT:
                raise ValueError("has other fields than it should")
            if type(latest) is not int or not isinstance(floors, dict):
                raise ValueError("has a bad field")
            if not all(_KEY.fullmatch(key) and type(floor) is int and floor >= 0 for key, floor in floors.items()):
                raise ValueError("has a bad floor")
        except (ValueError, KeyError) as error:
            raise TrustStateInvalid(
                f"{self._path}: {error}",
                hint="restore it from a backup; without it a withdrawn version could come back unseen",
            ) from error
        self._floors, self.latest_time = dict(floors), latest

    @property
    def digest(self) -> str:
        """SHA-256 of the state, hex."""
        return hashlib.sha256(self._encode()).hexdigest()

    def floor(self, publisher: str, model: str) -> int:
        """The lowest sequence that is still accepted; 0 if none was withdrawn."""
        return self._floors.get(f"{publisher}/{model}", 0)

    def raise_floor(self, publisher: str, model: str, floor: int) -> None:
        """Remember a floor, durably, if it is higher than the one known."""
        if floor > self.floor(publisher, model):
            self._floors[f"{publisher}/{model}"] = floor
            self._save()

    def raise_time(self, now: int) -> None:
        """Remember a time, durably, if it is later than the one known."""
        if now > self.latest_time:
            self.latest_time = now
            self._save()

    def _encode(self) -> bytes:
        floors: dict[str, JSON] = dict(self._floors)
        return canonical.encode({"format": _FORMAT, "floors": floors, "latest_time": self.latest_time})

    def _save(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=".trust.", delete=False) as out:
                out.write(self._encode())
                out.flush()
                os.fsync(out.fileno())
            Path(out.name).replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise TrustStateInvalid(
                f"{self._path}: cannot be written: {(error.strerror or 'i/o error').lower()}"
            ) from error
