"""What is sent: a synthetic ECG that a model takes for one, or windows of a recording.

Rules of this room: the same seed gives the same samples; nothing here is flat, clipped or buried in noise, because a
server answers such strips without a computation, and that would be measured instead.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import fftconvolve

from pericard_client import wire
from pericard_client.errors import ContractUnmet, NotSendable
from pericard_client.formats import Recording, Strips, prepare
from pericard_client.formats.recording import Samples
from pericard_client.models import ModelMetadata

LARGEST_POOL = 16
"""So many different requests take turns, so that no cache answers for the model."""
_POOL_BYTES = 32 << 20
_BYTES_PER_SAMPLE = 16  # in JSON
_LARGEST_STRIP = 4 << 20  # samples

# The waves of one beat: when after the R peak (s), how wide (s), how high (mV). Heights and times of a healthy lead II.
_WAVES = ((-0.17, 0.022, 0.12), (-0.03, 0.009, -0.10), (0.0, 0.011, 1.0), (0.03, 0.010, -0.22), (0.27, 0.045, 0.28))
_BEFORE, _AFTER = 0.3, 0.5  # seconds of a beat around its R peak
_BEAT = 60 / 72
_WANDER_HERTZ = 0.25
_WANDER, _NOISE = 0.04, 0.004  # mV


def synthetic(metadata: ModelMetadata, items: int, seed: int) -> Strips:
    """Strips ``[n * items][C][T]`` of a pulse train, in the unit and at the rate that the model declares.

    Raises:
        ContractUnmet: the model declares no signal, or none that is a voltage over time.
    """
    signal = metadata.signal
    if signal is None:
        raise ContractUnmet(
            f"model {metadata.identity.name} does not declare what signal it was made for, so none can be made up"
        )
    length = max([1, *(spec.shape[-1] for spec in metadata.inputs if spec.shape)])
    size = len(signal.leads) * length
    if size > _LARGEST_STRIP:
        raise ContractUnmet(f"model {metadata.identity.name} takes {size} samples a strip, which are not made up here")
    pool = max(1, min(LARGEST_POOL, _POOL_BYTES // (_BYTES_PER_SAMPLE * size * items)))
    samples = _pulses(len(signal.leads), pool * items * length, signal.sampling_rate, np.random.default_rng(seed))
    leads = tuple(accepted[0] for accepted in signal.leads)
    return prepare(Recording(samples, signal.sampling_rate, leads, "synthetic ECG"), metadata)


def cut(strips: Strips, items: int) -> list[Samples]:
    """The windows in requests of ``items`` each; where they run out, they begin again.

    Raises:
        NotSendable: so many do not fit one request.
    """
    count = len(strips.samples)
    room = max(1, _POOL_BYTES // (_BYTES_PER_SAMPLE * strips.samples[0].size * items))
    requests = min(math.ceil(count / items), LARGEST_POOL, room)
    rows = [[(first * items + each) % count for each in range(items)] for first in range(requests)]
    fitting = len(wire.batches(wire.as_strips(strips.samples[rows[0]], len(strips.leads))))
    if fitting != 1:
        raise NotSendable(
            f"items: {items} strips of this model need {fitting} requests", hint=f"at most {items // fitting} fit one"
        )
    return [strips.samples[each] for each in rows]


def _pulses(leads: int, total: int, rate: float, random: np.random.Generator) -> Samples:
    """``[leads][total]`` in mV: one rhythm, seen by each lead with a gain, a wander and a noise of its own."""
    beats = math.ceil(total / rate / _BEAT * 2) + 2
    gaps = np.clip(random.normal(_BEAT, 0.05 * _BEAT, beats), 0.6, 1.2)
    peaks = np.rint((random.uniform(0, _BEAT) + np.cumsum(gaps) - gaps[0]) * rate).astype(np.int64)
    impulses = np.zeros(total)
    impulses[peaks[peaks < total]] = 1.0
    around = np.arange(-round(_BEFORE * rate), round(_AFTER * rate) + 1) / rate
    beat = sum(height * np.exp(-(((around - at) / width) ** 2) / 2) for at, width, height in _WAVES)
    start = round(_BEFORE * rate)
    trace = fftconvolve(impulses, beat)[start : start + total]
    seconds = np.arange(total) / rate
    rows = [
        random.uniform(0.6, 1.2) * trace
        + _WANDER * np.sin(2 * np.pi * _WANDER_HERTZ * seconds + random.uniform(0, 2 * np.pi))
        + random.normal(0, _NOISE, total)
        for _ in range(leads)
    ]
    return np.stack(rows)
