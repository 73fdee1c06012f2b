"""What a prefix must hold, worked out from a lock and its archives alone, and what is found that differs.

Rules of this room: nothing of the prefix is believed, its ``conda-meta`` least of all. Every file's hash comes out of
an archive whose own hash stands in the lock. Where installers differ without harm (how a command is indented, what
their umask takes from a mode), the form that is found is taken if it is one of those; compiled files that no archive
holds are taken if their verified source compiles to them. The comparison itself is ``verifier.check``.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pericard.environment import compiled, verifier
from pericard.environment.archive import Python, Unpacked
from pericard.environment.lock import Lock
from pericard.environment.verifier import Entry, Finding, Manifest
from pericard.errors import ArchiveRefused

_LONGEST_PREFIX = 100  # so that no installer must rewrite the first line of a script (127 bytes, in old kernels)
_HARMFUL = 0o6022
_TAG, _TAG_TEXT = "CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55"
_LARGEST_RECORD = 256 << 20


@dataclass(slots=True)
class Expected:
    """What archives put into a prefix.

    Attributes:
        lock: which archives.
        prefix: where it lies.
        files: every path, and the forms that it may have.
        python: its interpreter, if it has one.
    """

    lock: Lock
    prefix: Path
    files: dict[str, list[Entry]] = field(default_factory=dict)
    python: Python | None = None


def expected(lock: Lock, unpacked: Sequence[Unpacked], prefix: Path) -> Expected:
    """What these archives put into a prefix.

    Raises:
        ArchiveRefused: one of them is malformed, or the prefix's path is too long or odd to be written into files.
    """
    text = str(prefix)
    if not prefix.is_absolute() or len(text) > _LONGEST_PREFIX or not text.isascii() or set(text) & set(" \t\n\\'\"$`"):
        raise ArchiveRefused(
            f"{text}: is no path for a prefix",
            hint=f"an absolute one of at most {_LONGEST_PREFIX} plain characters: it is written into scripts",
        )
    made = Expected(lock, prefix, python=next((one.python for one in unpacked if one.python), None))
    for archive in unpacked:
        for path, forms in archive.entries(text, made.python):
            # two packages with one path: an installer takes one of them, and may keep the other beside it
            if path in made.files:
                made.files[f"{path}__clobber-from-{archive.package.name}"] = forms
            made.files[path] = made.files.get(path, []) + forms
    return made


def compare(
    made: Expected, root: Path, *, owner: int, progress: verifier.Progress | None = None
) -> tuple[Manifest, list[Finding]]:
    """Hold a prefix against what its archives put there.

    Args:
        made: what must be there.
        root: where the prefix is to be read.
        owner: whom everything must belong to.
        progress: as ``verifier.check`` takes it.

    Returns:
        What was held against it, as a manifest that has no place of its own, and what differs.
    """
    present = dict(_present(root))
    files = {path: _chosen(root, path, forms) for path, forms in made.files.items() if _wanted(path, present, made)}
    records = {package.record for package in made.lock.packages}
    seen = {path for path in (*records, _TAG) if stat.S_ISREG(present.get(path, 0))}
    files |= {path: on_disk(root, path) for path in seen if path != _TAG or _is_tag(root)}
    files |= {path: Entry("file", 0o644) for path in records - seen}
    folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
    files |= {path: Entry("folder", 0o755) for path in folders}
    files = {path: _as_found(entry, present.get(path)) for path, entry in files.items()}
    manifest = Manifest(
        Path(), "conda", made.prefix, made.lock.sha256, "", len(made.lock.packages), made.lock.digest, files, owner
    )
    found = verifier.check(manifest, prefix=root, progress=progress)
    found = [finding for finding in found if not (finding.code == "unknown" and _inert(finding, present))]
    found = _without_compiled(made, root, found, files, owner)
    return manifest, sorted([*found, *_foreign(made.lock, root, seen)], key=lambda finding: finding.path)


def _without_compiled(
    made: Expected, root: Path, found: list[Finding], files: Mapping[str, Entry], owner: int
) -> list[Finding]:
    """What is left when compiled files that are as they must be are taken out, and into account."""
    sources = {finding.path: compiled.source(finding.path) for finding in found if finding.code == "unknown"}
    asked = [path for path, source in sources.items() if source in files]
    others = [finding for finding in found if finding.path not in asked]
    # the prefix's own interpreter made them, and is the one to ask, once all that it runs was verified
    clean = made.python if not others else None
    good = set(compiled.agreeing(root, asked, clean))
    left = others
    for finding in found:
        if finding.path in good:
            left += _held(root, finding.path, owner)
        elif finding.path in asked:
            what = "is compiled code, and not what its source compiles to; python runs it in place of its source"
            left.append(Finding("unknown", finding.path, f"{finding.path}: {what}"))
    return left


def _held(root: Path, path: str, owner: int) -> Iterator[Finding]:
    status = (root / path).lstat()
    if status.st_uid not in {0, owner}:
        yield Finding("owner", path, f"{path}: belongs to user {status.st_uid}")
    if status.st_mode & _HARMFUL:
        yield Finding("mode", path, f"{path}: has mode {stat.S_IMODE(status.st_mode):o}")


def _present(root: Path) -> Iterator[tuple[str, int]]:
    """Every path below a folder, and its mode; what cannot be read is for ``verifier.check`` to say."""
    start = len(str(root)) + 1
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = f"{folder}/{name}"
            try:
                yield path[start:], os.lstat(path).st_mode
            except OSError:
                continue


def _wanted(path: str, present: Mapping[str, int], made: Expected) -> bool:
    """What an installer keeps of two packages' same path need not be there."""
    return "__clobber-from-" not in path or path in present or path.partition("__clobber-from-")[0] not in made.files


