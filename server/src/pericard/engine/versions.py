"""Which versions of a model are served, of those that are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """The site's choice among the versions in its repository folder.

    Attributes:
        latest: how many of the newest versions of each model; None for all.
        sequences: for the models named here, these versions and no others.
    """

    latest: int | None = 1
    sequences: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def choose(self, name: str, sequences: Iterable[int]) -> set[int]:
        """The sequences to serve, of those that there are."""
        found = set(sequences)
        if name in self.sequences:
            return found & set(self.sequences[name])
        return set(sorted(found, reverse=True)[: self.latest])
