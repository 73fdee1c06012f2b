from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pericard.audit import AuditLog, summary
from pericard.audit.summary import summarise

Opener = Callable[..., AuditLog]
MODEL = {"name": "ecg", "version": "1.0.0", "manifest": "ab"}


def asked(principal: str, outcome: str = "ok") -> dict[str, Any]:
    return {"event": "predict", "principal": principal, "outcome": outcome, "model": MODEL}


@pytest.fixture
def log(opened: Opener) -> AuditLog:
    log = opened()
    for group in (
        [{"event": "start"}],
        [{"event": "model-loaded", "model": MODEL, "asked": "start"}],
        [asked("ris"), asked("ris"), asked("ris", "not-interpretable"), asked("lab")],
        [{"event": "refused", "code": "forbidden", "principal": "lab"}],
        [{"event": "refused", "code": "unauthenticated", "address": "192.0.2.1", "count": 40}],
        [{"event": "audit-read", "principal": "auditor", "read": "records", "from": 0, "count": 9}],
        [{"event": "model-unloaded", "model": MODEL, "reason": "was replaced"}],
        [{"event": 5}, {"event": "predict", "model": "ecg"}],
    ):
        log.commit(group)
    return log


def test_everything_is_counted_once(log: AuditLog, quick: Path) -> None:
    found = summarise(quick / "log")
    assert (found.records, found.first, found.last) == (12, 0, 11)
    assert found.asked == {
        ("ris", "ecg", "1.0.0", "ok"): 2, ("ris", "ecg", "1.0.0", "not-interpretable"): 1,
        ("lab", "ecg", "1.0.0", "ok"): 1, ("", "", "", ""): 1,
    }  # fmt: skip
    assert found.refused == {("forbidden", "lab"): 1, ("unauthenticated", "192.0.2.1"): 40}
    assert found.read == {("auditor", "records"): 1}
    assert [(one["event"], one["model"], one.get("reason")) for one in found.models] == [
        ("model-loaded", "ecg", None),
        ("model-unloaded", "ecg", "was replaced"),
    ]
    assert found.others == {"start": 1, "": 1}


def test_a_span_of_time(log: AuditLog, quick: Path) -> None:
    times = [record["time"] for _, record in summary.records(quick / "log")]
    found = summarise(quick / "log", since=str(times[2]), until=str(times[6]))
    assert (found.records, found.first, found.last) == (4, 2, 5)
    assert summarise(quick / "log", since="9999").records == 0
    assert summarise(quick / "log", since=str(times[0])[:10]).records == 12


def test_what_became_of_models_is_bounded(opened: Opener, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened()
    log.commit(
        [{"event": "model-loaded", "model": {**MODEL, "version": str(n)}} for n in range(summary.MOST_KEPT + 5)][:1000]
    )
    log.commit([{"event": "model-loaded", "model": {**MODEL, "version": "last"}}])
    found = summarise(quick / "log")
    assert len(found.models) == summary.MOST_KEPT
    assert (found.models[0]["version"], found.models[-1]["version"]) == ("1", "last")
