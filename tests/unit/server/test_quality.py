"""What counts as flat, clipped, noisy or short; and that an ECG counts as none of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import serving
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from pericard.engine.quality import CLIPPED_SHARE, FLAT_MILLIVOLTS, NOISY_SECONDS, NOISY_SHARE, flaws, short
from pericard.sealed import Signal

RATE = 250.0


def signal(unit: str = "mV", rate: float = RATE, *leads: str) -> Signal:
    return Signal(rate, unit, tuple((name,) for name in leads or ("II",)))


def flaw(samples: Any, about: Signal | None = None) -> str | None:
    (found,) = flaws(np.atleast_2d(samples)[None], about or signal())
    return found


def wave(length: int = 500, size: float = 1.0) -> NDArray[np.float32]:
    return (np.sin(np.arange(length) / 7.3) * size).astype(np.float32)


def ecg(rate: float, seconds: float, beats: float, *, width: float = 0.02, height: float = 1.0) -> NDArray[np.float64]:
    """Beats of a P wave, a QRS complex and a T wave; McSharry's sum of Gaussians with the shape left plain."""
    period = 60 / beats
    phase = np.mod(np.arange(int(rate * seconds)) / rate, period) / period - 0.4
    found = np.zeros_like(phase)
    sharp = width / period
    for centre, spread, size in ((-0.2, 0.03, 0.15), (0.0, sharp, 1.0), (0.04, sharp, -0.3), (0.3, 0.07, 0.3)):
        found += size * np.exp(-(((phase - centre) / spread) ** 2) / 2)
    return found * height


@pytest.mark.parametrize(
    ("samples", "unit", "found"),
    [
        (serving.GOOD, "mV", None),
        (serving.OTHER, "mV", None),
        (serving.FAILING, "mV", None),
        (serving.FLAT, "mV", "flat signal on lead II"),
        (serving.CLIPPED, "mV", "clipped signal on lead II"),
        ([0.0] * 8, "mV", "flat signal on lead II"),
        ([0.0, 0.019] * 4, "mV", "flat signal on lead II"),
        ([0.0, 0.021] * 4, "mV", None),
        ([0.0, 19.0] * 4, "uV", "flat signal on lead II"),
        ([0.0, 21.0] * 4, "uV", None),
        ([1.0, 1.0, 1.0, 0.0, 0.1, 0.2, 0.3, 0.4], "mV", "clipped signal on lead II"),
        ([-1.0, -1.0, -1.0, 0.0, 0.1, 0.2, 0.3, 0.4], "mV", "clipped signal on lead II"),
        ([1.0, 1.0, 0.0, 1.0, 1.0, 0.1, 1.0, 1.0], "mV", None),  # runs of two are chance
        ([0.0, 1.0], "mV", None),
        ([0.5], "mV", "flat signal on lead II"),
    ],
)
def test_limits(samples: list[float], unit: str, found: str | None) -> None:
    assert flaw(np.array(samples, np.float32), signal(unit)) == found


def test_each_row_is_judged_alone_and_the_lead_is_named() -> None:
    good, flat, noise = wave(1000), np.zeros(1000), np.random.default_rng(1).normal(size=1000)
    rows = np.array([[good, good, good], [good, flat, noise], [noise, good, good], [good, good, flat]], np.float32)

    assert flaws(rows, signal("mV", RATE, "I", "II", "III")) == [
        None, "flat signal on lead II", "noisy signal on lead I", "flat signal on lead III",
    ]  # fmt: skip
    assert flaws(rows[:0], signal("mV", RATE, "I", "II", "III")) == []


@pytest.mark.parametrize("share", [0.03, 0.10])
def test_the_share_of_clipped_samples_decides(share: float) -> None:
    samples = wave(1000)
    place = int(np.argmax(samples))
    samples[place : place + int(1000 * share)] = samples.max() + 0.1

    assert (flaw(samples) is None) == (share < CLIPPED_SHARE)


