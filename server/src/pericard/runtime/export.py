"""The vendor's side: from a model as it was trained to an artifact, with known answers.

Whatever the vendor brings (a ``.pt2``, a ``.onnx``, or an ``nn.Module`` and its weights) becomes a normalised graph and
a table of tensors, which must compute what the vendor's own program does; then it is asked the questions that travel
with it, alone and in batches. A model that does not keep its rows apart is sealed to be served one by one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch._export.serde.serialize import EnumEncoder, ExportedProgramSerializer, _dataclass_to_dict
from torch.export import ExportedProgram

from pericard.errors import BackendFailed, KnownAnswerMismatch, UnsupportedModel
from pericard.runtime import graph as graphs
from pericard.runtime import guards, known_answers, module, onnx_export, operators, pt2, questions, signature
from pericard.runtime.backend import Array, Backend
from pericard.runtime.exported import ExportedBackend
from pericard.runtime.known_answers import Question
from pericard.runtime.onnx_model import OnnxBackend
from pericard.sealed import Description, Source, Tolerance, artifact

_DTYPE_NAMES = {getattr(torch, name): name for name in ("uint8", "int8", "int16", "int32", "int64")} | {
    torch.bool: "bool",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_EXACT = Tolerance(0.0, 0.0)

Infer = Callable[[tuple[Array, ...]], tuple[Array, ...]]


#: What ``torch.export.export`` gives, for callers that do not know torch.
Program = ExportedProgram


@dataclass(frozen=True)
class Prepared:
    """A model that can be sealed.

    Attributes:
        plain: size of the artifact, and its plaintext as buffers.
        description: what the manifest will say: with the kind, and with the batch sizes that the model is right at.
        remarks: what the vendor should know before it is sealed; sentences.
    """

    plain: tuple[int, Iterator[bytes | memoryview]]
    description: Description
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """A model in the form in which it will be served, and the vendor's own form of it."""

    graph: bytes
    sources: tuple[Source, ...]
    backend: Backend
    original: Infer
    tolerance: Tolerance  # between the two
    takes: signature.Taken | None  # the inputs of the vendor's own form, where they are known


def prepare(
    path: Path, description: Description, own_questions: tuple[tuple[Array, ...], ...] | None = None
) -> Prepared:
    """Turn a ``.pt2`` or a ``.onnx`` into what can be sealed.

    Args:
        path: the vendor's file; its name tells the kind.
        description: what the vendor says of the model; its kind is not read.
        own_questions: instead of the synthetic ones; see :func:`questions.from_file`.

    Raises:
        UnsupportedModel: it is of another kind, cannot be read, or does not fit the description.
        ForbiddenGraph: it names an operator that a sealed model may not have, or would run code.
        ModelTooLarge: a limit is passed.
        KnownAnswerMismatch: it computes other numbers once it is normalised.
    """
    if path.suffix == ".pt2":
        return prepare_program(pt2.read(path), description, own_questions, subject=str(path))
    if path.suffix == ".onnx":
        return _prepared(
            _onnx_candidate(path, description), replace(description, kind="onnx"), own_questions, str(path)
        )
    hint = "a .pt2 of torch.export, a .onnx, or with --module the weights of an nn.Module"
    weights = "if these are weights alone, name their module: --module pkg.mod:factory"
    script = (
        "TorchScript is deprecated and not served; export the module: torch.export.save(torch.export.export("
        "model.eval(), …), 'model.pt2')"
    )
    if path.suffix in {".pt", ".pth", ".ckpt"}:
        hint = f"{weights}; {script}"
    elif path.suffix in {".ts", ".torchscript", ".jit"}:
        hint = f"{script}; {weights}"
    raise UnsupportedModel(f"{path}: is of a kind that cannot be sealed ({path.suffix or 'no suffix'})", hint=hint)


def prepare_module(
    factory: str,
    weights: Path,
    description: Description,
    own_questions: tuple[tuple[Array, ...], ...] | None = None,
    *,
    strip_prefix: str | None = None,
) -> Prepared:
    """Export a vendor's ``nn.Module`` with its weights and turn it into what can be sealed.

    Args:
        factory: ``pkg.mod:name``; see :func:`module.build`.
        weights: the file of its weights.
        description: as for :func:`prepare`.
        own_questions: as for :func:`prepare`.
        strip_prefix: taken off every name of the weights.

    Raises:
        UnsupportedModel: the module, its weights and the description do not fit each other.
        ForbiddenGraph, KnownAnswerMismatch: as :func:`prepare`.
    """
    if weights.suffix in {".pt2", ".onnx"}:
        raise UnsupportedModel(
            f"{weights}: is a whole model; a {weights.suffix} needs no --module", hint="leave --module out"
        )
    made, found = module.build(factory, weights, strip_prefix=strip_prefix)
    program, described, exported = module.export(made, description, subject=factory)
    prepared = prepare_program(program, described, own_questions, subject=factory)
    return replace(prepared, remarks=(*found, *exported, *prepared.remarks))


def prepare_program(
    program: ExportedProgram,
    description: Description,
    own_questions: tuple[tuple[Array, ...], ...] | None = None,
    *,
    subject: str,
) -> Prepared:
    """Turn a program of torch.export into what can be sealed; see :func:`prepare`."""
    if any(not isinstance(value, torch.Tensor) for value in program.constants.values()):
        raise UnsupportedModel(f"{subject}: holds constants that are not tensors")
    pure = functional(program)
    graph = graphs.normalise(serialised(pure))
    weights = {name: _plain(tensor) for name, tensor in {**pure.constants, **pure.state_dict}.items()}
    candidate = _Candidate(
        graph,
        tuple(_source(name, tensor) for name, tensor in sorted(weights.items())),
        ExportedBackend(graph, weights, device="cpu"),
        _by_the_program(program, subject),
        _EXACT,
        signature.of_program(program),
    )
    return _prepared(candidate, replace(description, kind="exported"), own_questions, subject)


