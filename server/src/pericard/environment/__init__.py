"""The runtime that this process really uses: what it is, whether it is the one that was locked, and on what host.

Rules of this room: a lock names every archive by its SHA-256 and is signed; an archive names every file; the manifest
of an installed prefix lies outside of it and belongs to root. Whatever is not named is a finding. ``verifier`` is one
file of the standard library alone, so that an interpreter from outside the prefix can run it; everything that solves,
downloads or links is imported by ``lock``, ``pack`` and ``install`` when they run.
"""

from pericard.environment.gate import Judgement, judge, require_manifest, unjudged
from pericard.environment.host import Cuda, Host, HostClass, driver, host_class, this_host
from pericard.environment.installed import Runtime, describe, verify

__all__ = [
    "Cuda",
    "Host",
    "HostClass",
    "Judgement",
    "Runtime",
    "describe",
    "driver",
    "host_class",
    "judge",
    "require_manifest",
    "this_host",
    "unjudged",
    "verify",
]
