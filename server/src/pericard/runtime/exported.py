"""The ``exported`` kind: a torch.export graph and a table of tensors, attached without a copy.

The graph is called flat, weights first, in the order of its signature: no module tree, no pytrees, none of torch's own
guards. What kernels take on trust is held against the actual arguments at every call (``guards``), or once for a shape
at which it cannot depend on anything else (``straight``). Which path a shape takes is settled when a model is loaded,
by its graph and never by a clock; see ``paths``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch._export.serde import schema
from torch._export.serde.serialize import (
    _SERIALIZE_TO_TORCH_DTYPE,
    ExportedProgramDeserializer,
    _bytes_to_dataclass,
)
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.export.passes import move_to_device_pass

from pericard.errors import BackendFailed, UnsupportedModel
from pericard.runtime import folded, guards
from pericard.runtime import graph as graphs
from pericard.runtime.backend import Array
from pericard.runtime.straight import Straight, straighten
from pericard.sealed import Tensor
from pericard.tensors import TensorSpec

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
} | {"bool": torch.bool}

# torch's reader warns about symbols that the graph does not use; that is not news to an operator
logging.getLogger("torch._export.serde.serialize").setLevel(logging.ERROR)


def dtype_of(tensor: Tensor) -> torch.dtype:
    """The type of an artifact's tensor."""
    return _DTYPES[tensor.dtype]


