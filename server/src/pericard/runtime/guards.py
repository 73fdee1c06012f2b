"""What kernels take on trust, held against the actual arguments at every call.

Some of torch's CPU kernels read as far as one argument says and never ask whether another is as long; a signed graph
could so read memory that is not its own. Static shapes cannot decide this, since sizes depend on the inputs. Rules of
this room: every operator of :data:`GUARDED` is called through its guard alone, a guard looks at sizes, types and
numbers before the kernel does, changes nothing, and refuses with an error that costs the batch and not the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, wraps
from itertools import pairwise
from math import isfinite, prod
from typing import Any

import torch

from pericard.errors import BackendFailed

_Values = Mapping[str, Any]
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_INTEGERS = {torch.int32, torch.int64}  # the processor faults where the smallest of these is divided by -1
_MAX_STEP = 4096
_BATCHED = 3
_HEADED = 4


def install(module: torch.fx.GraphModule) -> None:
    """Put the guard of every guarded operator of a graph in its place; answers stay as they are."""
    for node in module.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001  (no public name)
            guard = guarded(node.target)
            if guard is not None:
                node.target = guard
    module.recompile()


@cache
def guarded(overload: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """The operator behind its guard, or None if it needs none.

    Raises (the guard, when it is called):
        BackendFailed: the arguments do not fit each other.
    """
    name = overload._schema.name.removeprefix("aten::")  # noqa: SLF001  (no public way)
    check = GUARDED.get(name) or GUARDED.get(name.removesuffix("_"))  # a vendor's own program may write in place
    if check is None:
        return None
    arguments = overload._schema.arguments  # noqa: SLF001  (no public way)
    names = [argument.name for argument in arguments]
    defaults = {argument.name: argument.default_value for argument in arguments}

    @wraps(overload, assigned=(), updated=())
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  (whatever the operator takes and gives)
        check(name, {**defaults, **dict(zip(names, args, strict=False)), **kwargs})
        return overload(*args, **kwargs)

    call.__name__ = f"guarded_{name}"
    return call


def _refuse(name: str, what: str) -> BackendFailed:
    return BackendFailed(f"model: the graph calls {name} with {what}, which its kernel would take on trust")


def _attention(name: str, values: _Values) -> None:
    """Queries ``[n, heads, l, e]``, keys and values ``[n, heads, s, e]``, each row contiguous, and a mask that fits."""
    query, key, value, mask = values["query"], values["key"], values["value"], values["attn_mask"]
    if query.dim() != _HEADED or key.dim() != _HEADED or key.shape != value.shape:
        raise _refuse(name, "keys and values of different shapes")
    if not query.numel() or not key.numel():
        raise _refuse(name, "nothing to attend to")
    if query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3]:
        raise _refuse(name, "queries and keys that do not fit each other")
    if not query.dtype == key.dtype == value.dtype:
        raise _refuse(name, "tensors of different types")
    if any(tensor.shape[3] > 1 and tensor.stride(3) != 1 for tensor in (query, key, value)):
        raise _refuse(name, "rows that are not contiguous")
    if mask is None:
        return
    wanted = (*query.shape[:3], key.shape[2])
    if mask.dim() not in {2, _HEADED} or mask.dtype not in {query.dtype, torch.float32}:
        raise _refuse(name, "a mask of another kind")
    if any(size not in {1, full} for size, full in zip(mask.shape, wanted[-mask.dim() :], strict=True)):
        raise _refuse(name, "a mask of another shape")


def _dense_attention(name: str, values: _Values) -> None:
    """What picks a kernel by itself: every key needs its value, every query the size of the keys."""
    query, key, value = values["query"], values["key"], values["value"]
    if min(query.dim(), key.dim(), value.dim()) < 2 or key.shape[-2] != value.shape[-2]:  # noqa: PLR2004  (axes)
        raise _refuse(name, "another number of keys than of values")
    if query.shape[-1] != key.shape[-1] or key.shape[:-2] != value.shape[:-2]:
        raise _refuse(name, "queries, keys and values that do not fit each other")
    if 0 in {*query.shape, *key.shape, *value.shape}:
        raise _refuse(name, "nothing to attend to")


def _convolution(name: str, values: _Values) -> None:
    """Steps of a size that kernels can count with."""
    for key in ("stride", "padding", "dilation", "output_padding"):
        given = values.get(key)
        if any(not 0 <= step <= _MAX_STEP for step in (given if isinstance(given, (list, tuple)) else ())):
            raise _refuse(name, f"a {key} that is none")


def _median(name: str, values: _Values) -> None:
    """Values that each have a place of their own."""
    tensor = values["self"]
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise _refuse(name, "values that share their place")


def _batch_norm(name: str, values: _Values) -> None:
    """Parameters and statistics of one value per channel."""
    tensor = values["input"]
    if tensor.dim() < 2:  # noqa: PLR2004  (rows and channels)
        raise _refuse(name, "an input without channels")
    parameters = [values[key] for key in ("weight", "bias", "running_mean", "running_var")]
    _affine(name, tensor, parameters, (tensor.shape[1],))
    if not values.get("use_input_stats", False) and (parameters[2] is None or parameters[3] is None):
        raise _refuse(name, "no statistics")


def _group_norm(name: str, values: _Values) -> None:
    """Sizes that are the input's, and one parameter per channel."""
    tensor, sizes = values["input"], [values[key] for key in ("N", "C", "HxW")]
    if tensor.dim() < 2 or [*tensor.shape[:2], prod(tensor.shape[2:])] != sizes or 0 in sizes:  # noqa: PLR2004  (axes)
        raise _refuse(name, "sizes that are not its input's")
    if values["group"] < 1 or sizes[1] % values["group"]:
        raise _refuse(name, "channels that do not fall into its groups")
    parameters = [values["weight"], values["bias"]]
    _affine(name, tensor, parameters, (sizes[1],))
    if any(parameter is not None and not parameter.is_contiguous() for parameter in parameters):
        raise _refuse(name, "parameters that are not contiguous")


