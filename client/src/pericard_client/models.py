"""What a server says, as values.

Rules of this room: frozen dataclasses, no I/O, no third-party import; ``wire`` makes them and has checked every type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "not_interpretable", "error"]
Values: TypeAlias = "float | tuple[Values, ...]"
"""One output of one strip: a number where the output's shape is ``[-1]``, else nested tuples of numbers."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model: ``manifest`` is the SHA-256 of the signed manifest and names it for good."""

    name: str
    version: str
    sequence: int
    manifest: str
    publisher: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where the answer stands in the audit log, and the key that opens its commitment."""

    log: str
    index: int
    leaf: str
    opening_key: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What proves a record to whoever has the log's public key: its bytes as text, the inclusion proof, a signed head.

    ``index`` is what the server says; the record carries its own.
    """

    index: int
    record: str
    proof: tuple[bytes, ...]
    head: str


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one strip has no outputs."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one strip.

    ``ok`` has outputs and a receipt; ``not_interpretable`` has a reason and a receipt and never a number; ``error``
    has a reason.
    """

    status: Status
    outputs: Mapping[str, Values]
    error: ItemError | None
    receipt: Receipt | None

    def number(self, output: str) -> float | None:
        """The scalar output of that name, or None where there is none."""
        value = self.outputs.get(output)
        return value if isinstance(value, float) else None

    def series(self, output: str) -> tuple[float, ...]:
        """The one-dimensional output of that name; empty where there is none."""
        value = self.outputs.get(output)
        return tuple(each for each in value if isinstance(each, float)) if isinstance(value, tuple) else ()


@dataclass(frozen=True, slots=True)
class PredictResult:
    """Predictions in the order of the strips, and who made them.

    ``request_ids`` has one entry for each request: a long recording travels in several.
    """

    model: ModelIdentity
    runtime: str
    licence: str
    request_ids: tuple[str, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of the model; -1 stands for the number of strips."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SignalContract:
    """What the manifest demands of a strip: rate in Hz, unit, and for each channel the lead names it accepts."""

    sampling_rate: float
    unit: str
    leads: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class ScoreDescription:
    """Which output is the score, and from where on it counts as anomalous, if the publisher says so."""

    output: str
    threshold: float | None


@dataclass(frozen=True, slots=True)
class TimelineDescription:
    """Which output is the score over time, and how long one of its frames is."""

    output: str
    frame_seconds: float


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What the server says about a model; ``signal``, ``score`` and ``timeline`` where its manifest has them."""

    identity: ModelIdentity
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: str
    intended_use: str | None
    licence: str | None
    licence_not_after: datetime | None
    signal: SignalContract | None
    score: ScoreDescription | None
    timeline: TimelineDescription | None
