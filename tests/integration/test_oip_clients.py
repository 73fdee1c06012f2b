"""The protocol's own clients, unmodified, against these functions alone and against the real daemon.

They are installed into ``build/test-clients`` (``make test`` does it) and run as processes of their own, so that what
they need never mixes with what we ship.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oip_stub
import pytest
from integration_site import SAMPLES, Site, pericard, running

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "build" / "test-clients"
SCRIPTS = Path(__file__).parent / "clients"
CONTRACT = {"sampling_rate": 250, "unit": "mV", "leads": "II"}
ROWS = (np.sin(np.arange(3 * SAMPLES) / 7) / 2).astype("float32").reshape(3, 1, SAMPLES)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stub() -> Iterator[dict[str, Any]]:
    with oip_stub.serving(SAMPLES) as url:
        yield {"url": url, "token": "cart", "admin": "admin", "ca": "", "model": "tiny"}


@pytest.fixture(scope="module")
def daemon_site(made_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    site = made_site.copy(tmp_path_factory.mktemp("oip"))
    options = ("--model", "tiny", "--operation", "admin", "--operation", "metadata")
    admin = pericard("token", "create", "admin", *options, "--tokens", "tokens.json", cwd=site.folder).stdout.strip()
    with running(site) as daemon:
        yield {
            "url": daemon.url, "token": site.token, "admin": admin, "ca": str(site.folder / "tls.crt"), "model": "tiny"
        }  # fmt: skip


@pytest.fixture(scope="module", params=["stub", "daemon_site"])
def server(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.getfixturevalue(request.param)
    return {**found, "samples": SAMPLES, "parameters": CONTRACT}


def run(script: str, server: dict[str, Any]) -> dict[str, Any]:
    if not (CLIENTS / ".installed").exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "the clients are missing: make build/test-clients/.installed"
        )
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), json.dumps(server)],
        env={**os.environ, "PYTHONPATH": str(CLIENTS)}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def triton(server: dict[str, Any]) -> dict[str, Any]:
    return run("triton.py", server)


def assert_close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.allclose(found[name], values, atol=1e-6), name


def test_tritonclient(triton: dict[str, Any]) -> None:
    about, infer, aio = triton["sync"], triton["sync"]["infer"], triton["aio"]
    assert about["live"] is about["ready"] is about["model_ready"] is about["version_ready"] is True
    assert about["unknown_ready"] is False
    assert aio["live"] is aio["ready"] is aio["model_ready"] is True
    assert {"binary_tensor_data", "statistics"} <= set(about["server"]["extensions"])
    assert aio["server"] == about["server"]
    assert about["metadata"]["inputs"] == [{"name": "ecg", "datatype": "FP32", "shape": [-1, 1, SAMPLES]}]
    assert about["config"]["max_batch_size"] >= 1
    assert about["config"]["input"][0]["dims"] == [1, SAMPLES]
    (counted,) = about["statistics"]["model_stats"]
    assert counted["name"] == "tiny"
    kinds = ("success", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    assert all({"count", "ns"} <= counted["inference_stats"][kind].keys() for kind in kinds)
    assert infer["head"] == {"model_name": "tiny", "model_version": about["metadata"]["versions"][0], "id": "q-1"}
    assert len(infer["receipts"]) == 3
    assert len({receipt["index"] for receipt in infer["receipts"]}) == 3
    for kind in ("json to binary", "gzip", "deflate", "priority"):
        assert_close(infer[kind], infer["binary"])
    for answer in (*infer["async"], aio["binary"], aio["json"], aio["gzip"]):
        assert_close(answer, infer["binary"])
    score = {"score": infer["binary"]["score"]}
    assert_close(infer["json"], score)
    assert_close(infer["binary to json"], score)
    assert_close(infer["gzip of json"], {"score": list(np.repeat(score["score"], 8))})
    assert_close({"score": [answer["score"][0] for answer in aio["one by one"]]}, score)


def test_tritonclient_understands_every_refusal(triton: dict[str, Any]) -> None:
    refused = triton["sync"]["refused"]
    for what, word, statuses in (
        ("shape", "the model takes", {"400", "422"}),
        ("name", "has none of this name", {"400"}),
        ("not a number", "not a finite FP32", {"400", "422"}),
        ("strings", "no model here takes strings", {"400"}),
        ("sequence", "no model here keeps a sequence", {"400"}),
        ("classification", "classification extension is not offered", {"400", "501"}),
        ("shared memory", "shared memory is not offered", {"400", "501"}),
        ("unknown output", "has none of this name", {"400"}),
        ("priority", "priority must be an integer from 0 to", {"400"}),
        ("unknown version", "", {"404"}),
        ("unknown model", "", {"403", "404"}),
        ("no token", "", {"401"}),
    ):
        assert refused[what]["status"] in statuses, (what, refused[what])
        assert word in refused[what]["message"], (what, refused[what])
        assert "exception occurred in the client" not in refused[what]["message"]


def test_tritonclient_loads_and_unloads(triton: dict[str, Any]) -> None:
    admin = triton["sync"]["admin"]
    (listed,) = admin["index"]
    assert (listed["name"], listed["state"]) == ("tiny", "READY")
    assert admin["not granted"]["status"] == "403"
    assert admin["config"]["status"] == "400"
    assert "brings its own configuration" in admin["config"]["message"]
    assert admin["unloaded"] is False
    assert admin["unloaded index"][0]["state"] == "UNAVAILABLE"
    assert admin["loaded"] is True


def test_kserve(server: dict[str, Any]) -> None:
    found = run("kserve_rest.py", server)
    assert found["live"] is found["ready"] is found["model_ready"] is True
    assert found["unknown_ready"] is False
    for kind in ("dict", "binary", "binary to binary"):
        assert_close(found[kind], found["json"])
    assert np.shape(found["json"]["score"]) == (3,)
    assert "the model takes [rows, 1, 250]" in found["shape"]
    assert "401" in found["no token"]


def ask(server: dict[str, Any], body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One inference without a client, since none sends raw requests."""
    names = {"Authorization": f"Bearer {server['token']}", "Content-Type": "application/octet-stream"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    made = urllib.request.Request(f"{server['url']}/v2/models/tiny/infer", body, {**names, **named})
    context = ssl.create_default_context(cafile=server["ca"]) if server["ca"] else None
    try:
        with urllib.request.urlopen(made, timeout=20, context=context) as reply:
            return reply.status, {name.lower(): value for name, value in reply.headers.items()}, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def test_a_raw_request_is_answered_in_binary(stub: dict[str, Any]) -> None:
    status, headers, body = ask(stub, ROWS[:1].tobytes(), Inference_Header_Content_Length="0")
    assert status == 200
    length = int(headers["inference-header-content-length"])
    outputs = json.loads(body[:length])["outputs"]
    assert all("binary_data_size" in found["parameters"] for found in outputs)
    assert np.frombuffer(body[length:], "<f4")[0] == pytest.approx(ROWS[0].mean(), abs=1e-6)


def test_a_raw_request_cannot_say_what_the_samples_are(daemon_site: dict[str, Any]) -> None:
    status, headers, body = ask(daemon_site, ROWS[:1].tobytes(), Inference_Header_Content_Length="0")
    assert (status, headers["x-error-code"]) == (422, "contract-mismatch")
    assert "needs sampling_rate, unit and leads" in json.loads(body)["error"]


@pytest.mark.parametrize("rate", [500, None])
def test_what_the_manifest_declares_has_to_be_said(daemon_site: dict[str, Any], rate: int | None) -> None:
    given = {**CONTRACT, "sampling_rate": rate} if rate else {}
    tensor = {"name": "ecg", "shape": [1, 1, SAMPLES], "datatype": "FP32", "data": ROWS[0, 0].tolist()}
    status, headers, _ = ask(daemon_site, json.dumps({"inputs": [tensor], "parameters": given}).encode())
    assert (status, headers["x-error-code"]) == (422, "contract-mismatch")


def test_errors_are_plain_json(server: dict[str, Any]) -> None:
    """KServe's client reads the error only under exactly this content type."""
    status, headers, body = ask(server, b"{")
    assert (status, headers["content-type"]) == (400, "application/json")
    assert isinstance(json.loads(body)["error"], str)
