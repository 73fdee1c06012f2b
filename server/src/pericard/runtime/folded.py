"""Convolutions over time, folded and laid out as the processor likes them; weights in private memory of their own.

A batch norm after a convolution is a scale and a shift of each channel, which its weights can hold; and oneDNN is
fastest where the channels of one sample lie side by side. Both change the last bits of an answer. Rules of this room:
what is rewritten is decided by the graph alone, never by a clock, so that the same model is computed in the same way on
every host; changed weights are in memory as private as the model's own; whether the answers are still right is for the
known answers to say, and the guards are held against the rewritten graph as against any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any

import torch

from pericard.hardening import PrivateMemory

#: Memory for so many bytes, or None where none is to be had that is as private as the model's own.
Private = Callable[[int], PrivateMemory | None]

_aten = torch.ops.aten
_CONVOLUTIONS = {_aten.conv1d.default, _aten.conv_transpose1d.default, _aten.convolution.default}
_NORMS = {_aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default}  # noqa: SLF001  (an operator)
_SAME = {_aten.dropout.default, _aten.feature_dropout.default}  # nothing is dropped outside training
_VIEWS = {_aten.view.default: _aten.reshape.default}  # the rewritten graph has other strides
_LAYOUTS = {"sym_stride"}  # what would see them
_ALIGNED = 64
_AXES = 3  # rows, channels, time


@dataclass
class Folded:
    """A rewritten graph.

    Attributes:
        module: the graph; it has no guards.
        arguments: its weights in their places, None where an input belongs.
        memory: where the changed weights are.
    """

    module: torch.fx.GraphModule
    arguments: list[torch.Tensor | None]
    memory: PrivateMemory


@dataclass
class _Convolution:
    """One convolution of the graph, its weights, and the norm that it takes in."""

    node: torch.fx.Node
    values: dict[str, Any]
    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: torch.fx.Node | None = None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    @property
    def transposed(self) -> bool:
        return self.node.target is _aten.conv_transpose1d.default or bool(self.values.get("transposed", False))

    @property
    def laid(self) -> bool:
        """Whether its weights are as they shall be: no norm to take in, and one channel beside which none can lie."""
        return self.norm is None and not self.transposed and self.weight.shape[1] == 1 and self.weight.is_contiguous()

    @property
    def channels(self) -> int:
        return self.weight.shape[1] * int(self.values["groups"]) if self.transposed else self.weight.shape[0]


def copied(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same graph in a module of its own."""
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return torch.fx.GraphModule({}, graph)


def fold(module: torch.fx.GraphModule, arguments: Sequence[torch.Tensor | None], private: Private) -> Folded | None:
    """Rewrite a checked graph, or give None where nothing can be gained, or the memory cannot be had.

    Args:
        module: the graph, without guards; it stays as it is.
        arguments: its weights by place, None where an input belongs.
        private: where the changed weights go.
    """
    if any(_name(node) in _LAYOUTS for node in module.graph.nodes):
        return None
    made = copied(module)
    held = dict(zip(_placeholders(made.graph), arguments, strict=True))
    found = list(_convolutions(made.graph, held))
    memory = private(sum(_size(one) for one in found)) if found else None
    if memory is None:
        return None
    try:
        room = torch.frombuffer(memory.view, dtype=torch.uint8)
        offset = 0
        for one in found:
            _replace(made.graph, one, held, room[offset : offset + _size(one)])
            offset += _size(one)
        for node in list(made.graph.nodes):
            if node.target in _SAME:
                node.replace_all_uses_with(node.args[0])
                made.graph.erase_node(node)
            elif node.target in _VIEWS:
                node.target = _VIEWS[node.target]
        _drop_unused(made.graph, held)
        made.graph.lint()
        made.recompile()
    except BaseException:
        memory.close()
        raise
    return Folded(made, [held[node] for node in _placeholders(made.graph)], memory)


def _convolutions(graph: torch.fx.Graph, held: dict[torch.fx.Node, torch.Tensor | None]) -> Iterator[_Convolution]:
    """Every convolution over time whose weights are the model's own, with the norm behind it."""
    for node in graph.nodes:
        if node.target not in _CONVOLUTIONS:
            continue
        values = _values(node)
        weight, bias = _weight(held, values["weight"]), _weight(held, values["bias"])
        if weight is None or weight.dim() != _AXES or (values["bias"] is not None and bias is None):
            continue
        one = _Convolution(node, values, weight, bias)
        if bias is None or bias.shape == (one.channels,):
            _take_norm(one, held)
            if one.norm is not None or not one.transposed:
                yield one


def _take_norm(one: _Convolution, held: dict[torch.fx.Node, torch.Tensor | None]) -> None:
    """Find the norm that alone uses a convolution's answer, and what it does to each channel."""
    users = list(one.node.users)
    if len(users) != 1 or users[0].target not in _NORMS or (one.transposed and one.values["groups"] != 1):
        return
    norm = users[0]
    if _is_native(norm) and any(user.target is not getitem or (user.args[1] and user.users) for user in norm.users):
        return
    values = _values(norm)
    parts = [_weight(held, values[name]) for name in ("weight", "bias", "running_mean", "running_var")]
    given = [part for part in parts if part is not None]
    fits = values["input"] is one.node and len(given) == len(parts) and not values.get("training", False)
    if not fits or any(part.shape != (one.channels,) for part in given):
        return
    gain, offset, mean, variance = (part.double() for part in given)
    one.norm, one.scale = norm, gain / torch.sqrt(variance + values["eps"])
    one.shift = offset - mean * one.scale


