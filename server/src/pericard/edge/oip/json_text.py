"""JSON objects from callers, read strictly: the fields that the protocol names, each of them once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from pericard.errors import MalformedRequest

#: What a parameter may be.
Value = bool | int | float | str
Parameters = dict[str, Value]

_T = TypeVar("_T")
_NAME_SHOWN = 64
_RESERVED = {
    "sequence_id": "no model here keeps a sequence",
    "sequence_start": "no model here keeps a sequence",
    "sequence_end": "no model here keeps a sequence",
    "headers": "the name is reserved",
    "classification": "the classification extension is not offered",
    "shared_memory_region": "shared memory is not offered",
    "shared_memory_offset": "shared memory is not offered",
    "shared_memory_byte_size": "shared memory is not offered",
}
_RESERVED_PREFIX = "triton_"


def decode(text: bytes | msgspec.Raw, kind: type[_T], what: str) -> _T:
    """Read JSON as a type.

    Raises:
        MalformedRequest: it is none, or of another form.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise MalformedRequest(f"{what}: {_plain(error)}", hint="see docs/spec/http-api.md for the fields") from error


def refuse_repetition(text: bytes) -> None:
    """Refuse a name that stands twice in an object: it means one thing to us and another to whoever reads the first.

    Raises:
        MalformedRequest: one does.
    """
    try:
        _STRICT.decode(text.decode("utf-8"))
    except (RecursionError, ValueError) as error:
        raise MalformedRequest(f"body: {_plain(error)}") from error


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice in an object of it")


_STRICT = json.JSONDecoder(object_pairs_hook=_once)


def parameters(raw: msgspec.Raw, what: str) -> Parameters:
    """A ``parameters`` object; names that are known to nobody are taken along, as Triton does.

    Raises:
        MalformedRequest: a value is no string, number or boolean, or a name means something that is not offered.
    """
    if absent(raw):
        return {}
    found = decode(raw, Parameters, f"{what}: parameters")
    for name in found:
        reason = _RESERVED.get(name)
        if reason is None and name.startswith(_RESERVED_PREFIX):
            reason = "names of this kind are reserved"
        if reason is not None:
            raise MalformedRequest(f"{what}: parameter {name[:_NAME_SHOWN]!r} is refused, {reason}")
    return found


def flag(given: Mapping[str, Value], name: str, what: str, *, default: bool) -> bool:
    """A boolean parameter.

    Raises:
        MalformedRequest: it is something else.
    """
    value = given.get(name, default)
    if type(value) is not bool:
        raise MalformedRequest(f"{what}: parameter {name} must be true or false")
    return value


def whole(given: Mapping[str, Value], name: str, what: str, *, most: int) -> int | None:
    """An integer parameter from 0 to ``most``; None if it is not there.

    Raises:
        MalformedRequest: it is something else.
    """
    value = given.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= most:
        raise MalformedRequest(f"{what}: parameter {name} must be an integer from 0 to {most}")
    return value


def absent(raw: msgspec.Raw) -> bool:
    """Whether a field was left out, or is null."""
    return len(memoryview(raw)) == 0 or bytes(memoryview(raw)[:4]) == b"null"


def _plain(error: Exception) -> str:
    """Msgspec's words, on one short line."""
    return str(error).split("\n", maxsplit=1)[0][:200].lower()
