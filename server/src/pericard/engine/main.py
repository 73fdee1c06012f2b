"""One engine process from start to stop.

Start: open the log, hold the trust state against it, heed the publishers' notices, load every model, record it all.
The process around it (``daemon.child``) brings the identity and the log key, and hands over new pipe ends from the
supervisor; the edge never can. For a later load it brings the identity again; the engine keeps none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pericard import confinement as locking
from pericard import environment, hardening
from pericard.audit import AuditLog, default_origin, time_of_last
from pericard.engine.caretaker import Caretaker
from pericard.engine.clockwatch import ClockWatch
from pericard.engine.forwarding import Forwarding
from pericard.engine.gate import Gate
from pericard.engine.journal import TrustJournal
from pericard.engine.licences import LicenceWatch
from pericard.engine.loading import Identities, Loader
from pericard.engine.pruning import Pruner, Retention
from pericard.engine.rates import Rates
from pericard.engine.rechecking import Recheck
from pericard.engine.reloading import Reloader
from pericard.engine.repository import Repository
from pericard.engine.scheduler import Scheduler
from pericard.engine.service import Service
from pericard.engine.trusting import SiteTrust
from pericard.engine.values import EngineValues, EnvironmentValues
from pericard.engine.versions import VersionPolicy
from pericard.engine.watching import Watcher
from pericard.errors import AuditError, AuditUnavailable, KeySourceUnavailable, TrustStateInvalid
from pericard.keys import Identity, LogKey
from pericard.metrics import Metrics
from pericard.pipe import EdgeLink
from pericard.runtime import exported, host
from pericard.trust import TrustState, TrustStore, clock

_logger = logging.getLogger(__name__)
_DAY = 86400.0
_STOP_SECONDS = 10.0


def _no_identity() -> Identities:
    raise KeySourceUnavailable("identity: cannot be had any more", hint="restart the server to load a new version")


class Engine:
    """Everything that one engine process holds."""

    def __init__(
        self,
        values: EngineValues,
        identity: Identity,
        log_key: LogKey,
        *,
        previous: Identity | None = None,
        identities: Callable[[], Identities] = _no_identity,
        confinement: dict[str, Any] | None = None,
        synchronised: Callable[[], bool] = clock.synchronised,
    ) -> None:
        """Open the log, load the models, and record both; no answer is possible before :meth:`start`.

        Args:
            values: what to serve, and where things are.
            identity: who we are; not kept.
            log_key: signs the audit log.
            previous: who we were, during a rotation; opens what is not granted to ``identity`` yet.
            identities: gives both again, for a later load.
            confinement: how this process was locked in, and what trying gave; None if it was not.
            synchronised: whether the kernel vouches for its clock.

        Raises:
            PericardError: the log, the trust state or a model that the values name was refused. A refused model is
                recorded first.
        """
        runtime = environment.describe().digest  # of this process: the supervisor's module path may be another
        self._time_raised, self._synchronised = float("-inf"), synchronised
        self._failed: Callable[[], None] | None = None
        directory = Path(values.audit_directory)
        self._log = AuditLog.open(directory, origin=default_origin(log_key.verifier), key=log_key)
        self._repository = Repository(runtime=runtime, licence_time=self._licence_time)
        self._metrics = Metrics()
        self._metrics.build.info({"version": values.version, "runtime": runtime})
        if values.forward_status is not None:
            self._metrics.registry.register(Forwarding(Path(values.forward_status), lambda: self._log.next_index))
        self._confinement = confinement or locking.absent()
        for layer, there in self._confinement["layers"].items():
            self._metrics.engine_confinement.labels(layer).set(int(there))
        self._scheduler = Scheduler(values.queue, per_caller=values.per_caller, delay=values.batch_delay)
        self._watch = LicenceWatch(self._repository, self._metrics, self._scheduler.record)
        self._clock = ClockWatch(self._scheduler.record, synchronised)
        self._service: Service | None = None
        try:
            exported.set_threads(values.threads)
            devices = tuple(map(exported.pick_device, values.devices))
            here = self._show(values.environment, devices)
            pins = TrustStore(Path(values.publishers)).load()
            self._journal = TrustJournal(directory, self._log, TrustState(Path(values.trust_state)))
            self._journal.settle()
            self._loader = Loader(values, devices, self._journal.state, pins, runtime=runtime, host=here)
            self._service = Service(
                self._repository, self._log, log_key, self._metrics, self._scheduler,
                threads=values.threads, devices=devices, admin=self._admin,
                rates=Rates(values.caller_rate, values.caller_burst),
            )  # fmt: skip
            self._caretaker = self._make_caretaker(values, identities)
            if (newest := time_of_last(directory, self._log.next_index)) is not None:
                self._clock.begin(newest)
            self._log.commit([self._start_record(values, devices)])
            live = (identity,) if previous is None else (identity, previous)
            self._loader.recipients = tuple(one.recipient.id for one in live)
            self._caretaker.first(live)
            self._raise_time()
        except BaseException:
            self.close()
            raise
        self._threads = [
            threading.Thread(target=self._run, args=(place,), name=f"engine-{place}", daemon=True)
            for place in range(len(devices))
        ]
        self._watch.look(self._licence_time(int(time.time())))
        self._pruner = self._make_pruner(values)

    @property
    def serving(self) -> str:
        """What is served, for people: name, version and the licence's last day of each model."""
        current = [served for name in self._repository.names if (served := self._repository.current(name))]
        return ", ".join(
            f"{served.name} {served.about.version} (licensed until {served.licence.last_day})" for served in current
        ) or "no model yet"  # fmt: skip

    def start(self, failed: Callable[[], None]) -> None:
        """Start answering; ``failed`` is called if one of the engine's threads ever dies."""
        self._failed = failed
        for thread in self._threads:
            thread.start()
        self._caretaker.start()

    def attach(self, sock: socket.socket, region: int) -> EdgeLink:
        """Serve one more edge through a connected socket and the descriptor of its shared memory."""
        return self._required.attach(sock, region)

    def reload(self) -> None:
        """Have files, notices, grants and publishers read again soon."""
        self._caretaker.reload()

    def tick(self) -> None:
        """Once in a while: the clock, licence time, the days that licences have left, and the catalog with them."""
        self._clock.look()
        if time.monotonic() - self._time_raised >= _DAY:  # so that a wrong clock gains no more than a day a day
            self._required.call(self._try_to_raise_time)
        self._watch.look(self._licence_time(int(time.time())))
        self._required.announce()
        if self._pruner is not None:
            self._pruner.tick()

    def stop(self) -> None:
        """Answer what waits, record the stop, close everything."""
        self._caretaker.stop()
        self._required.stop()
        end = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        if self._log.available and not any(thread.is_alive() for thread in self._threads):
            with contextlib.suppress(AuditUnavailable):  # the disk is full: the next start says what is missing
                self._log.commit([{"event": "stop"}])
        self.close()

    def close(self) -> None:
        """Zero the weights and close the log and the links."""
        if self._service is not None:
            self._service.close()
        self._repository.close()
        self._log.close()

    @property
    def _required(self) -> Service:
        if self._service is None:
            raise AssertionError("an engine that did not start")
        return self._service

    def _make_caretaker(self, values: EngineValues, identities: Callable[[], Identities]) -> Caretaker:
        folder, stopping = values.repository, threading.Event()
        named = tuple(map(Path, values.models))
        watcher = Watcher(named, None if folder is None else Path(folder.folder), Path(values.publishers))
        gate = Gate(
            self._repository, self._required, self._scheduler, self._log, self._journal, self._metrics,
            drain_seconds=values.drain_seconds,
        )  # fmt: skip
        reloader = Reloader(
            watcher, self._loader, SiteTrust(Path(values.publishers), self._loader, gate), gate, self._repository,
            self._metrics, VersionPolicy(folder.latest, folder.sequences) if folder else VersionPolicy(),
            renewed=self._watch.renewed, stopping=stopping.is_set,
        )  # fmt: skip
        recheck = Recheck(self._repository, gate, self._metrics)
        return Caretaker(
            watcher, reloader, recheck, self._repository, identities, stopping,
            watch_seconds=folder.watch_seconds if folder else 0.0, recheck_seconds=values.recheck_seconds,
        )  # fmt: skip

    def _make_pruner(self, values: EngineValues) -> Pruner | None:
        if values.retention_days is None:
            return None
        cursor = None if values.forward_cursor is None else Path(values.forward_cursor)
        retention = Retention(Path(values.audit_directory), values.retention_days, cursor)
        return Pruner(retention, lambda event: self._required.call(lambda: self._journal.record(event)).result())

    def _admin(self, operation: str, fields: dict[str, Any]) -> dict[str, Any]:
        return self._caretaker.admin(operation, fields)

    def _run(self, device: int) -> None:
        try:
            self._required.run(device)
        except Exception:
            _logger.exception("the engine's thread failed")
            if self._failed is not None:
                self._failed()

    def _try_to_raise_time(self) -> None:
        try:
            self._raise_time()
        except (AuditError, TrustStateInvalid) as error:  # a full disk: the next tick tries again
            _logger.warning("licence time was not recorded: %s", error.message)

    def _raise_time(self) -> None:
        """Remember the time, if the kernel vouches for it."""
        if self._synchronised():
            self._journal.change(self._journal.state.current.with_time(int(time.time())))
            self._time_raised = time.monotonic()

    def _show(self, told: EnvironmentValues | None, devices: tuple[str, ...]) -> environment.Host:
        """Show what was found of the runtime, and the host; the repository tells the edge and the log."""
        found = msgspec.structs.asdict(told) if told else dataclasses.asdict(environment.unjudged())
        here = environment.this_host(host.cuda(devices))
        shown = {**found, "digest": found["digest"] or self._repository.runtime, **here.record()}
        self._repository.environment = shown
        self._metrics.environment.info({name: str(value or "") for name, value in shown.items() if name != "findings"})
        self._metrics.environment_findings.set(shown["findings"])
        return here

    def _start_record(self, values: EngineValues, devices: tuple[str, ...]) -> dict[str, Any]:
        return {
            "event": "start",
            "version": values.version,
            "runtime": self._repository.runtime,
            "environment": self._repository.environment,
            "trust_state": self._journal.state.current.digest,
            "recovered_bytes": self._log.recovered_bytes,
            "swap": hardening.swap_in_use(),
            "devices": list(devices),
            "confinement": self._confinement,
            "host": {device: environment.host_class(host.arithmetic(device)).record() for device in devices},
        }

    def _licence_time(self, now: int) -> int:
        return self._loader.policy.licence_time(now)
