"""The paths of an exported graph on the CPU: which is taken, that guards survive it, that its answers stay right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pericard.errors import BackendFailed
from pericard.hardening import PrivateMemory
from pericard.runtime import export, known_answers, paths, questions
from pericard.runtime import graph as graphs
from pericard.runtime.exported import ExportedBackend
from pericard.sealed import Description, Tolerance
from pericard.tensors import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


class Ladder(nn.Module):
    """Convolutions of every kind that is folded, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv1d(1, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=4), nn.BatchNorm1d(8))
        self.plain = nn.Conv1d(8, 8, 1)
        self.up = nn.Sequential(nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1), nn.BatchNorm1d(4), nn.ReLU(True))
        self.last = nn.Linear(4 * 64, 1)

    def forward(self, ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.down(ecg)
        up = self.up(torch.relu(self.grouped(features) + self.plain(features)))
        return torch.sigmoid(self.last(up.flatten(1)))[:, 0], up.mean(1)[:, :15]


class Indexed(nn.Module):
    """A guard that has to see values: a table that is read where the input says."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(5, 3)

    def forward(self, ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = ecg[:, 0, 0].long()
        found = self.table(rows, torch.arange(ecg.shape[0]))
        return found.sum(1), ecg[:, 0, :15] + found[:, :1]


class Divided(nn.Module):
    """Another: the processor faults on one quotient of integers."""

    def forward(self, ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole = ecg[:, 0].long()
        rows = torch.div(whole, whole.abs() + 1, rounding_mode="trunc").float()
        return rows.sum(1), rows[:, :15]


def made(module: nn.Module) -> tuple[bytes, dict[str, torch.Tensor]]:
    """A module as it is sealed, its norms with statistics of their own."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean = torch.randn(part.num_features) / 4
            part.running_var = torch.rand(part.num_features) + 0.5
            nn.init.normal_(part.weight, 1.0, 0.2)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module.eval(), (torch.randn(2, 1, 64),), dynamic_shapes=({0: batch},))
    pure = export.functional(program)
    weights = {name: value.detach() for name, value in {**pure.constants, **pure.state_dict}.items()}
    return graphs.normalise(export.serialised(pure)), weights


@pytest.fixture(scope="module")
def ladder() -> tuple[bytes, dict[str, torch.Tensor]]:
    return made(Ladder())


@pytest.fixture
def backend(ladder: tuple[bytes, dict[str, torch.Tensor]]) -> Iterator[ExportedBackend]:
    found = ExportedBackend(*ladder, device="cpu")
    yield found
    found.close()


def strips(count: int) -> Array:
    return np.random.default_rng(count).normal(size=(count, 1, 64)).astype(np.float32)


def settled(
    backend: ExportedBackend,
    about: Description,
    *,
    tolerance: float = 1e-4,
    private: Callable[[int], PrivateMemory | None] = PrivateMemory,
) -> paths.Settled:
    described = replace(about, tolerance={"cpu": Tolerance(tolerance, tolerance)})
    asked = tuple(
        questions.answered(backend, question, described)
        for question in questions.synthetic((TensorSpec("ecg", "float32", (-1, 1, 64)),))
    )
    return paths.settle(backend, asked, described, private)


# --- straight


