"""One audit record: its canonical bytes, and the commitments that stand in it for what it conceals.

Rules of this module: a record has exactly one encoding, so its bytes can be hashed and signed; what has no exact
encoding (floats, dates, bytes) is refused, never rounded. Error messages name members, never values. Neither a record
nor the whole log reveals what a commitment stands for: that takes the record's opening key, which only the caller got.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from blake3 import blake3

from pericard.errors import AuditLogInvalid

VERSION: Final = 1
MAX_RECORD: Final = 64 * 1024
MAX_DEPTH: Final = 8
MAX_INTEGER: Final = 2**53 - 1
OPENING_KEY_SIZE: Final = 32
OPENING_KEY_CONTEXT: Final = "pericard 2026-11-23 audit log: opening key of one record"

Label = Literal["input", "answer"]

_EXACT = frozenset({str, bool, type(None)})
# msgspec writes the canonical form of printable ASCII in a seventh of json's time; json escapes what is not
_PLAIN = msgspec.json.Encoder(order="deterministic")
_ESCAPING = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode(fields: Mapping[str, object]) -> bytes:
    """The canonical JSON bytes of a record: ASCII, members sorted, no spaces.

    Args:
        fields: strings, booleans, None, integers within ±(2^53 - 1), and lists and dictionaries of these, at most
            eight deep; member names are ASCII and not empty.

    Raises:
        AuditLogInvalid: it holds something else, or its encoding is longer than 64 KiB.
    """
    record = fields if type(fields) is dict else dict(fields)
    _check_members(record, "record", 1)
    try:
        data = _PLAIN.encode(record)
    except UnicodeEncodeError as error:
        raise AuditLogInvalid("record: holds text that is not Unicode (a lone surrogate)") from error
    if not data.isascii() or b"\x7f" in data:
        data = _ESCAPING.encode(record).encode("ascii")
    if len(data) > MAX_RECORD:
        raise AuditLogInvalid(f"record: takes {len(data)} bytes, at most {MAX_RECORD} are allowed")
    return data


def parse(data: bytes) -> dict[str, object]:
    """Read a record's bytes; what :func:`encode` would not have written is refused.

    Repeated members, spaces, other orders, other escapes, floats and oversized integers all fail the one test that
    the record must encode to the very same bytes again.

    Raises:
        AuditLogInvalid: it is not the canonical encoding of a record.
    """
    if len(data) > MAX_RECORD:
        raise AuditLogInvalid(f"record: takes {len(data)} bytes, at most {MAX_RECORD} are allowed")
    try:
        record = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise AuditLogInvalid("record: is not JSON") from error
    if type(record) is not dict or encode(record) != data:
        raise AuditLogInvalid("record: is not in canonical form")
    return record


def _check_members(record: dict[str, Any], where: str, depth: int) -> None:
    try:
        named = "".join(record).isascii() and "" not in record
    except TypeError:  # a member name that is not a string
        named = False
    if not named:
        raise AuditLogInvalid(f"{where}: has a member whose name is not ASCII text")
    for name, value in record.items():
        kind = type(value)
        # the two usual kinds first: this loop is most of what a record costs
        if kind is not str and not (kind is int and -MAX_INTEGER <= value <= MAX_INTEGER):
            _check_value(value, f"{where}.{name}", depth)


def _check_value(value: object, where: str, depth: int) -> None:
    kind = type(value)
    if kind in _EXACT:
        return
    if isinstance(value, int) and kind is int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise AuditLogInvalid(f"{where}: is an integer beyond ±(2^53 - 1)")
        return
    if depth >= MAX_DEPTH:
        raise AuditLogInvalid(f"{where}: is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict) and kind is dict:
        _check_members(value, where, depth + 1)
    elif isinstance(value, list) and kind is list:
        for item in value:
            _check_value(item, f"{where}[]", depth + 1)
    else:
        raise AuditLogInvalid(f"{where}: is a {kind.__name__}, which has no exact encoding")


def stamp(nanoseconds: int) -> str:
    """A time since the epoch in RFC 3339, UTC, with microseconds."""
    seconds, microseconds = divmod(nanoseconds // 1000, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{microseconds:06d}Z"


def opening_key(commitment_key: bytes | bytearray, index: int) -> bytes:
    """The 32-byte key that opens the commitments of one record, and of no other.

    BLAKE3 in its key derivation mode over the log's 32-byte commitment key and the index (u64, big-endian).
    """
    hasher = blake3(commitment_key, derive_key_context=OPENING_KEY_CONTEXT)
    hasher.update(index.to_bytes(8, "big"))
    return hasher.digest()


def commit(key: bytes, label: Label, *parts: bytes | bytearray | memoryview) -> str:
    """Commit to data, given in one or several parts: keyed BLAKE3 over label ‖ 0x00 ‖ data, 64 hex digits.

    Hiding for whoever lacks the key; binding even for whoever has it, since BLAKE3 stays collision-resistant when its
    key is known (a MAC such as GMAC or Poly1305 does not).
    """
    hasher = blake3(label.encode("ascii") + b"\0", key=key)
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()
