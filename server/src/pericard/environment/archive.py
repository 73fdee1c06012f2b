"""One unpacked archive: what it is, and every path that it puts into a prefix.

Rules of this room: an archive is unpacked only after its hash was compared with the lock, so what it says is what was
locked; but it may still be one that nobody should install, so every path is checked to stay below the prefix. What an
installer must make of a file (placeholders, places of ``noarch`` packages, commands) is worked out here a second time,
apart from the library that links, and the two must agree.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pericard.environment.lock import Package
from pericard.environment.verifier import Entry
from pericard.errors import ArchiveRefused

_LARGEST = 256 << 20  # bytes of a file under info/
_PIECE = 1 << 20
_PYTHON = re.compile(r"(\d+)\.(\d+)")
_POINT = re.compile(r"\s*([A-Za-z0-9_.+-]+)\s*=\s*([A-Za-z_][\w.]*)\s*:\s*([A-Za-z_][\w.]*)\s*")
_COMMAND = """#!{python}
# -*- coding: utf-8 -*-
import re
import sys

from {module} import {name}

if __name__ == '__main__':
{indent}sys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])
{indent}sys.exit({function}())
"""


@dataclass(frozen=True, slots=True)
class Python:
    """The interpreter of a prefix: what its paths are called.

    Attributes:
        version: major and minor, ``3.11``.
        packages: where packages go, ``lib/python3.11/site-packages``.
    """

    version: str
    packages: str


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An archive, unpacked.

    Attributes:
        package: the lock's line.
        folder: where it was unpacked to.
        index: ``info/index.json``.
    """

    package: Package
    folder: Path
    index: dict[str, Any]

    @classmethod
    def open(cls, package: Package, folder: Path) -> Unpacked:
        """Look at an unpacked archive.

        Raises:
            ArchiveRefused: it is not the package that its name says.
        """
        found = cls(package, folder, _document(folder, "index.json", package.file))
        named = (found.index.get("name"), found.index.get("version"), found.index.get("build"))
        if named != (package.name, package.version, package.build):
            raise ArchiveRefused(f"{package.file}: says of itself that it is {'-'.join(map(str, named))[:200]}")
        return found

    @property
    def depends(self) -> list[str]:
        """What it needs, as conda writes it."""
        return [line for line in self.index.get("depends", []) if isinstance(line, str)]

    @property
    def python(self) -> Python | None:
        """The interpreter, if that is what it holds."""
        match = _PYTHON.match(self.package.version) if self.package.name == "python" else None
        if match is None:
            return None
        packages = self.index.get("python_site_packages_path") or f"lib/python{match[0]}/site-packages"
        return Python(match[0], str(packages))

    def entries(self, prefix: str, python: Python | None) -> Iterator[tuple[str, list[Entry]]]:
        """Every path below the prefix, and what may be there: of a command, each form that an installer gives it.

        Args:
            prefix: where it is installed, absolute.
            python: the prefix's interpreter, if there is one.

        Raises:
            ArchiveRefused: a path leads out of the prefix, or the archive contradicts itself.
        """
        noarch = self.index.get("noarch") == "python"
        if noarch and python is None:
            raise ArchiveRefused(f"{self.package.file}: needs python, which the lock does not name")
        for line in self._paths():
            path = _placed(line["_path"], python) if noarch and python else line["_path"]
            yield self._below(path), [self._entry(line, path, prefix)]
        if noarch and python:
            for path, texts in self._commands(prefix, python):
                yield self._below(path), [_of(text, 0o755) for text in texts]

    @property
    def scripts(self) -> list[str]:
        """Names of the scripts that conda would run at installation; nobody runs them here."""
        ends = ("-pre-link.sh", "-post-link.sh", "-pre-unlink.sh")
        return [line["_path"] for line in self._paths() if line["_path"].endswith(ends)]

    def _paths(self) -> list[dict[str, Any]]:
        lines = _document(self.folder, "paths.json", self.package.file).get("paths")
        if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
            raise ArchiveRefused(f"{self.package.file}: its info/paths.json is malformed")
        if not all(isinstance(line.get("_path"), str) for line in lines):
            raise ArchiveRefused(f"{self.package.file}: its info/paths.json has a line without a path")
        return lines

    def _below(self, path: str) -> str:
        if "\0" in path or any(part in {"", ".", ".."} for part in path.split("/")):
            raise ArchiveRefused(f"{self.package.file}: puts a file out of the prefix: {path[:200]!r}")
        return path

    def _entry(self, line: dict[str, Any], path: str, prefix: str) -> Entry:
        source = self.folder / self._below(line["_path"])
        try:
            found = source.lstat()
            if stat.S_ISLNK(found.st_mode):
                return Entry("link", target=self._target(path, str(source.readlink())))
            if stat.S_ISDIR(found.st_mode):
                return Entry("folder", 0o755)
            mode = 0o755 if found.st_mode & 0o100 else 0o644
            if line.get("prefix_placeholder"):
                return _of(replaced(source.read_bytes(), line, prefix), mode)
            if not stat.S_ISREG(found.st_mode):
                raise ArchiveRefused(f"{self.package.file}: {path} is a pipe, socket or device")
            digest = line.get("sha256") or _sha256(source)
        except OSError as error:
            reason = (error.strerror or "i/o error").lower()
            raise ArchiveRefused(f"{self.package.file}: {path}, which it names, cannot be read: {reason}") from error
        return Entry("file", mode, found.st_size, str(digest))

    def _target(self, path: str, target: str) -> str:
        resolved = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120  (text alone)
        if target.startswith("/") or resolved.split("/")[0] == "..":
            raise ArchiveRefused(
                f"{self.package.file}: {path} is a link that leads out of the prefix: {target[:200]!r}"
            )
        return target

    def _commands(self, prefix: str, python: Python) -> Iterator[tuple[str, list[bytes]]]:
        """The commands of a ``noarch`` package: rattler indents with tabs, conda with blanks."""
        link = self.folder / "info" / "link.json"
        if not link.exists():
            return
        noarch = _document(self.folder, "link.json", self.package.file).get("noarch")
        for point in (noarch.get("entry_points") if isinstance(noarch, dict) else None) or []:
            match = _POINT.fullmatch(point) if isinstance(point, str) else None
            if match is None:
                raise ArchiveRefused(f"{self.package.file}: has a command of an unknown form: {point!r:.200}")
            yield f"bin/{match[1]}", [
                _COMMAND.format(
                    python=f"{prefix}/bin/{name}", module=match[2], name=match[3].split(".")[0], function=match[3],
                    indent=indent,
                ).encode()
                for name in (f"python{python.version}", "python")
                for indent in ("\t", "    ")
            ]  # fmt: skip


