"""The manifest of an installed prefix, written; ``verifier`` reads it. The format is docs/spec/environment-manifest.md.

Rules of this room: what it says of a file comes out of the verified archives (``expected``); of compiled files and of
conda's records, which were made here, from the disk, before anybody else could reach the prefix. It has one form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pericard import durable
from pericard.environment import verifier
from pericard.environment.lock import Lock
from pericard.environment.verifier import Entry
from pericard.errors import NotInstalled


def render(lock: Lock, publisher: str, prefix: Path, files: Mapping[str, Entry]) -> bytes:
    """The manifest's text: one line a path, sorted, so that two of them can be compared by eye."""
    head: dict[str, Any] = {
        "format": verifier.FORMAT,
        "version": verifier.VERSION,
        "kind": "conda",
        "prefix": str(prefix),
        "lock": {"sha256": lock.sha256, "publisher": publisher, "packages": len(lock.packages)},
        "digest": lock.digest,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()]
    entries = ",\n".join(f"{json.dumps(path)}: {json.dumps(_entry(files[path]))}" for path in sorted(files))
    return "".join(["{\n", *lines, '"files": {\n', entries, "\n}}\n"]).encode("ascii")


def _entry(entry: Entry) -> dict[str, Any]:
    if entry.type == "link":
        return {"type": "link", "target": entry.target}
    if entry.type == "folder":
        return {"type": "folder", "mode": f"{entry.mode:o}"}
    return {"type": "file", "mode": f"{entry.mode:o}", "size": entry.size, "sha256": entry.sha256}


def write(path: Path, data: bytes, script: Path) -> None:
    """Write a manifest and, where it is to stand, the verifier that reads it without this package.

    Raises:
        NotInstalled: they cannot be written.
    """
    try:
        for target in (script, path):
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        durable.replace(script, Path(verifier.__file__).read_bytes(), mode=0o755)
        durable.replace(path, data, mode=0o644)
    except OSError as error:
        raise NotInstalled(
            f"{error.filename or path}: cannot be written: {(error.strerror or 'i/o error').lower()}"
        ) from error
