"""The encrypted part: one key schedule, one chunk construction.

From a random 32-byte file key, HKDF-SHA512 with the file id as salt derives the payload key, the base nonce and a
32-byte commitment to the file key. Chunk ``i`` of ``n`` is AES-256-GCM over at most 1 MiB with nonce
``base XOR (i << 1 | last)`` and associated data ``file id ‖ i (u64 BE) ‖ last (u8)``; only the last chunk is marked,
and only the last may be short. GCM tags bind nobody who knows the key, so every chunk's SHA-256 stands in the signed
manifest and is checked first.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pericard.errors import CorruptPayload, WrongFileKey
from pericard.keys import wipe
from pericard.sealed.layout import CHUNK_SIZE, TAG_SIZE

FILE_KEY_SIZE = 32
FILE_ID_SIZE = 32
_NONCE_SIZE = 12
_POSITION = struct.Struct(">QB")


class ChunkCipher:
    """Encrypts or decrypts the chunks of one file; drop it as soon as the file is done."""

    def __init__(self, file_key: bytearray, file_id: bytes) -> None:
        """Derive the keys of one file from its file key; the caller still owns and wipes the file key."""
        self._file_id = file_id
        self.commitment = bytes(_derive(file_key, file_id, b"commitment", 32))
        self._base = int.from_bytes(_derive(file_key, file_id, b"nonce", _NONCE_SIZE))
        key = _derive(file_key, file_id, b"payload", 32)
        try:
            self._aead = AESGCM(key)
        finally:
            wipe(key)

    def require(self, commitment: bytes, *, subject: str) -> None:
        """Check that the file key is the one that the manifest commits to.

        Raises:
            WrongFileKey: it is another key.
        """
        if not hmac.compare_digest(self.commitment, commitment):
            raise WrongFileKey(f"{subject}: the grant holds another key than the manifest commits to")

    def encrypt(self, index: int, *, last: bool, plain: bytes | bytearray | memoryview) -> bytes:
        """Ciphertext and tag of one chunk."""
        return self._aead.encrypt(self._nonce(index, last), plain, self._associated(index, last))

    def decrypt_into(
        self, index: int, *, last: bool, stored: memoryview, digest: bytes, target: memoryview, subject: str
    ) -> None:
        """Check one stored chunk against its signed hash, then decrypt it into ``target``.

        Raises:
            CorruptPayload: it is not the chunk that was signed.
        """
        if not hmac.compare_digest(hashlib.sha256(stored).digest(), digest):
            raise CorruptPayload(f"{subject}: chunk {index} is not the one that the publisher signed")
        try:
            self._aead.decrypt_into(self._nonce(index, last), stored, self._associated(index, last), target)
        except InvalidTag as error:
            raise CorruptPayload(f"{subject}: chunk {index} does not decrypt") from error

    def _nonce(self, index: int, last: bool) -> bytes:
        return (self._base ^ (index << 1 | last)).to_bytes(_NONCE_SIZE)

    def _associated(self, index: int, last: bool) -> bytes:
        return self._file_id + _POSITION.pack(index, last)


def _derive(file_key: bytearray, file_id: bytes, label: bytes, length: int) -> bytearray:
    out = bytearray(length)
    HKDF(algorithm=hashes.SHA512(), length=length, salt=file_id, info=b"pericard/v1/" + label).derive_into(
        file_key, out
    )
    return out


def split(size: int) -> Iterator[tuple[int, bool, int, int]]:
    """For a payload of ``size`` bytes: ``(index, last, plaintext offset, plaintext length)`` of each chunk."""
    count = -(-size // CHUNK_SIZE)
    for index in range(count):
        offset = index * CHUNK_SIZE
        yield index, index == count - 1, offset, min(CHUNK_SIZE, size - offset)


def stored_length(length: int) -> int:
    """Bytes that a chunk of ``length`` plaintext bytes takes in the file."""
    return length + TAG_SIZE


def rechunk(parts: Iterable[bytes | memoryview], size: int) -> Iterator[tuple[int, bool, memoryview]]:
    """Cut a stream of buffers of ``size`` bytes in all into ``(index, last, plaintext)``.

    The plaintext is a view of one buffer that the next step overwrites and the end wipes.

    Raises:
        ValueError: the buffers hold fewer or more bytes than ``size``.
    """
    buffer, source = bytearray(CHUNK_SIZE), iter(parts)
    rest = memoryview(b"")
    try:
        for index, last, _, length in split(size):
            filled = 0
            while filled < length:
                while not rest.nbytes:
                    part = next(source, None)
                    if part is None:
                        raise ValueError(f"artifact: ended {length - filled} bytes before the end of chunk {index}")
                    rest = memoryview(part).cast("B")
                step = min(length - filled, len(rest))
                buffer[filled : filled + step] = rest[:step]
                rest, filled = rest[step:], filled + step
            yield index, last, memoryview(buffer)[:length]
        if rest.nbytes or any(len(part) for part in source):
            raise ValueError(f"artifact: holds more than {size} bytes")
    finally:
        wipe(buffer)
