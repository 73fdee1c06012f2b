"""Everything that KServe's REST inference client can ask, asked of one server; what it said is printed as JSON.

Run with the clients' folder on PYTHONPATH. Argument: {"url", "token", "ca", "model", "samples", "parameters"}.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

SITE = json.loads(sys.argv[1])
MODEL, SAMPLES = SITE["model"], SITE["samples"]
ROWS = (np.sin(np.arange(3 * SAMPLES) / 7) / 2).astype("float32").reshape(3, 1, SAMPLES)


def question(*, binary: bool, rows: Any = ROWS, **changes: Any) -> InferRequest:
    found = InferInput("ecg", list(rows.shape), "FP32")
    found.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(MODEL, [found], parameters={**SITE["parameters"], **changes})


async def calls() -> dict[str, Any]:
    verify = ssl.create_default_context(cafile=SITE["ca"]) if SITE["ca"] else True
    client = InferenceRESTClient(RESTConfig(protocol="v2", verify=verify))
    own = {"Authorization": f"Bearer {SITE['token']}"}

    async def ask(data: Any) -> dict[str, Any]:
        found = await client.infer(SITE["url"], data, model_name=MODEL, headers=dict(own))
        return {found.name: found.as_numpy().tolist() for found in found.outputs}

    async def refused(data: Any, **given: str) -> str:
        try:
            await client.infer(SITE["url"], data, model_name=MODEL, headers={**own, **given})
        except httpx.HTTPStatusError as error:
            return str(error)
        return ""

    plain = question(binary=False).to_rest()[0]
    try:
        return {
            "live": await client.is_server_live(SITE["url"]),
            "ready": await client.is_server_ready(SITE["url"]),
            "model_ready": await client.is_model_ready(SITE["url"], MODEL, headers=own),
            "unknown_ready": await client.is_model_ready(SITE["url"], "no-such-model", headers=own),
            "json": await ask(question(binary=False)),
            "dict": await ask(plain),
            "binary": await ask(question(binary=True)),
            "binary to binary": await ask(question(binary=True, binary_data_output=True)),
            "shape": await refused(question(binary=True, rows=ROWS[:, :, :-1])),
            "no token": await refused(plain, Authorization=""),
        }
    finally:
        await client.close()


json.dump(asyncio.run(calls()), sys.stdout)
