"""Strips: what a recording becomes for a model, and what it is refused for."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pericard_client.errors import ContractUnmet
from pericard_client.formats import Recording, as_recorded, prepare
from pericard_client.formats.strips import resample, window_starts
from pericard_client.models import ModelMetadata, SignalContract, TensorSpec


def sine(rate: float, seconds: float, *leads: str, hertz: float = 3.0) -> Recording:
    time = np.arange(round(rate * seconds)) / rate
    rows = [np.sin(2 * np.pi * hertz * time) * (index + 1) for index in range(len(leads))]
    return Recording(np.stack(rows), rate, leads, "sine")


def described(metadata: ModelMetadata, signal: SignalContract | None, *shape: int) -> ModelMetadata:
    return replace(metadata, signal=signal, inputs=(TensorSpec("ecg", "FP32", shape),))


@given(length=st.integers(1, 500), extra=st.integers(0, 5000))
def test_windows_cover_everything_and_only_the_last_overlaps(length: int, extra: int) -> None:
    total = length + extra
    starts = window_starts(total, length)
    covered = np.zeros(total, dtype=int)
    for start in starts:
        assert 0 <= start <= total - length
        covered[start : start + length] += 1
    assert covered.min() == 1
    assert starts[-1] + length == total
    assert starts[:-1] == [index * length for index in range(len(starts) - 1)]
    assert (covered > 1).sum() == -total % length if len(starts) > 1 else (covered == 1).all()
    assert len(starts) == -(-total // length)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.sampled_from([100.0, 240.0, 250.0, 257.0, 360.0, 500.0, 1000.0, 1024.0]), seconds=st.floats(10, 35))
def test_windows_of_any_rate_hold_the_same_signal(metadata: ModelMetadata, rate: float, seconds: float) -> None:
    recording = sine(rate, seconds, "II", hertz=2.0)
    if recording.duration < 10:
        return
    strips = prepare(recording, metadata)
    assert strips.samples.shape[1:] == (1, 2500)
    assert (strips.seconds, strips.overlaps[0]) == (10.0, 0.0)
    time = np.arange(2500) / 250
    for start, samples in zip(strips.starts, strips.samples[:, 0], strict=True):
        inner = slice(100, -100)  # a filter needs its length at the recording's ends
        assert np.allclose(samples[inner], np.sin(2 * np.pi * 2.0 * (time + start))[inner], atol=0.02)
    assert sum(strips.overlaps) == pytest.approx(len(strips.starts) * 10 - (strips.starts[-1] + 10))


def test_an_offset_does_not_ring_at_the_ends() -> None:
    flat = resample(np.full((1, 5000), 100.0), 500.0, 250.0)
    assert np.allclose(flat, 100.0)
    assert np.allclose(resample(np.full((1, 3600), 5.0), 360.0, 250.0), 5.0, rtol=2e-4)


def test_what_has_the_right_rate_is_not_touched() -> None:
    samples = np.random.default_rng(1).normal(size=(1, 100))
    assert resample(samples, 250.0, 250.0) is samples
    with pytest.raises(ContractUnmet, match="no workable ratio leads from 333"):
        resample(samples, 333.333, 250.001)


def test_frequencies_above_the_new_limit_do_not_fold_back() -> None:
    high = sine(1000.0, 12.0, "II", hertz=200.0)
    strips = resample(high.samples, 1000.0, 250.0)
    assert np.abs(strips[0, 100:-100]).max() < 0.01


def test_one_sample_short_of_a_window_is_refused(metadata: ModelMetadata) -> None:
    exact = Recording(np.ones((1, 2500)), 250.0, ("II",), "test")
    assert prepare(exact, metadata).samples.shape == (1, 1, 2500)
    short = Recording(np.ones((1, 2499)), 250.0, ("II",), "test")
    with pytest.raises(ContractUnmet, match=r"10\.00 s is shorter than the 10 s that model ecg-anomaly takes"):
        prepare(short, metadata)


def test_units_are_the_models(metadata: ModelMetadata) -> None:
    for unit, factor in (("mV", 1.0), ("uV", 1000.0), ("V", 0.001)):
        signal = SignalContract(250.0, unit, (("II",),))
        strips = prepare(sine(250.0, 10.0, "II"), described(metadata, signal, -1, 1, 2500))
        assert strips.unit == unit
        assert strips.samples.max() == pytest.approx(factor, rel=1e-3)


def test_the_models_names_of_the_leads_are_sent(metadata: ModelMetadata) -> None:
    assert prepare(sine(250.0, 10.0, "mlii"), metadata).leads == ("MLII",)
    both = sine(250.0, 10.0, "MLII", "II")
    assert prepare(both, metadata).leads == ("II",)
    assert prepare(both, metadata).samples.max() == pytest.approx(2.0, rel=1e-3)
    assert prepare(both, metadata, leads=("mlii",)).leads == ("MLII",)


def test_leads_are_derived_where_they_are_missing(metadata: ModelMetadata) -> None:
    signal = SignalContract(250.0, "mV", (("aVF",), ("II",)))
    two = described(metadata, signal, -1, 2, 2500)
    strips = prepare(sine(250.0, 10.0, "I", "II"), two)
    assert (strips.leads, strips.derived) == (("aVF", "II"), ("aVF",))
    assert np.allclose(strips.samples[0, 0], strips.samples[0, 1] - strips.samples[0, 1] / 4)  # II - I/2, and I = II/2
    recorded = prepare(sine(250.0, 10.0, "I", "II", "aVF"), two)
    assert recorded.derived == ()


@pytest.mark.parametrize(
    ("leads", "wanted", "words"),
    [
        (("V1", "I"), (), "lead II or MLII, which model ecg-anomaly takes, is not in it; it has V1, I"),
        (("II", "V1"), ("V1",), "takes lead II or MLII; V1 was asked for"),
        (("II",), ("MLII",), "lead MLII, which model ecg-anomaly takes, is not in it"),
        (("II",), ("II", "I"), "takes 1 leads; 2 were asked for"),
    ],
)
def test_a_lead_that_is_not_there(
    metadata: ModelMetadata, leads: tuple[str, ...], wanted: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ContractUnmet, match=words):
        prepare(sine(250.0, 10.0, *leads), metadata, leads=wanted)


@pytest.mark.parametrize(
    ("signal", "shape", "words"),
    [
        (None, (-1, 1, 2500), "does not declare what signal"),
        (SignalContract(250.0, "mV", (("II",),)), (-1, 2500), "not one strip of 1 channels"),
        (SignalContract(250.0, "mV", (("II",),)), (-1, 2, 2500), "not one strip of 1 channels"),
        (SignalContract(250.0, "mV", (("II",),)), (-1, 1, -1), "not one strip of 1 channels"),
        (SignalContract(250.0, "mmHg", (("II",),)), (-1, 1, 2500), "no unit of voltage"),
    ],
)
def test_a_model_that_says_too_little(
    metadata: ModelMetadata, signal: SignalContract | None, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ContractUnmet, match=words):
        prepare(sine(250.0, 10.0, "II"), described(metadata, signal, *shape))


def test_as_recorded_changes_nothing(metadata: ModelMetadata) -> None:
    recording = sine(500.0, 12.0, "I", "II")
    strips = as_recorded(recording, metadata)
    assert (strips.samples.shape, strips.sampling_rate, strips.leads) == ((1, 1, 6000), 500.0, ("II",))
    assert np.array_equal(strips.samples[0, 0], recording.lead("II"))
