"""No signed graph reads memory that is not its own: kernels are held to the sizes of what they get.

Every tensor ends right before a page that cannot be touched, so a kernel that reads on is a process that dies; each
operator runs in a child of its own. From one good call per operator, one argument after another is made too small, too
short, of another type or of another layout.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pericard.errors import BackendFailed
from pericard.runtime import guards, operators

_GUARD = 1 << 22
_ROOM = 1 << 16
_PRIVATE_ANONYMOUS = 0x22
_READ_WRITE = 3
_SECONDS = 0.25
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Fences:
    """Memory between pages that cannot be touched; what is placed ends where they begin."""

    def __init__(self) -> None:
        self._places: list[int] = []
        self._used = 0

    def start(self) -> None:
        self._used = 0

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        if not 0 < size <= _ROOM:
            return tensor
        if self._used == len(self._places):
            base = _LIBC.mmap(None, 2 * _GUARD + _ROOM, 0, _PRIVATE_ANONYMOUS, -1, 0)
            assert _LIBC.mprotect(base + _GUARD, _ROOM, _READ_WRITE) == 0
            self._places.append(base + _GUARD)
        end = self._places[self._used] + _ROOM
        self._used += 1
        memory = (ctypes.c_char * size).from_address(end - size)
        placed = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
        placed.copy_(tensor)
        return placed


def f(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


def n(*shape: int, below: int = 4) -> torch.Tensor:
    return torch.randint(0, below, shape)


def recurrent(gates: int, *, cell: bool) -> tuple[Any, ...]:
    params = [f(gates * 8, 6), f(gates * 8, 8), f(gates * 8), f(gates * 8)]
    states = [f(1, 2, 8), f(1, 2, 8)] if cell else f(1, 2, 8)
    return f(3, 2, 6), states, params, True, 1, 0.0, False, False, False


#: One good call of each operator that takes more than one tensor, or sizes beside a tensor.
GOOD: dict[str, tuple[Any, ...]] = {
    "_scaled_dot_product_flash_attention_for_cpu": (f(2, 4, 32, 8), f(2, 4, 40, 8), f(2, 4, 40, 8)),
    "scaled_dot_product_attention": (f(2, 4, 32, 8), f(2, 4, 40, 8), f(2, 4, 40, 8), f(32, 40)),
    "_scaled_dot_product_attention_math": (f(2, 4, 32, 8), f(2, 4, 40, 8), f(2, 4, 40, 8), f(32, 40)),
    "_native_batch_norm_legit_no_training": (f(2, 64, 9), f(64), f(64), f(64), f(64), 0.1, 1e-5),
    "native_batch_norm": (f(2, 64, 9), f(64), f(64), f(64), f(64), False, 0.1, 1e-5),
    "batch_norm": (f(2, 64, 9), f(64), f(64), f(64), f(64), False, 0.1, 1e-5, False),
    "instance_norm": (f(2, 64, 9), f(64), f(64), f(64), f(64), False, 0.1, 1e-5, False),
    "native_group_norm": (f(2, 64, 9), f(64), f(64), 2, 64, 9, 4, 1e-5),
    "group_norm": (f(2, 64, 9), 4, f(64), f(64), 1e-5),
    "native_layer_norm": (f(2, 64), [64], f(64), f(64), 1e-5),
    "layer_norm": (f(2, 64), [64], f(64), f(64), 1e-5),
    "rms_norm": (f(2, 64), [64], f(64), 1e-5),
    "lstm.input": recurrent(4, cell=True),
    "gru.input": recurrent(3, cell=False),
    "rnn_tanh.input": recurrent(1, cell=False),
    "rnn_relu.input": recurrent(1, cell=False),
    "embedding": (f(9, 8), n(3, 4), -1, False, False),
    "embedding_bag": (f(9, 64), n(8), torch.tensor([0, 2, 5]), False, 0, False, f(8), False),
    "conv1d": (f(2, 8, 20), f(16, 4, 3), f(16), [1], [1], [1], 2),
    "conv2d": (f(2, 8, 9, 9), f(16, 4, 3, 3), f(16), [1, 1], [1, 1], [1, 1], 2),
    "conv3d": (f(1, 2, 4, 4, 4), f(4, 2, 3, 3, 3), f(4), [1, 1, 1], [1, 1, 1], [1, 1, 1], 1),
    "conv_transpose1d": (f(2, 8, 20), f(8, 4, 3), f(4), [2], [1], [1], 1, [1]),
    "conv_transpose2d.input": (f(2, 8, 9, 9), f(8, 4, 3, 3), f(4), [2, 2], [1, 1], [1, 1], 1, [1, 1]),
    "convolution": (f(2, 8, 20), f(16, 8, 3), f(16), [1], [1], [1], False, [0], 1),
    "linear": (f(4, 64), f(32, 64), f(32)),
    "addmm": (f(8), f(4, 64), f(64, 8)),
    "addmv": (f(8), f(8, 64), f(64)),
    "baddbmm": (f(2, 4, 8), f(2, 4, 64), f(2, 64, 8)),
    "addbmm": (f(4, 8), f(2, 4, 64), f(2, 64, 8)),
    "bmm": (f(2, 4, 64), f(2, 64, 8)),
    "mm": (f(4, 64), f(64, 8)),
    "mv": (f(4, 64), f(64)),
    "dot": (f(64), f(64)),
    "bilinear": (f(3, 8), f(3, 9), f(4, 8, 9), f(4)),
    "cdist": (f(8, 16), f(9, 16)),
    "prelu": (f(2, 64, 3), f(64)),
    "gather": (f(8, 8), 1, n(8, 8)),
    "take": (f(8, 8), n(8, 8)),
    "take_along_dim": (f(8, 8), n(8, 8), 1),
    "index_select": (f(8, 8), 1, n(5)),
    "index_add": (f(8, 8), 1, n(5), f(8, 5)),
    "index_put": (f(8, 8), [n(5), n(5)], f(5)),
    "index.Tensor": (f(8, 8), [n(5), n(5)]),
    "scatter.src": (f(8, 8), 1, n(8, 8), f(8, 8)),
    "scatter_add": (f(8, 8), 1, n(8, 8), f(8, 8)),
    "scatter_reduce.two": (f(8, 8), 1, n(8, 8), f(8, 8), "sum"),
    "searchsorted.Tensor": (f(4, 64), f(4, 9)),
    "bucketize.Tensor": (f(4, 9), f(64)),
    "repeat_interleave.Tensor": (n(9),),
    "repeat_interleave.self_Tensor": (f(9, 3), n(9), 0),
    "select_scatter": (f(8, 8), f(8), 1, 2),
    "slice_scatter": (f(8, 8), f(8, 3), 1, 2, 5),
    "upsample_nearest1d": (f(2, 3, 9), [18], 2.0),
    "upsample_linear1d": (f(2, 3, 9), [18], False, 2.0),
    "upsample_nearest2d": (f(2, 3, 9, 9), [18, 18], 2.0, 2.0),
    "upsample_bilinear2d": (f(2, 3, 9, 9), [18, 18], False, 2.0, 2.0),
    "max_pool1d": (f(2, 3, 20), [3], [2], [1], [1]),
    "max_pool2d_with_indices": (f(2, 3, 9, 9), [3, 3], [2, 2], [1, 1], [1, 1]),
    "max_pool3d": (f(1, 2, 6, 6, 6), [2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1]),
    "avg_pool1d": (f(2, 3, 20), [3], [2], [1]),
    "avg_pool2d": (f(2, 3, 9, 9), [3, 3], [2, 2], [1, 1]),
    "avg_pool3d": (f(1, 2, 6, 6, 6), [2, 2, 2], [2, 2, 2], [1, 1, 1]),
    "_adaptive_avg_pool2d": (f(2, 3, 9, 9), [4, 4]),
    "_adaptive_avg_pool3d": (f(1, 2, 6, 6, 6), [2, 2, 2]),
    "adaptive_max_pool1d": (f(2, 3, 9), [4]),
    "adaptive_max_pool2d": (f(2, 3, 9, 9), [4, 4]),
    "im2col": (f(2, 3, 9, 9), [3, 3], [1, 1], [1, 1], [2, 2]),
    "col2im": (f(2, 27, 25), [9, 9], [3, 3], [1, 1], [1, 1], [2, 2]),
    "reflection_pad1d": (f(2, 3, 9), [2, 3]),
    "reflection_pad2d": (f(2, 3, 9, 9), [2, 3, 1, 2]),
    "replication_pad1d": (f(2, 3, 9), [2, 3]),
    "replication_pad2d": (f(2, 3, 9, 9), [2, 3, 1, 2]),
    "pixel_shuffle": (f(2, 12, 4, 4), 2),
    "channel_shuffle": (f(2, 12, 4, 4), 3),
    "unfold": (f(2, 30), 1, 5, 3),
    "stft": (f(2, 64), 16, 4, 16, f(16), False, True, True),
    "fft_rfft": (f(2, 64), 32, 1),
    "fft_irfft": (torch.complex(f(2, 33), f(2, 33)), 64, 1),
    "nonzero_static": (f(4, 4), ),
    "one_hot": (n(9), 4),
    "kthvalue": (f(4, 9), 3, 1),
    "topk": (f(4, 9), 3, 1),
    "roll": (f(4, 9), [2], [1]),
    "median.dim": (f(4, 9), 1),
    "nanmedian.dim": (f(4, 9), 1),
    "cross": (f(4, 3), f(4, 3)),
    "lerp.Tensor": (f(4, 9), f(4, 9), f(4, 9)),
    "where.self": (n(4, 9) > 1, f(4, 9), f(4, 9)),
    "div.Tensor_mode": (n(4, 9), n(4, 9) + 1),
    "remainder.Tensor": (n(4, 9), n(4, 9) + 1),
    "fmod.Tensor": (n(4, 9), n(4, 9) + 1),
    "floor_divide": (n(4, 9), n(4, 9) + 1),
}  # fmt: skip
KEYWORDS: dict[str, dict[str, Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": {"attn_mask": f(32, 40)},
    "div.Tensor_mode": {"rounding_mode": "trunc"},
    "nonzero_static": {"size": 5},
}


def overload(name: str) -> torch._ops.OpOverload:
    packet, _, wanted = name.partition(".")
    found = operators._overload(f"torch.ops.aten.{packet}.{wanted or 'default'}")
    assert found is not None, f"{name} is not allowed"
    return found


def spoilt(value: torch.Tensor, chance: random.Random) -> torch.Tensor:  # noqa: PLR0911  (one per way to spoil)
    """The tensor made smaller, longer, of another type, of another layout or with other numbers."""
    way, axis = chance.randrange(10), chance.randrange(value.dim()) if value.dim() else 0
    if value.dim() == 0:
        return value.reshape(1) if way % 2 else value.to(torch.float64)
    size = value.shape[axis]
    if way <= 3:
        return value.narrow(axis, 0, chance.choice([1, 1, max(size // 2, 1), max(size - 1, 0), 0]))
    if way == 4:
        return value.select(axis, 0) if size else value
    if way == 5:
        return value.unsqueeze(axis)
    if way == 6:
        return torch.cat([value, value], axis)
    if way == 7:
        return value.to(chance.choice([torch.float64, torch.float32, torch.int32, torch.int64, torch.bfloat16]))
    if way == 8:
        return value.transpose(axis, -1)  # placed as it is, and seen from another side
    odd = [-1, 1 << 31, 1 << 62, -(1 << 63), 9, 100] if not value.is_floating_point() else [-1.0, 1e30, float("nan")]
    changed = value.clone()
    if changed.numel() and not changed.is_complex() and changed.dtype == torch.int64:
        changed.view(-1)[chance.randrange(changed.numel())] = chance.choice(odd)
    return changed


def mutated(value: Any, fences: Fences, chance: random.Random, rate: float) -> Any:  # noqa: PLR0911  (one per kind)
    if isinstance(value, torch.Tensor):
        changed = spoilt(value, chance) if chance.random() < rate else value
        if changed.dim() and changed.numel() and chance.random() < rate / 4:  # many values in one place
            axis = chance.randrange(changed.dim())
            return fences.place(changed.narrow(axis, 0, 1).contiguous()).expand(changed.shape)
        if not changed.is_contiguous() and chance.random() < 0.5:
            order = sorted(range(changed.dim()), key=lambda axis: -changed.stride(axis))
            back = [order.index(axis) for axis in range(changed.dim())]
            return fences.place(changed.permute(order).contiguous()).permute(back)
        return fences.place(changed.contiguous())
    if isinstance(value, list):
        made = [mutated(item, fences, chance, rate) for item in value]
        return made[:-1] if made and chance.random() < rate / 4 else made
    if isinstance(value, bool):
        return value if chance.random() >= rate else not value
    if isinstance(value, int):
        return value if chance.random() >= rate else chance.choice([0, 1, -1, value + 1, value - 1, 3, 50, -100])
    if isinstance(value, float):
        return value if chance.random() >= rate else chance.choice([0.0, -1.0, 1e-300, 1e30, float("nan"), 0.01])
    return value


def attack(name: str, seconds: float, seed: int, calls: mmap.mmap) -> None:
    """Call an operator with spoilt arguments until time is up."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    operator = overload(name)
    call: Callable[..., Any] = guards.guarded(operator) or operator
    fences, end, number = Fences(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        fences.start()
        chance = random.Random(seed * 1_000_000 + number)
        rate = 0.0 if number == 0 else chance.choice([0.1, 0.3, 0.6])
        calls[:8] = number.to_bytes(8, "little")
        with contextlib.suppress(Exception):  # refused, as it should be
            arguments = [mutated(value, fences, chance, rate) for value in GOOD[name]]
            keywords = {key: mutated(value, fences, chance, rate) for key, value in KEYWORDS.get(name, {}).items()}
            for place, argument in enumerate(operator._schema.arguments):
                if argument.name in {"train", "training"} and place < len(arguments):
                    arguments[place] = False
            with torch.inference_mode():
                call(*arguments, **keywords)
            calls[8:16] = (int.from_bytes(calls[8:16], "little") + 1).to_bytes(8, "little")
        number += 1


def forked(work: Callable[[mmap.mmap], None]) -> tuple[int, int, int]:
    """The signal that ended a child, or 0; its last call; and how many of its calls were answered."""
    calls = mmap.mmap(-1, 16)
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # one that dies is what is looked for
        try:
            work(calls)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return signal, int.from_bytes(calls[:8], "little"), int.from_bytes(calls[8:], "little")


@pytest.fixture(scope="module", autouse=True)
def fixed_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


@pytest.mark.filterwarnings("ignore")  # of torch, about what it is asked
@pytest.mark.parametrize("name", sorted(guards.GUARDED.keys() & {good.partition(".")[0] for good in GOOD}))
def test_no_guarded_kernel_reads_beyond_its_arguments(name: str) -> None:
    for good in (good for good in GOOD if good.partition(".")[0] == name):
        signal, call, answered = forked(lambda calls, good=good: attack(good, _SECONDS, 7, calls))  # type: ignore[misc]

        assert signal == 0, f"{good} ended its process with signal {signal} in call {call}"
        assert answered > 0


def test_the_fence_ends_a_kernel_without_its_guard() -> None:
    def work(_: mmap.mmap) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        torch.set_num_threads(1)
        fences = Fences()
        norm = overload("_native_batch_norm_legit_no_training")
        short = fences.place(torch.zeros(1))
        norm(torch.zeros(1, 1 << 20, 1), None, None, short, short, 0.1, 1e-5)

    signal, _, _ = forked(work)

    assert signal != 0


BATCH_NORM = (f(2, 8, 3), f(8), f(8), f(8), f(8), 0.1, 1e-5)
HEADS = (f(2, 4, 6, 8), f(2, 4, 5, 8), f(2, 4, 5, 8))
LSTM, RNN = recurrent(4, cell=True), recurrent(1, cell=False)
SMALLEST = torch.full((3,), -(1 << 63))


@pytest.mark.parametrize(
    ("name", "arguments", "keywords"),
    [
        ("_native_batch_norm_legit_no_training", (*BATCH_NORM[:2], f(2), *BATCH_NORM[3:]), {}),
        ("_native_batch_norm_legit_no_training", (*BATCH_NORM[:3], f(1), *BATCH_NORM[4:]), {}),
        ("_scaled_dot_product_flash_attention_for_cpu", (*HEADS[:2], f(2, 1, 5, 8)), {}),
        ("_scaled_dot_product_flash_attention_for_cpu", (*HEADS[:2], f(1, 4, 5, 8)), {}),
        ("_scaled_dot_product_flash_attention_for_cpu", (HEADS[0], f(2, 4, 2, 8), HEADS[2]), {}),
        ("_scaled_dot_product_flash_attention_for_cpu", (*HEADS[:2], f(2, 4, 8, 5).transpose(2, 3)), {}),
        ("_scaled_dot_product_flash_attention_for_cpu", HEADS, {"attn_mask": f(3, 3)}),
        ("lstm.input", (*LSTM[:2], [f(8, 6), f(8, 8), f(8), f(8)], *LSTM[3:]), {}),
        ("gru.input", (f(3, 5, 6), *recurrent(3, cell=False)[1:]), {}),
        ("rnn_tanh.input", (*RNN[:2], [f(8, 6), f(8, 8), f(8), f(2)], *RNN[3:]), {}),
        ("embedding_bag", (f(9, 8), torch.tensor([1, 99]), torch.tensor([0])), {}),
        ("upsample_nearest1d", (f(1, 1, 9), [18], 1e-300), {}),
        ("div.Tensor_mode", (SMALLEST, -torch.ones(3, dtype=torch.int64)), {"rounding_mode": "trunc"}),
        ("div.Scalar_mode", (SMALLEST, -1), {"rounding_mode": "floor"}),
        ("floor_divide", (SMALLEST, -torch.ones(3, dtype=torch.int64)), {}),
        ("fmod.Tensor", (SMALLEST, -torch.ones(3, dtype=torch.int8)), {}),
        ("remainder.Scalar_Tensor", (-(1 << 63), -torch.ones(3, dtype=torch.int64)), {}),
    ],
)  # fmt: skip
def test_a_guard_refuses_before_its_kernel_runs(name: str, arguments: Any, keywords: Any) -> None:
    guard = guards.guarded(overload(name))
    assert guard is not None

    with pytest.raises(BackendFailed, match="take on trust"):
        guard(*arguments, **keywords)


def test_a_guard_changes_no_answer() -> None:
    for name, arguments in GOOD.items():
        guard = guards.guarded(overload(name))
        if guard is not None:
            keywords = KEYWORDS.get(name, {})
            found, wanted = guard(*arguments, **keywords), overload(name)(*arguments, **keywords)
            for one, other in zip(flat(found), flat(wanted), strict=True):
                assert torch.equal(one, other), name


def flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [item for item in value if isinstance(item, torch.Tensor)]
