"""The questions that a vendor seals with a model, and its own answers to them.

They are synthetic: silence, noise, a slow wave and a spike train, the same for every seal of one model. A vendor may
bring others; they travel with the model to every hospital, so they must be nobody's.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pericard.errors import UnsupportedModel
from pericard.runtime.backend import Array, Backend
from pericard.runtime.known_answers import Question
from pericard.sealed import Description, Source
from pericard.tensors import TensorSpec

MAX_QUESTIONS = 64
MIN_QUESTIONS = 2  # the rows of a batch must differ, or one that disturbs another would not show
_MAX_FILE = 256 << 20
#: What numpy and zipfile raise for a file that is not what it says; numpy reads an array's header as Python's tokens.
_UNREADABLE = (
    ValueError, TypeError, KeyError, EOFError, SyntaxError, RuntimeError, OverflowError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def synthetic(inputs: tuple[TensorSpec, ...]) -> Iterator[tuple[Array, ...]]:
    """Four questions that belong to nobody: silence, noise, a slow wave, and a spike train; batch of one.

    They come from a fixed seed, so that two seals of one model hold the same questions.

    Raises:
        UnsupportedModel: an input is of half precision.
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


def from_file(path: Path, inputs: tuple[TensorSpec, ...]) -> tuple[tuple[Array, ...], ...]:
    """Questions of the vendor's own: a ``.npz`` with one array ``[n, …]`` per input, by its name.

    Raises:
        UnsupportedModel: it is not such a file, or an array does not fit its input.
    """
    try:
        if path.stat().st_size > _MAX_FILE:
            raise UnsupportedModel(f"{path}: holds more than {_MAX_FILE} bytes")
        with zipfile.ZipFile(path):  # numpy would read other kinds of file too
            pass
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    except MemoryError as error:
        raise UnsupportedModel(f"{path}: its arrays do not fit into this machine's memory") from error
    except _UNREADABLE as error:
        raise UnsupportedModel(
            f"{path}: is not a .npz of plain arrays", hint="write it with numpy.savez('questions.npz', ecg=array)"
        ) from error
    if arrays.keys() != {spec.name for spec in inputs}:
        raise UnsupportedModel(
            f"{path}: holds {sorted(arrays)}, the model's inputs are {sorted(spec.name for spec in inputs)}"
        )
    count = len(arrays[inputs[0].name]) if arrays[inputs[0].name].ndim else 0
    for spec in inputs:
        array = arrays[spec.name]
        if array.dtype != spec.dtype or array.shape != (count, *spec.row_shape):
            raise UnsupportedModel(
                f"{path}: {spec.name} is {array.dtype}{list(array.shape)}, wanted are rows of {spec.dtype}"
                f"{list(spec.row_shape)}, as many for every input"
            )
        if spec.dtype.startswith("float") and not np.isfinite(array).all():
            raise UnsupportedModel(f"{path}: {spec.name} holds values that are not finite")
    if not MIN_QUESTIONS <= count <= MAX_QUESTIONS:
        raise UnsupportedModel(f"{path}: holds {count} questions, allowed are {MIN_QUESTIONS} to {MAX_QUESTIONS}")
    return tuple(
        tuple(np.ascontiguousarray(arrays[spec.name][row : row + 1]) for spec in inputs) for row in range(count)
    )


def answered(backend: Backend, question: tuple[Array, ...], description: Description) -> Question:
    """The backend's own answer to a question, if it is what the description says.

    Raises:
        UnsupportedModel: the model gives other outputs than the description names.
        BackendFailed: the computation failed.
    """
    answers = backend.infer(question)
    if len(answers) != len(description.outputs):
        given = ", ".join(f"{answer.dtype}{list(answer.shape)}" for answer in answers)
        raise UnsupportedModel(
            f"model {description.name}: gives {len(answers)} output{'s' * (len(answers) != 1)}, the description names "
            f"{len(description.outputs)}",
            hint=f"describe each output in the model's order; for one item it gives {given or 'nothing'}",
        )
    for answer, output in zip(answers, description.outputs, strict=True):
        if answer.shape != (1, *output.spec.row_shape) or str(answer.dtype) != output.spec.dtype:
            raise UnsupportedModel(
                f"model {description.name}: output {output.spec.name} is {answer.dtype}{list(answer.shape)}, the "
                f"description says {output.spec.dtype}{[1, *output.spec.row_shape]}",
                hint="shapes are those of one item; correct the description's outputs, which are in the model's order",
            )
    return question, answers


def sources(question: Question, description: Description) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """A question and its answer on their way into an artifact."""
    inputs, outputs = question
    return (
        tuple(_source(spec, value) for spec, value in zip(description.inputs, inputs, strict=True)),
        tuple(_source(output.spec, value) for output, value in zip(description.outputs, outputs, strict=True)),
    )


def _source(spec: TensorSpec, value: Array) -> Source:
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return Source(spec.name, "answer", spec.dtype, tuple(value.shape), flat.data)
