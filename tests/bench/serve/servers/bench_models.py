"""The models that every server of the benchmark serves, and their inputs: the same weights, numbers and torch for all.

A model takes ``[B, leads, samples]`` float32 and gives ``[B, K]`` float32. Seeds are fixed, so every process makes the
same ones. Servers import this module and :class:`Engine`; the benchmark itself imports the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_EXAMPLE = Path(__file__).resolve().parents[4] / "examples" / "ecg"

MAX_BATCH = 32
#: How long a peer may hold a request back for company, where it has such a setting.
DELAY_SECONDS = 0.002
#: What counts as the same number: kernels differ in the last bits from one batch size to another.
ABSOLUTE, RELATIVE = 1e-6, 1e-4


class Small(nn.Module):
    """A denoising auto-encoder of 50 thousand parameters that scores by its reconstruction error."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *self._down(1, 16), *self._down(16, 32), *self._down(32, 64),
            nn.Conv1d(64, 64, 3, padding=1), nn.ReLU(),
            *self._up(64, 32), *self._up(32, 16), nn.ConvTranspose1d(16, 1, 8, 2, 3),
        )  # fmt: skip

    @staticmethod
    def _down(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv1d(inputs, outputs, 7, 2, 3), nn.BatchNorm1d(outputs), nn.ReLU()]

    @staticmethod
    def _up(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ConvTranspose1d(inputs, outputs, 8, 2, 3), nn.BatchNorm1d(outputs), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        error = self.layers(x) - x
        return (error * error).mean(dim=(1, 2)).unsqueeze(1)


class Null(nn.Module):
    """Next to no work on a large input: what serving costs where the arithmetic is done elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, -1].sum(dim=1, keepdim=True)


class Strip(nn.Module):
    """The example's StripNet with its shipped weights; score and timeline in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        sys.path.append(str(_EXAMPLE))
        import stripnet

        self.network = stripnet.build(_EXAMPLE / "stripnet.pth")

    def forward(self, x: Tensor) -> Tensor:
        score, timeline = self.network(x)
        return torch.cat([score.unsqueeze(1), timeline], dim=1)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, step: int = 4, kernel: int = 17) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(
            nn.Conv1d(outputs, outputs, kernel, step, kernel // 2, bias=False), nn.BatchNorm1d(outputs)
        )
        self.shortcut = nn.Sequential(nn.MaxPool1d(step), nn.Conv1d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 12-lead residual network of 6.8 million parameters, after Ribeiro et al., Nature Communications 11 (2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(12, 64, 17, padding=8, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
            _Block(64, 128), _Block(128, 196), _Block(196, 256), _Block(256, 320),
            nn.Flatten(), nn.Linear(320 * 16, 6),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@dataclass(frozen=True)
class Model:
    """One model: how it is made, the shape of one input, how many numbers answer it, how many inputs are asked."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int]
    outputs: int
    inputs: int
    sampling_rate: int | None = None  # what its manifest declares, and every question to Pericard says


MODELS = {
    "small": Model(Small, (1, 360), 1, 64),
    "null": Model(Null, (12, 4096), 1, 16),
    "stripnet": Model(Strip, (1, 2500), 158, 64, sampling_rate=250),
    "resnet": Model(ResNet, (12, 4096), 6, 16),
}


def build(name: str) -> nn.Module:
    """The model, ready to score, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    return MODELS[name].make().eval().requires_grad_(requires_grad=False)


def samples(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``[n, leads, samples]``: a heart-like train of waves with noise, each of another rate, size and noise."""
    model = MODELS[name]
    leads, length = model.shape
    random = np.random.default_rng(7)
    seconds = np.arange(length) / 250
    rate = np.linspace(0.8, 2.5, model.inputs)[:, None, None]
    size = np.geomspace(1.0, 10.0, model.inputs)[:, None, None] * np.linspace(1, 0.5, leads)[:, None]
    waves = size * np.exp(-np.square(np.sin(np.pi * rate * seconds)) * 30)
    return (waves + 0.05 * size * random.standard_normal((model.inputs, leads, length))).astype(np.float32)


def references(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``[n, K]``: the right answers, one by one.

    Raises:
        AssertionError: two answers are so close that one given for the other would go unnoticed.
    """
    model = build(name)
    with torch.inference_mode():
        right = torch.cat([model(torch.from_numpy(row[None])) for row in samples(name)]).numpy()
    for place, row in enumerate(right[:-1]):
        apart = np.abs(right[place + 1 :] - row) - 2 * (ABSOLUTE + RELATIVE * np.abs(row))
        if apart.max(axis=1).min() <= 0:
            raise AssertionError(f"{name}: an answer is too close to that of input {place} to be told from it")
    return right


class Engine:
    """What every peer calls: ``[B, leads, samples]`` in, ``[B, K]`` out."""

    def __init__(self) -> None:
        name = os.environ["BENCH_MODEL"]
        self.shape = MODELS[name].shape
        self.bytes = 4 * self.shape[0] * self.shape[1]
        self._model = build(name)
        for size in (1, 2, 4, 8, 16, MAX_BATCH):
            self(np.zeros((size, *self.shape), np.float32))

    def __call__(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.inference_mode():
            out: np.ndarray[Any, np.dtype[np.float32]] = self._model(torch.from_numpy(batch)).numpy()
            return out

    def row(self, data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One binary input."""
        return np.frombuffer(data, "<f4").reshape(self.shape)
