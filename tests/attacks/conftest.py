"""What attacks start from: the daemon of ``tests/fixtures/integration_site.py``, and a tiny model's graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from graphs import JSON
from integration_site import daemon, made_site, shared_daemon, site, strip
from vault import Vault, make

from pericard.keys import PublisherKey
from pericard.runtime import pt2
from pericard.sealed import Description

__all__ = ["daemon", "made_site", "program", "shared_daemon", "site", "strip", "vault", "weights"]


@pytest.fixture(scope="module")
def weights(tiny_pt2: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in pt2.read(tiny_pt2).state_dict.items()}


@pytest.fixture
def program(tiny_graph: bytes) -> JSON:
    """The tiny model's graph, to be changed."""
    found: JSON = json.loads(tiny_graph)
    return found


@pytest.fixture(scope="session")
def vault(
    tmp_path_factory: pytest.TempPathFactory,
    export_pt2: Callable[..., Path],
    tiny_description: Description,
    publisher_key: PublisherKey,
    now: int,
) -> Vault:
    """A sealed model of several chunks and its keys; do not write to it."""
    return make(tmp_path_factory.mktemp("vault"), export_pt2, tiny_description, publisher_key, now)
