"""What is to be locked: an environment file that is solved, or a prefix that conda made and somebody tried.

Rules of this room: packages come from the channels that are allowed and from no other, pip brings none, and everything
has a SHA-256; what does not fit is refused and named. A lock of a prefix says which archives it was made of, not that
its files still are theirs: ``pericard env verify --lock`` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pericard import documents
from pericard.environment import conda, lock
from pericard.environment.lock import Lock, Virtual
from pericard.errors import LockInvalid, NotSolved

OFFICIAL = "https://conda.anaconda.org/"
_TOLD = ("__cuda", "__glibc", "__linux")  # what a lock says of the host that it was solved for
_LARGEST_RECORD = 256 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


class Environment(msgspec.Struct, forbid_unknown_fields=True):
    """An environment file, as CEP 24 has it."""

    dependencies: list[str | dict[str, list[str]]]
    channels: list[str] = []
    name: str = ""
    platforms: list[str] = []
    category: str = ""
    prefix: str = ""
    variables: dict[str, str] = {}


def of_file(path: Path, *, channels: Sequence[str], platform: str, virtual: Sequence[Virtual]) -> Lock:
    """Solve an environment file.

    Args:
        path: the file.
        channels: to use in place of those that it names, each a name, a folder or a URL.
        platform: to solve for.
        virtual: what the host offers, in addition to, or in place of, what this one does.

    Raises:
        ConfigError: it is no environment file.
        NotSolved: there is no solution, or pip is asked for something.
    """
    found = documents.parse(
        documents.read(path), Environment, subject=path.name, hint="the keys are those of conda's environment.yml"
    )
    if any(isinstance(line, dict) for line in found.dependencies):
        raise NotSolved(
            f"{path.name}: asks pip for packages, which a lock cannot hold",
            hint="take them from the channel; what is not there needs a recipe",
        )
    wanted = [line for line in found.dependencies if isinstance(line, str)]
    places = [address(name) for name in channels or found.channels if name != "nodefaults"]
    if not places:
        raise NotSolved(f"{path.name}: names no channel", hint="--channel conda-forge")
    offered = offers(platform, virtual)
    told = [one for one in offered if one.name in _TOLD]
    return lock.make(platform, told, conda.solve(wanted, places, platform, offered), subject=path.name)


def of_prefix(prefix: Path, *, channels: Sequence[str], platform: str) -> Lock:
    """The archives that a prefix was made of, as its own records say.

    Raises:
        LockInvalid: a record is not one, has no SHA-256, names another channel, or pip installed something too.
    """
    allowed = [address(name) for name in channels or ["conda-forge"]]
    packages, named = [], set()
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        record = _record(path)
        url, sha256 = record.get("url"), record.get("sha256")
        if not isinstance(url, str) or not isinstance(sha256, str):
            raise LockInvalid(f"{path.name}: has no address or no sha256", hint="install it again from its channel")
        if not any(url.startswith(channel.rstrip("/") + "/") for channel in allowed):
            raise LockInvalid(
                f"{path.name}: came from a channel that is not allowed: {url[:200]}", hint="--channel allows another"
            )
        packages.append((url, sha256.lower()))
        files = record.get("files")
        named |= {str(file) for file in files} if isinstance(files, list) else set()
    if not packages:
        raise LockInvalid(f"{prefix}: is no conda environment")
    stray = sorted(
        path.parent.name.removesuffix(".dist-info")
        for path in prefix.glob("lib/python*/site-packages/*.dist-info/METADATA")
        if str(path.relative_to(prefix)) not in named
    )
    if stray:
        raise LockInvalid(f"{prefix}: pip installed what a lock cannot hold: {', '.join(stray[:8])}")
    return lock.make(
        platform, [one for one in offers(platform, ()) if one.name in _TOLD], packages, subject=str(prefix)
    )


def _record(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_LARGEST_RECORD))
    except (OSError, ValueError, RecursionError) as error:
        raise LockInvalid(f"{path}: is no record of a package") from error
    if not isinstance(value, dict):
        raise LockInvalid(f"{path}: is no record of a package")
    return value


def address(channel: str) -> str:
    """The URL of a channel: of a name, the official one; of a folder, its ``file`` URL."""
    if "://" in channel:
        return channel.rstrip("/")
    if _NAME.fullmatch(channel) and not Path(channel).is_dir():
        return OFFICIAL + channel
    return Path(channel).absolute().as_uri()


def offers(platform: str, virtual: Sequence[Virtual]) -> list[Virtual]:
    """What a host offers to packages: this one, if it is of the platform, with what was said otherwise in its place."""
    found = {one.name: one for one in conda.virtual_packages()} if platform == conda.here() else {}
    found |= {one.name: one for one in virtual}
    if not found:
        raise NotSolved(
            f"platform: this host is {conda.here()}, and cannot tell what a {platform} one offers",
            hint="--virtual __glibc=2.28 --virtual __linux=5.10 --virtual __unix=0 say so",
        )
    return sorted(found.values(), key=lambda one: one.name)
