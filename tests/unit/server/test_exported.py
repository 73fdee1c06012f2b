"""An exported graph around tensors that are not copied: what it answers, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pericard.errors import BackendFailed, ForbiddenGraph, UnsupportedModel
from pericard.runtime import pt2
from pericard.runtime.exported import ExportedBackend, pick_device, set_threads, view_tensor
from pericard.sealed import Tensor
from pericard.tensors import DTYPES


@pytest.fixture(scope="module")
def weights(tiny_pt2: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in pt2.read(tiny_pt2).state_dict.items()}


@pytest.fixture(scope="module")
def backend(tiny_graph: bytes, weights: dict[str, torch.Tensor]) -> ExportedBackend:
    return ExportedBackend(tiny_graph, weights, device="cpu")


def strips(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(count).normal(size=(count, 1, 64)).astype(np.float32)


# --- views


def test_every_type_is_read_as_it_was_written() -> None:
    for name in DTYPES:
        dtype = getattr(torch, name)
        wanted = torch.tensor([[0, 1], [1, 1]]).to(dtype)
        raw = bytes(64) + wanted.reshape(-1).view(torch.uint8).numpy().tobytes()
        found = view_tensor(Tensor("t", "buffer", name, (2, 2), 64, len(raw) - 64), memoryview(bytearray(raw)))
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


def test_a_view_is_no_copy() -> None:
    buffer = bytearray(128)
    found = view_tensor(Tensor("t", "buffer", "float32", (2,), 64, 8), memoryview(buffer))
    buffer[64:72] = np.array([1, 2], np.float32).tobytes()

    assert found.tolist() == [1.0, 2.0]


def test_empty_and_zero_dimensional_tensors_are_tensors() -> None:
    buffer = memoryview(bytearray(8))

    assert view_tensor(Tensor("t", "buffer", "int64", (), 0, 8), buffer).shape == ()
    assert view_tensor(Tensor("t", "buffer", "int64", (0, 4), 0, 0), buffer).shape == (0, 4)


# --- answers


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_answers_what_the_vendors_program_answers(count: int, backend: ExportedBackend, tiny_pt2: Path) -> None:
    original = pt2.read(tiny_pt2).module()
    with torch.inference_mode():
        wanted = [value.numpy() for value in original(torch.from_numpy(strips(count)))]
    found = backend.infer((strips(count),))

    assert [value.shape for value in found] == [(count,), (count, 15)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert one.flags.c_contiguous


def test_the_weights_are_used_where_they_lie(tiny_graph: bytes, weights: dict[str, torch.Tensor]) -> None:
    own = {name: tensor.clone() for name, tensor in weights.items()}
    backend = ExportedBackend(tiny_graph, own, device="cpu")
    before = backend.infer((strips(1),))[0]
    own["head.bias"] += 1

    assert backend.infer((strips(1),))[0] > before


def test_it_can_be_moved_to_a_device(tiny_graph: bytes, weights: dict[str, torch.Tensor]) -> None:
    """The pass that moves a graph to CUDA, seen here on a device that every host has."""
    moved, plain = (ExportedBackend(tiny_graph, weights, device=device) for device in ("cpu:0", "cpu"))

    np.testing.assert_array_equal(moved.infer((strips(2),))[1], plain.infer((strips(2),))[1])


# --- failures


def test_a_forbidden_graph_is_refused_before_torch_sees_it(tiny_graph: bytes, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ForbiddenGraph):
        ExportedBackend(tiny_graph.replace(b"aten.relu.default", b"aten.relu_.default"), weights, device="cpu")


def test_a_tensor_that_is_not_there_is_named(tiny_graph: bytes, weights: dict[str, torch.Tensor]) -> None:
    less = {name: tensor for name, tensor in weights.items() if name != "head.bias"}

    with pytest.raises(UnsupportedModel, match=r"needs the tensor 'head\.bias'"):
        ExportedBackend(tiny_graph, less, device="cpu")


def test_a_graph_that_torch_cannot_build_is_unsupported(tiny_graph: bytes, weights: dict[str, torch.Tensor]) -> None:
    program: dict[str, Any] = json.loads(tiny_graph)
    nodes = program["graph_module"]["graph"]["nodes"]
    nodes.append(nodes[0])  # defines one name twice

    with pytest.raises(UnsupportedModel, match=r"this torch cannot build it \(SerializeError\)"):
        ExportedBackend(json.dumps(program).encode(), weights, device="cpu")


@pytest.mark.parametrize(
    "inputs",
    [
        (np.zeros((1, 2, 64), np.float32),),  # a channel too many
        (np.zeros((1, 1, 4), np.float32),),  # shorter than the kernel
        (np.zeros((1, 1, 64), np.int64),),
        (np.zeros((1, 1, 64), np.float32),) * 2,
        (),
    ],
)
def test_a_failed_batch_costs_itself_only(inputs: tuple[Any, ...], backend: ExportedBackend) -> None:
    wanted = backend.infer((strips(1),))
    with pytest.raises(BackendFailed, match="model: "):
        backend.infer(inputs)

    np.testing.assert_array_equal(backend.infer((strips(1),))[1], wanted[1])


def test_a_closed_backend_holds_no_weight_and_answers_nothing(
    tiny_graph: bytes, weights: dict[str, torch.Tensor]
) -> None:
    backend = ExportedBackend(tiny_graph, weights, device="cpu")
    backend.close()

    assert not backend._arguments
    with pytest.raises(BackendFailed):
        backend.infer((strips(1),))
    backend.close()


# --- devices


@pytest.mark.parametrize(
    ("wanted", "cuda", "picked"), [("auto", True, "cuda:0"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_a_device_is_picked(wanted: str, cuda: bool, picked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    assert pick_device(wanted) == picked


def test_a_device_that_is_not_there_is_never_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedModel, match="'cuda:1' was asked for, and torch sees no CUDA device"):
        pick_device("cuda:1")


def test_threads_are_fixed() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)
