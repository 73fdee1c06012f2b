"""The vendor's side of the kind ``onnx``: from a ``.onnx`` to a graph without weights, and the weights.

Names, texts and everything else that the runtime needs not is left behind. The weights may lie in files beside the
model; a path that leads anywhere else is refused before it is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pericard.errors import ForbiddenGraph, ModelTooLarge, PericardError, UnsupportedModel
from pericard.runtime import onnx_graph
from pericard.runtime.backend import Array

MAX_FILE = (1 << 31) - 1  # of protobuf
_KEPT_INLINE = 64  # bytes, of any type; and up to the graph's own limit, of what shapes are made of
_EXTERNAL = 1
_SHAPES = {"int32", "int64", "bool"}
_DEFAULT_DOMAINS = {"", "ai.onnx"}
_CHECK_HINT = "check it with onnx.checker.check_model(path, full_check=True)"


@dataclass(frozen=True)
class Converted:
    """A ``.onnx`` in the form in which it is sealed.

    Attributes:
        graph: the serialised graph, which names its weights.
        tensors: the weights.
    """

    graph: bytes
    tensors: dict[str, Array]


def read(path: Path) -> Converted:
    """Read a ``.onnx`` with its weights, in it or beside it, and normalise it.

    Raises:
        UnsupportedModel: it cannot be read, or ONNX is not installed here.
        ForbiddenGraph: it is not a graph of allowed operators, or names a path that leads elsewhere.
        ModelTooLarge: it passes a limit.
    """
    onnx = onnx_graph.packages()[0]
    if not path.is_file():
        raise UnsupportedModel(f"{path}: there is no such file")
    if path.stat().st_size > MAX_FILE:
        raise ModelTooLarge(f"{path}: holds more than {MAX_FILE} bytes", hint="keep its weights in a file beside it")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
        if model.functions:
            _check_expansion(model, path)
            import onnx.inliner  # noqa: PLC0415  (an extra, as the package itself)

            model = onnx.inliner.inline_local_functions(model)
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    except PericardError:
        raise
    except Exception as error:  # protobuf's and onnx's own kinds of error
        raise UnsupportedModel(
            f"{path}: cannot be read as an ONNX model ({type(error).__name__})", hint=_CHECK_HINT
        ) from error
    if not model.graph.node:
        raise UnsupportedModel(f"{path}: cannot be read as an ONNX model (it has no nodes)", hint=_CHECK_HINT)
    try:
        converted = _Conversion(onnx, model, path).result()
    except MemoryError as error:
        raise ModelTooLarge(f"{path}: its tensors do not fit into this machine's memory") from error
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, OSError) as error:
        raise UnsupportedModel(f"{path}: is not a valid ONNX model: {error}", hint=_CHECK_HINT) from error
    onnx_graph.check(converted.graph, converted.tensors)
    return converted


def original(path: Path) -> Callable[[tuple[Array, ...]], tuple[Array, ...]]:
    """The vendor's own file as ONNX Runtime runs it; its paths were checked by :func:`read`."""
    runtime = onnx_graph.packages()[1]
    options = runtime.SessionOptions()
    options.log_severity_level = onnx_graph.FATAL
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise UnsupportedModel(
            f"{path}: ONNX Runtime cannot run it ({type(error).__name__})", hint=_CHECK_HINT
        ) from error
    names = [value.name for value in session.get_inputs()]

    def infer(inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        try:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))
        except Exception as error:  # the same, or another number of inputs
            raise UnsupportedModel(
                f"{path}: cannot be called with its inputs in order ({type(error).__name__})",
                hint="the description names the inputs of the model in its order, with their types and shapes",
            ) from error

    return infer


