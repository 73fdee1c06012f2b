"""The real thing, wherever there is one: ``make test-cuda``."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_memory import on_host

from pericard.keys import Identity
from pericard.runtime import loader
from pericard.runtime.plaintext import DevicePlaintext, Staging
from pericard.sealed import SealedModel
from pericard.sealed.layout import CHUNK_SIZE
from pericard.trust import Policy

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
WINDOW = 24


def test_a_model_answers_on_cuda_as_on_the_cpu_and_leaves_no_weight_on_the_host(
    large_model: Path, weights: Any, identity: Identity, policy: Policy, now: int
) -> None:
    windows = [
        bytes(weights.tobytes()[place : place + WINDOW]) for place in range(CHUNK_SIZE // 2, weights.nbytes, CHUNK_SIZE)
    ]
    strips = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 1, 64)
    with SealedModel(large_model) as source:
        verified = source.verify(policy.publishers)
        with loader.load(verified, identity, policy, device="cpu", now=now) as on_cpu:
            wanted = on_cpu(strips)["score"]
        gc.collect()
        before = on_host(os.getpid(), windows)
        with loader.load(verified, identity, policy, device="cuda:0", now=now) as model:
            assert model.device == "cuda:0"
            assert np.allclose(model(strips)["score"], wanted, atol=1e-3, rtol=1e-2)
            assert on_host(os.getpid(), windows) <= before  # the windows themselves are in this process


def test_staging_is_pinned_and_zero_after_each_copy() -> None:
    flat = torch.zeros(2 * CHUNK_SIZE, dtype=torch.uint8, device="cuda:0")
    stage = Staging(flat)
    assert stage._tensor.is_pinned()
    for offset in (0, CHUNK_SIZE):
        stage.slot(offset, CHUNK_SIZE)[:] = b"w" * CHUNK_SIZE
        stage.done(offset, CHUNK_SIZE)
        assert not stage._tensor.any()
    stage.close()

    assert bool((flat == ord("w")).all())


def test_closing_zeroes_device_memory() -> None:
    held = DevicePlaintext(1000, "cuda:0")
    view = held._flat
    view.fill_(7)
    held.close()

    assert not view.any()


def test_a_model_beyond_the_device_is_refused() -> None:
    from pericard.errors import ModelTooLarge

    with pytest.raises(ModelTooLarge):
        DevicePlaintext(1 << 50, "cuda:0")
