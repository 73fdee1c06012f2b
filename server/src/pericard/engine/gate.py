"""Into service and out of it: what is done in which order.

In: every device answered the known questions; then, on an engine's thread and between two batches, the floor is taught,
the version is recorded and listed; then the edges are told. Whatever fails before it is listed leaves everything as it
was. Out: it is listed no more, the edges are told, what they asked before they heard is answered, then the weights are
zeroed and the end is recorded. So no question meets a version that is gone.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pericard.audit import AuditLog
from pericard.engine.journal import TrustJournal
from pericard.engine.loading import Loaded
from pericard.engine.repository import Repository, Served
from pericard.engine.scheduler import Scheduler
from pericard.engine.service import Service
from pericard.errors import AuditError, EngineAway, PericardError
from pericard.metrics import Metrics
from pericard.trust import Remembered

_T = TypeVar("_T")
_TURN_SECONDS = 60.0  # for the engine's thread to come round: longer than any batch
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """On whose word models are loaded or unloaded.

    Attributes:
        by: ``start``, ``signal``, ``watch`` or ``admin``.
        caller: who, for records: principal, credential, address and request of an administrator.
    """

    by: str
    caller: Mapping[str, str] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """What a record takes of it."""
        return {**self.caller, "asked": self.by}


class Gate:
    """Lets versions in and out; used by the loader's thread."""

    def __init__(
        self,
        repository: Repository,
        service: Service,
        scheduler: Scheduler,
        log: AuditLog,
        journal: TrustJournal,
        metrics: Metrics,
        *,
        drain_seconds: float,
    ) -> None:
        """Take what the engine made; ``drain_seconds`` bounds how long a version may take to answer what waits."""
        self._repository = repository
        self._service = service
        self._scheduler = scheduler
        self._log = log
        self._journal = journal
        self._metrics = metrics
        self._drain_seconds = drain_seconds

    def turn(self, work: Callable[[], _T]) -> _T:
        """Do something on an engine's thread, between two batches, and wait for it.

        Raises:
            EngineAway: the thread did not come round; then nothing was done.
        """
        future = self._service.call(work)
        try:
            return future.result(_TURN_SECONDS)
        except TimeoutError:
            if not future.cancel():  # it has begun, so it will end
                return future.result(_TURN_SECONDS)
        except CancelledError:
            pass
        raise EngineAway("engine: had no time for its models", hint="it is overloaded, or it stops")

    def record(self, event: dict[str, Any]) -> None:
        """Write a record of what is done already; while the log cannot be written, it is written later."""
        try:
            self.turn(lambda: self._log.commit([event]))
        except (AuditError, EngineAway):
            if not self._scheduler.record(event):
                _logger.critical("%s: could not be recorded", event["event"])

    def require_record(self, event: dict[str, Any]) -> None:
        """Write a record.

        Raises:
            AuditUnavailable: it cannot be written.
        """
        self.turn(lambda: self._log.commit([event]))

    def change(self, propose: Callable[[], Remembered], *, notice: str) -> None:
        """Change the trust state because of a notice; raises as :meth:`TrustJournal.change`."""
        self.turn(lambda: self._journal.change(propose(), notice=notice))

    def enter(self, loaded: Loaded, taught: Callable[[Remembered], Remembered], asked: Asked) -> Served:
        """Put a version into service.

        Args:
            loaded: every instance passed its known answers.
            taught: what the trust state is to remember of it.
            asked: on whose word.

        Raises:
            PericardError: it could not be recorded; it is not in service, and still the caller's to close.
        """
        served = self._repository.make(loaded.models)

        def enter() -> None:
            self._journal.change(taught(self._journal.state.current))  # only what passed may teach a floor
            self._log.commit([_loaded(served, loaded.opener, asked)])
            self._repository.add(served)

        self.turn(enter)
        metrics = self._metrics
        metrics.model_loads.labels(served.name, "ok").inc()
        metrics.weights_locked.labels(served.name).set(int(all(model.locked for model in served.models)))
        metrics.known_answers_passed.labels(served.name).set(time.time())
        self.announce()
        return served

    def leave(self, served: Served, reason: str, asked: Asked) -> None:
        """Take a version out of service for good, once it answered what it was asked."""
        self._repository.retire(served)
        self.announce()
        drained = self._service.settled(served, self._drain_seconds)
        if not drained:
            _logger.warning(
                "model %s %s: did not answer all it was asked within %g seconds; the rest is refused",
                served.name, served.about.version, self._drain_seconds,
            )  # fmt: skip
        self._repository.remove(served)
        served.close()
        if not self._repository.of(served.name):
            for gauge in (self._metrics.weights_locked, self._metrics.known_answers_passed):
                with contextlib.suppress(KeyError):
                    gauge.remove(served.name)
            with contextlib.suppress(KeyError):
                self._metrics.licence_days_left.remove(served.name)
        _logger.warning("model %s %s: is not served any more: %s", served.name, served.about.version, reason)
        event = {"event": "model-unloaded", "model": served.identity, "reason": reason, "drained": drained}
        self.record({**asked.fields, **event})

    def fault(self, served: Served, fault: PericardError | None, event: dict[str, Any]) -> None:
        """Take a version out of service as long as something is wrong with it, or back into it."""
        self._repository.set_fault(served, fault)
        self.announce()
        self.record({**event, "model": served.identity})

    def announce(self) -> None:
        """Tell every edge what is served now."""
        ready = [name for name in self._repository.names if self._repository.ready(name)]
        self._metrics.models_ready.set(len(ready))
        self._service.announce()


def _loaded(served: Served, opener: str, asked: Asked) -> dict[str, Any]:
    return {
        **asked.fields,
        "event": "model-loaded",
        "recipient": opener,
        "model": served.identity,
        "devices": [model.device for model in served.models],
        "weights_locked": all(model.locked for model in served.models),
        "buckets": list(served.buckets),
        "paths": {str(bucket): served.models[0].paths[bucket] for bucket in served.buckets},
        "licence_not_after": served.licence.grant.not_after,
    }
