"""The picture: findings where the timeline has them, every window accounted for, and a file that is whole or absent."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pericard_client.errors import PlotError
from pericard_client.formats import Recording, Strips, prepare
from pericard_client.models import (
    ItemError,
    ModelIdentity,
    ModelMetadata,
    Prediction,
    PredictResult,
    Receipt,
    ScoreDescription,
)
from pericard_client.plot import findings, plot

FRAMES = 157
RECEIPT = Receipt("pericard/1", 17, "1e" * 32, "0c" * 32)


def strips_of(metadata: ModelMetadata, seconds: float, height: float = 1.0) -> Strips:
    beats = height * np.sin(np.arange(round(250 * seconds)) / 8)[np.newaxis]
    return prepare(Recording(beats, 250.0, ("II",), "test"), metadata)


def ok(timeline: list[float], index: int = 17) -> Prediction:
    outputs = {"score": max(timeline), "timeline": tuple(timeline)}
    return Prediction("ok", outputs, None, replace(RECEIPT, index=index))


def result_of(metadata: ModelMetadata, *predictions: Prediction) -> PredictResult:
    identity: ModelIdentity = metadata.identity
    return PredictResult(identity, "ab" * 32, "valid", ("r",), predictions)


def texts(path: Path) -> str:
    """The words of an SVG, which matplotlib draws as outlines and names in comments."""
    return path.read_text()


def quiet(value: float = 0.1) -> list[float]:
    return [value] * FRAMES


def test_findings_are_the_frames_that_reach_the_threshold(metadata: ModelMetadata) -> None:
    timeline = quiet()
    timeline[2:5] = [0.9, 1.0, 0.95]
    timeline[156] = 0.91
    spans = findings(ok(timeline), metadata)
    assert np.allclose(spans, [(0.128, 0.32), (9.984, 10.048)])
    assert findings(ok(quiet(0.8999)), metadata) == []
    assert np.allclose(findings(ok(quiet(0.9)), metadata), [(0.0, 157 * 0.064)])
    assert findings(ok(timeline), replace(metadata, timeline=None)) == []
    assert findings(ok(timeline), replace(metadata, score=None)) == []
    assert findings(ok(timeline), replace(metadata, score=ScoreDescription("score", None))) == []
    assert findings(Prediction("error", {}, ItemError("x", "y"), None), metadata) == []


def test_an_svg_has_the_words_and_one_hatch_for_each_finding(metadata: ModelMetadata, tmp_path: Path) -> None:
    found = quiet()
    found[10:20] = found[50:60] = [0.95] * 10
    silent = Prediction("not_interpretable", {}, ItemError("not-interpretable", "flat signal on lead II"), RECEIPT)
    failed = Prediction("error", {}, ItemError("invalid-input", "no"), None)
    path = tmp_path / "a.svg"
    result = result_of(metadata, ok(found), silent, failed, ok(quiet(0.123)))
    plot(strips_of(metadata, 36), result, metadata, path)
    words = texts(path)
    assert words.endswith("</svg>\n")
    for expected in ("0.950", "anomalous", "0.123", "below threshold", "not interpretable", "flat signal on lead II"):
        assert f"<!-- {expected}" in words
    assert "overlaps" in words
    assert metadata.identity.manifest[:16] in words
    assert "ecg-anomaly 1.0.0" in words
    assert words.count("url(#h") == 2  # hatched, not coloured alone
    plot(strips_of(metadata, 36), result, metadata, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == words  # the same bytes again


@pytest.mark.parametrize(("windows", "drawn"), [(1, 1), (10, 10), (11, 11), (31, 31), (75, 60)])
def test_many_windows_stay_on_one_page(metadata: ModelMetadata, tmp_path: Path, windows: int, drawn: int) -> None:
    predictions = [ok(quiet(index / 100), index) for index in range(windows)]
    plot(strips_of(metadata, 10 * windows), result_of(metadata, *predictions), metadata, tmp_path / "a.svg")
    words = texts(tmp_path / "a.svg")
    receipts = {int(part.split(" ")[0].split("\n")[0]) for part in words.split("receipt ")[1:]}
    assert receipts == set(range(windows - drawn, windows))  # of too many the highest scores
    assert ("of 75 windows" in words) == (windows == 75)


def test_a_png_is_written_whole(metadata: ModelMetadata, tmp_path: Path) -> None:
    path = tmp_path / "A.PNG"
    path.write_text("old")
    plot(strips_of(metadata, 10), result_of(metadata, ok(quiet())), metadata, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["A.PNG"]


def test_a_cut_trace_says_so_and_no_score_is_no_crash(metadata: ModelMetadata, tmp_path: Path) -> None:
    plain = replace(metadata, score=None, timeline=None)
    plot(strips_of(metadata, 10, height=9), result_of(metadata, ok(quiet())), plain, tmp_path / "a.svg")
    words = texts(tmp_path / "a.svg")
    assert "cut at -3 and +4 mV" in words
    assert "<!-- answered" in words
    assert "hatched" not in words
    unjudged = replace(metadata, score=ScoreDescription("score", None))
    plot(strips_of(metadata, 10), result_of(metadata, ok(quiet())), unjudged, tmp_path / "b.svg")
    words = texts(tmp_path / "b.svg")
    assert "<!-- 0.100" in words
    assert "threshold" not in words


def test_a_failure_leaves_what_was_there(metadata: ModelMetadata, tmp_path: Path) -> None:
    result = result_of(metadata, ok(quiet()))
    with pytest.raises(PlotError, match="no such file"):
        plot(strips_of(metadata, 10), result, metadata, tmp_path / "absent" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(PlotError, match="directory"):
        plot(strips_of(metadata, 10), result, metadata, tmp_path / "a.png")
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(PlotError, match=r"\.png or \.svg"):
        plot(strips_of(metadata, 10), result, metadata, tmp_path / "a.gif")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'matplotlib' else real(name, package)\n"
        "from pathlib import Path\n"
        "from pericard_client.plot import check\n"
        "try:\n    check(Path('a.png'))\n"
        "except Exception as error:\n    print(error.message, error.hint, 'matplotlib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "matplotlib is not installed pip install 'pericard-client[plot]' False\n"
