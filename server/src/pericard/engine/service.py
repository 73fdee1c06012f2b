"""The engine's one thread: batch, check, compute, record, and only then answer.

The order for every group is fixed: (1) copy each row once into memory of our own and check *that copy*; (2) one forward
pass over a padded bucket; (3) one audit group for answers, refusals and events, durable; (4) the answers leave.
Whatever goes wrong with one item becomes that item's error; only an audit failure refuses the whole group.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pericard.audit import AuditLog, Entry, commit, opening_key
from pericard.audit.log import MAX_RECORDS
from pericard.engine import quality
from pericard.engine.refusals import Refusals
from pericard.engine.repository import Repository
from pericard.engine.scheduler import Job, Scheduler
from pericard.errors import (
    AuditError,
    AuditUnavailable,
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    MalformedRequest,
    NotInterpretable,
    PericardError,
    PipeError,
    leaves,
)
from pericard.keys import LogKey
from pericard.metrics import Metrics
from pericard.pipe import EdgeLink, Frame, FrameType, encode
from pericard.pipe.engine_end import error_frame
from pericard.runtime.loader import LoadedModel

_logger = logging.getLogger(__name__)
_MAX_WAIT_MS = 600_000
_LONGEST = 200
_TICK_SECONDS = 0.5
_MOST_WAITING = 10_000  # records that wait for a log that cannot be written
_CALLER_FIELDS = ("principal", "credential", "address", "request")
_EVENT_FIELDS = ("event", "code", *_CALLER_FIELDS, "model", "operation")


class _Item:
    """One job on its way through a group: either an error or an answer, and its record."""

    __slots__ = ("answer", "error", "inputs", "job", "licence", "timing")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error: PericardError | None = None
        self.inputs: bytes = b""  # the bytes that were checked and computed on
        self.answer: bytes | None = None
        self.licence = ""
        self.timing: dict[str, int] = {}


class Service:
    """Answers jobs and writes the log; :meth:`run` is the engine's thread."""

    def __init__(
        self,
        repository: Repository,
        log: AuditLog,
        key: LogKey,
        metrics: Metrics,
        scheduler: Scheduler,
        *,
        threads: int,
    ) -> None:
        """Take what the engine made; ``threads`` goes into every record."""
        self._repository = repository
        self._log = log
        self._key = key
        self._metrics = metrics
        self._scheduler = scheduler
        self._threads = threads
        self._refusals = Refusals()
        self._codes = frozenset(leaves())
        self._waiting: list[dict[str, Any]] = []  # records of events that are not durable yet
        self._reopened = float("-inf")
        metrics.audit_available.set(1)

    # --- called on the reading threads -------------------------------------------------------------------------------

    def receive(self, link: EdgeLink, frame: Frame) -> None:
        """Take one frame from an edge."""
        if frame.type is FrameType.INFER:
            try:
                self._scheduler.submit(_job(link, frame))
            except PericardError as error:
                self._metrics.requests.labels(error.code).inc()
                link.send([error_frame(frame.request, error)])
        elif frame.type is FrameType.METRICS:
            self._metrics.queue_depth.set(len(self._scheduler))
            link.send([encode(FrameType.ANSWER, frame.request, {}, self._metrics.render())])
        elif frame.type is FrameType.CANCEL:
            self._scheduler.cancel(link, frame.request)
        elif frame.type is FrameType.EVENT:
            self._event(_fields(frame.meta, _EVENT_FIELDS))
        else:
            raise PipeError(f"pipe: an edge sent a frame of type {frame.type.name}")

    def _event(self, event: dict[str, str]) -> None:
        """Count an event; a refusal of a stranger becomes part of a minute's sum instead of a record."""
        code = event.get("code", "")
        if code:
            self._metrics.requests.labels(code if code in self._codes else "unknown").inc()
        if event.get("event") == "refused" and "principal" not in event:
            self._refusals.add(event.get("address", ""), code)
        elif not self._scheduler.record(event):
            self._refusals.suppress(1)

    # --- the engine's thread -----------------------------------------------------------------------------------------

    def run(self, between: Callable[[], None] = lambda: None) -> None:
        """Work until the scheduler is stopped and empty; ``between`` is called after each batch, and when idle."""
        while (work := self._scheduler.take(_TICK_SECONDS)) is not None:
            self.process(*work)
            between()
        self._keep(self._refusals.due(force=True))
        self.process([], [])

    def process(self, jobs: list[Job], events: list[dict[str, Any]]) -> None:
        """Answer one batch of one model and record it together with the events."""
        items = [_Item(job) for job in jobs if not job.cancelled]
        self._keep(events + self._refusals.due())
        try:
            self._require_log()
            if items:
                self._compute(items)
            index = self._log.next_index + len(self._waiting)
            keys = [opening_key(self._key.commitment_key, index + place) for place in range(len(items))]
            entries = self._commit([self._record(item, key) for item, key in zip(items, keys, strict=True)])
        except AuditError as error:
            self._metrics.audit_available.set(0)
            if not isinstance(error, AuditUnavailable):
                _logger.critical("nothing is answered until an operator looked at the log: %s", error.message)
            self._refuse(items, AuditUnavailable("audit log: cannot be written at the moment", hint="try again later"))
            return
        self._reply(
            (item, {"log": self._log.origin, "index": entry.index, "leaf": entry.leaf, "opening_key": key.hex()})
            for item, entry, key in zip(items, entries, keys, strict=True)
        )

    def _keep(self, records: list[dict[str, Any]]) -> None:
        """Have records written with the next group, or with the first one that the log takes again."""
        room = _MOST_WAITING - len(self._waiting)
        self._waiting += records[:room]
        if len(records) > room:
            self._refusals.suppress(len(records) - room)

    def _require_log(self) -> None:
        """Reopen a log that failed, at most once a second."""
        if self._log.available:
            return
        if time.monotonic() - self._reopened < 1.0:
            raise AuditUnavailable("audit log: cannot be written at the moment", hint="try again in a second")
        self._reopened = time.monotonic()
        self._log.reopen()
        self._metrics.audit_available.set(1)

    def _commit(self, answers: list[dict[str, Any]]) -> list[Entry]:
        """Make what waits and the answers durable, in groups that the log takes; the entries of the answers."""
        records = self._waiting + answers
        if not records:
            self._log.publish()  # nothing to do: a good time to show how far the log is
            return []
        started = time.perf_counter()
        entries: list[Entry] = []
        for first in range(0, len(records), MAX_RECORDS):
            entries += self._log.commit(records[first : first + MAX_RECORDS])
            del self._waiting[:MAX_RECORDS]  # they come first, so these are the ones that are durable now
        self._metrics.audit_commit_seconds.observe(time.perf_counter() - started)
        self._metrics.audit_size.set(self._log.next_index)
        return entries[len(entries) - len(answers) :]

    # --- one batch ---------------------------------------------------------------------------------------------------

    def _compute(self, items: list[_Item]) -> None:
        try:
            model = self._repository.get(items[0].job.model)
            licence = self._repository.licence(model, int(time.time()))
        except PericardError as error:
            for item in items:
                item.error = error
            return
        live = []
        for item in items:
            item.licence = licence
            try:
                live.append((item, _row(model, item)))
            except PericardError as error:
                item.error = error
        if live:
            self._forward(model, live)

    def _forward(self, model: LoadedModel, live: list[tuple[_Item, tuple[NDArray[np.generic], ...]]]) -> None:
        started = time.monotonic()
        bucket = model.bucket(len(live))
        inputs = tuple(_padded([row[slot] for _, row in live], bucket) for slot in range(len(model.description.inputs)))
        try:
            outputs = model.infer(inputs)
        except BackendFailed as error:
            if len(live) == 1:
                live[0][0].error = error
                return
            # one of them is to blame: halve until it stands alone, so that its neighbours are answered
            middle = len(live) // 2
            self._forward(model, live[:middle])
            self._forward(model, live[middle:])
            return
        seconds = time.monotonic() - started
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_size.observe(len(live))
        for place, (item, _) in enumerate(live):
            waited = started - item.job.accepted
            self._metrics.queue_seconds.observe(waited)
            if not all(np.isfinite(output[place]).all() for output in outputs if output.dtype.kind == "f"):
                item.error = BackendFailed(f"model {model.description.name}: the answer is not a finite number")
                continue
            item.answer = b"".join(output[place].tobytes() for output in outputs)
            item.timing = {
                "bucket": bucket,
                "place": place,
                "threads": self._threads,
                "queue_us": int(waited * 1e6),
                "infer_us": int(seconds * 1e6),
            }

    def _record(self, item: _Item, key: bytes) -> dict[str, Any]:
        meta = item.job.meta
        record: dict[str, Any] = {
            "event": "predict",
            "outcome": "ok" if item.error is None else item.error.code,
            "runtime": self._repository.runtime,
            **{name: meta.get(name, "") for name in _CALLER_FIELDS},
            **item.timing,
        }
        try:
            model = self._repository.get(item.job.model)
        except PericardError:
            record["model"] = {"name": item.job.model}
        else:
            record["model"] = self._repository.identity(model)
            record["device"] = model.device
            record["licence"] = item.licence
        if item.inputs:
            record["input"] = commit(key, "input", item.inputs)
        if item.answer is not None:
            record["answer"] = commit(key, "answer", item.answer)
        return record

    def _reply(self, answers: Iterable[tuple[_Item, dict[str, Any]]]) -> None:
        """Release the answers, one send per edge."""
        by_link: dict[EdgeLink, list[bytes]] = {}
        for item, receipt in answers:
            status = "ok" if item.error is None else item.error.code
            self._metrics.requests.labels(status).inc()
            self._metrics.predictions.labels(item.job.model if item.licence else "", status).inc()
            by_link.setdefault(item.job.link, []).append(self._answer(item, receipt))
        for link, frames in by_link.items():
            link.send(frames)

    def _answer(self, item: _Item, receipt: dict[str, Any]) -> bytes:
        if item.error is not None and not isinstance(item.error, NotInterpretable):
            return error_frame(item.job.request, item.error)
        meta: dict[str, Any] = {
            "licence": item.licence,
            "model": self._repository.identity(self._repository.get(item.job.model)),
            "runtime": self._repository.runtime,
            "receipt": receipt,
        }
        if item.error is not None:
            meta["not_interpretable"] = item.error.message
        return encode(FrameType.ANSWER, item.job.request, meta, item.answer or b"")

    def _refuse(self, items: list[_Item], error: PericardError) -> None:
        """The whole group failed: nothing was recorded, so nothing is answered."""
        for link, group in itertools.groupby(items, key=lambda item: item.job.link):
            frames = [error_frame(item.job.request, error) for item in group]
            self._metrics.requests.labels(error.code).inc(len(frames))
            link.send(frames)


