"""What strangers are refused, summed: none of it costs a frame, a line or a write of its own.

A refusal in a quiet second is told at once; those of a flood once a second, one sum for each address and code. No
refusal is lost while the engine is away, and none is told twice. What is remembered is bounded: beyond that, a refusal
is counted under its code alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from pericard.edge.refusals_log import RefusalsLog
from pericard.errors import Unauthenticated
from pericard.pipe import EngineLink

_SECONDS = 1.0
_MOST_SUMS = 4096
_logger = logging.getLogger(__name__)


class Strangers:
    """Counts on an event loop, and tells the engine and the text log."""

    def __init__(self, link: EngineLink, log: RefusalsLog | None = None) -> None:
        """Tell the engine behind ``link``, and write what was refused a credential into ``log``."""
        self._link = link
        self._log = log
        self._sums: Counter[tuple[str, str]] = Counter()  # by address and code
        self._failed: Counter[str] = Counter()  # by address: refused credentials that no log line tells of yet
        self._clock: asyncio.TimerHandle | None = None
        self._told = float("-inf")
        self._writing: asyncio.Future[None] | None = None

    def refused(self, code: str, address: str) -> None:
        """Count one refusal; never waits."""
        sums = self._sums
        known = (address, code) in sums or len(sums) < _MOST_SUMS
        sums[address if known else "", code] += 1
        if self._log is not None and code == Unauthenticated.code:
            self._failed[address if address in self._failed or len(self._failed) < _MOST_SUMS else ""] += 1
        if self._clock is None:
            loop = asyncio.get_running_loop()
            self._clock = loop.call_at(max(loop.time(), self._told + _SECONDS), self._tell)

    async def finish(self) -> None:
        """Tell what is left: no more is refused."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        self._tell_engine()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._log is not None and self._failed:
            self._log.write(self._failed)

    def _tell(self) -> None:
        """Tell everything; what cannot be told now is told with the next second's."""
        loop = asyncio.get_running_loop()
        self._clock, self._told = None, loop.time()
        self._tell_engine()
        if self._log is not None and self._failed and self._writing is None:
            counts, self._failed = self._failed, Counter()
            # on another thread: a disk that hangs holds no caller up
            self._writing = loop.run_in_executor(None, self._log.write, counts)
            self._writing.add_done_callback(self._written)
        if self._sums or self._failed:
            self._clock = loop.call_later(_SECONDS, self._tell)

    def _tell_engine(self) -> None:
        for (address, code), count in list(self._sums.items()):
            if not self._link.event({"event": "refused", "code": code, "address": address, "count": count}):
                return
            del self._sums[address, code]

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        if not done.cancelled() and (error := done.exception()) is not None:
            _logger.error("refusals log: failed: %s", type(error).__name__)
