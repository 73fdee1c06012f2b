"""How well a network separates ventricular beats and strips, record by record and together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from recordings import Recording, Strip
from sklearn.metrics import average_precision_score, roc_auc_score
from stripnet import FRAME_SAMPLES, StripNet

Figures = dict[str, float | int | None]

_BATCH = 60  # strips a forward pass; ten minutes of signal, which keeps the memory small


@dataclass(frozen=True)
class Scored:
    """Labels and scores of the same items, in the same order.

    Attributes:
        labels: ``[N]``, whether the annotators marked the item as ventricular.
        scores: ``[N]``, 0 to 1.
    """

    labels: NDArray[np.bool_]
    scores: NDArray[np.float32]

    def figures(self, threshold: float | None = None) -> Figures:
        """Sum up the items.

        Args:
            threshold: An operating point fixed before these items were scored, if there is one.

        Returns:
            Counts, prevalence, area under the ROC curve and under the precision-recall curve
            (``None`` where only one class occurs) and, at the threshold, sensitivity,
            specificity and positive predictive value.
        """
        positives = int(self.labels.sum())
        out: Figures = {
            "items": len(self.labels),
            "positives": positives,
            "prevalence": _rounded(positives, len(self.labels)),
            "auroc": None,
            "auprc": None,
        }
        if 0 < positives < len(self.labels):
            out["auroc"] = round(float(roc_auc_score(self.labels, self.scores)), 4)
            out["auprc"] = round(float(average_precision_score(self.labels, self.scores)), 4)
        if threshold is not None:
            alarms = self.scores >= threshold
            hits = int((alarms & self.labels).sum())
            false_alarms = int((alarms & ~self.labels).sum())
            negatives = len(self.labels) - positives
            out["sensitivity"] = _rounded(hits, positives)
            out["specificity"] = _rounded(negatives - false_alarms, negatives)
            out["ppv"] = _rounded(hits, hits + false_alarms)
        return out


@dataclass(frozen=True)
class Result:
    """One record's beats and strips, scored."""

    name: str
    beats: Scored
    strips: Scored


def score(network: StripNet, recording: Recording) -> Result:
    """Score every complete, non-overlapping strip of a recording and every beat in them.

    A beat's score is the largest of the three frames around its annotation.

    Args:
        network: In evaluation mode.
        recording: At 250 Hz.
    """
    strips = list(recording.strips())
    timelines = _timelines(network, strips)
    beat_labels: list[NDArray[np.bool_]] = []
    beat_scores: list[NDArray[np.float32]] = []
    for strip, timeline in zip(strips, timelines, strict=True):
        frames = np.rint(strip.beats / FRAME_SAMPLES).astype(np.int64)
        widest = np.maximum.reduce([timeline, _shifted(timeline, 1), _shifted(timeline, -1)])
        beat_labels.append(np.isin(strip.beats, strip.pvc))
        beat_scores.append(widest[frames])
    return Result(
        name=recording.name,
        beats=Scored(np.concatenate(beat_labels), np.concatenate(beat_scores)),
        strips=Scored(np.array([len(strip.pvc) > 0 for strip in strips]), timelines.max(axis=1)),
    )


def pooled(items: Sequence[Scored]) -> Scored:
    """Join the items of several records into one set."""
    return Scored(
        np.concatenate([item.labels for item in items]),
        np.concatenate([item.scores for item in items]),
    )


def summary(results: Sequence[Result], threshold: float | None = None) -> dict[str, object]:
    """Return the figures of all records together and of each alone."""
    return {
        "beats": pooled([result.beats for result in results]).figures(threshold),
        "strips": pooled([result.strips for result in results]).figures(threshold),
        "records": {
            result.name: {
                "beats": result.beats.figures(threshold),
                "strips": result.strips.figures(threshold),
            }
            for result in results
        },
    }


@torch.inference_mode()
def _timelines(network: StripNet, strips: Sequence[Strip]) -> NDArray[np.float32]:
    batch = torch.from_numpy(np.stack([strip.samples for strip in strips])[:, None])
    return np.concatenate([network(part)[1].numpy() for part in batch.split(_BATCH)])


def _shifted(timeline: NDArray[np.float32], by: int) -> NDArray[np.float32]:
    """Move a timeline by one frame; what falls out at one end is repeated at the other."""
    out = np.roll(timeline, by)
    edge = 0 if by > 0 else -1
    out[edge] = timeline[edge]
    return out


def _rounded(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