def _layer_norm(name: str, values: _Values) -> None:
    """Parameters of the shape that is normalised, which is the end of the input's."""
    tensor, shape = values["input"], tuple(values["normalized_shape"])
    if not shape or tuple(tensor.shape[-len(shape) :]) != shape:
        raise _refuse(name, "a shape that is not its input's")
    _affine(name, tensor, [values["weight"], values["bias"]], shape)


def _affine(name: str, tensor: torch.Tensor, parameters: list[torch.Tensor | None], shape: tuple[int, ...]) -> None:
    given = [parameter for parameter in parameters if parameter is not None]
    if any(tuple(parameter.shape) != shape for parameter in given):
        raise _refuse(name, "parameters of another size than its input")
    if len({parameter.dtype for parameter in given}) > 1 or any(
        parameter.dtype not in {tensor.dtype, torch.float32} for parameter in given
    ):
        raise _refuse(name, "parameters of another type than its input")


def _recurrent(name: str, values: _Values) -> None:
    """Input ``[t, n, i]`` (or batch first), states ``[layers · directions, n, h]``, and four or five parameters each.

    Per layer and direction: input weights ``[gates · h, i]``, state weights ``[gates · h, r]``, two biases
    ``[gates · h]``, and with a projection ``[r, h]``; as ``torch.nn.LSTM`` documents them.
    """
    tensor, hx, params = values["input"], values["hx"], list(values["params"])
    states = list(hx) if name == "lstm" else [hx, hx]
    layers, ways = values["num_layers"], 2 if values["bidirectional"] else 1
    if len(states) != 2 or tensor.dim() != _BATCHED or layers < 1:  # noqa: PLR2004  (hidden and cell)
        raise _refuse(name, "an input or states of another kind")
    batch = tensor.shape[0 if values["batch_first"] else 1]
    out, hidden = states[0].shape[-1], states[1].shape[-1]
    for state, size in zip(states, (out, hidden), strict=True):
        if tuple(state.shape) != (layers * ways, batch, size):
            raise _refuse(name, "states of another shape")
    rows, width = _GATES[name] * hidden, tensor.shape[2]
    wanted: list[tuple[int, ...]] = []
    for layer in range(layers):
        one: list[tuple[int, ...]] = [(rows, width if layer == 0 else out * ways), (rows, out)]
        one += [(rows,), (rows,)] if values["has_biases"] else []
        one += [(out, hidden)] if out != hidden else []
        wanted += one * ways
    if [tuple(parameter.shape) for parameter in params] != wanted:
        raise _refuse(name, "weights of another shape")
    if {held.dtype for held in (*states, *params)} != {tensor.dtype}:
        raise _refuse(name, "tensors of different types")


