"""NumPy arrays: the samples alone, so that the caller says rate, unit and leads.

Rules of this room: nothing is unpickled; nothing is guessed from a shape.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pericard_client.errors import UnreadableFile, UnsupportedRecording
from pericard_client.formats.recording import MILLIVOLTS, Recording

MAGIC = b"\x93NUMPY"
_HINT = "an NPY file holds samples alone: give --sampling-rate, --unit and --leads"


def read_npy(path: Path, *, sampling_rate: float | None, unit: str | None, leads: tuple[str, ...]) -> Recording:
    """Read ``[leads][T]``, or ``[T]`` for one lead, of integers or floats.

    Raises:
        UnreadableFile: damaged, or it holds objects.
        UnsupportedRecording: rate, unit or leads were not given or do not fit it.
    """
    if sampling_rate is None or unit is None or not leads:
        raise UnsupportedRecording(f"{path}: its sampling rate, unit and leads are not known", hint=_HINT)
    if unit not in MILLIVOLTS:
        raise UnsupportedRecording(f"{path}: {unit} is not a unit of voltage", hint="one of mV, uV, V")
    try:
        stored = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UnreadableFile(f"{path}: not a whole NPY file: {error}") from error
    if stored.dtype.kind not in "iuf":
        raise UnsupportedRecording(f"{path}: its values are of type {stored.dtype}, not numbers")
    samples = np.atleast_2d(stored.astype(np.float64)) * MILLIVOLTS[unit]
    return Recording(samples, sampling_rate, leads, f"NPY array of {stored.dtype}")
