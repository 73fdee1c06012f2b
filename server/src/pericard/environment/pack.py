"""A channel in a folder, for sites without a network: the locked archives, an index of them, and the signed lock.

Rules of this room: it holds exactly what the lock names, each archive hashed as it was copied. It is a channel that any
conda client reads; but no client hashes what it takes from a folder, so that ``install`` does, at the site, again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pericard import durable
from pericard.environment import conda
from pericard.environment.gather import Progress, gather
from pericard.environment.lock import Lock
from pericard.errors import ConfigError

LOCK, SIGNATURE = "environment.lock", "environment.lock.sig"


def pack(
    lock: Lock, signature: bytes, folder: Path, *, channels: Sequence[str] = (), progress: Progress | None = None
) -> None:
    """Make the folder.

    Args:
        lock: whose signature was verified.
        signature: the signature file's bytes.
        folder: which is not there yet.
        channels: folders or URLs to take the archives from, before where the lock says.
        progress: told the bytes that arrived and those that are known to come.

    Raises:
        ConfigError: the folder is there, or cannot be made.
        ArchiveRefused: an archive is not the locked one, or cannot be had.
    """
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {(error.strerror or 'i/o error').lower()}") from error
    try:
        gather(lock, folder, channels=channels, progress=progress)
        (folder / "noarch").mkdir(exist_ok=True)  # without it, a folder is no channel
        conda.index(folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        durable.replace(folder / SIGNATURE, signature, mode=0o644)
        durable.replace(folder / LOCK, lock.data, mode=0o644)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
