"""One engine process from start to stop.

Start: open the log, load every model, record it. The process around it (``daemon.child``) brings the identity and the
log key, and hands over new pipe ends from the supervisor; the edge never can.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pericard import environment, hardening
from pericard.audit import AuditLog, default_origin
from pericard.engine.repository import Repository
from pericard.engine.scheduler import Scheduler
from pericard.engine.service import Service
from pericard.engine.values import EngineValues
from pericard.errors import AuditUnavailable, PericardError, TrustStateInvalid
from pericard.keys import Identity, LogKey, Publisher
from pericard.metrics import Metrics
from pericard.pipe import EdgeLink
from pericard.runtime import exported
from pericard.runtime.loader import load
from pericard.sealed import SealedModel
from pericard.trust import Policy, TrustState

_logger = logging.getLogger(__name__)
_DAY = 86400.0


class Engine:
    """Everything that one engine process holds."""

    def __init__(self, values: EngineValues, identity: Identity, log_key: LogKey) -> None:
        """Open the log, load the models, and record both; no answer is possible before :meth:`start`.

        Raises:
            PericardError: the log, the trust state or a model was refused. A refused model is recorded first.
        """
        runtime = environment.describe()
        self._links: list[EdgeLink] = []
        self._log = AuditLog.open(Path(values.audit_directory), origin=default_origin(log_key.verifier), key=log_key)
        self._repository = Repository(runtime=runtime.digest, licence_time=self._licence_time)
        self._metrics = Metrics()
        self._metrics.build.info({"version": values.version, "runtime": runtime.digest})
        self._scheduler = Scheduler(values.queue, self._max_batch)
        try:
            exported.set_threads(values.threads)
            device = exported.pick_device(values.device)
            state = TrustState(Path(values.trust_state))
            publishers = tuple(Publisher.read(path) for path in values.paths(values.publishers))
            self._policy = Policy(publishers, state, runtime=runtime.digest)
            self._log.commit([self._start_record(values, state.digest)])
            for path in values.paths(values.models):
                self._load(path, identity, device, values.memory_budget)
        except BaseException:
            self.close()
            raise
        self._service = Service(
            self._repository, self._log, log_key, self._metrics, self._scheduler, threads=values.threads
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._failed: Callable[[], None] | None = None
        self._time_raised = time.monotonic()
        self._watch_licences()

    @property
    def serving(self) -> str:
        """What is served, for people: ``name version`` of each model."""
        return ", ".join(f"{model.description.name} {model.description.version}" for model in self._repository)

    def start(self, failed: Callable[[], None]) -> None:
        """Start answering; ``failed`` is called if the engine's thread ever dies."""
        self._failed = failed
        self._thread.start()

    def attach(self, sock: socket.socket) -> None:
        """Serve one more edge through a connected socket."""
        for gone in [link for link in self._links if not link.open]:
            self._links.remove(gone)
            gone.close()
        link = EdgeLink(sock, self._service.receive)
        self._links.append(link)
        link.catalog(self._repository.catalog())
        link.start()

    def tick(self) -> None:
        """Once in a while: licence time, the days that licences have left, and the catalog with their states."""
        if time.monotonic() - self._time_raised >= _DAY:  # so that a wrong clock gains no more than a day a day
            self._time_raised = time.monotonic()
            with contextlib.suppress(TrustStateInvalid):  # a full disk: the next day tries again
                self._policy.state.raise_time(int(time.time()))
        self._watch_licences()
        for link in self._links:
            link.catalog(self._repository.catalog())

    def stop(self) -> None:
        """Answer what waits, record the stop, close everything."""
        self._scheduler.stop()
        self._thread.join(timeout=10)
        if self._log.available and not self._thread.is_alive():
            with contextlib.suppress(AuditUnavailable):  # the disk is full: the next start says what is missing
                self._log.commit([{"event": "stop"}])
        self.close()

    def close(self) -> None:
        """Zero the weights and close the log and the links."""
        for link in self._links:
            link.close()
        self._repository.close()
        self._log.close()

    def _run(self) -> None:
        try:
            self._service.run()
        except Exception:
            _logger.exception("the engine's thread failed")
            if self._failed is not None:
                self._failed()

    def _max_batch(self, name: str) -> int:
        try:
            return self._repository.get(name).description.max_batch
        except PericardError:
            return 1

    def _load(self, path: Path, identity: Identity, device: str, budget: int | None) -> None:
        now = int(time.time())
        try:
            with SealedModel(path) as source:
                verified = source.verify(self._policy.publishers)
                model = load(verified, identity, self._policy, device=device, now=now, memory_budget=budget)
                try:
                    self._repository.add(model)
                except PericardError:
                    model.close()
                    raise
                # only what passed its known answers may teach us a floor
                self._policy.served(verified, now)
        except PericardError as error:
            self._log.commit([{"event": "model-refused", "file": path.name, "code": error.code}])
            raise
        self._metrics.models_ready.set(len(self._repository))
        self._metrics.weights_locked.labels(model.description.name).set(int(model.locked))
        self._log.commit(
            [
                {
                    "event": "model-loaded",
                    "model": self._repository.identity(model),
                    "device": model.device,
                    "weights_locked": model.locked,
                    "licence_not_after": model.licence.grant.not_after,
                }
            ]
        )

    def _start_record(self, values: EngineValues, trust: str) -> dict[str, Any]:
        return {
            "event": "start",
            "version": values.version,
            "runtime": self._repository.runtime,
            "trust_state": trust,
            "recovered_bytes": self._log.recovered_bytes,
            "swap": hardening.swap_in_use(),
        }

    def _licence_time(self, now: int) -> int:
        return self._policy.licence_time(now)

    def _watch_licences(self) -> None:
        now = self._policy.licence_time(int(time.time()))
        for model in self._repository:
            self._metrics.licence_days_left.labels(model.description.name).set(model.licence.days_left(now))
