"""The runtime that this process really uses: a digest of the installed distributions.

Rules of this room: it describes, it does not judge (``trust`` decides whether a digest is acceptable). The digest is
SHA-256 over the sorted lines ``name version sha256(RECORD)``, one for each distribution that the interpreter can
import; RECORD holds a hash of every installed file. It finds drift; an attacker inside the interpreter can lie.
"""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from importlib import metadata


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
    for distribution in metadata.distributions():
        # an interrupted installation leaves folders without metadata: described too, not tripped over
        about = distribution.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"] or "unknown").lower()
        record = distribution.read_text("RECORD") or ""
        found.setdefault(name, (about["Version"] or "unknown", hashlib.sha256(record.encode()).hexdigest()))
    distributions = tuple((name, *found[name]) for name in sorted(found))
    python, machine = platform.python_version(), platform.machine()
    lines = [f"python {python} {machine}", *(" ".join(entry) for entry in distributions)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Runtime(digest, distributions, python, machine)
