#!/usr/bin/python3 -IS
"""Hold every file of an installed prefix against its manifest.

Rules of this file: the standard library alone, nothing of pericard, nothing newer than Python 3.9, so that the
system's interpreter can run a copy of it from outside the prefix, before anything inside the prefix runs. It reads, it
never writes. What cannot be judged is an error and not a pass.

The manifest is docs/spec/environment-manifest.md: it lies outside the prefix, belongs to root, and names every file,
link and directory with its type, mode and SHA-256. A file that it does not name is a finding, as is one that belongs to
anybody else. Exit status: 0 nothing found, 1 findings, 2 cannot judge.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

FORMAT, VERSION = "pericard-environment-manifest", 1
DEFAULT = Path("/etc/pericard/environment.json")
#: Below the prefix, what is in no manifest: conda's own diary. It must be a plain file; nothing runs it.
UNNAMED = frozenset({"conda-meta/history"})

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_LARGEST = 128 << 20  # bytes of a manifest; 20 000 files take about 4 MiB
_MOST_FILES = 1 << 20
_LOT = 256  # small files that one thread takes at a time
_LARGE = 1 << 20  # bytes from which a file is a lot of its own, and of one read
_MOST_THREADS = 8
_SHOWN = 100
_BAR = 30  # characters
_FORBIDDEN_MODE = 0o6022  # set-id, and writable for others than the owner
_HEX = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{1,4}")
_NUMBER = re.compile(r"[0-9]{1,15}")
_TARGET = re.compile(r"[^\0]+")
_MEMBERS = {"format", "version", "kind", "prefix", "lock", "digest", "files"}
_LOCK_MEMBERS = {"sha256", "publisher", "packages"}
_ENTRY_MEMBERS = {"file": {"type", "mode", "size", "sha256"}, "link": {"type", "target"}, "folder": {"type", "mode"}}
_WORDS = {"file": "a file", "link": "a symbolic link", "folder": "a folder", "other": "a pipe, socket or device"}

#: What an unknown file may do.
_MEANING = {
    r"/([^/]+)\.(?:dist|egg)-info/(?:METADATA|PKG-INFO)$": "is of the package {}, which the lock does not hold",
    r"^/conda-meta/(.+)\.json$": "records the package {}, which the lock does not hold",
    r"\.pth$": "is not in the manifest; python runs it at every start",
    r"/(?:site|user)customize\.py$": "is not in the manifest; python imports it at every start",
    r"\.pyc$": "is not in the manifest; python runs it in place of its source",
}

Progress = Callable[[int, int], None]


class Refused(Exception):
    """The manifest cannot be used: absent, malformed, or in the hands of others than its owner."""


class Finding(NamedTuple):
    """Something that is not as the manifest says; the message is a sentence that begins with the path."""

    code: str  # changed, missing, unknown, mode, owner, type, target, attribute, unreadable or prefix
    path: str  # below the prefix; of a ``prefix`` finding, absolute
    message: str


class Entry(NamedTuple):
    """What the manifest says of one path; a field that its type does not have is empty."""

    type: str
    mode: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""


class Manifest(NamedTuple):
    """A manifest that was read strictly."""

    path: Path
    kind: str  # conda
    prefix: Path  # absolute
    lock: str  # SHA-256 of the lock file that was installed, hex
    publisher: str  # id of the key that signed the lock
    packages: int  # how many the lock names
    digest: str  # of the packages, hex; it does not depend on where the prefix lies
    files: Mapping[str, Entry]  # by path below the prefix
    owner: int  # the user id that everything must belong to, if not to root


# --- the manifest


def read(manifest: Path, *, owner: int = 0) -> Manifest:
    """Read a manifest, strictly.

    Args:
        manifest: the file.
        owner: the user id that it, its folders and the prefix must belong to; root, other than in tests.

    Raises:
        Refused: it is not there, is not its owner's alone, or is not what docs/spec/environment-manifest.md says.
    """
    path = Path(os.path.abspath(manifest))  # noqa: PTH100  (resolve() would follow a link)
    for _, _, message in guarded(path.parent, owner):
        raise Refused(f"{path}: is not safe where it lies: {message}")
    try:
        value = json.loads(_bytes(path, owner), object_pairs_hook=_once)
        return _parsed(value, path, owner)
    except (ValueError, RecursionError) as error:
        reason = "is not JSON" if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) else str(error)
        raise Refused(f"{path}: {reason}") from error


def _bytes(path: Path, owner: int) -> bytes:
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, _READ)) as file:
            found = os.fstat(file.fileno())
            data = file.read(_LARGEST + 1) if stat.S_ISREG(found.st_mode) else None
    except OSError as error:
        what = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be read: {_reason(error)}"
        raise Refused(f"{path}: {what}") from error
    wrong = list(_others(found, owner)) if data is not None else ["is not a regular file"]
    if data is None or wrong or len(data) > _LARGEST:
        raise Refused(f"{path}: {wrong[0] if wrong else f'is larger than {_LARGEST >> 20} MiB'}")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("holds a key twice")
    return found


def _parsed(value: Any, path: Path, owner: int) -> Manifest:  # noqa: ANN401  (JSON)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError("is not an environment manifest")
    if value.get("version") != VERSION:
        raise ValueError(f"is of version {value.get('version')!r:.20}, this verifier reads version {VERSION}")
    _exactly(value, _MEMBERS, "the manifest")
    lock, prefix, files = value["lock"], value["prefix"], value["files"]
    _exactly(lock, _LOCK_MEMBERS, "lock")
    if value["kind"] != "conda":
        raise ValueError(f"is of the unknown kind {value['kind']!r:.20}")
    hashes = [_like(_HEX, text, "a hash") for text in (value["digest"], lock["sha256"], lock["publisher"])]
    packages = int(_like(_NUMBER, repr(lock["packages"]), "lock.packages"))
    if not isinstance(prefix, str) or not prefix.startswith("/") or not _proper(prefix[1:]):
        raise ValueError("prefix is not an absolute path")
    if path.is_relative_to(prefix):
        raise ValueError("lies inside the prefix that it describes")
    if not isinstance(files, dict) or not 0 < len(files) <= _MOST_FILES:
        raise ValueError("files is not an object of paths")
    entries = {name: _entry(name, entry) for name, entry in files.items()}
    return Manifest(path, "conda", Path(prefix), hashes[1], hashes[2], packages, hashes[0], entries, owner)


def _entry(path: str, value: Any) -> Entry:  # noqa: ANN401  (JSON)
    if not _proper(path) or path in UNNAMED:
        raise ValueError(f"names {path!r:.80}, which is no path of a file below the prefix")
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _ENTRY_MEMBERS:
        raise ValueError(f"{path!r:.80} has the unknown type {kind!r:.20}")
    _exactly(value, _ENTRY_MEMBERS[kind], f"{path!r:.80}")
    if kind == "link":
        return Entry(kind, target=_like(_TARGET, value["target"], f"the target of {path!r:.80}"))
    mode = int(_like(_MODE, value["mode"], f"the mode of {path!r:.80}"), 8)
    if mode & _FORBIDDEN_MODE:
        raise ValueError(f"{path!r:.80} is writable for others, or set-id (mode {mode:o})")
    if kind == "folder":
        return Entry(kind, mode)
    size = int(_like(_NUMBER, repr(value["size"]), f"the size of {path!r:.80}"))
    return Entry(kind, mode, size, _like(_HEX, value["sha256"], f"the hash of {path!r:.80}"))


def _exactly(value: Any, wanted: set[str], where: str) -> None:  # noqa: ANN401  (JSON)
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")  # noqa: TRY004  (one exception type)
    odd = ", ".join(sorted(value.keys() ^ wanted))
    if odd:
        raise ValueError(f"{where} lacks or does not know: {odd:.80}")


def _like(pattern: re.Pattern[str], value: object, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what} is none: {value!r:.40}")
    return value


def _proper(path: str) -> bool:
    """Whether this is a relative path in its only form: no empty part, no ``.`` and no ``..``."""
    return "\0" not in path and all(part not in {"", ".", ".."} for part in path.split("/"))


# --- the prefix


def check(
    manifest: Manifest, *, prefix: Path | None = None, threads: int | None = None, progress: Progress | None = None
) -> list[Finding]:
    """Hold the prefix against its manifest; sorted by path, empty where all is as it should be.

    Args:
        manifest: what it must be.
        prefix: where it is, if elsewhere than the manifest says, such as in a mounted image.
        threads: that read and hash; as many as there are cores, up to 8, where None.
        progress: called with the bytes that were read and those there are.
    """
    root = os.fspath(prefix or manifest.prefix)
    findings = list(guarded(Path(root), manifest.owner))
    if not os.path.isdir(root):  # noqa: PTH112  (the same below: pathlib costs seconds here)
        return [Finding("prefix", root, f"{root}: is not a folder")]
    present: dict[str, str] = {}  # path below the prefix, and what lies there
    findings += _walk(root, "", present)
    findings += [Finding("missing", path, f"{path}: is missing") for path in manifest.files if path not in present]
    parents = {path.rpartition("/")[0] for path in present}
    findings += [
        _unknown(path, kind)
        for path, kind in present.items()
        if path not in manifest.files
        and not (path in UNNAMED and kind == "file")
        and not (kind == "folder" and path in parents)  # what lies in it is named
    ]
    named = [(path, manifest.files[path]) for path in present if path in manifest.files]
    plain = [(path, entry) for path, entry in named if entry.type == "file" == present[path]]
    for path, entry in named:
        if entry.type != present[path]:
            message = f"{path}: is {_WORDS[present[path]]}, the manifest says {_WORDS[entry.type]}"
            findings.append(Finding("type", path, message))
        elif entry.type != "file":
            findings += _beside(root, path, entry, manifest.owner)
    findings += _hashed(root, plain, manifest.owner, threads, progress)
    return sorted(findings, key=lambda finding: (finding.path, finding.code))


def guarded(folder: Path, owner: int) -> Iterator[Finding]:
    """What lets others than the owner put another folder in this one's place, in each of those above it too."""
    resolved = Path(os.path.realpath(folder))
    chain = {*(folder, *folder.parents), *(resolved, *resolved.parents)}
    for place in sorted(chain):
        name = str(place)
        try:
            found = os.lstat(place)
        except OSError as error:
            yield Finding("prefix", name, f"{name}: cannot be looked at: {_reason(error)}")
            return
        # nobody but its owner can rename what lies in a sticky folder; to add something to the last one is enough
        sticky = bool(found.st_mode & stat.S_ISVTX) and place not in {folder, resolved}
        yield from (Finding("prefix", name, f"{name}: {what}") for what in _others(found, owner, sticky=sticky))


