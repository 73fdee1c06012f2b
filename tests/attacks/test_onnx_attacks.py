"""P3 for the kind ``onnx``: what a graph may carry, and that nothing in it reaches beyond the artifact.

A graph of ONNX can name files to read weights from, operators of any library, subgraphs, functions and text. Each way
is closed before ONNX Runtime sees a byte; the one that reads files is first shown to be real.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx_models import changed, conv, converted, finished

from pericard.errors import ForbiddenGraph, ModelTooLarge, PericardError, UnsupportedModel
from pericard.runtime import onnx_export, onnx_graph
from pericard.runtime.onnx_export import Converted
from pericard.runtime.onnx_model import OnnxBackend

onnxruntime = onnx_graph.packages()[1]  # never imported otherwise: it reports to its maker

Change = Callable[[onnx.ModelProto], object]


@pytest.fixture
def found(tmp_path: Path) -> Converted:
    """A small convolution as it is sealed: weights t1, t2 and t9 in the artifact, shapes in the graph."""
    return converted(tmp_path)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime must not be reached."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)


def external(model: onnx.ModelProto) -> list[TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]


def located(place: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        external(model)[0].external_data[0].value = place

    return change


# --- files


def test_onnx_runtime_reads_files_that_a_graph_names(
    found: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack is real: this is what the check stands against."""
    evil = changed(found, located("etc-shadow"))
    for tensor in external(onnx.ModelProto.FromString(evil)):
        (tmp_path / tensor.external_data[0].value).write_bytes(found.tensors[tensor.name].tobytes())
    assert (tmp_path / "etc-shadow").exists()
    monkeypatch.chdir(tmp_path)
    session = onnxruntime.InferenceSession(evil, providers=["CPUExecutionProvider"])
    ecg = np.ones((1, 1, 64), np.float32)

    wanted = OnnxBackend(found.graph, found.tensors, device="cpu").infer((ecg,))
    np.testing.assert_array_equal(session.run(None, {"i0": ecg})[0], wanted[0])


@pytest.mark.parametrize(
    "place",
    ["/etc/passwd", "../../etc/passwd", "etc-shadow", "./t1", "t1/../t1", "t1/", "T1", "", "t1\0", "file:///t1",
     "/proc/self/fd/0", "*/_ORT_MEM_ADDR_/*", "t99", "t1 "],
)  # fmt: skip
def test_a_tensor_lies_under_its_own_name_and_nowhere_else(place: str, found: Converted, unread: None) -> None:
    with pytest.raises(ForbiddenGraph, match="lies at"):
        OnnxBackend(changed(found, located(place)), found.tensors, device="cpu")


def swapped(model: onnx.ModelProto) -> None:
    first, second = external(model)[:2]
    first.external_data[0].value, second.external_data[0].value = second.name, first.name


def with_an_offset(model: onnx.ModelProto) -> None:
    external(model)[0].external_data.add(key="offset", value="4096")


def with_a_length(model: onnx.ModelProto) -> None:
    external(model)[0].external_data.add(key="length", value="1")


def with_a_second_place(model: onnx.ModelProto) -> None:
    external(model)[0].external_data.add(key="location", value="/etc/passwd")


def without_a_place(model: onnx.ModelProto) -> None:
    external(model)[0].ClearField("external_data")


@pytest.mark.parametrize("change", [swapped, with_an_offset, with_a_length, with_a_second_place, without_a_place])
def test_a_tensor_has_one_place_and_it_is_its_own(change: Change, found: Converted, unread: None) -> None:
    with pytest.raises(ForbiddenGraph, match="lies at"):
        OnnxBackend(changed(found, change), found.tensors, device="cpu")


def outside() -> TensorProto:
    """A tensor whose values are in a file."""
    tensor = TensorProto(name="", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def in_a_constant(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["v90"]))
    model.graph.node[0].attribute.add(name="value", type=AttributeProto.TENSOR, t=outside())