def _check_expansion(model: Any, path: Path) -> None:  # noqa: ANN401  (protobuf's message)
    """Count what the model's local functions become once each call is replaced by its body, before that is done.

    Raises:
        ModelTooLarge: more nodes than a graph may have.
        UnsupportedModel: a function calls itself, or functions are nested too deep.
    """
    functions = {(function.domain, function.name): function.node for function in model.functions}
    counts: dict[tuple[str, str], int | None] = {}

    def count(nodes: Any) -> int:  # noqa: ANN401  (the same)
        total = 0
        for node in nodes:
            called = (node.domain, node.op_type)
            total += body(called) if called in functions else 1
            for attribute in node.attribute:
                total += sum(count(graph.node) for graph in (attribute.g, *attribute.graphs))
            if total > onnx_graph.MAX_NODES:
                raise ModelTooLarge(f"{path}: its functions expand to more than {onnx_graph.MAX_NODES} nodes")
        return total

    def body(called: tuple[str, str]) -> int:
        if called not in counts:
            counts[called] = None
            counts[called] = count(functions[called])
        found = counts[called]
        if found is None:
            raise UnsupportedModel(f"{path}: its function {called[1][:80]!r} calls itself", hint=_CHECK_HINT)
        return found

    try:
        for called in functions:
            body(called)
        count(model.graph.node)
    except RecursionError as error:
        raise UnsupportedModel(f"{path}: its functions are nested too deep", hint=_CHECK_HINT) from error


