"""MLServer: a model of one's own, adaptive batching, in the server's own process."""

from __future__ import annotations

import numpy as np
from bench_models import Engine
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):
    async def load(self) -> bool:
        self._engine = Engine()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        batch = np.ascontiguousarray(NumpyCodec.decode_input(payload.inputs[0]), dtype=np.float32)
        scores = NumpyCodec.encode_output("scores", self._engine(batch))
        return InferenceResponse(model_name=self.name, outputs=[scores])
