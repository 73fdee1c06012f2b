"""Signals that cannot carry a score: flat or clipped.

A model answers a flat line with a number too, and a caller would file it. The limits are plain and stand in
``docs/spec/http-api.md``; they judge the recording, not the patient.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Peak to peak below this many millivolts is a flat line (an ECG's QRS is 0.5 to 3 mV).
FLAT_MILLIVOLTS = 0.02
#: Share of samples that stand in runs of at least three at the lead's own maximum or minimum.
CLIPPED_SHARE = 0.05
_UNITS_PER_MILLIVOLT = {"mV": 1.0, "uV": 1000.0}


def flaw(row: NDArray[np.generic], unit: str, leads: tuple[tuple[str, ...], ...]) -> str | None:
    """Why a signal of shape ``[leads, samples]`` cannot be interpreted, or None.

    Args:
        row: one item, in ``unit``.
        unit: ``mV`` or ``uV``.
        leads: accepted names per channel; the first names it in the message.
    """
    flat_limit = FLAT_MILLIVOLTS * _UNITS_PER_MILLIVOLT[unit]
    for channel, names in zip(row.astype(np.float64), leads, strict=True):
        low, high = channel.min(), channel.max()
        if high - low < flat_limit:
            return f"flat signal on lead {names[0]}"
        if _share_in_runs(channel == high) + _share_in_runs(channel == low) > CLIPPED_SHARE:
            return f"clipped signal on lead {names[0]}"
    return None


def _share_in_runs(at_limit: NDArray[np.bool_]) -> float:
    """Share of samples inside runs of three or more."""
    if at_limit.sum() < 3:  # noqa: PLR2004  (a run is three)
        return 0.0
    middle = at_limit[:-2] & at_limit[1:-1] & at_limit[2:]
    inside = np.zeros_like(at_limit)
    for shift in range(3):
        inside[shift : shift + len(middle)] |= middle
    return float(inside.mean())
