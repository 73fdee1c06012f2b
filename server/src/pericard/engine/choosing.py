"""Which of the files that are there are served: none that is ambiguous, and then the site's choice of versions.

A name belongs to one vendor, and a sequence of it to one manifest: whoever else comes with them is refused, and where
nobody was first, all are. What is served already was first. Copies of one file are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from pericard.engine.loading import Candidate
from pericard.engine.repository import Served
from pericard.engine.versions import VersionPolicy
from pericard.errors import PericardError, UnsupportedModel

_Refused = list[tuple[Candidate, PericardError]]


def served_by_policy(name: str, good: list[Candidate], held: list[Served], versions: VersionPolicy) -> set[str]:
    """Manifests of the versions of one model to serve.

    Args:
        name: of the model.
        good: its files; what the settings name is served in any case.
        held: versions that stay in memory although their files are not good.
        versions: the choice among the others.
    """
    there = {served.sequence: served.manifest_hash for served in held}
    there |= {found.sequence: found.manifest_hash for found in good if not found.named}
    chosen = versions.choose(name, there)
    return {there[sequence] for sequence in chosen} | {found.manifest_hash for found in good if found.named}


def unambiguous(
    candidates: list[Candidate], serving: Iterable[Served], vendor: Callable[[str], str]
) -> tuple[list[Candidate], _Refused]:
    """The candidates of which each name and version is one, and the others with the reason.

    Args:
        candidates: in the order of preference among copies.
        serving: what is in memory.
        vendor: gives the name that a publisher's key is pinned under.
    """
    kept: list[Candidate] = []
    refused: _Refused = []
    present = list(serving)
    ordered = sorted(candidates, key=lambda one: one.name)
    for name, group in groupby(ordered, key=lambda one: one.name):
        found = list(group)
        first = {vendor(served.publisher) for served in present if served.name == name}
        theirs = _sole({one.vendor for one in found}, first)
        refused += [(one, _other_vendor(one, found, first)) for one in found if one.vendor != theirs]
        found = [one for one in found if one.vendor == theirs]
        for sequence in sorted({one.sequence for one in found}):
            same = [one for one in found if one.sequence == sequence]
            taken = {s.manifest_hash for s in present if (s.name, s.sequence) == (name, sequence)}
            manifest = _sole({one.manifest_hash for one in same}, taken)
            copies = [one for one in same if one.manifest_hash == manifest]
            kept += copies[:1]
            refused += [(one, _other_manifest(one)) for one in same if one not in copies]
    return kept, refused


def _sole(found: set[str], first: set[str]) -> str | None:
    """The one that counts: who was first, or who is alone."""
    if len(first) == 1:
        return next(iter(first))
    return next(iter(found)) if len(found) == 1 and not first else None


def _other_vendor(one: Candidate, found: list[Candidate], first: set[str]) -> PericardError:
    others = sorted(({other.vendor for other in found} | first) - {one.vendor})
    return UnsupportedModel(
        f"{one.path.name}: the model name {one.name} is used by {', '.join(others)} too, not only by {one.vendor}",
        hint="a name is one vendor's; keep the files of one, or ask the other for another name",
    )


def _other_manifest(one: Candidate) -> PericardError:
    return UnsupportedModel(
        f"{one.path.name}: two sealed files carry {one.name} with sequence {one.sequence}, and they are not the same",
        hint="keep one of them, or ask the vendor for a file with a sequence of its own",
    )
