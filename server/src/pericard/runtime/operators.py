"""The operators that a sealed graph may name: pure functions of tensors and numbers, nothing else.

An operator is here because it computes its outputs from its inputs alone. Left out on purpose: whatever draws random
numbers, hands out uninitialised memory (``empty``), re-reads a storage at will (``as_strided``), touches files
(``from_file``) or calls back (``cond``, custom objects). Names are those of ``torch.ops.aten``; of a name, every
overload is allowed that torch's own schema says returns tensors and writes into no argument. A few operators of the
list are pure only with a switch off (``dropout`` while training draws, ``batch_norm`` while training writes);
:func:`refusal` holds every call against its schema and these switches.
"""

from __future__ import annotations

import re
from functools import cache

import torch

_ELEMENTWISE = """
abs absolute acos acosh add addcdiv addcmul angle arccos arcsin arctan asin asinh atan atan2 atanh bitwise_and
bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min clip
copysign cos cosh deg2rad digamma div divide elu eq erf erfc erfinv exp exp2 expm1 fill fix floor floor_divide fmax fmin
fmod frac ge gelu glu greater greater_equal gt hardshrink hardsigmoid hardswish hardtanh hypot imag isclose isfinite
isinf isnan ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2
logical_and logical_not logical_or logical_xor logit lt maximum minimum mish mul multiply nan_to_num ne neg negative
not_equal positive pow prelu rad2deg real reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn sigmoid sign
signbit silu sin sinc sinh softplus softshrink sqrt square sub subtract tan tanh threshold true_divide trunc where xlogy
"""

_REDUCTIONS = """
all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum diff kthvalue log_softmax
_log_softmax logcumsumexp logsumexp max mean median min mode nanmean nanmedian nansum norm nonzero_static prod quantile
softmax _softmax sort std std_mean sum topk trace var var_mean linalg_norm linalg_vector_norm
"""

