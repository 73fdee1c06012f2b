"""The two loops: so many at once (closed), or so many a second (open)."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from typing import Literal

import numpy as np

from pericard_client.bench.carrier import Carrier
from pericard_client.bench.payload import Payload
from pericard_client.bench.tally import MOST_REQUESTS, Measurement, Tally, lag_pair, latency_table
from pericard_client.errors import ClientError, TransportError
from pericard_client.wire import Reply

_TICK = 0.05
_PAUSE = 0.1  # a closed loop's worker without a connection waits so long, instead of knocking as fast as it can
_GRACE = 5.0
_CHUNK = 4096

Verdict = Callable[[Reply], ClientError | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What load for how long.

    Attributes:
        concurrency: closed loop: requests at any time; open loop: at most so many.
        duration: seconds that are counted.
        warmup: seconds before, under the same load, that are not.
        requests: end after so many, if that is earlier.
        rate: requests a second, whatever the server does; None: the closed loop.
        arrivals: how the open loop's requests are spread: independently (``poisson``) or evenly (``uniform``).
        seed: of the Poisson arrivals.
    """

    concurrency: int
    duration: float
    warmup: float = 0.0
    requests: int | None = None
    rate: float | None = None
    arrivals: Literal["poisson", "uniform"] = "poisson"
    seed: int = 0


def arrivals(plan: Plan, rate: float) -> Iterator[float]:
    """When each request is due, in seconds from the start; without an end."""
    if plan.arrivals == "uniform":
        yield from (each / rate for each in count())
    random, last = np.random.default_rng(plan.seed), 0.0
    while True:
        times = last + np.cumsum(random.exponential(1 / rate, _CHUNK))
        last = float(times[-1])
        yield from times.tolist()


class Load:
    """One run of a plan.

    Args:
        plan: the load.
        items: strips in each request.
        carrier: to the server; it is closed at the end.
        payloads: requests, which take turns.
        verdict: what a reply is worth.
    """

    def __init__(self, plan: Plan, items: int, carrier: Carrier, payloads: Sequence[Payload], verdict: Verdict) -> None:
        self._plan, self._items, self._carrier, self._verdict = plan, items, carrier, verdict
        self._payloads, self._number = cycle(payloads), count(1)
        self._limit = min(plan.requests or MOST_REQUESTS, MOST_REQUESTS)
        self._tally = Tally()
        self._due: Iterator[float] = iter(()) if plan.rate is None else arrivals(plan, plan.rate)
        self._start = self._begin = self._end = 0.0
        self._taken = 0
        self._cpu: list[tuple[float, float]] = []
        self._in_flight = 0

    def run(self) -> Measurement:
        """Ask once, warm up, measure; Ctrl-C ends it early with what was measured until then.

        Raises:
            ClientError: the first request was refused; no load was made.
            KeyboardInterrupt: broken off before there was any load.
        """
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            return runner.run(self._run())

    async def _run(self) -> Measurement:
        try:
            await self._probe()
            interrupted = await self._measure()
        finally:
            self._carrier.close()
        return self._measurement(interrupted=interrupted)

    async def _probe(self) -> None:
        watch = asyncio.create_task(self._watch())
        try:
            error = self._verdict(await self._carrier.ask(next(self._payloads).parts(0)))
        finally:
            watch.cancel()
        if error is not None:
            raise error

    async def _measure(self) -> bool:
        """Run the workers; whether they were broken off."""
        plan, loop = self._plan, asyncio.get_running_loop()
        self._start = time.monotonic()
        self._begin = self._start + plan.warmup
        self._end = self._begin + plan.duration
        snapshots = [loop.call_at(at, self._snapshot) for at in (self._begin, self._end)]
        workers = [asyncio.create_task(self._work()) for _ in range(plan.concurrency)]
        watch = asyncio.create_task(self._watch())
        interrupted = False
        try:
            # The carrier gives up each request in time; this bound is for what nobody thought of.
            await asyncio.wait(workers, timeout=self._end - self._start + 2 * self._carrier.timeout + _GRACE)
        except asyncio.CancelledError:
            interrupted = True
            self._end = min(self._end, time.monotonic())
        for snapshot in snapshots:
            snapshot.cancel()
        if len(self._cpu) < len(snapshots):
            self._snapshot()
        for task in (watch, *workers):
            task.cancel()
        ends = await asyncio.gather(watch, *workers, return_exceptions=True)
        for failure in ends:
            if isinstance(failure, Exception):  # a cancellation is none
                raise failure
        return interrupted

    async def _work(self) -> None:
        """Take the next request when free, wait until it is due, send it; one that is due already has waited."""
        while (due := self._next()) is not None:
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            error = await self._one(due)
            if self._plan.rate is None and isinstance(error, TransportError):
                await asyncio.sleep(_PAUSE)

    def _next(self) -> float | None:
        """When the next request is due; None at the end."""
        now = time.monotonic()
        if now >= self._end or self._taken >= self._limit:
            return None
        due = now if self._plan.rate is None else self._start + next(self._due)
        while due < self._begin <= now:  # what the warm-up left behind is not counted, so it is not sent
            due = self._start + next(self._due)
        if due >= self._end:
            return None
        self._taken += due >= self._begin
        return due

    async def _one(self, due: float) -> ClientError | None:
        counted = due >= self._begin
        parts = next(self._payloads).parts(next(self._number))
        if counted:
            self._tally.start(due=due, sent=time.monotonic())
        try:
            error = self._verdict(await self._carrier.ask(parts))
        except ClientError as failure:
            error = failure
        if counted:
            self._tally.end(due=due, done=time.monotonic(), error=error)
        return error

    async def _watch(self) -> None:
        """Give up what waits too long, and see how late this loop wakes."""
        while True:
            wanted = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            if self._begin <= wanted and now <= self._end:
                self._tally.lags.append(now - wanted)
            self._carrier.expire()

    def _snapshot(self) -> None:
        self._cpu.append((time.process_time(), time.monotonic()))
        self._in_flight = self._carrier.in_flight

    def _backlog(self) -> tuple[int, float]:
        """Arrivals that were due by the end and taken by no worker, and how long the first of them had waited."""
        waiting, oldest = 0, 0.0
        for offset in self._due:
            waited = self._end - (self._start + offset)
            if waited <= 0 or waiting >= self._limit - self._taken:
                break
            oldest = oldest or waited
            waiting += 1
        return waiting, oldest

    def _measurement(self, *, interrupted: bool) -> Measurement:
        tally = self._tally
        whole = self._taken >= self._limit  # as many as were wanted: the time ends with the last of them
        seconds = max(tally.last, 0.0 if whole else self._end) - self._begin
        backlog, oldest = self._backlog()
        (cpu_before, before), (cpu_after, after) = self._cpu[0], self._cpu[-1]
        return Measurement(
            seconds=max(0.0, seconds),
            started=tally.started,
            answered=tally.answered,
            items=tally.answered * self._items,
            failures=dict(tally.failures.most_common()),
            examples=tally.examples,
            latencies=latency_table(tally.latencies),
            samples=len(tally.latencies),
            late=tally.late,
            backlog=backlog,
            backlog_age=oldest,
            in_flight=self._in_flight,
            unanswered=tally.started - tally.answered - tally.failures.total(),
            offered=self._plan.rate,
            cpu=(cpu_after - cpu_before) / (after - before) if after > before else 0.0,
            lag=lag_pair(tally.lags),
            interrupted=interrupted,
        )


def _precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop that wakes at the microsecond: ``epoll`` rounds up to milliseconds, ``select`` does not."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