def _others(found: os.stat_result, owner: int, *, sticky: bool = False) -> Iterator[str]:
    """What lets others than the owner change a file or a folder."""
    if found.st_uid not in {0, owner}:
        yield f"belongs to user {found.st_uid}, not to {'root' if owner == 0 else f'user {owner}'}"
    if found.st_mode & 0o022 and not sticky and not stat.S_ISLNK(found.st_mode):
        yield f"others than its owner may write it (mode {stat.S_IMODE(found.st_mode):o})"


def _walk(root: str, below: str, present: dict[str, str]) -> Iterator[Finding]:
    """Fill in the type of every path below the prefix; links are not followed."""
    try:
        with os.scandir(os.path.join(root, below)) as listing:  # noqa: PTH118
            entries = list(listing)
    except OSError as error:
        yield Finding("unreadable", below, f"{below}: cannot be read: {_reason(error)}")
        return
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        kinds = (("link", entry.is_symlink()), ("folder", entry.is_dir(follow_symlinks=False)))
        plain = "file" if entry.is_file(follow_symlinks=False) else "other"
        present[path] = next((kind for kind, is_one in kinds if is_one), plain)
        if present[path] == "folder":
            yield from _walk(root, path, present)


def _unknown(path: str, kind: str) -> Finding:
    """A finding that says what the file may do, where that is known."""
    for pattern, words in _MEANING.items():
        match = re.search(pattern, "/" + path)
        if match:
            return Finding("unknown", path, f"{path}: {words.format(*match.groups())}")
    what = {"file": "is", "folder": "is a folder that is"}.get(kind, f"is {_WORDS[kind]} that is")
    return Finding("unknown", path, f"{path}: {what} not in the manifest")


