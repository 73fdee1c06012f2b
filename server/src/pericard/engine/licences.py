"""Watching licences come to their end: a metric always, a word in both logs at each threshold.

A hospital must hear of it while there is time to ask for a new grant: thirty, seven and one day before the end, when
the grace days begin, and when they are over. Each is said once for each version, licence and start; the times are
licence time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pericard.engine.repository import Repository, Served
from pericard.errors import TrustError
from pericard.metrics import Metrics
from pericard.trust import Licence

_logger = logging.getLogger(__name__)
_THRESHOLDS = ((1, "1-day"), (7, "7-days"), (30, "30-days"))
_STAGES = ("", "30-days", "7-days", "1-day", "grace", "over")


def stage(licence: Licence, now: int) -> str:
    """Where a licence stands at a licence time: empty while its end is far, else one of the thresholds."""
    try:
        state = licence.state(now)
    except TrustError:
        return "over" if now > licence.grant.not_after else ""
    if state == "grace":
        return state
    return next((name for days, name in _THRESHOLDS if licence.days_left(now) <= days), "")


class LicenceWatch:
    """Says once what each licence came to."""

    def __init__(self, repository: Repository, metrics: Metrics, record: Callable[[dict[str, Any]], bool]) -> None:
        """Take the models, the metrics, and who takes events for the audit log (False: not now)."""
        self._repository = repository
        self._metrics = metrics
        self._record = record
        self._said: dict[str, int] = {}  # by manifest: how far it was when it was said last

    def look(self, now: int) -> None:
        """Look at every licence, at a licence time; of several versions of a model, the first to end is measured."""
        days: dict[str, float] = {}
        for served in self._repository:
            name, licence = served.name, served.licence
            days[name] = min(licence.days_left(now), days.get(name, float("inf")))
            reached = stage(licence, now)
            if _STAGES.index(reached) <= self._said.get(served.manifest_hash, 0):
                continue
            event = {
                "event": "licence",
                "state": reached,
                "not_after": licence.grant.not_after,
                "model": served.identity,
            }
            if self._record(event):
                self._said[served.manifest_hash] = _STAGES.index(reached)
                _logger.warning("model %s: %s", name, _WORDS[reached].format(licence.last_day))
        for name, left in days.items():
            self._metrics.licence_days_left.labels(name).set(left)

    def renewed(self, served: Served) -> None:
        """Begin anew with a version that has another licence now."""
        self._said.pop(served.manifest_hash, None)


_WORDS = {
    "30-days": "its licence ends within 30 days, on {}; ask the vendor for a new grant",
    "7-days": "its licence ends within 7 days, on {}; ask the vendor for a new grant",
    "1-day": "its licence ends within a day, on {}; ask the vendor for a new grant",
    "grace": "its licence ended on {}; it is served through its grace days",
    "over": "its licence ended on {}, and its grace days are over; it answers nothing",
}
