"""Train StripNet on five MIT-BIH records and measure it on five others.

Every choice is made without the test records. The recipe, with its number of steps, is a constant
below. The operating threshold comes from leave-one-record-out scores of the training records. The
shipped weights are those of seed 0, whichever seed tests best.

    python examples/ecg/train.py --data DIR --seed 0 --out stripnet.pth --report report.json
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import evaluate
import numpy as np
import recordings
import torch
from numpy.typing import NDArray
from recordings import Recording
from stripnet import FRAME_SAMPLES, FRAMES, SAMPLING_RATE, STRIP_SAMPLES, StripNet
from torch import Tensor
from torch.nn import functional

TRAINING = ("106", "108", "114", "116", "119")
"""Records to learn from: those of the customary first half (DS1) that hold ventricular beats."""

TEST = ("100", "105", "121", "123", "200")
"""Records to measure on, of the customary second half (DS2)."""

PACED = ("102", "104")
"""Records of patients with a pacemaker: customarily left out of both, reported apart."""

_PVC_REACH = 28  # samples, 112 ms: frames this close to the annotated peak belong to the beat
_ARTEFACT_STEP = 10  # samples between two values of the smooth noise: 40 ms
_GUARD_REACH = 60  # samples, 240 ms: between the two, a frame is neither clearly in nor out


@dataclass(frozen=True)
class Recipe:
    """How the network is trained.

    Attributes:
        steps: Optimiser steps, fixed beforehand; nothing stops training earlier.
        batch: Strips a step, half of them with a premature ventricular beat.
        peak_learning_rate: Top of the one-cycle schedule.
        weight_decay: Of AdamW.
        positive_weight: Weight of a ventricular frame; there are few of them in a strip.
        hop: Samples between the starts of two training strips; they overlap by half.
        flips: Share of strips turned upside down. The polarity of a lead depends on where the
            electrodes sit and on the heart's axis, and five patients show only a few of both.
        noise: Largest standard deviation of added white noise, in multiples of the strip's own.
        wander: Largest amplitude of an added slow sine, in multiples of the strip's own deviation.
        artefacts: Largest amplitude of added smooth noise of about 0 to 12 Hz, in multiples of the
            strip's own deviation: electrodes move and muscles twitch, and five patients show little
            of it.
        threads: Of torch; the sums of a convolution depend on how many share it.
    """

    steps: int = 300
    batch: int = 32
    peak_learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    positive_weight: float = 3.0
    hop: int = STRIP_SAMPLES // 2
    flips: float = 0.5
    noise: float = 0.15
    wander: float = 1.0
    artefacts: float = 1.0
    threads: int = 1


@dataclass(frozen=True)
class Examples:
    """Training strips.

    Attributes:
        ecg: ``[N, 1, 2500]`` float32, millivolts.
        targets: ``[N, 157]``, 1 where a premature ventricular beat lies, else 0.
        weights: ``[N, 157]``, 0 where a frame is left out of the loss, else 1.
    """

    ecg: Tensor
    targets: Tensor
    weights: Tensor


def frame_targets(
    pvc: NDArray[np.int64], pvc_nearby: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn annotations into what each frame should say.

    Args:
        pvc: Premature ventricular beats of the strip, in samples from its start.
        pvc_nearby: The same and those just outside: half of one may be seen, so its frames
            are left out.

    Returns:
        Targets and weights, ``[157]`` each.
    """
    targets = _distance(pvc) <= _PVC_REACH
    unclear = (_distance(pvc_nearby) <= _GUARD_REACH) & ~targets
    return targets.astype(np.float32), (~unclear).astype(np.float32)


def examples(training: Sequence[Recording], hop: int) -> Examples:
    """Cut overlapping strips out of recordings and label their frames."""
    strips = [strip for recording in training for strip in recording.strips(hop)]
    labels = [frame_targets(strip.pvc, strip.pvc_nearby) for strip in strips]
    return Examples(
        ecg=torch.from_numpy(np.stack([strip.samples for strip in strips])[:, None]),
        targets=torch.from_numpy(np.stack([targets for targets, _ in labels])),
        weights=torch.from_numpy(np.stack([weights for _, weights in labels])),
    )


def train(training: Sequence[Recording], recipe: Recipe, seed: int) -> StripNet:
    """Fit a network.

    The caller's random state is left as it was; the same seed, recordings, recipe, machine and
    torch version give the same weights.

    Args:
        training: Recordings to learn from.
        recipe: How.
        seed: Of the first weights, the order of the strips, the augmentation and the dropout.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: The recordings lack strips with, or without, a premature ventricular beat.
    """
    data = examples(training, recipe.hop)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = StripNet().train()
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.peak_learning_rate, total_steps=recipe.steps)
        weight = torch.tensor(recipe.positive_weight)
        for chosen in _batches(data, recipe):
            logits = network.logits(_augmented(data.ecg[chosen], recipe))
            losses = functional.binary_cross_entropy_with_logits(
                logits, data.targets[chosen], pos_weight=weight, reduction="none"
            )
            used = data.weights[chosen]
            loss = (losses * used).sum() / used.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def out_of_fold(training: Sequence[Recording], recipe: Recipe, seed: int) -> list[evaluate.Result]:
    """Score each training recording with a network that learned from the others only."""
    results = []
    for held_out in training:
        rest = [recording for recording in training if recording is not held_out]
        results.append(evaluate.score(train(rest, recipe, seed), held_out))
        print(f"fold without {held_out.name} done", flush=True)
    return results


