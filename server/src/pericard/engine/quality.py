"""Signals that cannot carry a score: short, flat, clipped or noisy.

A model answers a flat line with a number too, and a caller would file it. The limits are plain and stand in
``docs/spec/http-api.md``; they judge the recording, not the patient, and they apply where the manifest declares a
signal. What they cost is paid once for a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pericard.sealed import Signal

#: Peak to peak below this many millivolts is a flat line (an ECG's QRS is 0.5 to 3 mV).
FLAT_MILLIVOLTS = 0.02
#: Share of samples that stand in runs of at least three at the lead's own maximum or minimum.
CLIPPED_SHARE = 0.05
#: Mean step from sample to sample, as a share of the height from peak to peak: white noise has about 0.16, an ECG a
#: few hundredths, since most of its samples lie between the beats. In 10 s of twelve records of the MIT-BIH Arrhythmia
#: Database it is at most 0.037 at 360 Hz, 0.052 at 250 Hz and 0.094 at 100 Hz.
NOISY_SHARE = 0.1
#: Whether a recording is noise is only judged from this many seconds on: a shorter one may hold no beat.
NOISY_SECONDS = 2.5
_UNITS_PER_MILLIVOLT = {"mV": 1.0, "uV": 1000.0}


def flaws(rows: NDArray[np.generic], signal: Signal) -> list[str | None]:
    """Why each row of a batch of shape ``[n, leads, samples]`` cannot be interpreted, or None.

    Args:
        rows: finite values in the signal's unit.
        signal: unit, rate, and the names per lead, of which the first stands in the message.
    """
    high, low = rows.max(axis=2), rows.min(axis=2)
    height = high.astype(np.float64) - low.astype(np.float64)
    flat = height < FLAT_MILLIVOLTS * _UNITS_PER_MILLIVOLT[signal.unit]
    at_limit = ((rows == high[:, :, None]) | (rows == low[:, :, None])).mean(axis=2)
    suspect = at_limit > CLIPPED_SHARE
    noisy = np.zeros_like(flat)
    if rows.shape[2] >= signal.sampling_rate * NOISY_SECONDS:
        steps = np.abs(np.diff(rows.astype(np.float32, copy=False), axis=2)).mean(axis=2)
        noisy = steps > NOISY_SHARE * height
    found: list[str | None] = [None] * len(rows)
    for place, lead in zip(*np.nonzero(flat | suspect | noisy), strict=True):
        if found[place] is None:
            clipped = bool(suspect[place, lead]) and _clipped(rows[place, lead])
            kind = "flat" if flat[place, lead] else "clipped" if clipped else "noisy" if noisy[place, lead] else None
            found[place] = kind and f"{kind} signal on lead {signal.leads[lead][0]}"
    return found


def short(size: int, row_bytes: int, samples: int, signal: Signal) -> str | None:
    """Why a row of ``size`` bytes cannot be interpreted by a model that takes ``row_bytes``; None if it is whole.

    Args:
        size: bytes of a whole number of samples on every lead, or it is no shorter recording but another input.
        row_bytes: of the model's row.
        samples: of the model's row, on each lead.
        signal: what the manifest declares.
    """
    frame = row_bytes // samples
    if size >= row_bytes or not size or size % frame:
        return None
    rate = signal.sampling_rate
    return f"short signal: {size // frame / rate:g} s of the {samples / rate:g} s that the model takes"


def _clipped(lead: NDArray[np.generic]) -> bool:
    share = _share_in_runs(lead == lead.max()) + _share_in_runs(lead == lead.min())
    return share > CLIPPED_SHARE


def _share_in_runs(at_limit: NDArray[np.bool_]) -> float:
    """Share of samples inside runs of three or more."""
    if at_limit.sum() < 3:  # noqa: PLR2004  (a run is three)
        return 0.0
    middle = at_limit[:-2] & at_limit[1:-1] & at_limit[2:]
    inside = np.zeros_like(at_limit)
    for shift in range(3):
        inside[shift : shift + len(middle)] |= middle
    return float(inside.mean())
