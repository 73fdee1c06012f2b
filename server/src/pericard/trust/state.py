"""What a site remembers: the highest floor per publisher and model, and the latest time it recorded.

One canonical JSON file, replaced atomically. A missing file is an empty state; a damaged one is refused.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pericard import canonical, durable
from pericard.canonical import JSON
from pericard.errors import TrustStateInvalid

_FORMAT = "pericard/trust-state/v1"
_LIMIT = 1 << 20
_DAY = 86400
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
            if value.keys() != {"format", "floors", "latest_time"} or value["format"] != _FORMAT:
                raise ValueError("has other fields than it should")
            floors, latest = value["floors"], value["latest_time"]
            if type(latest) is not int or latest < 0 or not isinstance(floors, dict):
                raise ValueError("has a bad field")
            if not all(_KEY.fullmatch(key) and type(floor) is int and floor >= 0 for key, floor in floors.items()):
                raise ValueError("has a bad floor")
        except ValueError as error:
            raise TrustStateInvalid(
                f"{self._path}: {error}",
                hint="restore it from a backup; without it a withdrawn version could come back unseen",
            ) from error
        self._floors, self.latest_time = dict(floors), latest

    @property
    def digest(self) -> str:
        """SHA-256 of the state, hex."""
        return hashlib.sha256(_encode(self._floors, self.latest_time)).hexdigest()

    def floor(self, publisher: str, model: str) -> int:
        """The lowest sequence that is still accepted; 0 if none was withdrawn."""
        return self._floors.get(f"{publisher}/{model}", 0)

    def raise_floor(self, publisher: str, model: str, floor: int) -> None:
        """Remember a floor, durably, if it is higher than the one known."""
        if floor > self.floor(publisher, model):
            self._save(self._floors | {f"{publisher}/{model}": floor}, self.latest_time)

    def raise_time(self, now: int) -> None:
        """Remember a time, durably, if it is later than the one known; after the first, by at most a day a step.

        A clock that is wrong by years for one start must not end every licence.
        """
        if now > self.latest_time:
            self._save(self._floors, min(now, self.latest_time + _DAY) if self.latest_time else now)

    def _save(self, floors: dict[str, int], latest_time: int) -> None:
        """Write, then believe: what could not be made durable is not remembered either, and is tried again."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.replace(self._path, _encode(floors, latest_time))
        except OSError as error:
            raise TrustStateInvalid(
                f"{self._path}: cannot be written: {(error.strerror or 'i/o error').lower()}"
            ) from error
        self._floors, self.latest_time = dict(floors), latest_time


def _encode(floors: dict[str, int], latest_time: int) -> bytes:
    value: dict[str, JSON] = {"format": _FORMAT, "floors": dict(floors), "latest_time": latest_time}
    return canonical.encode(value)
