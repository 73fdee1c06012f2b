"""What counts as flat or clipped."""

from __future__ import annotations

import numpy as np
import pytest
import serving
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pericard.engine.quality import CLIPPED_SHARE, FLAT_MILLIVOLTS, flaw

LEADS = (("II", "MLII"),)


def strip(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def wave(length: int = 500, size: float = 1.0) -> np.ndarray:
    return (np.sin(np.arange(length) / 7.3) * size).astype(np.float32)[np.newaxis]


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
    ],
)
def test_limits(samples: list[float], unit: str, found: str | None) -> None:
    assert flaw(strip(*samples), unit, LEADS) == found


def test_the_lead_that_is_flawed_is_named() -> None:
    rows = np.concatenate([wave(), np.zeros((1, 500), np.float32), wave()])

    assert flaw(rows, "mV", (("I",), ("II", "MLII"), ("III",))) == "flat signal on lead II"


@pytest.mark.parametrize("share", [0.03, 0.10])
def test_the_share_of_clipped_samples_decides(share: float) -> None:
    samples = wave(1000)
    place = int(np.argmax(samples))
    samples[0, place : place + int(1000 * share)] = samples.max() + 0.1

    assert (flaw(samples, "mV", LEADS) is None) == (share < CLIPPED_SHARE)


def test_both_rails_count_together() -> None:
    samples = wave(1000)
    samples[0, 100:130], samples[0, 300:330] = 3.0, -3.0

    assert flaw(samples, "mV", LEADS) == "clipped signal on lead II"


def test_very_short_strips_are_judged_too() -> None:
    assert flaw(strip(0.0, 1.0), "mV", LEADS) is None
    assert flaw(strip(0.5), "mV", LEADS) == "flat signal on lead II"


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(row=arrays.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 40)), elements=finite))
def test_no_finite_signal_breaks_it(row: np.ndarray) -> None:
    found = flaw(row, "mV", LEADS)

    assert found in {None, "flat signal on lead II", "clipped signal on lead II"}
    peak_to_peak = float(row.astype(np.float64).max() - row.astype(np.float64).min())
    if peak_to_peak < FLAT_MILLIVOLTS:
        assert found == "flat signal on lead II"


def test_integers_are_judged_by_their_unit() -> None:
    samples = (wave() * 1000).astype(np.int16)

    assert flaw(samples, "uV", LEADS) is None
    assert flaw(samples // 200, "uV", LEADS) == "flat signal on lead II"
