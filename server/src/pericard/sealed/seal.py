"""Sealing: encrypt an artifact, sign its manifest, grant it, and write the file in one step.

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
from pericard.keys import PublisherKey, take, wipe
from pericard.sealed import grant as grants
from pericard.sealed import layout, manifest
from pericard.sealed.chunks import Progress
from pericard.sealed.grant import Term
from pericard.sealed.manifest import Description, Manifest, Payload
from pericard.sealed.payload import FILE_ID_SIZE, FILE_KEY_SIZE, ChunkCipher, rechunk


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
    progress: Progress | None = None,
) -> Sealed:
    """Write a sealed model.

    Args:
        path: the new file; it never takes the place of one that is there.
        description: what the manifest says of the model.
        artifact: size in bytes, and the plaintext as buffers.
        signer: the publisher.
        terms: one grant each; the publisher's archive identity should be among them.
        progress: called after each chunk with the bytes that are encrypted and those in all.

    Raises:
        UnsupportedModel: the description or the artifact cannot be sealed.
        BadGrant: no terms, too many, or bad dates.
        NotWritten: the name is taken, or the file cannot be written; nothing is left of it.
    """
    require_new(path)
    if not 1 <= len(terms) <= layout.MAX_EMBEDDED:
        raise BadGrant(f"{path.name}: needs 1 to {layout.MAX_EMBEDDED} recipients, got {len(terms)}")
    size, parts = artifact
    file_key, file_id = take(os.urandom(FILE_KEY_SIZE)), os.urandom(FILE_ID_SIZE)
    try:
        with tempfile.TemporaryFile(dir=path.parent) as ciphertext:
            cipher = ChunkCipher(file_key, file_id)
            hashes = _encrypt(cipher, parts, size, ciphertext, progress, subject=path.name)
            made = Manifest(
                file_id, int(time.time()), signer.publisher.id, description, Payload(size, cipher.commitment, hashes)
            )
            encoded = _checked(made, path)
            digest = hashlib.sha256(encoded).hexdigest()
            packed = tuple(grants.for_term(file_key, term, signer, manifest=digest) for term in terms)
            header = layout.pack_head(encoded, signer.sign(layout.MANIFEST_DOMAIN, encoded), packed)
            ciphertext.seek(0)
            _write(path, header, ciphertext)
    except FileExistsError as error:
        raise exists_already(path) from error
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error
    finally:
        wipe(file_key)
    return Sealed(made, digest)


def require_new(path: Path) -> None:
    """Refuse a name that is taken, before the long work; it is taken in one step at the end.

    Raises:
        NotWritten: something has that name.
    """
    if os.path.lexists(path):
        raise exists_already(path)


def exists_already(path: Path) -> NotWritten:
    """The error for a name that is taken."""
    return NotWritten(f"{path}: exists already", hint="give the new file a name of its own")


def _encrypt(
    cipher: ChunkCipher,
    parts: Iterable[bytes | memoryview],
    size: int,
    out: BinaryIO,
    progress: Progress | None,
    *,
    subject: str,
) -> tuple[bytes, ...]:
    """Write the encrypted chunks; returns their hashes."""
    hashes = []
    try:
        for index, last, plain in rechunk(parts, size):
            stored = cipher.encrypt(index, last=last, plain=plain)
            out.write(stored)
            hashes.append(hashlib.sha256(stored).digest())
            if progress is not None:
                progress(min((index + 1) * layout.CHUNK_SIZE, size), size)
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


def _write(path: Path, header: bytes, ciphertext: BinaryIO) -> None:
    with durable.creating(path, mode=0o644) as out:
        out.write(header)
        shutil.copyfileobj(ciphertext, out, layout.CHUNK_SIZE)