def _job(link: EdgeLink, frame: Frame) -> Job:
    wait = frame.meta.get("deadline_ms")
    meta = _fields(frame.meta, ("model", *_CALLER_FIELDS))
    if "model" not in meta or type(wait) is not int or not 0 < wait <= _MAX_WAIT_MS:
        raise MalformedRequest("pipe: an item names no model or no deadline")
    return Job(link, frame.request, meta, frame.body, time.monotonic() + wait / 1000)


def _fields(meta: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What a record takes of a frame: known fields, short text, and nothing that the log cannot encode."""
    texts = {name: meta[name] for name in names if isinstance(meta.get(name), str)}
    return {name: text[:_LONGEST].encode("utf-8", "replace").decode("utf-8") for name, text in texts.items()}


def _row(model: LoadedModel, item: _Item) -> tuple[NDArray[np.generic], ...]:
    """Copy one item's bytes once, and check the copy.

    Raises:
        DeadlineExceeded: nobody waits any more.
        InvalidInput: size or values do not fit.
        NotInterpretable: the signal is flat or clipped.
    """
    if time.monotonic() > item.job.deadline:
        raise DeadlineExceeded("request: waited longer than its deadline", hint="send fewer requests at a time")
    about = model.description
    wanted = sum(spec.row_bytes for spec in about.inputs)
    if len(item.job.body) != wanted:
        raise InvalidInput(f"model {about.name}: takes {wanted} bytes an item, got {len(item.job.body)}")
    item.inputs = bytes(item.job.body)
    rows, offset = [], 0
    for spec in about.inputs:
        count = spec.row_bytes // np.dtype(spec.dtype).itemsize
        row = np.frombuffer(item.inputs, dtype=spec.dtype, count=count, offset=offset).reshape(spec.row_shape)
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            raise InvalidInput(f"model {about.name}: input {spec.name} holds values that are not finite numbers")
        rows.append(row)
        offset += spec.row_bytes
    if about.signal is not None:
        reason = quality.flaw(rows[0], about.signal.unit, about.signal.leads)
        if reason is not None:
            raise NotInterpretable(reason)
    return tuple(rows)


def _padded(rows: list[NDArray[np.generic]], bucket: int) -> NDArray[np.generic]:
    batch = np.zeros((bucket, *rows[0].shape), dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        batch[place] = row
    return batch
