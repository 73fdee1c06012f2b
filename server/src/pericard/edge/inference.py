"""Rows on their way to the engine and back, whatever protocol brought them.

Each row is written once, into its place in the region, and asked about on its own: what is wrong with one is its own
error. A caller that leaves takes its questions with it. What the engine said, it counted and recorded; of every other
error of a row it is told here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from pericard.auth import Principal
from pericard.edge.catalog import Model
from pericard.edge.http import Head
from pericard.errors import Cancelled, DeadlineExceeded, PericardError
from pericard.pipe import Answer, Asked, EngineLink, Question
from pericard.pipe.frames import DEFAULT_PRIORITY

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


class Inference:
    """Asks the engine about rows."""

    def __init__(self, link: EngineLink, note: Note) -> None:
        """Take the engine's link, and what tells the engine of a refusal."""
        self._link = link
        self._note = note
        self._callers: dict[tuple[str, str], bytes] = {}

    async def ask(
        self, rows: Sequence[Row | PericardError], model: Model, terms: Terms, *, head: Head, principal: Principal
    ) -> list[Answer | PericardError]:
        """Ask about every row that is one; answers and errors in the rows' order.

        Raises:
            Cancelled: the caller left.
        """
        asked: list[Asked | PericardError] = []
        request_id, trace = head.request_id().encode("ascii"), trace_of(head)
        caller = self._caller(principal, head.address)
        # the engine's clock starts later than ours, and must not end before it
        deadline = math.ceil(terms.seconds * 1000)
        for row in rows:
            try:
                if isinstance(row, PericardError):
                    raise row
                slot = self._link.reserve(_size(row, model))
                try:
                    _write(row, model, slot.view)
                except BaseException:
                    self._link.release(slot)
                    raise
                question = Question(
                    slot.offset, slot.size, model.number, deadline, terms.priority, request_id, trace, caller
                )
                asked.append(self._link.infer(slot, question, terms.seconds))
            except PericardError as error:
                self._note(error, head, principal)
                asked.append(error)
        answers = await self._answers(asked, head)
        for one, answer in zip(asked, answers, strict=True):
            if isinstance(one, Asked) and isinstance(answer, DeadlineExceeded):
                self._note(answer, head, principal)  # our clock: to the engine, its caller left
        return answers

    async def _answers(self, asked: list[Asked | PericardError], head: Head) -> list[Answer | PericardError]:
        """Wait for all of them; whoever leaves before takes them along."""
        head.gone.then(lambda: self._abandon(asked))
        try:
            return [one if isinstance(one, PericardError) else await _answer(one) for one in asked]
        except asyncio.CancelledError:
            if head.gone.happened:  # and all of them were abandoned with it
                raise Cancelled("request: its caller left") from None
            self._abandon(asked)
            raise

    def _abandon(self, asked: list[Asked | PericardError]) -> None:
        for one in asked:
            if isinstance(one, Asked):
                if one.future.done() and not one.future.cancelled():
                    one.future.exception()  # nobody will ask for it
                self._link.abandon(one)

    def _caller(self, principal: Principal, address: str) -> bytes:
        key = (principal.credential, address)
        found = self._callers.get(key)
        if found is None:
            who = {"principal": principal.name, "credential": principal.credential, "address": address}
            found = msgspec.json.encode(who)
            if len(self._callers) >= _MOST_CALLERS:
                self._callers.clear()
            self._callers[key] = found
        return found


async def _answer(asked: Asked) -> Answer | PericardError:
    try:
        return await asked.future
    except PericardError as error:
        return error


def _size(row: Row, model: Model) -> int:
    return sum(array.size * dtype.itemsize for array, dtype in zip(row, model.dtypes, strict=True))


def _write(row: Row, model: Model, view: memoryview) -> None:
    """Put a row's arrays, one after the other, where the engine will read them; numbers take the inputs' types."""
    start = 0
    with np.errstate(over="ignore"):  # what does not fit a float becomes an infinity, which the engine refuses
        for array, dtype in zip(row, model.dtypes, strict=True):
            np.frombuffer(view, dtype, array.size, start)[:] = array.reshape(-1)
            start += array.size * dtype.itemsize


def trace_of(head: Head) -> bytes:
    """The trace id of a request's ``traceparent`` (W3C Trace Context); empty without a valid one."""
    given = head.headers.get("traceparent", "")
    match = _TRACE.fullmatch(given) if given else None
    return match[1].encode("ascii") if match and match[1] != _NO_TRACE and not given.startswith("ff") else b""
