"""The engine's threads: take a batch, compute, record, and only then answer.

One thread for each device. The order for every batch is fixed: (1) copy each row once into memory of our own and check
*that copy*; (2) one forward pass over a padded bucket; (3) one audit group for answers, refusals and events, durable;
(4) the answers leave. Only (2) runs on several threads at once: whoever writes the log or changes what is served does
it alone. Whatever goes wrong with one item becomes that item's error; only an audit failure refuses the whole group.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from pericard.audit import AuditLog, Entry, opening_key
from pericard.audit.log import MAX_RECORDS
from pericard.engine import records
from pericard.engine.batch import Batcher, Item, late
from pericard.engine.evidence import Evidence
from pericard.engine.rates import Rates
from pericard.engine.reception import Admin, Reception
from pericard.engine.refusals import Refusals
from pericard.engine.repository import Repository, Served
from pericard.engine.scheduler import Scheduler, Work
from pericard.engine.statistics import Statistics
from pericard.errors import AuditError, AuditUnavailable, BackendFailed, PericardError
from pericard.keys import LogKey
from pericard.metrics import Metrics
from pericard.pipe import EdgeLink, error_frame

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_TICK_SECONDS = 0.5
_LONG_SECONDS = 0.02  # a pass that takes longer is not waited for by whoever only wants to be counted or refused
_GLANCE_SECONDS = 0.1  # between two looks at whether a pass takes longer than it should
_MOST_WAITING = 10_000  # records that wait for a log that cannot be written


class Service:
    """Answers jobs and writes the log."""

    def __init__(
        self,
        repository: Repository,
        log: AuditLog,
        key: LogKey,
        metrics: Metrics,
        scheduler: Scheduler,
        *,
        threads: int,
        devices: tuple[str, ...],
        admin: Admin,
        rates: Rates | None = None,
    ) -> None:
        """Take what the engine made.

        Args:
            repository: what is served.
            log: open for writing.
            key: of the log.
            metrics: counts.
            scheduler: where jobs wait.
            threads: per operator; goes into every record.
            devices: one thread computes on each.
            admin: carries out operations on the repository, on a thread of its own.
            rates: how fast a caller may ask.
        """
        self._repository = repository
        self._log = log
        self._key = key
        self._metrics = metrics
        self._scheduler = scheduler
        self._threads = threads
        self._refusals = Refusals()
        self._waiting: list[dict[str, Any]] = []  # records of events that are not durable yet
        self._reopened = float("-inf")
        self._recovered = log.recovered_bytes  # what records tell already
        self._running = 0  # threads
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._batchers: tuple[dict[int, Batcher], ...] = tuple({} for _ in devices)
        self._statistics: dict[int, Statistics] = {}
        self._heads: dict[tuple[int, str], bytes] = {}
        self._turn = threading.Lock()  # who waits for frames and takes work
        self._books = threading.RLock()  # who writes the log, or changes what is served
        self._long = threading.Event()
        self._begun = [math.inf] * len(devices)  # when the pass of each device began
        self._announcing = threading.Lock()  # edges hear catalogs in the order in which they were made
        self._announced = 0
        self._reception = Reception(
            repository, scheduler, metrics, self._refusals,
            rates=rates or Rates(), admin=admin, statistics=self.statistics,
            evidence=Evidence(log, self.call).read,
        )  # fmt: skip
        metrics.audit_available.set(1)

    # --- for the engine's other rooms, from any thread ---------------------------------------------------------------

    def attach(self, sock: socket.socket, region: int) -> EdgeLink:
        """Serve one more edge, through a connected socket and its region's descriptor.

        Raises:
            PipeError: the region is not one.
        """
        link = EdgeLink(sock, region)
        with self._announcing:
            link.catalog(self._repository.catalog())
            self._reception.add(link)
        return link

    def announce(self) -> None:
        """Tell every edge what is served now."""
        with self._announcing:
            catalog = self._repository.catalog()
            self._announced = int(catalog["generation"])
            for link in self._reception.links:
                link.catalog(catalog)

    def call(self, work: Callable[[], _T]) -> Future[_T]:
        """Run something between two batches, where it alone may use the log and the trust journal."""
        future: Future[_T] = Future()
        with self._books:  # or the last thread could end between the question and the answer
            if not self._running:
                _run(work, future)
                return future
            self._calls.append((work, future))
        self._reception.wake()
        return future

    def settled(self, served: Served, timeout: float) -> bool:
        """Wait until nobody asks a version any more: every edge heard the last catalog, and no job of it is left."""
        latest = time.monotonic() + timeout
        announced = self._announced
        while any(link.heard < announced for link in self._reception.links) and time.monotonic() < latest:
            time.sleep(0.005)
        done = self._scheduler.settled(served, max(0.0, latest - time.monotonic()))
        for batchers in self._batchers:  # also if it is not: the version goes, and they hold it
            batchers.pop(served.number, None)
        self._statistics.pop(served.number, None)
        for head in [head for head in list(self._heads) if head[0] == served.number]:
            self._heads.pop(head, None)
        return done and time.monotonic() <= latest

    def statistics(self) -> list[dict[str, object]]:
        """What every version did so far, as the protocol writes it."""
        found = []
        for served in list(self._repository):
            counted = self._statistics.get(served.number) or Statistics()
            found.append(counted.body(served.name, str(served.sequence)))
        return found

    def stop(self) -> None:
        """Accept nothing more; the threads end once everything is answered."""
        self._scheduler.stop()
        self._reception.wake()

    def close(self) -> None:
        """Close the links."""
        self._reception.close()

    # --- the threads -------------------------------------------------------------------------------------------------

    def run(self, device: int) -> None:
        """Work until the scheduler is stopped and empty; one thread for each device."""
        with self._books:
            self._running += 1
        if device == 0:
            threading.Thread(target=self._relieve, name="reception", daemon=True).start()
        try:
            while True:
                with self._turn:
                    work = self._next()
                if work is None:
                    break
                self.process(work, device)
        finally:
            self._reception.wake()  # the next thread, if any, finds the end too
        with self._books:
            self._keep(self._refusals.due(force=True))
        self.process(Work([], [], []), device)
        with self._books:
            self._running -= 1
            self._settle_calls()
        self._long.set()

    def _next(self) -> Work | None:
        """Read what is there until there is something to do, or it is time to look after the log."""
        tick = time.monotonic() + _TICK_SECONDS
        self._reception.read(0)
        while True:
            self._settle_calls()
            work = self._scheduler.take()
            if work is None or work:
                return work
            due, now = self._scheduler.due(), time.monotonic()
            if now >= tick:
                return work
            self._reception.read(min(tick, due if due is not None else tick) - now)

    def _relieve(self) -> None:
        """Read in the place of a thread that computes for long, so that overload and metrics are answered meanwhile."""
        while True:
            expected = self._long.wait(_GLANCE_SECONDS)
            if not self._running:
                return
            if not expected and not self._surprised():
                continue
            if self._turn.acquire(timeout=_TICK_SECONDS):
                try:
                    if self._long.is_set() and self._running:
                        self._reception.read(_LONG_SECONDS)
                except Exception:  # the computing threads read too; they will meet it, and say so
                    _logger.exception("reading in the place of a busy thread failed")
                finally:
                    self._turn.release()

    def _surprised(self) -> bool:
        """Whether a pass takes long that was not expected to; then it counts as one that was."""
        if min(self._begun) > time.monotonic() - _LONG_SECONDS:
            return False
        self._long.set()
        if min(self._begun) == math.inf:  # it ended meanwhile
            self._long.clear()
        return True

    def _settle_calls(self) -> None:
        if self._calls:
            with self._books:
                while self._calls:
                    _run(*self._calls.popleft())

    @contextmanager
    def _relieved(self, device: int, seconds: float) -> Iterator[None]:
        """Have somebody else read while this thread computes for so long, or longer than it should."""
        self._begun[device] = time.monotonic()
        if seconds >= _LONG_SECONDS:
            self._long.set()
        try:
            yield
        finally:
            self._begun[device] = math.inf
            if self._long.is_set():
                self._long.clear()
                self._reception.wake()

    def process(self, work: Work, device: int) -> None:
        """Answer one batch of one model and record it together with the events."""
        items = [Item(job) for job in work.jobs]
        everything = items + [late(job) for job in work.late]
        computed = time.monotonic()
        try:
            with self._books:
                self._keep(work.events + self._refusals.due())
                self._require_log()
            if items:
                self._compute(items, device)
                computed = time.monotonic()
            answers = self._recorded(everything, device)
            self._finish(everything)  # before its caller hears of it, and asks for its share again
        except AuditError as error:
            self._finish(everything)
            self._metrics.audit_available.set(0)
            if not isinstance(error, AuditUnavailable):
                _logger.critical("nothing is answered until an operator looked at the log: %s", error.message)
            self._refuse(
                everything, AuditUnavailable("audit log: cannot be written at the moment", hint="try again later")
            )
        else:
            self._reply(answers)
        finally:
            self._score(everything, time.monotonic() - computed)

    def _finish(self, items: list[Item]) -> None:
        self._scheduler.finish(item.job for item in items)

    def _compute(self, items: list[Item], device: int) -> None:
        served = items[0].job.served
        try:
            self._repository.find(served.number)  # raises if it was taken out of service while they waited
            licence = self._repository.state_of_licence(served, int(time.time()))
        except PericardError as error:
            for item in items:
                item.error = error
            return
        for item in items:
            item.licence = licence
        batcher = self._batchers[device].get(served.number)
        if batcher is None:
            batcher = self._batchers[device][served.number] = Batcher(served, device)
        try:
            with self._relieved(device, batcher.expected(len(items))):
                batcher.compute(items)
        except Exception:  # a mistake of ours costs the batch, not the engine, which would take minutes to come back
            _logger.exception("model %s: a batch failed inside", served.name)
            for item in items:
                item.error = item.error or BackendFailed(f"model {served.name}: the computation failed inside")
                item.answer = None
        self._count(served, items, batcher)

    def _count(self, served: Served, items: list[Item], batcher: Batcher) -> None:
        done = [item for item in items if item.bucket]
        with self._books:
            statistics = self._statistics.setdefault(served.number, Statistics())
            for item in done:
                statistics.queue.add(item.queued)
                self._metrics.queue_seconds.observe(item.queued)
            if done:
                statistics.executed(len(done), batcher.copied, done[0].computed)
                self._metrics.batch_seconds.observe(done[0].computed)
                self._metrics.batch_size.observe(len(done))

    # --- evidence ----------------------------------------------------------------------------------------------------

    def _keep(self, found: list[dict[str, Any]]) -> None:
        """Have records written with the next group, or with the first one that the log takes again."""
        room = max(0, _MOST_WAITING - len(self._waiting))
        self._waiting += found[:room]
        if len(found) > room:
            self._refusals.suppress(len(found) - room)

    def _require_log(self) -> None:
        """Reopen a log that failed, at most once a second."""
        if self._log.available:
            return
        if time.monotonic() - self._reopened < 1.0:
            raise AuditUnavailable("audit log: cannot be written at the moment", hint="try again in a second")
        self._reopened = time.monotonic()
        self._log.reopen()
        self._metrics.audit_available.set(1)
        told = {"event": "log-recovered", "bytes": self._log.recovered_bytes - self._recovered}
        again = bool(self._waiting) and self._waiting[0]["event"] == told["event"]  # a full disk fails once a second
        self._waiting[: int(again)] = [told]

    def _recorded(self, items: list[Item], device: int) -> list[tuple[Item, Entry, bytes]]:
        """Make what waits and the items durable; each item with its entry and its opening key."""
        runtime, where = self._repository.runtime, self._device(items, device)
        with self._books:
            index = self._log.next_index + len(self._waiting)
            keys = [opening_key(self._key.commitment_key, index + place) for place in range(len(items))]
            made = [
                records.prediction(item, key, runtime=runtime, device=where, threads=self._threads)
                for item, key in zip(items, keys, strict=True)
            ]
            entries = self._commit(made)
        return list(zip(items, entries, keys, strict=True))

    def _device(self, items: list[Item], device: int) -> str:
        return items[0].job.served.models[device].device if items else ""

    def _commit(self, answers: list[dict[str, Any]]) -> list[Entry]:
        """Make what waits and the answers durable, in groups that the log takes; the entries of the answers."""
        found = self._waiting + answers
        if not found:
            self._log.publish()  # nothing to do: a good time to show how far the log is
            return []
        started = time.perf_counter()
        entries: list[Entry] = []
        for first in range(0, len(found), MAX_RECORDS):
            entries += self._log.commit(found[first : first + MAX_RECORDS])
            self._recovered = self._log.recovered_bytes
            del self._waiting[:MAX_RECORDS]  # they come first, so these are the ones that are durable now
        self._metrics.audit_commit_seconds.observe(time.perf_counter() - started)
        self._metrics.audit_size.set(self._log.next_index)
        return entries[len(entries) - len(answers) :]

    # --- answers -----------------------------------------------------------------------------------------------------

    def _reply(self, answers: list[tuple[Item, Entry, bytes]]) -> None:
        """Release the answers, one send per edge."""
        outgoing: dict[EdgeLink, list[bytes]] = {}
        grouped: dict[tuple[EdgeLink, bytes], list[bytes]] = {}
        counts: Counter[tuple[str, str]] = Counter()
        for item, entry, key in answers:
            counts[item.job.served.name, "ok" if item.error is None else item.error.code] += 1
            packed = records.answered(item, entry, key)
            if packed is None:
                outgoing.setdefault(item.job.link, []).append(records.refused(item))
            else:
                grouped.setdefault((item.job.link, self._head(item)), []).append(packed)
        for (link, head), entries in grouped.items():
            outgoing.setdefault(link, []).extend(records.frames(head, entries))
        for (name, status), count in counts.items():
            self._metrics.requests.labels(status).inc(count)
            self._metrics.predictions.labels(name, status).inc(count)
        for link, frames in outgoing.items():
            link.send(frames)

    def _head(self, item: Item) -> bytes:
        key = (item.job.served.number, item.licence)
        head = self._heads.get(key)
        if head is None:
            head = records.shared(item, runtime=self._repository.runtime, log=self._log.origin)
            self._heads[key] = head
        return head

    def _score(self, items: list[Item], seconds: float) -> None:
        """Count rows for the statistics of their versions; records and answers took so many seconds."""
        now = time.monotonic()
        done = [item.job.served.number for item in items if item.bucket]
        with self._books:
            for item in items:
                statistics = self._statistics.setdefault(item.job.served.number, Statistics())
                (statistics.success if item.error is None else statistics.fail).add(now - item.job.accepted)
            if done:
                self._statistics[done[0]].finished(len(done), seconds)

    def _refuse(self, items: list[Item], error: PericardError) -> None:
        """The whole group failed: nothing was recorded, so nothing is answered."""
        for item in items:
            item.error = error
            item.job.link.send([error_frame(item.job.number, error)])
        self._metrics.requests.labels(error.code).inc(len(items))


def _run(work: Callable[[], _T], future: Future[_T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001  (whoever waits for it gets it)
        future.set_exception(error)