@pytest.mark.parametrize("count", [1, 4])
def test_the_straight_path_gives_the_guarded_paths_answers_bit_for_bit(backend: ExportedBackend, count: int) -> None:
    other = strips(count) * 3
    wanted = backend.infer((strips(count),)), backend.infer((other,))
    assert backend.settle([(strips(count),)]) == {}

    for value, answers in zip((strips(count), other), wanted, strict=True):
        for one, two in zip(backend.infer((value,)), answers, strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("module", [Indexed(), Divided()])
def test_a_guard_that_looks_at_values_stays(module: nn.Module) -> None:
    backend = ExportedBackend(*made(module), device="cpu")

    assert list(backend.settle([(np.abs(strips(4)),)])) == [4]


def test_a_row_that_is_not_there_is_still_refused_on_a_settled_shape() -> None:
    backend = ExportedBackend(*made(Indexed()), device="cpu")
    backend.settle([(np.ones((4, 1, 64), np.float32),)])

    with pytest.raises(BackendFailed, match="rows that are not there"):
        backend.infer((np.full((4, 1, 64), 9000.0, np.float32),))


def test_a_graph_that_a_guard_refuses_is_refused_at_every_shape(ladder: tuple[bytes, dict[str, torch.Tensor]]) -> None:
    """A norm with parameters of another size, which its kernel would read beyond; folding does not hide it."""
    graph, weights = ladder
    backend = ExportedBackend(graph, weights, device="cpu")
    mean = weights["down.1.running_mean"]
    (place,) = (
        n for n, held in enumerate(backend._arguments) if held is not None and held.data_ptr() == mean.data_ptr()
    )
    backend._arguments[place] = mean[:2].clone()

    backend.fold(PrivateMemory)
    for count in (1, 4):
        assert "parameters of another size" in backend.settle([(strips(count),)])[count]
        with pytest.raises(BackendFailed, match="parameters of another size"):
            backend.infer((strips(count),))
    backend.close()


def test_another_shape_layout_or_number_of_threads_goes_behind_the_guards(backend: ExportedBackend) -> None:
    backend.settle([(strips(4),)])
    straight = backend._fast.straight
    assert len(straight) == 1
    straight[next(iter(straight))] = lambda _: (_ for _ in ()).throw(AssertionError("went straight"))
    backend.infer((strips(3),))
    backend.infer((np.asfortranarray(strips(4).repeat(2, axis=1))[:, :1],))

    with pytest.raises(BackendFailed, match="AssertionError"):
        backend.infer((strips(4),))


# --- folded


def test_folded_answers_are_right_and_used_at_every_bucket(
    backend: ExportedBackend, tiny_description: Description
) -> None:
    wanted = {count: backend.infer((strips(count),)) for count in (1, 4)}
    found = settled(backend, tiny_description)

    assert found.paths == {1: paths.FOLDED, 4: paths.FOLDED}
    assert found.remark is None
    for count, answers in wanted.items():
        for one, other in zip(backend.infer((strips(count),)), answers, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_folded_answer_that_is_not_right_costs_the_path_and_not_the_model(
    backend: ExportedBackend, tiny_description: Description
) -> None:
    found = settled(backend, tiny_description, tolerance=1e-12)

    assert set(found.paths.values()) == {paths.STRAIGHT}
    assert found.remark is not None
    assert "signed tolerance" in found.remark


def test_the_same_model_takes_the_same_path_to_the_same_bits(
    ladder: tuple[bytes, dict[str, torch.Tensor]], tiny_description: Description
) -> None:
    answers = []
    for _ in range(2):
        backend = ExportedBackend(*ladder, device="cpu")
        found = settled(backend, tiny_description)
        answers.append((found.paths, [value.tobytes() for value in backend.infer((strips(4),))]))
        backend.close()

    assert answers[0] == answers[1]


def test_changed_weights_are_in_private_memory_that_is_zeroed(backend: ExportedBackend) -> None:
    held: list[PrivateMemory] = []

    def private(size: int) -> PrivateMemory:
        held.append(PrivateMemory(size))
        return held[-1]

    assert backend.fold(private)
    backend.settle([(strips(4),)])
    changed = [value for value in backend._fast.arguments if value is not None]
    start = held[0]._address
    inside = [value for value in changed if start <= value.data_ptr() < start + held[0].size]
    assert len(inside) == 2 * 4
    del changed
    backend.close()

    assert all(not value.any() for value in inside)


def test_without_private_memory_nothing_is_folded(backend: ExportedBackend, tiny_description: Description) -> None:
    found = settled(backend, tiny_description, private=lambda _: None)

    assert set(found.paths.values()) == {paths.STRAIGHT}


def test_the_sizes_that_are_settled_are_those_that_are_asked(tiny_description: Description) -> None:
    assert known_answers.sizes(tiny_description) == (1, 2, 4)
    assert known_answers.sizes(known_answers.one_by_one(tiny_description)) == (1,)


# --- the allocator

_KEPT = """
import ctypes, sys, torch
from pericard import hardening
class Info(ctypes.Structure):  # mallinfo2 of glibc's malloc.h
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
def held():
    info = library.mallinfo2()
    return info.arena + info.hblkhd
if sys.argv[1] == "kept":
    assert hardening.keep_pages()
before = held()
value = torch.empty(4, 1 << 20)
inside = held()
del value
print(inside - before, held() - before)
"""


#: Variables by which whoever runs the tests may have told the allocator already, or chosen another one.
_ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def test_the_allocator_keeps_its_pages_once_it_was_told_to() -> None:
    def held(how: str) -> tuple[int, int]:
        """What the allocator holds in bytes, more than before: with a tensor of 16 MiB, and after it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_ALLOCATORS)}
        command = [sys.executable, "-c", _KEPT, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        inside, after = map(int, done.stdout.split())
        return inside, after

    inside, after = held("kept")
    assert after == inside >= 16 << 20

    inside, after = held("untold")
    assert inside >= 16 << 20
    assert after < 1 << 20  # given back at once: what the next forward pass would fault in again
