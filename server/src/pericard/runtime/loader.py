"""From a sealed file to a model that answers: the one way in.

Every check of ``sealed`` and ``trust`` runs first, the plaintext goes into one private buffer, the graph is attached to
it without a copy, and the known answers decide. Whatever fails on the way leaves the buffer zeroed. What ONNX Runtime
copies out of it is dropped with its session, but ONNX Runtime does not zero the memory that it frees.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Self

import numpy as np

from pericard.errors import HardeningError, InvalidInput, ModelTooLarge, UnsupportedModel
from pericard.hardening import PrivateMemory, keep_pages
from pericard.keys import Identity
from pericard.runtime import exported, known_answers, paths
from pericard.runtime.backend import Array, Backend
from pericard.runtime.exported import ExportedBackend
from pericard.runtime.folded import Private
from pericard.runtime.forgetting import forget_graphs
from pericard.runtime.known_answers import Question
from pericard.runtime.plaintext import Plaintext, hold
from pericard.sealed import Artifact, Description, KnownAnswer, Progress, Tensor, VerifiedModel
from pericard.tensors import TensorSpec
from pericard.trust import Licence, Policy

ONNX = "onnx"
_logger = logging.getLogger(__name__)


class LoadedModel:
    """A model that passed every check and can answer.

    Attributes:
        description: what the publisher signed.
        publisher: id of the publisher.
        manifest_hash: SHA-256 of the manifest; the model's identity.
        licence: the grant that it is served under.
        device: where it runs.
        size: bytes of plaintext.
        locked: whether its weights are locked in memory.
        buckets: the batch sizes that it is asked at, rising.
        batching: why it is asked one by one although its publisher claimed batches; None if it is not.
        paths: how each bucket is computed; see ``paths``.
        path_remark: why that is not the fastest path there is; None if it is.
    """

    def __init__(
        self,
        model: VerifiedModel,
        licence: Licence,
        plaintext: Plaintext,
        *,
        device: str,
        private: Private | None = None,
    ) -> None:
        """Attach the backend; :func:`load` is the way in."""
        self.description: Description = model.manifest.description
        self.publisher = model.publisher.id
        self.manifest_hash = model.manifest_hash
        self.licence = licence
        self.device = device
        self.size = model.manifest.payload.size
        self._busy = threading.Lock()  # held while it computes, so that no answer comes from half-wiped weights
        # what ONNX Runtime copies lies in memory of its own, which nobody locks
        self.locked = plaintext.locked and self.description.kind != ONNX
        self._plaintext = plaintext
        found = plaintext.index(subject=model.subject)
        self.buckets: tuple[int, ...] = self.description.buckets
        self.batching: str | None = None
        self.paths: dict[int, str] = dict.fromkeys(self.buckets, paths.GUARDED)
        self.path_remark: str | None = None
        self._private = private  # memory for changed weights, until a path is taken
        self._backend = _backend(self.description, found, plaintext, device)
        try:
            self._questions = tuple(_question(answer, plaintext, self.description) for answer in found.known_answers)
        except BaseException:
            self._backend.close()
            raise
        if self.description.kind == ONNX:
            plaintext.close()  # zeroed: the copy is the model now

    def check_known_answers(self) -> None:
        """Ask the known questions at every bucket; where only batches are wrong, serve one by one from now on.

        The first time, the fastest path whose answers are right is taken.

        Raises:
            KnownAnswerMismatch: an answer is wrong.
            BackendFailed: the computation failed.
        """
        private, self._private = self._private, None
        if private is None or not isinstance(self._backend, exported.ExportedBackend):
            self.buckets, self.batching = known_answers.check(self._backend, self._questions, self.description)
            return
        found = paths.settle(self._backend, self._questions, self.description, private)
        self.buckets, self.batching, self.paths = found.buckets, found.batching, found.paths
        self.path_remark = found.remark
        if found.remark is not None:
            _logger.info("model %s: is not on its fastest path: %s", self.description.name, found.remark)

    def recheck(self, bucket: int) -> None:
        """Ask the known questions once more, at one of the buckets.

        Raises:
            KnownAnswerMismatch: an answer is wrong.
            BackendFailed: the computation failed.
        """
        with self._busy:
            known_answers.check(
                self._backend, self._questions, replace(self.description, max_batch=1, buckets=(bucket,))
            )

    def bucket(self, count: int) -> int:
        """The smallest batch size that holds ``count`` items; at most ``buckets[-1]`` fit."""
        return next(bucket for bucket in self.buckets if bucket >= count)

    def infer(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Answer one batch whose size is one of the buckets; see ``Backend.infer``."""
        with self._busy:
            return self._backend.infer(inputs)

    def __call__(self, *inputs: Array) -> dict[str, Array]:
        """Answer any number of items, for notebooks and batch jobs: pads to buckets and cuts off the padding.

        Args:
            inputs: one array per model input, each ``[n, …]``.

        Returns:
            One array per output name, each ``[n, …]``.

        Raises:
            InvalidInput: the arrays do not fit the model's inputs.
            BackendFailed: the computation failed.
        """
        if len(inputs) != len(self.description.inputs):
            raise InvalidInput(f"model {self.description.name}: takes {len(self.description.inputs)} inputs")
        arrays = tuple(_rows(value, spec) for value, spec in zip(inputs, self.description.inputs, strict=True))
        count, largest = len(arrays[0]), self.buckets[-1]
        if count == 0 or any(len(array) != count for array in arrays):
            raise InvalidInput(f"model {self.description.name}: its inputs need one and the same number of items")
        parts: list[tuple[Array, ...]] = []
        for start in range(0, count, largest):
            rows = tuple(array[start : start + largest] for array in arrays)
            size = self.bucket(len(rows[0]))
            padded = tuple(np.concatenate([row, np.repeat(row[:1], size - len(row), axis=0)]) for row in rows)
            parts.append(tuple(output[: len(rows[0])] for output in self.infer(padded)))
        return {
            output.spec.name: np.concatenate([part[slot] for part in parts])
            for slot, output in enumerate(self.description.outputs)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the backend and zero the weights, once a computation that is under way has ended."""
        with self._busy:
            self._backend.close()
            self._plaintext.close()
            forget_graphs()


def _backend(description: Description, found: Artifact, plaintext: Plaintext, device: str) -> Backend:
    graph = plaintext.read(*found.graph)
    if description.kind == ONNX:
        from pericard.runtime.onnx_model import OnnxBackend  # noqa: PLC0415  (its packages are an extra)

        if any(tensor.dtype == "bfloat16" for tensor in found.tensors):
            raise UnsupportedModel("graph: bfloat16 weights are not served in an ONNX model")
        arrays = {tensor.name: plaintext.tensor(tensor).numpy() for tensor in found.tensors}
        return OnnxBackend(graph, arrays, device=device)
    tensors = {tensor.name: plaintext.tensor(tensor) for tensor in found.tensors}
    return ExportedBackend(graph, tensors, device=device, inputs=description.inputs)


def _private(plaintext: Plaintext, budget: int | None, used: int, *, secret: bool) -> Private:
    """Memory for changed weights: as private as the model's own, and within what is left of the budget; else None."""

    def hold_more(size: int) -> PrivateMemory | None:
        if budget is not None and used + size > budget:
            return None
        try:
            memory = PrivateMemory(size, secret=secret)
        except HardeningError:
            return None
        if plaintext.locked and not memory.locked:
            memory.close()
            return None
        return memory

    return hold_more


def _place(kind: str, device: str, *, secret: bool, subject: str) -> str:
    """Where the plaintext goes, for a model that will run on a device.

    Raises:
        HardeningError: secret memory was asked for, and the weights would leave it.
    """
    if secret and (device != "cpu" or kind == ONNX):
        other = "ONNX Runtime's own memory" if kind == ONNX else device
        raise HardeningError(
            f"secret memory: the weights of {subject} would leave it for {other}",
            hint="engine.memory: secret is for exported models on engine.device: cpu",
        )
    return "cpu" if kind == ONNX else device  # ONNX Runtime copies from the host by itself


def _question(answer: KnownAnswer, plaintext: Plaintext, description: Description) -> Question:
    """The arrays of a known answer, if they are what the signed description says; copied out of the plaintext."""
    outputs = [output.spec for output in description.outputs]
    for tensors, specs in ((answer.inputs, list(description.inputs)), (answer.outputs, outputs)):
        if [(tensor.dtype, tensor.shape) for tensor in tensors] != [(s.dtype, (1, *s.row_shape)) for s in specs]:
            raise UnsupportedModel(f"model {description.name}: a known answer does not fit the description")
        if any(spec.dtype == "bfloat16" for spec in specs):
            raise UnsupportedModel(f"model {description.name}: bfloat16 inputs and outputs are not served")
    inputs = tuple(_array(tensor, plaintext) for tensor in answer.inputs)
    return inputs, tuple(_array(tensor, plaintext) for tensor in answer.outputs)


def _array(tensor: Tensor, plaintext: Plaintext) -> Array:
    return np.frombuffer(plaintext.read(tensor.offset, tensor.size), tensor.dtype).reshape(tensor.shape)


def _rows(value: Array, spec: TensorSpec) -> Array:
    try:
        rows: Array = np.ascontiguousarray(value, dtype=spec.dtype)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"input {spec.name}: is not an array of {spec.dtype}") from error
    if rows.shape[1:] != spec.row_shape:
        raise InvalidInput(f"input {spec.name}: has shape {list(rows.shape)}, wanted {list(spec.shape)}")
    if spec.dtype.startswith("float") and not np.isfinite(rows).all():
        raise InvalidInput(f"input {spec.name}: holds values that are not finite")
    return rows


