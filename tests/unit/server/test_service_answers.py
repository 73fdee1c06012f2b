"""What leaves the service: frames, numbers, and the loop that ends in order."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
from desk import Desk, Said, until
from serving import FAILING, FLAT, GOOD, OTHER

from pericard.engine import records as written
from pericard.engine.scheduler import Work
from pericard.pipe import FrameType, encode, frames
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


# --- frames -----------------------------------------------------------------------------------------------------------


def test_answers_share_what_they_share_and_nothing_else(desk: Desk) -> None:
    numbers = desk.put(GOOD, FLAT, FAILING)
    desk.step()
    heard = [frame for frame in desk.first.listen(1) if frame.type is not FrameType.CATALOG]

    assert [frame.type for frame in heard] == [FrameType.ERROR, FrameType.ANSWERS]
    assert heard[1].meta == {
        "model": desk.served.identity, "runtime": "ab" * 32, "licence": "valid", "log": desk.log.origin,
    }  # fmt: skip
    assert [entry.request for entry in frames.entries(heard[1].body)] == numbers[:2]


def test_a_frame_of_large_answers_is_split(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_MOST_IN_FRAME", 250)  # two entries of a dozen bytes, and not three
    numbers = desk.put(*[GOOD] * 5)
    desk.step()
    heard = [frame for frame in desk.first.listen(1) if frame.type is FrameType.ANSWERS]

    assert [len(list(frames.entries(frame.body))) for frame in heard] == [2, 2, 1]
    assert [entry.request for frame in heard for entry in frames.entries(frame.body)] == numbers
    assert len({frame.head for frame in heard}) == 1


def test_one_answer_larger_than_a_frame_should_be_has_a_frame_of_its_own() -> None:
    assert len(list(written.frames(b"{}", [b"x" * (5 << 20), b"y"]))) == 2


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_the_loop_answers_what_waits_and_flushes_before_it_ends(desk: Desk) -> None:
    numbers = desk.put(*[GOOD] * 20)
    desk.event(code="unauthenticated", address="192.0.2.1")
    desk.scheduler.stop()

    desk.service.run(0)

    said = desk.first.said(*numbers)
    assert outcomes(list(said.values())) == ["ok"] * 20
    assert [record["event"] for record in desk.records()] == ["predict"] * 20 + ["refused"]


def test_the_loop_ends_also_when_the_log_is_broken(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (number,) = desk.put(GOOD)
    desk.event(code="unauthenticated", address="192.0.2.1")
    desk.scheduler.stop()
    monkeypatch.setattr("pericard.audit.log.os.fdatasync", broken)

    with caplog.at_level(logging.WARNING):
        desk.service.run(0)

    assert desk.first.said(number)[number].outcome == "audit-unavailable"


def test_an_edge_that_is_gone_costs_its_neighbours_nothing(desk: Desk) -> None:
    gone = desk.edge()
    lost = desk.put(GOOD, edge=gone)
    stays = desk.put(OTHER)
    work = desk.scheduler.take()
    assert work is not None
    gone.sock.close()
    desk.service.process(work, 0)

    assert desk.first.said(*stays)[stays[0]].outcome == "ok"
    assert len(desk.records()) == len(lost) + len(stays)  # it was computed
    desk.put(GOOD)
    assert gone.link not in desk.service._reception.links


def test_an_edge_that_leaves_takes_what_waits_along(desk: Desk) -> None:
    gone = desk.edge()
    desk.put(GOOD, GOOD, edge=gone)
    gone.sock.close()
    until(lambda: (desk.service._reception.read(0), len(desk.scheduler) == 0)[1])

    assert desk.scheduler.take() == Work([], [], [])
    assert desk.served.waiting == 0


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_what_is_measured(desk: Desk) -> None:
    desk.ask(GOOD, FLAT, OTHER)

    assert desk.metric("pericard_requests_total", code="ok") == 2
    assert desk.metric("pericard_requests_total", code="not-interpretable") == 1
    assert desk.metric("pericard_predictions_total", model="ecg-anomaly", status="ok") == 2
    assert desk.metric("pericard_predictions_total", model="ecg-anomaly", status="not-interpretable") == 1
    assert desk.metric("pericard_batch_size_sum") == 2
    assert desk.metric("pericard_batch_seconds_count") == 1
    assert desk.metric("pericard_queue_seconds_count") == 2
    assert desk.metric("pericard_audit_commit_seconds_count") == 1
    assert desk.metric("pericard_audit_size") == 3


def test_statistics_count_rows_and_passes_by_size(desk: Desk) -> None:
    before = int(time.time() * 1000)
    desk.ask(GOOD, OTHER, FLAT)
    desk.ask(GOOD)

    found = desk.statistics()
    stats = found["inference_stats"]
    assert (found["name"], found["version"]) == ("ecg-anomaly", "1")
    assert before <= found["last_inference"] <= int(time.time() * 1000)
    assert (found["inference_count"], found["execution_count"]) == (3, 2)
    assert {name: stats[name]["count"] for name in ("success", "fail", "queue")} == {
        "success": 3, "fail": 1, "queue": 3,
    }  # fmt: skip
    assert [(one["batch_size"], one["compute_infer"]["count"]) for one in found["batch_stats"]] == [(1, 1), (2, 1)]
    for phase in ("compute_input", "compute_infer", "compute_output"):
        assert stats[phase]["count"] == 3
        assert 0 < stats[phase]["ns"] < stats["success"]["ns"]
        assert all(one[phase]["ns"] > 0 for one in found["batch_stats"])
    assert json.loads(json.dumps(found)) == found


def test_metrics_are_rendered_here(desk: Desk) -> None:
    desk.put(GOOD)
    desk.say(encode(FrameType.ASK, 9, {"ask": "metrics"}))

    (frame,) = [frame for frame in desk.first.listen(1) if frame.type is FrameType.REPLY]
    assert frame.request == 9
    assert b"pericard_queue_depth 1.0" in frame.body


def test_label_values_come_from_a_closed_set(desk: Desk) -> None:
    for number in range(50):
        desk.event(code=f"invented-{number}", principal="ris")
        desk.event(code=f"invented-{number}", address="192.0.2.1")
        desk.put(GOOD, model=1000 + number)

    assert "invented" not in desk.metrics.render().decode()
    assert desk.metric("pericard_requests_total", code="unknown") == 100
    assert desk.metric("pericard_requests_total", code="unknown-model") == 50


def test_every_row_is_recorded_under_its_own_caller(desk: Desk) -> None:
    mine, yours = desk.put(GOOD, principal="a"), desk.put(GOOD, principal="b", credential="z")
    desk.step()
    said = desk.first.said(*mine, *yours)

    found = {record["index"]: record["principal"] for record in desk.records()}
    assert found[said[mine[0]].answered.log_index] == "a"
    assert found[said[yours[0]].answered.log_index] == "b"
    assert serving.CALLER["principal"] not in found.values()
