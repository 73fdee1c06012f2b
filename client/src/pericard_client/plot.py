"""A picture of what was analysed: the trace on ECG paper, and where the model found something.

Rules of this room: every mark is readable without colour (a finding is shaded, hatched and underlined); all windows
share one scale; the picture names the model that answered and nothing of the patient, not even the file. matplotlib
is an optional extra and is loaded when a picture is asked for.
"""

from __future__ import annotations

import io
import math
import os
import secrets
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pericard_client.errors import PlotError
from pericard_client.formats import Strips
from pericard_client.formats.recording import MILLIVOLTS, Samples
from pericard_client.models import ModelMetadata, Prediction, PredictResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WINDOWS = 60
_FORMATS = {".png": "png", ".svg": "svg"}
_ROWS = ((10, 1), (30, 2), (MOST_WINDOWS, 3))  # up to so many windows: so many columns
_MM = 1 / 25.4  # inches
_PAPER_SPEED, _PAPER_GAIN = 25.0, 10.0  # mm per second, mm per millivolt
_TRACE_WIDTH = 250.0  # mm that all columns share
_LEFT, _RIGHT, _GAP, _TOP, _BOTTOM = 14.0, 30.0, 3.0, 4.0, 12.0  # mm
_LOWEST, _HIGHEST = -3.0, 4.0  # mV about the median; a trace beyond is cut, and the caption says so
_PULSE = 0.6  # seconds of paper for the calibration pulse before each row
_FINE_SCALE = 0.7  # below this the 1 mm grid would be a grey mush
_GRID, _FINE, _FINDING = "#e8a5a5", "#f6dada", "#d55e00"  # the last is safe for the colour-blind
_STYLE: dict[Any, Any] = {"font.size": 7.0, "hatch.linewidth": 0.6, "svg.hashsalt": "pericard", "axes.linewidth": 0.6}


class _Page(NamedTuple):
    """One scale for all windows."""

    columns: int
    rows: int
    scale: float
    low: float
    high: float
    seconds: float


def check(path: Path) -> None:
    """Refuse before anything is sent what could not be drawn afterwards.

    Raises:
        PlotError: matplotlib is not there, or the file's ending is not that of a known format.
    """
    if path.suffix.lower() not in _FORMATS:
        raise PlotError(f"{path}: a picture is written as .png or .svg")
    if find_spec("matplotlib") is None:
        raise PlotError("matplotlib is not installed", hint="pip install 'pericard-client[plot]'")


