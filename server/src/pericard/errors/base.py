"""The root of the tree, and how it is walked."""

from __future__ import annotations

from typing import ClassVar


class PericardError(Exception):
    """Base of every error that Pericard raises on purpose.

    Attributes:
        code: stable identifier of the kind of failure; only leaves are raised.
        message: one lower-case sentence that names its subject.
        hint: what the reader can do, or None.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def leaves() -> dict[str, type[PericardError]]:
    """Every error that can be raised, by its stable code."""
    found: dict[str, type[PericardError]] = {}
    pending: list[type[PericardError]] = [PericardError]
    while pending:
        kind = pending.pop()
        below = kind.__subclasses__()
        pending.extend(below)
        if not below:
            found[kind.code] = kind
    return dict(sorted(found.items()))


def from_code(code: str, message: str, hint: str | None = None) -> PericardError:
    """Rebuild an error that another process named; an unknown code becomes the base class."""
    return leaves().get(code, PericardError)(message, hint=hint)
