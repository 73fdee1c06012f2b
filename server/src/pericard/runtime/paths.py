"""Which path a model is computed on: the fastest whose answers are right, the same on every host of a kind.

On the CPU an exported graph has three: with its convolutions folded (``folded``), the graph as it was signed, straight
(``straight``), and the graph behind its guards. Rules of this room: they are tried in this order, and a path is taken
by what the graph is and what the known answers say. No path is taken by measuring time: the next start could take
another, and an answer could not be repeated from its receipt.
"""

from __future__ import annotations

from dataclasses import dataclass

from pericard.errors import BackendFailed, KnownAnswerMismatch
from pericard.runtime import folded, known_answers
from pericard.runtime.backend import Array
from pericard.runtime.exported import ExportedBackend
from pericard.runtime.known_answers import Question
from pericard.sealed import Description

FOLDED, STRAIGHT, GUARDED = "folded", "straight", "guarded"


@dataclass(frozen=True)
class Settled:
    """What was settled for a model.

    Attributes:
        buckets: as of :func:`known_answers.check`.
        batching: the same.
        paths: the path of each bucket.
        remark: why it is not the fastest path that the graph has; None if it is.
    """

    buckets: tuple[int, ...]
    batching: str | None
    paths: dict[int, str]
    remark: str | None


def settle(
    backend: ExportedBackend,
    questions: tuple[Question, ...],
    description: Description,
    private: folded.Private,
) -> Settled:
    """Take the fastest path at every bucket that answers the known questions.

    Args:
        backend: the model.
        questions: its known questions.
        description: what the publisher signed.
        private: memory for weights that are changed on the way.

    Raises:
        KnownAnswerMismatch, BackendFailed: as :func:`known_answers.check`, for the graph as it was signed.
    """
    batches = [known_answers.batch(questions, 0, size) for size in known_answers.sizes(description)]
    remark = None
    if backend.fold(private):
        remark = _unfit(backend, batches, questions, description)
        if remark is None:
            return Settled(description.buckets, None, dict.fromkeys(description.buckets, FOLDED), None)
        backend.unfold()
    kept = backend.settle(batches)
    buckets, batching = known_answers.check(backend, questions, description)
    paths = {size: GUARDED if size in kept or backend.device != "cpu" else STRAIGHT for size in buckets}
    return Settled(buckets, batching, paths, remark or next((kept[size] for size in buckets if size in kept), None))


def _unfit(
    backend: ExportedBackend,
    batches: list[tuple[Array, ...]],
    questions: tuple[Question, ...],
    description: Description,
) -> str | None:
    """Why a folded graph is not used: at one bucket it is not straight, or not right; all buckets share one form."""
    try:
        kept = backend.settle(batches)
        return next(iter(kept.values()), None) or known_answers.check(backend, questions, description)[1]
    except (BackendFailed, KnownAnswerMismatch) as error:
        return error.message
