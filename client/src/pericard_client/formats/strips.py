"""From a recording to the strips that a model was made for: its leads, rate, unit and length.

Rules of this room: what the model's manifest declares decides; a recording that cannot meet it is refused, never
bent. The whole recording is resampled before it is cut, so that no window has an edge of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from pericard_client.errors import ContractUnmet
from pericard_client.formats.recording import MILLIVOLTS, Recording, Samples
from pericard_client.models import ModelMetadata, SignalContract

# Above this the anti-aliasing filter grows past any use; every rate that carts and Holters have is far below.
_LARGEST_FACTOR = 10_000
_DENOMINATOR = 10_000
_STRIP_AXES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Strips:
    """What is sent: windows of one recording, in time order.

    Attributes:
        samples: ``[N][C][T]`` in ``unit``.
        sampling_rate: of the samples, in Hz.
        unit: of the samples.
        leads: for each channel the name that the model accepts.
        derived: those of ``leads`` that were computed from I and II.
        starts: of each window, in seconds from the recording's start.
        overlaps: for each window, how many seconds of it the window before holds too.
        recorded_rate: of the recording, in Hz.
    """

    samples: Samples
    sampling_rate: float
    unit: str
    leads: tuple[str, ...]
    derived: tuple[str, ...]
    starts: tuple[float, ...]
    overlaps: tuple[float, ...]
    recorded_rate: float

    @property
    def seconds(self) -> float:
        """Length of one window."""
        return int(self.samples.shape[2]) / self.sampling_rate


class _Demand(NamedTuple):
    """What a model's metadata asks of a strip."""

    model: str
    signal: SignalContract
    length: int
    per_millivolt: float


def prepare(recording: Recording, metadata: ModelMetadata, *, leads: tuple[str, ...] = ()) -> Strips:
    """Resample and cut a recording into the windows that the model takes.

    Windows follow each other without a gap; where the recording is no multiple of a window, the last one ends with
    the recording and overlaps the one before.

    Args:
        recording: what was read.
        metadata: the model's, for its signal contract and strip length.
        leads: one name for each channel, to choose among those that the model accepts; empty: the first that is there.

    Raises:
        ContractUnmet: a lead is missing, the recording is shorter than one window, or the model declares too little.
    """
    demand = _demand(metadata)
    names, derived, chosen = _select(recording, demand, leads)
    resampled = resample(chosen, recording.sampling_rate, demand.signal.sampling_rate)
    total, rate = resampled.shape[1], demand.signal.sampling_rate
    if total < demand.length:
        raise ContractUnmet(
            f"recording: {recording.duration:.2f} s is shorter than the {demand.length / rate:g} s "
            f"that model {demand.model} takes"
        )
    starts = window_starts(total, demand.length)
    overlaps = [0, *(max(0, before + demand.length - after) for before, after in pairwise(starts))]
    return Strips(
        samples=np.stack([resampled[:, start : start + demand.length] for start in starts]) * demand.per_millivolt,
        sampling_rate=rate,
        unit=demand.signal.unit,
        leads=names,
        derived=derived,
        starts=tuple(start / rate for start in starts),
        overlaps=tuple(overlap / rate for overlap in overlaps),
        recorded_rate=recording.sampling_rate,
    )


def as_recorded(recording: Recording, metadata: ModelMetadata, *, leads: tuple[str, ...] = ()) -> Strips:
    """The recording as one strip, at its own rate and length: what a model was not made for, the server refuses.

    Raises:
        ContractUnmet: a lead is missing, or the model declares too little to choose one.
    """
    demand = _demand(metadata)
    names, derived, chosen = _select(recording, demand, leads)
    return Strips(
        samples=chosen[np.newaxis] * demand.per_millivolt,
        sampling_rate=recording.sampling_rate,
        unit=demand.signal.unit,
        leads=names,
        derived=derived,
        starts=(0.0,),
        overlaps=(0.0,),
        recorded_rate=recording.sampling_rate,
    )


def window_starts(total: int, length: int) -> list[int]:
    """Where windows of ``length`` samples begin so that they cover all ``total``; the last one is right-aligned.

    Both are positive and ``total`` is at least ``length``.
    """
    starts = list(range(0, total - length + 1, length))
    if starts[-1] + length < total:
        starts.append(total - length)
    return starts


def resample(samples: Samples, rate: float, wanted: float) -> Samples:
    """Resample ``[C][T]`` by the rational ratio of the two rates, with a zero-phase polyphase low-pass filter.

    Raises:
        ContractUnmet: the ratio has no workable terms.
    """
    ratio = Fraction(wanted).limit_denominator(_DENOMINATOR) / Fraction(rate).limit_denominator(_DENOMINATOR)
    if ratio == 1:
        return samples
    if max(ratio.numerator, ratio.denominator) > _LARGEST_FACTOR:
        raise ContractUnmet(f"recording: no workable ratio leads from {rate:g} Hz to {wanted:g} Hz")
    # "line": a baseline offset must not become a step at both ends, as zero padding makes it.
    resampled: Samples = resample_poly(samples, ratio.numerator, ratio.denominator, axis=1, padtype="line")
    return resampled


def _demand(metadata: ModelMetadata) -> _Demand:
    name, signal = metadata.identity.name, metadata.signal
    if signal is None:
        raise ContractUnmet(
            f"model {name} does not declare what signal it was made for, so no file can be fitted to it"
        )
    shapes = [spec.shape for spec in metadata.inputs]
    if len(shapes) != 1 or len(shapes[0]) != _STRIP_AXES or shapes[0][1] != len(signal.leads) or shapes[0][2] < 1:
        found = ", ".join(str(list(shape)) for shape in shapes)
        raise ContractUnmet(f"model {name} takes {found}, which is not one strip of {len(signal.leads)} channels")
    if signal.unit not in MILLIVOLTS:
        raise ContractUnmet(f"model {name} takes {signal.unit}, which is no unit of voltage")
    return _Demand(name, signal, shapes[0][2], 1 / MILLIVOLTS[signal.unit])


def _select(
    recording: Recording, demand: _Demand, wanted: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], Samples]:
    """Names as the model accepts them, those among them that were derived, and their samples ``[C][T]``."""
    channels = demand.signal.leads
    if wanted and len(wanted) != len(channels):
        raise ContractUnmet(f"model {demand.model} takes {len(channels)} leads; {len(wanted)} were asked for")
    names = [
        _name(recording, accepted, wanted[channel] if wanted else None, demand.model)
        for channel, accepted in enumerate(channels)
    ]
    derived = tuple(name for name in names if not recording.has(name))
    return tuple(names), derived, np.stack([recording.lead(name) for name in names])


def _name(recording: Recording, accepted: tuple[str, ...], wanted: str | None, model: str) -> str:
    usable = accepted if wanted is None else tuple(n for n in accepted if n.casefold() == wanted.casefold())
    if not usable:
        raise ContractUnmet(f"model {model} takes lead {' or '.join(accepted)}; {wanted} was asked for")
    for present in (recording.has, recording.can_derive):
        for name in usable:
            if present(name):
                return name
    raise ContractUnmet(
        f"recording: lead {' or '.join(usable)}, which model {model} takes, is not in it; "
        f"it has {', '.join(recording.leads)}"
    )
