"""Known answers: does this device compute what the publisher saw?

The publisher seals synthetic questions with the answers of its own runtime, and signs per backend how far another
may be from them. They are asked at every batch size that will be used, each question in the first and in the last
place of its batch, the rest filled with the other questions.
"""

from __future__ import annotations

import numpy as np

from pericard.errors import KnownAnswerMismatch
from pericard.runtime.backend import Array, Backend
from pericard.sealed import Description, Tolerance

Question = tuple[tuple[Array, ...], tuple[Array, ...]]


def check(backend: Backend, questions: tuple[Question, ...], description: Description) -> None:
    """Ask every known question at every bucket.

    Raises:
        KnownAnswerMismatch: an answer is further off than the publisher allows, or the backend has no signed tolerance.
    """
    kind = backend.device.partition(":")[0]
    tolerance = description.tolerance.get(kind)
    if tolerance is None:
        raise KnownAnswerMismatch(
            f"model {description.name}: its publisher signed no tolerance for {kind}",
            hint="serve it on a backend that the manifest names, or ask the vendor",
        )
    for bucket in description.buckets:
        for number in range(len(questions)):
            _ask(backend, questions, number, bucket, tolerance, description)


def _ask(
    backend: Backend,
    questions: tuple[Question, ...],
    number: int,
    bucket: int,
    tolerance: Tolerance,
    description: Description,
) -> None:
    rows = [questions[(number + place) % len(questions)] for place in range(bucket)]
    rows[-1] = questions[number]
    batch = tuple(
        np.ascontiguousarray(np.concatenate([row[0][slot] for row in rows])) for slot in range(len(rows[0][0]))
    )
    answers = backend.infer(batch)
    for slot, output in enumerate(description.outputs):
        wanted = questions[number][1][slot]
        for place in {0, bucket - 1}:
            if answers[slot].shape != (bucket, *output.spec.row_shape):
                raise KnownAnswerMismatch(
                    f"model {description.name}: output {output.spec.name} has shape {answers[slot].shape} "
                    f"at batch {bucket}"
                )
            off = _distance(answers[slot][place], wanted[0], tolerance)
            if not off <= 1.0:
                raise KnownAnswerMismatch(
                    f"model {description.name}: known answer {number}, output {output.spec.name}, batch {bucket}: "
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