def plot(strips: Strips, result: PredictResult, metadata: ModelMetadata, path: Path) -> None:
    """Draw the windows of a recording with their scores and findings; one row for each window.

    Of more than 60 windows those with the highest scores are drawn, in time order. For a model of several channels
    the first is drawn.

    Args:
        strips: what was sent.
        result: what came back for it.
        metadata: the model's, for its threshold and the length of a timeline's frame.
        path: ``.png`` or ``.svg``; an existing file is replaced when the new one is complete.

    Raises:
        PlotError: see ``check``; or the file cannot be written.
    """
    check(path)
    from matplotlib import rc_context  # noqa: PLC0415 - an optional extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra

    traces = strips.samples[:, 0, :] * MILLIVOLTS[strips.unit]
    traces -= np.median(traces, axis=1, keepdims=True)
    chosen = _chosen(result.predictions, metadata)
    page = _page(traces[chosen], strips.seconds)
    with rc_context(_STYLE):
        figure = Figure()
        for place, index in enumerate(chosen):
            axes = _axes(figure, page, place, len(chosen))
            _draw_row(axes, page, traces[index], strips.sampling_rate)
            _draw_findings(axes, page, result.predictions[index], metadata)
            _label(axes, page, strips, index, result.predictions[index], metadata)
        _caption(figure, page, strips, result, metadata, (len(chosen), _is_cut(traces[chosen])))
        picture = io.BytesIO()
        kind = _FORMATS[path.suffix.lower()]
        figure.savefig(picture, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    _write(path, picture.getvalue())


def findings(prediction: Prediction, metadata: ModelMetadata) -> list[tuple[float, float]]:
    """Spans in seconds, from the window's start, where the timeline reaches the threshold."""
    threshold = None if metadata.score is None else metadata.score.threshold
    if metadata.timeline is None or threshold is None:
        return []
    frame = metadata.timeline.frame_seconds
    spans: list[tuple[float, float]] = []
    for index, value in enumerate(prediction.series(metadata.timeline.output)):
        if value < threshold:
            continue
        if spans and math.isclose(spans[-1][1], index * frame):
            spans[-1] = (spans[-1][0], (index + 1) * frame)
        else:
            spans.append((index * frame, (index + 1) * frame))
    return spans


def _chosen(predictions: Sequence[Prediction], metadata: ModelMetadata) -> list[int]:
    def rank(index: int) -> float:
        score = None if metadata.score is None else predictions[index].number(metadata.score.output)
        return -math.inf if score is None else score

    return sorted(sorted(range(len(predictions)), key=rank, reverse=True)[:MOST_WINDOWS])


def _page(traces: Samples, seconds: float) -> _Page:
    count = len(traces)
    columns = next(columns for most, columns in _ROWS if count <= most)
    half = 0.5
    low = max(_LOWEST, math.floor(float(traces.min()) / half - 0.2) * half)
    high = min(_HIGHEST, max(1.5, math.ceil(float(traces.max()) / half + 0.2) * half))
    return _Page(
        columns=columns,
        rows=math.ceil(count / columns),
        scale=min(1.0, _TRACE_WIDTH / (columns * seconds * _PAPER_SPEED)),
        low=min(low, -half),
        high=high,
        seconds=seconds,
    )


def _is_cut(traces: Samples) -> bool:
    return bool(traces.min() < _LOWEST or traces.max() > _HIGHEST)


def _axes(figure: Figure, page: _Page, place: int, count: int) -> Axes:
    """Axes for one row, in true millimetres of paper; columns are filled from top to bottom."""
    wide = (page.seconds + _PULSE) * _PAPER_SPEED * page.scale
    high = (page.high - page.low) * _PAPER_GAIN * page.scale
    width = page.columns * (_LEFT + wide + _RIGHT)
    height = _TOP + page.rows * (high + _GAP) + _BOTTOM
    if place == 0:
        figure.set_size_inches(width * _MM, height * _MM)
    column, row = divmod(place, math.ceil(count / page.columns))
    left = column * (_LEFT + wide + _RIGHT) + _LEFT
    bottom = height - _TOP - (row + 1) * high - row * _GAP
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def _draw_row(axes: Axes, page: _Page, trace: Samples, rate: float) -> None:
    axes.set_xlim(-_PULSE, page.seconds)
    axes.set_ylim(page.low, page.high)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(_GRID)
    squares = [(0.2, 0.5, _GRID, 0.45)]  # seconds, millivolts, colour, width: 5 mm of paper
    if page.scale >= _FINE_SCALE:
        squares.insert(0, (0.04, 0.1, _FINE, 0.3))  # 1 mm
    for wide, high, color, line in squares:
        across = np.arange(-_PULSE, page.seconds, wide)
        upward = np.arange(page.low, page.high, high)
        axes.vlines(across, page.low, page.high, color=color, linewidth=line, zorder=0)
        axes.hlines(upward, -_PULSE, page.seconds, color=color, linewidth=line, zorder=0)
    width = 0.4 + 0.4 * page.scale
    pulse = [-0.48, -0.4, -0.4, -0.2, -0.2, -0.12]
    axes.plot(pulse, [0, 0, 1, 1, 0, 0], color="black", linewidth=width)
    axes.plot(np.arange(trace.size) / rate, trace, color="black", linewidth=width, solid_joinstyle="round")


def _draw_findings(axes: Axes, page: _Page, prediction: Prediction, metadata: ModelMetadata) -> None:
    for start, end_of_frame in findings(prediction, metadata):
        end = min(end_of_frame, page.seconds)  # the last frame may reach past the strip
        axes.axvspan(start, end, facecolor=_FINDING, alpha=0.18, linewidth=0)
        axes.axvspan(start, end, facecolor="none", edgecolor=_FINDING, hatch="/////", linewidth=0)
        axes.plot([start, end], [page.low, page.low], color="black", linewidth=3, solid_capstyle="butt")


def _label(
    axes: Axes, page: _Page, strips: Strips, index: int, prediction: Prediction, metadata: ModelMetadata
) -> None:
    start = strips.starts[index]
    overlap = f"\noverlaps\n{strips.overlaps[index]:.1f} s" if strips.overlaps[index] else ""
    note = partial(axes.annotate, xycoords="axes fraction", textcoords="offset points", annotation_clip=False)
    note(f"{start:g} s{overlap}", (0, 0.5), xytext=(-3, 0), ha="right", va="center")
    described = metadata.score
    score = None if described is None else prediction.number(described.output)
    if described is not None and score is not None:
        over = described.threshold is not None and score >= described.threshold
        head, body = f"{score:.3f}", "anomalous" if over else "" if described.threshold is None else "below threshold"
    else:
        over, head = False, {"ok": "answered", "not_interpretable": "not interpretable"}.get(prediction.status, "error")
        reason = prediction.error.detail if prediction.error else ""
        body = "\n".join(textwrap.wrap(reason, 22)[: 1 if page.columns > 1 else 3])
    note(head, (1, 0.5), xytext=(4, 1), ha="left", va="bottom", weight="bold" if over else "normal", size=9)
    receipt = f"\nreceipt {prediction.receipt.index}" if prediction.receipt else ""
    note(body + receipt, (1, 0.5), xytext=(4, -1), ha="left", va="top", size=6)


def _caption(
    figure: Figure,
    page: _Page,
    strips: Strips,
    result: PredictResult,
    metadata: ModelMetadata,
    drawn: tuple[int, bool],
) -> None:
    count, cut = drawn
    speed, gain = _PAPER_SPEED * page.scale, _PAPER_GAIN * page.scale
    signal = f"Lead {strips.leads[0]}{' (derived from I and II)' if strips.leads[0] in strips.derived else ''}"
    parts = [
        f"{signal}, {speed:.3g} mm/s, {gain:.3g} mm/mV, large squares 0.2 s × 0.5 mV, each window about its median."
    ]
    if metadata.timeline is not None and metadata.score is not None and metadata.score.threshold is not None:
        parts.append(f"Shaded, hatched and underlined: {metadata.timeline.output} ≥ {metadata.score.threshold:g}.")
    if count < len(result.predictions):
        parts.append(f"The {count} of {len(result.predictions)} windows with the highest scores.")
    if cut:
        parts.append(f"The trace is cut at {_LOWEST:g} and +{_HIGHEST:g} mV.")
    model = result.model
    identity = f"Model {model.name} {model.version}, manifest {model.manifest[:16]}…, runtime {result.runtime[:16]}…"
    left = _LEFT * _MM / figure.get_figwidth()
    text = "\n".join([*textwrap.wrap(" ".join(parts), int(figure.get_figwidth() * 17)), identity])
    figure.text(left, 2 * _MM / figure.get_figheight(), text, va="bottom", ha="left", size=7)


def _write(path: Path, content: bytes) -> None:
    """Replace the file by a complete one, or leave it as it is."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise PlotError(f"{path}: {(error.strerror or str(error)).lower()}") from error
