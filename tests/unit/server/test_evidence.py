"""Reading the log over the pipe: what is shown, what it is bounded by, and that it is recorded before it leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from pericard.audit import AuditLog, open_head, open_receipt, pruned, segment
from pericard.audit import note as notes
from pericard.audit import records as records_of
from pericard.audit import tree as trees
from pericard.engine import evidence
from pericard.engine.evidence import Evidence
from pericard.errors import (
    AuditUnavailable,
    EngineAway,
    MalformedRequest,
    Overloaded,
    RecordAltered,
    UnknownRecord,
)
from pericard.keys import LogKey

KEY = LogKey(bytes(range(64)))
CALLER = {"principal": "auditor", "credential": "c-1", "address": "192.0.2.9", "request": "r-9"}


@pytest.fixture
def log(quick: Path) -> Iterator[AuditLog]:
    with AuditLog.open(quick / "log", key=KEY, segment_bytes=20_000) as made:
        for count in (1, 5, 300, 2):
            made.commit([{"event": "predict", "pad": "x" * 20}] * count)
        yield made


def now(work: Callable[[], Any]) -> Future[Any]:
    """Runs what is to be recorded, at once."""
    future: Future[Any] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001  (whoever waits gets it)
        future.set_exception(error)
    return future


@pytest.fixture
def desk(log: AuditLog) -> Evidence:
    return Evidence(log, now)


def last(log: AuditLog) -> dict[str, Any]:
    ((_, record),) = records_of(log.directory, log.next_index - 1)
    return dict(record)


def asked(desk: Evidence, start: int, limit: int = 100) -> Any:
    return json.loads(desk.read("audit-records", {"from": start, "limit": limit}, CALLER))


def test_records_come_in_order_and_say_where_to_go_on(desk: Evidence, log: AuditLog) -> None:
    found: list[int] = []
    while len(found) < 308:
        page = asked(desk, len(found))
        assert (page["log"], page["from"]) == (log.origin, len(found))
        assert page["next"] == len(found) + len(page["records"])
        found += [record["index"] for record in page["records"]]
    assert found[:308] == list(range(308))
    assert asked(desk, log.next_index)["records"] == []  # nothing new


def test_a_page_holds_the_canonical_bytes(desk: Evidence, log: AuditLog) -> None:
    body = desk.read("audit-records", {"from": 6, "limit": 1}, CALLER)
    ((_, record),) = records_of(log.directory, 6, 7)
    assert b'"records":[' + json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"]}" in body


def test_a_page_is_bounded(desk: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MOST_RECORDS", 7)
    assert len(asked(desk, 0, 1000)["records"]) == 7
    monkeypatch.setattr(evidence, "_MOST_BYTES", 300)
    assert 1 < len(asked(desk, 0, 1000)["records"]) < 7
    monkeypatch.setattr(evidence, "_MOST_BYTES", 1)
    assert len(asked(desk, 0, 1000)["records"]) == 1  # always some, or nobody could go on


def test_every_record_has_a_receipt_at_once(desk: Evidence, log: AuditLog) -> None:
    for index in (0, 5, 255, 256, 307):
        entry = log.commit([{"event": "predict"}])[0]  # not published yet
        for wanted in (index, entry.index):
            made = json.loads(desk.read("audit-receipt", {"index": wanted}, CALLER))
            fields = open_receipt(
                made["record"].encode(),
                [bytes.fromhex(node) for node in made["proof"]],
                made["head"].encode(),
                verifier=KEY.verifier,
            )
            assert fields["index"] == made["index"] == wanted
            open_head(made["head"].encode(), log.origin, KEY.verifier, published=True)


def test_the_checkpoint_is_published_for_who_asks(desk: Evidence, log: AuditLog) -> None:
    for size in (308, 310):  # the first reading is a record itself, and one more follows
        head = desk.read("audit-checkpoint", {}, CALLER)
        assert open_head(head, log.origin, KEY.verifier, published=True).size == size
        assert notes.load(log.directory) == head
        log.commit([{"event": "predict"}])


def test_what_was_read_is_recorded_before_it_leaves(desk: Evidence, log: AuditLog) -> None:
    wanted = {
        "audit-records": ({"from": 3, "limit": 2}, {"read": "records", "from": 3, "count": 2}),
        "audit-receipt": ({"index": 4}, {"read": "receipt", "from": 4, "count": 1}),
        "audit-checkpoint": ({}, {"read": "checkpoint"}),
    }
    assert set(wanted) == set(evidence.ASKS)
    for name, (fields, said) in wanted.items():
        desk.read(name, fields, CALLER)
        kept = {key: value for key, value in last(log).items() if key not in {"index", "time", "v"}}
        assert kept == {"event": "audit-read", **CALLER, **said}


def test_nothing_is_shown_that_cannot_be_recorded(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(AuditUnavailable("audit log: cannot be written: no space left on device"))
        return future

    with pytest.raises(AuditUnavailable, match="cannot be written at the moment"):
        Evidence(log, full).read("audit-checkpoint", {}, CALLER)
    monkeypatch.setattr(evidence, "_RECORD_SECONDS", 0.01)
    with pytest.raises(EngineAway, match="did not come round"):
        Evidence(log, lambda _work: Future()).read("audit-checkpoint", {}, CALLER)


def test_what_is_not_there_is_not_guessed(desk: Evidence, log: AuditLog) -> None:
    size = log.next_index
    for name, fields in (("audit-receipt", {"index": size}), ("audit-records", {"from": size + 1, "limit": 1})):
        with pytest.raises(UnknownRecord, match="is not in the log"):
            desk.read(name, fields, CALLER)
    for wrong in (None, -1, 1.5, "1", True, 2**60):
        with pytest.raises(MalformedRequest, match="is not a number"):
            desk.read("audit-receipt", {"index": wrong}, CALLER)
    assert log.next_index == size


def test_a_log_that_is_large_is_read_in_turns(desk: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_READ_SECONDS", 0.0)
    with pytest.raises(Overloaded, match="still being read for the first time"):
        asked(desk, 0)
    assert desk._tree.known == trees.BLOCK
    assert len(asked(desk, 0)["records"]) == 100  # it went on from there


def test_a_log_that_was_altered_gives_no_receipt(desk: Evidence, log: AuditLog) -> None:
    desk.read("audit-receipt", {"index": 1}, CALLER)
    path = log.directory / segment.file_name(0)
    group, *_ = segment.groups(path.read_bytes(), 0, newest=True)
    forged = segment.frame(segment.RECORD, group.records[0].replace(b"predict", b"nothing"))
    path.write_bytes(forged + path.read_bytes()[len(forged) :])
    for _ in range(2):
        with pytest.raises(RecordAltered):
            desk.read("audit-receipt", {"index": 0}, CALLER)


def test_it_lets_the_computing_thread_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    evidence._pause(time.monotonic() + 10)
    assert slept == [0]


def test_what_was_pruned_is_passed_over_and_has_no_receipt(log: AuditLog, desk: Evidence) -> None:
    for part in pruned.prunable(log.directory, before="2999", below=10**9):
        pruned.prune(log.directory, part)
    first = pruned.beginning(log.directory)
    assert 0 < first < log.next_index

    said = json.loads(desk.read("audit-records", {"from": 0, "limit": 2}, CALLER))
    assert (said["from"], said["next"]) == (first, first + 2)
    assert [record["index"] for record in said["records"]] == [first, first + 1]
    with pytest.raises(UnknownRecord, match="record 0: was pruned"):
        desk.read("audit-receipt", {"index": 0}, CALLER)
    assert json.loads(desk.read("audit-receipt", {"index": first}, CALLER))["index"] == first