def in_an_attribute(model: onnx.ModelProto) -> None:
    shape = next(item.name for item in model.graph.initializer if item.data_type == TensorProto.INT64)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", [shape], ["v90"]))
    model.graph.node[0].attribute.add(name="value", type=AttributeProto.TENSOR, t=outside())


@pytest.mark.parametrize("change", [in_a_constant, in_an_attribute])
def test_an_attribute_names_no_file(change: Change, found: Converted, unread: None) -> None:
    with pytest.raises(ForbiddenGraph, match="carries 'data_location'"):
        OnnxBackend(changed(found, change), found.tensors, device="cpu")


def test_the_tensors_are_those_of_the_graph(found: Converted, unread: None) -> None:
    name = min(found.tensors)
    value = found.tensors[name]
    without = {key: held for key, held in found.tensors.items() if key != name}
    cases: list[tuple[dict[str, Any], type[PericardError], str]] = [
        (without, UnsupportedModel, f"needs the tensor {name!r}, which the model does not hold"),
        (found.tensors | {"t77": value}, ForbiddenGraph, "does not name the tensor 't77'"),
        (found.tensors | {name: value.astype(np.float64)}, ForbiddenGraph, f"takes the tensor {name} for"),
        (found.tensors | {name: value[..., :1]}, ForbiddenGraph, f"takes the tensor {name} for"),
        (found.tensors | {name: value[:0]}, ForbiddenGraph, f"takes the tensor {name} for"),
    ]
    for tensors, error, reason in cases:
        with pytest.raises(error, match=reason):
            OnnxBackend(found.graph, tensors, device="cpu")


# --- what the runtime would tell others

QUIET = """
import os, time
from pathlib import Path
from pericard.runtime.onnx_model import OnnxBackend
import numpy as np, onnx_models, tempfile

with tempfile.TemporaryDirectory() as folder:
    found = onnx_models.converted(Path(folder))
    backend = OnnxBackend(found.graph, found.tensors, device="cpu")
    backend.infer((np.zeros((1, 1, 64), np.float32),))
time.sleep(1)
fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
links = [os.readlink(fd) for fd in fds if os.path.exists(fd)]
print([link for link in links if link.startswith("socket:")])
"""


def test_the_runtime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """Left alone, it writes a database below the home folder when it is imported, and sends it."""
    fixtures = Path(__file__).parent.parent / "fixtures"
    silent = {name: value for name, value in os.environ.items() if name not in {"ORT_DISABLE_TELEMETRY", "CI"}}
    done = subprocess.run(
        [sys.executable, "-c", QUIET],
        env={**silent, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(fixtures)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- what a graph carries


def node(model: onnx.ModelProto) -> onnx.NodeProto:
    first: onnx.NodeProto = model.graph.node[0]
    return first


def added(kind: str, **attributes: Any) -> Change:
    """A node more, whose result nobody uses."""
    return lambda model: model.graph.node.append(helper.make_node(kind, ["i0"], ["v90"], **attributes))


def subgraph() -> onnx.GraphProto:
    return finished([helper.make_node("Relu", ["i0"], ["v91"])], [], [("v91", [1])], {}).graph


def branch(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("If", ["i0"], ["v90"], then_branch=subgraph(), else_branch=subgraph()))


def hidden_subgraph(model: onnx.ModelProto) -> None:
    node(model).attribute.append(helper.make_attribute("pads", subgraph()))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function("", "Relu", ["x"], ["y"], [helper.make_node("Tanh", ["x"], ["y"])], model.opset_import)
    )


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def twice(model: onnx.ModelProto) -> None:
    node(model).attribute.append(node(model).attribute[0])


def wrong_kind(model: onnx.ModelProto) -> None:
    node(model).attribute[0].CopyFrom(helper.make_attribute("strides", "4"))


def two_values(model: onnx.ModelProto) -> None:
    node(model).attribute[0].s = b"4"


def reference(model: onnx.ModelProto) -> None:
    node(model).attribute[0].ref_attr_name = "strides"


def strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t90", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"]))


