"""A principal and what it was granted."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from pericard.errors import Forbidden

#: What can be asked for. ``predict`` and ``metadata`` are asked for on a model; the others on the server.
OPERATIONS = ("predict", "metadata", "metrics", "audit", "admin")


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        name: as the operator called it; stands in the audit log.
        credential: id of the credential that was used.
        operations: what it may ask for.
        models: patterns of model names, ``*`` and ``?`` allowed.
    """

    name: str
    credential: str
    operations: frozenset[str]
    models: tuple[str, ...]

    def may(self, operation: str, model: str | None = None) -> bool:
        """Whether an operation (on a model) was granted."""
        return operation in self.operations and (model is None or _matches(self.models, model))


@lru_cache(maxsize=4096)
def _matches(patterns: tuple[str, ...], model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


def require(principal: Principal, operation: str, model: str | None = None) -> None:
    """The one authoriser.

    Raises:
        Forbidden: it was not granted; the same for a model that exists and for one that does not.
    """
    if not principal.may(operation, model):
        subject = operation if model is None else f"{operation} on model {model}"
        raise Forbidden(
            f"{principal.name}: was not granted {subject}",
            hint="the operator grants it: pericard token create --operation … --model …",
        )
