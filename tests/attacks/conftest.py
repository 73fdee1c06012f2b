"""What attacks start from: the daemon of ``tests/fixtures/integration_site.py``, and a tiny model's graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from graphs import JSON
from integration_site import daemon, made_site, shared_daemon, site, strip

from pericard.runtime import export

__all__ = ["daemon", "made_site", "program", "shared_daemon", "site", "strip", "weights"]


@pytest.fixture(scope="module")
def weights(tiny_pt2: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in export._read(tiny_pt2).state_dict.items()}


@pytest.fixture
def program(tiny_graph: bytes) -> JSON:
    """The tiny model's graph, to be changed."""
    found: JSON = json.loads(tiny_graph)
    return found
