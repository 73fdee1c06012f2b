"""What a vendor's model takes, as it says itself, held against what its description says.

Rules of this room: an axis of any size matches every size, and the first one is the batch; what cannot be told is left
to the known answers, which decide in any case.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from pericard.errors import UnsupportedModel
from pericard.runtime import onnx_graph
from pericard.sealed import Description

#: Type and axes of each input, in order; -1 is an axis of any size.
Taken = tuple[tuple[str, tuple[int, ...]], ...]


def of_program(program: ExportedProgram) -> Taken | None:
    """The inputs that a program was exported with, or None where it does not say."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found = [values.get(str(name)) for name in program.graph_signature.user_inputs]
    if not all(isinstance(value, torch.Tensor) for value in found):
        return None
    return tuple(
        (str(value.dtype).removeprefix("torch."), tuple(size if type(size) is int else -1 for size in value.shape))
        for value in found
        if isinstance(value, torch.Tensor)
    )


def of_onnx(graph: bytes) -> Taken:
    """The inputs of a converted ONNX graph."""
    model = onnx_graph.packages()[0].ModelProto.FromString(graph)
    types = [value.type.tensor_type for value in model.graph.input]
    return tuple(
        (
            onnx_graph.TYPES.get(found.elem_type, str(found.elem_type)),
            tuple(dim.dim_value or -1 for dim in found.shape.dim),
        )
        for found in types
    )


def check(taken: Taken, description: Description, subject: str) -> None:
    """Hold them against the description.

    Raises:
        UnsupportedModel: they are others.
    """
    said = [(spec.dtype, spec.shape) for spec in description.inputs]
    fits = len(taken) == len(said) and all(
        dtype == wanted
        and len(axes) == len(shape)
        and all(a in (-1, s) for a, s in zip(axes[1:], shape[1:], strict=True))
        for (dtype, axes), (wanted, shape) in zip(taken, said, strict=True)
    )
    if fits:
        return
    ours = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in description.inputs)
    theirs = ", ".join(f"{dtype}{list(axes)}" for dtype, axes in taken)
    raise UnsupportedModel(
        f"{subject}: takes {theirs or 'no inputs'}, the description says {ours}",
        hint="correct inputs in model.yaml, in the model's own order, or export the model in the shapes that it says",
    )


def of_one_item(taken: Taken) -> bool:
    """Whether an input was fixed to a batch of one."""
    return any(axes and axes[0] == 1 for _, axes in taken)
