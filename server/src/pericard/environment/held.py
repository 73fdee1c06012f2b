"""A prefix held against a lock and its archives, for one that has no manifest, whichever conda client made it.

Rules of this room: archives are copied to a private folder while they are hashed, as for an installation, and unpacked
there; nothing of the prefix runs, unless all but its compiled files was verified.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pericard.environment import archive, conda, expected
from pericard.environment.gather import gather
from pericard.environment.lock import Lock
from pericard.environment.verifier import Finding

Progress = Callable[[str, int, int], None]


def unpacked(
    lock: Lock, work: Path, *, channels: Sequence[str] = (), progress: Progress | None = None
) -> list[archive.Unpacked]:
    """Every archive of a lock, hashed and unpacked into a private folder, in the lock's order.

    Raises:
        ArchiveRefused: one is not the locked one, cannot be had, or is malformed.
    """
    folder = work / "archives"
    folder.mkdir(mode=0o700)
    copies = gather(
        lock, folder, channels=channels,
        progress=None if progress is None else lambda done, size: progress("archives", done, size),
    )  # fmt: skip
    return unpack(lock, copies, work / "unpacked", progress=progress)


def unpack(
    lock: Lock, copies: Sequence[Path], into: Path, *, progress: Progress | None = None
) -> list[archive.Unpacked]:
    """Unpack copies that were hashed; raises as :func:`unpacked`."""
    into.mkdir(mode=0o700)
    found = []
    for number, (package, copy) in enumerate(zip(lock.packages, copies, strict=True), 1):
        folder = into / str(number)
        conda.unpack(copy, folder)
        found.append(archive.Unpacked.open(package, folder))
        if progress is not None:
            progress("unpacking", number, len(copies))
    return found


def compare(
    lock: Lock, prefix: Path, *, channels: Sequence[str] = (), progress: Progress | None = None
) -> tuple[int, list[Finding]]:
    """How many paths a lock's archives put into a prefix, and what differs there.

    Args:
        lock: what the prefix must be made of.
        prefix: where it is.
        channels: folders or URLs that have the archives, before where the lock says.
        progress: told what is being done.

    Raises:
        ArchiveRefused: an archive is not the locked one, cannot be had, or is malformed.
    """
    prefix = prefix.absolute()
    with tempfile.TemporaryDirectory(prefix="pericard-") as work:
        made = expected.expected(lock, unpacked(lock, Path(work), channels=channels, progress=progress), prefix)
        held, found = expected.compare(
            made, prefix, owner=prefix.stat().st_uid,
            progress=None if progress is None else lambda done, size: progress("verifying", done, size),
        )  # fmt: skip
    return len(held.files), found
