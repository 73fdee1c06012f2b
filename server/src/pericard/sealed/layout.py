"""Where things stand in a sealed model: magic, lengths, limits, domains.

::

    magic 8 | manifest length u32 | signatures length u32 | grants length u32      (little-endian)
    manifest    canonical JSON
    signatures  one signature block
    grants      count u16, then for each: body length u32, body (canonical JSON), signature block
    zeros       up to the next multiple of 4096
    payload     chunks, each ciphertext followed by its 16-byte tag; nothing after the last

A signature block is: count u8, then for each: algorithm u8, key id (32 bytes), length u16, signature.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pericard.errors import MalformedModel, NotSealed
from pericard.keys import Signature
from pericard.keys.publisher import SIGNATURE_SIZE

MAGIC = b"PERICRD\x01"
HEADER = struct.Struct("<8sIII")
ALIGNMENT = 4096

MAX_MANIFEST = 4 << 20
MAX_SIGNATURES = 16 << 10
MAX_GRANTS = 32 << 20
MAX_GRANT = 16 << 10
MAX_EMBEDDED = 4096  # grants that a writer puts into one file; later ones are files of their own
MAX_NOTICE = 16 << 10
CHUNK_SIZE = 1 << 20
TAG_SIZE = 16
MAX_PAYLOAD = 1 << 40

MANIFEST_DOMAIN = "pericard/v1/manifest"
GRANT_DOMAIN = "pericard/v1/grant"
NOTICE_DOMAIN = "pericard/v1/notice"

_COUNT8 = struct.Struct("<B")
_COUNT16 = struct.Struct("<H")
_LENGTH = struct.Struct("<I")
_SIGNATURE = struct.Struct("<B32sH")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the three variable sections, in bytes."""

    manifest: int
    signatures: int
    grants: int

    @property
    def payload_offset(self) -> int:
        """Where the first chunk begins."""
        used = HEADER.size + self.manifest + self.signatures + self.grants
        return -(-used // ALIGNMENT) * ALIGNMENT


def pack_header(lengths: Lengths) -> bytes:
    """The fixed header."""
    return HEADER.pack(MAGIC, lengths.manifest, lengths.signatures, lengths.grants)


def unpack_header(data: bytes, *, subject: str) -> Lengths:
    """Read the fixed header and hold it against the limits.

    Raises:
        NotSealed: the magic is not there.
        MalformedModel: a length passes its limit.
    """
    if len(data) < HEADER.size or data[:8] != MAGIC:
        raise NotSealed(
            f"{subject}: is not a sealed model",
            hint="only what `pericard seal` made is served; a plain model is never accepted",
        )
    _, manifest, signatures, grants = HEADER.unpack(data)
    for name, length, limit in (
        ("manifest", manifest, MAX_MANIFEST),
        ("signatures section", signatures, MAX_SIGNATURES),
        ("grants section", grants, MAX_GRANTS),
    ):
        if not 0 < length <= limit:
            raise MalformedModel(f"{subject}: the {name} claims {length} bytes, allowed are 1 to {limit}")
    return Lengths(manifest, signatures, grants)


def pack_signatures(signatures: tuple[Signature, ...]) -> bytes:
    """A signature block."""
    parts = [_COUNT8.pack(len(signatures))]
    for signature in signatures:
        parts += [_SIGNATURE.pack(signature.algorithm, signature.key_id, len(signature.value)), signature.value]
    return b"".join(parts)


def unpack_signatures(data: bytes, offset: int, *, subject: str) -> tuple[tuple[Signature, ...], int]:
    """Read a signature block; returns the signatures and the offset behind them.

    Raises:
        MalformedModel: it is cut short, or an algorithm or length is not known.
    """
    try:
        (count,) = _COUNT8.unpack_from(data, offset)
        offset += _COUNT8.size
        signatures = []
        for _ in range(count):
            algorithm, key_id, length = _SIGNATURE.unpack_from(data, offset)
            offset += _SIGNATURE.size
            if SIGNATURE_SIZE.get(algorithm) != length:
                raise MalformedModel(f"{subject}: holds a signature of unknown kind {algorithm} and {length} bytes")
            value = data[offset : offset + length]
            if len(value) != length:
                raise MalformedModel(f"{subject}: a signature is cut short")
            signatures.append(Signature(algorithm, key_id, value))
            offset += length
    except struct.error as error:
        raise MalformedModel(f"{subject}: the signature block is cut short") from error
    return tuple(signatures), offset


def pack_grant(body: bytes, signatures: tuple[Signature, ...]) -> bytes:
    """One grant: length, body, signature block."""
    return _LENGTH.pack(len(body)) + body + pack_signatures(signatures)


def pack_head(manifest: bytes, signatures: tuple[Signature, ...], grants: tuple[bytes, ...]) -> bytes:
    """Everything before the first chunk, from packed grants."""
    parts = (manifest, pack_signatures(signatures), pack_grants(grants))
    lengths = Lengths(*map(len, parts))
    return (pack_header(lengths) + b"".join(parts)).ljust(lengths.payload_offset, b"\0")


def pack_grants(grants: tuple[bytes, ...]) -> bytes:
    """The grants section, from packed grants."""
    return _COUNT16.pack(len(grants)) + b"".join(grants)


def unpack_grants(data: bytes, *, subject: str) -> list[tuple[bytes, tuple[Signature, ...]]]:
    """Split the grants section into bodies and signatures, without reading the bodies.

    Raises:
        MalformedModel: a length is wrong, or bytes are left over.
    """
    found = []
    try:
        (count,) = _COUNT16.unpack_from(data, 0)
        offset = _COUNT16.size
        for number in range(count):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size
            if not 0 < length <= MAX_GRANT or offset + length > len(data):
                raise MalformedModel(f"{subject}: grant {number} claims {length} bytes")
            body = data[offset : offset + length]
            signatures, offset = unpack_signatures(data, offset + length, subject=f"{subject}: grant {number}")
            found.append((body, signatures))
    except struct.error as error:
        raise MalformedModel(f"{subject}: the grants section is cut short") from error
    if offset != len(data):
        raise MalformedModel(f"{subject}: {len(data) - offset} bytes are left over after the last grant")
    return found
