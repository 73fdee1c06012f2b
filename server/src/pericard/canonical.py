"""Canonical JSON: the one form in which Pericard signs or hashes structured data.

ASCII, keys sorted, no spaces, integers only (no floats: their text form is not unique). Decoding refuses anything that
would not be encoded to the very same bytes, so a value has one form and a parser difference has no room.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

JSON = Any

_MAX_DEPTH = 16
_MAX_INTEGER = 1 << 63


def encode(value: JSON) -> bytes:
    """Encode to canonical bytes.

    Raises:
        ValueError: the value holds a float, a number beyond 64 bits or half of a surrogate pair, or nests too deeply.
    """
    _check(value, 0)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def decode(data: bytes, *, limit: int) -> dict[str, JSON]:
    """Decode one canonical object of at most ``limit`` bytes.

    Raises:
        ValueError: it is not an object, not canonical, or too large.
    """
    if len(data) > limit:
        raise ValueError(f"is larger than {limit} bytes")
    try:
        value = json.loads(
            data.decode("ascii"), parse_float=_no_float, parse_constant=_no_float, object_pairs_hook=_no_duplicates
        )
    except RecursionError as error:
        raise ValueError("nests too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not ASCII") from error
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004  (callers map one exception type)
    if encode(value) != data:
        raise ValueError("is not in canonical form")
    return value


def _check(value: object, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("nests too deeply")
    match value:
        case None | bool():
            pass
        case str():
            _check_text(value)
        case int():
            if not -_MAX_INTEGER <= value < _MAX_INTEGER:
                raise ValueError("holds a number beyond 64 bits")
        case list():
            for item in value:
                _check(item, depth + 1)
        case dict():
            for key, item in value.items():
                _check_key(key)
                _check(item, depth + 1)
        case _:
            raise ValueError(f"holds a {type(value).__name__}, which has no canonical form")


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise ValueError("holds a key that is not text")  # noqa: TRY004  (one exception type)
    _check_text(key)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # another reader could not hold such text, and two would not agree on it
        raise ValueError("holds half of a surrogate pair") from error


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"holds the number {text[:24]}, only integers are allowed")


def _no_duplicates(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("holds a key twice")
    return found
