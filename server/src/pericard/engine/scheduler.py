"""The queue: bounded, and a batch is what arrived while the engine was busy.

There is no batch timer (a delay may be asked for; its default is none). Among what waits, the most urgent item, and of
those the oldest, decides which model is next; everything that waits for the same model joins it, the most urgent
first, up to the model's largest batch. An item whose deadline passed is handed out apart, before it costs a forward
pass, and one whose caller left is dropped. One caller cannot take the whole queue. Events share it, so that they are
written in the order in which they came.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pericard.engine.rates import NO_LIMITS, Limits
from pericard.engine.repository import Served
from pericard.errors import ModelNotReady, Overloaded, PipeError, RateLimited
from pericard.pipe import EdgeLink, Question
from pericard.pipe.frames import PRIORITIES

_MOST_EVENTS = 10_000


class Caller(NamedTuple):
    """Who asks, as the edge vouches for it."""

    principal: str
    credential: str
    address: str
    limits: Limits = NO_LIMITS


@dataclass(slots=True, eq=False)
class Job:
    """One row that waits for an answer.

    Attributes:
        link: where the answer goes, and where the row lies.
        number: the edge's number for it.
        question: what was asked.
        served: the version of the model that answers.
        caller: who asks.
        deadline: ``time.monotonic()`` after which nobody waits.
        accepted: ``time.monotonic()`` when it was accepted.
    """

    link: EdgeLink
    number: int
    question: Question
    served: Served
    caller: Caller
    deadline: float
    accepted: float = field(default_factory=time.monotonic)


class Work(NamedTuple):
    """What one turn has to do.

    Attributes:
        jobs: of one model, at most its largest batch.
        late: of any model; nobody waits for them any more.
        events: for the audit log.
    """

    jobs: list[Job]
    late: list[Job]
    events: list[dict[str, Any]]

    def __bool__(self) -> bool:
        return bool(self.jobs or self.late or self.events)


class _Queue:
    """What waits for one version of a model: one line for each priority, oldest first."""

    def __init__(self, served: Served) -> None:
        self.served = served
        # ordered dictionaries: whoever leaves, leaves at once, however long the line is
        self.lines: tuple[OrderedDict[Job, None], ...] = tuple(OrderedDict() for _ in range(PRIORITIES))

    def __len__(self) -> int:
        return sum(map(len, self.lines))

    def first(self) -> tuple[int, float]:
        """What decides whose turn it is: the priority and the age of the first in line."""
        return next((place, next(iter(line)).accepted) for place, line in enumerate(self.lines) if line)

    def oldest(self) -> float:
        """When the one that waits longest was accepted."""
        return min(next(iter(line)).accepted for line in self.lines if line)


class Scheduler:
    """Jobs and events on their way to the engine's threads; every method may be called from any thread."""

    def __init__(self, limit: int, *, per_caller: int | None = None, delay: float = 0.0) -> None:
        """Hold at most ``limit`` jobs.

        Args:
            limit: jobs that may wait.
            per_caller: jobs of one principal that may wait or be in work; without end by default.
            delay: seconds that the first job of a batch may wait for others, while there is room in the batch.
        """
        self._limit = limit
        self._per_caller = math.inf if per_caller is None else per_caller
        self._delay = delay
        self._queues: dict[int, _Queue] = {}
        self._jobs: dict[tuple[EdgeLink, int], Job] = {}  # those that wait
        self._callers: Counter[str] = Counter()
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._stopping = False

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Overloaded: the queue is full.
            RateLimited: its caller has too many jobs here already.
            ModelNotReady: the engine is stopping.
            PipeError: its edge has one that waits under the same number.
        """
        principal = job.caller.principal
        with self._lock:
            if (job.link, job.number) in self._jobs:
                raise PipeError("pipe: an edge asked two questions under one number")
            if self._stopping:
                raise ModelNotReady("engine: is stopping", hint="try again in a second")
            if len(self._jobs) >= self._limit:
                raise Overloaded(f"engine: {self._limit} requests wait already", hint="try again later")
            own = job.caller.limits.rows
            most = self._per_caller if own is None else own
            if self._callers[principal] >= most:
                raise RateLimited(
                    f"{principal}: has {most} requests under way already",
                    hint="send fewer requests at a time",
                )
            self._callers[principal] += 1
            queue = self._queues.get(job.served.number)
            if queue is None:
                queue = self._queues[job.served.number] = _Queue(job.served)
            queue.lines[job.question.priority - 1][job] = None
            job.served.waiting += 1
            self._jobs[job.link, job.number] = job

    def record(self, event: dict[str, Any]) -> bool:
        """Queue an event for the audit log; never waits. False if too many wait already, and it was not taken."""
        with self._lock:
            if len(self._events) >= _MOST_EVENTS:
                return False
            self._events.append(event)
            return True

    def cancel(self, link: EdgeLink, number: int) -> Job | None:
        """Drop a job that still waits because its caller left; None if it does not wait any more."""
        with self._lock:
            job = self._jobs.pop((link, number), None)
            if job is None:
                return None
            self._withdraw(job)
            return job

    def drop(self, link: EdgeLink) -> list[Job]:
        """Drop every job of an edge that is gone."""
        with self._lock:
            found = [job for job in self._jobs.values() if job.link is link]
            for job in found:
                del self._jobs[job.link, job.number]
                self._withdraw(job)
        return found

    def take(self, now: float | None = None) -> Work | None:
        """The next batch of one model, what is too late, and all events; nothing waits. None once stopped and empty."""
        moment = time.monotonic() if now is None else now
        with self._lock:
            events, self._events = self._events, []
            late: list[Job] = []
            jobs = self._batch(moment, late)
            if self._stopping and not self._jobs and not (jobs or late or events):
                return None
            return Work(jobs, late, events)

    def due(self) -> float | None:
        """When :meth:`take` will find something, by ``time.monotonic()``; None if nothing waits."""
        with self._lock:
            if self._events or self._stopping:
                return 0.0
            moments = [
                0.0 if len(queue) >= queue.served.buckets[-1] else queue.oldest() + self._delay
                for queue in self._queues.values()
            ]
            return min(moments, default=None)

    def finish(self, jobs: Iterable[Job]) -> None:
        """Jobs that were taken have been answered, or given up."""
        with self._lock:
            for job in jobs:
                self._leave(job)

    def stop(self) -> None:
        """Accept nothing more; what waits is still answered."""
        with self._lock:
            self._stopping = True

    def settled(self, served: Served, timeout: float) -> bool:
        """Wait until no job of a version waits or is in work; False if that took too long."""
        with self._idle:
            return self._idle.wait_for(lambda: served.waiting == 0, timeout)

    def __len__(self) -> int:
        return len(self._jobs)

    # --- under the lock ----------------------------------------------------------------------------------------------

    def _withdraw(self, job: Job) -> None:
        """Take a job out of its line."""
        queue = self._queues[job.served.number]
        del queue.lines[job.question.priority - 1][job]
        if not len(queue):
            del self._queues[job.served.number]
        self._leave(job)

    def _leave(self, job: Job) -> None:
        principal = job.caller.principal
        self._callers[principal] -= 1
        if not self._callers[principal]:
            del self._callers[principal]
        job.served.waiting -= 1
        if not job.served.waiting:
            self._idle.notify_all()

    def _batch(self, now: float, late: list[Job]) -> list[Job]:
        """The batch whose turn it is; what is too late is moved to ``late`` on the way."""
        for queue in sorted(self._queues.values(), key=_Queue.first):
            room = queue.served.buckets[-1]
            if self._delay and not self._stopping and len(queue) < room and now < queue.oldest() + self._delay:
                continue  # it may still grow
            batch = self._taken(queue, room, now, late)
            if not len(queue):
                del self._queues[queue.served.number]
            if batch:
                return batch
        return []

    def _taken(self, queue: _Queue, room: int, now: float, late: list[Job]) -> list[Job]:
        batch: list[Job] = []
        for line in queue.lines:
            while line and len(batch) < room:
                job, _ = line.popitem(last=False)
                del self._jobs[job.link, job.number]
                (late if job.deadline < now else batch).append(job)
        return batch