def _embedding_bag(name: str, values: _Values) -> None:
    """Indices of rows that are there, in bags that follow one another."""
    weight, indices, offsets, scales = (values[k] for k in ("weight", "indices", "offsets", "per_sample_weights"))
    if weight.dim() != 2 or indices.dim() != 1 or offsets.dim() != 1:  # noqa: PLR2004  (rows of a table)
        raise _refuse(name, "tensors of another number of axes")
    if {indices.dtype, offsets.dtype} - _INTEGERS:
        raise _refuse(name, "indices of another type")
    if scales is not None and (scales.shape != indices.shape or scales.dtype != weight.dtype):
        raise _refuse(name, "weights of its samples that do not fit")
    if not all(given is None or given.is_contiguous() for given in (weight, indices, offsets, scales)):
        raise _refuse(name, "tensors that are not contiguous")
    rows, starts = indices.tolist(), offsets.tolist()
    if rows and not 0 <= min(rows) <= max(rows) < weight.shape[0]:
        raise _refuse(name, "indices of rows that are not there")
    if starts and (starts[0] != 0 or starts[-1] > len(rows) or any(one > two for one, two in pairwise(starts))):
        raise _refuse(name, "bags that do not follow one another")
    if not starts and (rows or values["include_last_offset"]):
        raise _refuse(name, "no bags")
    if values["include_last_offset"] and starts[-1] != len(rows):
        raise _refuse(name, "a last bag that does not end with its indices")


def _division(name: str, values: _Values) -> None:
    """No smallest integer by -1: the processor itself faults, which ends the process."""
    left, right = values["self"], values["other"]
    if name in {"div", "divide"} and values.get("rounding_mode") is None:
        return
    kind = torch.result_type(left, right)
    if kind not in _INTEGERS:
        return
    smallest = torch.iinfo(kind).min
    if _any_is(right, -1) and _any_is(left, smallest):
        raise _refuse(name, "the smallest integer by -1")


def _any_is(value: torch.Tensor | float, number: int) -> bool:
    if not isinstance(value, torch.Tensor):
        return int(value) == number
    if value.dtype == torch.bool or torch.iinfo(value.dtype).min > number:
        return False  # it cannot hold the number, and a comparison would wrap it
    return bool((value == number).any())


def _upsample(name: str, values: _Values) -> None:
    """Scales that lead from the input's sizes to the output's; a place is computed from them."""
    tensor, sizes = values["input" if "input" in values else "self"], values.get("output_size")
    if values.get("scale_factors") is not None:
        scales, outs = list(values["scale_factors"]), None
    else:
        keys = ("scales",) if name.endswith("1d") else ("scales_h", "scales_w")
        scales, outs = [values.get(key) for key in keys], list(sizes) if sizes is not None else None
    ins = list(tensor.shape[2:])
    if len(scales) != len(ins):
        raise _refuse(name, "another number of scales than its input has axes")
    for place, scale in enumerate(scales):
        if scale is None:
            continue
        if not (isfinite(scale) and scale > 0):
            raise _refuse(name, "a scale that is none")
        if outs is not None and abs(ins[place] * scale - outs[place]) > max(1.0, 1e-6 * outs[place]):
            raise _refuse(name, "a scale that does not lead to its output's size")


#: Operators that are called through a guard alone, by their name under ``torch.ops.aten``, every overload.
GUARDED: dict[str, Callable[[str, _Values], None]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "scaled_dot_product_attention": _dense_attention,
    "_scaled_dot_product_attention_math": _dense_attention,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(("median", "nanmedian"), _median),
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_batch_norm": _batch_norm,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "layer_norm": _layer_norm,
    **dict.fromkeys(_GATES, _recurrent),
    "embedding_bag": _embedding_bag,
    **dict.fromkeys(("div", "divide", "floor_divide", "fmod", "remainder"), _division),
    **dict.fromkeys(
        ("upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d"), _upsample
    ),
}
