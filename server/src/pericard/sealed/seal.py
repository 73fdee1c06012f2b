"""Sealing: encrypt an artifact, sign its manifest, grant it, and write the file in one rename.

The ciphertext goes to a temporary file first, since the manifest must name every chunk's hash; plaintext is never
written anywhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pericard import durable
from pericard.errors import BadGrant, NotWritten, SealedModelError, UnsupportedModel
from pericard.keys import PublisherKey, Recipient, take, wipe
from pericard.sealed import grant as grants
from pericard.sealed import layout, manifest
from pericard.sealed.manifest import Description, Manifest, Payload
from pericard.sealed.payload import FILE_ID_SIZE, FILE_KEY_SIZE, ChunkCipher, rechunk

MAX_TERMS = 4096  # recipients of one file; more of them get detached grants


@dataclass(frozen=True, slots=True)
class Term:
    """For whom and when: one grant to be made.

    Attributes:
        recipient: whom.
        not_before: first second, Unix time.
        not_after: last second, Unix time.
        grace_days: days of service after ``not_after``.
    """

    recipient: Recipient
    not_before: int
    not_after: int
    grace_days: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """What was written: the manifest and its hash."""

    manifest: Manifest
    manifest_hash: str


def seal(
    path: Path,
    description: Description,
    artifact: tuple[int, Iterable[bytes | memoryview]],
    *,
    signer: PublisherKey,
    terms: tuple[Term, ...],
) -> Sealed:
    """Write a sealed model.

    Args:
        path: the new file; an existing one is replaced only by a complete new one.
        description: what the manifest says of the model.
        artifact: size in bytes, and the plaintext as buffers.
        signer: the publisher.
        terms: one grant each; the publisher's archive identity should be among them.

    Raises:
        UnsupportedModel: the description or the artifact cannot be sealed.
        BadGrant: no terms, too many, or bad dates.
        NotWritten: the file cannot be written.
    """
    if not 1 <= len(terms) <= MAX_TERMS:
        raise BadGrant(f"{path.name}: needs 1 to {MAX_TERMS} recipients, got {len(terms)}")
    size, parts = artifact
    file_key, file_id = take(os.urandom(FILE_KEY_SIZE)), os.urandom(FILE_ID_SIZE)
    try:
        with tempfile.TemporaryFile(dir=path.parent) as ciphertext:
            cipher = ChunkCipher(file_key, file_id)
            hashes = _encrypt(cipher, parts, size, ciphertext, subject=path.name)
            made = Manifest(
                file_id, int(time.time()), signer.publisher.id, description, Payload(size, cipher.commitment, hashes)
            )
            encoded = _checked(made, path)
            digest = hashlib.sha256(encoded).hexdigest()
            packed = tuple(_grant(file_key, term, signer, digest) for term in terms)
            header = _header(encoded, layout.pack_signatures(signer.sign(layout.MANIFEST_DOMAIN, encoded)), packed)
            ciphertext.seek(0)
            _write(path, header, ciphertext)
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error
    finally:
        wipe(file_key)
    return Sealed(made, digest)


def _encrypt(
    cipher: ChunkCipher, parts: Iterable[bytes | memoryview], size: int, out: BinaryIO, *, subject: str
) -> tuple[bytes, ...]:
    """Write the encrypted chunks; returns their hashes."""
    hashes = []
    try:
        for index, last, plain in rechunk(parts, size):
            stored = cipher.encrypt(index, last=last, plain=plain)
            out.write(stored)
            hashes.append(hashlib.sha256(stored).digest())
    except ValueError as error:
        raise UnsupportedModel(f"{subject}: {error}") from error
    return tuple(hashes)


def _checked(made: Manifest, path: Path) -> bytes:
    """Encode, then read back as any site will: what we cannot open, we do not write."""
    try:
        encoded = made.encode()
        manifest.parse(encoded, subject=path.name)
    except SealedModelError as error:
        raise UnsupportedModel(error.message, hint="check the model's description") from error
    except (ValueError, OverflowError) as error:
        raise UnsupportedModel(f"{path.name}: the manifest {error}", hint="check the model's description") from error
    return encoded


def _grant(file_key: bytearray, term: Term, signer: PublisherKey, manifest_hash: str) -> bytes:
    return grants.make(
        file_key,
        term.recipient,
        signer,
        manifest=manifest_hash,
        not_before=term.not_before,
        not_after=term.not_after,
        grace_days=term.grace_days,
    )


def _header(encoded: bytes, signatures: bytes, packed: tuple[bytes, ...]) -> bytes:
    section = layout.pack_grants(packed)
    lengths = layout.Lengths(len(encoded), len(signatures), len(section))
    head = layout.pack_header(lengths) + encoded + signatures + section
    return head + bytes(lengths.payload_offset - len(head))


def _write(path: Path, header: bytes, ciphertext: BinaryIO) -> None:
    with durable.replacing(path, mode=0o644) as out:
        out.write(header)
        shutil.copyfileobj(ciphertext, out, layout.CHUNK_SIZE)
