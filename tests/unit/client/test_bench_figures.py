"""Percentiles, the synthetic signal, and the verdict on a reply."""

import json
import math
from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pericard_client.bench import PERCENTILES, Judge, Tally, cut, percentile, synthetic
from pericard_client.bench.payload import LENGTH_HEADER
from pericard_client.bench.tally import Measurement, lag_pair, latency_table
from pericard_client.errors import ConnectionLost, Overloaded, TimedOut
from pericard_client.models import ModelMetadata, SignalContract, TensorSpec
from pericard_client.wire import Reply


@given(st.lists(st.floats(0, 1e4, allow_subnormal=False), min_size=1, max_size=3000), st.sampled_from([*PERCENTILES]))
def test_percentiles_are_samples_with_enough_others_below(samples: list[float], name: str) -> None:
    found = percentile(np.sort(samples), PERCENTILES[name])

    assert found in samples
    assert sum(each <= found for each in samples) * 1000 >= PERCENTILES[name] * len(samples)
    assert sum(each < found for each in samples) * 1000 < PERCENTILES[name] * len(samples)


@pytest.mark.parametrize("count", [1, 2, 7, 999, 1001, 65_537])
def test_percentiles_are_exactly_numpys(count: int) -> None:
    samples = np.random.default_rng(count).gamma(2, 0.01, count)
    table = latency_table(array("d", samples))

    for name, thousandths in PERCENTILES.items():
        assert table[name] == np.percentile(samples, thousandths / 10, method="inverted_cdf"), name
    assert table["max"] == samples.max()


def test_a_rank_is_not_rounded() -> None:
    # In floating point 99.9 % of 1000 is a little more than 999, and the maximum would be taken for the percentile.
    table = latency_table(array("d", range(1, 1001)))
    assert list(table.values()) == [500, 900, 950, 990, 999, 1000]


def test_no_sample_is_no_figure() -> None:
    assert latency_table(array("d")) == {}
    assert lag_pair(array("d")) == (0, 0)


def test_refusals_have_no_latency_and_what_is_given_up_has() -> None:
    tally = Tally()
    errors = [None, Overloaded("full", status=503), TimedOut("late"), ConnectionLost("gone")]
    for place, error in enumerate(errors):
        tally.start(due=place, sent=place + (0.1 if place == 3 else 0.0))
        tally.end(due=place, done=place + 10 * (place + 1), error=error)

    assert list(tally.latencies) == [10, 30, 40]
    assert tally.failures == {"overloaded": 1, "timed-out": 1, "connection-lost": 1}
    assert (tally.started, tally.answered, tally.late, tally.last) == (4, 1, 1, 43)


def test_invented_codes_are_bounded() -> None:
    tally = Tally()
    for place in range(1000):
        error = Overloaded("full", status=503)
        error.code = f"code-{place}"
        tally.end(due=0, done=1, error=error)

    assert tally.failures.total() == 1000
    assert len(tally.failures) == len(tally.examples) <= 33


MEASURED = Measurement(
    seconds=10, started=1000, answered=1000, items=1000, failures={}, examples={}, latencies={"p50": 0.1},
    samples=1000, late=0, backlog=0, backlog_age=0, in_flight=0, unanswered=0, offered=100, cpu=0.2,
    lag=(0.0001, 0.001), interrupted=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({}, False),
        ({"cpu": 0.85}, True),
        ({"lag": (0.0049, 1.0)}, False),
        ({"lag": (0.0051, 1.0)}, True),  # longer than it may be late, however slow the server
        ({"latencies": {"p50": 0.001}, "lag": (0.0006, 0.001)}, True),  # half of what was measured
        ({"latencies": {}, "lag": (0.004, 0.004)}, False),
        ({"latencies": {}, "lag": (0.006, 0.006)}, True),
    ],
)
def test_when_the_generator_is_the_limit(change: dict[str, Any], *, bound: bool) -> None:
    assert replace(MEASURED, **change).generator_bound is bound


@pytest.mark.parametrize(("backlog", "reached"), [(0, True), (10, True), (11, False), (5000, False)])
def test_when_a_rate_is_reached(backlog: int, *, reached: bool) -> None:
    assert replace(MEASURED, backlog=backlog).rate_reached is reached


def test_nothing_measured_is_no_rate() -> None:
    assert replace(MEASURED, seconds=0).requests_per_second == 0
    assert replace(MEASURED, seconds=0).items_per_second == 0


# --- the signal


def _fitted(metadata: ModelMetadata, rate: float, unit: str, channels: int, length: int) -> ModelMetadata:
    leads = tuple((f"L{place}",) for place in range(channels))
    return replace(
        metadata,
        inputs=(TensorSpec("ecg", "FP32", (-1, channels, length)),),
        signal=SignalContract(rate, unit, leads),
    )


