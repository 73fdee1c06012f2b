"""A notice: withdraws the versions of a model below a sequence, without a new version.

::

    length u32 | body (canonical JSON) | signature block

It is read as a sealed model is: structure, then whose it claims to be, then both signatures, and only then the body.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pericard import canonical
from pericard.canonical import JSON
from pericard.errors import BadNotice, MalformedModel, UntrustedPublisher
from pericard.keys import Publisher, PublisherKey, Signature
from pericard.sealed import detached, layout, signer
from pericard.sealed.manifest import MAX_SEQUENCE
from pericard.tensors import NAME

FORMAT = "pericard/notice/v1"
_FIELDS = {"format", "publisher", "model", "floor", "issued"}
_HEX = re.compile(r"[0-9a-f]{64}")
_LENGTH = struct.Struct("<I")
_MAX_TIME = 1 << 40
_MAX_FILE = _LENGTH.size + layout.MAX_NOTICE + layout.MAX_SIGNATURES


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice whose signatures verified.

    Attributes:
        publisher: id of the publisher who signed it.
        model: name of the model.
        floor: every version with a lower sequence is withdrawn.
        issued: when, Unix time, as the publisher says; for people.
    """

    publisher: str
    model: str
    floor: int
    issued: int


def make(key: PublisherKey, model: str, *, floor: int, issued: int) -> bytes:
    """Make one signed notice; the bytes of its file.

    Raises:
        BadNotice: the name, the floor or the time cannot stand in one.
    """
    body = canonical.encode(
        {"format": FORMAT, "publisher": key.publisher.id, "model": model, "floor": floor, "issued": issued}
    )
    _parse(body, subject="notice")
    return _LENGTH.pack(len(body)) + body + layout.pack_signatures(key.sign(layout.NOTICE_DOMAIN, body))


def read(path: Path, publishers: Iterable[Publisher]) -> Notice:
    """Read and verify a notice file; raises as :func:`verify`."""
    data = detached.read(path, limit=_MAX_FILE, refusal=BadNotice)
    return verify(data, publishers, subject=path.name)


def verify(data: bytes, publishers: Iterable[Publisher], *, subject: str) -> Notice:
    """Verify a notice's bytes.

    Raises:
        BadNotice: its structure or its body is not a notice's.
        UntrustedPublisher: none of the publishers made these signatures.
        BadSignature: a signature does not verify.
    """
    body, signatures = _unpack(data, subject=subject)
    try:
        publisher = signer.claimed(publishers, signatures, subject=subject)
    except UntrustedPublisher as error:
        raise UntrustedPublisher(
            error.message, hint=f"{error.hint}; if it is none of your vendors', remove the file {subject}"
        ) from error
    publisher.verify(layout.NOTICE_DOMAIN, body, signatures, subject=subject)
    found = _parse(body, subject=subject)
    if found.publisher != publisher.id:
        raise BadNotice(f"{subject}: names another publisher than the one that signed it")
    return found


def _unpack(data: bytes, *, subject: str) -> tuple[bytes, tuple[Signature, ...]]:
    try:
        (length,) = _LENGTH.unpack_from(data, 0)
        end = _LENGTH.size + length
        if not 0 < length <= layout.MAX_NOTICE or end > len(data):
            raise BadNotice(f"{subject}: is not a notice: it claims {length} bytes")
        signatures, after = layout.unpack_signatures(data, end, subject=subject)
    except (struct.error, MalformedModel) as error:
        raise BadNotice(f"{subject}: is not a notice, or is cut short") from error
    if after != len(data):
        raise BadNotice(f"{subject}: {len(data) - after} bytes are left over after the signatures")
    return data[_LENGTH.size : end], signatures


def _parse(body: bytes, *, subject: str) -> Notice:
    try:
        value = canonical.decode(body, limit=layout.MAX_NOTICE)
        if value.keys() != _FIELDS or value["format"] != FORMAT:
            raise ValueError("has other fields than it should")
        return Notice(
            _text(value, "publisher", _HEX),
            _text(value, "model", NAME),
            _number(value, "floor", 1, MAX_SEQUENCE),
            _number(value, "issued", 0, _MAX_TIME - 1),
        )
    except ValueError as error:
        raise BadNotice(f"{subject}: {error}") from error


def _text(value: dict[str, JSON], name: str, pattern: re.Pattern[str]) -> str:
    text = value[name]
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"has a bad {name}")
    return text


def _number(value: dict[str, JSON], name: str, low: int, high: int) -> int:
    number = value[name]
    if type(number) is not int or not low <= number <= high:
        raise ValueError(f"has a bad {name}")
    return int(number)
