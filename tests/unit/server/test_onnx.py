"""Models of the kind ``onnx``: what is left of a ``.onnx`` when it is sealed, and what the backend answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx_models import conv, conv_answers, converted, finished, weights

from pericard.errors import BackendFailed, ForbiddenGraph, KnownAnswerMismatch, ModelTooLarge, UnsupportedModel
from pericard.runtime import export, onnx_export, onnx_graph, onnx_model
from pericard.runtime.onnx_model import OnnxBackend
from pericard.sealed import Artifact, Description, Output, Tolerance, artifact
from pericard.tensors import TensorSpec

Array = np.ndarray[Any, Any]


@pytest.fixture
def about(tiny_description: Description) -> Description:
    return replace(
        tiny_description,
        kind="onnx",
        outputs=(Output(TensorSpec("score", "float32", (-1,)), "score"),),
        tolerance={"cpu": Tolerance(1e-5, 1e-5)},
    )


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def run(model: onnx.ModelProto | None = None, **how: Any) -> Path:
        onnx.save(model or conv(), tmp_path / "model.onnx", **how)
        return tmp_path / "model.onnx"

    return run


def strips(count: int) -> Array:
    return np.random.default_rng(count).normal(size=(count, 1, 64)).astype(np.float32)


def packed(path: Path, about: Description) -> tuple[bytes, Artifact]:
    plain = b"".join(export.pack(path, about)[1])
    return plain, artifact.parse(memoryview(plain), subject="it")


# --- what is sealed


def test_an_artifact_holds_a_graph_its_weights_apart_and_answers(save: Save, about: Description) -> None:
    plain, found = packed(save(), about)
    graph = plain[found.graph[0] : sum(found.graph)]

    assert {tensor.shape for tensor in found.tensors} == {(24, 1, 8), (24,), (24, 1)}
    assert len(found.known_answers) == 4
    for name in ("conv.weight", "conv.bias", "fc.weight"):
        assert plain.count(weights()[name].tobytes()) == 1
        assert weights()[name].tobytes() not in graph
    assert len(graph) < 1000


def test_nothing_of_the_vendors_own_words_is_left(save: Save, about: Description) -> None:
    path = save()
    assert b"vendor" in path.read_bytes()

    plain, _ = packed(path, about)
    for word in (b"vendor", b"train.py", b"conv", b"fc.weight"):
        assert word not in plain


def test_one_model_is_packed_to_the_same_bytes(save: Save, about: Description) -> None:
    assert packed(save(), about)[0] == packed(save(), about)[0]


def test_the_kind_comes_from_the_file(save: Save, about: Description) -> None:
    assert export.prepare(save(), replace(about, kind="exported")).description.kind == "onnx"


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("folder", ["", "data/"])
def test_weights_beside_the_model_are_the_same(apart: bool, folder: str, save: Save, about: Description) -> None:
    wanted = packed(save(), about)[0]
    path = save()
    (path.parent / "data").mkdir(exist_ok=True)
    place = "" if apart and not folder else f"{folder}weights.bin"
    path = save(
        save_as_external_data=True, all_tensors_to_one_file=not apart, size_threshold=64, location=place or "w.bin"
    )
    assert weights()["fc.weight"].tobytes() not in path.read_bytes()

    assert packed(path, about)[0] == wanted


def test_models_of_older_exporters_are_taken(save: Save, about: Description) -> None:
    """Initializers that are inputs too, and other domains that no node is of."""
    model = conv()
    model.graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in model.graph.initializer
    )
    model.opset_import.add(domain="com.microsoft", version=1)

    assert packed(save(model), about)[0] == packed(save(), about)[0]


def test_functions_are_written_out(save: Save, about: Description) -> None:
    model = conv()
    model.functions.append(
        helper.make_function(
            "vendor.ops",
            "Gate",
            ["x"],
            ["y"],
            [helper.make_node("Sigmoid", ["x"], ["y"])],
            [helper.make_opsetid("", 17)],
        )
    )
    model.opset_import.add(domain="vendor.ops", version=1)
    model.graph.node[-1].CopyFrom(helper.make_node("Gate", ["/squeezed"], ["score"], domain="vendor.ops"))

    assert packed(save(model), about)[0] == packed(save(), about)[0]


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (helper.make_node("Constant", [], ["c"], value_float=2.5), 2.5),
        (helper.make_node("Constant", [], ["c"], value_floats=[2.5]), 2.5),
        (helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.full((1,), 2.5, np.float32))), 2.5),
    ],
)
def test_constants_of_every_form_are_taken(node: onnx.NodeProto, value: float, tmp_path: Path) -> None:
    model = finished([node, helper.make_node("Mul", ["x", "c"], ["y"])], [("x", ["b", 3])], [("y", ["b", 3])], {})
    found = converted(tmp_path, model)
    backend = OnnxBackend(found.graph, found.tensors, device="cpu")

    np.testing.assert_array_equal(backend.infer((np.ones((2, 3), np.float32),))[0], np.full((2, 3), value, np.float32))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_models_are_taken(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    gates = {"LSTM": 4, "GRU": 3}[kind]
    held = {
        "w": rng.standard_normal((1, gates * 5, 2)).astype(np.float32),
        "r": rng.standard_normal((1, gates * 5, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(kind, ["t", "w", "r"], ["", "h"], hidden_size=5),
        helper.make_node("ReduceMean", ["h"], ["y"], axes=[0, 2], keepdims=0),
    ]
    found = converted(tmp_path, finished(nodes, [("x", ["b", 7, 2])], [("y", ["b"])], held))

    assert OnnxBackend(found.graph, found.tensors, device="cpu").infer((np.ones((3, 7, 2), np.float32),))[0].shape == (
        3,
    )


# --- batches


def test_a_model_exported_for_one_row_is_served_one_by_one_and_says_so(save: Save, about: Description) -> None:
    prepared = export.prepare(save(conv(batch=1)), about)

    assert (prepared.description.max_batch, prepared.description.buckets) == (1, (1,))
    assert "will be served one by one" in prepared.remarks[0]
    with pytest.raises(KnownAnswerMismatch, match="will be served one by one"):
        export.pack(save(conv(batch=1)), about)


# --- what cannot be sealed


@pytest.mark.parametrize("data", [b"", b"\x08", b"PK\x03\x04", bytes(100), b"not a model at all"])
def test_what_is_not_onnx_is_refused(data: bytes, tmp_path: Path, about: Description) -> None:
    (tmp_path / "it.onnx").write_bytes(data)

    with pytest.raises(UnsupportedModel, match=r"it\.onnx: cannot be read as an ONNX model") as caught:
        export.prepare(tmp_path / "it.onnx", about)
    assert "onnx.checker" in (caught.value.hint or "")
    with pytest.raises(UnsupportedModel, match="there is no such file"):
        export.prepare(tmp_path / "missing.onnx", about)


def test_a_file_beyond_protobufs_limit_is_refused_unread(
    save: Save, about: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_FILE", 100)
    monkeypatch.setattr(Path, "read_bytes", None)

    with pytest.raises(ModelTooLarge, match="holds more than 100 bytes"):
        export.prepare(save(), about)


@pytest.mark.parametrize("version", [12, 24, 99])
def test_an_operator_set_out_of_range_is_refused(version: int, save: Save, about: Description) -> None:
    model = conv()
    model.opset_import[0].version = version

    with pytest.raises(ForbiddenGraph, match=r"allowed is ai\.onnx 13 to 23 alone") as caught:
        export.prepare(save(model), about)
    assert caught.value.hint == "export it with opset_version=17"


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"outputs": ()}, UnsupportedModel, "gives 1 output, the description names 0"),
        (
            {"outputs": (Output(TensorSpec("score", "float32", (-1, 1))),)},
            UnsupportedModel,
            r"output score is float32\[1\], the description says float32\[1, 1\]",
        ),
        (
            {"inputs": (TensorSpec("ecg", "float32", (-1, 1, 65)),), "signal": None},
            UnsupportedModel,
            r"model\.onnx: takes float32\[-1, 1, 64\], the description says ecg ",
        ),
        (
            {"inputs": (TensorSpec("ecg", "float64", (-1, 1, 64)),), "signal": None},
            UnsupportedModel,
            r"model\.onnx: takes float32\[-1, 1, 64\], the description says ecg ",
        ),
    ],
)
def test_a_model_that_is_not_described_is_refused(
    change: dict[str, Any], error: type[Exception], reason: str, save: Save, about: Description
) -> None:
    with pytest.raises(error, match=reason):
        export.prepare(save(), replace(about, **change))


def test_a_conversion_that_computes_something_else_is_caught(
    save: Save, about: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_export.original

    def other(path: Path) -> Callable[[tuple[Array, ...]], tuple[Array, ...]]:
        infer = real(path)
        return lambda inputs: tuple(value + 1 for value in infer(inputs))

    monkeypatch.setattr(onnx_export, "original", other)
    with pytest.raises(KnownAnswerMismatch, match="computes other numbers once it is normalised"):
        export.prepare(save(), about)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_without_the_extra_the_kind_is_unsupported_with_advice(
    name: str, save: Save, about: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save()
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(UnsupportedModel, match=f"is of the kind onnx, and {name} is not installed here") as caught:
        export.prepare(path, about)
    assert "pip install 'pericard-server[onnx]'" in (caught.value.hint or "")


# --- answers


@pytest.fixture
def backend(tmp_path: Path) -> OnnxBackend:
    found = converted(tmp_path)
    return OnnxBackend(found.graph, found.tensors, device="cpu")


@pytest.mark.parametrize("count", [1, 2, 5, 32])
def test_it_answers_what_the_model_computes(count: int, backend: OnnxBackend) -> None:
    (found,) = backend.infer((strips(count),))

    np.testing.assert_allclose(found, conv_answers(strips(count)), rtol=1e-4)
    assert found.flags.c_contiguous
    assert found.dtype == np.float32


@pytest.mark.parametrize("count", [1, 4, 32])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bucket_gives_the_same_bits(count: int, threads: int, tmp_path: Path) -> None:
    found = converted(tmp_path)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        answers = {
            OnnxBackend(found.graph, found.tensors, device="cpu").infer((strips(count),))[0].tobytes() for _ in range(5)
        }
    finally:
        torch.set_num_threads(before)
    assert len(answers) == 1


def test_the_weights_are_copied_so_that_theirs_can_be_wiped(tmp_path: Path) -> None:
    found = converted(tmp_path)
    own = {name: value.copy() for name, value in found.tensors.items()}
    backend = OnnxBackend(found.graph, own, device="cpu")
    wanted = backend.infer((strips(3),))[0]
    for value in own.values():
        value[:] = 0

    np.testing.assert_array_equal(backend.infer((strips(3),))[0], wanted)


def test_views_of_a_private_buffer_will_do(tmp_path: Path) -> None:
    found = converted(tmp_path)
    buffer = bytearray(b"".join(value.tobytes() for value in found.tensors.values()))
    views, at = {}, 0
    for name, value in found.tensors.items():
        views[name] = np.frombuffer(memoryview(buffer)[at : at + value.nbytes], value.dtype).reshape(value.shape)
        at += value.nbytes

    (answers,) = OnnxBackend(found.graph, views, device="cpu").infer((strips(2),))
    np.testing.assert_allclose(answers, conv_answers(strips(2)), rtol=1e-5)


@pytest.mark.parametrize(
    "inputs",
    [
        (np.zeros((1, 2, 64), np.float32),),
        (np.zeros((1, 1, 63), np.float32),),
        (np.zeros((1, 1, 64), np.float64),),
        (np.zeros((1, 1, 64), np.float32),) * 2,
        (np.zeros((1, 64), np.float32),),
        (),
    ],
)
def test_a_failed_batch_costs_itself_only(inputs: tuple[Any, ...], backend: OnnxBackend) -> None:
    wanted = backend.infer((strips(1),))
    with pytest.raises(BackendFailed, match="model: "):
        backend.infer(inputs)

    np.testing.assert_array_equal(backend.infer((strips(1),))[0], wanted[0])


def test_a_closed_backend_answers_nothing(backend: OnnxBackend) -> None:
    backend.close()

    with pytest.raises(BackendFailed):
        backend.infer((strips(1),))
    backend.close()


@pytest.mark.parametrize("device", ["cuda:0", "cuda", "rocm:0", "tensorrt"])
def test_a_device_that_is_not_there_is_never_replaced_by_another(device: str, tmp_path: Path) -> None:
    found = converted(tmp_path)

    with pytest.raises(UnsupportedModel, match=f"'{device}' was asked for, and this ONNX Runtime has no"):
        OnnxBackend(found.graph, found.tensors, device=device)


def test_nothing_is_written_and_nothing_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = converted(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    backend = OnnxBackend(found.graph, found.tensors, device="cpu")
    backend.infer((strips(1),))
    with pytest.raises(BackendFailed):
        backend.infer((strips(1)[:, :, :3],))

    assert list((tmp_path / "empty").iterdir()) == []
    assert capfd.readouterr() == ("", "")
    options = onnx_model._options(onnx_graph.packages()[1], found.tensors)
    assert (options.enable_profiling, options.optimized_model_filepath) == (False, "")


def test_what_the_runtime_cannot_build_is_unsupported(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = finished(nodes, [("x", ["b", 3])], [("y", ["b", 2])], {"w": np.ones((4, 20), np.float32)})
    found = converted(tmp_path, model)

    with pytest.raises(UnsupportedModel, match="this ONNX Runtime cannot build it"):
        OnnxBackend(found.graph, found.tensors, device="cpu")
