"""Small files that are there whole or not at all, through a crash too.

Rules of this room: write under a temporary name beside the target, sync the file, move it into place in one step, sync
the folder. What goes wrong is an ``OSError``; the caller knows the subject and names it. A temporary file that was not
moved is removed. :func:`replace` and :func:`create` keep no copy of what they write, so it may be a secret.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LOCK_SECONDS = 10.0


def replace(path: Path, data: bytes | bytearray, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Write a file, in the place of the one that is there.

    Args:
        path: the file.
        data: all that it will hold.
        mode: its permissions.
        owner: user and group that it is given to before it has its name, or None for ours. Afterwards, by its name,
            whoever may write the folder could put another file in its place.

    Raises:
        OSError: it could not be made durable; the old one is still there.
    """
    with _temporary(path, mode) as (descriptor, name):
        if owner is not None:
            os.fchown(descriptor, *owner)
        _write(descriptor, data)
        name.replace(path)
    sync_folder(path.parent)


def create(path: Path, data: bytes | bytearray, *, mode: int = 0o600) -> None:
    """Write a new file; its name is taken in one step and only if it is free.

    Raises:
        FileExistsError: the name is taken.
        OSError: it could not be made durable; nothing is left.
    """
    with _temporary(path, mode) as (descriptor, name):
        _write(descriptor, data)
        os.link(name, path)  # not rename, which would replace
    sync_folder(path.parent)


@contextmanager
def creating(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A buffered file to write to, whose name is taken when the block ends without an error, if it is free then.

    Raises:
        FileExistsError: the name is taken.
        OSError: it could not be made durable; nothing is left.
    """
    with _temporary(path, mode) as (descriptor, name):
        with open(descriptor, "wb", closefd=False) as out:
            yield out
        os.fsync(descriptor)
        os.link(name, path)  # not rename, which would replace
    sync_folder(path.parent)


def read(path: Path, *, limit: int) -> bytes:
    """The whole of a regular file of bounded size; a pipe in its place is refused, not waited for.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, is no regular file, or is larger than ``limit`` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit} bytes")
    return data


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time changes a file; the lock is a file beside it that only its owner may open.

    Raises:
        OSError: it cannot be had, or another process holds it for longer than a change can take.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path.with_name(f".{path.name}.lock"), flags, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "another process is changing it") from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make names that were added or removed durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(path: Path, mode: int) -> Iterator[tuple[int, Path]]:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        os.fchmod(descriptor, mode)
        yield descriptor, Path(name)
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)


def _write(descriptor: int, data: bytes | bytearray) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
