"""Loading and unloading leaves nothing behind: no graph, no symbol, no function, no bytes of memory."""

from __future__ import annotations

import ctypes
import gc
import linecache
from collections import Counter
from pathlib import Path

import pytest
import serving
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module

WARM, CYCLES = 4, 8


def resident() -> int:
    """Bytes that this process holds, once what nobody needs was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def alive() -> Counter[str]:
    for _ in range(4):  # what a finalizer lets go of, the next one finds
        gc.collect()
    return Counter(type(found).__name__ for found in gc.get_objects())


@pytest.mark.timeout(300)
def test_a_cycle_of_loading_and_unloading_leaves_nothing_behind(site: serving.Site, tiny_sealed: Path) -> None:
    """The whole of 500 cycles is ``make bench BENCH=leak``; here each thing that once leaked is looked at by name."""
    for _ in range(WARM):
        site.load(tiny_sealed).close()
    before, held = alive(), resident()
    functions = len(torch.jit._state._python_cu.get_functions())
    for _ in range(CYCLES):
        site.load(tiny_sealed).close()
    grown = alive() - before

    assert not graph_module._loader.eval_cache
    assert not [name for name in linecache.cache if name.startswith("<eval_with_key>")]
    assert not FakeTensorMode.cache
    for kind in ("ShapeEnv", "SymNode", "GraphModule", "Graph", "Node", "LoadedModel", "PrivateMemory", "Tensor"):
        assert grown[kind] == 0, (kind, grown[kind])
    assert len(torch.jit._state._python_cu.get_functions()) == functions
    assert resident() - held < held * 0.02
