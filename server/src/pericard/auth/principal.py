"""A principal and what it was granted."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from pericard.errors import Forbidden, Unauthenticated

#: What can be asked for. ``predict`` and ``metadata`` are asked for on a model; the others on the server.
OPERATIONS = ("predict", "metadata", "metrics", "audit", "admin")


@dataclass(frozen=True, slots=True)
class Grant:
    """Operations on models.

    Attributes:
        operations: of :data:`OPERATIONS`.
        models: patterns of model names, ``*`` and ``?`` allowed.
    """

    operations: frozenset[str]
    models: tuple[str, ...]

    def allows(self, operation: str, model: str | None) -> bool:
        """Whether an operation (on a model) is among them."""
        return operation in self.operations and (model is None or _matches(self.models, model))


class Limits(NamedTuple):
    """How much one principal may ask; None is what the server allows everybody.

    Attributes:
        rate: rows a second.
        burst: rows at once before the rate counts.
        rows: that may wait or be in work.
    """

    rate: float | None = None
    burst: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        name: as the operator called it; stands in the audit log.
        credential: id of the credential that was used.
        grants: what it may; none of them is nothing.
        within: if given, nothing beyond it, whatever the grants say.
        limits: of its own, or None.
    """

    name: str
    credential: str
    grants: tuple[Grant, ...]
    within: Grant | None = None
    limits: Limits | None = None

    def may(self, operation: str, model: str | None = None) -> bool:
        """Whether an operation (on a model) was granted."""
        if self.within is not None and not self.within.allows(operation, model):
            return False
        for grant in self.grants:  # noqa: SIM110  (asked for every request: a generator costs more than the rest)
            if grant.allows(operation, model):
                return True
        return False


@lru_cache(maxsize=4096)
def _matches(patterns: tuple[str, ...], model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


def not_valid() -> Unauthenticated:
    """What everybody is told whose credential stands for nobody: the same words, whatever was wrong."""
    return Unauthenticated(
        "credential: is not valid", hint="send Authorization: Bearer <token>; the operator makes tokens"
    )


def require(principal: Principal, operation: str, model: str | None = None) -> None:
    """The one authoriser.

    Raises:
        Forbidden: it was not granted; the same for a model that exists and for one that does not.
    """
    if not principal.may(operation, model):
        subject = operation if model is None else f"{operation} on model {model}"
        raise Forbidden(
            f"{principal.name}: was not granted {subject}",
            hint="the operator grants it, in the site's policy or with pericard token create --operation … --model …",
        )
