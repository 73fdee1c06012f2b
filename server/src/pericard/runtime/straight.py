"""A graph at one shape of its inputs, computed without Python and without guards between its operators.

Guards look at sizes, layouts, types and numbers before every kernel, and cost up to a third of a small forward pass.
Where nothing that they look at depends on the values of the inputs, they always say the same, and once is enough. Rules
of this room: that is proved and not assumed, by calling the guarded graph with tensors that have shapes and no values,
on which whatever asks for a value fails; then the guards hold against real tensors once; what is traced is the graph
that was checked, calls its operators only, and must give the guarded graph's answer bit for bit. What cannot be proved
keeps its guards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.jit._fuser import optimized_execution

from pericard.errors import BackendFailed

_Traced = Callable[..., Any]  # torch's own type has parameters that nobody knows
Straight = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]

#: What a trace consists of beside the graph's own operators: numbers, lists and tuples of them.
_STRUCTURE = {
    "prim::Constant", "prim::ListConstruct", "prim::TupleConstruct", "prim::ListUnpack", "prim::TupleUnpack",
    "prim::NumToTensor",
}  # fmt: skip


def straighten(
    plain: torch.fx.GraphModule, guarded: torch.fx.GraphModule, arguments: Sequence[torch.Tensor]
) -> Straight:
    """The graph as one call, for arguments of exactly these shapes, layouts and types.

    Args:
        plain: the checked graph.
        guarded: the same behind its guards.
        arguments: weights and inputs in the graph's order; the weights are not copied, nor kept.

    Raises:
        BackendFailed: a guard depends on values, or refuses; or the graph cannot be traced as it is.
    """
    try:
        with torch.inference_mode():
            _prove(guarded, arguments)
            wanted = tuple(guarded(*arguments))
            traced = _traced(plain, arguments)
        found = _called(traced, arguments)
    except BackendFailed:
        raise
    except Exception as error:  # torch raises whatever it meets
        raise BackendFailed(f"model: its guards stay between its operators ({type(error).__name__})") from error
    if not same(found, wanted):
        raise BackendFailed("model: computes other numbers without its guards")
    return lambda given: _called(traced, given)


def same(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    """Whether two answers are the same, bit for bit."""
    return len(found) == len(wanted) and all(
        one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
        for one, other in zip(found, wanted, strict=True)
    )


def _prove(guarded: torch.fx.GraphModule, arguments: Sequence[torch.Tensor]) -> None:
    """Call the graph with shapes alone; whatever depends on a value raises, a guard included."""
    shapes = FakeTensorMode()
    with shapes:
        guarded(*[shapes.from_tensor(argument) for argument in arguments])


def _traced(plain: torch.fx.GraphModule, arguments: Sequence[torch.Tensor]) -> _Traced:
    """What ``torch.jit.trace`` makes of a call, without its registry, which keeps every function for ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it deprecates, and of numbers that become constants
        graph, _ = torch._C._create_graph_by_tracing(  # noqa: SLF001  (the public way never forgets)
            lambda *given: tuple(plain(*given)), tuple(arguments), lambda _: "", True, False
        )
    for node in graph.nodes():
        kind = node.kind()
        if kind not in _STRUCTURE and (not kind.startswith("aten::") or "!" in node.schema()):
            raise BackendFailed(f"model: its trace calls {kind}, which is not a pure operator")
    made: _Traced = torch._C._create_function_from_graph("model", graph)  # noqa: SLF001
    return made


def _called(traced: _Traced, arguments: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    # not optimised: the interpreter would otherwise rewrite the graph after it was checked
    with torch.inference_mode(), optimized_execution(False):
        found: tuple[torch.Tensor, ...] = traced(*arguments)
    return found


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
