"""The publishers that a site pinned: one file, ``publishers.json``, changed by command and read at the start.

A vendor's name may have several keys at once, so that the vendor can change keys without a gap; each may have its own
last day. One key stands under one name. What the names are good for: floors are remembered by key, and the highest
over all keys of a name counts, so a new key cannot bring a withdrawn version back. A key that was removed counts no
longer: who stole it could have raised its floors beyond every version.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pericard import canonical, durable
from pericard.canonical import JSON
from pericard.errors import ConfigError, KeyFileInvalid
from pericard.keys import Publisher
from pericard.tensors import NAME

MAX_KEYS = 4  # of one name that are trusted at the same time
_MAX_PINS = 256
_FORMAT = "pericard/publishers/v1"
_FIELDS = {"name", "id", "key", "since", "until"}
_LIMIT = 1 << 20
_MAX_TIME = 1 << 40
_SHORTEST_ID = 16


@dataclass(frozen=True, slots=True)
class Pin:
    """One key that this site trusts.

    Attributes:
        name: of the vendor, chosen here.
        publisher: the key.
        since: when it was pinned, Unix time.
        until: last second at which it is trusted, Unix time; None for no end.
    """

    name: str
    publisher: Publisher
    since: int
    until: int | None

    def trusted(self, now: int) -> bool:
        """Whether it is trusted at a licence time."""
        return self.until is None or now <= self.until


class Pins:
    """The pinned set, in the order of names and ages."""

    def __init__(self, pins: Iterable[Pin] = ()) -> None:
        """Take pins.

        Raises:
            ValueError: one key stands twice, or they are too many.
        """
        self._pins = tuple(sorted(pins, key=lambda pin: (pin.name, pin.since, pin.publisher.id)))
        if len({pin.publisher.id for pin in self._pins}) != len(self._pins):
            raise ValueError("pins one key twice")
        if len(self._pins) > _MAX_PINS:
            raise ValueError(f"pins more than {_MAX_PINS} keys")

    @classmethod
    def of(cls, *publishers: Publisher) -> Pins:
        """Publishers pinned by hand, each under a name of its own, without an end."""
        return cls(Pin(publisher.id, publisher, 0, None) for publisher in publishers)

    @property
    def publishers(self) -> tuple[Publisher, ...]:
        """Every key, also of those that ended."""
        return tuple(pin.publisher for pin in self._pins)

    def get(self, publisher: str) -> Pin | None:
        """The pin of a key's id, if there is one."""
        return next((pin for pin in self._pins if pin.publisher.id == publisher), None)

    def named(self, name: str) -> list[Pin]:
        """All keys of a name."""
        return [pin for pin in self._pins if pin.name == name]

    def __iter__(self) -> Iterator[Pin]:
        return iter(self._pins)

    def __len__(self) -> int:
        return len(self._pins)


