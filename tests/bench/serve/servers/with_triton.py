"""Triton's python backend: what arrived together goes through the model together."""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path[:0] = os.environ["BENCH_PATH"].split(":")  # its interpreter takes no PYTHONPATH

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402
from bench_models import Engine  # noqa: E402


class TritonPythonModel:
    def initialize(self, _args: dict[str, str]) -> None:
        self._engine = Engine()

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        scores = self._engine(np.concatenate(inputs))
        ends = np.cumsum([len(part) for part in inputs])[:-1]
        return [
            triton.InferenceResponse([triton.Tensor("scores", np.ascontiguousarray(part))])
            for part in np.split(scores, ends)
        ]
