"""Known answers once more, while the model is served: a device that drifted takes its model out of service.

One batch size of one instance at a time, on the engine's thread and between two batches, so that traffic goes on. The
first wrong answer, or failure, takes the version out of service on every device; the first whole round without one
brings it back. Both are recorded and counted.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from pericard.engine.gate import Gate
from pericard.engine.repository import Repository, Served
from pericard.errors import BackendFailed, EngineAway, KnownAnswerMismatch, PericardError
from pericard.metrics import Metrics
from pericard.runtime.loader import LoadedModel

_logger = logging.getLogger(__name__)


class Recheck:
    """Asks served models their known questions; used by the loader's thread."""

    def __init__(self, repository: Repository, gate: Gate, metrics: Metrics) -> None:
        """Take the models, the way to the engine's thread, and what counts."""
        self._repository = repository
        self._gate = gate
        self._metrics = metrics

    def everything(self) -> None:
        """One round over every version that is served, those out of service too."""
        for served in self._repository:
            self.one(served)

    def one(self, served: Served) -> None:
        """One round over one version."""
        for place, model in enumerate(served.models):
            for bucket in served.buckets:
                try:
                    error = self._gate.turn(lambda model=model, bucket=bucket: _wrong(model, bucket))  # type: ignore[misc]
                except EngineAway:
                    return  # it was not asked, so nothing is known
                if error is not None:
                    self._failed(served, place, bucket, error)
                    return
        self._metrics.known_answers_passed.labels(served.name).set(time.time())
        if served.fault is not None:
            _logger.warning("model %s %s: its known answers are right again", served.name, served.about.version)
            self._gate.fault(served, None, {"event": "known-answers-passed"})

    def _failed(self, served: Served, place: int, bucket: int, error: PericardError) -> None:
        self._metrics.known_answer_failures.labels(served.name).inc()
        first = served.fault is None
        if not first:
            return
        _logger.critical(
            "model %s %s: is out of service until its known answers are right again: %s",
            served.name, served.about.version, error.message,
        )  # fmt: skip
        event: dict[str, Any] = {
            "event": "known-answers-failed",
            "device": served.models[place].device,
            "instance": place,
            "bucket": bucket,
            "code": error.code,
        }
        self._gate.fault(served, error, event)


def _wrong(model: LoadedModel, bucket: int) -> PericardError | None:
    """What is wrong with the answers at one batch size, if anything is."""
    try:
        model.recheck(bucket)
    except (KnownAnswerMismatch, BackendFailed) as error:
        return error
    except Exception as error:  # noqa: BLE001  # a device that is gone raises what its driver likes
        return BackendFailed(f"model {model.description.name}: its known answers failed ({type(error).__name__})")
    return None
