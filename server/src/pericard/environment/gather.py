"""Archives brought together: each is copied to a private folder while it is hashed, and is the locked one or refused.

Rules of this room: nothing is unpacked or looked into before its hash was compared, and what was hashed is what is
handed on: a copy that only its owner can reach, so that nobody exchanges it between the check and its use. No conda
client hashes what it takes from a folder. The first archive that is not the locked one ends it; all such are named.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock as Mutex
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from pericard.environment.lock import Lock, Package
from pericard.errors import ArchiveRefused

Progress = Callable[[int, int], None]

_PIECE = 1 << 20
_LARGEST = 16 << 30  # bytes of an archive
_AT_ONCE = 4
_SECONDS = 60.0  # without a byte, of a download
_SHOWN = 3


def gather(lock: Lock, into: Path, *, channels: Sequence[str] = (), progress: Progress | None = None) -> list[Path]:
    """Copy every archive that a lock names.

    Args:
        lock: whose signature was verified.
        into: an empty folder that nobody else can reach; archives go to ``into/<subdir>/<file>``.
        channels: folders or URLs to take them from, the first that has one; what none of them has is taken from
            where the lock says.
        progress: told the bytes that arrived and those that are known to come.

    Returns:
        The copies, in the lock's order.

    Raises:
        ArchiveRefused: one is not the locked one, or cannot be had.
    """
    for subdir in {package.subdir for package in lock.packages}:
        (into / subdir).mkdir(mode=0o700)
    told = _Told(progress)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        copies = pool.map(lambda package: _one(package, into, channels, told), lock.packages)
        found = [(package, path, digest) for package, (path, digest) in zip(lock.packages, copies, strict=True)]
    wrong = [f"{package.file} is {digest[:16]}…, locked is {package.sha256[:16]}…" for package, _, digest in found
             if digest != package.sha256]  # fmt: skip
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise ArchiveRefused(
            f"archives: {len(wrong)} of {len(found)} are not what was locked: {shown}",
            hint="somebody exchanged them after they were locked, or the channel rebuilt them; nothing was installed",
        )
    return [path for _, path, _ in found]


class _Told:
    """What arrived, counted over all threads."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._mutex = progress, Mutex()
        self._done = self._size = 0

    def add(self, done: int, size: int) -> None:
        with self._mutex:
            self._done, self._size = self._done + done, self._size + size
            if self._progress is not None and self._size:
                self._progress(min(self._done, self._size), self._size)


def _one(package: Package, into: Path, channels: Sequence[str], told: _Told) -> tuple[Path, str]:
    target = into / package.subdir / package.file
    digest = hashlib.sha256()
    try:
        with _source(package, channels) as (source, size), target.open("xb") as copy:
            told.add(0, size)
            rest = _LARGEST
            while data := source.read(_PIECE):
                rest -= len(data)
                if rest < 0:
                    raise ArchiveRefused(f"{package.file}: is larger than {_LARGEST >> 30} GiB")
                digest.update(data)
                copy.write(data)
                told.add(len(data), 0)
    except (OSError, http.client.HTTPException) as error:
        raise ArchiveRefused(f"{package.file}: cannot be had: {_reason(error)}", hint=_hint(package)) from error
    return target, digest.hexdigest()


@contextmanager
def _source(package: Package, channels: Sequence[str]) -> Iterator[tuple[BinaryIO, int]]:
    """The archive to read from, and its size where that is known."""
    places = [f"{channel.rstrip('/')}/{package.subdir}/{package.file}" for channel in channels]
    for place in places:
        path = local(place)
        if path is None or path.exists():
            with _opened(place) as found:
                yield found
            return
    with _opened(package.url) as found:
        yield found


@contextmanager
def _opened(place: str) -> Iterator[tuple[BinaryIO, int]]:
    path = local(place)
    if path is not None:
        # O_NONBLOCK: a pipe in its place is refused, not waited for
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError(0, "is not a regular file")
            yield file, found.st_size
        return
    request = urllib.request.Request(place, headers={"User-Agent": "pericard"})  # noqa: S310  (http and https alone)
    with urllib.request.urlopen(request, timeout=_SECONDS) as reply:  # noqa: S310  (the same)
        yield reply, int(reply.headers.get("Content-Length") or 0)


def local(place: str) -> Path | None:
    """The path that a folder's name or a ``file`` URL stands for; None for what must be downloaded.

    Raises:
        ArchiveRefused: it is of another kind.
    """
    parts = urlsplit(place)
    if parts.scheme in {"http", "https"}:
        return None
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Path(unquote(parts.path))
    if not parts.scheme or "://" not in place:
        return Path(place)
    raise ArchiveRefused(f"{place[:200]}: is neither a folder nor an address that begins with https")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason).lower()
    return str(getattr(error, "strerror", None) or type(error).__name__).lower()


def _hint(package: Package) -> str:
    return f"--channel names another folder or address that has {package.subdir}/{package.file}"
