"""Pericard: sealed models, a guarded engine, evidence, and the runtime gate.

The public API is what this module names. Everything else may change between minor versions. ``load`` and ``seal`` bring
torch, so they are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pericard.library import Model, load, seal, term

__version__ = "0.1.0"

__all__ = ["Model", "__version__", "load", "seal", "term"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the name stands for)
    if name not in __all__:
        raise AttributeError(f"module 'pericard' has no attribute {name!r}")
    from pericard import library  # noqa: PLC0415  (it brings torch)

    return getattr(library, name)
