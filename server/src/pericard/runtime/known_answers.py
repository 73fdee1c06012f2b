"""Known answers: does this device compute what the publisher saw?

The publisher seals questions with the answers of its own runtime, one by one, and signs per backend how far another may
be from them. They are asked at every batch size that will be used: as many batches as there are questions, each with
the questions in turn from the next one on, so that every question is first once and last once among others, and every
row is compared. A model whose rows disturb each other, or which fails in a batch,
still answers one by one, if that was asked for: then it is served so, and says so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pericard.errors import BackendFailed, KnownAnswerMismatch
from pericard.runtime.backend import Array, Backend
from pericard.sealed import Description, Tolerance

Question = tuple[tuple[Array, ...], tuple[Array, ...]]

_PAIR = 2  # the smallest batch in which a row has a neighbour: asked even where it is no bucket


def check(
    backend: Backend, questions: tuple[Question, ...], description: Description
) -> tuple[tuple[int, ...], str | None]:
    """Ask every known question at every bucket, and at two.

    Returns:
        The batch sizes to use: all of the description's, or only 1; and in that case why, else None.

    Raises:
        KnownAnswerMismatch: an answer is further off than the publisher allows, and not only in batches; or the backend
            has no signed tolerance.
        BackendFailed: the computation failed, and not only in batches.
    """
    kind = backend.device.partition(":")[0]
    tolerance = description.tolerance.get(kind)
    if tolerance is None:
        raise KnownAnswerMismatch(
            f"model {description.name}: its publisher signed no tolerance for {kind}",
            hint="serve it on a backend that the manifest names, or ask the vendor",
        )
    for bucket in sizes(description):
        try:
            for number in range(len(questions)):
                _ask(backend, questions, number, bucket, tolerance, description)
        except (KnownAnswerMismatch, BackendFailed) as error:
            if bucket == 1 or 1 not in description.buckets:
                raise
            return (1,), f"it answers one by one, not in batches of {bucket} ({error.message})"
    return description.buckets, None


def sizes(description: Description) -> tuple[int, ...]:
    """The batch sizes that are asked, rising: every bucket, and two."""
    return tuple(sorted({*description.buckets} | ({_PAIR} if description.max_batch >= _PAIR else set())))


def batch(questions: tuple[Question, ...], number: int, size: int) -> tuple[Array, ...]:
    """So many questions as one batch, in turn from one on."""
    rows = [questions[(number + place) % len(questions)][0] for place in range(size)]
    return tuple(np.ascontiguousarray(np.concatenate([row[slot] for row in rows])) for slot in range(len(rows[0])))


def one_by_one(description: Description) -> Description:
    """The same model without a batch claim."""
    return replace(description, max_batch=1, buckets=(1,))


def matches(found: tuple[Array, ...], wanted: tuple[Array, ...], tolerance: Tolerance) -> bool:
    """Whether all outputs are within a tolerance of what was wanted."""
    return len(found) == len(wanted) and all(
        one.shape == other.shape and _distance(one, other, tolerance) <= 1.0
        for one, other in zip(found, wanted, strict=True)
    )


def _ask(
    backend: Backend,
    questions: tuple[Question, ...],
    number: int,
    bucket: int,
    tolerance: Tolerance,
    description: Description,
) -> None:
    rows = [questions[(number + place) % len(questions)] for place in range(bucket)]
    answers = backend.infer(batch(questions, number, bucket))
    for slot, output in enumerate(description.outputs):
        if answers[slot].shape != (bucket, *output.spec.row_shape):
            raise KnownAnswerMismatch(
                f"model {description.name}: output {output.spec.name} has shape {answers[slot].shape} at batch {bucket}"
            )
        for place, row in enumerate(rows):
            off = _distance(answers[slot][place], row[1][slot][0], tolerance)
            if not off <= 1.0:
                raise KnownAnswerMismatch(
                    f"model {description.name}: known answer {(number + place) % len(questions)}, "
                    f"output {output.spec.name}, batch {bucket}: "
                    f"off by {off:.3g} times the signed tolerance on {backend.device}",
                    hint="the runtime or the device computes other numbers than the vendor's; do not use it",
                )


def _distance(found: Array, wanted: Array, tolerance: Tolerance) -> float:
    """Largest deviation in units of what is allowed; infinite where only one of the two is finite."""
    here, there = found.astype(np.float64), wanted.astype(np.float64)
    same = (here == there) | (np.isnan(here) & np.isnan(there))
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = tolerance.absolute + tolerance.relative * np.abs(there)
        comparable = np.isfinite(here) & np.isfinite(there) & (allowed > 0)
        ratio = np.divide(np.abs(here - there), allowed, out=np.full(here.shape, np.inf), where=comparable)
    return float(np.max(np.where(same, 0.0, ratio), initial=0.0))
