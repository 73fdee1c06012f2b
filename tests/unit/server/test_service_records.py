"""What the engine writes down: what a record holds, licences, events, refusals of strangers and of known callers."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
from desk import RUNTIME, Desk
from serving import FAILING, FLAT, GOOD, OTHER, row

from pericard.audit import commit, opening_key
from pericard.audit.proof import leaf_hash
from pericard.engine import reception, refusals, service
from pericard.engine.refusals import Refusals
from pericard.engine.scheduler import Work
from pericard.runtime.loader import LoadedModel
from pericard.trust import Licence


@pytest.fixture
def desk(tmp_path: Path, tiny_model: LoadedModel) -> Iterator[Desk]:
    made = Desk(tmp_path, tiny_model)
    yield made
    made.close()


def broken(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def told(desk: Desk, *events: dict[str, Any]) -> None:
    """Process events alone."""
    desk.service.process(Work([], [], list(events)), 0)


# --- what a record holds ----------------------------------------------------------------------------------------------


def test_a_receipt_opens_its_record(desk: Desk) -> None:
    for _ in range(2):
        desk.event(code="forbidden", principal="ris")
    (said,) = desk.ask(GOOD)
    answer = said.answered
    record = desk.records()[answer.log_index]

    assert (answer.log_index, said.shared["log"]) == (2, desk.log.origin)
    assert answer.leaf == leaf_hash(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())
    assert answer.opening_key == opening_key(desk.key.commitment_key, 2)
    assert record["input"] == commit(answer.opening_key, "input", row(GOOD))
    assert record["answer"] == commit(answer.opening_key, "answer", answer.data)


def test_every_receipt_of_a_batch_opens_what_its_own_caller_sent(desk: Desk) -> None:
    strips = [GOOD, FLAT, OTHER, [value / 2 for value in GOOD]]
    for said, strip in zip(desk.ask(*strips), strips, strict=True):
        record = desk.records()[said.answered.log_index]
        assert said.answered.opening_key == opening_key(desk.key.commitment_key, said.answered.log_index)
        assert record["input"] == commit(said.answered.opening_key, "input", row(strip))
        assert ("answer" in record) == (said.outcome == "ok")
        if said.outcome == "ok":
            assert record["answer"] == commit(said.answered.opening_key, "answer", said.answered.data)


def test_a_record_names_who_and_what_and_holds_no_sample(desk: Desk, tiny_model: LoadedModel) -> None:
    (said,) = desk.ask(GOOD)
    (record,) = desk.records()

    assert set(record) == {
        "event", "outcome", "runtime", "principal", "credential", "address", "request", "bucket", "place", "threads",
        "queue_us", "infer_us", "model", "device", "path", "licence", "input", "answer", "index", "time", "v",
    }  # fmt: skip
    assert (record["principal"], record["credential"], record["address"], record["request"]) == (
        "ris", "abc", "192.0.2.7", "r-1",
    )  # fmt: skip
    assert record["model"] == said.shared["model"]
    assert record["model"]["manifest"] == tiny_model.manifest_hash
    files = b"".join(path.read_bytes() for path in desk.directory.iterdir())
    for secret in (row(GOOD), said.answered.data, said.answered.opening_key):
        assert secret not in files
        assert secret.hex().encode() not in files


def test_request_and_trace_of_a_caller_stand_in_its_record(desk: Desk) -> None:
    trace = b"4bf92f3577b34da6a3ce929d0e0e4736"
    desk.put(GOOD, request_id=b"study-17", trace=trace)
    desk.put(OTHER, request_id=b"study-18")
    desk.step()

    first, second = desk.records()
    assert (first["request"], first["trace"]) == ("study-17", trace.decode())
    assert (second["request"], "trace" in second) == ("study-18", False)


def test_what_an_edge_says_of_a_request_the_log_can_take(desk: Desk) -> None:
    (said,) = desk.ask(GOOD, request_id=b'\xff\x00\n"', trace=b"\x80" * 40)

    assert said.outcome == "ok"
    (record,) = desk.records()
    assert (record["request"], len(record["trace"])) == ('\ufffd\x00\n"', 40)


def test_the_record_says_what_a_replay_needs(desk: Desk) -> None:
    desk.ask(*[GOOD] * 5)

    found = desk.records()
    assert [record["place"] for record in found] == list(range(5))
    for record in found:
        assert (record["bucket"], record["threads"], record["device"], record["runtime"]) == (8, 3, "cpu", RUNTIME)


def test_a_refused_item_is_recorded_with_what_was_checked(desk: Desk) -> None:
    desk.ask(GOOD[:-1], FLAT, FAILING, row(GOOD) + bytes(4))

    short, flat, failing, long = desk.records()
    assert ("input" in short, "answer" in short) == (True, False)
    assert ("input" in flat, "answer" in flat) == (True, False)
    assert ("input" in failing, "answer" in failing) == (True, False)
    assert ("input" in long, "answer" in long) == (False, False)  # its bytes never were an input


def test_a_version_that_there_is_not_is_an_error_and_no_record(desk: Desk) -> None:
    (number,) = desk.put(GOOD, model=99)

    assert desk.first.said(number)[number].outcome == "unknown-model"
    assert desk.metric("pericard_requests_total", code="unknown-model") == 1
    desk.step()
    assert desk.records() == []


LICENCES = [
    ({"not_after": -1, "grace_days": 14}, "ok", "grace"),
    ({"not_after": -14 * serving.DAY + 60, "grace_days": 14}, "ok", "grace"),
    ({"not_after": -14 * serving.DAY - 60, "grace_days": 14}, "licence-expired", None),
    ({"not_after": -1, "grace_days": 0}, "licence-expired", None),
    ({"not_after": 60, "grace_days": 0}, "ok", "valid"),
    ({"not_before": 3600}, "licence-not-yet-valid", None),
]


@pytest.mark.parametrize(("terms", "code", "licence"), LICENCES, ids=str)
def test_the_licence_is_asked_at_every_batch(desk: Desk, terms: dict[str, int], code: str, licence: str | None) -> None:
    now = int(time.time())
    dates = {name: value if name == "grace_days" else now + value for name, value in terms.items()}
    assert desk.ask(GOOD)[0].shared["licence"] == "valid"
    desk.served.licence = Licence(dataclasses.replace(desk.served.licence.grant, **dates))

    said = desk.ask(GOOD, OTHER)

    assert [one.outcome for one in said] == [code] * 2
    records = desk.records()[1:]
    if licence is not None:
        assert {one.shared["licence"] for one in said} == {licence}
        assert {record["licence"] for record in records} == {licence}
    else:
        assert all("answer" not in record and "input" not in record for record in records)


# --- events -----------------------------------------------------------------------------------------------------------


def test_a_flood_of_events_is_recorded_whatever_its_number(desk: Desk) -> None:
    # a group of the log takes 1024 records; the engine must not fall over one more
    for number in range(2500):
        assert desk.scheduler.record({"event": "refused", "code": "forbidden", "request": str(number)})
    (said,) = desk.ask(GOOD)

    found = desk.records()
    assert [record["request"] for record in found[:-1]] == [str(number) for number in range(2500)]
    assert said.answered.log_index == found[-1]["index"] == 2500
    assert found[-1]["input"] == commit(said.answered.opening_key, "input", row(GOOD))


def test_events_wait_for_a_log_that_cannot_be_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", broken)
        for principal in "ab":
            desk.event(code="forbidden", principal=principal)
            desk.ask(GOOD)
    desk.service._reopened = float("-inf")
    told(desk, {"event": "refused", "principal": "c"})

    recovered, *found = desk.records()
    assert recovered["event"] == "log-recovered"
    assert [record["principal"] for record in found] == ["a", "b", "c"]  # the unanswered leave no record


def test_a_log_that_fails_again_and_again_is_one_record(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", broken)
        for _ in range(5):
            desk.service._reopened = float("-inf")
            desk.ask(GOOD)
    desk.service._reopened = float("-inf")
    desk.ask(GOOD)
    recovered, _ = desk.records()
    assert (recovered["event"], recovered["bytes"]) == ("log-recovered", desk.log.recovered_bytes)


def test_what_waits_for_the_log_is_bounded_and_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_MOST_WAITING", 3)
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", broken)
        for number in range(5):
            told(desk, *[{"event": "refused", "principal": str(number)}] * 2)
    desk.service._reopened = float("-inf")
    told(desk)
    desk.scheduler.stop()
    desk.service.run(0)

    found = desk.records()
    assert [record["principal"] for record in found[1:-1]] == ["0", "0", "1"]
    assert found[-1]["suppressed"] == 7


def test_a_log_that_fails_between_two_groups_records_nothing_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1500):
        desk.scheduler.record({"event": "refused", "principal": "ris", "request": str(number)})
    calls = itertools.count()
    real = os.fdatasync

    def second_fails(descriptor: int) -> None:
        if next(calls) == 1:
            broken(descriptor)
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", second_fails)
        assert desk.ask(GOOD)[0].outcome == "audit-unavailable"
    assert len(desk.records()) == 1024
    desk.service._reopened = float("-inf")
    told(desk)

    found = [record for record in desk.records() if record["event"] != "log-recovered"]
    assert [record["request"] for record in found] == [str(number) for number in range(1500)]
    assert len(desk.records()) == 1501


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_strangers_are_summed_by_minute_address_and_reason(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(30):
        desk.event(code="unauthenticated", address="192.0.2.1")
    desk.event(code="unknown-route", address="192.0.2.1")
    desk.event(code="unauthenticated", address="192.0.2.2")
    desk.step()
    assert desk.records() == []  # the minute is not over

    monkeypatch.setattr(refusals, "_SECONDS", 0.0)
    desk.step()

    found = [{name: record[name] for name in ("address", "code", "count")} for record in desk.records()]
    assert found == [
        {"address": "192.0.2.1", "code": "unauthenticated", "count": 30},
        {"address": "192.0.2.1", "code": "unknown-route", "count": 1},
        {"address": "192.0.2.2", "code": "unauthenticated", "count": 1},
    ]
    assert desk.metric("pericard_requests_total", code="unauthenticated") == 31
    desk.step()
    assert len(desk.records()) == 3  # a new minute begins


def test_an_edge_s_sums_are_added_up_exactly(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 70_000, 29):
        desk.event(code="unauthenticated", address="192.0.2.1", count=count)
    desk.event(code="unauthenticated", address="", count=5)  # beyond what the edge remembers
    monkeypatch.setattr(refusals, "_SECONDS", 0.0)
    desk.step()

    summed, rest = desk.records()
    assert (summed["address"], summed["count"], rest["suppressed"]) == ("192.0.2.1", 70_030, 5)
    assert desk.metric("pericard_requests_total", code="unauthenticated") == 70_035


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "7", None, [], 1 << 40])
def test_a_sum_that_is_none_costs_the_edge_its_pipe(desk: Desk, count: object) -> None:
    desk.event(code="unauthenticated", address="192.0.2.1", count=count)

    assert desk.service._reception.links == []


def test_strangers_cause_no_sync(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard.audit.log.os.fdatasync", lambda _: pytest.fail("synced for a stranger"))

    for number in range(1000):
        desk.event(code="unauthenticated", address=f"192.0.2.{number % 250}")
        assert desk.step() == Work([], [], [])  # they take no place in the queue either


def test_at_most_a_thousand_records_a_minute_and_one_number(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1500):
        for _ in range(2 if number < 1200 else 1):
            desk.event(code="unauthenticated", address=f"10.0.{number // 250}.{number % 250}")
    monkeypatch.setattr(refusals, "_SECONDS", 0.0)
    desk.step()

    found = desk.records()
    assert len(found) == 1001
    assert all(record["count"] == 2 for record in found[:1000])  # the loudest first
    assert found[-1]["suppressed"] == 200 * 2 + 300


def test_a_flood_of_addresses_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_MOST_COUNTED", 50)
    found = Refusals()
    for number in range(10_000):
        found.add(f"address {number}", "unauthenticated")
    assert len(found._counts) == 50

    due = found.due(force=True)

    assert sum(record.get("count", 0) + record.get("suppressed", 0) for record in due) == 10_000
    assert found.due(force=True) == []


def test_authenticated_refusals_are_recorded_one_by_one(desk: Desk) -> None:
    desk.event(code="forbidden", address="192.0.2.1", principal="ris", credential="abc", request="r-9")
    desk.step()

    (record,) = desk.records()
    assert {name: record[name] for name in ("event", "code", "principal", "credential", "request")} == {
        "event": "refused", "code": "forbidden", "principal": "ris", "credential": "abc", "request": "r-9",
    }  # fmt: skip


def test_authenticated_refusals_beyond_the_bound_are_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard.engine.scheduler._MOST_EVENTS", 2)
    for number in range(5):
        desk.event(code="forbidden", principal=str(number))
    desk.scheduler.stop()
    desk.service.run(0)

    found = desk.records()
    assert [record.get("principal", record.get("suppressed")) for record in found] == ["0", "1", 3]


HOSTILE: list[dict[str, Any]] = [
    {"code": "x" * 10_000, "principal": "p" * 10_000},
    {"code": "\ud800", "principal": "\udfff\ud800", "address": "\ud800"},
    {"code": ["list"], "principal": {"a": 1}},
    {"code": None, "principal": None},
    {"code": 7, "principal": 7, "request": 1e999},
    {"principal": "ris", "index": 0, "time": "1970", "v": 9, "invented": "x", "outcome": "ok"},
    {},
]


@pytest.mark.parametrize("meta", HOSTILE, ids=",".join)
def test_whatever_an_edge_says_of_an_event_the_log_can_take(desk: Desk, meta: dict[str, Any]) -> None:
    desk.event(**meta)
    desk.step()

    assert desk.ask(GOOD)[0].outcome == "ok"
    for record in desk.records()[:-1]:
        assert set(record) <= {*reception._EVENT_FIELDS, "index", "time", "v", "suppressed"}
        assert all(len(str(value)) <= 200 for value in record.values())


def test_an_edge_that_invents_an_event_is_cut_off(desk: Desk) -> None:
    desk.event(event="model-loaded", principal="ris")

    assert desk.service._reception.links == []
    desk.step()
    assert desk.records() == []
