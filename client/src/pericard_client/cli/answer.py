"""One recording's answer, for a reader and for a machine."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pericard_client.cli.voice import lines
from pericard_client.formats import Recording, Strips
from pericard_client.models import ModelMetadata, Prediction, PredictResult

_PIPE_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """A recording, what was sent of it, and what came back."""

    path: Path
    recording: Recording
    strips: Strips
    result: PredictResult
    metadata: ModelMetadata

    @property
    def threshold(self) -> float | None:
        """From where on a score counts as anomalous, if the model says so."""
        return None if self.metadata.score is None else self.metadata.score.threshold

    def score(self, prediction: Prediction) -> float | None:
        """A window's score, if it has one."""
        return None if self.metadata.score is None else prediction.number(self.metadata.score.output)

    def verdict(self, prediction: Prediction) -> str:
        """In words; below the threshold is not called normal, because no model here says that."""
        score = self.score(prediction)
        if prediction.status != "ok":
            return prediction.status.replace("_", " ")
        if score is None or self.threshold is None:
            return "no threshold declared"
        return "anomalous" if score >= self.threshold else "below threshold"

    def worst(self) -> tuple[float, float] | None:
        """The highest score and the second at which its window starts."""
        windows = zip(self.result.predictions, self.strips.starts, strict=True)
        scores = [(self.score(prediction), -start) for prediction, start in windows]
        highest = max(((score, start) for score, start in scores if score is not None), default=None)
        return highest and (highest[0], -highest[1])

    def fields(self) -> dict[str, Any]:
        """Everything, with whole receipts, for JSON."""
        recording, strips, result, worst = self.recording, self.strips, self.result, self.worst()
        windows = zip(strips.starts, strips.overlaps, result.predictions, strict=True)
        return {
            "file": str(self.path),
            "recording": {
                "source": recording.source,
                "leads": recording.leads,
                "sampling_rate": recording.sampling_rate,
                "seconds": recording.duration,
                "acquired": recording.acquired and recording.acquired.isoformat(),
            },
            "sent": {
                "leads": strips.leads,
                "derived": strips.derived,
                "sampling_rate": strips.sampling_rate,
                "unit": strips.unit,
                "window_seconds": strips.seconds,
            },
            "model": asdict(result.model),
            "runtime": result.runtime,
            "licence": result.licence,
            "request_ids": result.request_ids,
            "threshold": self.threshold,
            "windows": [
                {"start": start, "overlap": overlap, "score": self.score(each), "verdict": self.verdict(each)}
                | asdict(each)
                for start, overlap, each in windows
            ],
            "worst": worst and {"score": worst[0], "start": worst[1]},
        }

    def show(self) -> None:
        """Print what was read, a row for each window, and who answered."""
        recording, strips, result, worst = self.recording, self.strips, self.result, self.worst()
        rate, sent = f"{recording.sampling_rate:g} Hz", f"{strips.sampling_rate:g} Hz"
        named = [f"{name} (derived from I and II)" if name in strips.derived else name for name in strips.leads]
        read = f"{recording.source}: {len(recording.leads)} leads, {rate}, {recording.duration:.1f} s"
        analysed = f"lead {', '.join(named)}{'' if rate == sent else f', resampled to {sent}'}"
        click.echo(click.format_filename(self.path))
        lines([("read", read), ("analysed", f"{analysed}, {len(strips.starts)} x {strips.seconds:g} s")])
        Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(self._table())
        threshold = "" if self.threshold is None else f" (threshold {self.threshold:g})"
        logs = {each.receipt.log: None for each in result.predictions if each.receipt}
        lines(
            [
                ("worst", f"{worst[0]:.3f} at {worst[1]:.1f} s{threshold}" if worst else "no window has a score"),
                *identity_lines(self.metadata),
                ("licence", result.licence),
                ("log", ", ".join(logs) or "no receipt"),
            ]
        )

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=True, padding=(0, 1))
        for title in ("start s", "score"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        table.add_column("receipt", justify="right", no_wrap=True)
        table.add_column("note")
        windows = zip(self.strips.starts, self.strips.overlaps, self.result.predictions, strict=True)
        for start, overlap, each in windows:
            score, verdict = self.score(each), self.verdict(each)
            overlapping = f"{overlap:.1f} s overlap" if overlap else ""
            notes = [note for note in (each.error and each.error.detail, overlapping) if note]
            cells = [
                f"{start:.1f}",
                "" if score is None else f"{score:.3f}",
                verdict,
                "" if each.receipt is None else str(each.receipt.index),
                "; ".join(notes),
            ]
            table.add_row(*map(Text, cells), style="bold" if verdict == "anomalous" else "")
        return table


def identity_lines(metadata: ModelMetadata) -> list[tuple[str, str]]:
    """Which model, and which runtime it runs in."""
    identity = metadata.identity
    return [
        ("model", f"{identity.name} {identity.version} (sequence {identity.sequence})"),
        ("manifest", identity.manifest),
        ("publisher", identity.publisher),
        ("runtime", metadata.runtime),
    ]


def description_lines(metadata: ModelMetadata) -> list[tuple[str, str]]:
    """What the model takes, gives and is meant for."""
    signal, end = metadata.signal, metadata.licence_not_after
    leads = "" if signal is None else "; ".join(" or ".join(names) for names in signal.leads)
    return [
        ("takes", "; ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in metadata.inputs)),
        ("gives", "; ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in metadata.outputs)),
        ("signal", "not declared" if signal is None else f"{signal.sampling_rate:g} Hz, {signal.unit}, lead {leads}"),
        (
            "threshold",
            "not declared"
            if metadata.score is None or metadata.score.threshold is None
            else f"{metadata.score.threshold:g}",
        ),
        ("licence", f"{metadata.licence or 'not stated'}{f', until {end:%Y-%m-%d}' if end else ''}"),
        ("intended", metadata.intended_use or "not stated"),
    ]
