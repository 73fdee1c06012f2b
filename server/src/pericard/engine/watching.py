"""Looking at the files that models come from: what is there, what is still being written, what changed.

Rules of this module: it reads names and what the kernel says of files, and opens none; a name tells nothing but where a
file is. A file counts only once two looks in a row found it the same (size, time, inode), so that what is being copied
is left alone. What is listed is bounded.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pericard.errors import NotSealed

_SEALED, _BESIDE = ".sealed", (".grant", ".notice")
MOST_FILES = 256
_MOST_NAMES = 16_384


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    size: int
    modified: int  # ns
    inode: int


@dataclass(frozen=True)
class Look:
    """What was found at one moment.

    Attributes:
        sealed: every sealed file that is there, named ones and those of the folder.
        settled: those of them that were the same at the look before.
        beside: grant files, notices and the file of pinned publishers.
    """

    sealed: dict[Path, Stamp] = field(default_factory=dict)
    settled: frozenset[Path] = frozenset()
    beside: dict[Path, Stamp] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is still being written."""
        return len(self.settled) == len(self.sealed)

    def same(self, other: Look) -> bool:
        """Whether nothing changed in between."""
        return (self.sealed, self.settled, self.beside) == (other.sealed, other.settled, other.beside)

    def mark(self, path: Path) -> tuple[object, ...]:
        """Everything that may decide what becomes of one sealed file, as it is now."""
        stem = path.name.removesuffix(_SEALED)
        beside = [
            (file, found)
            for file, found in sorted(self.beside.items())
            if file.name.startswith(f"{stem}.") or not _beside(file.name)
        ]
        return (self.sealed.get(path), *beside)


class Watcher:
    """Looks at the named files, the repository folder, and what lies beside both."""

    def __init__(self, named: tuple[Path, ...], folder: Path | None, publishers: Path) -> None:
        """Take where models come from, and the file of pinned publishers."""
        self.named = named
        self.folder = folder
        self._publishers = publishers
        self.last = Look()

    @property
    def folders(self) -> list[Path]:
        """Every folder that a model may lie in, sorted."""
        found = {path.parent for path in self.named}
        return sorted(found if self.folder is None else {*found, self.folder})

    def look(self) -> Look:
        """Look once more.

        Raises:
            NotSealed: the repository folder cannot be read, or holds more than is listed.
        """
        sealed = {path: stamp for path in self.named if (stamp := _stamp(path)) is not None}
        beside = {self._publishers: stamp} if (stamp := _stamp(self._publishers)) is not None else {}
        for folder in self.folders:
            for name in _names(folder, needed=folder == self.folder):
                path = folder / name
                if not name.startswith(".") and (found := _stamp(path)) is not None:
                    if _beside(name):
                        beside[path] = found
                    elif folder == self.folder and name.endswith(_SEALED):
                        sealed[path] = found
        if len(sealed) > MOST_FILES:
            raise NotSealed(
                f"models: {len(sealed)} sealed files are there, at most {MOST_FILES} are looked at",
                hint="move old versions out of the folder",
            )
        settled = frozenset(path for path, stamp in sealed.items() if self.last.sealed.get(path) == stamp)
        self.last = Look(sealed, settled, beside)
        return self.last


def _beside(name: str) -> bool:
    return name.endswith(_BESIDE)


def _names(folder: Path, *, needed: bool) -> list[str]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) > _MOST_NAMES:
                    raise NotSealed(f"{folder.name}: holds more than {_MOST_NAMES} names")
    except OSError as error:
        if needed:
            raise NotSealed(f"{folder.name}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    return sorted(found)


def _stamp(path: Path) -> Stamp | None:
    """A regular file's stamp, through links; None for anything else, or nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None
