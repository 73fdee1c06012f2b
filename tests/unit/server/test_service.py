"""The engine's one thread, step by step, with a real model and a real log.

``Desk`` holds everything but the thread: a test says what is in a batch and looks at frames, records and metrics.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import CLIPPED, FAILING, FLAT, GOOD, OTHER, question, row

from pericard.audit import AuditLog, commit, opening_key, records
from pericard.audit.proof import leaf_hash
from pericard.engine import refusals, service
from pericard.engine.refusals import Refusals
from pericard.engine.repository import Repository
from pericard.engine.scheduler import Job, Scheduler
from pericard.engine.service import Service
from pericard.errors import AuditUnavailable, PipeError
from pericard.keys import LogKey
from pericard.metrics import Metrics
from pericard.pipe import EdgeLink, Frame, FrameReader, FrameType
from pericard.runtime.loader import LoadedModel
from pericard.trust import Licence

RUNTIME = "ab" * 32


class Desk:
    """A service on a log of its own, with one edge whose frames can be read."""

    def __init__(self, folder: Path, *models: LoadedModel, queue: int = 16) -> None:
        self.key = LogKey(bytes(range(64)))
        self.directory = folder / "audit"
        self.log = AuditLog.open(self.directory, key=self.key)
        self.repository = Repository(runtime=RUNTIME)
        for model in models:
            self.repository.add(model)
        self.metrics = Metrics()
        self.scheduler = Scheduler(queue, lambda _: 8)
        self.service = Service(self.repository, self.log, self.key, self.metrics, self.scheduler, threads=3)
        self._edges: list[socket.socket] = []
        self._links: list[EdgeLink] = []
        self.link = self.edge()
        self._numbers = itertools.count(1)

    def edge(self) -> EdgeLink:
        ours, theirs = socket.socketpair()
        ours.settimeout(2)
        self._edges.append(ours)
        self._links.append(EdgeLink(theirs, self.service.receive))
        return self._links[-1]

    def close(self) -> None:
        self.log.close()
        for part in (*self._edges, *self._links):
            part.close()

    def job(self, samples: list[float] | bytes, *, model: str = "ecg-anomaly", **changes: Any) -> Job:
        body = samples if isinstance(samples, bytes) else row(samples)
        meta = {name: str(value) for name, value in question(model).items() if name != "deadline_ms"}
        return Job(changes.pop("link", self.link), next(self._numbers), meta, body, time.monotonic() + 5, **changes)

    def ask(self, *jobs: Job, events: list[dict[str, Any]] | None = None) -> dict[int, Frame]:
        """Process one batch; the frames that came back, by request."""
        self.service.process(list(jobs), events or [])
        return {frame.request: frame for frame in self.frames()}

    def frames(self, edge: int = 0) -> list[Frame]:
        found, reader = [], FrameReader()
        self._edges[edge].setblocking(False)
        try:
            while data := self._edges[edge].recv(1 << 20):
                found += reader.feed(data)
        except BlockingIOError:
            pass
        return found

    def records(self) -> list[dict[str, Any]]:
        return [dict(record) for _, record in records(self.directory)]

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def desk(tmp_path: Path, tiny_model: LoadedModel) -> Iterator[Desk]:
    made = Desk(tmp_path, tiny_model)
    yield made
    made.close()


def outcome(frame: Frame) -> str:
    """``ok``, ``not-interpretable``, or the error's code."""
    if frame.type is FrameType.ERROR:
        return str(frame.meta["code"])
    return "not-interpretable" if "not_interpretable" in frame.meta else "ok"


def values(frame: Frame) -> list[float]:
    return serving.numbers(frame)


# --- the order of things ----------------------------------------------------------------------------------------------


