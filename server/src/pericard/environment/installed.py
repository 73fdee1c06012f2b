"""What pip installed here: a digest of the distributions, and their files held against the hashes that came with them.

Rules of this room: it describes, it does not judge (``trust`` decides whether a digest is acceptable). The digest is
SHA-256 over the sorted lines ``name version sha256(RECORD)``, one for each distribution that the interpreter can
import; RECORD holds a hash of every installed file, and :func:`verify` holds the files against it. It finds drift; an
attacker inside the interpreter can lie.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata

from pericard.errors import EnvironmentDrift

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Runtime:
    """The installed runtime.

    Attributes:
        digest: SHA-256 over the distributions, hex.
        distributions: sorted ``(name, version, sha256 of RECORD)``.
        python: version of the interpreter.
        machine: architecture.
    """

    digest: str
    distributions: tuple[tuple[str, str, str], ...]
    python: str
    machine: str


def describe() -> Runtime:
    """Describe the runtime of this interpreter; the first of two distributions of one name is the one imported."""
    found: dict[str, tuple[str, str]] = {}
    for name, distribution in _installed():
        record = distribution.read_text("RECORD") or ""
        version = distribution.metadata["Version"] or "unknown"
        found[name] = (version, hashlib.sha256(record.encode()).hexdigest())
    distributions = tuple((name, *found[name]) for name in sorted(found))
    python, machine = platform.python_version(), platform.machine()
    lines = [f"python {python} {machine}", *(" ".join(entry) for entry in distributions)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Runtime(digest, distributions, python, machine)


def verify() -> int:
    """Hold every installed file against the hash that its distribution recorded; returns how many there are.

    Raises:
        EnvironmentDrift: a file differs or is missing.
    """
    recorded = [entry for _, distribution in _installed() for entry in _recorded(distribution)]
    with ThreadPoolExecutor() as pool:
        wrong = sorted(path for found in pool.map(_differing, _hands(recorded)) for path in found)
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise EnvironmentDrift(
            f"runtime: {len(wrong)} of {len(recorded)} installed files are not what was installed: {shown}",
            hint="install the runtime again; what it computes cannot be vouched for",
        )
    return len(recorded)


def _installed() -> Iterator[tuple[str, metadata.Distribution]]:
    """Normalised name and distribution; the first of two of one name, which is the one that is imported."""
    seen = set()
    for distribution in metadata.distributions():
        # an interrupted installation leaves folders without metadata: described too, not tripped over
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "unknown").lower()
        if name not in seen:
            seen.add(name)
            yield name, distribution


def _recorded(distribution: metadata.Distribution) -> Iterator[tuple[str, str, str]]:
    """Path, algorithm and hash of every file that has one; a compiled file and RECORD itself have none.

    In a prefix of conda's, RECORD is of the machine that built the package; commands were written by the installer.
    """
    folder = str(distribution.locate_file(""))
    linked = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))  # noqa: PTH112, PTH118  (the same as below)
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        if len(row) > 1 and row[1] and not (linked and row[0].startswith("../")):
            algorithm, _, value = row[1].partition("=")
            yield os.path.join(folder, row[0]), algorithm, value  # noqa: PTH118  (pathlib costs seconds here)


def _hands(recorded: list[tuple[str, str, str]]) -> list[list[tuple[str, str, str]]]:
    """As many parts as there are cores, each with its share of the large files."""
    count = len(os.sched_getaffinity(0))
    return [recorded[place::count] for place in range(count)]


def _differing(recorded: list[tuple[str, str, str]]) -> list[str]:
    found = []
    for path, algorithm, wanted in recorded:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (the same)
                digest = hashlib.file_digest(file, algorithm).digest()
        except (OSError, ValueError):
            found.append(path)
            continue
        if base64.urlsafe_b64encode(digest).rstrip(b"=") != wanted.encode():
            found.append(path)
    return found
