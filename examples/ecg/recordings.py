"""Annotated ECG recordings, brought to the rate of the network and cut into its strips.

Two layouts are read: WFDB, as PhysioNet publishes the MIT-BIH Arrhythmia Database (``100.hea``,
``100.dat``, ``100.atr``), and one NPZ file per record, which is the same record without the reader.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly
from stripnet import SAMPLING_RATE, STRIP_SAMPLES

Samples = NDArray[np.float32]
Positions = NDArray[np.int64]

NPZ_RATE = 360
"""Hz. An NPZ record keeps the rate of the database."""

NPZ_UNITS_PER_MV = 200
"""Gain of the database; the NPZ holds its converter's units with the zero level taken off."""

BEAT_SYMBOLS = frozenset("NLRBAaJSVrFejnE/fQ?")
"""WFDB annotation codes that stand for a beat; the others mark rhythm, noise and comments."""

PVC_SYMBOL = "V"
"""WFDB annotation code of a premature ventricular contraction."""


@dataclass(frozen=True)
class Strip:
    """One input of the network and what the annotators saw in it.

    Attributes:
        samples: ``[2500]`` float32, millivolts at 250 Hz.
        beats: Position of every beat, in samples from the start of the strip.
        pvc: Position of every premature ventricular beat; a subset of ``beats``.
        pvc_nearby: The same, and those up to a second outside the strip: they may reach into it.
    """

    samples: Samples
    beats: Positions
    pvc: Positions
    pvc_nearby: Positions


@dataclass(frozen=True)
class Recording:
    """One lead of one patient.

    Attributes:
        name: Record name, such as ``100``.
        samples: ``[N]`` float32, millivolts at 250 Hz.
        beats: Position of every annotated beat, in samples.
        pvc: Position of every premature ventricular beat; a subset of ``beats``.
    """

    name: str
    samples: Samples
    beats: Positions
    pvc: Positions

    def strips(self, hop: int = STRIP_SAMPLES) -> Iterator[Strip]:
        """Cut ten-second strips, one every ``hop`` samples; an incomplete last one is left out."""
        for start in range(0, len(self.samples) - STRIP_SAMPLES + 1, hop):
            yield Strip(
                samples=self.samples[start : start + STRIP_SAMPLES],
                beats=_between(self.beats, start, margin=0),
                pvc=_between(self.pvc, start, margin=0),
                pvc_nearby=_between(self.pvc, start, margin=SAMPLING_RATE),
            )


def read(directory: Path, name: str) -> Recording:
    """Read one record in whichever of the two layouts the directory holds.

    Args:
        directory: Where the files are.
        name: Record name, such as ``100``.

    Returns:
        The first lead of the record with its annotations, at 250 Hz.

    Raises:
        FileNotFoundError: The directory holds the record in neither layout.
        ValueError: The record is not in millivolts, or has samples without a value.
        ModuleNotFoundError: It is a WFDB record, and the optional ``wfdb`` package is missing.
    """
    if (directory / f"{name}.npz").is_file():
        return _read_npz(directory / f"{name}.npz", name)
    if (directory / f"{name}.hea").is_file():
        return _read_wfdb(directory / name, name)
    raise FileNotFoundError(f"neither {name}.npz nor {name}.hea in {directory}")


def resample(samples: NDArray[np.floating], rate: float) -> Samples:
    """Bring a signal to 250 Hz with a polyphase filter.

    Args:
        samples: ``[N]``, any unit.
        rate: Hz of ``samples``.

    Returns:
        ``[ceil(N * 250 / rate)]`` float32, same unit.
    """
    ratio = _ratio(rate)
    # The ends continue along a line: zero padding would put a step where the lead has an offset.
    out = resample_poly(samples, ratio.numerator, ratio.denominator, padtype="line")
    return np.asarray(out, dtype=np.float32)


def _read_npz(path: Path, name: str) -> Recording:
    with np.load(path) as archive:
        millivolts = archive["adc"] / NPZ_UNITS_PER_MV
        return _at_network_rate(name, millivolts, archive["beats"], archive["pvc"], NPZ_RATE)


def _read_wfdb(stem: Path, name: str) -> Recording:
    import wfdb  # noqa: PLC0415  optional, and heavy: it brings pandas, aiohttp and soundfile

    record = wfdb.rdrecord(str(stem), channels=[0])
    if record.units != ["mV"]:
        raise ValueError(f"record {name} is in {record.units[0]}, expected mV")
    millivolts = record.p_signal[:, 0]
    invalid = int(np.count_nonzero(~np.isfinite(millivolts)))
    if invalid:
        raise ValueError(f"record {name} has {invalid} samples without a value")
    annotation = wfdb.rdann(str(stem), "atr")
    symbols = np.array(annotation.symbol)
    beats = annotation.sample[np.isin(symbols, list(BEAT_SYMBOLS))]
    pvc = annotation.sample[symbols == PVC_SYMBOL]
    return _at_network_rate(name, millivolts, beats, pvc, record.fs)


def _at_network_rate(
    name: str,
    millivolts: NDArray[np.floating],
    beats: NDArray[np.integer],
    pvc: NDArray[np.integer],
    rate: float,
) -> Recording:
    ratio = float(_ratio(rate))
    return Recording(
        name=name,
        samples=resample(millivolts, rate),
        beats=np.rint(beats * ratio).astype(np.int64),
        pvc=np.rint(pvc * ratio).astype(np.int64),
    )


def _ratio(rate: float) -> Fraction:
    """Return 250 / ``rate`` in small whole numbers, which a polyphase filter needs."""
    if not rate > 0:
        raise ValueError(f"sampling rate {rate} Hz, expected more than 0")
    return (SAMPLING_RATE / Fraction(rate)).limit_denominator(1000)


def _between(positions: Positions, start: int, *, margin: int) -> Positions:
    inside = (positions >= start - margin) & (positions < start + STRIP_SAMPLES + margin)
    return positions[inside] - start