def cast(kind: int) -> Change:
    return added("Cast", to=kind)


def long(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(257, np.float32), "t90"))


def short(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t90", data_type=1, dims=[2], raw_data=b"1234"))


def enormous(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t90", data_type=1, dims=[1 << 62, 1 << 62], raw_data=b"1234"))


def negative(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t90", data_type=1, dims=[-1], raw_data=b"1234"))


def typed_data(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t90", data_type=1, dims=[1], float_data=[1.0]))


def both(model: onnx.ModelProto) -> None:
    external(model)[0].raw_data = b"1234"


def half(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t90", data_type=TensorProto.BFLOAT16, dims=[1], raw_data=b"12"))


def renamed(name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[0] = name
        model.graph.node[1].input[0] = name

    return change


def backwards(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def redefined(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["i0"], [model.graph.node[0].output[0]]))


def shadowed(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "i0"))


def nothing(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "v77"


def sequence(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1])))


def denotation(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "x"


def more_axes(model: onnx.ModelProto) -> None:
    for _ in range(20):
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1)


def no_axis(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 0


def field(name: str, value: Any, at: Callable[[onnx.ModelProto], Any] = lambda model: model) -> Change:
    return lambda model: setattr(at(model), name, value)


def appended(where: str, at: Callable[[onnx.ModelProto], Any] = lambda model: model, /, **fields: Any) -> Change:
    return lambda model: getattr(at(model), where).add(**fields)


def graph(model: onnx.ModelProto) -> onnx.GraphProto:
    return model.graph


CHANGES: list[tuple[Change, str]] = [
    (field("domain", "com.microsoft", node), r"names the operator 'com\.microsoft\.Conv'"),
    (field("domain", "ai.onnx.ml", node), r"names the operator 'ai\.onnx\.ml\.Conv'"),
    (field("domain", "ai.onnx", node), r"names the operator 'ai\.onnx\.Conv'"),
    (field("op_type", "NoSuchOperator", node), "names the operator 'NoSuchOperator'"),
    (field("op_type", "../Conv", node), "names the operator"),
    *(
        (added(kind), f"names the operator '{kind}'")
        for kind in ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "SequenceEmpty", "Optional",
                     "StringConcat", "RegexFullMatch", "ImageDecoder", "TfIdfVectorizer", "Unique", "PyOp")
    ),
    (branch, "names the operator 'If'"),
    (added("Loop", body=subgraph()), "names the operator 'Loop'"),
    (added("Scan", body=subgraph(), num_scan_inputs=1), "names the operator 'Scan'"),
    (hidden_subgraph, "has the attribute 'pads', which it does not take"),
    (function, "the model carries 'functions'"),
    (training, "the model carries 'training_info'"),
    (field("producer_name", "x"), "the model carries 'producer_name'"),
    (field("doc_string", "x"), "the model carries 'doc_string'"),
    (field("domain", "x"), "the model carries 'domain'"),
    (field("model_version", 1), "the model carries 'model_version'"),
    (appended("metadata_props", key="x", value="y"), "the model carries 'metadata_props'"),
    (appended("configuration", name="x"), "the model carries 'configuration'"),
    (field("ir_version", 11), "has IR version 11, this runtime reads 10"),
    (appended("opset_import", domain="com.microsoft", version=1), "needs the operator sets"),
    (field("version", 12, lambda model: model.opset_import[0]), r"needs the operator sets ai\.onnx 12"),
    (field("version", 24, lambda model: model.opset_import[0]), r"needs the operator sets ai\.onnx 24"),
    (field("domain", "ai.onnx", lambda model: model.opset_import[0]), "needs the operator sets"),
    (lambda model: model.ClearField("opset_import"), "needs the operator sets none"),
    (field("name", "vendor", graph), "has a name of its own"),
    (field("doc_string", "x", graph), "the graph carries 'doc_string'"),
    (appended("value_info", graph, name="x"), "the graph carries 'value_info'"),
    (appended("metadata_props", graph, key="x"), "the graph carries 'metadata_props'"),
    (appended("sparse_initializer", graph), "the graph carries 'sparse_initializer'"),
    (appended("quantization_annotation", graph), "the graph carries 'quantization_annotation'"),
    (field("name", "x", node), "the node Conv carries 'name'"),
    (field("doc_string", "x", node), "the node Conv carries 'doc_string'"),
    (field("overload", "x", node), "the node Conv carries 'overload'"),
    (appended("metadata_props", node, key="x"), "the node Conv carries 'metadata_props'"),
    (appended("attribute", node, name="evil", type=AttributeProto.INT, i=1), "has the attribute 'evil'"),
    (twice, "has the attribute 'strides', which it does not take"),
    (wrong_kind, "has the attribute 'strides', which it does not take"),
    (two_values, r"the attribute Conv\.strides carries 's'"),
    (reference, r"the attribute Conv\.strides carries 'ref_attr_name'"),
    (appended("attribute", node, name="auto_pad", type=AttributeProto.STRING, s=b"/etc/passwd"), "carries text"),
    (appended("attribute", node, name="auto_pad", type=AttributeProto.STRING, s=b"x" * 129), "carries text"),
    (appended("attribute", node, name="auto_pad", type=AttributeProto.STRING, s=b"\xff"), "carries text"),
    (lambda model: node(model).input.extend(["i0"] * 5), "has more or fewer inputs or outputs"),
    (lambda model: node(model).output.append("v90"), "has more or fewer inputs or outputs"),
    (strings, "carries 'string_data'"),
    (cast(TensorProto.STRING), r"Cast\.to is of element type 8"),
    (cast(TensorProto.FLOAT8E4M3FN), r"Cast\.to is of element type 17"),
    (cast(99), r"Cast\.to is of element type 99"),
    (long, r"the tensor t90 holds 1028 bytes in the graph, .* allowed are 1024"),
    (short, "the tensor t90 holds 4 bytes in the graph"),
    (enormous, "the tensor t90 holds 4 bytes in the graph"),
    (negative, "the tensor t90 has a bad shape"),
    (typed_data, "carries 'float_data'"),
    (both, "the tensor carries 'raw_data'"),
    (half, "is of element type 16"),
    *((renamed(name), "has the bad name") for name in ("/conv", "V1", "v", "v12345678", "v1\n", "", "i0", "vv1")[:5]),
    (backwards, "before anything made it"),
    (redefined, "or has it twice"),
    (shadowed, "or has it twice"),
    (nothing, "gives 'v77', which nothing makes"),
    (sequence, "the type carries 'sequence_type'"),
    (field("elem_type", 8, lambda model: model.graph.input[0].type.tensor_type), "is of element type 8"),
    (field("elem_type", 16, lambda model: model.graph.output[0].type.tensor_type), "is of element type 16"),
    (field("doc_string", "x", lambda model: model.graph.input[0]), "the value carries 'doc_string'"),
    (denotation, "the axis carries 'denotation'"),
    (more_axes, "axes"),
    (no_axis, "less than one"),
    (field("dim_param", "batch", lambda model: model.graph.input[0].type.tensor_type.shape.dim[0]), "has the bad axis"),
    (lambda model: model.graph.ClearField("input"), "has no input or no output"),
    (lambda model: model.graph.ClearField("output"), "has no input or no output"),
    (lambda model: model.ClearField("graph"), "has a name of its own"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=[str(number) for number in range(len(CHANGES))])
def test_what_is_not_written_down_is_refused_before_the_runtime_sees_it(
    change: Change, reason: str, found: Converted, unread: None
) -> None:
    with pytest.raises(ForbiddenGraph, match=reason):
        OnnxBackend(changed(found, change), found.tensors, device="cpu")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([helper.make_node("Dropout", ["x", "r", "t"], ["y"])], "Dropout has training_mode"),
        (
            [helper.make_node("BatchNormalization", ["x", "w", "w", "w", "w"], ["y"], training_mode=1)],
            "BatchNormalization has training_mode",
        ),
    ],
)
def test_a_model_in_training_is_refused(nodes: list[onnx.NodeProto], reason: str, tmp_path: Path) -> None:
    held = {
        "r": np.array(0.5, np.float32),
        "t": np.array(True),
        "w": np.ones(3, np.float32),
    }
    with pytest.raises(ForbiddenGraph, match=reason) as caught:
        converted(tmp_path, finished(nodes, [("x", ["b", 3])], [("y", ["b", 3])], held))
    assert caught.value.hint == "export the model in evaluation mode"


def test_fields_that_onnx_does_not_have_are_refused(found: Converted, unread: None) -> None:
    for tail in (b"\xfa\x3f\x01x", b"\xf8\x3f\x01"):  # field 1023: bytes, a number
        with pytest.raises(ForbiddenGraph, match="carries fields that ONNX does not have"):
            OnnxBackend(found.graph + tail, found.tensors, device="cpu")


@pytest.mark.parametrize("data", [b"", b"[", b"\x00", b"\xff" * 100, bytes(1000), b"PK\x03\x04", b"\x08\x0a"])
def test_what_is_no_graph_is_refused(data: bytes, unread: None) -> None:
    with pytest.raises(ForbiddenGraph):
        OnnxBackend(data, {}, device="cpu")


def test_a_graph_beyond_the_limit_is_refused_unparsed(unread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "ModelProto", None)

    with pytest.raises(ForbiddenGraph, match="holds 67108865 bytes, allowed are 67108864"):
        OnnxBackend(bytes((64 << 20) + 1), {}, device="cpu")


def test_too_many_nodes_are_refused(found: Converted, unread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "MAX_NODES", 3)

    with pytest.raises(ForbiddenGraph, match="nodes, allowed are 3"):
        OnnxBackend(found.graph, found.tensors, device="cpu")


def test_a_nest_of_messages_is_refused(unread: None) -> None:
    """Subgraphs a thousand deep, which a recursive reader would follow."""
    inner = b""
    for _ in range(1000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            inner = tag + _varint(len(inner)) + inner
    with pytest.raises(ForbiddenGraph):
        OnnxBackend(b"\x3a" + _varint(len(inner)) + inner, {}, device="cpu")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_the_runtime_reads_what_was_checked_written_again(found: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field twice: readers of protobuf differ in which one counts, so the bytes that came are not passed on."""
    given: list[bytes] = []
    real = onnxruntime.InferenceSession

    def session(data: bytes, *rest: Any, **named: Any) -> Any:
        given.append(data)
        return real(data, *rest, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    doubled = b"\x08\x63" + found.graph  # ir_version 99, and then the real one
    OnnxBackend(doubled, found.tensors, device="cpu")

    assert given == [onnx_graph.check(found.graph, found.tensors)]
    assert given[0] != doubled


def test_any_byte_may_be_wrong_and_only_our_own_errors_come(found: Converted) -> None:
    generator = np.random.default_rng(11)
    accepted = 0
    for _ in range(3000):
        data = bytearray(found.graph)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            data[place] = generator.integers(0, 256)
        try:
            onnx_graph.check(bytes(data), found.tensors)
            accepted += 1
        except PericardError:
            continue
    assert accepted < 1500


def test_every_place_of_a_graph_may_be_cut_off(found: Converted, unread: None) -> None:
    for length in range(len(found.graph)):
        with pytest.raises(PericardError):
            OnnxBackend(found.graph[:length], found.tensors, device="cpu")


def test_every_listed_operator_is_one_of_onnx() -> None:
    for name in onnx_graph.OPERATORS:
        schema = onnx.defs.get_schema(name, onnx_graph.OPSETS[-1], "")
        assert not any(
            attribute.type in {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}
            for attribute in schema.attributes.values()
        )


# --- the vendor's own file, whose paths may lead away


def apart(tmp_path: Path, place: str) -> Path:
    """A vendor's model one of whose tensors lies elsewhere."""
    model = conv()
    tensor = next(item for item in model.graph.initializer if item.name == "conv.weight")
    (tmp_path / "secret").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    (tmp_path / "vendor").mkdir(exist_ok=True)
    (tmp_path / "vendor" / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "vendor" / "model.onnx"


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        ("../secret", ForbiddenGraph, "which leads away from the model"),
        ("x/../../secret", ForbiddenGraph, "which leads away from the model"),
        ("/etc/passwd", ForbiddenGraph, "which leads away from the model"),
        ("", ForbiddenGraph, "which leads away from the model"),
        ("..\\secret", ForbiddenGraph, "which leads away from the model"),
        ("secret\0", ForbiddenGraph, "which leads away from the model"),
        ("link", ForbiddenGraph, "a link that leads away from the model"),
        ("folder/secret", ForbiddenGraph, "a link that leads away from the model"),
        ("missing", UnsupportedModel, "where there is no file"),
        (".", UnsupportedModel, "where there is no file"),
    ],
)
def test_a_vendors_model_reads_no_file_but_those_beside_it(
    place: str, error: type[PericardError], reason: str, tmp_path: Path, unread: None
) -> None:
    path = apart(tmp_path, place)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "folder").symlink_to(tmp_path)

    with pytest.raises(error, match=reason):
        onnx_export.read(path)


@pytest.mark.parametrize(("key", "value"), [("offset", "4"), ("offset", "-4"), ("length", "4"), ("offset", "x")])
def test_a_tensor_lies_within_its_file(key: str, value: str, tmp_path: Path) -> None:
    path = apart(tmp_path, "weights")
    (path.parent / "weights").write_bytes((tmp_path / "secret").read_bytes())
    assert onnx_export.read(path).tensors
    model = onnx.ModelProto.FromString(path.read_bytes())
    next(item for item in model.graph.initializer if item.external_data).external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())

    with pytest.raises(UnsupportedModel, match="is not a valid ONNX model"):
        onnx_export.read(path)


@pytest.mark.parametrize("kind", ["If", "Loop", "RandomNormalLike"])
def test_a_vendors_operator_that_is_not_allowed_is_refused_before_it_runs(
    kind: str, tmp_path: Path, unread: None
) -> None:
    model = conv()
    model.graph.node.insert(0, helper.make_node(kind, ["ecg"], ["/x"]))

    with pytest.raises(ForbiddenGraph, match=f"names the operator '{kind}'"):
        converted(tmp_path, model)


def vendors(change: Change, tmp_path: Path) -> Path:
    """A vendor's model with something changed."""
    model = conv()
    change(model)
    (tmp_path / "it.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "it.onnx"


def sparse_weights(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def text_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="words", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    )


def text_constant(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["words"], value_string="x"))


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.BFLOAT16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sparse_weights, "holds sparse tensors"),
        (text_weights, "the tensor 'words' is of element type 8"),
        (text_constant, "holds a constant that is not a plain tensor"),
        (unknown_type, "the tensor 'conv.weight' is of element type 16"),
    ],
)
def test_a_vendors_tensor_of_another_kind_is_refused(change: Change, reason: str, tmp_path: Path, unread: None) -> None:
    with pytest.raises(ForbiddenGraph, match=reason):
        onnx_export.read(vendors(change, tmp_path))


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def cut_short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"1234"