_LAYERS = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _native_batch_norm_legit_no_training
_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d addbmm addmm addmv avg_pool1d avg_pool2d avg_pool3d baddbmm
batch_norm bilinear bmm cdist channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
convolution cosine_similarity cross dot dropout einsum embedding embedding_bag feature_dropout group_norm gru inner
instance_norm layer_norm linear linalg_matmul lstm matmul max_pool1d max_pool2d max_pool2d_with_indices max_pool3d mm mv
native_batch_norm native_group_norm native_layer_norm outer pixel_shuffle pixel_unshuffle rms_norm rnn_relu rnn_tanh
scaled_dot_product_attention tensordot upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
"""

_SHAPES = """
_to_copy _unsafe_view alias arange broadcast_tensors broadcast_to bucketize cat chunk clone col2im concat concatenate
constant_pad_nd copy contiguous detach diag diag_embed diagonal dropout dsplit expand expand_as eye fft_fft fft_ifft
fft_irfft fft_rfft flatten flip fliplr flipud full full_like gather hann_window hamming_window hsplit im2col index
index_add index_fill index_put index_select linspace masked_fill meshgrid movedim narrow new_full new_ones new_zeros
nonzero numpy_T one_hot ones ones_like pad permute ravel reflection_pad1d reflection_pad2d repeat repeat_interleave
replication_pad1d replication_pad2d reshape reshape_as roll rot90 scalar_tensor scatter scatter_add scatter_reduce
searchsorted select select_scatter slice slice_scatter split split_with_sizes squeeze stack stft sym_numel sym_size
sym_stride swapaxes t take take_along_dim tensor_split tile to transpose tril triu type_as unbind unflatten unfold
unsqueeze view view_as view_as_real vsplit zeros zeros_like
"""

#: Names under ``torch.ops.aten`` that a graph may call.
ALLOWED: frozenset[str] = frozenset(f"{_ELEMENTWISE} {_REDUCTIONS} {_LAYERS} {_SHAPES}".split())

#: Python's own arithmetic on shapes, as torch.export writes it.
ALLOWED_PYTHON: frozenset[str] = frozenset(
    f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "mod", "neg")
)

#: Kinds of argument that Python's arithmetic may have: numbers, no text, no tensors.
SCALARS: frozenset[str] = frozenset({"as_int", "as_bool", "as_float", "as_sym_int", "as_sym_bool", "as_sym_float"})

#: What a program on its way to a seal may also call: these write in place, or are no computation, and decomposition
#: rewrites every one of them as an operator of :data:`ALLOWED`. No sealed graph has them.
REWRITTEN: frozenset[str] = frozenset(f"{name}_" for name in ALLOWED) | {"copy_", "zero_", "lift_fresh_copy"}

_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z_0-9]+)\.([A-Za-z_0-9]+)")
_SIZES = {"sym_numel", "sym_size", "sym_stride"}
_TENSORS = {"Tensor", "List[Tensor]"}
_POSITIONAL, _KEYWORD = 1, 2
_OFF = ({"as_bool": False}, {"as_float": 0.0}, {"as_int": 0})
_NONE: dict[str, object] = {"as_none": True}
#: What torch's schemas call a number and its kernels take for one of a list, and the kind that it must be written as.
_ENUMERATIONS = {
    "ScalarType": "as_scalar_type",
    "MemoryFormat": "as_memory_format",
    "Layout": "as_layout",
    "Device": "as_device",
}
#: Overloads that trust a second tensor's numbers for the sizes of the first, or any number for a type; and that nothing
#: exports.
_LEFT_OUT = {
    "lstm.data", "gru.data", "rnn_tanh.data", "rnn_relu.data", "to.prim_Device", "to.prim_dtype", "to.prim_other",
}  # fmt: skip


def allowed(target: str, *, sealed: bool = True) -> bool:
    """Whether a graph node may call ``target``; what is not sealed yet may also call what will be rewritten."""
    return target in ALLOWED_PYTHON or _overload(target) is not None or (not sealed and rewritten(target))


def rewritten(target: str) -> bool:
    """Whether ``target`` is an operator of :data:`REWRITTEN`."""
    return _rewritten(target) is not None


def refusal(target: str, given: list[tuple[str, int, dict[str, object]]]) -> str | None:
    """Why an allowed operator may not be called like this, or None if it may.

    torch binds positional arguments by their place among those that are given, so a gap would move a value under
    another name; here positional arguments must be the first ones of the schema, without a gap.

    Args:
        target: an allowed operator.
        given: name, kind and value of each argument, as torch.export writes them.
    """
    overload = _overload(target) or _rewritten(target)
    if overload is None:
        return None
    names = [argument.name for argument in overload._schema.arguments]  # noqa: SLF001  (no public way)
    places = [name for name, kind, _ in given if kind == _POSITIONAL]
    by_name = [name for name, kind, _ in given if kind == _KEYWORD]
    rest = set(names[len(places) :])
    if places != names[: len(places)] or len(by_name) != len(rest.intersection(by_name)):
        return "has arguments that are not in its schema, or with a gap"
    if len(places) + len(by_name) != len(given):
        return "has an argument that is neither positional nor named"
    values = {name: value for name, _, value in given}
    return _odd_kind(overload, values) or _switched(values)


def _odd_kind(overload: torch._ops.OpOverload, values: dict[str, dict[str, object]]) -> str | None:
    """A number where a type, a layout or a format belongs: a kernel uses it as it is."""
    for argument in overload._schema.arguments:  # noqa: SLF001  (no public way)
        wanted = _ENUMERATIONS.get(str(argument.real_type).removeprefix("Optional[").removesuffix("]"))
        if wanted and not values.get(argument.name, _NONE).keys() <= {wanted, "as_none"}:
            return f"has something else where its {argument.name} belongs"
    return None


def _switched(values: dict[str, dict[str, object]]) -> str | None:
    """What makes an operator draw random numbers, or write."""
    for switch in ("train", "training", "dropout_p"):
        if switch in values and values[switch] not in _OFF:
            return f"has {switch} switched on"
    if values.get("use_input_stats", _OFF[0]) != _OFF[0] and values.get("running_mean", _NONE) != _NONE:
        return "updates its running statistics"
    return None


@cache
def _overload(target: str) -> torch._ops.OpOverload | None:
    """The overload that a target names, if it is pure."""
    overload = _named(target, ALLOWED)
    if overload is None:
        return None
    schema = overload._schema  # noqa: SLF001  (no public way)
    pure = not schema.is_mutable and all(str(value.type) in _TENSORS for value in schema.returns)
    return overload if pure or (schema.name.removeprefix("aten::") in _SIZES and not schema.is_mutable) else None


@cache
def _rewritten(target: str) -> torch._ops.OpOverload | None:
    """The overload that a target names, if decomposition rewrites it."""
    overload = _named(target, REWRITTEN)
    if overload is None:
        return None
    schema = overload._schema  # noqa: SLF001  (no public way)
    return overload if all(str(value.type) in _TENSORS for value in schema.returns) else None


def _named(target: str, names: frozenset[str]) -> torch._ops.OpOverload | None:
    match = _ATEN.fullmatch(target)
    packet = getattr(torch.ops.aten, match[1], None) if match and match[1] in names else None
    if match is None or packet is None or match[2] not in packet.overloads():
        return None
    if f"{match[1]}.{match[2]}" in _LEFT_OUT:
        return None
    overload: torch._ops.OpOverload = getattr(packet, match[2])
    return overload
