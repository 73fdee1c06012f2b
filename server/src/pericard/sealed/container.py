"""Opening a sealed model, step by step; no step can be left out or taken early.

:class:`SealedModel` is what was read, :class:`VerifiedModel` is what the publisher signed. Only a verified model has a
manifest and grants; only with an unwrapped key does it give plaintext, and only after every check of a chunk. The
steps are numbered as in ``docs/spec/sealed-model.md``. Where a site's own rules come in (dates, floor, runtime), the
caller asks ``trust`` between steps 5 and 7.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from pericard.errors import CorruptPayload, MalformedModel, NoGrant, NotSealed, UntrustedPublisher
from pericard.keys import Identity, Publisher, Signature, wipe
from pericard.sealed import grant as grants
from pericard.sealed import layout, manifest
from pericard.sealed.grant import Grant
from pericard.sealed.payload import ChunkCipher, split, stored_length

Progress = Callable[[int, int], None]


class SealedModel:
    """A sealed file, opened and read up to its payload; nothing in it is believed yet."""

    def __init__(self, path: Path) -> None:
        """Open and read the sections before the payload.

        Raises:
            NotSealed: it cannot be read, or the magic is not there.
            MalformedModel: a length passes its limit, or a section does not add up.
        """
        self.subject = path.name
        try:
            # O_NONBLOCK: a named pipe in the file's place must be refused, not waited for
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise NotSealed(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise NotSealed(f"{self.subject}: is not a regular file")
        # (1) magic, lengths, limits
        lengths = layout.unpack_header(self._section(0, layout.HEADER.size), subject=self.subject)
        # (2) the three sections and the zeros behind them, as bytes; nothing is parsed as JSON
        offset = layout.HEADER.size
        self.manifest_bytes = self._section(offset, lengths.manifest)
        offset += lengths.manifest
        block = self._section(offset, lengths.signatures)
        self.signatures, end = layout.unpack_signatures(block, 0, subject=self.subject)
        if end != len(block):
            raise MalformedModel(f"{self.subject}: {len(block) - end} bytes are left over after the signatures")
        offset += lengths.signatures
        self.packed_grants = layout.unpack_grants(self._section(offset, lengths.grants), subject=self.subject)
        offset += lengths.grants
        self.payload_offset = lengths.payload_offset
        if self._section(offset, self.payload_offset - offset).strip(b"\0"):
            raise MalformedModel(f"{self.subject}: the padding before the payload is not zero")

    def _section(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise NotSealed(f"{self.subject}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
        if len(data) != length:
            if offset == 0:
                raise NotSealed(f"{self.subject}: is not a sealed model: {len(data)} bytes")
            raise MalformedModel(f"{self.subject}: ends after {offset + len(data)} bytes, inside its header")
        return data

    def verify(self, publishers: Iterable[Publisher]) -> VerifiedModel:
        """Check the publisher's signatures over the manifest and every embedded grant.

        Raises:
            UntrustedPublisher: none of the publishers made these signatures.
            BadSignature: a signature does not verify.
            MalformedModel: the signed manifest is not valid.
            BadGrant: an embedded grant is malformed or made for another file.
            CorruptPayload: the file is shorter or longer than the manifest says.
        """
        # (3) both signatures, by a pinned publisher, over the received bytes
        publisher = self._publisher(publishers)
        publisher.verify(layout.MANIFEST_DOMAIN, self.manifest_bytes, self.signatures, subject=self.subject)
        # (4) only now is the manifest read
        found = manifest.parse(self.manifest_bytes, subject=self.subject)
        if found.publisher_id != publisher.id:
            raise MalformedModel(f"{self.subject}: the manifest names another publisher than the one that signed it")
        digest = hashlib.sha256(self.manifest_bytes).hexdigest()
        # (5) every embedded grant, not only ours
        granted = [
            grants.verify(body, signatures, publisher, manifest=digest) for body, signatures in self.packed_grants
        ]
        # (6) the file ends where the last chunk ends
        size, expected = os.fstat(self._descriptor).st_size, self.payload_offset + found.payload.stored_size
        if size != expected:
            word = "short" if size < expected else "long"
            raise CorruptPayload(f"{self.subject}: is {abs(size - expected)} bytes too {word}")
        return VerifiedModel(self, publisher, found, digest, granted)

    def _publisher(self, publishers: Iterable[Publisher]) -> Publisher:
        # one whose signatures are not both there is told so by ``verify``, as a bad signature
        closest = max(publishers, key=lambda publisher: publisher.claimed(self.signatures), default=None)
        if closest is None or not closest.claimed(self.signatures):
            raise UntrustedPublisher(
                f"{self.subject}: was not signed by a publisher that this site pinned",
                hint="compare the publisher's key with the vendor by another channel, then pin its publisher.pub",
            )
        return closest

    def read_chunk(self, offset: int, target: memoryview) -> None:
        """Read exactly ``len(target)`` payload bytes at a file offset.

        Raises:
            CorruptPayload: the file became shorter, or cannot be read.
        """
        try:
            length = os.preadv(self._descriptor, [target], offset)
        except OSError as error:
            reason = (error.strerror or "i/o error").lower()
            raise CorruptPayload(f"{self.subject}: its payload cannot be read: {reason}") from error
        if length != len(target):
            raise CorruptPayload(f"{self.subject}: ends inside its payload")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class VerifiedModel:
    """A sealed model whose manifest and grants are the publisher's own.

    Attributes:
        publisher: who signed.
        manifest: what was signed.
        manifest_hash: SHA-256 of the manifest, hex; the model's identity.
        grants: verified grants, embedded and added.
    """

    def __init__(
        self,
        source: SealedModel,
        publisher: Publisher,
        found: manifest.Manifest,
        manifest_hash: str,
        granted: list[Grant],
    ) -> None:
        self._source = source
        self.subject = source.subject
        self.publisher = publisher
        self.manifest = found
        self.manifest_hash = manifest_hash
        self.grants = granted

    def add_grant(self, body: bytes, signatures: tuple[Signature, ...]) -> None:
        """Add a detached grant, after the same checks as an embedded one."""
        self.grants.append(grants.verify(body, signatures, self.publisher, manifest=self.manifest_hash))

    def grants_for(self, recipient: str) -> list[Grant]:
        """The grants made for a recipient.

        Raises:
            NoGrant: there is none.
        """
        found = [grant for grant in self.grants if grant.recipient == recipient]
        if not found:
            raise NoGrant(
                f"{self.subject}: holds no grant for identity {recipient[:16]}",
                hint="send identity.pub to the vendor and ask for a grant",
            )
        return found

    def unwrap(self, grant: Grant, identity: Identity) -> ChunkCipher:
        """(7) Unwrap the file key, (8) hold it against the commitment.

        Raises:
            BadGrant: the identity does not open the grant.
            WrongFileKey: it holds another key than the manifest commits to.
        """
        file_key = grant.unwrap(identity)
        try:
            cipher = ChunkCipher(file_key, self.manifest.file_id)
        finally:
            wipe(file_key)
        cipher.require(self.manifest.payload.commitment, subject=self.subject)
        return cipher

    def decrypt_into(self, cipher: ChunkCipher, target: memoryview, *, progress: Progress | None = None) -> None:
        """(9) Check and decrypt every chunk into one buffer of exactly ``manifest.payload.size`` bytes.

        On any failure the buffer is zeroed before the error leaves.

        Raises:
            CorruptPayload: a chunk is not the one that was signed.
        """
        payload = self.manifest.payload
        if len(target) != payload.size:
            raise ValueError(f"buffer: holds {len(target)} bytes, wanted {payload.size}")
        # read into memory of our own before hashing: the file may change under our hands
        scratch = bytearray(stored_length(min(payload.size, layout.CHUNK_SIZE)))
        try:
            for index, last, offset, length in split(payload.size):
                stored = memoryview(scratch)[: stored_length(length)]
                position = self._source.payload_offset + index * stored_length(layout.CHUNK_SIZE)
                self._source.read_chunk(position, stored)
                cipher.decrypt_into(
                    index,
                    last=last,
                    stored=stored,
                    digest=payload.chunks[index],
                    target=target[offset : offset + length],
                    subject=self.subject,
                )
                if progress is not None:
                    progress(offset + length, payload.size)
        except BaseException:
            wipe(target)
            raise
