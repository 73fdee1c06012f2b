"""The vendor's side: from a ``.pt2`` to an artifact, with known answers.

A ``.pt2`` is opened with ``torch.export.load``, which can run code: this is the vendor's own file in the vendor's own
trust domain, and it is the last place where that is so. What leaves here is a normalised graph, a table of tensors and
synthetic known answers; the example inputs that a ``.pt2`` ships are left behind, since they may be a patient's.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch._export.serde.serialize import EnumEncoder, ExportedProgramSerializer, _dataclass_to_dict
from torch.export import ExportedProgram

from pericard.errors import BackendFailed, KnownAnswerMismatch, UnsupportedModel
from pericard.runtime import graph as graphs
from pericard.runtime import known_answers
from pericard.runtime.backend import Array
from pericard.runtime.exported import ExportedBackend
from pericard.runtime.known_answers import Question
from pericard.sealed import Description, Source, artifact
from pericard.tensors import TensorSpec

_DTYPE_NAMES = {getattr(torch, name): name for name in ("uint8", "int8", "int16", "int32", "int64")} | {
    torch.bool: "bool",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def pack(path: Path, description: Description) -> tuple[int, Iterator[bytes | memoryview]]:
    """Turn a ``.pt2`` into an artifact: its size, and the plaintext as buffers.

    Raises:
        UnsupportedModel: it is not a ``.pt2``, or does not fit the description.
        ForbiddenGraph: it names an operator that a sealed model may not have.
        KnownAnswerMismatch: it computes other answers in batches than alone.
    """
    program = _read(path)
    graph = graphs.normalise(_serialised(program))
    weights = {name: _plain(tensor) for name, tensor in {**program.constants, **program.state_dict}.items()}
    backend = ExportedBackend(graph, weights, device="cpu")
    try:
        questions = tuple(_answered(backend, question, description) for question in synthetic(description.inputs))
        known_answers.check(backend, questions, description)
    except BackendFailed as error:
        raise UnsupportedModel(
            f"{path}: does not compute at every batch size of {list(description.buckets)}: {error.message}",
            hint="export it with a dynamic first axis and in the shapes that the description names",
        ) from error
    _compare_with_original(program, questions, path)
    sources = tuple(_source(name, "parameter", tensor) for name, tensor in sorted(weights.items()))
    return artifact.pack(graph, sources, tuple(_question_sources(question, description) for question in questions))


def synthetic(inputs: tuple[TensorSpec, ...]) -> Iterator[tuple[Array, ...]]:
    """Four questions that belong to nobody: silence, noise, a slow wave, and a spike train; batch of one.

    They come from a fixed seed, so that two seals of one model hold the same questions.
    """
    generator = np.random.Generator(np.random.PCG64(20010913))
    for spec in inputs:
        if spec.dtype in {"float16", "bfloat16"}:
            raise UnsupportedModel(f"input {spec.name}: half-precision inputs are not served yet; take float32")
    for kind in range(4):
        yield tuple(_synthetic_input(spec, kind, generator) for spec in inputs)


def _synthetic_input(spec: TensorSpec, kind: int, generator: np.random.Generator) -> Array:
    shape = (1, *spec.row_shape)
    if not spec.dtype.startswith("float"):
        return generator.integers(0, 2, shape).astype(spec.dtype)
    count = int(np.prod(shape))
    place = np.arange(count)
    values = (
        np.zeros(count),
        generator.normal(0.0, 0.5, count),
        np.sin(place / 40.0) + generator.normal(0.0, 0.02, count),
        np.exp(-(((place % 200) - 100) ** 2) / 30.0) + generator.normal(0.0, 0.02, count),
    )[kind]
    return values.reshape(shape).astype(spec.dtype)


def _read(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise UnsupportedModel(f"{path}: there is no such file")
    try:
        program = torch.export.load(path)
    except Exception as error:  # a foreign file fails in any way it likes
        raise UnsupportedModel(
            f"{path}: cannot be read as a .pt2 ({type(error).__name__})",
            hint="save it with torch.export.save(torch.export.export(model.eval(), …), 'model.pt2')",
        ) from error
    if any(not isinstance(value, torch.Tensor) for value in program.constants.values()):
        raise UnsupportedModel(f"{path}: holds constants that are not tensors")
    if any(_writes(node.target) for node in program.graph.nodes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own use of what it deprecates
            program = program.run_decompositions({})  # rewrites in-place operators as pure ones
    return program


def _writes(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable  # noqa: SLF001  (no public way)


def _serialised(program: ExportedProgram) -> dict[str, object]:
    serialised = ExportedProgramSerializer().serialize(program).exported_program
    tree = _dataclass_to_dict(serialised)  # type: ignore[no-untyped-call]  # torch's own, without types
    found: dict[str, object] = json.loads(json.dumps(tree, cls=EnumEncoder))
    return found


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in _DTYPE_NAMES or tensor.is_quantized or tensor.layout != torch.strided:
        raise UnsupportedModel(f"model: holds a {tensor.dtype} tensor, which is not served")
    return tensor.detach().to("cpu").contiguous()


def _answered(backend: ExportedBackend, question: tuple[Array, ...], description: Description) -> Question:
    answers = backend.infer(question)
    if len(answers) != len(description.outputs):
        raise UnsupportedModel(
            f"model {description.name}: gives {len(answers)} outputs, the description names {len(description.outputs)}"
        )
    for answer, output in zip(answers, description.outputs, strict=True):
        if answer.shape != (1, *output.spec.row_shape) or str(answer.dtype) != output.spec.dtype:
            raise UnsupportedModel(
                f"model {description.name}: output {output.spec.name} is {answer.dtype}{list(answer.shape)}, the "
                f"description says {output.spec.dtype}{[1, *output.spec.row_shape]}"
            )
    return question, answers


def _compare_with_original(program: ExportedProgram, questions: tuple[Question, ...], path: Path) -> None:
    """The normalised graph must compute bit for bit what the vendor's own program does."""
    try:
        original = program.module()
        original.requires_grad_(False)  # torch has other kernels for what could be trained
        with torch.inference_mode():
            found = [original(*(torch.from_numpy(value) for value in inputs)) for inputs, _ in questions]
    except Exception as error:  # the vendor's own program fails in any way it likes
        raise UnsupportedModel(
            f"{path}: cannot be called with its inputs in order ({type(error).__name__})",
            hint="export it with positional tensor inputs",
        ) from error
    for value, (_, answers) in zip(found, questions, strict=True):
        flat, _ = torch.utils._pytree.tree_flatten(value)  # noqa: SLF001  (the public optree is optional)
        if not all(np.array_equal(a.numpy(), b, equal_nan=True) for a, b in zip(flat, answers, strict=True)):
            raise KnownAnswerMismatch(f"{path}: computes other numbers once it is normalised")


def _source(name: str, role: str, tensor: torch.Tensor) -> Source:
    flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return Source(name, role, _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), flat.numpy().data)


def _question_sources(question: Question, description: Description) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    inputs, outputs = question
    return (
        tuple(
            _source(spec.name, "answer", torch.from_numpy(value))
            for spec, value in zip(description.inputs, inputs, strict=True)
        ),
        tuple(
            _source(output.spec.name, "answer", torch.from_numpy(value))
            for output, value in zip(description.outputs, outputs, strict=True)
        ),
    )