def no_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


@pytest.mark.parametrize("change", [dangling, cut_short, no_output])
def test_a_vendors_model_that_is_not_valid_is_refused_with_advice(change: Change, tmp_path: Path, unread: None) -> None:
    with pytest.raises(UnsupportedModel, match="is not a valid ONNX model: ") as caught:
        onnx_export.read(vendors(change, tmp_path))
    assert "onnx.checker.check_model" in (caught.value.hint or "")


def test_any_byte_of_a_vendors_model_may_be_wrong_and_only_our_own_errors_come(tmp_path: Path, unread: None) -> None:
    data = conv().SerializeToString()
    generator = np.random.default_rng(13)
    for _ in range(1500):
        changed = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            changed[place] = generator.integers(0, 256)
        (tmp_path / "it.onnx").write_bytes(changed)
        with contextlib.suppress(PericardError):
            onnx_export.read(tmp_path / "it.onnx")


# --- what would end the process


def one_node(path: Path, node: onnx.NodeProto, kind: int, *initializers: TensorProto, functions: Any = ()) -> Path:
    values = [helper.make_tensor_value_info(name, kind, ["n", 4]) for name in "xyo"]
    made = helper.make_graph([node], "g", values[:2], values[2:], list(initializers))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8, functions=list(functions))
    place = path / "model.onnx"
    onnx.save(model, str(place))
    return place


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("divisor", [None, 0, -1])
def test_integers_are_divided_by_safe_constants_alone(operator: str, divisor: int | None, tmp_path: Path) -> None:
    held = () if divisor is None else (numpy_helper.from_array(np.array([3, divisor]), "d"),)
    node = helper.make_node(operator, ["x", "d" if held else "y"], ["o"])

    with pytest.raises(ForbiddenGraph, match="divides integers"):
        onnx_export.read(one_node(tmp_path, node, TensorProto.INT64, *held))