def _beside(root: str, path: str, entry: Entry, owner: int) -> Iterator[Finding]:
    """What is wrong with a folder or a link."""
    full = os.path.join(root, path)  # noqa: PTH118
    try:
        found = os.lstat(full)
        target = os.readlink(full) if entry.type == "link" else ""  # noqa: PTH115
    except OSError as error:
        yield Finding("unreadable", path, f"{path}: cannot be read: {_reason(error)}")
        return
    yield from _held(path, found, entry, owner)
    if target != entry.target:
        yield Finding("target", path, f"{path}: leads to {target}, the manifest says {entry.target}")


def _held(path: str, found: os.stat_result, entry: Entry, owner: int) -> Iterator[Finding]:
    mode = stat.S_IMODE(found.st_mode)
    if entry.type != "link" and mode != entry.mode:
        yield Finding("mode", path, f"{path}: has mode {mode:o}, the manifest says {entry.mode:o}")
    yield from (Finding("owner", path, f"{path}: {what}") for what in _others(found, owner, sticky=True))


# --- the bytes


def _hashed(
    root: str, plain: list[tuple[str, Entry]], owner: int, threads: int | None, progress: Progress | None
) -> Iterator[Finding]:
    """Read every file; the largest begin, since one of them may take as long as all small ones."""
    plain.sort(key=lambda pair: -pair[1].size)
    first = next((place for place, (_, entry) in enumerate(plain) if entry.size < _LARGE), len(plain))
    lots = [[pair] for pair in plain[:first]]
    lots += [plain[place : place + _LOT] for place in range(first, len(plain), _LOT)]
    total, done = sum(entry.size for _, entry in plain), 0
    count = threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    with ThreadPoolExecutor(count) as pool:
        pending = {pool.submit(_lot, root, lot, owner): sum(entry.size for _, entry in lot) for lot in lots}
        for future in as_completed(pending):
            yield from future.result()
            done += pending[future]
            if progress is not None:
                progress(done, total)