def _size(one: _Convolution) -> int:
    """Bytes for its weights, if they change, and a bias, each aligned."""
    counts = (0 if one.laid else one.weight.numel(), one.channels)
    return sum(-(-4 * count // _ALIGNED) * _ALIGNED for count in counts)


def _replace(
    graph: torch.fx.Graph, one: _Convolution, held: dict[torch.fx.Node, torch.Tensor | None], room: torch.Tensor
) -> None:
    """Put the folded convolution in the place of a convolution and its norm."""
    weight, bias = _written(one, room)
    first = next(iter(_placeholders(graph)))
    with graph.inserting_before(first):
        names = [graph.placeholder(f"{one.node.name}_{part}") for part in ("folded_weight", "folded_bias")]
    held.update(zip(names, (weight, bias), strict=True))
    values = one.values | {"weight": names[0], "bias": names[1]}
    with graph.inserting_before(one.node):
        new = _transposed(graph, one, values) if one.transposed else _side_by_side(graph, values)
    last = one.norm or one.node
    answers = list(last.users) if _is_native(last) else [last]  # the native norm gives a tuple, whose first is used
    for old in answers:
        old.replace_all_uses_with(new)
    for old in dict.fromkeys((*answers, last, one.node)):
        graph.erase_node(old)


def _written(one: _Convolution, room: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Its weights and bias with the norm in them, computed in double precision, in private memory."""
    bias = torch.zeros(one.channels, dtype=torch.float64) if one.bias is None else one.bias.double()
    start = len(room) - (-(-4 * one.channels // _ALIGNED) * _ALIGNED)
    shift = room[start : start + 4 * one.channels].view(torch.float32)
    if one.laid:  # a second copy of what does not change is one too many
        shift.copy_(bias)
        count, _, time = one.weight.shape
        return one.weight.as_strided((count, 1, 1, time), (time, 1, time, 1)), shift
    weight = one.weight.double()
    if one.scale is not None and one.shift is not None:
        weight.mul_(one.scale.reshape(1, -1, 1) if one.transposed else one.scale.reshape(-1, 1, 1))
        bias = bias * one.scale + one.shift
    shape = weight.shape
    kept = room[: 4 * prod(shape)].view(torch.float32)
    if one.transposed:
        kept = kept.view(shape)
    else:  # [out, in, 1, time], the channels of one sample side by side
        kept, weight = kept.view(shape[0], 1, shape[2], shape[1]).permute(0, 3, 1, 2), weight.unsqueeze(2)
    kept.copy_(weight)
    weight.zero_()  # this copy was in memory that is not private
    shift.copy_(bias)
    return kept, shift


def _side_by_side(graph: torch.fx.Graph, values: dict[str, Any]) -> torch.fx.Node:
    """A convolution over an image of height one, whose layout is kept from one to the next."""
    wide = graph.call_function(_aten.unsqueeze.default, (values["input"], 2))
    laid = graph.call_function(_aten.contiguous.default, (wide,), {"memory_format": torch.channels_last})
    steps = [[rest, *_listed(values[name])] for name, rest in (("stride", 1), ("padding", 0), ("dilation", 1))]
    arguments = (laid, values["weight"], values["bias"], *steps, values["groups"])
    return graph.call_function(_aten.squeeze.dim, (graph.call_function(_aten.conv2d.default, arguments), 2))


def _transposed(graph: torch.fx.Graph, one: _Convolution, values: dict[str, Any]) -> torch.fx.Node:
    names = [argument.name for argument in one.node.target._schema.arguments]  # type: ignore[union-attr]  # noqa: SLF001
    return graph.call_function(one.node.target, tuple(values[name] for name in names))  # type: ignore[arg-type]


def _drop_unused(graph: torch.fx.Graph, held: dict[torch.fx.Node, torch.Tensor | None]) -> None:
    for node in _placeholders(graph):
        if not node.users and held[node] is not None:
            graph.erase_node(node)


def _values(node: torch.fx.Node) -> dict[str, Any]:
    """An operator's arguments by name, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]  # noqa: SLF001  (no public way)
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | given | node.kwargs


def _listed(value: Any) -> list[Any]:  # noqa: ANN401  (a default of one axis is written as a number)
    return list(value) if isinstance(value, list | tuple) else [value]


def _weight(held: dict[torch.fx.Node, torch.Tensor | None], value: object) -> torch.Tensor | None:
    """The model's own tensor of 32-bit numbers that an argument names, if it does."""
    tensor = held.get(value) if isinstance(value, torch.fx.Node) else None
    return tensor if tensor is not None and tensor.dtype == torch.float32 else None


def _placeholders(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _is_native(node: torch.fx.Node) -> bool:
    return node.target is _aten._native_batch_norm_legit_no_training.default  # noqa: SLF001  (an operator)


def _name(node: torch.fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::") if schema is not None else ""
