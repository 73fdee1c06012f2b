"""A recording as it was made: every lead at its own rate, in millivolts, and nothing about the patient.

Rules of this room: a reader turns a file into one of these or raises; samples that the file marks as absent are NaN,
and no strip is made of a lead that has any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from pericard_client.errors import ContractUnmet, UnsupportedRecording

Samples = npt.NDArray[np.float64]

MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "µV": 1e-3, "μV": 1e-3, "V": 1e3}
"""How many millivolts one unit is."""

# The limb leads are projections of one vector: two of them determine the rest (Einthoven, Goldberger).
_DERIVED: dict[str, tuple[float, float]] = {
    "III": (-1.0, 1.0),
    "AVR": (-0.5, -0.5),
    "AVL": (1.0, -0.5),
    "AVF": (-0.5, 1.0),
}
_HIGHEST_RATE = 100_000.0
_AXES = 2  # leads, time


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One continuous recording.

    Attributes:
        samples: ``[leads][T]`` in mV; NaN where the file says that there is no signal.
        sampling_rate: in Hz.
        leads: the name of each row.
        source: what was read, in words, for the reader of the answer.
        acquired: when it was recorded, if the file says so; stays on this machine.
    """

    samples: Samples
    sampling_rate: float
    leads: tuple[str, ...]
    source: str
    acquired: datetime | None = None

    def __post_init__(self) -> None:
        if self.samples.ndim != _AXES or self.samples.shape[0] != len(self.leads) or 0 in self.samples.shape:
            shape = "x".join(str(size) for size in self.samples.shape)
            raise UnsupportedRecording(f"recording: {len(self.leads)} lead names for samples of shape {shape}")
        if not (math.isfinite(self.sampling_rate) and 0 < self.sampling_rate <= _HIGHEST_RATE):
            raise UnsupportedRecording(f"recording: a sampling rate of {self.sampling_rate:g} Hz is not possible")
        folded = [name.casefold() for name in self.leads]
        twice = sorted({name for name in self.leads if folded.count(name.casefold()) > 1})
        if twice:
            raise UnsupportedRecording(f"recording: lead {twice[0]} is there more than once")

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return int(self.samples.shape[1]) / self.sampling_rate

    def has(self, name: str) -> bool:
        """Whether that lead was recorded."""
        return self._row(name) is not None

    def can_derive(self, name: str) -> bool:
        """Whether that lead follows from leads I and II of this recording."""
        return name.upper() in _DERIVED and self.has("I") and self.has("II")

    def lead(self, name: str) -> Samples:
        """The lead of that name, ``[T]`` in mV, recorded or derived from I and II.

        Raises:
            ContractUnmet: it is neither there nor derivable, or it has gaps.
        """
        row = self._row(name)
        if row is None and self.can_derive(name):
            one, two = _DERIVED[name.upper()]
            row = one * self.lead("I") + two * self.lead("II")
        if row is None:
            raise ContractUnmet(f"recording: lead {name} is not in it; it has {', '.join(self.leads)}")
        absent = np.flatnonzero(~np.isfinite(row))
        if absent.size:
            raise ContractUnmet(
                f"recording: lead {name} has {absent.size} samples without signal, the first at "
                f"{absent[0] / self.sampling_rate:.3f} s",
                hint="choose another lead, or cut the recording to a part without gaps",
            )
        return row

    def _row(self, name: str) -> Samples | None:
        for index, known in enumerate(self.leads):
            if known.casefold() == name.casefold():
                row: Samples = self.samples[index]
                return row
        return None
