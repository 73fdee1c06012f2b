"""The graph of a sealed model of the kind ``onnx``, checked before ONNX Runtime reads it.

Rules of this room: what is not written down here is refused. A graph is one list of pure tensor operators of the
default domain, without subgraphs, functions, text or metadata; its weights are not in it, but named, and a name is all
that there is: no path. What the runtime gets is not the bytes that came but the checked message, written again, so that
no two readers can disagree about them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pericard.errors import ForbiddenGraph, UnsupportedModel
from pericard.runtime.backend import Array

if TYPE_CHECKING:
    import onnx

MAX_GRAPH = 64 << 20
MAX_INLINE = 1024  # bytes; what shapes are made of must lie in the graph, and weights must not
IR_VERSION = 10
OPSETS = range(13, 24)
FATAL = 4  # how severe a line of ONNX Runtime's log must be to be written
MAX_NODES = 200_000
_MAX_AXES = 16

_ELEMENTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Cos Cosh
Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log
Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign
Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor
"""
_REDUCTIONS = """
ArgMax ArgMin CumSum Hardmax LogSoftmax LpNormalization MeanVarianceNormalization ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK
"""
_LAYERS = """
AveragePool BatchNormalization Conv ConvInteger ConvTranspose DequantizeLinear Det Dropout DynamicQuantizeLinear Einsum
GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization InstanceNormalization LRN LSTM
LayerNormalization LpPool MatMul MatMulInteger MaxPool QLinearConv QLinearMatMul QuantizeLinear RNN
"""
_SHAPES = """
Cast CastLike CenterCropPad Col2Im Compress Concat Constant ConstantOfShape DFT DepthToSpace Expand EyeLike Flatten
Gather GatherElements GatherND HammingWindow HannWindow Identity NonZero OneHot Pad Range Reshape Resize ReverseSequence
STFT ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
"""

#: Operators of the default domain that a graph may call: they compute their outputs from their inputs alone. Left out
#: on purpose: control flow (``If``, ``Loop``, ``Scan``), whatever draws random numbers, sequences, optionals and text.
OPERATORS: frozenset[str] = frozenset(f"{_ELEMENTWISE} {_REDUCTIONS} {_LAYERS} {_SHAPES}".split())

#: Number of an element type in ONNX → numpy's name of it.
TYPES: dict[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
}  # fmt: skip

_NAME = re.compile(r"[a-z][0-9]{1,7}")
_WORD = re.compile(rb"[A-Za-z0-9_.,> -]{0,128}")  # an attribute's own word, or an equation
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "output_datatype"}
_EXTERNAL = 1
_FLOATS = {1, 10, 11}
#: Type of an attribute → the field that holds it.
_VALUES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
_PLAIN_HINT = "a sealed model is a graph of pure tensor operators; see docs/spec/sealed-model.md"