@pytest.mark.parametrize(
    ("rate", "unit", "channels", "length"),
    [(250, "mV", 1, 2500), (250, "mV", 1, 250), (500, "uV", 12, 5000), (400, "V", 12, 4096), (125, "mV", 2, 1250)],
)
def test_every_strip_can_be_interpreted(
    metadata: ModelMetadata, rate: float, unit: str, channels: int, length: int
) -> None:
    strips = synthetic(_fitted(metadata, rate, unit, channels, length), 3, 0)
    millivolts = strips.samples / {"mV": 1, "uV": 1000, "V": 0.001}[unit]

    assert strips.samples.shape[1:] == (channels, length)
    assert (strips.sampling_rate, strips.unit) == (rate, unit)
    spans = np.ptp(millivolts, axis=2)
    assert spans.min() > 0.3  # every window holds a beat
    assert spans.max() < 3
    extremes = (strips.samples == strips.samples.max(2, keepdims=True)).sum(2)
    assert extremes.max() == 1  # nothing is cut off
    noise = np.abs(np.diff(millivolts, 2)).mean() / spans.mean()
    assert noise < 0.05


def test_the_pulse_is_a_hearts(metadata: ModelMetadata) -> None:
    trace = synthetic(_fitted(metadata, 250, "mV", 1, 15_000), 1, 0).samples[0, 0]
    peaks = np.flatnonzero((trace[1:-1] > trace[:-2]) & (trace[1:-1] >= trace[2:]) & (trace[1:-1] > 0.6 * trace.max()))

    assert 55 <= len(peaks) <= 95  # in this minute
    assert 0 < np.std(np.diff(peaks)) / np.mean(np.diff(peaks)) < 0.15


def test_the_seed_decides(metadata: ModelMetadata) -> None:
    one, same, other = (synthetic(metadata, 1, seed).samples for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_requests_take_turns_and_do_not_grow(metadata: ModelMetadata) -> None:
    strips = synthetic(metadata, 1, 0)
    assert len(cut(strips, 1)) == 16
    assert [len(each) for each in cut(strips, 7)] == [7, 7, 7]
    large = _fitted(metadata, 1000, "mV", 12, 40_000)
    assert math.prod(synthetic(large, 1, 0).samples.shape) * 16 <= 32 << 20


# --- the verdict


def _inferred(head: dict[str, Any], tensors: bytes = b"", **headers: str) -> Reply:
    text = json.dumps(head).encode()
    return Reply(200, {LENGTH_HEADER: str(len(text)), **headers}, text + tensors)


def _output(size: int, *shape: int) -> dict[str, Any]:
    return {"name": "s", "datatype": "FP32", "shape": list(shape), "parameters": {"binary_data_size": size}}


def test_a_binary_answer_is_whole_or_none() -> None:
    judge = Judge("binary", 2)
    good = [_output(8, 2), _output(24, 2, 3)]
    assert judge(_inferred({"outputs": good}, bytes(32))) is None
    assert judge(_inferred({"parameters": {"receipts": "1"}, "outputs": good}, bytes(32))) is None
    plain = {"outputs": [{"name": "s", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}
    assert judge(Reply(200, {}, json.dumps(plain).encode())) is None
    wrong = [
        _inferred({"outputs": good}, bytes(31)),
        _inferred({"outputs": good}, bytes(33)),
        _inferred({"outputs": []}),
        _inferred({}),
        _inferred({"outputs": [_output(4, 1)]}, bytes(4)),
        _inferred({"outputs": [_output(-8, 2), _output(16, 2)]}, bytes(8)),
        _inferred({"outputs": [_output(9, 2)]}, bytes(9)),
        _inferred({"outputs": [{"name": "s", "datatype": "FP32", "shape": [2]}]}),
        Reply(200, {LENGTH_HEADER: "99"}, b"{}"),
        Reply(200, {LENGTH_HEADER: "-1"}, b"{}"),
        Reply(200, {LENGTH_HEADER: "1e1"}, b"{}"),
    ]
    assert [getattr(judge(reply), "code", None) for reply in wrong] == ["unexpected-reply"] * len(wrong)


@pytest.mark.parametrize("encoding", ["json", "binary"])
def test_a_refusal_keeps_its_code(encoding: Any) -> None:
    judge = Judge(encoding, 1)
    body = b'{"code": "overloaded", "detail": "the queue is full"}'
    assert getattr(judge(Reply(503, {}, body)), "code", None) == "overloaded"
    oip = Reply(503, {"x-error-code": "engine-away"}, b'{"error": "the engine restarts"}')
    assert getattr(judge(oip), "code", None) == "engine-away"
    assert getattr(judge(Reply(502, {}, b"<html>")), "code", None) == "unexpected-reply"
