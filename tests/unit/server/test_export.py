"""The vendor's side: what is left of a ``.pt2``, and which ones cannot be sealed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pericard.errors import ForbiddenGraph, KnownAnswerMismatch, PericardError, UnsupportedModel
from pericard.runtime import export, pt2, questions
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
    weight = pt2.read(tiny_pt2).state_dict["conv.weight"].detach().numpy().tobytes()
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
    first, second = list(questions.synthetic(specs)), list(questions.synthetic(specs))

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
        (Shared, KnownAnswerMismatch, "will be served one by one.* batch 2: off by"),
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

    with pytest.raises(UnsupportedModel, match="does not compute for a batch of one") as caught:
        packed(path, plain_description)
    assert "dynamic first axis" in (caught.value.hint or "")


def test_a_model_that_mixes_its_rows_is_sealed_to_be_served_one_by_one(
    export_pt2: Export, plain_description: Description
) -> None:
    prepared = export.prepare(export_pt2(Shared(), torch.zeros(2, 16)), plain_description)

    assert prepared.description == replace(plain_description, max_batch=1, buckets=(1,))
    (remark,) = prepared.remarks
    assert "will be served one by one, whatever its description says of batches" in remark
    assert "not in batches of 2 (model tiny: known answer" in remark


class FixedRows(torch.nn.Module):
    """Exported for one row, with its number in the graph."""

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return ecg.reshape(1, 4, 4).mean((1, 2))


def test_a_model_of_one_row_is_sealed_to_be_served_one_by_one(
    export_pt2: Export, plain_description: Description
) -> None:
    prepared = export.prepare(export_pt2(FixedRows(), torch.zeros(1, 16), fixed=True), plain_description)

    assert (prepared.description.max_batch, prepared.description.buckets) == (1, (1,))
    assert "not in batches of 2 (model: the computation failed" in prepared.remarks[0]


@pytest.mark.parametrize("buckets", [(1, 4), (4,), (2, 3, 4)])
def test_a_model_that_keeps_its_rows_apart_is_sealed_as_described(
    buckets: tuple[int, ...], export_pt2: Export, plain_description: Description
) -> None:
    about = replace(plain_description, buckets=buckets)
    prepared = export.prepare(export_pt2(Mean(), torch.zeros(2, 16)), about)

    assert (prepared.description, prepared.remarks) == (about, ())


@pytest.mark.parametrize("name", ["model.pt", "model.torchscript", "model.pth", "model.ckpt"])
def test_torchscript_and_weights_alone_are_refused_with_advice(
    name: str, tmp_path: Path, plain_description: Description
) -> None:
    (tmp_path / name).write_bytes(b"PK")

    with pytest.raises(UnsupportedModel, match="is of a kind that cannot be sealed") as caught:
        export.prepare(tmp_path / name, plain_description)
    assert "torch.export.save(" in (caught.value.hint or "")
    assert "--module" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["model", "model.safetensors", "model.h5", "model.PT2"])
def test_other_kinds_are_refused_with_what_there_is(name: str, tmp_path: Path, plain_description: Description) -> None:
    with pytest.raises(UnsupportedModel, match="is of a kind that cannot be sealed") as caught:
        export.prepare(tmp_path / name, plain_description)
    assert caught.value.hint == "a .pt2 of torch.export, a .onnx, or with --module the weights of an nn.Module"


# --- questions of the vendor's own


def test_a_vendors_own_questions_take_the_place_of_synthetic_ones(
    export_pt2: Export, plain_description: Description, tmp_path: Path
) -> None:
    rows = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    np.savez(tmp_path / "own.npz", ecg=rows)
    own = questions.from_file(tmp_path / "own.npz", plain_description.inputs)

    prepared = export.prepare(export_pt2(Mean(), torch.zeros(2, 16)), plain_description, own)
    plain = memoryview(b"".join(prepared.plain[1]))
    found = artifact.parse(plain, subject="it").known_answers
    assert [bytes(plain[a.inputs[0].offset :][: a.inputs[0].size]) for a in found] == [row.tobytes() for row in rows]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"other": np.zeros((1, 16), np.float32)}, r"holds \['other'\], the model's inputs are \['ecg'\]"),
        ({}, r"holds \[\]"),
        ({"ecg": np.zeros((1, 15), np.float32)}, r"ecg is float32\[1, 15\], wanted are rows of float32\[16\]"),
        ({"ecg": np.zeros((1, 16), np.float64)}, r"ecg is float64\[1, 16\]"),
        ({"ecg": np.zeros((), np.float32)}, r"ecg is float32\[\]"),
        ({"ecg": np.full((1, 16), np.nan, np.float32)}, "holds values that are not finite"),
        ({"ecg": np.zeros((0, 16), np.float32)}, "holds 0 questions"),
        ({"ecg": np.zeros((1, 16), np.float32)}, "holds 1 questions, allowed are 2 to 64"),
        ({"ecg": np.zeros((65, 16), np.float32)}, "holds 65 questions, allowed are 2 to 64"),
        ({"ecg": np.array([object()])}, "is not a .npz of plain arrays"),
    ],
)
def test_own_questions_that_do_not_fit_are_refused(
    arrays: dict[str, Any], reason: str, tmp_path: Path, plain_description: Description
) -> None:
    np.savez(tmp_path / "own.npz", **arrays)

    with pytest.raises(UnsupportedModel, match=reason):
        questions.from_file(tmp_path / "own.npz", plain_description.inputs)


@pytest.mark.parametrize("data", [b"", b"PK", b"numbers", pickle.dumps({"ecg": 1})])
def test_a_file_that_is_no_npz_is_refused(data: bytes, tmp_path: Path, plain_description: Description) -> None:
    (tmp_path / "own.npz").write_bytes(data)
    with pytest.raises(UnsupportedModel, match=r"own\.npz: "):
        questions.from_file(tmp_path / "own.npz", plain_description.inputs)
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(UnsupportedModel, match=r"is not a \.npz"):
        questions.from_file(tmp_path / "own.npy", plain_description.inputs)
    with pytest.raises(UnsupportedModel, match="cannot be read: no such file"):
        questions.from_file(tmp_path / "missing.npz", plain_description.inputs)


def test_a_model_of_named_inputs_is_not_sealed(tmp_path: Path, plain_description: Description) -> None:
    program = torch.export.export(Mean(), (), {"ecg": torch.zeros(1, 16)})
    torch.export.save(program, tmp_path / "named.pt2")

    with pytest.raises(UnsupportedModel, match="cannot be called with its inputs in order") as caught:
        packed(tmp_path / "named.pt2", replace(plain_description, max_batch=1, buckets=(1,)))
    assert caught.value.hint == "export it with positional tensor inputs"


def test_a_program_of_named_inputs_that_was_not_saved_is_not_sealed_either(plain_description: Description) -> None:
    program = torch.export.export(Mean(), (), {"ecg": torch.zeros(1, 16)})

    with pytest.raises(
        UnsupportedModel, match="mean: cannot be called with its inputs in order, one row of each"
    ) as caught:
        export.prepare_program(program, plain_description, subject="mean")
    assert "positional tensor inputs" in (caught.value.hint or "")


def test_a_model_exported_for_two_rows_or_more_is_sealed_if_it_is_right_for_one(
    tmp_path: Path, plain_description: Description
) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Mean(), (torch.zeros(2, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "two.pt2")

    assert export.prepare(tmp_path / "two.pt2", plain_description).remarks == ()


def test_a_model_of_an_optional_input_is_not_sealed(export_pt2: Export, plain_description: Description) -> None:
    path = export_pt2(Optional(), torch.zeros(2, 16), None, fixed=True)

    with pytest.raises(ForbiddenGraph, match="carries an argument of kind 'as_none'"):
        packed(path, plain_description)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ((("score", "float32", (-1,)), ("more", "float32", (-1,))), "gives 1 output, the description names 2"),
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

    with pytest.raises(UnsupportedModel, match=reason) as caught:
        packed(path, about)
    assert "in the model's order" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([("ecg", "float32", (-1, 7))], r"it\.pt2: takes float32\[-1, 16\], the description says ecg float32\[-1, 7\]"),
        ([("ecg", "float64", (-1, 16))], r"takes float32\[-1, 16\], the description says ecg float64"),
        ([("ecg", "float32", (-1, 4, 4))], r"takes float32\[-1, 16\], the description says ecg float32\[-1, 4, 4\]"),
        ([("ecg", "float32", (-1, 16)), ("age", "int64", (-1,))], r"says ecg float32\[-1, 16\], age int64\[-1\]"),
    ],
)
def test_inputs_that_are_not_the_programs_are_refused(
    inputs: list[Any], reason: str, export_pt2: Export, plain_description: Description, tmp_path: Path
) -> None:
    path = export_pt2(Mean(), torch.zeros(2, 16)).rename(tmp_path / "it.pt2")
    about = replace(plain_description, inputs=tuple(TensorSpec(*spec) for spec in inputs))

    with pytest.raises(UnsupportedModel, match=reason) as caught:
        packed(path, about)
    assert "correct inputs in model.yaml" in (caught.value.hint or "")


def test_an_axis_of_any_size_fits_what_the_description_says(tmp_path: Path, plain_description: Description) -> None:
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("samples", min=2, max=99)}
    torch.export.save(torch.export.export(Mean(), (torch.zeros(2, 7),), dynamic_shapes=(axes,)), tmp_path / "it.pt2")

    assert export.prepare(tmp_path / "it.pt2", plain_description).remarks == ()


def test_a_model_exported_for_one_item_says_that_it_is_served_one_by_one(
    export_pt2: Export, plain_description: Description
) -> None:
    path = export_pt2(Mean(), torch.zeros(1, 16), fixed=True)
    prepared = export.prepare(path, plain_description)

    assert (prepared.description.max_batch, prepared.description.buckets) == (1, (1,))
    (remark,) = prepared.remarks
    assert remark.endswith("will be served one by one: it was exported for a batch of one alone")
    assert export.prepare(path, replace(plain_description, max_batch=1, buckets=(1,))).remarks == ()


def test_what_is_no_program_under_its_suffix_is_named(tmp_path: Path, plain_description: Description) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt2")
    with pytest.raises(UnsupportedModel, match=r"weights\.pt2: is a file of torch\.save") as caught:
        export.prepare(tmp_path / "weights.pt2", plain_description)
    assert "--module pkg.mod:factory" in (caught.value.hint or "")

    members = zipfile.ZipFile(tmp_path / "script.pt2", "w")
    for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
        members.writestr(f"script/{name}", b"")
    members.close()
    with pytest.raises(UnsupportedModel, match=r"script\.pt2: is a TorchScript module"):
        export.prepare(tmp_path / "script.pt2", plain_description)


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
    monkeypatch.setattr(export, "serialised", lambda _: json.loads(other))

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


def test_constants_that_are_not_tensors_are_refused(tiny_pt2: Path, tiny_description: Description) -> None:
    program = pt2.read(tiny_pt2)
    program.constants["tokeniser"] = object()

    with pytest.raises(UnsupportedModel, match=r"it\.pt2: holds constants that are not tensors"):
        export.prepare_program(program, tiny_description, subject="it.pt2")
