"""StripNet: a small convolutional network that marks ventricular ectopy in ten seconds of one ECG lead.

A demonstration model, not a medical device. What it can and cannot do stands in README.md beside it.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SAMPLING_RATE = 250
"""Samples per second that the network expects."""

STRIP_SAMPLES = 2500
"""Length of one input: ten seconds."""

FRAME_SAMPLES = 16
"""Samples between two frames of the timeline: 64 ms. Frame k is centred on sample 16 k."""

FRAMES = 157
"""Frames of one timeline: four strides of two turn 2,500 samples into 157."""

_BASELINE_SAMPLES = 251  # about one second: longer than any beat, shorter than breathing
_SMALLEST_SCALE_MV = 0.02  # a flat line stays flat; its noise is not blown up into a rhythm
_LARGEST_MULTIPLE = 12.0  # an electrode knock must not dominate the convolutions


class Block(nn.Module):
    """Two convolutions beside a shortcut.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Step of the first convolution; the output is that many times shorter.
        dilation: Samples between two taps of a kernel, to see further at the same cost.
        kernel: Taps of a kernel; odd, so that the output stays centred on the input.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1, kernel: int = 7) -> None:
        super().__init__()
        padding = kernel // 2 * dilation
        self.first = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
            nn.BatchNorm1d(outputs),
            nn.ReLU(),
            nn.Dropout(0.1),
        )
        self.second = nn.Sequential(
            nn.Conv1d(outputs, outputs, kernel, 1, padding, dilation, bias=False),
            nn.BatchNorm1d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, inputs, N]`` to ``[B, outputs, ceil(N / stride)]``."""
        out: Tensor = self.second(self.first(features)) + self.shortcut(features)
        return functional.relu(out)


class StripNet(nn.Module):
    """Scores a ten-second strip and says where in it the score comes from.

    Baseline removal and scaling are part of the graph, so that whoever serves the model cannot
    forget them or do them differently. The sampling rate cannot be seen in the samples: a strip
    at another rate gives a wrong score without any error, so a server has to check it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 16, 9, 2, 4, bias=False), nn.BatchNorm1d(16), nn.ReLU())
        self.body = nn.Sequential(
            Block(16, 24, stride=2),
            Block(24, 48, stride=2),
            Block(48, 64, stride=2),
            # Dilation widens the view over the neighbouring beats, which an early beat differs from.
            Block(64, 64, dilation=2, kernel=5),
            Block(64, 64, dilation=4, kernel=5),
        )
        self.head = nn.Conv1d(64, 1, 1)

    def logits(self, ecg: Tensor) -> Tensor:
        """Return the evidence per frame, before the sigmoid; this is what training fits.

        Args:
            ecg: ``[B, 1, 2500]`` float32, millivolts at 250 Hz.

        Returns:
            ``[B, 157]``, log-odds of a premature ventricular beat at each 64 ms frame.
        """
        out: Tensor = self.head(self.body(self.stem(_normalise(ecg))))
        return out[:, 0]

    def forward(self, ecg: Tensor) -> tuple[Tensor, Tensor]:
        """Score a batch of strips.

        Args:
            ecg: ``[B, 1, 2500]`` float32, millivolts at 250 Hz.

        Returns:
            The score ``[B]``, 0 to 1, which is the largest value of the strip's timeline, and the
            timeline ``[B, 157]``, 0 to 1, one value for every 64 ms.
        """
        timeline = torch.sigmoid(self.logits(ecg))
        return timeline.amax(dim=1), timeline


def build(weights: Path | None = None) -> nn.Module:
    """Make the network, ready to score.

    Args:
        weights: A state dict as ``train.py`` writes it; ``None`` leaves the random start.

    Returns:
        The network in evaluation mode, on the CPU.
    """
    network = StripNet()
    if weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def _normalise(ecg: Tensor) -> Tensor:
    """Take out the slow baseline and the gain: ``[B, 1, N]`` mV to multiples of its own RMS."""
    baseline = functional.avg_pool1d(
        ecg, _BASELINE_SAMPLES, stride=1, padding=_BASELINE_SAMPLES // 2, count_include_pad=False
    )
    centred = ecg - baseline
    scale = centred.pow(2).mean(dim=-1, keepdim=True).sqrt().clamp_min(_SMALLEST_SCALE_MV)
    return (centred / scale).clamp(-_LARGEST_MULTIPLE, _LARGEST_MULTIPLE)