def view_tensor(tensor: Tensor, buffer: memoryview) -> torch.Tensor:
    """A tensor over the artifact's bytes, without a copy; the buffer must outlive it."""
    dtype = dtype_of(tensor)
    if tensor.size == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(buffer, dtype=dtype, count=tensor.size // dtype.itemsize, offset=tensor.offset)
    return flat.reshape(tensor.shape)


#: What tells one batch from another for a path: each input's type and shape, and how many threads an operator may use.
_Shape = tuple[object, ...]


@dataclass
class _Form:
    """A graph with its weights: without guards, behind them, and straight for the shapes at which that was proved."""

    plain: torch.fx.GraphModule
    arguments: list[torch.Tensor | None]
    guarded: torch.fx.GraphModule = field(init=False)
    straight: dict[_Shape, Straight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.guarded = folded.copied(self.plain)
        guards.install(self.guarded)
        self.slots = [place for place, value in enumerate(self.arguments) if value is None]

    def filled(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The arguments of one call."""
        given = list(self.arguments)
        for place, value in zip(self.slots, inputs, strict=True):
            given[place] = value
        return given  # type: ignore[return-value]  # every None has its input now


class ExportedBackend:
    """Runs an exported graph on one device."""

    def __init__(
        self,
        graph: bytes,
        tensors: Mapping[str, torch.Tensor],
        *,
        device: str,
        inputs: tuple[TensorSpec, ...] | None = None,
    ) -> None:
        """Check the graph, build it around the tensors, and move it to the device.

        Args:
            graph: the graph's JSON.
            tensors: parameters, buffers and constants by qualified name; kept, not copied, on the CPU.
            device: ``cpu`` or ``cuda:N``.
            inputs: what the model is described to take; the graph must take the same.

        Raises:
            ForbiddenGraph: the graph is not on the allow-lists.
            UnsupportedModel: torch cannot build it, or a tensor is missing or is not what the graph says it is.
        """
        graphs.check(graph)
        self.device = device
        try:
            serialised = _bytes_to_dataclass(schema.ExportedProgram, graph)
            _compare(serialised, tensors, inputs)
            program = build(serialised, tensors)
            if device != "cpu":
                program = move_to_device_pass(program, device)
            held: dict[str, torch.Tensor] = {**program.constants, **program.state_dict}
            self._arguments: list[torch.Tensor | None] = [
                None if spec.kind is InputKind.USER_INPUT else held[str(spec.target)].detach()
                for spec in program.graph_signature.input_specs
            ]
            self._form = _Form(program.graph_module, self._arguments)
            self._folded: folded.Folded | None = None
            self._fast = self._form  # the one that shapes were settled for; others take the graph behind its guards
        except UnsupportedModel:
            raise
        except KeyError as error:
            raise UnsupportedModel(f"graph: needs the tensor {error}, which the model does not hold") from error
        except Exception as error:  # torch's reader raises whatever it meets
            raise UnsupportedModel(f"graph: this torch cannot build it ({type(error).__name__})") from error

    def settle(self, batches: Sequence[tuple[Array, ...]]) -> dict[int, str]:
        """Find the straight path for these batches, on the CPU; what cannot be proved keeps its guards.

        Args:
            batches: one batch for each size that will be asked.

        Returns:
            By size, why it keeps them; empty where none does.
        """
        kept: dict[int, str] = {}
        for batch in batches if self.device == "cpu" else ():
            inputs = [torch.from_numpy(value) for value in batch]
            try:
                form = self._fast
                form.straight[_shape(batch)] = straighten(form.plain, form.guarded, form.filled(inputs))
            except BackendFailed as error:
                kept[len(batch[0])] = error.message
        return kept

    def fold(self, private: folded.Private) -> bool:
        """Compute with folded convolutions from now on, at the shapes that are settled next; whether there are any."""
        self.unfold()
        if self.device != "cpu":
            return False
        self._folded = folded.fold(self._form.plain, self._arguments, private)
        if self._folded is not None:
            self._fast = _Form(self._folded.module, self._folded.arguments)
        return self._folded is not None

    def unfold(self) -> None:
        """Go back to the graph as it was signed, and zero what was folded."""
        self._fast = self._form
        if self._folded is not None:
            self._folded.memory.close()
            self._folded = None

    def infer(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Answer one batch; see ``Backend``."""
        if len(inputs) != len(self._form.slots):
            raise BackendFailed(f"model: takes {len(self._form.slots)} inputs, got {len(inputs)}")
        try:
            straight = self._fast.straight.get(_shape(inputs))
            given = [torch.from_numpy(value) for value in inputs]
            if straight is not None:
                return tuple(_to_numpy(output) for output in straight(self._fast.filled(given)))
            with torch.inference_mode():
                if self.device != "cpu":
                    given = [value.to(self.device) for value in given]
                return tuple(_to_numpy(output) for output in self._form.guarded(*self._form.filled(given)))
        except BackendFailed:  # a guard's own
            raise
        except Exception as error:  # a failed kernel must cost its batch, not the engine
            raise BackendFailed(f"model: the computation failed ({type(error).__name__})") from error

    def close(self) -> None:
        """Drop the weights."""
        self.unfold()
        self._arguments.clear()
        self._form = self._fast = _Form(torch.fx.GraphModule({}, _nothing()), self._arguments)


def build(serialised: schema.ExportedProgram, tensors: Mapping[str, torch.Tensor]) -> ExportedProgram:
    """The program of a checked graph, around its tensors, which are kept and not copied.

    Torch wants its state (parameters, wrapped in its own type, and saved buffers) apart from everything else.

    Raises:
        KeyError: a tensor that the graph names is missing. Whatever else torch's reader meets, it raises as it is.
    """
    state: dict[str, torch.Tensor] = {}
    for spec in serialised.graph_module.signature.input_specs:
        if spec.type == "parameter":
            name = spec.parameter.parameter_name
            state[name] = torch.nn.Parameter(tensors[name], requires_grad=False)
        elif spec.type == "buffer" and spec.buffer.persistent:
            state[spec.buffer.buffer_name] = tensors[spec.buffer.buffer_name]
    constants = {name: tensor for name, tensor in tensors.items() if name not in state}
    return ExportedProgramDeserializer().deserialize(serialised, state, constants)


def _compare(
    serialised: schema.ExportedProgram, tensors: Mapping[str, torch.Tensor], inputs: tuple[TensorSpec, ...] | None
) -> None:
    """Hold what the graph says of its tensors against the tensors themselves, and against the described inputs.

    Raises:
        UnsupportedModel: they differ.
        KeyError: a tensor is missing.
    """
    values = serialised.graph_module.graph.tensor_values
    taken: list[schema.TensorMeta] = []
    for spec in serialised.graph_module.signature.input_specs:
        if spec.type == "user_input":
            taken.append(values[spec.user_input.arg.as_tensor.name])
            continue
        held = getattr(spec, spec.type)
        name: str = getattr(held, f"{spec.type}_name")
        said, tensor = values[held.arg.name], tensors[name]
        if not _same(said, tensor.dtype, tuple(tensor.shape)):
            raise UnsupportedModel(
                f"graph: the tensor {name!r} is {str(tensor.dtype)[6:]}{list(tensor.shape)}, which is not what it says"
            )
    if inputs is None:
        return
    if len(inputs) != len(taken):
        raise UnsupportedModel(f"graph: takes {len(taken)} inputs, the description names {len(inputs)}")
    for wanted, said in zip(inputs, taken, strict=True):
        rows = said.sizes[0].as_int if said.sizes and said.sizes[0].type == "as_int" else 1  # any number, or its own
        if not _same(said, _DTYPES.get(wanted.dtype), (rows, *wanted.row_shape)):
            raise UnsupportedModel(
                f"graph: its input {wanted.name!r} is not {wanted.dtype}{list(wanted.shape)}, as the description says"
            )


def _same(said: schema.TensorMeta, dtype: torch.dtype | None, shape: tuple[int, ...]) -> bool:
    """Whether a graph's own word of a tensor is right; a symbolic axis stands for any size."""
    return (
        _SERIALIZE_TO_TORCH_DTYPE[said.dtype] == dtype
        and len(said.sizes) == len(shape)
        and all(item.type != "as_int" or item.as_int == size for item, size in zip(said.sizes, shape, strict=True))
    )


def _shape(inputs: Sequence[Array]) -> _Shape:
    """The key of a batch's path; an array that is laid out in another way has none."""
    return (
        torch.get_num_threads(),
        *((value.dtype, value.shape) if value.flags.c_contiguous else None for value in inputs),
    )


def _nothing() -> torch.fx.Graph:
    graph = torch.fx.Graph()
    graph.output(())
    return graph


def _to_numpy(output: torch.Tensor) -> Array:
    array: Array = np.ascontiguousarray(output.detach().cpu().numpy())
    return array


def set_threads(count: int) -> None:
    """Fix how many threads one operator may use; part of what makes an answer repeatable."""
    torch.set_num_threads(count)


def pick_device(wanted: str) -> str:
    """``auto`` becomes the first CUDA device if there is one, else the CPU.

    Raises:
        UnsupportedModel: a device was asked for by name and is not there.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not torch.cuda.is_available():
        raise UnsupportedModel(f"device: {wanted!r} was asked for, and torch sees no CUDA device")
    return wanted
