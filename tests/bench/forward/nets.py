"""Four networks of the kinds that are served, with random weights, as they would be sealed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import nn

from pericard.runtime import export, graph

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples" / "ecg"))


class Small(nn.Module):
    """An auto-encoder of one beat, 51 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, 16, 32, 64)
        down: list[nn.Module] = []
        for one, two in itertools.pairwise(sizes):
            down += [nn.Conv1d(one, two, 7, 2, 3), nn.BatchNorm1d(two), nn.ReLU()]
        up: list[nn.Module] = [nn.Conv1d(64, 64, 3, padding=1), nn.ReLU()]
        for one, two in ((64, 32), (32, 16)):
            up += [nn.ConvTranspose1d(one, two, 8, 2, 3), nn.BatchNorm1d(two), nn.ReLU()]
        self.net = nn.Sequential(*down, *up, nn.ConvTranspose1d(16, 1, 8, 2, 3))

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return ((self.net(ecg) - ecg) ** 2).mean(dim=(1, 2)).unsqueeze(1)


class _Block(nn.Module):
    def __init__(self, one: int, two: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(one, two, 17, padding=8, bias=False), nn.BatchNorm1d(two), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(two, two, 17, 4, 8, bias=False), nn.BatchNorm1d(two))
        self.beside = nn.Sequential(nn.MaxPool1d(4), nn.Conv1d(one, two, 1, bias=False))

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(ecg)) + self.beside(ecg))


class Large(nn.Module):
    """A residual network over twelve leads, 6.8 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv1d(12, 64, 17, padding=8, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
        sizes = (64, 128, 196, 256, 320)
        self.net = nn.Sequential(*stem, *(_Block(one, two) for one, two in itertools.pairwise(sizes)))
        self.head = nn.Linear(320 * 16, 6)

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(self.net(ecg).flatten(1)))


class Attention(nn.Module):
    """Three layers of a transformer over fifty patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv1d(1, 64, 20, stride=20)
        self.layers = nn.ModuleList(nn.ModuleList(self._layer()) for _ in range(3))
        self.head = nn.Linear(64, 5)

    @staticmethod
    def _layer() -> list[nn.Module]:
        inner = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        return [nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64), inner]

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        seen = self.patch(ecg).transpose(1, 2)
        rows, patches, _ = seen.shape
        for norm, mixed, out, inner in self.layers:
            query, key, value = mixed(norm(seen)).reshape(rows, patches, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
            found = nn.functional.scaled_dot_product_attention(query, key, value)
            seen = seen + out(found.transpose(1, 2).reshape(rows, patches, 64))
            seen = seen + inner(seen)
        return torch.sigmoid(self.head(seen.mean(1)))


class Recurrent(nn.Module):
    """Two layers of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(self.lstm(ecg.transpose(1, 2))[0][:, -1]))


def _strip() -> nn.Module:
    from stripnet import build

    return build()


NETS = {
    "small": (Small, (1, 360)),
    "strip": (_strip, (1, 2500)),
    "large": (Large, (12, 4096)),
    "attention": (Attention, (1, 1000)),
    "lstm": (Recurrent, (12, 250)),
}


def sealed(name: str) -> tuple[bytes, dict[str, torch.Tensor], tuple[int, ...]]:
    """The graph, the weights, and the shape of one row."""
    make, shape = NETS[name]
    torch.manual_seed(1)
    net = make().eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_var = torch.rand(part.num_features) + 0.5
            part.running_mean = torch.randn(part.num_features) / 10
    batch = torch.export.Dim("batch", min=1, max=256)
    program = export.functional(torch.export.export(net, (torch.randn(2, *shape),), dynamic_shapes=({0: batch},)))
    weights = {key: value.detach().clone() for key, value in {**program.constants, **program.state_dict}.items()}
    return graph.normalise(export.serialised(program)), weights, shape
