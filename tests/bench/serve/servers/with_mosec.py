"""Mosec: the Rust front, one Python worker; JSON by msgspec, which is kinder than Mosec's own default."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from bench_models import DELAY_SECONDS, MAX_BATCH, Engine
from mosec import Server, Worker


class Question(msgspec.Struct):
    data: list[list[float]]


class Model(Worker):
    """A binary body has one length, and JSON of the same numbers is longer."""

    def __init__(self) -> None:
        super().__init__()
        self._engine = Engine()
        self._json = msgspec.json.Decoder(Question)

    def deserialize(self, data: bytes) -> tuple[Any, bool]:
        if len(data) == self._engine.bytes:
            return self._engine.row(data), True
        return np.asarray(self._json.decode(data).data, dtype=np.float32), False

    def serialize(self, data: tuple[Any, bool]) -> bytes:
        row, binary = data
        return row.tobytes() if binary else msgspec.json.encode({"scores": row.tolist()})

    def forward(self, data: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        found = self._engine(np.stack([row for row, _ in data]))
        return [(row, binary) for row, (_, binary) in zip(found, data, strict=True)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=MAX_BATCH, max_wait_time=int(DELAY_SECONDS * 1e3), timeout=120)
    server.run()