def test_both_rails_count_together() -> None:
    samples = wave(1000)
    samples[100:130], samples[300:330] = 3.0, -3.0

    assert flaw(samples) == "clipped signal on lead II"


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [100.0, 250.0, 360.0, 500.0])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_noisy(rate: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    size = int(rate * 10)

    for samples in (chance.normal(size=size), chance.uniform(-1, 1, size=size)):
        assert flaw(samples.astype(np.float32), signal(rate=rate)) == "noisy signal on lead II"


@pytest.mark.parametrize("mains", [50, 60])
@pytest.mark.parametrize("rate", [250.0, 360.0, 500.0])
def test_an_ecg_drowned_in_hum_or_noise_is_noisy(mains: int, rate: float) -> None:
    beats = ecg(rate, 10, 70)
    hum = np.sin(2 * np.pi * mains * np.arange(len(beats)) / rate)
    noise = np.random.default_rng(3).normal(size=len(beats))

    assert flaw(beats + hum, signal(rate=rate)) == "noisy signal on lead II"
    assert flaw(beats + noise, signal(rate=rate)) == "noisy signal on lead II"
    assert flaw(beats + 0.02 * hum + 0.02 * noise, signal(rate=rate)) is None


@pytest.mark.parametrize("rate", [100.0, 250.0, 360.0, 500.0])
@pytest.mark.parametrize("beats", [30, 70, 150, 220])
@pytest.mark.parametrize("seconds", [2.5, 10.0])
def test_an_ecg_is_none_of_these(rate: float, beats: int, seconds: float) -> None:
    about = signal(rate=rate)
    wander = 0.3 * np.sin(2 * np.pi * 0.25 * np.arange(int(rate * seconds)) / rate)
    tremor = np.random.default_rng(5).normal(size=len(wander)) * 0.01

    clean = ecg(rate, seconds, beats)
    recorded = clean + wander + tremor
    assert flaw(clean.astype(np.float32), about) is None
    assert flaw(recorded.astype(np.float32), about) is None
    assert flaw((recorded * 1000).astype(np.int16), signal("uV", rate)) is None


def test_fibrillation_is_no_noise() -> None:
    time = np.arange(2500) / RATE
    samples = sum(np.sin(2 * np.pi * hertz * time + hertz**2) for hertz in (4.1, 5.3, 6.7))

    assert flaw(np.asarray(samples, np.float32)) is None


def test_short_stretches_are_not_judged_for_noise() -> None:
    size = int(RATE * NOISY_SECONDS)
    noise = np.random.default_rng(1).normal(size=size).astype(np.float32)

    assert flaw(noise) == "noisy signal on lead II"
    assert flaw(noise[:-1]) is None


# --- short ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "row_bytes", "samples", "found"),
    [
        (2000, 10_000, 2500, "short signal: 2 s of the 10 s that the model takes"),
        (4, 10_000, 2500, "short signal: 0.004 s of the 10 s that the model takes"),
        (2000 * 12, 10_000 * 12, 2500, "short signal: 2 s of the 10 s that the model takes"),
        (10_000, 10_000, 2500, None),
        (10_004, 10_000, 2500, None),
        (0, 10_000, 2500, None),
        (2001, 10_000, 2500, None),
    ],
)
def test_a_row_of_whole_samples_may_be_short(size: int, row_bytes: int, samples: int, found: str | None) -> None:
    assert short(size, row_bytes, samples, signal()) == found


# --- anything ---------------------------------------------------------------------------------------------------------

finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(row=arrays.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 40)), elements=finite))
def test_no_finite_signal_breaks_it(row: NDArray[np.float32]) -> None:
    found = flaw(row)

    assert found in {None, "flat signal on lead II", "clipped signal on lead II"}
    if float(row.astype(np.float64).max() - row.astype(np.float64).min()) < FLAT_MILLIVOLTS:
        assert found == "flat signal on lead II"


@given(row=arrays.arrays(np.float32, (1, 40), elements=finite))
def test_noise_is_what_it_says(row: NDArray[np.float32]) -> None:
    found = flaw(row, signal(rate=10.0))
    height = float(row.max()) - float(row.min())
    steps = float(np.abs(np.diff(row)).mean())

    if found == "noisy signal on lead II":
        assert steps > NOISY_SHARE * height * 0.999
    if found is None:
        assert steps <= NOISY_SHARE * height * 1.001


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float16, np.float32, np.float64])
def test_every_type_of_number_is_judged(dtype: type[np.generic]) -> None:
    good = (wave(1000) * 100).astype(dtype)

    assert flaw(good, signal("uV")) is None
    assert flaw((wave(1000) * 5).astype(dtype), signal("uV")) == "flat signal on lead II"
    if dtype is np.int16:
        assert flaw(np.array([-32768, 32767] * 500, dtype), signal("uV")) == "noisy signal on lead II"