def _lot(root: str, lot: list[tuple[str, Entry]], owner: int) -> list[Finding]:
    found: list[Finding] = []
    for path, entry in lot:
        try:
            found += _file(os.path.join(root, path), path, entry, owner)  # noqa: PTH118
        except OSError as error:
            found.append(Finding("unreadable", path, f"{path}: cannot be read: {_reason(error)}"))
    return found


def _file(full: str, path: str, entry: Entry, owner: int) -> Iterator[Finding]:
    """One file, all of it by one descriptor: what was looked at is what was hashed."""
    descriptor = os.open(full, _READ)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            yield Finding("type", path, f"{path}: is no longer a file")
            return
        yield from _held(path, found, entry, owner)
        if _privileged(descriptor):
            yield Finding("attribute", path, f"{path}: carries capabilities of the kernel")
        if found.st_size != entry.size:
            yield Finding("changed", path, f"{path}: has {found.st_size} bytes, the manifest says {entry.size}")
        elif _sha256(descriptor, entry.size) != entry.sha256:
            yield Finding("changed", path, f"{path}: is not what was installed")
    finally:
        os.close(descriptor)


def _privileged(descriptor: int) -> bool:
    try:
        return "security.capability" in os.listxattr(descriptor)
    except OSError as error:
        return error.errno != errno.ENOTSUP  # a filesystem that has none; whatever else it is, is named


def _sha256(descriptor: int, size: int) -> str:
    """The hash of a file that has this many bytes; of one that grew meanwhile, another."""
    digest, rest = hashlib.sha256(), size + 1
    while rest > 0:
        data = os.read(descriptor, min(rest, _LARGE))
        if not data:
            break
        digest.update(data)
        rest -= len(data)
    return digest.hexdigest()


# --- words


def _reason(error: OSError) -> str:
    return (error.strerror or "i/o error").lower()


def printable(text: str) -> str:
    """Text of a file's name that cannot write to a terminal what it likes."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def _bar(done: int, total: int) -> None:
    filled = _BAR * done // max(total, 1)
    end = "" if done < total else "\r\033[K"
    sys.stderr.write(f"\rverifying  [{'#' * filled}{'-' * (_BAR - filled)}] {100 * done // max(total, 1):3} %{end}")
    sys.stderr.flush()


def main(argv: list[str]) -> int:
    """Verify, and say what was found: findings on stderr, the result on stdout."""
    parser = argparse.ArgumentParser("verify-environment", description="Hold an installed prefix against its manifest.")
    parser.add_argument("manifest", nargs="?", type=Path, default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--prefix", type=Path, help="where it is, if elsewhere than the manifest says")
    parser.add_argument("--owner", type=int, default=0, metavar="UID", help="whom all must belong to; default: root")
    parser.add_argument("--all", action="store_true", help=f"print every finding, not only the first {_SHOWN}")
    options, started = parser.parse_args(argv), time.monotonic()
    try:
        manifest = read(options.manifest, owner=options.owner)
        prefix = Path(os.path.abspath(options.prefix or manifest.prefix))  # noqa: PTH100
        if Path(os.path.realpath(sys.executable)).is_relative_to(os.path.realpath(prefix)):
            raise Refused(f"{prefix}: holds the interpreter that was to verify it; run this with the system's python3")
    except Refused as error:
        _say(f"cannot judge: {error}")
        return 2
    findings = check(manifest, prefix=prefix, progress=_bar if sys.stderr.isatty() else None)
    for finding in findings if options.all else findings[:_SHOWN]:
        _say(f"{finding.code}: {finding.message}")
    paths = f"{len(manifest.files)} paths"
    if findings:
        more = "" if options.all or len(findings) <= _SHOWN else f"; --all prints more than the first {_SHOWN}"
        _say(f"{prefix}: is not what was installed: {len(findings)} findings among {paths}{more}")
        return 1
    size, seconds = sum(entry.size for entry in manifest.files.values()) / 1e6, time.monotonic() - started
    lock = f"the lock {manifest.lock[:16]} of {manifest.packages} packages"
    sys.stdout.write(f"verified: {prefix}: {paths}, {size:.0f} MB in {seconds:.1f} s, as installed from {lock}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"verify-environment: {printable(text)}\n")


if __name__ == "__main__":
    if not (sys.flags.isolated and sys.flags.no_site):
        _say("cannot judge: variables and site packages may have changed this interpreter; run python3 -I -S")
        sys.exit(2)
    sys.exit(main(sys.argv[1:]))