class TrustStore:
    """The file."""

    def __init__(self, path: Path) -> None:
        """Use a file; it is made by the first :meth:`add`."""
        self._path = path

    def read(self) -> Pins:
        """The pinned set; none at all if there is no file.

        Raises:
            ConfigError: it is damaged, cannot be read, or others may write it.
        """
        try:
            # O_NONBLOCK: a named pipe in the file's place must be refused, not waited for
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                mode = os.fstat(descriptor).st_mode
                if not stat.S_ISREG(mode):
                    raise ConfigError(f"{self._path}: is not a regular file")
                if mode & 0o022:
                    raise ConfigError(
                        f"{self._path}: others may write it (mode {stat.S_IMODE(mode):04o}), and so choose whom this "
                        "site trusts",
                        hint=f"compare its keys (pericard trust list), then chmod 644 {self._path}",
                    )
                data = file.read(_LIMIT + 1)
        except FileNotFoundError:
            return Pins()
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
        try:
            return _decode(data)
        except ValueError as error:
            raise ConfigError(
                f"{self._path}: {error}", hint="restore it from a backup, or pin the vendors again: pericard trust add"
            ) from error

    def load(self) -> Pins:
        """As :meth:`read`, for a server, which needs at least one.

        Raises:
            ConfigError: as :meth:`read`, or no publisher is pinned.
        """
        pins = self.read()
        if not len(pins) and not self._path.exists():
            raise ConfigError(
                f"{self._path}: is missing, and with it every pinned publisher",
                hint=f"pericard trust add NAME vendor.pub --store {self._path}",
            )
        if not len(pins):
            raise ConfigError(
                f"{self._path}: pins no publisher", hint="pericard trust add NAME vendor.pub, with --store"
            )
        return pins

    def add(self, name: str, publisher: Publisher, *, now: int, until: int | None = None) -> Pin:
        """Pin a key under a name; a key that is pinned there already gets the new end.

        Raises:
            ConfigError: the name is none, the key has another name, the name has too many keys, or the file cannot be
                read or written.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"publisher name {name!r}: use small letters, digits, dot, dash or underscore, at most 64"
            )
        if until is not None and not 0 <= until < _MAX_TIME:
            raise ConfigError(f"publisher {name}: its last day lies beyond every calendar")
        with self._locked():
            pins = self.read()
            known = pins.get(publisher.id)
            if known is not None and known.name != name:
                raise ConfigError(
                    f"publisher {publisher.id[:16]}: is pinned as {known.name}",
                    hint="a key has one name; pericard trust remove takes it away, and with it what it withdrew",
                )
            pin = replace(known, until=until) if known else Pin(name, publisher, now, until)
            others = [other for other in pins if other.publisher.id != publisher.id]
            if sum(other.name == name and other.trusted(now) for other in others) >= MAX_KEYS:
                raise ConfigError(
                    f"publisher {name}: has {MAX_KEYS} keys already",
                    hint="pericard trust add NAME OLD.pub --until DATE gives an old one its end; pericard trust remove",
                )
            self._write([*others, pin])
        return pin

    def remove(self, which: str) -> list[Pin]:
        """Remove every key of a name, or the one whose id begins with at least 16 digits that are given.

        Raises:
            ConfigError: there is none, or the file cannot be read or written.
        """
        unknown = ConfigError(f"publisher {which!r}: is not pinned", hint="pericard trust list shows names and ids")
        if not self._path.exists():
            raise unknown  # before a lock's file is made beside nothing
        with self._locked():
            pins = self.read()
            gone = pins.named(which)
            if not gone and len(which) >= _SHORTEST_ID:
                gone = [pin for pin in pins if pin.publisher.id.startswith(which)]
            if not gone:
                raise unknown
            self._write([pin for pin in pins if pin not in gone])
        return gone

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time."""
        try:
            with durable.locked(self._path):
                yield
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: cannot be written: {(error.strerror or 'i/o error').lower()}")

    def _write(self, pins: list[Pin]) -> None:
        try:
            entries = [_entry(pin) for pin in Pins(pins)]
        except ValueError as error:
            raise ConfigError(f"{self._path}: {error}") from error
        durable.replace(self._path, canonical.encode({"format": _FORMAT, "publishers": entries}), mode=0o644)


def _meant(pins: Pins, which: str) -> list[Pin]:
    gone = pins.named(which)
    if not gone and len(which) >= _SHORTEST_ID:
        gone = [pin for pin in pins if pin.publisher.id.startswith(which)]
    if not gone:
        raise ConfigError(f"publisher {which!r}: is not pinned", hint="pericard trust list shows names and ids")
    return gone


def _entry(pin: Pin) -> dict[str, JSON]:
    key = base64.b64encode(pin.publisher.public).decode("ascii")
    return {"name": pin.name, "id": pin.publisher.id, "key": key, "since": pin.since, "until": pin.until}


def _decode(data: bytes) -> Pins:
    try:
        value = canonical.decode(data, limit=_LIMIT)
    except json.JSONDecodeError as error:  # its words are the parser's, and name no file
        raise ValueError("is not canonical json") from error
    if value.keys() != {"format", "publishers"} or value["format"] != _FORMAT:
        raise ValueError("is not a list of publishers")
    if not isinstance(value["publishers"], list):
        raise ValueError("is not a list of publishers")  # noqa: TRY004  (readers map one exception type)
    return Pins(map(_pin, value["publishers"]))


def _pin(item: JSON) -> Pin:
    if not isinstance(item, dict) or item.keys() != _FIELDS:
        raise ValueError("has a publisher with other fields than it should")
    name, key, since, until = item["name"], item["key"], item["since"], item["until"]
    if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(key, str):
        raise ValueError("has a publisher without a name or a key")
    for moment in (since, 0 if until is None else until):
        if type(moment) is not int or not 0 <= moment < _MAX_TIME:
            raise ValueError(f"has a bad date for {name}")
    try:
        publisher = Publisher(binascii.a2b_base64(key.encode("ascii"), strict_mode=True))
    except (ValueError, KeyFileInvalid) as error:
        raise ValueError(f"has a bad key for {name}") from error
    if publisher.id != item["id"]:
        raise ValueError(f"has a key for {name} that is not the one of its id")
    return Pin(name, publisher, since, until)