def _chosen(root: Path, path: str, forms: list[Entry]) -> Entry:
    """Of several forms, the one that is there; where none is, the first."""
    if len(forms) == 1:
        return forms[0]
    try:
        full = root / path
        if full.is_symlink():
            target = str(full.readlink())
            return next((form for form in forms if form.target == target), forms[0])
        digest = on_disk(root, path).sha256
    except OSError:
        return forms[0]
    return next((form for form in forms if form.sha256 == digest), forms[0])


def on_disk(root: Path, path: str) -> Entry:
    """A file as it is.

    Raises:
        OSError: it cannot be read.
    """
    with (root / path).open("rb") as file:
        found = os.fstat(file.fileno())
        return Entry(
            "file", stat.S_IMODE(found.st_mode), found.st_size, hashlib.file_digest(file, "sha256").hexdigest()
        )


def _as_found(entry: Entry, mode: int | None) -> Entry:
    """With the mode that is there, if it differs only in what it does not let others do."""
    if entry.type == "link" or mode is None:
        return entry
    bits = stat.S_IMODE(mode)
    same = bool(bits & 0o100) == bool(entry.mode & 0o100) and (entry.mode & 0o100 or not bits & 0o111)
    return entry._replace(mode=bits) if same and not bits & _HARMFUL else entry


def _is_tag(root: Path) -> bool:
    """A mark for backup programs that rattler leaves; nothing reads more of it than this."""
    with (root / _TAG).open("rb") as file:
        return file.read(4096).startswith(_TAG_TEXT)


def _inert(finding: Finding, present: Mapping[str, int]) -> bool:
    """An empty folder, or one of compiled files alone, which are named themselves: no code comes from it."""
    return stat.S_ISDIR(present.get(finding.path, 0))


def _foreign(lock: Lock, root: Path, records: Iterable[str]) -> Iterator[Finding]:
    """What conda's own records say came from another channel than the lock names."""
    channels = {package.record: package for package in lock.packages}
    for path in records:
        package = channels.get(path)
        if package is None:
            continue
        try:
            with (root / path).open("rb") as file:
                record = json.loads(file.read(_LARGEST_RECORD))
            url = record.get("url") if isinstance(record, dict) else None
        except (OSError, ValueError, RecursionError):
            yield Finding("unreadable", path, f"{path}: is no record of a package")
            continue
        if isinstance(url, str) and url != package.url and not url.startswith(package.channel + "/"):
            yield Finding("channel", path, f"{path}: came from {url[:200]}, the lock names {package.channel}")
