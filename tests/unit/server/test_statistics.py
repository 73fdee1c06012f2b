"""What the statistics extension tells: rows are counted, seconds add up, and whoever reads disturbs nobody."""

from __future__ import annotations

import threading
import time
from typing import Any

from pericard.engine.statistics import Duration, Statistics


def inference(body: dict[str, object]) -> dict[str, Any]:
    found = body["inference_stats"]
    assert isinstance(found, dict)
    return found


def test_nothing_yet_is_all_zeros() -> None:
    body = Statistics().body("ecg", "3")
    nothing = {"count": 0, "ns": 0}

    assert (body["name"], body["version"], body["last_inference"]) == ("ecg", "3", 0)
    assert (body["inference_count"], body["execution_count"], body["batch_stats"]) == (0, 0, [])
    assert inference(body) == dict.fromkeys(
        [
            "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
        ],
        nothing,
    )  # fmt: skip


def test_rows_and_passes_are_counted_by_batch_size() -> None:
    found = Statistics()
    before = int(time.time() * 1000)
    for size, copied, computed, written in (
        (4, 0.001, 0.010, 0.002),
        (4, 0.003, 0.020, 0.002),
        (1, 0.001, 0.005, 0.001),
    ):
        found.executed(size, copied, computed)
        found.finished(size, written)
    body = found.body("ecg", "3")

    assert (body["inference_count"], body["execution_count"]) == (9, 3)
    assert before <= found.last_inference <= time.time() * 1000
    assert body["batch_stats"] == [
        {
            "batch_size": 1,
            "compute_input": {"count": 1, "ns": 1_000_000},
            "compute_infer": {"count": 1, "ns": 5_000_000},
            "compute_output": {"count": 1, "ns": 1_000_000},
        },
        {
            "batch_size": 4,
            "compute_input": {"count": 2, "ns": 4_000_000},
            "compute_infer": {"count": 2, "ns": 30_000_000},
            "compute_output": {"count": 2, "ns": 4_000_000},
        },
    ]
    # a row of a batch took as long as its batch
    assert inference(body)["compute_infer"] == {"count": 9, "ns": 4 * 30_000_000 + 5_000_000}


def test_durations_add_up() -> None:
    found = Duration()
    found.add(0.5)
    found.add(0.25, 4)

    assert found.body() == {"count": 5, "ns": 1_500_000_000}


def test_it_is_read_while_it_is_counted() -> None:
    found, done, bodies = Statistics(), threading.Event(), []

    def read() -> None:
        while not done.is_set():
            bodies.append(found.body("ecg", "3")["inference_count"])

    reader = threading.Thread(target=read)
    reader.start()
    for round_ in range(200):
        found.batches.clear()
        for size in range(1, 65):
            found.executed(size, 0.0, 0.0)
        assert found.execution_count == (round_ + 1) * 64
    done.set()
    reader.join(10)

    assert not reader.is_alive()
    assert bodies == sorted(bodies)
