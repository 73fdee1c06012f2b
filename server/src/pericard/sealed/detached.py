"""Small signed files that lie beside a sealed model: grants that came later, and notices.

Rules of this module: only a regular file of bounded size is read, and whole; which files belong to a model is decided
by their names alone, since nothing in them is believed yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pericard import durable
from pericard.errors import BadGrant, BadNotice, MalformedModel, NotSealed, NotWritten, SealedModelError
from pericard.keys import Signature
from pericard.sealed import layout
from pericard.sealed.container import VerifiedModel

MAX_FILES = 64  # grants beside one model, and notices in one folder
_MODEL, _GRANT, _NOTICE = ".sealed", ".grant", ".notice"


def read_grants(path: Path) -> list[tuple[bytes, tuple[Signature, ...]]]:
    """Bodies and signatures of a grant file, at least one; nothing in them is believed yet.

    Raises:
        BadGrant: it cannot be read, is too large, or is no grants section.
    """
    data = read(path, limit=layout.MAX_GRANTS, refusal=BadGrant)
    try:
        found = layout.unpack_grants(data, subject=path.name)
    except MalformedModel as error:
        raise BadGrant(error.message, hint="ask the vendor for the grant file again") from error
    if not found:
        raise BadGrant(f"{path.name}: holds no grant")
    return found


def write_grants(path: Path, packed: tuple[bytes, ...]) -> None:
    """Write packed grants as a file of their own, mode 0644; an existing file is never replaced.

    Raises:
        NotWritten: the name is taken, or the disk refuses.
    """
    write(path, layout.pack_grants(packed))


def write(path: Path, data: bytes) -> None:
    """Write a new signed file, mode 0644.

    Raises:
        NotWritten: the name is taken, or the disk refuses.
    """
    try:
        durable.create(path, data, mode=0o644)
    except FileExistsError as error:
        raise NotWritten(f"{path}: exists already", hint="give the new file a name of its own") from error
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error


def grants_beside(model: Path) -> list[Path]:
    """The grant files of a sealed model ``NAME.sealed``, sorted: ``NAME.grant`` and ``NAME.*.grant``.

    Where another sealed model in the folder has the longer name that fits, the file is that one's.

    Raises:
        NotSealed: the folder cannot be read.
        BadGrant: they are too many.
    """
    names = _listing(model.parent, NotSealed)
    stem = model.name.removesuffix(_MODEL)
    others = [name.removesuffix(_MODEL) for name in names if name.endswith(_MODEL) and name != model.name]
    longer = [other for other in others if other.startswith(f"{stem}.")]
    found = [
        name
        for name in names
        if name.endswith(_GRANT) and name.startswith(f"{stem}.") and not any(name.startswith(f"{n}.") for n in longer)
    ]
    if len(found) > MAX_FILES:
        raise BadGrant(f"{model.name}: {len(found)} grant files lie beside it, at most {MAX_FILES} are read")
    return [model.parent / name for name in sorted(found)]


def stray_grants(models: Iterable[Path]) -> list[Path]:
    """The grant files in the folders of some sealed models that are none of theirs, sorted.

    Raises:
        NotSealed, BadGrant: as :func:`grants_beside`.
    """
    paths = list(models)
    used = {file for path in paths for file in grants_beside(path)}
    found = {
        folder / name
        for folder in {path.parent for path in paths}
        for name in _listing(folder, NotSealed)
        if name.endswith(_GRANT)
    }
    return sorted(found - used)


def notices_in(folder: Path) -> list[Path]:
    """The notices in a folder, sorted.

    Raises:
        BadNotice: the folder cannot be read, or they are too many.
    """
    if not folder.exists():
        return []  # the models that should lie there are missed by their own names
    found = [name for name in _listing(folder, BadNotice) if name.endswith(_NOTICE)]
    if len(found) > MAX_FILES:
        raise BadNotice(f"{folder.name}: holds {len(found)} notices, at most {MAX_FILES} are read")
    return [folder / name for name in sorted(found)]


def read(path: Path, *, limit: int, refusal: type[SealedModelError]) -> bytes:
    """Everything in one regular file of at most ``limit`` bytes; what it is not, or cannot be, raises ``refusal``."""
    try:
        return durable.read(path, limit=limit)
    except OSError as error:
        raise refusal(f"{path.name}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error


def _listing(folder: Path, refusal: type[SealedModelError]) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  (names alone; an entry may vanish meanwhile)
    except OSError as error:
        raise refusal(f"{folder}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error


def add_grants_beside(model: VerifiedModel, path: Path) -> None:
    """Add the grants in the files beside a verified model; the error of a bad one names the file.

    Raises:
        BadSignature: its publisher did not sign it.
        BadGrant: a file is malformed, or holds a grant for another sealed model.
    """
    for file in grants_beside(path):
        add_grants(model, file)


def add_grants(model: VerifiedModel, file: Path) -> None:
    """Add the grants in one file; raises as :func:`add_grants_beside`."""
    for body, signatures in read_grants(file):
        model.add_grant(body, signatures, subject=file.name)
