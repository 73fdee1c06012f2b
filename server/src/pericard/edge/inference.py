"""Rows on their way to the engine and back, whatever protocol brought them.

Each row is written once, into its place in the region, and asked about on its own: what is wrong with one is its own
error. A caller that leaves takes its questions with it. What the engine said, it counted and recorded; of every other
error of a row it is told here, and nowhere else. Nothing here waits: whoever does says what happens then.
"""

from __future__ import annotations

import asyncio
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from pericard.auth import Principal
from pericard.edge.catalog import Model
from pericard.edge.http import Gone, Head
from pericard.errors import Cancelled, DeadlineExceeded, PericardError
from pericard.pipe import Answer, EngineLink, Question
from pericard.pipe.frames import DEFAULT_PRIORITY

# what does not fit a float becomes an infinity, which the engine refuses; telling numpy each time costs more than a row
warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)

Row = tuple[NDArray[np.generic], ...]
Note = Callable[[PericardError, Head, Principal], None]

_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_NO_TRACE = "0" * 32
_MOST_CALLERS = 4096


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is to be answered.

    Attributes:
        seconds: how long its caller waits.
        priority: 1 comes first.
    """

    seconds: float
    priority: int = DEFAULT_PRIORITY


class Pending:
    """The rows of one request while the engine has some of them.

    Whoever waits is let go of when the wait is over: what refers to itself stays until the garbage collector's next
    round, which then stops every request for tens of milliseconds.

    Attributes:
        answers: an answer or an error for each row, in the rows' order; whole once :meth:`then` calls back.
    """

    __slots__ = ("_abandon", "_done", "_gone", "_late", "_left", "_numbers", "answers")

    def __init__(self, abandon: Callable[[int], None], gone: Gone, late: Callable[[], PericardError]) -> None:
        self.answers: list[Answer | PericardError] = []
        self._abandon = abandon
        self._gone = gone
        self._late = late
        self._left = 0
        self._numbers: list[int] = []
        self._done: Callable[[], None] | None = None

    def then(self, done: Callable[[], None]) -> None:
        """Call back once every row has its answer, or the caller left; at once if that is so already."""
        if self._left > 0:
            self._done = done
        else:
            done()

    async def wait(self) -> list[Answer | PericardError]:
        """Wait until every row has its answer.

        Raises:
            Cancelled: the caller left.
        """
        if self._left > 0:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._done = partial(_wake, future)
            try:
                await future
            except asyncio.CancelledError:
                self._done = None
                self.abandon()
                raise
        return self.found()

    def found(self) -> list[Answer | PericardError]:
        """The answers of every row.

        Raises:
            Cancelled: the caller left before.
        """
        if self._left < 0:
            raise Cancelled("request: its caller left")
        return self.answers

    def abandon(self) -> None:
        """Nobody waits any more."""
        if self._left > 0:
            self._left = -1
            for number in self._numbers:
                self._abandon(number)
            self._over()

    def watch(self) -> None:
        """Every row was asked: from now on, a caller that leaves is heard of."""
        if self._left > 0:
            self._gone.then(self.abandon)

    def asked(self, number: int) -> None:
        """One more row is under way; :meth:`settle` is told of it."""
        self._numbers.append(number)
        self._left += 1

    def settle(self, place: int, found: Answer | PericardError | None) -> None:
        """One row has its answer, or waited too long."""
        self.answers[place] = self._late() if found is None else found
        self._left -= 1
        if not self._left:
            self._over()

    def _over(self) -> None:
        self._gone.forget()
        done, self._done = self._done, None
        if done is not None:
            done()


class Inference:
    """Asks the engine about rows."""

    def __init__(self, link: EngineLink, note: Note) -> None:
        """Take the engine's link, and what tells the engine of a refusal."""
        self._link = link
        self._note = note
        self._callers: dict[tuple[object, ...], bytes] = {}

    def begin(
        self, rows: Sequence[Row | PericardError], model: Model, terms: Terms, *, head: Head, principal: Principal
    ) -> Pending:
        """Ask about every row that is one; if the caller leaves, nobody waits any more."""
        link = self._link
        pending = Pending(link.abandon, head.gone, partial(self._late, terms.seconds, head, principal))
        request_id, trace = head.request_id.encode("ascii"), trace_of(head)
        caller = self._caller(principal, head.address)
        # the engine's clock starts later than ours, and must not end before it
        deadline = math.ceil(terms.seconds * 1000)
        for place, row in enumerate(rows):
            try:
                if isinstance(row, PericardError):
                    raise row
                slot = link.reserve(_size(row, model))
                try:
                    _write(row, model, slot.view)
                except BaseException:
                    link.release(slot)
                    raise
                question = Question(
                    slot.offset, slot.size, model.number, deadline, terms.priority, request_id, trace, caller
                )
                pending.answers.append(_NOT_YET)
                pending.asked(link.infer(slot, question, terms.seconds, partial(pending.settle, place)))
            except PericardError as error:
                self._note(error, head, principal)
                pending.answers[place:] = [error]
        pending.watch()
        return pending

    def _late(self, seconds: float, head: Head, principal: Principal) -> PericardError:
        error = DeadlineExceeded(f"answer: did not come within {seconds:g} seconds", hint="try again later")
        self._note(error, head, principal)  # our clock: to the engine, its caller left
        return error

    def _caller(self, principal: Principal, address: str) -> bytes:
        key = (principal.name, principal.credential, address, principal.limits)
        found = self._callers.get(key)
        if found is None:
            who: dict[str, object] = {
                "principal": principal.name, "credential": principal.credential, "address": address
            }  # fmt: skip
            if principal.limits is not None:
                who["limits"] = principal.limits
            found = msgspec.json.encode(who)
            if len(self._callers) >= _MOST_CALLERS:
                self._callers.clear()
            self._callers[key] = found
        return found


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():  # who waited may be on its way out already
        future.set_result(None)


_NOT_YET = PericardError("answer: is not there yet")


def _size(row: Row, model: Model) -> int:
    if len(row) == 1:
        return row[0].size * model.dtypes[0].itemsize
    return sum(array.size * dtype.itemsize for array, dtype in zip(row, model.dtypes, strict=True))


def _write(row: Row, model: Model, view: memoryview) -> None:
    """Put a row's arrays, one after the other, where the engine will read them; numbers take the inputs' types."""
    start = 0
    for array, dtype in zip(row, model.dtypes, strict=True):
        target = np.frombuffer(view, dtype, array.size, start)
        target[:] = array.reshape(-1)
        start += target.nbytes


def trace_of(head: Head) -> bytes:
    """The trace id of a request's ``traceparent`` (W3C Trace Context); empty without a valid one."""
    given = head.headers.get("traceparent", "")
    match = _TRACE.fullmatch(given) if given else None
    return match[1].encode("ascii") if match and match[1] != _NO_TRACE and not given.startswith("ff") else b""
