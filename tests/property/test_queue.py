"""The queue against a plain list: nothing is lost, nothing is given out twice, and every count is right at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queued import Link, job, version

from pericard.engine.scheduler import Job, Scheduler
from pericard.errors import Overloaded, PipeError, RateLimited

ENDS: list[Link] = []  # two, while this module's tests run


@pytest.fixture(scope="module", autouse=True)
def _ends() -> Iterator[None]:
    ENDS[:] = [Link(), Link()]
    yield
    for end in ENDS:
        end.close()


class Queue(RuleBasedStateMachine):
    """The scheduler against a plain list, in an order of its own."""

    LIMIT, PER_CALLER = 12, 7

    def __init__(self) -> None:
        super().__init__()
        self.versions = [version(1, 1), version(2, 1, 3), version(3, 1, 2, 4)]
        self.found = Scheduler(self.LIMIT, per_caller=self.PER_CALLER)
        self.waiting: list[Job] = []
        self.work: list[Job] = []
        self.clock = 0.0
        self.given: Counter[Job] = Counter()

    def under_way(self) -> list[Job]:
        return self.waiting + self.work

    @rule(edge=st.integers(0, 1), number=st.integers(0, 9), which=st.integers(0, 2), priority=st.integers(1, 3),
          wait=st.sampled_from([0.5, 3.0, 1000.0]), who=st.sampled_from("ab"))  # fmt: skip
    def submit(self, edge: int, number: int, which: int, priority: int, wait: float, who: str) -> None:
        self.clock += 1.0
        link, served = ENDS[edge].link, self.versions[which]
        made = job(link, number, served, priority=priority, deadline=self.clock + wait, who=who, at=self.clock)
        error: Any = None
        if any(one.link is link and one.number == number for one in self.waiting):
            error = PipeError
        elif len(self.waiting) >= self.LIMIT:
            error = Overloaded
        elif sum(one.caller.principal == who for one in self.under_way()) >= self.PER_CALLER:
            error = RateLimited
        if error is None:
            self.found.submit(made)
            self.waiting.append(made)
        else:
            with pytest.raises(error):
                self.found.submit(made)

    @rule(edge=st.integers(0, 1), number=st.integers(0, 9))
    def cancel(self, edge: int, number: int) -> None:
        link = ENDS[edge].link
        wanted = next((one for one in self.waiting if one.link is link and one.number == number), None)
        assert self.found.cancel(link, number) is wanted
        self.waiting = [one for one in self.waiting if one is not wanted]

    @rule(edge=st.integers(0, 1))
    def drop(self, edge: int) -> None:
        gone = self.found.drop(ENDS[edge].link)
        assert gone == [one for one in self.waiting if one.link is ENDS[edge].link]
        self.waiting = [one for one in self.waiting if one not in gone]

    @rule(later=st.sampled_from([0.0, 0.6, 2.0]))
    def take(self, later: float) -> None:
        self.clock += later
        work = self.found.take(self.clock)
        assert work is not None
        for one in work.jobs + work.late:
            self.given[one] += 1
            self.waiting.remove(one)
        assert all(one.deadline >= self.clock for one in work.jobs)
        assert all(one.deadline < self.clock for one in work.late)
        if work.jobs:
            served = work.jobs[0].served
            order = [(one.question.priority, one.accepted) for one in work.jobs]
            assert order == sorted(order)
            assert {one.served for one in work.jobs} == {served}
            assert len(work.jobs) <= served.buckets[-1]
            left = [one for one in self.waiting if one.served is served]
            assert not left or len(work.jobs) == served.buckets[-1]  # whoever fits is taken along
            assert all((one.question.priority, one.accepted) > order[-1] for one in left)
        else:
            assert not self.waiting
        self.work += work.jobs + work.late

    @precondition(lambda self: self.work)
    @rule()
    def finish(self) -> None:
        self.found.finish(self.work)
        self.work = []

    @invariant()
    def the_counts_are_right(self) -> None:
        assert len(self.found) == len(self.waiting)
        assert all(count == 1 for count in self.given.values())
        for served in self.versions:
            assert served.waiting == sum(one.served is served for one in self.under_way())
            assert self.found.settled(served, 0) == (served.waiting == 0)
        assert self.found._callers == Counter(one.caller.principal for one in self.under_way())
        assert (self.found.due() is None) == (not self.waiting)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