def load(
    model: VerifiedModel,
    identity: Identity,
    policy: Policy,
    *,
    device: str,
    now: int,
    memory_budget: int | None = None,
    secret: bool = False,
    progress: Progress | None = None,
) -> LoadedModel:
    """Accept, decrypt, attach, and ask the known questions.

    Args:
        model: a sealed file whose signatures verified; the caller closes it.
        identity: who we are.
        policy: what this site accepts.
        device: ``cpu`` or ``cuda:N``.
        now: Unix time.
        memory_budget: largest plaintext in bytes, or None.
        secret: hold the weights in memory that not even root can read; on the CPU only.
        progress: called now and then with the bytes that are decrypted and those in all.

    Raises:
        SealedModelError, TrustError, ModelError: it was refused; the buffer is zeroed, the backend dropped. Memory that
            ONNX Runtime, or a computation, had of its own was freed and not zeroed.
        HardeningError: the memory cannot be had.
    """
    keep_pages()
    licence = policy.accept(model, identity.recipient.id, now)
    size = model.manifest.payload.size
    if memory_budget is not None and size > memory_budget:
        raise ModelTooLarge(f"{model.subject}: needs {size} bytes, the budget is {memory_budget}")
    place = _place(model.manifest.description.kind, device, secret=secret, subject=model.subject)
    cipher = model.unwrap(licence.grant, identity)
    plaintext = hold(size, place, secret=secret)
    try:
        plaintext.decrypt(model, cipher, progress)
        del cipher
        private = _private(plaintext, memory_budget, size, secret=secret)
        loaded = LoadedModel(model, licence, plaintext, device=device, private=private)
    except BaseException:
        plaintext.close()
        raise
    try:
        loaded.check_known_answers()
    except BaseException:
        loaded.close()  # the backend too: what it copied goes back to the allocator
        raise
    finally:
        forget_graphs()
    return loaded