def replaced(data: bytes, line: dict[str, Any], prefix: str) -> bytes:
    """What an installer makes of a file that holds a placeholder for its prefix.

    In text every placeholder becomes the prefix. In a binary file the rest of the string that it is in moves up, and
    zeros keep the length.
    """
    old, new = str(line["prefix_placeholder"]).encode(), prefix.encode()
    if line.get("file_mode") != "binary":
        return data.replace(old, new)

    def shorter(match: re.Match[bytes]) -> bytes:
        return match[0].replace(old, new).ljust(len(match[0]), b"\0")

    return re.sub(re.escape(old) + rb"[^\0]*", shorter, data)


def _placed(path: str, python: Python) -> str:
    """Where a file of a ``noarch`` python package goes."""
    for start, place in (("site-packages/", python.packages), ("python-scripts/", "bin")):
        if path.startswith(start):
            return f"{place}/{path.removeprefix(start)}"
    return path


def _of(data: bytes, mode: int) -> Entry:
    return Entry("file", mode, len(data), hashlib.sha256(data).hexdigest())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document(folder: Path, name: str, subject: str) -> dict[str, Any]:
    path = folder / "info" / name
    try:
        if path.stat().st_size > _LARGEST:
            raise ArchiveRefused(f"{subject}: its info/{name} is larger than {_LARGEST >> 20} MiB")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveRefused(f"{subject}: its info/{name} cannot be read") from error
    if not isinstance(value, dict):
        raise ArchiveRefused(f"{subject}: its info/{name} is not an object")
    return value
