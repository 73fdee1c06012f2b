"""The queue: bounded, and a batch is what arrived while the engine was busy.

There is no batch timer. The oldest item decides which model is next; everything that waits for the same model joins
it, up to the model's largest batch. Items whose deadline passed or whose caller left are dropped before they cost a
forward pass. Events share the queue, so that one thread writes the log in one order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pericard.errors import ModelNotReady, Overloaded
from pericard.pipe import EdgeLink

_MOST_EVENTS = 10_000


@dataclass(slots=True)
class Job:
    """One item that waits for an answer.

    Attributes:
        link: where the answer goes.
        request: the edge's number for it.
        meta: what the edge said of it, as short text: model, principal, credential, request id, address.
        body: the input's bytes.
        deadline: ``time.monotonic()`` after which nobody waits.
        accepted: ``time.monotonic()`` when it was accepted.
        cancelled: set when the caller left.
    """

    link: EdgeLink
    request: int
    meta: dict[str, str]
    body: bytes
    deadline: float
    accepted: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def model(self) -> str:
        """Name of the model it asks."""
        return self.meta["model"]


Work = tuple[list[Job], list[dict[str, Any]]]


class Scheduler:
    """Jobs and events on their way to the engine's thread."""

    def __init__(self, limit: int, max_batch: Callable[[str], int]) -> None:
        """Hold at most ``limit`` jobs; ``max_batch`` gives a model's largest batch."""
        self._limit = limit
        self._max_batch = max_batch
        self._jobs: deque[Job] = deque()
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._stopping = False

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Overloaded: the queue is full.
            ModelNotReady: the engine is stopping.
        """
        with self._changed:
            if self._stopping:
                raise ModelNotReady("engine: is stopping", hint="try again in a second")
            if len(self._jobs) >= self._limit:
                raise Overloaded(f"engine: {self._limit} requests wait already", hint="try again later")
            self._jobs.append(job)
            self._changed.notify()

    def record(self, event: dict[str, Any]) -> bool:
        """Queue an event for the audit log; never waits. False if too many wait already, and it was not taken."""
        with self._changed:
            if len(self._events) >= _MOST_EVENTS:
                return False
            self._events.append(event)
            self._changed.notify()
            return True

    def cancel(self, link: EdgeLink, request: int) -> None:
        """Mark a queued job whose caller left."""
        with self._changed:
            for job in self._jobs:
                if job.request == request and job.link is link:
                    job.cancelled = True

    def take(self, timeout: float) -> Work | None:
        """The next batch of one model and all events; waits up to ``timeout`` seconds. None once stopped and empty."""
        with self._changed:
            if not self._jobs and not self._events and not self._stopping:
                self._changed.wait(timeout)
            if self._stopping and not self._jobs and not self._events:
                return None
            events, self._events = self._events, []
            return self._batch(), events

    def _batch(self) -> list[Job]:
        if not self._jobs:
            return []
        model = self._jobs[0].model
        limit = self._max_batch(model)
        batch: list[Job] = []
        others: deque[Job] = deque()
        while self._jobs and len(batch) < limit:
            job = self._jobs.popleft()
            (batch if job.model == model else others).append(job)
        self._jobs.extendleft(reversed(others))
        return batch

    def stop(self) -> None:
        """Accept nothing more; what waits is still answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._jobs)