def pick_threshold(strips: evaluate.Scored) -> float:
    """Choose the operating point that has the largest sensitivity + specificity.

    Args:
        strips: Strips of training records, scored by networks that did not learn from them.

    Returns:
        One of 0.01, 0.02 ... 0.99; of equally good ones the highest, which alarms least.
    """
    candidates = np.arange(99, 0, -1) / 100
    alarms = strips.scores[None] >= candidates[:, None]
    sensitivity = alarms[:, strips.labels].mean(axis=1)
    specificity = 1 - alarms[:, ~strips.labels].mean(axis=1)
    return float(candidates[np.argmax(sensitivity + specificity)])


def main() -> None:
    """Train, measure, and write the weights and the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of NPZ or WFDB records")
    parser.add_argument("--seed", type=int, default=0, help="0 is the one that is shipped")
    parser.add_argument("--out", type=Path, required=True, help="state dict to write")
    parser.add_argument("--report", type=Path, required=True, help="JSON report to write")
    arguments = parser.parse_args()

    recipe = Recipe()
    torch.set_num_threads(recipe.threads)
    training = [recordings.read(arguments.data, name) for name in TRAINING]

    folds = out_of_fold(training, recipe, arguments.seed)
    threshold = pick_threshold(evaluate.pooled([fold.strips for fold in folds]))

    start = time.monotonic()
    network = train(training, recipe, arguments.seed)
    seconds = round(time.monotonic() - start, 1)
    torch.save(network.state_dict(), arguments.out)

    # The test records are opened only here, when nothing is left to choose.
    test = [evaluate.score(network, recordings.read(arguments.data, name)) for name in TEST]
    paced = [evaluate.score(network, recordings.read(arguments.data, name)) for name in PACED]
    report = {
        "seed": arguments.seed,
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "final_training_seconds": seconds,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "weights_sha256": hashlib.sha256(arguments.out.read_bytes()).hexdigest(),
        "threshold": threshold,
        "threshold_from": "largest sensitivity + specificity of the pooled out-of-fold strips",
        "out_of_fold": evaluate.summary(folds, threshold),
        "test": evaluate.summary(test, threshold),
        "paced": evaluate.summary(paced, threshold),
    }
    arguments.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"threshold {threshold}, final training {seconds} s")
    print("test beats ", json.dumps(report["test"]["beats"]))
    print("test strips", json.dumps(report["test"]["strips"]))


def _distance(positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far each frame's centre is from the nearest position, in samples."""
    centres = np.arange(FRAMES) * float(FRAME_SAMPLES)
    gaps = np.abs(centres[None] - positions[:, None])
    nearest: NDArray[np.float64] = gaps.min(axis=0, initial=np.inf)
    return nearest


def _batches(data: Examples, recipe: Recipe) -> Iterator[Tensor]:
    """Draw strip numbers, with replacement, half of them with a premature ventricular beat."""
    has_pvc = data.targets.amax(dim=1) > 0
    with_pvc = torch.nonzero(has_pvc)[:, 0]
    without = torch.nonzero(~has_pvc)[:, 0]
    if len(with_pvc) == 0 or len(without) == 0:
        raise ValueError(
            f"training needs strips of both kinds, got {len(with_pvc)} with and {len(without)} "
            "without a premature ventricular beat"
        )
    half = recipe.batch // 2
    for _ in range(recipe.steps):
        yield torch.cat(
            [
                with_pvc[torch.randint(len(with_pvc), (half,))],
                without[torch.randint(len(without), (recipe.batch - half,))],
            ]
        )


def _augmented(ecg: Tensor, recipe: Recipe) -> Tensor:
    """Return ``[B, 1, 2500]`` strips with another polarity, more noise and a wandering baseline.

    The gain is not varied: the network divides it out.
    """
    each = (len(ecg), 1, 1)
    deviation = ecg.std(dim=-1, keepdim=True)
    sign = torch.where(torch.rand(each) < recipe.flips, -1.0, 1.0)
    noise = torch.randn(ecg.shape) * torch.rand(each) * recipe.noise
    seconds = torch.arange(STRIP_SAMPLES) / SAMPLING_RATE
    cycles = seconds * (0.1 + 0.4 * torch.rand(each)) + torch.rand(each)  # 0.1 to 0.5 Hz: breath
    wander = torch.sin(2 * torch.pi * cycles) * torch.rand(each) * recipe.wander
    coarse = torch.randn(len(ecg), 1, STRIP_SAMPLES // _ARTEFACT_STEP)
    smooth = functional.interpolate(coarse, size=STRIP_SAMPLES, mode="linear")
    artefacts = smooth * torch.rand(each) * recipe.artefacts
    return ecg * sign + (noise + wander + artefacts) * deviation


if __name__ == "__main__":
    main()
