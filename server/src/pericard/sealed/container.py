"""Opening a sealed model, step by step; no step can be left out or taken early.

:class:`SealedModel` is what was read, :class:`VerifiedModel` is what the publisher signed. Only a verified model has a
manifest and grants; only with an unwrapped key does it give plaintext, and only after every check of a chunk. The
steps are numbered as in ``docs/spec/sealed-model.md``. Where a site's own rules come in (dates, floor, runtime), the
caller asks ``trust`` between steps 5 and 7.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pericard.errors import BadGrant, CorruptPayload, MalformedModel, NoGrant, NotSealed
from pericard.keys import Identity, Publisher, PublisherKey, Signature, wipe
from pericard.sealed import chunks, layout, manifest, signer
from pericard.sealed import grant as grants
from pericard.sealed.chunks import Progress, Sink
from pericard.sealed.grant import Grant, Term
from pericard.sealed.payload import ChunkCipher

_COPY_STEP = 1 << 30
_NO_RANGES = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # two file systems, or one without ranges


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
        publisher = signer.claimed(publishers, self.signatures, subject=self.subject)
        publisher.verify(layout.MANIFEST_DOMAIN, self.manifest_bytes, self.signatures, subject=self.subject)
        # (4) only now is the manifest read
        found = manifest.parse(self.manifest_bytes, subject=self.subject)
        if found.publisher_id != publisher.id:
            raise MalformedModel(f"{self.subject}: the manifest names another publisher than the one that signed it")
        digest = hashlib.sha256(self.manifest_bytes).hexdigest()
        # (5) every embedded grant, not only ours
        granted = [
            grants.verify(body, signatures, publisher, manifest=digest, subject=f"{self.subject}: grant {number}")
            for number, (body, signatures) in enumerate(self.packed_grants)
        ]
        # (6) the file ends where the last chunk ends
        size, expected = os.fstat(self._descriptor).st_size, self.payload_offset + found.payload.stored_size
        if size != expected:
            word = "short" if size < expected else "long"
            raise CorruptPayload(f"{self.subject}: is {abs(size - expected)} bytes too {word}")
        return VerifiedModel(self, publisher, found, digest, granted)

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

    def copy_payload(self, target: int) -> None:
        """Append every stored chunk, as it is, to a file descriptor; the kernel copies.

        Raises:
            CorruptPayload: the file became shorter.
            OSError: it cannot be read, or the target cannot be written.
        """
        offset, end = self.payload_offset, os.fstat(self._descriptor).st_size
        while offset < end:
            count = _copy(self._descriptor, target, offset, min(end - offset, _COPY_STEP))
            if not count:
                raise CorruptPayload(f"{self.subject}: ends inside its payload")
            offset += count

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _copy(source: int, target: int, offset: int, count: int) -> int:
    """Copy inside the kernel; how many bytes it took."""
    try:
        return os.copy_file_range(source, target, count, offset)
    except OSError as error:
        if error.errno not in _NO_RANGES:
            raise
        return os.sendfile(target, source, offset, count)


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

    def add_grant(self, body: bytes, signatures: tuple[Signature, ...], *, subject: str = "grant") -> None:
        """Add a detached grant, after the same checks as an embedded one; ``subject`` names it in errors.

        Raises:
            BadSignature: its signatures are not by this model's publisher.
            BadGrant: it is malformed or made for another file.
        """
        self.grants.append(
            grants.verify(body, signatures, self.publisher, manifest=self.manifest_hash, subject=subject)
        )

    def grant(self, archive: Identity, key: PublisherKey, terms: Sequence[Term]) -> tuple[bytes, ...]:
        """Make packed, signed grants, one for each term; the payload is not read.

        Args:
            archive: an identity that a grant of this file opens with, as a rule the publisher's own.
            key: the private key of the publisher who signed this file.
            terms: for whom and when.

        Raises:
            BadGrant: the key is another publisher's, or dates are not in order.
            NoGrant: the file holds no grant for the archive.
            WrongFileKey: the archive's grant holds another key than the manifest commits to.
        """
        if key.publisher.id != self.publisher.id:
            raise BadGrant(f"{self.subject}: only its publisher, {self.publisher.id[:16]}, can grant it")
        file_key = self.grants_for(archive.recipient.id)[0].unwrap(archive)
        try:
            self._cipher(file_key)
            return tuple(grants.for_term(file_key, term, key, manifest=self.manifest_hash) for term in terms)
        finally:
            wipe(file_key)

    def grants_for(self, recipient: str) -> list[Grant]:
        """The grants made for a recipient.

        Raises:
            NoGrant: there is none.
        """
        found = [grant for grant in self.grants if grant.recipient == recipient]
        if not found:
            raise NoGrant(
                f"{self.subject}: holds no grant for identity {recipient[:16]}",
                hint=f"send the public half of identity {recipient[:16]} to the vendor and ask for a grant",
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
            return self._cipher(file_key)
        finally:
            wipe(file_key)

    def _cipher(self, file_key: bytearray) -> ChunkCipher:
        cipher = ChunkCipher(file_key, self.manifest.file_id)
        cipher.require(self.manifest.payload.commitment, subject=self.subject)
        return cipher

    def decrypt_into(
        self, cipher: ChunkCipher, target: memoryview, *, workers: int | None = None, progress: Progress | None = None
    ) -> None:
        """(9) Check and decrypt every chunk into one buffer of exactly ``manifest.payload.size`` bytes.

        On any failure the buffer is zeroed before the error leaves.

        Args:
            cipher: what :meth:`unwrap` gave.
            target: the buffer.
            workers: threads; by default one a core.
            progress: called now and then with the bytes that are done and those in all.

        Raises:
            CorruptPayload: a chunk is not the one that was signed.
        """
        if len(target) != self.manifest.payload.size:
            raise ValueError(f"buffer: holds {len(target)} bytes, wanted {self.manifest.payload.size}")
        count = len(self.manifest.payload.chunks)
        try:
            sinks = [chunks.HostSink(target) for _ in range(min(workers or chunks.default_workers(), count))]
            self.decrypt_to(cipher, sinks, progress=progress)
        except BaseException:
            wipe(target)
            raise

    def decrypt_to(self, cipher: ChunkCipher, sinks: Sequence[Sink], *, progress: Progress | None = None) -> None:
        """Check and decrypt every chunk to where the sinks take it, one worker for each sink; part of step 9.

        On a failure it is the caller who wipes what the sinks took.

        Raises:
            CorruptPayload: a chunk is not the one that was signed.
        """
        start = self._source.payload_offset

        def read(offset: int, target: memoryview) -> None:
            self._source.read_chunk(start + offset, target)

        chunks.Decryption(self.manifest.payload, cipher, read, subject=self.subject).run(sinks, progress)
