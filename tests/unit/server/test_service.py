"""The engine's batches, step by step, with a real model, a real log and a real pipe: order, faults, the same bits."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desk import Desk, Said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import CLIPPED, FAILING, FLAT, GOOD, OTHER, row

from pericard.audit.verify import verify
from pericard.errors import AuditUnavailable, ModelNotReady
from pericard.pipe import FrameType, encode
from pericard.runtime.loader import LoadedModel


@pytest.fixture
def desk(tmp_path: Path, tiny_model: LoadedModel) -> Iterator[Desk]:
    made = Desk(tmp_path, tiny_model)
    yield made
    made.close()


def outcomes(said: list[Said]) -> list[str]:
    return [one.outcome for one in said]


def broken(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


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
    monkeypatch.setattr(desk.first.link, "send", spied("send", desk.first.link.send))
    said = desk.ask(GOOD, OTHER)

    order = ["infer", "commit", "send"]
    assert steps == [f"{step} {when}" for step in order for when in ("begins", "ends")]
    assert outcomes(said) == ["ok", "ok"]


def test_what_is_answered_is_on_disk_under_a_signed_head(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real = desk.first.link.send
    seen: list[int] = []

    def send(frames: Any) -> None:
        seen.append(verify(desk.directory, verifier=desk.key.verifier).size)
        real(frames)

    monkeypatch.setattr(desk.first.link, "send", send)
    said = desk.ask(GOOD, FLAT, OTHER)

    assert seen == [3]
    assert [one.answered.log_index for one in said] == [0, 1, 2]


def test_without_a_synced_log_nothing_is_answered_and_it_recovers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", broken)
        shut = Said("audit-unavailable", {}, None, "audit log: cannot be written at the moment")
        assert desk.ask(GOOD, OTHER) == [shut] * 2
        assert desk.metric("pericard_audit_available") == 0
        # the log stays shut; reopening is tried, at most once a second, and fails as long as the disk does
        patch.setattr("pericard.audit.log.os.fsync", broken)
        for _ in range(2):
            assert outcomes(desk.ask(GOOD)) == ["audit-unavailable"]
        assert not desk.log.available
        assert desk.records() == []

    # the disk works again; within a second of the last try it is still refused, then it recovers by itself
    assert outcomes(desk.ask(GOOD)) == ["audit-unavailable"]
    desk.service._reopened = time.monotonic() - 1.1
    assert outcomes(desk.ask(GOOD)) == ["ok"]
    assert desk.metric("pericard_audit_available") == 1
    recovered, answered = desk.records()
    assert (recovered["event"], answered["outcome"]) == ("log-recovered", "ok")
    assert recovered["bytes"] == desk.log.recovered_bytes > 0
    assert desk.metric("pericard_requests_total", code="audit-unavailable") == 5
    counted = desk.statistics()["inference_stats"]
    assert (counted["fail"]["count"], counted["success"]["count"]) == (5, 1)


def test_it_recovers_without_anybody_asking(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", broken)
        desk.ask(GOOD)
    assert not desk.log.available

    desk.idle()

    assert desk.log.available
    assert desk.metric("pericard_audit_available") == 1


def test_a_log_that_was_tampered_with_stops_the_answers_and_not_the_engine(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk.ask(GOOD, OTHER)
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", broken)
        desk.ask(GOOD)
    (segment,) = desk.directory.glob("*.log")
    segment.write_bytes(segment.read_bytes().replace(b'"outcome":"ok"', b'"outcome":"no"', 1))

    for _ in range(3):
        desk.service._reopened = float("-inf")
        assert outcomes(desk.ask(GOOD)) == ["audit-unavailable"]

    assert "until an operator looked at the log" in caplog.text


def test_a_failing_log_costs_no_computation(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> None:
        raise AuditUnavailable("audit log: not for this test")

    monkeypatch.setattr(desk.log, "_failure", "is broken for this test")
    monkeypatch.setattr(desk.log, "reopen", unavailable)
    monkeypatch.setattr(tiny_model, "infer", lambda _: pytest.fail("computed what cannot be recorded"))

    assert outcomes(desk.ask(GOOD)) == ["audit-unavailable"]


def test_each_edge_gets_its_own_answers_in_one_send(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    other, sends = desk.edge(), []
    for edge in (desk.first, other):
        real = edge.link.send
        monkeypatch.setattr(edge.link, "send", lambda sent, edge=edge, real=real: (sends.append(edge), real(sent)))
    numbers = [desk.put(GOOD), desk.put(OTHER, edge=other), desk.put(FLAT), desk.put(FAILING, edge=other)]

    desk.step()

    assert set(desk.first.said(*numbers[0], *numbers[2])) == {*numbers[0], *numbers[2]}
    assert set(other.said(*numbers[1], *numbers[3])) == {*numbers[1], *numbers[3]}
    assert sorted(map(id, sends)) == sorted(map(id, (desk.first, other)))


def test_an_idle_log_is_published(desk: Desk) -> None:
    desk.ask(GOOD)
    assert not (desk.directory / "checkpoint").exists()

    desk.idle()

    assert (desk.directory / "checkpoint").read_bytes().splitlines()[1] == b"1"


# --- one item's fault is one item's error -----------------------------------------------------------------------------

SPOILED: dict[str, tuple[list[float] | bytes, str]] = {
    "too short": (row(GOOD)[:-4], "not-interpretable"),
    "too long": (row(GOOD) + b"\0\0\0\0", "invalid-input"),
    "empty": (b"", "invalid-input"),
    "a byte short": (row(GOOD)[:-1], "invalid-input"),
    "NaN": ([*GOOD[:-1], float("nan")], "invalid-input"),
    "infinity": ([*GOOD[:-1], float("-inf")], "invalid-input"),
    "flat": (FLAT, "not-interpretable"),
    "clipped": (CLIPPED, "not-interpretable"),
    "not computable": (FAILING, "backend-failed"),
}


@pytest.mark.parametrize(("bad", "code"), SPOILED.values(), ids=SPOILED.keys())
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_bad_item_harms_only_itself(desk: Desk, bad: list[float] | bytes, code: str, place: int) -> None:
    samples: list[list[float] | bytes] = [GOOD, OTHER, GOOD, OTHER]
    alone = [desk.ask(one)[0].values for one in samples]
    samples.insert(place, bad)

    said = desk.ask(*samples)

    assert said.pop(place).outcome == code
    assert outcomes(said) == ["ok"] * 4
    assert np.allclose([one.values for one in said], alone, atol=1e-6)
    assert [record["outcome"] for record in desk.records()][4:] == ["ok"] * place + [code] + ["ok"] * (4 - place)


def test_every_kind_of_fault_at_once(desk: Desk) -> None:
    bad = [one for one, _ in SPOILED.values()]
    numbers = desk.put(*bad, GOOD, OTHER)
    desk.step()
    desk.step()  # the largest batch is eight
    said = desk.first.said(*numbers)

    assert [said[number].outcome for number in numbers] == [code for _, code in SPOILED.values()] + ["ok", "ok"]


def test_only_those_that_cannot_be_computed_fail(desk: Desk) -> None:
    said = desk.ask(GOOD, FAILING, OTHER, FAILING, FAILING, GOOD, OTHER, GOOD)

    assert outcomes(said) == ["ok", "backend-failed", "ok", "backend-failed", "backend-failed", "ok", "ok", "ok"]
    assert ["answer" in record for record in desk.records()] == [one.outcome == "ok" for one in said]


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

    assert outcomes(desk.ask(*[GOOD] * 4)) == ["ok", "backend-failed", "backend-failed", "ok"]
    assert ["answer" in record for record in desk.records()] == [True, False, False, True]


def test_an_item_that_comes_too_late_costs_no_pass_and_is_recorded(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = tiny_model.infer
    monkeypatch.setattr(tiny_model, "infer", lambda inputs: (sizes.append(len(inputs[0])), real(inputs))[1])
    (late,) = desk.put(GOOD, deadline_ms=1)
    (good,) = desk.put(OTHER)
    time.sleep(0.01)

    work = desk.step()
    said = desk.first.said(late, good)

    assert (len(work.late), sizes) == (1, [1])
    assert (said[late].outcome, said[good].outcome) == ("deadline-exceeded", "ok")
    assert sorted(record["outcome"] for record in desk.records()) == ["deadline-exceeded", "ok"]
    assert len(desk.scheduler) == desk.served.waiting == 0


def test_late_items_alone_are_answered_too(desk: Desk) -> None:
    numbers = desk.put(GOOD, OTHER, deadline_ms=1)
    time.sleep(0.01)
    desk.step()

    assert [one.outcome for one in desk.first.said(*numbers).values()] == ["deadline-exceeded"] * 2
    assert [record["device"] for record in desk.records()] == ["cpu"] * 2


def test_a_cancelled_item_is_neither_computed_nor_recorded(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = tiny_model.infer
    monkeypatch.setattr(tiny_model, "infer", lambda inputs: (sizes.append(len(inputs[0])), real(inputs))[1])
    left, stays = desk.put(GOOD, OTHER)
    desk.say(encode(FrameType.CANCEL, left, {}))
    desk.step()
    said = desk.first.said(left, stays)

    assert (said[left].outcome, said[stays].outcome) == ("cancelled", "ok")
    assert (sizes, len(desk.records()), desk.served.waiting) == ([1], 1, 0)


def test_a_mistake_of_ours_costs_the_batch_and_not_the_thread(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk.start()
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "infer", lambda _: 1 // 0)
        numbers, data = desk.first.questions([GOOD, OTHER], desk.served)
        desk.first.sock.sendall(data)
        said = desk.first.said(*numbers)

    assert outcomes(list(said.values())) == ["backend-failed"] * 2
    assert "Zero" not in "".join(one.message for one in said.values())
    assert "a batch failed inside" in caplog.text
    number, data = desk.first.question(GOOD, desk.served)
    desk.first.sock.sendall(data)
    assert desk.first.said(number)[number].outcome == "ok"
    assert [record["outcome"] for record in desk.records()] == ["backend-failed"] * 2 + ["ok"]
    assert ["answer" in record for record in desk.records()] == [False, False, True]


def test_a_version_taken_out_of_service_answers_nothing_more(desk: Desk) -> None:
    (number,) = desk.put(GOOD)
    desk.repository.set_fault(desk.served, ModelNotReady("m: does not compute what it should"))
    desk.step()

    assert desk.first.said(number)[number].outcome == "model-not-ready"
    assert [record["outcome"] for record in desk.records()] == ["model-not-ready"]
    desk.repository.set_fault(desk.served, None)
    assert outcomes(desk.ask(GOOD)) == ["ok"]


# --- a batch of strangers: three ways in which another server's batching harms a neighbour ----------------------------


def test_one_of_four_cancelled_while_the_batch_computes_leaves_three_answers(
    desk: Desk, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = desk.put(GOOD, OTHER, GOOD, OTHER)
    real = tiny_model.infer

    def infer(inputs: Any) -> Any:
        desk.say(encode(FrameType.CANCEL, numbers[1], {}))
        return real(inputs)

    monkeypatch.setattr(tiny_model, "infer", infer)
    desk.step()
    said = desk.first.said(*numbers)  # every question is answered once, so that its place is free again

    assert [said[number].outcome for number in numbers] == ["ok"] * 4
    assert said[numbers[0]].values == said[numbers[2]].values
    assert len(desk.records()) == 4  # it was computed, so it is recorded


def test_values_of_one_never_enter_the_answer_of_another(desk: Desk) -> None:
    # one sends a value too many, the other one too few: the sum of their sizes is right
    first, second, good = desk.ask([*GOOD, 999.0], row(OTHER)[4:], OTHER)

    assert (first.outcome, second.outcome) == ("invalid-input", "not-interpretable")
    assert b"\0" not in second.answered.data
    assert good.values == desk.ask(OTHER)[0].values


# --- the same bits ----------------------------------------------------------------------------------------------------

companions = st.lists(
    st.lists(st.floats(-2.5, 2.5, width=32), min_size=8, max_size=8)
    | st.sampled_from([FLAT, FAILING, CLIPPED, GOOD[:-1], [*GOOD[:-1], float("nan")]]),
    min_size=1,
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(others=companions)
def test_companions_and_padding_change_no_bit(desk: Desk, others: list[list[float]]) -> None:
    subject = desk.ask(GOOD, *others)[0]
    record = desk.records()[subject.answered.log_index]

    assert subject.outcome == "ok"
    count = {1: 1, 4: 2, 8: 5}[record["bucket"]]
    assert subject.answered.data == desk.ask(GOOD, *[OTHER] * (count - 1))[0].answered.data
