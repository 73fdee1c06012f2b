"""A runtime installed from a signed lock: archives hashed first, linked, held against the archives, then the manifest.

Rules of this room: nothing is linked before every archive is the locked one, and only copies that nobody else can reach
are linked. The prefix is closed to others until it was verified, shares no file with any cache, and has no manifest
unless every step succeeded; a failed attempt leaves nothing behind, and what stood there before stands there again.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pericard.environment import archive, compiled, conda, expected, held, manifest, verifier
from pericard.environment.gather import gather
from pericard.environment.lock import Lock, Virtual
from pericard.environment.verifier import Entry
from pericard.errors import NotInstalled

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
Remark = Callable[[str], None]

_SCRIPT = Path("/usr/local/libexec/pericard/verify-environment")
_SHOWN = 3
_OURS = {"link", "extracted_package_dir", "package_tarball_full_path"}  # of conda's records: folders that are gone
_LEFT = ("CACHEDIR.TAG",)  # a mark for backup programs, which is not of any package


@dataclass(frozen=True, slots=True)
class Installed:
    """What was installed.

    Attributes:
        files: how many paths the manifest names.
        digest: of the packages, hex.
        script: where the verifier's copy lies.
    """

    files: int
    digest: str
    script: Path


def script_of(path: Path) -> Path:
    """Where the verifier goes that reads this manifest: beside it, but for the usual one."""
    return _SCRIPT if path == verifier.DEFAULT else path.with_name("verify-environment")


def install(
    lock: Lock,
    prefix: Path,
    *,
    publisher: str,
    manifest_path: Path,
    channels: Sequence[str] = (),
    replace: bool = False,
    progress: Progress | None = None,
    remark: Remark | None = None,
) -> Installed:
    """Install a lock whose signature was verified.

    Args:
        lock: what to install.
        prefix: where to; absolute, and not there yet.
        publisher: id of the key that signed the lock.
        manifest_path: where the manifest goes.
        channels: folders or URLs to take the archives from, before where the lock says.
        replace: put aside a prefix that is there, and restore it if this fails.
        progress: told what is being done.
        remark: told what a reader should know, and what is no error.

    Raises:
        ArchiveRefused: an archive is not the locked one, cannot be had or is malformed.
        NotInstalled: the host or the place does not allow it, or what was linked is not what the archives hold.
    """
    owner = os.geteuid()
    _may(lock, prefix, manifest_path, owner, replace=replace)
    with _private(prefix) as work:
        archives, cache, folders = work / "archives", work / "cache", work / "unpacked"
        for folder in (archives, cache):
            folder.mkdir(mode=0o700)
        copies = gather(lock, archives, channels=channels, progress=_named(progress, "archives"))
        unpacked = held.unpack(lock, copies, folders, progress=progress)
        _host_offers(unpacked)
        for text in _scripts(unpacked):
            if remark is not None:
                remark(text)
        made = expected.expected(lock, unpacked, prefix)
        with _new(prefix, replace=replace):
            conda.link(list(zip(unpacked, copies, strict=True)), prefix, cache)
            shutil.rmtree(cache)  # with it goes every other name of the files that were linked
            _records(lock, prefix)
            _settle(prefix)
            files = _verified(made, prefix, owner, progress)
            if made.python is not None:
                compiled.compile_all(prefix, made.python)
                files = _with_compiled(files, prefix)
            data = manifest.render(lock, publisher, prefix, files)
            prefix.chmod(0o755)
            script = script_of(manifest_path)
            manifest.write(manifest_path, data, script)
    return Installed(len(files), lock.digest, script)


# --- before


def _scripts(unpacked: Sequence[archive.Unpacked]) -> Iterator[str]:
    for one in unpacked:
        for name in one.scripts:
            yield f"{one.package.file} has {name}, which conda would run; nothing runs it here"


def _may(lock: Lock, prefix: Path, manifest_path: Path, owner: int, *, replace: bool) -> None:
    if lock.platform != conda.here():
        raise NotInstalled(f"lock: is for {lock.platform}, this host is {conda.here()}")
    if prefix.is_symlink() or (prefix.exists() and not prefix.is_dir()):
        raise NotInstalled(f"{prefix}: is no folder")
    if prefix.exists() and any(prefix.iterdir()) and not replace:
        raise NotInstalled(
            f"{prefix}: is not empty",
            hint="name another folder, or --replace: what is there is put aside, and comes back if this fails",
        )
    if not prefix.parent.is_dir():
        raise NotInstalled(f"{prefix.parent}: is not there", hint=f"mkdir -p {prefix.parent}")
    if manifest_path.is_relative_to(prefix):
        raise NotInstalled(f"{manifest_path}: lies inside the prefix, where whoever changes a file could change it too")
    for _, _, message in verifier.guarded(prefix.parent, owner):
        raise NotInstalled(f"{prefix}: others could exchange it: {message}")


def _host_offers(unpacked: Sequence[archive.Unpacked]) -> None:
    """What packages need of a host and no package brings: its kernel, its C library, its driver."""
    wanted = [line for one in unpacked for line in one.depends if line.startswith("__")]
    offered: list[Virtual] = conda.virtual_packages()
    missing = conda.satisfied(wanted, offered)
    if missing:
        has = ", ".join(one.line for one in offered)
        raise NotInstalled(f"host: does not have {', '.join(missing)}, which the lock's packages need; it has {has}")


@contextmanager
def _private(prefix: Path) -> Iterator[Path]:
    """A folder beside the prefix that nobody else can reach; it goes at the end."""
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{prefix.name}.", suffix=".install", dir=prefix.parent))
    except OSError as error:
        raise NotInstalled(
            f"{prefix.parent}: cannot be written: {(error.strerror or 'i/o error').lower()}", hint="run this as root"
        ) from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _new(prefix: Path, *, replace: bool) -> Iterator[None]:
    """An empty prefix, closed to others; if the block fails, what was there is back."""
    aside = prefix.with_name(f".{prefix.name}.before")
    had = prefix.exists()
    if had and replace:
        if aside.exists():
            raise NotInstalled(f"{aside}: is there, from an attempt that was interrupted", hint="look at it, remove it")
        prefix.rename(aside)
    elif had:
        prefix.rmdir()
    try:
        prefix.mkdir(mode=0o700)
        yield
    except BaseException:
        shutil.rmtree(prefix, ignore_errors=True)
        if aside.exists():
            aside.rename(prefix)
        elif had:
            prefix.mkdir(mode=0o755)
        raise
    shutil.rmtree(aside, ignore_errors=True)


# --- meanwhile


def _records(lock: Lock, prefix: Path) -> None:
    """Conda's records say where the archives came from by the lock, and nothing of this installation's folders."""
    for package in lock.packages:
        path = prefix / package.record
        try:
            record = json.loads(path.read_bytes())
            record = {name: value for name, value in record.items() if name not in _OURS}
            record |= {"url": package.url, "channel": package.channel, "fn": package.file, "sha256": package.sha256}
            path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        except (OSError, ValueError, AttributeError) as error:
            raise NotInstalled(f"{path}: is no record of what was linked") from error


def _settle(prefix: Path) -> None:
    """Nobody but the owner may write anything; no file has another name somewhere."""
    for name in _LEFT:
        (prefix / name).unlink(missing_ok=True)
    for folder, folders, files in os.walk(prefix):
        for name in folders:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755)
        for name in files:
            path = Path(folder, name)
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                continue
            path.chmod(0o755 if found.st_mode & 0o100 else 0o644)
            if found.st_nlink > 1:
                raise NotInstalled(f"{path}: has another name, by which it could be written")


def _verified(made: expected.Expected, prefix: Path, owner: int, progress: Progress | None) -> dict[str, Entry]:
    """Every path, as the archives have it; what was linked must agree."""
    as_held, found = expected.compare(made, prefix, owner=owner, progress=_named(progress, "verifying"))
    found = [finding for finding in found if finding.code != "prefix"]  # it is still closed; its folders were looked at
    if found:
        shown = "; ".join(finding.message for finding in found[:_SHOWN])
        raise NotInstalled(f"{prefix}: what was linked is not what the archives hold: {len(found)} findings: {shown}")
    return dict(as_held.files)


def _with_compiled(files: dict[str, Entry], prefix: Path) -> dict[str, Entry]:
    """With every compiled file, as it is now, and the folders that they are in."""
    found = dict(files)
    for path in prefix.rglob("__pycache__"):
        if path.is_symlink() or not path.is_dir():
            continue
        found[str(path.relative_to(prefix))] = Entry("folder", 0o755)
        for one in path.glob("*.pyc"):
            name = str(one.relative_to(prefix))
            found[name] = expected.on_disk(prefix, name)
    return found


def _named(progress: Progress | None, what: str) -> verifier.Progress | None:
    if progress is None:
        return None
    return lambda done, size: progress(what, done, size)
