"""Small files that are there whole or not at all, through a crash too.

Rules of this room: write under a temporary name beside the target, sync the file, move it into place in one step, sync
the folder. What goes wrong is an ``OSError``; the caller knows the subject and names it. A temporary file that was not
moved is removed. :func:`replace` and :func:`create` keep no copy of what they write, so it may be a secret.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def replace(path: Path, data: bytes | bytearray, *, mode: int = 0o600) -> None:
    """Write a file, in the place of the one that is there.

    Raises:
        OSError: it could not be made durable; the old one is still there.
    """
    with _temporary(path, mode) as (descriptor, name):
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
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A buffered file to write to, which takes its place when the block ends without an error.

    Raises:
        OSError: it could not be made durable; the old one is still there.
    """
    with _temporary(path, mode) as (descriptor, name):
        with open(descriptor, "wb", closefd=False) as out:
            yield out
        os.fsync(descriptor)
        name.replace(path)
    sync_folder(path.parent)


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