def check(data: bytes, tensors: Mapping[str, Array]) -> bytes:
    """Hold a graph against the allow-lists.

    Args:
        data: a serialised ``onnx.ModelProto``.
        tensors: the artifact's, by name; the graph must name exactly these.

    Returns:
        The same graph, written again: what ONNX Runtime may read.

    Raises:
        ForbiddenGraph: something in it is not allowed; the message names it.
        UnsupportedModel: ONNX is not installed, or a tensor is not there.
    """
    onnx = packages()[0]
    if len(data) > MAX_GRAPH:
        raise ForbiddenGraph(f"graph: holds {len(data)} bytes, allowed are {MAX_GRAPH}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own kinds of error
        raise ForbiddenGraph(f"graph: is not an ONNX model ({type(error).__name__})") from error
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        raise ForbiddenGraph("graph: carries fields that ONNX does not have")
    _fields(model, {"ir_version", "opset_import", "graph"}, "model")
    if model.ir_version != IR_VERSION:
        raise ForbiddenGraph(f"graph: has IR version {model.ir_version}, this runtime reads {IR_VERSION}")
    version = _opset(model)
    _graph(model.graph, version, tensors)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def packages() -> tuple[Any, Any]:
    """``onnx`` and ``onnxruntime``, imported when the first model of this kind comes.

    ONNX Runtime's own builds report every session to their maker: from the import on they keep a database below the
    home folder and send it. That is switched off before the import, since nothing later stops the database.

    Raises:
        UnsupportedModel: they are not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnx  # noqa: PLC0415  (an extra: most sites have no such model)
        import onnxruntime  # noqa: PLC0415  (the same)
    except ImportError as error:
        raise UnsupportedModel(
            f"model: is of the kind onnx, and {error.name or 'its runtime'} is not installed here",
            hint="conda install onnx onnxruntime, or pip install 'pericard-server[onnx]'",
        ) from error
    onnxruntime.disable_telemetry_events()  # for whoever imported it before us
    return onnx, onnxruntime


def _opset(model: onnx.ModelProto) -> int:
    versions = list(model.opset_import)
    for item in versions:
        _fields(item, {"domain", "version"}, "operator set")
    if len(versions) != 1 or versions[0].domain or versions[0].version not in OPSETS:
        found = ", ".join(f"{item.domain[:40] or 'ai.onnx'} {item.version}" for item in versions)
        raise ForbiddenGraph(
            f"graph: needs the operator sets {found or 'none'}; allowed is ai.onnx {OPSETS[0]} to {OPSETS[-1]} alone",
            hint="export it with opset_version=17",
        )
    return int(versions[0].version)


def _graph(graph: onnx.GraphProto, version: int, tensors: Mapping[str, Array]) -> None:
    _fields(graph, {"node", "name", "initializer", "input", "output"}, "graph")
    if graph.name != "g":
        raise ForbiddenGraph("graph: has a name of its own")
    if len(graph.node) > MAX_NODES:
        raise ForbiddenGraph(f"graph: has {len(graph.node)} nodes, allowed are {MAX_NODES}")
    if not graph.input or not graph.output:
        raise ForbiddenGraph("graph: has no input or no output")
    known: set[str] = set()
    kinds = _Kinds(graph, version, tensors)
    for value in graph.input:
        _define(value.name, known)
        _value(value, shaped=True)
    for tensor in graph.initializer:
        _define(tensor.name, known)
    external = {tensor.name for tensor in graph.initializer if _initializer(tensor, tensors)}
    if external != tensors.keys():
        raise ForbiddenGraph(
            f"graph: does not name the tensor {min(tensors.keys() - external)!r}, which the model holds"
        )
    for node in graph.node:
        _node(node, version)
        _flow(node, known)
        kinds.check(node)
    for value in graph.output:
        if value.name not in known:
            raise ForbiddenGraph(f"graph: gives {value.name[:80]!r}, which nothing makes")
        _value(value, shaped=False)


def _flow(node: onnx.NodeProto, known: set[str]) -> None:
    """What a node takes was made before it, and what it makes is new; an empty name is one that is left out."""
    for name in filter(None, node.input):
        if name not in known:
            raise ForbiddenGraph(f"graph: {node.op_type} uses {name[:80]!r} before anything made it")
    for name in filter(None, node.output):
        _define(name, known)


class _Kinds:
    """Element types through a graph, as far as divisions need them.

    Where the smallest integer is divided by -1, or any by nought, the processor faults and the process ends. So
    integers are divided by constants alone; what may be an integer counts as one.
    """

    def __init__(self, graph: onnx.GraphProto, version: int, tensors: Mapping[str, Array]) -> None:
        self._version = version
        self._tensors = tensors
        self._inline = {tensor.name: tensor for tensor in graph.initializer}
        self._found = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._found |= {value.name: value.type.tensor_type.elem_type for value in graph.input}

    def check(self, node: onnx.NodeProto) -> None:
        """Refuse a division that could end the process, and note what the node makes."""
        divides = node.op_type in {"Div", "Mod"}
        if divides and self._found.get(node.input[0]) not in _FLOATS and not self._safe(node.input[1]):
            raise ForbiddenGraph(
                f"graph: {node.op_type} divides integers by what is not a constant other than 0 and -1",
                hint="divide in floating point, or by a constant",
            )
        schema = packages()[0].defs.get_schema(node.op_type, self._version, "")
        bound = {
            schema.inputs[min(place, len(schema.inputs) - 1)].type_str: self._found.get(name)
            for place, name in reversed(list(enumerate(node.input)))
            if name
        }
        said = {attribute.name: attribute for attribute in node.attribute}
        for place, name in enumerate(node.output):
            word = schema.outputs[min(place, len(schema.outputs) - 1)].type_str
            kind = _made(node.op_type, said) or bound.get(word)
            if name and kind is not None:
                self._found[name] = kind

    def _safe(self, name: str) -> bool:
        tensor = self._inline.get(name)
        if tensor is None:
            return False
        values = self._tensors[name] if name in self._tensors else _values(tensor)
        return not bool(np.isin(values, (0, -1)).any())


def _made(operator: str, said: Mapping[str, onnx.AttributeProto]) -> int | None:
    """The element type that an operator's own attribute gives, if one does."""
    if operator == "ConstantOfShape":
        return int(said["value"].t.data_type) if "value" in said else 1
    if operator == "Constant":
        return int(said["value"].t.data_type) if "value" in said else None
    named = said.keys() & _TYPE_ATTRIBUTES
    return int(said[min(named)].i) or None if named else None


def _values(tensor: onnx.TensorProto) -> Array:
    array: Array = np.frombuffer(tensor.raw_data, TYPES[tensor.data_type])
    return array


def _define(name: str, known: set[str]) -> None:
    if not _is_name(name) or name in known:
        raise ForbiddenGraph(f"graph: has the bad name {name[:80]!r}, or has it twice")
    known.add(name)


def _is_name(name: str | bytes) -> bool:
    """Protobuf gives text that is not UTF-8 as bytes."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _value(value: onnx.ValueInfoProto, *, shaped: bool) -> None:
    """An input, with its shape, or an output, whose shape the runtime finds."""
    _fields(value, {"name", "type"}, "value")
    _fields(value.type, {"tensor_type"}, "type")
    tensor = value.type.tensor_type
    _fields(tensor, {"elem_type", "shape"} if shaped else {"elem_type"}, "tensor type")
    _element_type(tensor.elem_type, f"value {value.name}")
    if not shaped:
        return
    _fields(tensor.shape, {"dim"}, "shape")
    if not 1 <= len(tensor.shape.dim) <= _MAX_AXES:
        raise ForbiddenGraph(f"graph: input {value.name} has {len(tensor.shape.dim)} axes")
    for dim in tensor.shape.dim:
        kind = dim.WhichOneof("value")
        _fields(dim, {kind} if kind else set(), "axis")
        if kind == "dim_param" and not _is_name(dim.dim_param):
            raise ForbiddenGraph(f"graph: has the bad axis {dim.dim_param[:80]!r}")
        if kind == "dim_value" and dim.dim_value < 1:
            raise ForbiddenGraph("graph: has an axis of less than one")


def _initializer(tensor: onnx.TensorProto, tensors: Mapping[str, Array]) -> bool:
    """Check one; returns whether its bytes are in the artifact and not in the graph."""
    if tensor.data_location != _EXTERNAL:
        _inline(tensor, tensor.name)
        return False
    _fields(tensor, {"dims", "data_type", "name", "external_data", "data_location"}, "tensor")
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    for entry in tensor.external_data:
        _fields(entry, {"key", "value"}, "external data")
    if entries != [("location", tensor.name)]:
        raise ForbiddenGraph(
            f"graph: the tensor {tensor.name} lies at {str(entries)[:120]}, and not under its own name",
            hint="the weights of a sealed model are in it, and nowhere else",
        )
    held = tensors.get(tensor.name)
    if held is None:
        raise UnsupportedModel(f"graph: needs the tensor {tensor.name!r}, which the model does not hold")
    if held.dtype != _element_type(tensor.data_type, f"tensor {tensor.name}") or held.shape != tuple(tensor.dims):
        raise ForbiddenGraph(
            f"graph: takes the tensor {tensor.name} for {list(tensor.dims)}, it is {held.dtype}{list(held.shape)}"
        )
    if held.size == 0:
        raise ForbiddenGraph(f"graph: the tensor {tensor.name} is empty, and not in the graph")
    return True


def _inline(tensor: onnx.TensorProto, subject: str) -> None:
    _fields(tensor, {"dims", "data_type", "name", "raw_data"}, f"tensor {subject}")
    dtype = np.dtype(_element_type(tensor.data_type, f"tensor {subject}"))
    if len(tensor.dims) > _MAX_AXES or any(size < 0 for size in tensor.dims):
        raise ForbiddenGraph(f"graph: the tensor {subject} has a bad shape")
    size = math.prod(tensor.dims) * dtype.itemsize
    if size > MAX_INLINE or len(tensor.raw_data) != size:
        raise ForbiddenGraph(
            f"graph: the tensor {subject} holds {len(tensor.raw_data)} bytes in the graph, for a shape of {size}; "
            f"allowed are {MAX_INLINE}"
        )


def _node(node: onnx.NodeProto, version: int) -> None:
    onnx = packages()[0]
    if node.domain or node.op_type not in OPERATORS:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise ForbiddenGraph(f"graph: names the operator {name[:120]!r}, which is not allowed", hint=_PLAIN_HINT)
    _fields(node, {"input", "output", "op_type", "attribute"}, f"node {node.op_type}")
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError as error:
        raise ForbiddenGraph(f"graph: {node.op_type} is not in operator set {version}") from error
    counts = schema.min_input <= len(node.input) <= schema.max_input
    if schema.deprecated or not counts or not schema.min_output <= len(node.output) <= schema.max_output:
        raise ForbiddenGraph(f"graph: {node.op_type} has more or fewer inputs or outputs than it takes")
    for place, name in enumerate(node.input):
        if not name and schema.inputs[min(place, len(schema.inputs) - 1)].option != optional:
            raise ForbiddenGraph(f"graph: {node.op_type} leaves out an input that it needs")
    seen: set[str] = set()
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None or attribute.type != known.type.value or attribute.name in seen:
            raise ForbiddenGraph(
                f"graph: {node.op_type} has the attribute {attribute.name[:80]!r}, which it does not take"
            )
        seen.add(attribute.name)
        _attribute(attribute, node.op_type)
    if node.op_type == "Dropout" and len(node.input) > 2:  # noqa: PLR2004  (data, ratio, training_mode)
        raise ForbiddenGraph("graph: Dropout has training_mode", hint="export the model in evaluation mode")


def _attribute(attribute: onnx.AttributeProto, operator: str) -> None:
    subject = f"{operator}.{attribute.name}"
    field = _VALUES.get(attribute.type)
    if field is None:
        raise ForbiddenGraph(
            f"graph: {subject} is of a kind that is not allowed: no subgraphs, types or sparse tensors"
        )
    _fields(attribute, {"name", "type", field}, f"attribute {subject}")
    if field == "t":
        _inline(attribute.t, subject)
    elif field in {"s", "strings"}:
        words: Iterable[bytes] = [attribute.s] if field == "s" else attribute.strings
        if not all(_WORD.fullmatch(word) for word in words):
            raise ForbiddenGraph(f"graph: {subject} carries text that is not a word of its operator")
    if attribute.name in _TYPE_ATTRIBUTES and field == "i" and attribute.i:
        _element_type(attribute.i, subject)
    if attribute.name == "training_mode" and attribute.i != 0:
        raise ForbiddenGraph(f"graph: {operator} has training_mode", hint="export the model in evaluation mode")


def _element_type(number: int, subject: str) -> str:
    if number not in TYPES:
        raise ForbiddenGraph(f"graph: {subject} is of element type {number}, which is not served (8 is text)")
    return TYPES[number]


def _fields(message: Any, allowed: set[str], subject: str) -> None:  # noqa: ANN401  (any of protobuf's messages)
    odd = sorted({field.name for field, _ in message.ListFields()} - allowed)
    if odd:
        raise ForbiddenGraph(f"graph: the {subject} carries {odd[0]!r}, which is not allowed")
