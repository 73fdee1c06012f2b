"""What a site remembers: the highest floor per publisher's key and model, and the latest time it recorded.

One canonical JSON file, replaced atomically. A missing file is an empty state; a damaged one is refused. That it is
also the *right* one, its digest proves: whoever changes it first commits the change to the audit log (``engine``'s
journal), so this room only proposes a state and writes the one that was recorded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pericard import canonical, durable
from pericard.canonical import JSON
from pericard.errors import TrustStateInvalid
from pericard.sealed.manifest import MAX_SEQUENCE

_FORMAT = "pericard/trust-state/v1"
_LIMIT = 1 << 20
_DAY = 86400
_KEY = re.compile(r"[0-9a-f]{64}/[a-z0-9][a-z0-9._-]{0,63}")
_DECIMAL = re.compile(r"[0-9]{1,16}", re.ASCII)
_MAX_TIME = 1 << 40


@dataclass(frozen=True, slots=True)
class Remembered:
    """A state as a value; what changes makes another one.

    Attributes:
        floors: lowest sequence that is still accepted, by ``publisher id/model``.
        latest_time: the latest Unix time that was recorded; 0 if none was.
    """

    floors: Mapping[str, int] = field(default_factory=dict)
    latest_time: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the state's file, hex."""
        return hashlib.sha256(self.encode()).hexdigest()

    def floor(self, publisher: str, model: str) -> int:
        """The lowest sequence that one key lets be accepted; 0 if it withdrew none."""
        return self.floors.get(f"{publisher}/{model}", 0)

    def with_floor(self, publisher: str, model: str, floor: int) -> Remembered:
        """This state, or one with a higher floor."""
        if floor <= self.floor(publisher, model):
            return self
        return replace(self, floors={**self.floors, f"{publisher}/{model}": floor})

    def with_time(self, now: int) -> Remembered:
        """This state, or one with a later time; after the first, later by at most a day.

        A clock that is wrong by years for one start must not end every licence.
        """
        if now <= self.latest_time:
            return self
        return replace(self, latest_time=min(now, self.latest_time + _DAY) if self.latest_time else now)

    def merged(self, other: Remembered) -> Remembered:
        """The higher of every floor and the later time of both."""
        floors = {key: max(self.floors.get(key, 0), other.floors.get(key, 0)) for key in {*self.floors, *other.floors}}
        return Remembered(floors, max(self.latest_time, other.latest_time))

    def change(self, before: Remembered) -> dict[str, JSON]:
        """What makes ``before`` this state; :meth:`changed` makes it again.

        Floors are decimal text, as the audit log's specification says.
        """
        floors = {key: str(floor) for key, floor in self.floors.items() if before.floors.get(key) != floor}
        found: dict[str, JSON] = {"floors": floors} if floors else {}
        return found if self.latest_time == before.latest_time else found | {"latest_time": self.latest_time}

    def changed(self, change: Mapping[str, JSON]) -> Remembered:
        """This state with a recorded change.

        Raises:
            ValueError: it is no change of a state.
        """
        floors = change.get("floors", {})
        if not change.keys() <= {"floors", "latest_time"} or not isinstance(floors, dict):
            raise ValueError("is no change of a trust state")
        if not all(isinstance(floor, str) and _DECIMAL.fullmatch(floor) for floor in floors.values()):
            raise ValueError("has a bad floor")
        raised = {key: int(floor) for key, floor in floors.items()}
        return _checked(Remembered({**self.floors, **raised}, change.get("latest_time", self.latest_time)))

    def encode(self) -> bytes:
        """The bytes of its file."""
        value: dict[str, JSON] = {"format": _FORMAT, "floors": dict(self.floors), "latest_time": self.latest_time}
        return canonical.encode(value)


class TrustState:
    """The state in its file."""

    def __init__(self, path: Path) -> None:
        """Read the state.

        Raises:
            TrustStateInvalid: the file is there and damaged, or cannot be read.
        """
        self.path = path
        self._current = Remembered()
        try:
            data = durable.read(path, limit=_LIMIT)
        except FileNotFoundError:
            return
        except OSError as error:
            raise TrustStateInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
        try:
            self._current = _decode(data)
        except ValueError as error:
            raise TrustStateInvalid(
                f"{path}: {error}",
                hint="restore it from a backup, or remove it, and then: pericard trust reset",
            ) from error

    @property
    def current(self) -> Remembered:
        """What is remembered, and durable."""
        return self._current

    @property
    def latest_time(self) -> int:
        """The latest Unix time that was recorded; 0 if none was."""
        return self._current.latest_time

    def merge(self, proposed: Remembered) -> None:
        """:meth:`commit` for a file that several processes share: nothing that another one remembered is lost.

        Raises:
            TrustStateInvalid: as :meth:`commit`, or what is there now is damaged.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with durable.locked(self.path):
                self._current = TrustState(self.path).current
                self.commit(self._current.merged(proposed))
        except OSError as error:
            raise TrustStateInvalid(f"{self.path}: {(error.strerror or 'i/o error').lower()}") from error

    def commit(self, proposed: Remembered) -> None:
        """Write, then believe: what could not be made durable is not remembered either, and is tried again.

        Raises:
            TrustStateInvalid: it cannot be written, or grew beyond what is read again; the old one stands.
        """
        if proposed == self._current and self.path.exists():
            return
        data = proposed.encode()
        if len(data) > _LIMIT:
            raise TrustStateInvalid(f"{self.path}: would be larger than {_LIMIT} bytes")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.replace(self.path, data)
        except OSError as error:
            raise TrustStateInvalid(
                f"{self.path}: cannot be written: {(error.strerror or 'i/o error').lower()}"
            ) from error
        self._current = proposed


def _decode(data: bytes) -> Remembered:
    try:
        value = canonical.decode(data, limit=_LIMIT)
    except json.JSONDecodeError as error:  # its words are the parser's, and name no file
        raise ValueError("is not canonical json") from error
    if value.keys() != {"format", "floors", "latest_time"} or value["format"] != _FORMAT:
        raise ValueError("has other fields than it should")
    if not isinstance(value["floors"], dict):
        raise ValueError("has a bad field")  # noqa: TRY004  (readers map one exception type)
    return _checked(Remembered(value["floors"], value["latest_time"]))


def _checked(state: Remembered) -> Remembered:
    if type(state.latest_time) is not int or not 0 <= state.latest_time < _MAX_TIME:
        raise ValueError("has a bad field")
    for key, floor in state.floors.items():
        if not _KEY.fullmatch(key) or type(floor) is not int or not 0 <= floor <= MAX_SEQUENCE:
            raise ValueError("has a bad floor")
    return state
