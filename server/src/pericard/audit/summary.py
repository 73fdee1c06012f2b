"""Who asked what how often: a log's records counted, for whoever examines it.

Rules of this module: it counts what the records say and proves nothing; that is ``verify``. Counts are kept by values
that the engine wrote, so a caller cannot make them many; of what happened to models the newest are kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pericard.audit.reading import records

MOST_KEPT: Final = 1000
_BEFORE: Final = "\x7f"  # later than any time


@dataclass(slots=True)
class Summary:
    """What was counted.

    Attributes:
        records: in the span of time.
        first: index of the first of them; None if there is none.
        last: index of the last of them.
        asked: rows by principal, model, version and outcome.
        refused: refusals by code and by who was refused, a principal or an address.
        read: readings of the log by principal and what was read.
        models: what became of models, oldest first: the records' own members.
        others: other records by event.
    """

    records: int = 0
    first: int | None = None
    last: int | None = None
    asked: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    read: Counter[tuple[str, str]] = field(default_factory=Counter)
    models: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=MOST_KEPT))
    others: Counter[str] = field(default_factory=Counter)

    def _add(self, record: Mapping[str, object]) -> None:
        event = _text(record, "event")
        model = record.get("model")
        named = model if isinstance(model, Mapping) else {}
        name, version = _text(named, "name"), _text(named, "version")
        if event == "predict":
            self.asked[_text(record, "principal"), name, version, _text(record, "outcome")] += 1
        elif event == "refused":
            count = record.get("count")
            who = _text(record, "principal") or _text(record, "address")
            self.refused[_text(record, "code"), who] += count if type(count) is int else 1
        elif event == "audit-read":
            self.read[_text(record, "principal"), _text(record, "read")] += 1
        elif event.startswith(("model-", "known-answers-")):
            kept = {"time": _text(record, "time"), "event": event, "model": name, "version": version}
            why = {word: _text(record, word) for word in ("asked", "principal", "reason", "code") if word in record}
            self.models.append({**kept, **why})
        else:
            self.others[event] += 1


def summarise(directory: Path, *, since: str = "", until: str = _BEFORE) -> Summary:
    """Count a log's records of a span of time.

    Args:
        directory: the log's directory.
        since: the first moment, as records write time, or the beginning of one (a day).
        until: the first moment that is not counted.

    Raises:
        AuditLogInvalid, RecordAltered, LogTruncated: the log cannot be read.
    """
    found = Summary()
    for index, record in records(directory):
        if since <= _text(record, "time") < until:
            found.records += 1
            found.first, found.last = index if found.first is None else found.first, index
            found._add(record)  # noqa: SLF001  (its own module)
    return found


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""
