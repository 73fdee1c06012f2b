"""LitServe: one worker for each of the two encodings, with its own batching.

Its annotations are for the web framework: ``Request`` and ``Response`` mean JSON, whatever the method gets and gives.
"""

import sys
from typing import Annotated, Any

import litserve
import numpy as np
from bench_models import DELAY_SECONDS, MAX_BATCH, Engine
from fastapi import Body, Request, Response


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002  (passed by name)
        self._engine = Engine()

    def decode_request(self, request: Request) -> Any:
        return np.asarray(request["data"], dtype=np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self._engine(x)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> Response:
        return {"scores": output.tolist()}


class Binary(Model):
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        return self._engine.row(request)

    def encode_response(self, output: Any) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    settings = {"max_batch_size": MAX_BATCH, "batch_timeout": DELAY_SECONDS}
    apis = [Model(api_path="/predict", **settings), Binary(api_path="/predict_bin", **settings)]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False
    )
