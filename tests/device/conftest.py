"""A model of five chunks, and a look into another process's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pericard.keys import PublisherKey
from pericard.runtime import export
from pericard.sealed import Description, Output, Term, Tolerance, seal
from pericard.tensors import TensorSpec

Weights = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="session")
def weights() -> Weights:
    return np.random.Generator(np.random.PCG64(5)).normal(0, 0.05, (20_000, 64)).astype(np.float32)


@pytest.fixture(scope="session")
def large_model(
    tmp_path_factory: pytest.TempPathFactory,
    export_pt2: Callable[..., Path],
    tiny_description: Description,
    publisher_key: PublisherKey,
    terms: tuple[Term, ...],
    weights: Weights,
) -> Path:
    """Five megabytes of weights, so that they fill five chunks."""
    import torch

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = torch.nn.Linear(64, len(weights), bias=False)
            self.wide.weight.data = torch.from_numpy(weights.copy())

        def forward(self, ecg: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.wide(ecg)).mean(dim=(1, 2))

    about = replace(
        tiny_description,
        outputs=(Output(TensorSpec("score", "float32", (-1,)), "score", 0.5),),
        tolerance={
            "cpu": Tolerance(1e-6, 1e-5),
            "fake": Tolerance(1e-6, 1e-5),
            "cuda": Tolerance(1e-3, 1e-2),
        },
    )
    path = tmp_path_factory.mktemp("large") / "large.sealed"
    source = export_pt2(Wide(), torch.zeros(2, 1, 64))
    seal(path, about, export.pack(source, about), signer=publisher_key, terms=terms)
    return path
