"""FastAPI and uvicorn as one would write it in an afternoon: pydantic bodies; with ``batcher``, an asyncio batcher."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import uvicorn
from bench_models import DELAY_SECONDS, MAX_BATCH, Engine
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

ENGINE = Engine()


class Alone:
    """Each request in a thread of the framework's own pool."""

    async def __call__(self, row: Any) -> Any:
        return (await run_in_threadpool(ENGINE, row[None]))[0]

    async def run(self) -> None:
        """Nothing runs beside the requests."""


class Batcher:
    """What arrived within the delay goes through the model together, on one thread."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)

    async def __call__(self, row: Any) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((row, answer))
        return await answer

    async def run(self) -> None:
        """Serve batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather(loop)
            try:
                found = await loop.run_in_executor(self._thread, ENGINE, np.stack([row for row, _ in batch]))
            except Exception as error:  # noqa: BLE001  (every waiting request gets it)
                found = [error] * len(batch)
            for (_, answer), row in zip(batch, found, strict=True):
                if answer.done():
                    continue
                if isinstance(row, Exception):
                    answer.set_exception(row)
                else:
                    answer.set_result(row)

    async def _gather(self, loop: asyncio.AbstractEventLoop) -> list[tuple[Any, asyncio.Future[Any]]]:
        batch = [await self._queue.get()]
        end = loop.time() + DELAY_SECONDS
        while len(batch) < MAX_BATCH and (left := end - loop.time()) > 0:
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), left))
            except TimeoutError:
                break
        return batch


class Question(BaseModel):
    data: list[list[float]]


infer = Batcher() if "batcher" in sys.argv else Alone()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(infer.run())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(question: Question) -> dict[str, list[float]]:
    return {"scores": (await infer(np.asarray(question.data, dtype=np.float32))).tolist()}


@app.post("/predict_bin")
async def predict_bin(request: Request) -> Response:
    row = await infer(ENGINE.row(await request.body()))
    return Response(row.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, loop="uvloop", http="httptools")
