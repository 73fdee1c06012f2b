"""What differs between two locks, package by package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pericard.environment.lock import Lock, Package


@dataclass(frozen=True, slots=True)
class Difference:
    """One package that is in one lock alone, or not the same in both."""

    name: str
    old: Package | None
    new: Package | None

    @property
    def line(self) -> str:
        """For people: ``+`` came, ``-`` went, ``~`` changed, and what."""
        if self.old is None and self.new is not None:
            return f"+ {self.name} {self.new.version} {self.new.build}"
        if self.new is None and self.old is not None:
            return f"- {self.name} {self.old.version} {self.old.build}"
        parts = [
            f"{what} {one} → {other}" if what else f"{one} → {other}"
            for what, one, other in self._changes()
            if one != other
        ]
        return f"~ {self.name} {', '.join(parts)}"

    def _changes(self) -> Iterator[tuple[str, str, str]]:
        if self.old is None or self.new is None:
            return
        yield "", self.old.version, self.new.version
        yield "build", self.old.build, self.new.build
        yield "channel", self.old.channel, self.new.channel
        yield "archive", self.old.sha256[:16], self.new.sha256[:16]


def differences(old: Lock, new: Lock) -> list[Difference]:
    """Every package that is not the same archive from the same channel in both, by name."""
    before = {package.name: package for package in old.packages}
    after = {package.name: package for package in new.packages}
    pairs = ((name, before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys()))
    return [Difference(name, one, other) for name, one, other in pairs if one != other]
