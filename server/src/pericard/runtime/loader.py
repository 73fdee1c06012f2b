"""From a sealed file to a model that answers: the one way in.

Every check of ``sealed`` and ``trust`` runs first, the plaintext goes into one private buffer, the graph is attached to
it without a copy, and the known answers decide. Whatever fails on the way leaves the buffer zeroed.
"""

from __future__ import annotations

import numpy as np

from pericard.errors import InvalidInput, ModelTooLarge, UnsupportedModel
from pericard.hardening import PrivateMemory
from pericard.keys import Identity
from pericard.runtime import known_answers
from pericard.runtime.backend import Array, Backend
from pericard.runtime.exported import ExportedBackend, view_tensor
from pericard.runtime.known_answers import Question
from pericard.sealed import Artifact, Description, KnownAnswer, VerifiedModel, artifact
from pericard.tensors import TensorSpec
from pericard.trust import Licence, Policy


class LoadedModel:
    """A model that passed every check and can answer.

    Attributes:
        description: what the publisher signed.
        publisher: id of the publisher.
        manifest_hash: SHA-256 of the manifest; the model's identity.
        licence: the grant that it is served under.
        device: where it runs.
        locked: whether its weights are locked in memory.
    """

    def __init__(
        self, model: VerifiedModel, licence: Licence, memory: PrivateMemory, found: Artifact, *, device: str
    ) -> None:
        """Attach the backend; :func:`load` is the way in."""
        self.description: Description = model.manifest.description
        self.publisher = model.publisher.id
        self.manifest_hash = model.manifest_hash
        self.licence = licence
        self.device = device
        self.locked = memory.locked
        self._memory = memory
        view = memory.view
        offset, size = found.graph
        tensors = {tensor.name: view_tensor(tensor, view) for tensor in found.tensors}
        self._backend: Backend = ExportedBackend(bytes(view[offset : offset + size]), tensors, device=device)
        self._questions = tuple(_question(answer, view, self.description) for answer in found.known_answers)

    def check_known_answers(self) -> None:
        """Ask the known questions at every bucket; raises ``KnownAnswerMismatch``."""
        known_answers.check(self._backend, self._questions, self.description)

    def bucket(self, count: int) -> int:
        """The smallest batch size that holds ``count`` items."""
        return next(bucket for bucket in self.description.buckets if bucket >= count)

    def infer(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Answer one batch whose size is one of the buckets; see ``Backend.infer``."""
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
        count, largest = len(arrays[0]), self.description.max_batch
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

    def close(self) -> None:
        """Drop the backend and zero the weights."""
        self._backend.close()
        self._memory.close()


def _question(answer: KnownAnswer, view: memoryview, description: Description) -> Question:
    """The arrays of a known answer, if they are what the signed description says; copied out of the buffer."""
    outputs = [output.spec for output in description.outputs]
    for tensors, specs in ((answer.inputs, list(description.inputs)), (answer.outputs, outputs)):
        if [(tensor.dtype, tensor.shape) for tensor in tensors] != [(s.dtype, (1, *s.row_shape)) for s in specs]:
            raise UnsupportedModel(f"model {description.name}: a known answer does not fit the description")
        if any(spec.dtype == "bfloat16" for spec in specs):
            raise UnsupportedModel(f"model {description.name}: bfloat16 inputs and outputs are not served")
    inputs = tuple(np.array(view_tensor(tensor, view).numpy()) for tensor in answer.inputs)
    return inputs, tuple(np.array(view_tensor(tensor, view).numpy()) for tensor in answer.outputs)


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
    model: VerifiedModel, identity: Identity, policy: Policy, *, device: str, now: int, memory_budget: int | None = None
) -> LoadedModel:
    """Accept, decrypt, attach, and ask the known questions.

    Args:
        model: a sealed file whose signatures verified; the caller closes it.
        identity: who we are.
        policy: what this site accepts.
        device: ``cpu`` or ``cuda:N``.
        now: Unix time.
        memory_budget: largest plaintext in bytes, or None.

    Raises:
        SealedModelError, TrustError, ModelError: it was refused; nothing of it is left in memory.
    """
    licence = policy.accept(model, identity.recipient.id, now)
    size = model.manifest.payload.size
    if memory_budget is not None and size > memory_budget:
        raise ModelTooLarge(f"{model.subject}: needs {size} bytes, the budget is {memory_budget}")
    cipher = model.unwrap(licence.grant, identity)
    memory = PrivateMemory(size)
    try:
        model.decrypt_into(cipher, memory.view)
        del cipher
        loaded = LoadedModel(model, licence, memory, artifact.parse(memory.view, subject=model.subject), device=device)
        loaded.check_known_answers()
    except BaseException:
        memory.close()
        raise
    return loaded
