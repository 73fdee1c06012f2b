"""py-rattler, which solves, downloads indices, unpacks and links: the only place that knows it.

Rules of this room: it is imported when something is asked for, since a server that only verifies does not have it; what
it raises becomes one of our errors here. It runs no script of a package, uses no cache but the one that it is given,
and what it linked is held against the archives afterwards (``expected``).
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pericard.environment.archive import Unpacked
from pericard.environment.lock import Virtual
from pericard.errors import ArchiveRefused, ConfigError, NotInstalled, NotSolved

_MACHINES = {"x86_64": "linux-64", "aarch64": "linux-aarch64", "ppc64le": "linux-ppc64le"}


def here() -> str:
    """What conda calls this host's platform."""
    return _MACHINES.get(platform.machine(), f"linux-{platform.machine()}")


def _rattler() -> ModuleType:
    try:
        import rattler  # noqa: PLC0415  (optional, and slow to import)
    except ImportError as error:
        raise ConfigError(
            "py-rattler is not installed: it solves, unpacks and links",
            hint="conda install py-rattler, or pip install 'pericard-server[env]'; verifying works without it",
        ) from error
    return rattler


def virtual_packages() -> list[Virtual]:
    """What this host offers: its kernel, its C library, its CPU, its driver; ``CONDA_OVERRIDE_…`` is heeded."""
    found = (package.into_generic() for package in _rattler().VirtualPackage.detect())
    told = (Virtual(one.name.normalized, str(one.version), _build(one.build_string)) for one in found)
    return sorted(told, key=lambda one: one.name)


def _build(build: object) -> str:
    """The build string, without the 0 that means none."""
    text = str(build)
    return "" if text == "0" else text


def _generic(virtual: Virtual) -> Any:  # noqa: ANN401  (a library without types of its own that mypy sees)
    rattler = _rattler()
    return rattler.GenericVirtualPackage(
        rattler.PackageName(virtual.name), rattler.Version(virtual.version), rattler.BuildString(virtual.build or "0")
    )


def solve(
    specs: Sequence[str], channels: Sequence[str], subdir: str, virtual: Sequence[Virtual]
) -> list[tuple[str, str]]:
    """The address and SHA-256 of every package that satisfies what is asked for, from these channels alone.

    Raises:
        NotSolved: nothing does, a channel cannot be read, or has no SHA-256 of a package.
    """
    rattler = _rattler()
    generic = [_generic(one) for one in virtual]

    async def solved() -> Any:  # noqa: ANN401  (the same)
        return await rattler.solve(
            sources=list(channels), specs=list(specs), platforms=[subdir, "noarch"], virtual_packages=generic
        )

    try:
        records = asyncio.run(solved())
    except Exception as error:  # the library raises many kinds, with a text each
        raise NotSolved(
            f"environment: cannot be solved for {subdir}: {_words(error)}",
            hint="--virtual __cuda=12.9, say, tells of another host than this one; --channel, of other channels",
        ) from error
    unhashed = [record.file_name for record in records if record.sha256 is None]
    if unhashed:
        raise NotSolved(f"environment: the channel's index has no sha256 of {unhashed[0]}")
    return [(str(record.url), _hex(record.sha256)) for record in records]


def _hex(value: Any) -> str:  # noqa: ANN401  (bytes, or text in older ones)
    return value.hex() if isinstance(value, bytes) else str(value).lower()


def unpack(archive: Path, into: Path) -> None:
    """Unpack an archive whose hash was compared.

    Raises:
        ArchiveRefused: it is damaged.
    """
    _rattler()
    from rattler.package_streaming import extract  # noqa: PLC0415  (the same)

    try:
        extract(archive, into)
    except Exception as error:
        raise ArchiveRefused(f"{archive.name}: cannot be unpacked: {_words(error)}") from error


def satisfied(specs: Iterable[str], virtual: Sequence[Virtual]) -> list[str]:
    """Those of the specifications of virtual packages that this host does not satisfy."""
    rattler = _rattler()
    records = [
        rattler.PackageRecord(one.name, one.version, rattler.BuildString(one.build or "0"), 0, "noarch")
        for one in virtual
    ]
    missing = []
    for spec in sorted(set(specs)):
        wanted = rattler.MatchSpec(spec)
        if not any(wanted.matches(record) for record in records):
            missing.append(spec)
    return missing


def link(archives: Sequence[tuple[Unpacked, Path]], prefix: Path, cache: Path) -> None:
    """Link archives into a new prefix; no script of a package runs.

    Args:
        archives: each, and where the archive itself lies.
        prefix: where to.
        cache: an empty folder, which the library fills.

    Raises:
        NotInstalled: it did not work.
    """
    rattler = _rattler()
    records = []
    for unpacked, path in archives:
        record = rattler.PackageRecord.from_index_json(unpacked.folder / "info" / "index.json")
        channel = path.parent.parent.as_uri()
        records.append(rattler.RepoDataRecord(record, path.name, path.as_uri(), channel))

    async def linked() -> None:
        await rattler.install(
            records, target_prefix=prefix, cache_dir=cache, installed_packages=[], execute_link_scripts=False,
            show_progress=False,
        )  # fmt: skip

    try:
        asyncio.run(linked())
    except Exception as error:
        raise NotInstalled(f"{prefix}: cannot be linked: {_words(error)}") from error


def index(channel: Path) -> None:
    """Write the index of a channel's folder.

    Raises:
        ArchiveRefused: an archive in it cannot be read.
    """
    _rattler()
    from rattler.index import index_fs  # noqa: PLC0415  (the same)

    async def indexed() -> None:
        await index_fs(channel)

    try:
        asyncio.run(indexed())
    except Exception as error:
        raise ArchiveRefused(f"{channel}: cannot be indexed: {_words(error)}") from error


def below(version: str, other: str) -> bool:
    """Whether a version is older than another, in conda's order, which for python packages is that of PEP 440."""
    rattler = _rattler()
    older: bool = rattler.Version(version) < rattler.Version(other)
    return older


def _words(error: Exception) -> str:
    """One line of what the library says."""
    return " ".join(str(error).split())[:600] or type(error).__name__
