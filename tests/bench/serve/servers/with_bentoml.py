"""BentoML: a service with adaptive batching, whose latency budget is so large that it refuses nothing."""

from __future__ import annotations

import os
from typing import Annotated

import bentoml
import numpy as np
from bench_models import MAX_BATCH, MODELS, Engine
from bentoml.validators import DType, Shape

Batch = Annotated[np.ndarray, Shape((-1, *MODELS[os.environ["BENCH_MODEL"]].shape)), DType("float32")]


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 1000}, logging={"access": {"enabled": False}})
class Model:
    def __init__(self) -> None:
        self._engine = Engine()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def predict(self, data: Batch) -> np.ndarray:
        return self._engine(np.ascontiguousarray(data))
