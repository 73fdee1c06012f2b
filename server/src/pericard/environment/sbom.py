"""A bill of materials in CycloneDX 1.6, from a lock, and from its archives what only they know.

Rules of this room: the same lock gives the same bytes, so there is no time in it and its serial number comes out of the
lock's digest.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pericard.environment.archive import Unpacked
from pericard.environment.lock import Lock, Package

_SPACE = uuid.UUID("6f0c9c4e-3f5b-5a64-9f57-0d2d0a3f6c11")  # of serial numbers of ours
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def purl(package: Package) -> str:
    """The package URL, as the type ``conda`` defines it."""
    channel = package.channel.rpartition("/")[2]
    kind = "conda" if package.file.endswith(".conda") else "tar.bz2"
    told = {"build": package.build, "channel": channel, "subdir": package.subdir, "type": kind}
    qualifiers = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(told.items()) if value)
    return f"pkg:conda/{quote(package.name)}@{quote(package.version)}?{qualifiers}"


def render(lock: Lock, unpacked: Mapping[str, Unpacked] | None = None, *, version: str) -> bytes:
    """The bill of materials.

    Args:
        lock: what the runtime is made of.
        unpacked: its archives by package name, for licences and for what needs what; None where they are not at hand.
        version: of what makes it.
    """
    main = f"pericard-environment-{lock.digest[:16]}"
    components = [_component(package, (unpacked or {}).get(package.name)) for package in lock.packages]
    value: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, lock.sha256)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "pericard", "version": version}]},
            "component": {
                "type": "platform",
                "bom-ref": main,
                "name": "pericard-environment",
                "version": lock.digest,
                "properties": [
                    {"name": "pericard:platform", "value": lock.platform},
                    {"name": "pericard:lock:sha256", "value": lock.sha256},
                ],
            },
        },
        "components": components,
        "dependencies": _dependencies(lock, main, unpacked),
    }
    return (json.dumps(value, indent=2, ensure_ascii=True) + "\n").encode("ascii")


def _component(package: Package, unpacked: Unpacked | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package.name,
        "version": package.version,
        "purl": purl(package),
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
        "externalReferences": [{"type": "distribution", "url": package.url}],
    }
    licence = unpacked.index.get("license") if unpacked else None
    if isinstance(licence, str) and licence:
        found["licenses"] = [{"license": {"name": licence}}]
    return found


def _dependencies(lock: Lock, main: str, unpacked: Mapping[str, Unpacked] | None) -> list[dict[str, Any]]:
    refs = {package.name: purl(package) for package in lock.packages}
    found = [{"ref": main, "dependsOn": sorted(refs.values())}]
    for name, one in sorted((unpacked or {}).items()):
        needs = {match[0] for line in one.depends if (match := _NAME.match(line))}
        found.append({"ref": refs[name], "dependsOn": sorted(refs[need] for need in needs if need in refs)})
    return found
