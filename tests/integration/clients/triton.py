"""Everything that tritonclient[http] can ask, asked of one server; what it said is printed as JSON.

Run with the clients' folder on PYTHONPATH. Argument: {"url", "token", "ca", "model", "samples", "parameters", "admin"}.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Callable
from typing import Any

import gevent.ssl
import numpy as np
from tritonclient import http as sync
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

SITE = json.loads(sys.argv[1])
MODEL, SAMPLES, PARAMETERS = SITE["model"], SITE["samples"], SITE["parameters"]
SECURE = SITE["url"].startswith("https://")
HOST = SITE["url"].partition("//")[2]
ROWS = (np.sin(np.arange(3 * SAMPLES) / 7) / 2).astype("float32").reshape(3, 1, SAMPLES)


def headers(whose: str = "token") -> dict[str, str]:
    return {"Authorization": f"Bearer {SITE[whose]}"}


def numbers(result: Any) -> dict[str, Any]:
    """Every output as lists, through the client's own decoding."""
    return {found["name"]: result.as_numpy(found["name"]).tolist() for found in result.get_response()["outputs"]}


def given(module: Any, rows: Any = ROWS, *, binary: bool = True, name: str = "ecg") -> list[Any]:
    found = module.InferInput(name, list(rows.shape), "FP32")
    found.set_data_from_numpy(rows, binary_data=binary)
    return [found]


def refusal(call: Callable[[], Any]) -> dict[str, str]:
    try:
        call()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    return {"status": "200", "message": ""}


def sync_calls() -> dict[str, Any]:
    made: dict[str, Any] = {}
    if SECURE:
        made = {"ssl": True, "ssl_context_factory": lambda: gevent.ssl.create_default_context(cafile=SITE["ca"])}
    with sync.InferenceServerClient(HOST, concurrency=4, **made) as client:
        return {**about(client), "infer": inference(client), "refused": refusals(client), "admin": repository(client)}


def about(client: Any) -> dict[str, Any]:
    own = headers()
    version = client.get_model_metadata(MODEL, headers=own)["versions"][0]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL, headers=own),
        "version_ready": client.is_model_ready(MODEL, version, headers=own),
        "unknown_ready": client.is_model_ready("no-such-model", headers=own),
        "server": client.get_server_metadata(headers=own),
        "metadata": client.get_model_metadata(MODEL, version, headers=own),
        "config": client.get_model_config(MODEL, headers=own),
        "statistics": client.get_inference_statistics(MODEL, headers=own),
    }


def inference(client: Any) -> dict[str, Any]:
    def ask(inputs: Any = None, **how: Any) -> Any:
        named = {"headers": headers(), "parameters": PARAMETERS, **how}
        return client.infer(MODEL, inputs or given(sync), **named)

    version = client.get_model_metadata(MODEL, headers=headers())["versions"][0]
    score = sync.InferRequestedOutput("score", binary_data=False)
    first = ask(request_id="q-1", model_version=version)
    waiting = [client.async_infer(MODEL, given(sync), headers=headers(), parameters=PARAMETERS) for _ in range(4)]
    later = [numbers(found.get_result(timeout=20)) for found in waiting]  # each holds one of the client's connections
    long = given(sync, np.repeat(ROWS, 8, axis=0), binary=False)
    return {
        "binary": numbers(first),
        "head": {key: first.get_response()[key] for key in ("model_name", "model_version", "id")},
        "receipts": json.loads(first.get_response()["parameters"]["receipts"]),
        "json": numbers(ask(given(sync, binary=False), outputs=[score])),
        "json to binary": numbers(ask(given(sync, binary=False))),
        "binary to json": numbers(ask(outputs=[score])),
        "gzip": numbers(ask(request_compression_algorithm="gzip", response_compression_algorithm="gzip")),
        "deflate": numbers(ask(request_compression_algorithm="deflate", response_compression_algorithm="deflate")),
        "gzip of json": numbers(ask(long, outputs=[score], response_compression_algorithm="gzip")),
        "priority": numbers(ask(priority=1, timeout=5_000_000)),
        "async": later,
    }


def refusals(client: Any) -> dict[str, Any]:
    def ask(inputs: Any = None, **how: Any) -> dict[str, str]:
        named = {"headers": headers(), "parameters": PARAMETERS, **how}
        return refusal(lambda: client.infer(how.pop("model", MODEL), inputs or given(sync), **named))

    chosen = sync.InferRequestedOutput("score", class_count=2)
    shared = sync.InferRequestedOutput("score")
    shared.set_shared_memory("region", 4)
    text = sync.InferInput("ecg", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"x"]], dtype=object))
    broken = np.where(np.arange(SAMPLES) == 3, np.nan, ROWS[:1])
    return {
        "shape": ask(given(sync, ROWS[:, :, :-1])),
        "name": ask(given(sync, name="emg")),
        "not a number": ask(given(sync, broken.astype("float32"))),
        "strings": ask([text]),
        "sequence": ask(sequence_id=7, sequence_start=True),
        "classification": ask(outputs=[chosen]),
        "shared memory": ask(outputs=[shared]),
        "unknown output": ask(outputs=[sync.InferRequestedOutput("no-such")]),
        "priority": ask(priority=1000),
        "unknown version": ask(model_version="999"),
        "unknown model": refusal(lambda: client.get_model_metadata("no-such-model", headers=headers())),
        "no token": refusal(lambda: client.get_model_metadata(MODEL)),
    }


def repository(client: Any) -> dict[str, Any]:
    own = headers("admin")
    found: dict[str, Any] = {"index": client.get_model_repository_index(headers=own)}
    found["not granted"] = refusal(lambda: client.unload_model(MODEL, headers=headers()))
    found["config"] = refusal(lambda: client.load_model(MODEL, headers=own, config="{}"))
    client.unload_model(MODEL, headers=own, unload_dependents=True)
    found["unloaded"] = client.is_model_ready(MODEL, headers=headers())
    found["unloaded index"] = client.get_model_repository_index(headers=own)
    client.load_model(MODEL, headers=own)
    found["loaded"] = client.is_model_ready(MODEL, headers=headers())
    return found


async def aio_calls() -> dict[str, Any]:
    made = {"ssl": True, "ssl_context": ssl.create_default_context(cafile=SITE["ca"])} if SECURE else {}
    async with aio.InferenceServerClient(HOST, **made) as client:
        own = headers()

        async def ask(rows: Any = ROWS, *, binary: bool = True, **how: Any) -> dict[str, Any]:
            named = {"headers": headers(), "parameters": PARAMETERS, **how}  # it writes into the headers it is given
            return numbers(await client.infer(MODEL, given(aio, rows, binary=binary), **named))

        several = await asyncio.gather(*(ask(ROWS[row : row + 1]) for row in range(3)))
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(MODEL, headers=own),
            "server": await client.get_server_metadata(headers=own),
            "config": await client.get_model_config(MODEL, headers=own),
            "statistics": await client.get_inference_statistics(headers=own),
            "binary": await ask(),
            "json": await ask(binary=False),
            "one by one": several,
            "gzip": await ask(request_compression_algorithm="gzip", response_compression_algorithm="deflate"),
        }


json.dump({"sync": sync_calls(), "aio": asyncio.run(aio_calls())}, sys.stdout)
