"""One engine process from start to stop.

Start: open the log, hold the trust state against it, heed the publishers' notices, load every model, record it all.
The process around it (``daemon.child``) brings the identity and the log key, and hands over new pipe ends from the
supervisor; the edge never can.
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
from pericard.engine.journal import TrustJournal
from pericard.engine.licences import LicenceWatch
from pericard.engine.repository import Repository
from pericard.engine.scheduler import Scheduler
from pericard.engine.service import Service
from pericard.engine.values import EngineValues
from pericard.errors import AuditError, AuditUnavailable, PericardError, TrustStateInvalid
from pericard.keys import Identity, LogKey
from pericard.metrics import Metrics
from pericard.pipe import EdgeLink
from pericard.progress import bar
from pericard.runtime import exported
from pericard.runtime.loader import LoadedModel, load
from pericard.sealed import SealedModel, VerifiedModel, notice, notices_in
from pericard.sealed.detached import add_grants, grants_beside, stray_grants
from pericard.trust import Policy, TrustState, TrustStore, clock

_logger = logging.getLogger(__name__)
_DAY = 86400.0


class Engine:
    """Everything that one engine process holds."""

    def __init__(
        self,
        values: EngineValues,
        identity: Identity,
        log_key: LogKey,
        *,
        previous: Identity | None = None,
        synchronised: Callable[[], bool] = clock.synchronised,
    ) -> None:
        """Open the log, load the models, and record both; no answer is possible before :meth:`start`.

        Args:
            values: what to serve, and where things are.
            identity: who we are; not needed any more afterwards.
            log_key: signs the audit log.
            previous: who we were, during a rotation; opens what is not granted to ``identity`` yet.
            synchronised: whether the kernel vouches for its clock.

        Raises:
            PericardError: the log, the trust state or a model was refused. A refused model is recorded first.
        """
        runtime = environment.describe()
        self._links: list[EdgeLink] = []
        self._time_raised = float("-inf")
        self._synchronised = synchronised
        directory = Path(values.audit_directory)
        self._log = AuditLog.open(directory, origin=default_origin(log_key.verifier), key=log_key)
        self._repository = Repository(runtime=runtime.digest, licence_time=self._licence_time)
        self._metrics = Metrics()
        self._metrics.build.info({"version": values.version, "runtime": runtime.digest})
        self._scheduler = Scheduler(values.queue, self._max_batch)
        self._watch = LicenceWatch(self._repository, self._metrics, self._scheduler.record)
        try:
            exported.set_threads(values.threads)
            device = exported.pick_device(values.device)
            pins = TrustStore(Path(values.publishers)).load()
            self._journal = TrustJournal(directory, self._log, TrustState(Path(values.trust_state)))
            self._journal.settle()
            self._policy = Policy(pins, self._journal.state, runtime=runtime.digest)
            self._log.commit([self._start_record(values, self._journal.state.current.digest)])
            models = [Path(name) for name in values.models]
            self._heed_notices(models)
            _warn_of_stray_grants(models)
            for path in models:
                self._load(path, (identity, previous or identity), device, values)
            self._raise_time()
        except BaseException:
            self.close()
            raise
        self._service = Service(
            self._repository, self._log, log_key, self._metrics, self._scheduler, threads=values.threads
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._failed: Callable[[], None] | None = None
        self._time_due = threading.Event()
        self._watch.look(self._licence_time(int(time.time())))

    @property
    def serving(self) -> str:
        """What is served, for people: name, version and the licence's last day of each model."""
        return ", ".join(
            f"{model.description.name} {model.description.version} (licensed until {model.licence.last_day})"
            for model in self._repository
        )

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
            self._time_due.set()  # the engine's thread does it, since it alone writes the log
        self._watch.look(self._licence_time(int(time.time())))
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
            self._service.run(self._between)
        except Exception:
            _logger.exception("the engine's thread failed")
            if self._failed is not None:
                self._failed()

    def _between(self) -> None:
        """On the engine's thread, between two batches."""
        if self._time_due.is_set():
            self._time_due.clear()
            try:
                self._raise_time()
            except (AuditError, TrustStateInvalid) as error:  # a full disk: the next tick tries again
                _logger.warning("licence time was not recorded: %s", error.message)

    def _raise_time(self) -> None:
        """Remember the time, if the kernel vouches for it."""
        if self._synchronised():
            self._journal.change(self._journal.state.current.with_time(int(time.time())))
            self._time_raised = time.monotonic()

    def _max_batch(self, name: str) -> int:
        try:
            return self._repository.get(name).buckets[-1]
        except PericardError:
            return 1

    def _heed_notices(self, models: list[Path]) -> None:
        """Raise the floors that notices beside the models tell of; a bad notice refuses the start."""
        now = int(time.time())
        for folder in sorted({path.parent for path in models}):
            for path in notices_in(folder):
                try:
                    found = notice.read(path, self._policy.publishers)
                    proposed = self._policy.withdrawn(found, now, subject=path.name)
                    self._journal.change(proposed, notice=_name(path))
                except PericardError as error:
                    self._log.commit([{"event": "notice-refused", "file": _name(path), "code": error.code}])
                    raise

    def _load(self, path: Path, identities: tuple[Identity, Identity], device: str, values: EngineValues) -> None:
        now, culprit = int(time.time()), path
        try:
            with SealedModel(path) as source:
                verified = source.verify(self._policy.publishers)
                for culprit in grants_beside(path):
                    add_grants(verified, culprit)
                culprit = path
                identity = self._whose(verified, identities, now)
                with bar(f"opening {_name(path)}") as progress:
                    model = load(
                        verified, identity, self._policy, device=device, now=now, memory_budget=values.memory_budget,
                        secret=values.memory == "secret", progress=progress,
                    )  # fmt: skip
                try:
                    self._repository.add(model)
                except PericardError:
                    model.close()
                    raise
                # only what passed its known answers may teach us a floor
                self._journal.change(self._policy.taught(verified))
        except PericardError as error:
            because = {} if culprit == path else {"because": _name(culprit)}
            self._log.commit([{"event": "model-refused", "file": _name(path), "code": error.code, **because}])
            raise
        self._loaded(model, identity, identities[0])

    def _loaded(self, model: LoadedModel, opener: Identity, current: Identity) -> None:
        """Record a model that is served now, and say what an operator should know of it."""
        name = model.description.name
        if model.batching is not None:
            _logger.warning("model %s: is asked one by one: %s", name, model.batching)
        if opener.recipient.id != current.recipient.id:
            _logger.warning(
                "model %s: was opened by the previous identity %s; ask the vendor for a grant to %s",
                name, opener.recipient.id[:16], current.recipient.id[:16],
            )  # fmt: skip
        self._metrics.models_ready.set(len(self._repository))
        self._metrics.weights_locked.labels(name).set(int(model.locked))
        self._log.commit(
            [
                {
                    "event": "model-loaded",
                    "recipient": opener.recipient.id,
                    "model": self._repository.identity(model),
                    "device": model.device,
                    "weights_locked": model.locked,
                    "buckets": list(model.buckets),
                    "licence_not_after": model.licence.grant.not_after,
                }
            ]
        )

    def _whose(self, model: VerifiedModel, identities: tuple[Identity, Identity], now: int) -> Identity:
        """Whom a grant covers now, the current identity first; if nobody, its is the refusal to hear."""
        for identity in identities:
            with contextlib.suppress(PericardError):
                self._policy.accept(model, identity.recipient.id, now)
                return identity
        return identities[0]

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


def _warn_of_stray_grants(models: list[Path]) -> None:
    with contextlib.suppress(PericardError):  # a folder that cannot be read is said when its model is loaded
        for path in stray_grants(models):
            _logger.warning(
                "%s: goes with no model that is served; a grant of NAME.sealed is called NAME.grant or NAME.*.grant",
                _name(path),
            )


def _name(path: Path) -> str:
    """A file's name as the log can hold it."""
    return path.name.encode("utf-8", "replace").decode("utf-8")
