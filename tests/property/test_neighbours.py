"""A row's bits depend on its batch's size and its place, and not on what its neighbours hold.

Replay stands on this: the neighbours are not recorded. It is torch's kernels that are tried here, for the kinds of
model that read signals, in the form in which they are served. Neighbours are zeros of both signs,
denormals, the largest numbers, noise of any scale.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pericard.runtime import export, graph, host
from pericard.runtime.exported import ExportedBackend, set_threads

STRIPNET = Path(__file__).resolve().parents[2] / "examples" / "ecg" / "stripnet.py"
BUCKETS = (1, 2, 3, 4, 5, 8)
EXTREMES = [0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 1.0]

Rows = NDArray[np.float32]


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 24, 2, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(48, 3)

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(ecg.transpose(1, 2))[0][:, -1])


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rise = torch.nn.Linear(4, 32)
        self.layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = torch.nn.Linear(32, 3)

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.rise(ecg.transpose(1, 2))).mean(1))


class Dense(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(160, 257), torch.nn.GELU(), torch.nn.LayerNorm(257),
            torch.nn.Linear(257, 3),
        )  # fmt: skip

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return self.layers(ecg)


class Shared(torch.nn.Module):
    """What must not be served in batches: each row is scaled by the largest of all."""

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return (ecg / (1 + ecg.abs().amax())).mean(2)


def stripnet() -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("stripnet_of_the_example", STRIPNET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: torch.nn.Module = module.StripNet()
    return found


KINDS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, int]]] = {
    "convolutions (the example)": (stripnet, (1, 2500)),
    "recurrent": (Recurrent, (4, 40)),
    "attention": (Attention, (4, 40)),
    "dense": (Dense, (4, 40)),
    "shared": (Shared, (4, 40)),
}


@cache
def backend(kind: str) -> ExportedBackend:
    """A model with weights of chance, exported, normalised and built again as it is served."""
    make, shape = KINDS[kind]
    torch.manual_seed(11)
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():  # torch gives advice to whoever exports; none of it is ours
        warnings.simplefilter("ignore")
        program = torch.export.export(make().eval(), (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    tensors = {name: tensor.detach() for name, tensor in {**program.state_dict, **program.constants}.items()}
    return ExportedBackend(graph.normalise(export.serialised(program)), tensors, device="cpu")


def bits(kind: str, batch: Rows, place: int) -> bytes:
    return b"".join(output[place].tobytes() for output in backend(kind).infer((batch,)))


def batch_of(kind: str, bucket: int, fill: float | None, seed: int, scale: int) -> Rows:
    """Neighbours: one number everywhere, or noise of a scale."""
    shape = (bucket, *KINDS[kind][1])
    if fill is not None:
        return np.full(shape, fill, np.float32)
    return (np.random.default_rng(seed).normal(size=shape) * 10.0**scale).astype(np.float32)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = host.threads()
    set_threads(request.param)
    yield
    set_threads(before)


NEIGHBOURS: Any = st.tuples(
    st.sampled_from(BUCKETS), st.integers(0, 7), st.one_of(st.none(), st.sampled_from(EXTREMES)),
    st.integers(0, 1 << 30), st.integers(-30, 30),
)  # fmt: skip


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"shared"}))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=NEIGHBOURS)
def test_neighbours_do_not_change_a_rows_bits(kind: str, drawn: tuple[int, int, float | None, int, int]) -> None:
    bucket, place, fill, seed, scale = drawn
    place %= bucket
    row = np.random.default_rng(seed + 1).normal(size=KINDS[kind][1]).astype(np.float32)
    alone, among = batch_of(kind, bucket, 0.0, 0, 0), batch_of(kind, bucket, fill, seed, scale)
    alone[place] = among[place] = row

    assert bits(kind, alone, place) == bits(kind, among, place)


def test_a_model_that_looks_across_its_batch_is_seen_by_this_test() -> None:
    alone, among = batch_of("shared", 4, 0.0, 0, 0), batch_of("shared", 4, None, 1, 0)
    among[2] = alone[2] = 0.5

    assert bits("shared", alone, 2) != bits("shared", among, 2)
