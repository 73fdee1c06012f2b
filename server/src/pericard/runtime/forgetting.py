"""What torch keeps of every graph that it ever built, for tracebacks and for the next one: a server must not.

A server that loads a new version every night for a year would hold the source of every graph that it served, and an
entry for every shape of every symbol. Nothing here is needed once a graph is built.
"""

from __future__ import annotations

import linecache

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_NAMES = "<eval_with_key>"  # what torch calls the source of a graph


def forget_graphs() -> None:
    """Drop the sources of built graphs, and what was worked out for shapes that are gone."""
    graph_module._loader.eval_cache.clear()  # noqa: SLF001  (torch has no other way)
    for name in [name for name in linecache.cache if name.startswith(_NAMES)]:
        linecache.cache.pop(name, None)
    FakeTensorMode.cache_clear()
    for method in vars(ShapeEnv).values():  # each remembers its answers for every graph's symbols, and so the symbols
        clear = getattr(method, "cache_clear", None)
        if clear is not None:
            clear()