def pack(path: Path, description: Description) -> tuple[int, Iterator[bytes | memoryview]]:
    """As :func:`prepare`, where nothing of the description may change: its size, and the plaintext as buffers.

    Raises:
        KnownAnswerMismatch: beyond the reasons of :func:`prepare`, it is not right at every batch size it claims.
    """
    prepared = prepare(path, description)
    if prepared.description != description:
        raise KnownAnswerMismatch(f"{path}: {' '.join(prepared.remarks) or 'is of another kind'}")
    return prepared.plain


def _onnx_candidate(path: Path, description: Description) -> _Candidate:
    converted = onnx_export.read(path)
    return _Candidate(
        converted.graph,
        tuple(
            Source(name, "parameter", value.dtype.name, value.shape, value.reshape(-1).view(np.uint8).data)
            for name, value in converted.tensors.items()
        ),
        OnnxBackend(converted.graph, converted.tensors, device="cpu"),
        onnx_export.original(path),
        description.tolerance.get("cpu", _EXACT),  # ONNX Runtime folds and fuses what is in a graph, not beside it
        signature.of_onnx(converted.graph),
    )


def _prepared(
    candidate: _Candidate,
    description: Description,
    own_questions: tuple[tuple[Array, ...], ...] | None,
    subject: str,
) -> Prepared:
    """Ask the questions: the candidate alone, the vendor's own program, then the candidate in batches."""
    asked = own_questions or tuple(questions.synthetic(description.inputs))
    if candidate.takes is not None:
        signature.check(candidate.takes, description, subject)
    try:
        found = tuple(questions.answered(candidate.backend, question, description) for question in asked)
    except BackendFailed as error:
        raise UnsupportedModel(
            f"{subject}: does not compute for a batch of one: {error.message}",
            hint="export it with a dynamic first axis, or with a first axis of one, in the description's shapes",
        ) from error
    _compare(candidate, found, subject)
    claimed = replace(description, buckets=tuple(sorted({1, *description.buckets})))
    buckets, reason = known_answers.check(candidate.backend, found, claimed)
    remarks: tuple[str, ...] = ()
    if reason is not None:
        description = known_answers.one_by_one(description)
        remarks = (f"{subject}: will be served one by one, whatever its description says of batches: {reason}",)
    elif description.max_batch > 1 and candidate.takes is not None and signature.of_one_item(candidate.takes):
        remarks = (f"{subject}: will be served one by one: it was exported for a batch of one alone",)
        buckets = (1,)
    if buckets == (1,):
        description = known_answers.one_by_one(description)
    plain = artifact.pack(
        candidate.graph, candidate.sources, tuple(questions.sources(question, description) for question in found)
    )
    return Prepared(plain, description, remarks)


def _compare(candidate: _Candidate, found: tuple[Question, ...], subject: str) -> None:
    """What will be sealed must compute what the vendor's own program does."""
    for inputs, answers in found:
        if not known_answers.matches(candidate.original(inputs), answers, candidate.tolerance):
            raise KnownAnswerMismatch(f"{subject}: computes other numbers once it is normalised")


def _by_the_program(program: ExportedProgram, subject: str) -> Infer:
    """The vendor's own program, as its own code would call it."""

    def refusal(error: Exception) -> UnsupportedModel:
        return UnsupportedModel(
            f"{subject}: cannot be called with its inputs in order, one row of each ({type(error).__name__})",
            hint="export it with positional tensor inputs, and for any number of rows",
        )

    try:
        original = program.module()
        original.requires_grad_(False)  # torch has other kernels for what could be trained
        guards.install(original)
    except Exception as error:  # the vendor's own program fails in any way it likes
        raise refusal(error) from error

    def infer(inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        try:
            with torch.inference_mode():
                found = original(*(torch.from_numpy(value.copy()) for value in inputs))
        except Exception as error:  # and so does a call of it
            raise refusal(error) from error
        flat, _ = torch.utils._pytree.tree_flatten(found)  # noqa: SLF001  (the public optree is optional)
        return tuple(np.asarray(value.numpy()) for value in flat)

    return infer


def functional(program: ExportedProgram) -> ExportedProgram:
    """The same program without operators that write in place."""
    if any(_is_rewritten(node.target) for node in program.graph.nodes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own use of what it deprecates
            rewritten: ExportedProgram = program.run_decompositions({})
            return rewritten
    return program


def _is_rewritten(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and (  # noqa: SLF001  (no public way)
        target._schema.is_mutable or operators.rewritten(f"torch.ops.{target}")  # noqa: SLF001  (no public way)
    )


def serialised(program: ExportedProgram) -> dict[str, object]:
    """A program as torch.export writes it, as JSON, once nothing in it writes in place."""
    written = ExportedProgramSerializer().serialize(functional(program)).exported_program
    tree = _dataclass_to_dict(written)  # type: ignore[no-untyped-call]  # torch's own, without types
    found: dict[str, object] = json.loads(json.dumps(tree, cls=EnumEncoder))
    return found


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in _DTYPE_NAMES or tensor.is_quantized or tensor.layout != torch.strided:
        raise UnsupportedModel(f"model: holds a {tensor.dtype} tensor, which is not served")
    return tensor.detach().to("cpu").contiguous()


def _source(name: str, tensor: torch.Tensor) -> Source:
    flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return Source(name, "parameter", _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), flat.numpy().data)
