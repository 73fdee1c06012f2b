"""The vendor's side: what is left of a ``.pt2``, and which ones cannot be sealed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pericard.errors import ForbiddenGraph, KnownAnswerMismatch, PericardError, UnsupportedModel
from pericard.runtime import export
from pericard.sealed import Description, Output, artifact
from pericard.tensors import TensorSpec

Export = Callable[..., Path]


@pytest.fixture
def plain_description(tiny_description: Description) -> Description:
    """One input of 16 samples, one number out."""
    return replace(
        tiny_description,
        inputs=(TensorSpec("ecg", "float32", (-1, 16)),),
        outputs=(Output(TensorSpec("score", "float32", (-1,)), "score"),),
        signal=None,
    )


def packed(path: Path, description: Description) -> bytes:
    size, parts = export.pack(path, description)
    plain = b"".join(parts)
    assert len(plain) == size
    return plain


# --- what is sealed


def test_an_artifact_holds_graph_weights_and_four_answers(tiny_pt2: Path, tiny_description: Description) -> None:
    plain = packed(tiny_pt2, tiny_description)
    found = artifact.parse(memoryview(plain), subject="it")

    assert [(tensor.name, tensor.shape) for tensor in found.tensors] == [
        ("conv.bias", (3,)),
        ("conv.weight", (3, 1, 8)),
        ("head.bias", (1,)),
        ("head.weight", (1, 3)),
    ]
    assert len(found.known_answers) == 4
    assert json.loads(plain[found.graph[0] : sum(found.graph)])["torch_version"] == torch.__version__
    weight = export._read(tiny_pt2).state_dict["conv.weight"].detach().numpy().tobytes()
    assert plain.count(weight) == 1


def test_one_model_is_packed_to_the_same_bytes(tiny_pt2: Path, tiny_description: Description) -> None:
    assert packed(tiny_pt2, tiny_description) == packed(tiny_pt2, tiny_description)


def test_the_vendors_example_is_left_behind(export_pt2: Export, plain_description: Description) -> None:
    """A ``.pt2`` ships what it was exported with; a patient's strip must not travel on."""
    patient = torch.linspace(1.2345, 6.789, 32).reshape(2, 16)
    path = export_pt2(torch.nn.Sequential(torch.nn.Linear(16, 1), torch.nn.Flatten(0)), patient)
    needle = patient.numpy().tobytes()[:32]
    assert needle in path.read_bytes()

    assert needle not in packed(path, plain_description)


def test_questions_are_synthetic_and_always_the_same() -> None:
    specs = (TensorSpec("ecg", "float32", (-1, 1, 250)), TensorSpec("age", "int64", (-1,)))
    first, second = list(export.synthetic(specs)), list(export.synthetic(specs))

    assert len(first) == 4
    for one, other in zip(first, second, strict=True):
        assert [value.shape for value in one] == [(1, 1, 250), (1,)]
        assert [str(value.dtype) for value in one] == ["float32", "int64"]
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not first[0][0].any()
    assert len({question[0].tobytes() for question in first}) == 4


class Two(torch.nn.Module):
    """Two inputs, a buffer that is not saved, a constant, an operator in place, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, ecg: torch.Tensor, age: torch.Tensor) -> dict[str, torch.Tensor]:
        ecg = ecg.clone()
        ecg[:, 0] = 1
        return {"score": ecg.mean(1) * self.scale + torch.tensor([3.0]), "age": age.flip(1)}


def test_buffers_constants_and_several_inputs_are_sealed(export_pt2: Export, plain_description: Description) -> None:
    path = export_pt2(Two(), torch.zeros(2, 16), torch.zeros(2, 3, dtype=torch.int64))
    about = replace(
        plain_description,
        inputs=(*plain_description.inputs, TensorSpec("age", "int64", (-1, 3))),
        outputs=(*plain_description.outputs, Output(TensorSpec("ages", "int64", (-1, 3)))),
    )
    plain = packed(path, about)

    found = artifact.parse(memoryview(plain), subject="it")
    assert "scale" in [tensor.name for tensor in found.tensors]
    assert [tensor.dtype for tensor in found.known_answers[0].outputs] == ["float32", "int64"]


# --- what is not


class Mean(torch.nn.Module):
    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return ecg.mean(1)


class Shared(torch.nn.Module):
    """One row's answer depends on its neighbours."""

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return (ecg - ecg.mean(0, keepdim=True)).mean(1)


class Fixed(torch.nn.Module):
    """Exported for two rows and no other number."""

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return ecg.reshape(2, 16).mean(1)