def test_integers_may_be_divided_by_a_constant_and_floats_by_anything(tmp_path: Path) -> None:
    safe = numpy_helper.from_array(np.array([3]), "d")
    onnx_export.read(one_node(tmp_path, helper.make_node("Div", ["x", "d"], ["o"]), TensorProto.INT64, safe))
    onnx_export.read(one_node(tmp_path, helper.make_node("Div", ["x", "y"], ["o"]), TensorProto.FLOAT))


@pytest.mark.parametrize("inputs", [["x", ""], ["", "x"]])
@pytest.mark.parametrize("operator", ["Max", "Add"])
def test_an_input_that_is_needed_cannot_be_left_out(operator: str, inputs: list[str], tmp_path: Path) -> None:
    with pytest.raises(ForbiddenGraph, match="leaves out"):
        onnx_export.read(one_node(tmp_path, helper.make_node(operator, inputs, ["o"]), TensorProto.FLOAT))


def local(name: str, *calls: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    return helper.make_function("l", name, ["a"], ["b"], list(calls), opsets)


def test_functions_that_expand_without_end_are_counted_first(tmp_path: Path) -> None:
    def twice(name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node(name, ["a"], ["t"], domain="l"),
            helper.make_node(name, ["t"], ["b"], domain="l"),
        ]

    functions = [local(f"F{depth}", *twice(f"F{depth + 1}")) for depth in range(40)]
    functions.append(local("F40", helper.make_node("Relu", ["a"], ["b"])))
    call = helper.make_node("F0", ["x"], ["o"], domain="l")

    with pytest.raises(ModelTooLarge, match="expand to more"):
        onnx_export.read(one_node(tmp_path, call, TensorProto.FLOAT, functions=functions))

    itself = local("F0", helper.make_node("F0", ["a"], ["b"], domain="l"))
    with pytest.raises(UnsupportedModel, match="calls itself"):
        onnx_export.read(one_node(tmp_path, call, TensorProto.FLOAT, functions=[itself]))


def test_a_constant_that_makes_nothing_and_a_place_too_long_are_refused(tmp_path: Path) -> None:
    empty = helper.make_node("Constant", [], [], value=numpy_helper.from_array(np.zeros(1, np.float32)))
    with pytest.raises(UnsupportedModel, match="not a valid"):
        onnx_export.read(one_node(tmp_path, empty, TensorProto.FLOAT))

    far = TensorProto(name="d", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    far.external_data.add(key="location", value="a" * 300)
    with pytest.raises(PericardError):
        onnx_export.read(one_node(tmp_path, helper.make_node("Add", ["x", "d"], ["o"]), TensorProto.FLOAT, far))