def test_compute_then_record_then_answer(desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def spied(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            steps.append(f"{name} begins")
            result = real(*arguments)
            steps.append(f"{name} ends")
            return result

        return step

    monkeypatch.setattr(tiny_model, "infer", spied("infer", tiny_model.infer))
    monkeypatch.setattr(desk.log, "commit", spied("commit", desk.log.commit))
    monkeypatch.setattr(desk.link, "send", spied("send", desk.link.send))
    desk.ask(desk.job(GOOD), desk.job(OTHER))

    order = ["infer", "commit", "send"]
    assert steps == [f"{step} {when}" for step in order for when in ("begins", "ends")]


def test_what_is_answered_is_on_disk_under_a_signed_head(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from pericard.audit.verify import verify

    real = desk.link.send
    seen: list[int] = []

    def send(frames: Any) -> None:
        seen.append(verify(desk.directory, verifier=desk.key.verifier).size)
        real(frames)

    monkeypatch.setattr(desk.link, "send", send)
    frames = desk.ask(desk.job(GOOD), desk.job(FLAT), desk.job(OTHER))

    assert seen == [3]
    assert {frame.meta["receipt"]["index"] for frame in frames.values()} == {0, 1, 2}


def test_without_a_synced_log_nothing_is_answered_and_it_recovers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", _broken)
        frames = desk.ask(desk.job(GOOD), desk.job(OTHER))
        assert [outcome(frame) for frame in frames.values()] == ["audit-unavailable"] * 2
        assert all(frame.body == b"" for frame in frames.values())
        assert desk.metric("pericard_audit_available") == 0
        # the log stays shut; reopening is tried, at most once a second, and fails as long as the disk does
        patch.setattr("pericard.audit.log.os.fsync", _broken)
        for _ in range(2):
            frames = desk.ask(desk.job(GOOD))
            assert [outcome(frame) for frame in frames.values()] == ["audit-unavailable"]
        assert not desk.log.available
        assert desk.records() == []

    # the disk works again; within a second of the last try it is still refused, then it recovers by itself
    frames = desk.ask(desk.job(GOOD))
    assert [outcome(frame) for frame in frames.values()] == ["audit-unavailable"]
    desk.service._reopened = time.monotonic() - 1.1
    frames = desk.ask(desk.job(GOOD))
    assert [outcome(frame) for frame in frames.values()] == ["ok"]
    assert desk.metric("pericard_audit_available") == 1
    assert [record["outcome"] for record in desk.records()] == ["ok"]
    assert desk.metric("pericard_requests_total", code="audit-unavailable") == 5


def _broken(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_it_recovers_without_anybody_asking(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", _broken)
        desk.ask(desk.job(GOOD))
    assert not desk.log.available

    desk.service.process([], [])

    assert desk.log.available
    assert desk.metric("pericard_audit_available") == 1


def test_a_log_that_was_tampered_with_stops_the_answers_and_not_the_engine(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk.ask(desk.job(GOOD), desk.job(OTHER))
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", _broken)
        desk.ask(desk.job(GOOD))
    (segment,) = desk.directory.glob("*.log")
    segment.write_bytes(segment.read_bytes().replace(b'"outcome":"ok"', b'"outcome":"no"', 1))

    for _ in range(3):
        desk.service._reopened = float("-inf")
        frames = desk.ask(desk.job(GOOD))
        assert [outcome(frame) for frame in frames.values()] == ["audit-unavailable"]

    assert "until an operator looked at the log" in caplog.text


def test_a_failing_log_costs_no_computation(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk.log, "_failure", "is broken for this test")
    monkeypatch.setattr(desk.log, "reopen", _unavailable)
    monkeypatch.setattr(tiny_model, "infer", lambda _: pytest.fail("computed what cannot be recorded"))

    frames = desk.ask(desk.job(GOOD))

    assert [outcome(frame) for frame in frames.values()] == ["audit-unavailable"]


def _unavailable() -> None:
    raise AuditUnavailable("audit log: not for this test")


def test_each_edge_gets_its_own_answers_in_one_send(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    other = desk.edge()
    jobs = [desk.job(GOOD), desk.job(OTHER, link=other), desk.job(FLAT), desk.job(GOOD, link=other)]

    desk.service.process(jobs, [])

    assert [frame.request for frame in desk.frames(0)] == [jobs[0].request, jobs[2].request]
    assert [frame.request for frame in desk.frames(1)] == [jobs[1].request, jobs[3].request]


def test_an_idle_log_is_published(desk: Desk) -> None:
    desk.ask(desk.job(GOOD))
    assert not (desk.directory / "checkpoint").exists()

    desk.service.process([], [])

    assert (desk.directory / "checkpoint").read_bytes().splitlines()[1] == b"1"


# --- one item's fault is one item's error -----------------------------------------------------------------------------

SPOILED: dict[str, tuple[Callable[[Desk], Job], str]] = {
    "too short": (lambda desk: desk.job(row(GOOD)[:-4]), "invalid-input"),
    "too long": (lambda desk: desk.job(row(GOOD) + b"\0\0\0\0"), "invalid-input"),
    "empty": (lambda desk: desk.job(b""), "invalid-input"),
    "a byte short": (lambda desk: desk.job(row(GOOD)[:-1]), "invalid-input"),
    "NaN": (lambda desk: desk.job([*GOOD[:-1], float("nan")]), "invalid-input"),
    "infinity": (lambda desk: desk.job([*GOOD[:-1], float("-inf")]), "invalid-input"),
    "flat": (lambda desk: desk.job(FLAT), "not-interpretable"),
    "clipped": (lambda desk: desk.job(CLIPPED), "not-interpretable"),
    "not computable": (lambda desk: desk.job(FAILING), "backend-failed"),
    "late": (lambda desk: dataclasses.replace(desk.job(GOOD), deadline=time.monotonic() - 1), "deadline-exceeded"),
}


@pytest.mark.parametrize(("spoil", "code"), SPOILED.values(), ids=SPOILED.keys())
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_bad_item_harms_only_itself(desk: Desk, spoil: Callable[[Desk], Job], code: str, place: int) -> None:
    samples = [GOOD, OTHER, GOOD, OTHER]
    alone = [values(desk.ask(job)[job.request]) for job in map(desk.job, samples)]
    jobs = [desk.job(one) for one in samples]
    bad = spoil(desk)
    jobs.insert(place, bad)

    frames = desk.ask(*jobs)

    assert outcome(frames.pop(bad.request)) == code
    assert [outcome(frame) for frame in frames.values()] == ["ok"] * 4
    assert np.allclose([values(frame) for frame in frames.values()], alone, atol=1e-6)
    assert [record["outcome"] for record in desk.records()][4:] == ["ok"] * place + [code] + ["ok"] * (4 - place)


def test_every_kind_of_fault_at_once(desk: Desk) -> None:
    jobs = {name: spoil(desk) for name, (spoil, _) in SPOILED.items()}
    good = [desk.job(GOOD), desk.job(OTHER)]

    frames = desk.ask(*jobs.values(), *good)

    assert {name: outcome(frames[job.request]) for name, job in jobs.items()} == {
        name: code for name, (_, code) in SPOILED.items()
    }
    assert [outcome(frames[job.request]) for job in good] == ["ok", "ok"]


def test_only_those_that_cannot_be_computed_fail(desk: Desk) -> None:
    jobs = [desk.job(samples) for samples in (GOOD, FAILING, OTHER, FAILING, FAILING, GOOD, OTHER, GOOD)]

    frames = desk.ask(*jobs)

    codes = [outcome(frames[job.request]) for job in jobs]
    assert codes == ["ok", "backend-failed", "ok", "backend-failed", "backend-failed", "ok", "ok", "ok"]
    assert [record["place"] for record in desk.records() if record["outcome"] == "ok"]


def test_an_answer_that_is_no_number_is_none(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tiny_model.infer

    def infer(inputs: Any) -> Any:
        score, timeline = real(inputs)
        score, timeline = score.copy(), timeline.copy()
        score[1], timeline[2, 1] = np.nan, np.inf
        return score, timeline

    monkeypatch.setattr(tiny_model, "infer", infer)
    jobs = [desk.job(GOOD) for _ in range(4)]
    frames = desk.ask(*jobs)

    assert [outcome(frames[job.request]) for job in jobs] == ["ok", "backend-failed", "backend-failed", "ok"]
    assert ["answer" in record for record in desk.records()] == [True, False, False, True]


def test_a_cancelled_item_is_neither_computed_nor_answered_nor_recorded(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = tiny_model.infer
    monkeypatch.setattr(tiny_model, "infer", lambda inputs: (sizes.append(len(inputs[0])), real(inputs))[1])
    left, stays = desk.job(GOOD), desk.job(OTHER)
    left.cancelled = True

    frames = desk.ask(left, stays)

    assert list(frames) == [stays.request]
    assert (sizes, len(desk.records())) == ([1], 1)
    left.cancelled = True
    assert desk.ask(left) == {}


# --- MLServer's adaptive batching, three ways to harm a neighbour (each must stay harmless here) ----------------------


def test_one_of_four_cancelled_while_the_batch_computes_leaves_three_answers(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [desk.job(samples) for samples in (GOOD, OTHER, GOOD, OTHER)]
    real = tiny_model.infer

    def infer(inputs: Any) -> Any:
        jobs[1].cancelled = True
        desk.scheduler.cancel(desk.link, jobs[1].request)
        return real(inputs)

    monkeypatch.setattr(tiny_model, "infer", infer)
    frames = desk.ask(*jobs)

    for job in (jobs[0], jobs[2], jobs[3]):
        assert outcome(frames[job.request]) == "ok"
    assert values(frames[jobs[0].request]) == values(frames[jobs[2].request])
    assert len(desk.records()) == 4  # it was computed, so it is recorded


def test_too_many_values_fail_alone(desk: Desk) -> None:
    wrong, right = desk.job([*GOOD, 999.0]), desk.job(OTHER)

    frames = desk.ask(wrong, right)

    assert outcome(frames[wrong.request]) == "invalid-input"
    assert values(frames[right.request]) == values(desk.ask(again := desk.job(OTHER))[again.request])


def test_values_of_one_never_enter_the_answer_of_another(desk: Desk) -> None:
    # one sends a value too many, the other one too few: the sum of their sizes is right
    first, second = desk.job([*GOOD, 999.0]), desk.job(OTHER[:-1])

    frames = desk.ask(first, second)

    assert [outcome(frame) for frame in frames.values()] == ["invalid-input"] * 2
    assert all(frame.body == b"" for frame in frames.values())


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_rows_of_a_batch_are_the_single_answers(desk: Desk) -> None:
    generator = np.random.default_rng(3)
    strips = [generator.normal(0, 0.5, 8).astype(np.float32).tolist() for _ in range(8)]
    alone = [values(desk.ask(job)[job.request]) for job in map(desk.job, strips)]
    jobs = [desk.job(strip) for strip in strips]

    frames = desk.ask(*jobs)

    assert np.allclose([values(frames[job.request]) for job in jobs], alone, atol=1e-6, rtol=1e-5)


companions = st.lists(
    st.lists(st.floats(-2.5, 2.5, width=32), min_size=8, max_size=8)
    | st.sampled_from([FLAT, FAILING, CLIPPED, GOOD[:-1], [*GOOD[:-1], float("nan")]]),
    min_size=1,
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(others=companions)
def test_companions_and_padding_change_no_bit(desk: Desk, others: list[list[float]]) -> None:
    subject = desk.job(GOOD)
    frames = desk.ask(subject, *(desk.job(other) for other in others))
    found = frames[subject.request]
    (record,) = [one for one in desk.records() if one["index"] == found.meta["receipt"]["index"]]

    assert outcome(found) == "ok"
    assert found.body == _bits(desk, record["bucket"])


def _bits(desk: Desk, bucket: int) -> bytes:
    """GOOD's answer at the first place of a bucket, beside copies of another strip."""
    count = {1: 1, 4: 2, 8: 5}[bucket]
    subject = desk.job(GOOD)
    return desk.ask(subject, *(desk.job(OTHER) for _ in range(count - 1)))[subject.request].body


def test_the_record_says_what_a_replay_needs(desk: Desk) -> None:
    desk.ask(*(desk.job(GOOD) for _ in range(5)))

    found = desk.records()
    assert [record["place"] for record in found] == list(range(5))
    for record in found:
        assert (record["bucket"], record["threads"], record["device"], record["runtime"]) == (8, 3, "cpu", RUNTIME)


# --- what a record holds ----------------------------------------------------------------------------------------------


def test_a_receipt_opens_its_record(desk: Desk) -> None:
    event = {"event": "refused", "code": "forbidden", "principal": "ris"}
    job = desk.job(GOOD)
    frame = desk.ask(job, events=[event, event])[job.request]
    receipt = frame.meta["receipt"]
    index, record = list(records(desk.directory))[receipt["index"]]
    key = bytes.fromhex(receipt["opening_key"])

    assert (index, receipt["log"]) == (2, desk.log.origin)
    assert receipt["leaf"] == leaf_hash(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hex()
    assert key == opening_key(desk.key.commitment_key, index)
    assert record["input"] == commit(key, "input", row(GOOD))
    assert record["answer"] == commit(key, "answer", frame.body)


def test_a_record_names_who_and_what_and_holds_no_sample(desk: Desk, tiny_model: LoadedModel) -> None:
    job = desk.job(GOOD)
    frame = desk.ask(job)[job.request]
    (record,) = desk.records()

    assert set(record) == {
        "event", "outcome", "runtime", "principal", "credential", "address", "request", "bucket", "place", "threads",
        "queue_us", "infer_us", "model", "device", "licence", "input", "answer", "index", "time", "v",
    }  # fmt: skip
    assert (record["principal"], record["credential"], record["address"], record["request"]) == (
        "ris", "abc", "192.0.2.7", "r-1",
    )  # fmt: skip
    assert record["model"] == frame.meta["model"]
    assert record["model"]["manifest"] == tiny_model.manifest_hash
    files = b"".join(path.read_bytes() for path in desk.directory.iterdir())
    assert row(GOOD) not in files
    assert frame.body not in files
    assert bytes.fromhex(frame.meta["receipt"]["opening_key"]) not in files
    assert frame.meta["receipt"]["opening_key"].encode() not in files


def test_a_refused_item_is_recorded_with_what_was_checked(desk: Desk) -> None:
    jobs = [desk.job(GOOD[:-1]), desk.job(FLAT), desk.job(FAILING), desk.job(GOOD, model="missing")]
    desk.ask(*jobs[:3])
    desk.ask(jobs[3])

    short, flat, failing, missing = desk.records()
    assert ("input" in short, "answer" in short) == (False, False)  # its bytes never were an input
    assert ("input" in flat, "answer" in flat) == (True, False)
    assert ("input" in failing, "answer" in failing) == (True, False)
    assert (missing["outcome"], missing["model"], "input" in missing) == (
        "unknown-model", {"name": "missing"}, False,
    )  # fmt: skip


def test_an_unknown_model_is_an_error_of_its_own(desk: Desk) -> None:
    job = desk.job(GOOD, model="missing")

    assert outcome(desk.ask(job)[job.request]) == "unknown-model"
    assert desk.metric("pericard_predictions_total", model="", status="unknown-model") == 1


LICENCES = [
    ({"not_after": -1, "grace_days": 14}, "ok", "grace"),
    ({"not_after": -14 * serving.DAY + 60, "grace_days": 14}, "ok", "grace"),
    ({"not_after": -14 * serving.DAY - 60, "grace_days": 14}, "licence-expired", None),
    ({"not_after": -1, "grace_days": 0}, "licence-expired", None),
    ({"not_after": 60, "grace_days": 0}, "ok", "valid"),
    ({"not_before": 3600}, "licence-not-yet-valid", None),
]


@pytest.mark.parametrize(("terms", "code", "licence"), LICENCES, ids=str)
def test_the_licence_is_asked_at_every_batch(
    desk: Desk,
    tiny_model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    terms: dict[str, int],
    code: str,
    licence: str | None,
) -> None:
    now = int(time.time())
    dates = {name: value if name == "grace_days" else now + value for name, value in terms.items()}
    monkeypatch.setattr(tiny_model, "licence", Licence(dataclasses.replace(tiny_model.licence.grant, **dates)))
    jobs = [desk.job(GOOD), desk.job(OTHER)]

    frames = desk.ask(*jobs)

    assert [outcome(frame) for frame in frames.values()] == [code] * 2
    if licence is not None:
        assert {frame.meta["licence"] for frame in frames.values()} == {licence}
        assert {record["licence"] for record in desk.records()} == {licence}
    else:
        assert all("answer" not in record for record in desk.records())


# --- events and refusals ----------------------------------------------------------------------------------------------


def test_a_flood_of_events_is_recorded_whatever_its_number(desk: Desk) -> None:
    # a group of the log takes 1024 records; the engine must not fall over one more
    events = [{"event": "refused", "code": "invalid-input", "principal": "ris", "request": str(n)} for n in range(2500)]
    job = desk.job(GOOD)
    frame = desk.ask(job, events=events)[job.request]

    found = desk.records()
    assert [record["request"] for record in found[:-1]] == [str(number) for number in range(2500)]
    assert frame.meta["receipt"]["index"] == found[-1]["index"] == 2500
    assert found[-1]["input"] == commit(bytes.fromhex(frame.meta["receipt"]["opening_key"]), "input", row(GOOD))


def test_events_wait_for_a_log_that_cannot_be_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", _broken)
        desk.ask(desk.job(GOOD), events=[{"event": "refused", "principal": "a"}])
        desk.ask(desk.job(GOOD), events=[{"event": "refused", "principal": "b"}])
    desk.service._reopened = float("-inf")
    desk.ask(events=[{"event": "refused", "principal": "c"}])

    assert [record["principal"] for record in desk.records()] == ["a", "b", "c"]  # the unanswered leave no record


def test_what_waits_for_the_log_is_bounded_and_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_MOST_WAITING", 3)
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", _broken)
        for number in range(5):
            desk.ask(events=[{"event": "refused", "principal": str(number)}] * 2)
    desk.service._reopened = float("-inf")
    desk.ask()
    desk.scheduler.stop()
    desk.service.run()

    found = desk.records()
    assert [record["principal"] for record in found[:-1]] == ["0", "0", "1"]
    assert found[-1]["suppressed"] == 7


def test_a_log_that_fails_between_two_groups_records_nothing_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [{"event": "refused", "principal": "ris", "request": str(number)} for number in range(1500)]
    calls = itertools.count()
    real = os.fdatasync

    def second_fails(descriptor: int) -> None:
        if next(calls) == 1:
            _broken(descriptor)
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", second_fails)
        job = desk.job(GOOD)
        assert outcome(desk.ask(job, events=events)[job.request]) == "audit-unavailable"
    assert len(desk.records()) == 1024
    desk.service._reopened = float("-inf")
    desk.ask()

    assert [record["request"] for record in desk.records()] == [str(number) for number in range(1500)]


def event(desk: Desk, **fields: Any) -> None:
    desk.service.receive(desk.link, Frame(FrameType.EVENT, 0, {"event": "refused", **fields}, b""))


def test_strangers_are_summed_by_minute_address_and_reason(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(30):
        event(desk, code="unauthenticated", address="192.0.2.1")
    event(desk, code="unknown-route", address="192.0.2.1")
    event(desk, code="unauthenticated", address="192.0.2.2")
    desk.service.process([], [])
    assert desk.records() == []  # the minute is not over

    monkeypatch.setattr(refusals, "_SECONDS", 0.0)
    desk.service.process([], [])

    found = [{name: record[name] for name in ("address", "code", "count")} for record in desk.records()]
    assert found == [
        {"address": "192.0.2.1", "code": "unauthenticated", "count": 30},
        {"address": "192.0.2.1", "code": "unknown-route", "count": 1},
        {"address": "192.0.2.2", "code": "unauthenticated", "count": 1},
    ]
    assert desk.metric("pericard_requests_total", code="unauthenticated") == 31
    desk.service.process([], [])
    assert len(desk.records()) == 3  # a new minute begins


def test_strangers_cause_no_sync(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard.audit.log.os.fdatasync", lambda _: pytest.fail("synced for a stranger"))

    for number in range(3000):
        event(desk, code="unauthenticated", address=f"192.0.2.{number % 250}")
        desk.service.process([], [])
    assert desk.scheduler.take(0) == ([], [])  # they take no place in the queue either


def test_at_most_a_thousand_records_a_minute_and_one_number(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1500):
        for _ in range(2 if number < 1200 else 1):
            event(desk, code="unauthenticated", address=f"10.0.{number // 250}.{number % 250}")
    monkeypatch.setattr(refusals, "_SECONDS", 0.0)
    desk.service.process([], [])

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
    event(desk, code="forbidden", address="192.0.2.1", principal="ris", credential="abc", request="r-9")
    work = desk.scheduler.take(0)
    assert work is not None
    desk.service.process(*work)

    (record,) = desk.records()
    assert {name: record[name] for name in ("event", "code", "principal", "credential", "request")} == {
        "event": "refused", "code": "forbidden", "principal": "ris", "credential": "abc", "request": "r-9",
    }  # fmt: skip


def test_authenticated_refusals_beyond_the_bound_are_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard.engine.scheduler._MOST_EVENTS", 2)
    for number in range(5):
        event(desk, code="forbidden", principal=str(number))
    desk.scheduler.stop()
    desk.service.run()

    found = desk.records()
    assert [record.get("principal", record.get("suppressed")) for record in found] == ["0", "1", 3]


HOSTILE: list[dict[str, Any]] = [
    {"code": "x" * 100_000, "principal": "p" * 100_000},
    {"code": "\ud800", "principal": "\udfff\ud800", "address": "\ud800"},
    {"code": ["list"], "principal": {"a": 1}},
    {"code": None, "principal": None},
    {"code": 7, "principal": 7, "request": 1e999},
    {"event": "\ud800", "principal": "ris"},
    {"event": "start", "principal": "ris", "index": 0, "time": "1970", "v": 9, "invented": "x"},
    {},
]


@pytest.mark.parametrize("meta", HOSTILE, ids=",".join)
def test_whatever_an_edge_says_of_an_event_the_log_can_take(desk: Desk, meta: dict[str, Any]) -> None:
    event(desk, **meta)
    work = desk.scheduler.take(0)
    assert work is not None
    desk.service.process(*work)

    for record in desk.records():
        assert set(record) <= {*service._EVENT_FIELDS, "index", "time", "v"}
        assert all(len(str(value)) <= 200 for value in record.values())


def test_label_values_come_from_a_closed_set(desk: Desk) -> None:
    for number in range(50):
        event(desk, code=f"invented-{number}", principal="ris")
        event(desk, code=f"invented-{number}", address="192.0.2.1")
    jobs = [desk.job(GOOD, model=f"invented-{number}") for number in range(50)]
    for job in jobs:
        desk.ask(job)

    text = desk.metrics.render().decode()
    assert "invented" not in text
    assert desk.metric("pericard_requests_total", code="unknown") == 100


# --- frames from the edge ---------------------------------------------------------------------------------------------


def infer(desk: Desk, number: int = 1, **changes: Any) -> None:
    meta = {name: value for name, value in question(**changes).items() if value is not ...}
    desk.service.receive(desk.link, Frame(FrameType.INFER, number, meta, row(GOOD)))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ...},
        {"model": 7},
        {"model": None},
        {"deadline_ms": ...},
        {"deadline_ms": 0},
        {"deadline_ms": -5},
        {"deadline_ms": 10**9},
        {"deadline_ms": 1.5},
        {"deadline_ms": True},
        {"deadline_ms": "5000"},
    ],
    ids=str,
)
def test_an_item_without_model_or_deadline_is_malformed(desk: Desk, changes: dict[str, Any]) -> None:
    infer(desk, **changes)

    assert [outcome(frame) for frame in desk.frames()] == ["malformed-request"]
    assert len(desk.scheduler) == 0


def test_a_full_queue_is_said_at_once(tmp_path: Path, tiny_model: LoadedModel) -> None:
    desk = Desk(tmp_path, tiny_model, queue=2)
    for number in range(4):
        infer(desk, number)

    assert [(frame.request, outcome(frame)) for frame in desk.frames()] == [(2, "overloaded"), (3, "overloaded")]
    assert desk.metric("pericard_requests_total", code="overloaded") == 2
    desk.close()


def test_a_stopping_engine_takes_nothing(desk: Desk) -> None:
    desk.scheduler.stop()
    infer(desk)

    assert [outcome(frame) for frame in desk.frames()] == ["model-not-ready"]


def test_what_an_edge_says_of_a_caller_is_short_text(desk: Desk) -> None:
    meta = question(principal="p" * 5000, credential=["list"], request="\ud800", address=None)
    desk.service.receive(desk.link, Frame(FrameType.INFER, 1, meta, row(GOOD)))
    work = desk.scheduler.take(0)
    assert work is not None
    desk.service.process(*work)

    (record,) = desk.records()
    assert (record["principal"], record["credential"], record["request"], record["address"]) == ("p" * 200, "", "?", "")
    assert [outcome(frame) for frame in desk.frames()] == ["ok"]


def test_metrics_are_rendered_here(desk: Desk) -> None:
    infer(desk)
    desk.service.receive(desk.link, Frame(FrameType.METRICS, 9, {}, b""))

    (frame,) = desk.frames()
    assert (frame.type, frame.request) == (FrameType.ANSWER, 9)
    assert b"pericard_queue_depth 1.0" in frame.body


def test_a_caller_who_left_frees_the_engine(desk: Desk) -> None:
    infer(desk, 5)
    desk.service.receive(desk.link, Frame(FrameType.CANCEL, 5, {}, b""))
    work = desk.scheduler.take(0)
    assert work is not None
    desk.service.process(*work)

    assert (desk.frames(), desk.records()) == ([], [])


@pytest.mark.parametrize("kind", [FrameType.CATALOG, FrameType.ANSWER, FrameType.ERROR])
def test_an_edge_that_plays_the_engine_is_cut_off(desk: Desk, kind: FrameType) -> None:
    with pytest.raises(PipeError):
        desk.service.receive(desk.link, Frame(kind, 1, {}, b""))


# --- the thread's loop ------------------------------------------------------------------------------------------------


def test_the_loop_answers_what_waits_and_flushes_before_it_ends(desk: Desk) -> None:
    for number in range(20):
        if number < 16:
            infer(desk, number)
    event(desk, code="unauthenticated", address="192.0.2.1")
    desk.scheduler.stop()

    desk.service.run()

    assert [outcome(frame) for frame in desk.frames()] == ["ok"] * 16
    assert [record["event"] for record in desk.records()] == ["predict"] * 16 + ["refused"]


def test_the_loop_ends_also_when_the_log_is_broken(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    infer(desk)
    event(desk, code="unauthenticated", address="192.0.2.1")
    desk.scheduler.stop()
    monkeypatch.setattr("pericard.audit.log.os.fdatasync", _broken)

    with caplog.at_level(logging.WARNING):
        desk.service.run()

    assert [outcome(frame) for frame in desk.frames()] == ["audit-unavailable"]


def test_an_edge_that_is_gone_costs_its_neighbours_nothing(desk: Desk) -> None:
    gone = desk.edge()
    desk._edges[1].close()
    jobs = [desk.job(GOOD, link=gone), desk.job(OTHER), desk.job(GOOD, link=gone)]

    frames = desk.ask(*jobs)

    assert list(frames) == [jobs[1].request]
    assert len(desk.records()) == 3


def test_what_is_measured(desk: Desk) -> None:
    desk.ask(desk.job(GOOD), desk.job(FLAT), desk.job(OTHER))

    assert desk.metric("pericard_requests_total", code="ok") == 2
    assert desk.metric("pericard_requests_total", code="not-interpretable") == 1
    assert desk.metric("pericard_predictions_total", model="ecg-anomaly", status="ok") == 2
    assert desk.metric("pericard_predictions_total", model="ecg-anomaly", status="not-interpretable") == 1
    assert desk.metric("pericard_batch_size_sum") == 2
    assert desk.metric("pericard_batch_seconds_count") == 1
    assert desk.metric("pericard_queue_seconds_count") == 2
    assert desk.metric("pericard_audit_commit_seconds_count") == 1
    assert desk.metric("pericard_audit_size") == 3