class Counting(torch.nn.Module):
    """Remembers how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return ecg.mean(1) + self.count


class Complex(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = torch.nn.Parameter(torch.zeros(16, dtype=torch.complex64))

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return (ecg * self.phase).abs().mean(1)


class Random(torch.nn.Module):
    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return ecg.mean(1) + torch.rand(1)


class Optional(torch.nn.Module):
    def forward(self, ecg: torch.Tensor, gain: None = None) -> torch.Tensor:
        return ecg.mean(1) if gain is None else ecg.mean(1) * gain


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        (Shared, KnownAnswerMismatch, "batch 4: off by"),
        (Counting, ForbiddenGraph, "changes its own state"),
        (Complex, UnsupportedModel, "holds a torch.complex64 tensor"),
        (Random, ForbiddenGraph, r"names the operator 'torch\.ops\.aten\.rand\.default'"),
    ],
)
def test_a_model_that_cannot_be_served_is_not_sealed(
    kind: Callable[[], torch.nn.Module],
    error: type[PericardError],
    reason: str,
    export_pt2: Export,
    plain_description: Description,
) -> None:
    path = export_pt2(kind(), torch.zeros(2, 16))

    with pytest.raises(error, match=reason):
        packed(path, plain_description)


def test_a_model_for_one_batch_size_is_not_sealed(export_pt2: Export, plain_description: Description) -> None:
    path = export_pt2(Fixed(), torch.zeros(2, 16), fixed=True)

    with pytest.raises(UnsupportedModel, match=r"does not compute at every batch size of \[1, 4\]") as caught:
        packed(path, plain_description)
    assert "dynamic first axis" in (caught.value.hint or "")


def test_a_model_of_named_inputs_is_not_sealed(tmp_path: Path, plain_description: Description) -> None:
    program = torch.export.export(Mean(), (), {"ecg": torch.zeros(1, 16)})
    torch.export.save(program, tmp_path / "named.pt2")

    with pytest.raises(UnsupportedModel, match="cannot be called with its inputs in order") as caught:
        packed(tmp_path / "named.pt2", replace(plain_description, max_batch=1, buckets=(1,)))
    assert caught.value.hint == "export it with positional tensor inputs"


def test_a_model_of_an_optional_input_is_not_sealed(export_pt2: Export, plain_description: Description) -> None:
    path = export_pt2(Optional(), torch.zeros(2, 16), None, fixed=True)

    with pytest.raises(ForbiddenGraph, match="carries an argument of kind 'as_none'"):
        packed(path, plain_description)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ((("score", "float32", (-1,)), ("more", "float32", (-1,))), "gives 1 outputs, the description names 2"),
        ((("score", "float32", (-1, 1)),), r"output score is float32\[1\], the description says float32\[1, 1\]"),
        ((("score", "float64", (-1,)),), r"is float32\[1\], the description says float64\[1\]"),
        ((("score", "bfloat16", (-1,)),), r"is float32\[1\], the description says bfloat16\[1\]"),
    ],
)
def test_outputs_that_are_not_described_are_refused(
    outputs: tuple[Any, ...], reason: str, export_pt2: Export, plain_description: Description
) -> None:
    path = export_pt2(Mean(), torch.zeros(2, 16))
    about = replace(plain_description, outputs=tuple(Output(TensorSpec(*spec)) for spec in outputs))

    with pytest.raises(UnsupportedModel, match=reason):
        packed(path, about)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_are_refused_with_words(
    dtype: str, export_pt2: Export, plain_description: Description
) -> None:
    path = export_pt2(Mean(), torch.zeros(2, 16))
    about = replace(plain_description, inputs=(TensorSpec("ecg", dtype, (-1, 16)),))

    with pytest.raises(UnsupportedModel, match="half-precision inputs are not served yet"):
        packed(path, about)


def test_a_normalised_graph_that_computes_something_else_is_caught(
    tiny_pt2: Path, tiny_graph: bytes, tiny_description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_graph.replace(b"torch.ops.aten.relu.default", b"torch.ops.aten.tanh.default")
    monkeypatch.setattr(export.graphs, "normalise", lambda _: other)

    with pytest.raises(KnownAnswerMismatch, match="computes other numbers once it is normalised"):
        packed(tiny_pt2, tiny_description)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PERICRD\x01", bytes(1000)])
def test_what_is_not_an_exported_program_is_refused(data: bytes, tmp_path: Path, tiny_description: Description) -> None:
    (tmp_path / "it.pt2").write_bytes(data)

    with pytest.raises(UnsupportedModel, match=r"it\.pt2: cannot be read as a \.pt2") as caught:
        packed(tmp_path / "it.pt2", tiny_description)
    assert "torch.export.save" in (caught.value.hint or "")
    with pytest.raises(UnsupportedModel, match="there is no such file"):
        packed(tmp_path / "missing.pt2", tiny_description)


def test_constants_that_are_not_tensors_are_refused(
    tiny_pt2: Path, tiny_description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = export._read(tiny_pt2)
    program.constants["tokeniser"] = object()
    monkeypatch.setattr(torch.export, "load", lambda _: program)

    with pytest.raises(UnsupportedModel, match="holds constants that are not tensors"):
        packed(tiny_pt2, tiny_description)
