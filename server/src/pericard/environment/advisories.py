"""Known vulnerabilities of locked packages, looked up offline in an export of the OSV database.

Rules of this room: nothing is fetched. An advisory counts if it names a locked package and its version: by the
ecosystem of PyPI for python packages, whose names conda shares but for a few, or by conda's own. What conda-forge
packages of C libraries (openssl, say) is in no such ecosystem: an empty result says nothing about those.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pericard.environment.lock import Lock, Package
from pericard.errors import ConfigError

Older = Callable[[str, str], bool]

_LARGEST, _MOST = 1 << 30, 2_000_000  # bytes of an export unpacked; advisories in it
_LARGEST_ONE = 16 << 20
#: Where conda's name of a python package is not PyPI's.
_PYPI = {
    "pytorch": "torch", "pytorch-cpu": "torch", "pytorch-gpu": "torch", "fastapi-core": "fastapi",
    "prometheus_client": "prometheus-client", "matplotlib-base": "matplotlib", "msgpack-python": "msgpack",
    "py-opencv": "opencv-python", "pyqt": "pyqt5",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Advisory:
    """One that names a locked package.

    Attributes:
        id: its number, as OSV has it.
        aliases: other numbers, such as a CVE's.
        package: the locked one.
        summary: one line.
        fixed: versions that it says are repaired.
        severity: the vector of its score, if it has one.
    """

    id: str
    aliases: tuple[str, ...]
    package: Package
    summary: str
    fixed: tuple[str, ...]
    severity: str

    @property
    def line(self) -> str:
        """For people."""
        numbers = " ".join((self.id, *self.aliases))
        repaired = f"; repaired in {', '.join(self.fixed)}" if self.fixed else "; no repaired version is known"
        return f"{self.package.name} {self.package.version}: {numbers}: {self.summary or 'no summary'}{repaired}"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every advisory of an export: a ZIP of JSON files as OSV publishes one for each ecosystem, or JSON itself.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    try:
        if zipfile.is_zipfile(path):
            yield from _zipped(path)
            return
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError("size")
        value = json.loads(data)
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(
            f"{path}: cannot be read as advisories",
            hint="give an export of OSV: the all.zip of an ecosystem, or its JSON",
        ) from error
    found = value.get("vulns", [value]) if isinstance(value, dict) else value
    if not isinstance(found, list) or not all(isinstance(one, dict) and "id" in one for one in found):
        raise ConfigError(f"{path}: is not in the schema of OSV")
    yield from found


def _zipped(path: Path) -> Iterator[dict[str, Any]]:
    rest = _LARGEST
    with zipfile.ZipFile(path) as outer:
        names = [info for info in outer.infolist() if info.filename.endswith(".json")]
        if len(names) > _MOST:
            raise ValueError("count")
        for info in names:
            rest -= info.file_size
            if info.file_size > _LARGEST_ONE or rest < 0:
                raise ValueError("size")
            with outer.open(info) as member:
                value = json.loads(member.read(_LARGEST_ONE))
            if isinstance(value, dict):
                yield value


def found(lock: Lock, advisories: Iterable[dict[str, Any]], *, older: Older) -> list[Advisory]:
    """Those that name a locked package in its version, by package.

    Args:
        lock: the packages.
        advisories: in OSV's schema; what is malformed in one is passed over, and the rest of it counts.
        older: whether the first of two versions is the older one.
    """
    known: dict[tuple[str, str], Package] = {}
    for package in lock.packages:
        known["pypi", _normal(_PYPI.get(package.name, package.name))] = package
        known["conda", package.name] = known["conda-forge", package.name] = package
    hits: dict[tuple[str, str], Advisory] = {}
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for affected in _dicts(advisory.get("affected")):
            about = affected.get("package")
            about = about if isinstance(about, dict) else {}
            ecosystem, name = str(about.get("ecosystem", "")).partition(":")[0].lower(), str(about.get("name", ""))
            match = known.get((ecosystem, _normal(name) if ecosystem == "pypi" else name))
            if match is not None and _affects(affected, match.version, older):
                hits[match.name, str(advisory.get("id"))] = _advisory(advisory, affected, match)
    return [hits[key] for key in sorted(hits)]


def _affects(affected: dict[str, Any], version: str, older: Older) -> bool:
    listed = affected.get("versions")
    if isinstance(listed, list) and any(_same(version, str(one), older) for one in listed):
        return True
    ranges = (one for one in _dicts(affected.get("ranges")) if one.get("type") in {"ECOSYSTEM", "SEMVER"})
    return any(_within(_dicts(one.get("events")), version, older) for one in ranges)


def _within(events: Iterable[dict[str, Any]], version: str, older: Older) -> bool:
    """The algorithm of OSV's schema: the last event at or before the version decides."""
    inside = False
    ordered = [(kind, str(value)) for event in events for kind, value in event.items()]
    limits = [value for kind, value in ordered if kind == "limit" and value != "*"]
    if limits and not any(_older(version, limit, older) for limit in limits):
        return False
    for kind, value in _sorted(ordered, older):
        at_or_after = value == "0" or not _older(version, value, older)
        if kind == "introduced" and at_or_after:
            inside = True
        elif (kind == "fixed" and at_or_after) or (kind == "last_affected" and _older(value, version, older)):
            inside = False
    return inside


def _sorted(events: list[tuple[str, str]], older: Older) -> list[tuple[str, str]]:
    """By version; 0 comes before all. A short list, so that it is sorted by insertion."""
    made: list[tuple[str, str]] = []
    for event in events:
        place = 0 if event[1] == "0" else next(
            (at for at, other in enumerate(made) if other[1] != "0" and _older(event[1], other[1], older)), len(made)
        )  # fmt: skip
        made.insert(place, event)
    return made


def _older(one: str, other: str, older: Older) -> bool:
    try:
        return older(one, other)
    except Exception:  # noqa: BLE001  (what no order knows is not older; the library has no one error for it)
        return False


def _same(one: str, other: str, older: Older) -> bool:
    if one == other:
        return True
    try:
        return not older(one, other) and not older(other, one)
    except Exception:  # noqa: BLE001  (the same)
        return False


def _advisory(advisory: dict[str, Any], affected: dict[str, Any], package: Package) -> Advisory:
    events = [event for one in _dicts(affected.get("ranges")) for event in _dicts(one.get("events"))]
    ranges = {str(one.get("type")) for one in _dicts(affected.get("ranges"))}
    fixed = {str(event["fixed"]) for event in events if "fixed" in event} if ranges - {"GIT"} else set()
    scores = [str(one.get("score", "")) for one in _dicts(advisory.get("severity"))]
    aliases = advisory.get("aliases")
    return Advisory(
        str(advisory.get("id")), tuple(map(str, aliases)) if isinstance(aliases, list) else (), package,
        " ".join(str(advisory.get("summary") or advisory.get("details") or "").split())[:160],
        tuple(sorted(version for version in fixed if not re.fullmatch(r"[0-9a-f]{40}", version))),
        scores[0] if scores else "",
    )  # fmt: skip


def _dicts(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