class _Conversion:
    """One model on its way; every value gets a name that says nothing."""

    def __init__(self, onnx: Any, model: Any, path: Path) -> None:  # noqa: ANN401  (protobuf's messages)
        self._onnx = onnx
        self._model = model
        self._path = path
        self._names: dict[str, str] = {}
        self._constants: dict[str, Array] = {}
        self._tensors: dict[str, Array] = {}
        self._nodes: list[Any] = []

    def result(self) -> Converted:
        onnx, graph = self._onnx, self._model.graph
        for tensor in graph.initializer:
            self._constants[tensor.name] = self._values(tensor)
        if graph.sparse_initializer:
            raise ForbiddenGraph(f"{self._path}: holds sparse tensors, which are not served")
        inputs = [value for value in graph.input if value.name not in self._constants]
        for number, value in enumerate(inputs):
            self._names[value.name] = f"i{number}"
        for node in graph.node:
            self._node(node)
        for value in graph.output:
            self._use(value.name)
        made = onnx.ModelProto(ir_version=onnx_graph.IR_VERSION)
        made.opset_import.add(domain="", version=self._version())
        made.graph.name = "g"
        made.graph.node.extend(self._nodes)
        made.graph.input.extend(self._input(value) for value in inputs)
        made.graph.output.extend(self._output(value) for value in graph.output)
        made.graph.initializer.extend(self._initializers())
        return Converted(made.SerializeToString(deterministic=True), self._tensors)

    def _version(self) -> int:
        """Of the default domain; other domains may be imported as long as no node is of them."""
        found = [item.version for item in self._model.opset_import if item.domain in _DEFAULT_DOMAINS]
        return int(found[0]) if len(found) == 1 else 0

    def _node(self, node: Any) -> None:  # noqa: ANN401  (protobuf's message)
        if node.op_type == "Constant" and node.domain in _DEFAULT_DOMAINS:
            self._constants[node.output[0]] = self._constant(node)
            return
        made = self._onnx.NodeProto(op_type=node.op_type)
        if node.domain not in _DEFAULT_DOMAINS:
            made.domain = node.domain  # it will be refused by its name
        made.input.extend(self._use(name) for name in node.input)
        for name in node.output:
            if name and name not in self._names:
                self._names[name] = f"v{len(self._names)}"
            made.output.append(self._names[name] if name else "")
        for attribute in node.attribute:
            copied = made.attribute.add()
            copied.CopyFrom(attribute)
            copied.ClearField("doc_string")
            if attribute.type == self._onnx.AttributeProto.TENSOR:
                copied.t.CopyFrom(_inline(self._onnx, "", self._values(attribute.t)))
        self._nodes.append(made)

    def _use(self, name: str) -> str:
        """The new name of a value; a constant gets one when it is first used."""
        if not name:
            return ""
        if name in self._constants and name not in self._names:
            self._names[name] = f"t{len(self._names)}"
        if name not in self._names:
            raise ValueError(f"{name[:80]!r} is used before anything made it")
        return self._names[name]

    def _initializers(self) -> Iterator[Any]:
        for name, value in self._constants.items():
            if name not in self._names:
                continue
            renamed = self._names[name]
            small = value.nbytes <= _KEPT_INLINE
            if small or (value.dtype.name in _SHAPES and value.nbytes <= onnx_graph.MAX_INLINE):
                yield _inline(self._onnx, renamed, value)
                continue
            self._tensors[renamed] = value
            tensor = self._onnx.TensorProto(name=renamed, data_type=_number(value), dims=value.shape)
            tensor.data_location = _EXTERNAL
            tensor.external_data.add(key="location", value=renamed)
            yield tensor

    def _input(self, value: Any) -> Any:  # noqa: ANN401  (protobuf's message)
        """An input with its shape; an axis without a size keeps none."""
        made = self._onnx.ValueInfoProto(name=self._names[value.name])
        made.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        for number, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value > 0:
                made.type.tensor_type.shape.dim.add(dim_value=dim.dim_value)
            else:
                made.type.tensor_type.shape.dim.add(dim_param=f"n{number}")
        return made

    def _output(self, value: Any) -> Any:  # noqa: ANN401  (protobuf's message)
        made = self._onnx.ValueInfoProto(name=self._names[value.name])
        made.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        return made

    def _constant(self, node: Any) -> Array:  # noqa: ANN401  (protobuf's message)
        for attribute in node.attribute:
            if attribute.name == "value":
                return self._values(attribute.t)
            if attribute.name in {"value_float", "value_floats"}:
                values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                return np.asarray(values, np.float32)
            if attribute.name in {"value_int", "value_ints"}:
                values = attribute.i if attribute.name == "value_int" else list(attribute.ints)
                return np.asarray(values, np.int64)
        raise ForbiddenGraph(f"{self._path}: holds a constant that is not a plain tensor, which is not served")

    def _values(self, tensor: Any) -> Array:  # noqa: ANN401  (protobuf's message)
        """A tensor's values, from the model or from a file beside it."""
        if tensor.data_type not in onnx_graph.TYPES:
            raise ForbiddenGraph(
                f"{self._path}: the tensor {tensor.name[:80]!r} is of element type {tensor.data_type}, which is not "
                "served (8 is text)"
            )
        if tensor.data_location == _EXTERNAL:
            return self._external(tensor)
        array: Array = np.ascontiguousarray(self._onnx.numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
        return array

    def _external(self, tensor: Any) -> Array:  # noqa: ANN401  (protobuf's message)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = beside(self._path, entries.get("location", ""), tensor.name)
        dtype = np.dtype(onnx_graph.TYPES[tensor.data_type])
        count = math.prod(tensor.dims)
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", count * dtype.itemsize))
        if offset < 0 or length != count * dtype.itemsize or offset + length > place.stat().st_size:
            raise ValueError(f"the tensor {tensor.name[:80]!r} does not lie within {place.name}")
        array: Array = np.fromfile(place, dtype, count, offset=offset).reshape(tuple(tensor.dims))
        return array


def beside(path: Path, location: str, name: str) -> Path:
    """The file that holds a tensor's values: beside the model or below its folder, links followed.

    Raises:
        ForbiddenGraph: it is anywhere else.
        UnsupportedModel: it is not there.
    """
    subject = f"{path}: the tensor {name[:80]!r} lies at {location[:200]!r}"
    folder = path.parent.resolve()
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts or "\\" in location or "\0" in location:
        raise ForbiddenGraph(f"{subject}, which leads away from the model", hint="keep its files beside it")
    place = (folder / location).resolve()
    if not place.is_relative_to(folder):
        raise ForbiddenGraph(
            f"{subject}, which is a link that leads away from the model", hint="keep its files beside it"
        )
    if not place.is_file():
        raise UnsupportedModel(f"{subject}, where there is no file", hint="keep its files beside it")
    return place


def _inline(onnx: Any, name: str, value: Array) -> Any:  # noqa: ANN401  (protobuf's messages)
    return onnx.TensorProto(name=name, data_type=_number(value), dims=value.shape, raw_data=value.tobytes())


def _number(value: Array) -> int:
    return next(number for number, name in onnx_graph.TYPES.items() if name == value.dtype.name)
