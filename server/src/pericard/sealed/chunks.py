"""Step (9): every chunk read, held against its signed hash, and decrypted; reading, hashing and decrypting overlap.

Each worker is a thread with a buffer for ciphertext and a :class:`Sink` of its own. It takes the next chunk, reads it
into memory of its own (the file may change under our hands), hashes it, and decrypts it where its sink says. All three
let the other threads run: the kernel's read, hashlib on large buffers, and ``cryptography``'s ``decrypt_into`` release
the interpreter's lock. Chunks are handed out in order; the first failure stops every worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from pericard.sealed.layout import CHUNK_SIZE
from pericard.sealed.manifest import Payload
from pericard.sealed.payload import ChunkCipher, split, stored_length

#: Called as ``progress(bytes done, bytes in all)``, in the caller's thread.
Progress = Callable[[int, int], None]

_MOST_WORKERS = 8  # from here on memory is the limit, not the cores
_PROGRESS_SECONDS = 0.1


class Sink(Protocol):
    """Where one worker's plaintext goes; used by one thread at a time."""

    def slot(self, offset: int, length: int) -> memoryview:
        """Memory for the ``length`` plaintext bytes at ``offset``; the next call may give the same."""
        ...

    def done(self, offset: int, length: int) -> None:
        """The slot now holds verified plaintext; when this returns, the worker needs the slot no more."""
        ...


class HostSink:
    """Plaintext straight to its place in one buffer."""

    def __init__(self, target: memoryview) -> None:
        """Take the whole buffer; several sinks may share it."""
        self._target = target

    def slot(self, offset: int, length: int) -> memoryview:
        """The place itself."""
        return self._target[offset : offset + length]

    def done(self, offset: int, length: int) -> None:
        """Nothing is left to do."""


def default_workers() -> int:
    """One for each core that this process may use, up to eight."""
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


class Decryption:
    """One payload on its way from the file to its sinks."""

    def __init__(
        self,
        payload: Payload,
        cipher: ChunkCipher,
        read: Callable[[int, memoryview], None],
        *,
        subject: str,
    ) -> None:
        """Prepare.

        Args:
            payload: what the manifest says.
            cipher: keyed with this file's key.
            read: fills a buffer from an offset in the payload, or raises.
            subject: the file's name, for errors.
        """
        self._payload, self._cipher, self._read, self._subject = payload, cipher, read, subject
        self._places = iter(tuple(split(payload.size)))  # one step of it is atomic, which a generator's is not
        self._stopped = False
        self._failures: list[tuple[int, BaseException]] = []
        self._done = 0

    def run(self, sinks: Sequence[Sink], progress: Progress | None = None) -> None:
        """Decrypt everything, with one worker for each sink.

        Raises:
            CorruptPayload: a chunk is not the one that was signed; of several, the first in the file.
        """
        pool = ThreadPoolExecutor(len(sinks), thread_name_prefix="decrypt")
        workers = [pool.submit(self._work, sink) for sink in sinks]
        try:
            while wait(workers, timeout=_PROGRESS_SECONDS if progress else None).not_done:
                if progress is not None:
                    progress(self._done, self._payload.size)
        finally:
            self._stopped = True  # an interrupt must not wait for the rest of the file
            _join(workers)
            pool.shutdown()
        if self._failures:
            raise min(self._failures, key=lambda failure: failure[0])[1]
        if progress is not None:
            progress(self._payload.size, self._payload.size)

    def _work(self, sink: Sink) -> None:
        hashes = self._payload.chunks
        scratch = bytearray(stored_length(min(self._payload.size, CHUNK_SIZE)))
        for index, last, offset, length in self._places:
            if self._stopped:
                return
            try:
                stored = memoryview(scratch)[: stored_length(length)]
                self._read(index * stored_length(CHUNK_SIZE), stored)
                self._cipher.decrypt_into(
                    index,
                    last=last,
                    stored=stored,
                    digest=hashes[index],
                    target=sink.slot(offset, length),
                    subject=self._subject,
                )
                sink.done(offset, length)
            except BaseException as error:  # noqa: BLE001  (it is raised again in the caller's thread)
                self._failures.append((index, error))
                self._stopped = True
                return
            self._done += length


def _join(workers: list[Future[None]]) -> None:
    """Wait until each has ended its chunk, through further interrupts too: what they write to is wiped next."""
    interrupt: KeyboardInterrupt | None = None
    while True:
        try:
            wait(workers)
        except KeyboardInterrupt as again:
            interrupt = again
        else:
            break
    if interrupt is not None:
        raise interrupt
