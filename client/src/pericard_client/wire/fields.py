"""JSON that another machine wrote, read strictly: every access names the field and checks its type."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from pericard_client.errors import UnexpectedReply, printable
from pericard_client.models import Values

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEEPEST = 8  # axes of an output

T = TypeVar("T")


class Fields:
    """One JSON object; ``where`` names it in messages."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self.fields = fields
        self.where = where

    @classmethod
    def of_json(cls, body: bytes) -> Fields:
        """The object that a body holds; NaN, infinities and repeated names are no JSON."""
        try:
            value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repeats)
        except (ValueError, RecursionError) as error:
            raise UnexpectedReply(
                "reply: not a JSON object", hint="is this the address of a Pericard server?"
            ) from error
        return cls(_checked(value, dict, "an object", "reply"), "reply")

    def maybe(self, access: Callable[[str], T], name: str) -> T | None:
        """The field by that access, or None where it is absent or null."""
        return None if self.fields.get(name) is None else access(name)

    def text(self, name: str) -> str:
        """A string, made fit for a terminal and a log."""
        return _text(self.fields.get(name), f"{self.where}.{name}")

    def exact(self, name: str) -> str:
        """A string as it came: for what is verified, never for a terminal."""
        return _checked(self.fields.get(name), str, "a string", f"{self.where}.{name}")

    def hashes(self, name: str) -> tuple[bytes, ...]:
        """An array of 32 bytes each, in lower-case hex."""
        texts = self.texts(name)
        if not all(_SHA256.fullmatch(each) for each in texts):
            raise UnexpectedReply(f"{self.where}.{name}: not 32 bytes each, in lower-case hex")
        return tuple(map(bytes.fromhex, texts))

    def flag(self, name: str) -> bool:
        """True or false."""
        return _checked(self.fields.get(name), bool, "true or false", f"{self.where}.{name}")

    def integer(self, name: str) -> int:
        """A number without a fraction."""
        return _integer(self.fields.get(name), f"{self.where}.{name}")

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.values(name)
        if not isinstance(value, float):
            raise UnexpectedReply(f"{self.where}.{name}: not a number")
        return value

    def values(self, name: str) -> Values:
        """A finite number, or nested arrays of them."""
        return _values(self.fields.get(name), f"{self.where}.{name}")

    def sha256(self, name: str) -> str:
        """32 bytes in lower-case hex."""
        value = self.text(name)
        if not _SHA256.fullmatch(value):
            raise UnexpectedReply(f"{self.where}.{name}: not 32 bytes in lower-case hex")
        return value

    def time(self, name: str) -> datetime:
        """An RFC 3339 time."""
        try:
            return datetime.fromisoformat(self.text(name))
        except ValueError as error:
            raise UnexpectedReply(f"{self.where}.{name}: not a time") from error

    def array(self, name: str) -> list[Any]:
        """An array of anything."""
        return _checked(self.fields.get(name), list, "an array", f"{self.where}.{name}")

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        return tuple(_text(each, f"{self.where}.{name}") for each in self.array(name))

    def text_lists(self, name: str) -> tuple[tuple[str, ...], ...]:
        """An array of arrays of strings."""
        where = f"{self.where}.{name}"
        lists = (_checked(each, list, "an array", where) for each in self.array(name))
        return tuple(tuple(_text(each, where) for each in texts) for texts in lists)

    def integers(self, name: str) -> tuple[int, ...]:
        """An array of integers."""
        return tuple(_integer(each, f"{self.where}.{name}") for each in self.array(name))

    def part(self, name: str) -> Fields:
        """An object."""
        where = f"{self.where}.{name}"
        return Fields(_checked(self.fields.get(name), dict, "an object", where), where)

    def parts(self, name: str) -> list[Fields]:
        """An array of objects."""
        where = f"{self.where}.{name}"
        return [
            Fields(_checked(each, dict, "an object", f"{where}[{index}]"), f"{where}[{index}]")
            for index, each in enumerate(self.array(name))
        ]


def _checked(value: object, kind: type[T], words: str, where: str) -> T:
    if not isinstance(value, kind):
        raise UnexpectedReply(f"{where}: not {words}")
    return value


def _text(value: object, where: str) -> str:
    return printable(_checked(value, str, "a string", where))


def _integer(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnexpectedReply(f"{where}: not an integer")
    return value


def _values(value: object, where: str, depth: int = 0) -> Values:
    if isinstance(value, list) and depth < _DEEPEST:
        return tuple(_values(each, where, depth + 1) for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnexpectedReply(f"{where}: not a number")
    try:
        number = float(value)
    except OverflowError as error:
        raise UnexpectedReply(f"{where}: not a number of 64 bits") from error
    if not math.isfinite(number):  # JSON's 1e999
        raise UnexpectedReply(f"{where}: not a finite number")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return fields
