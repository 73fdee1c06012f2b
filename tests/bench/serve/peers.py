"""The servers beside Pericard: how each is installed, started and asked.

A peer's packages stand in a folder of their own, which only its processes see, before those of ``.venv``; so all have
the same torch and numpy. Where a peer has a batch delay it is two milliseconds, its batch limit is 32, and it has one
worker: one core is all there is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import wire
from processes import free_port
from servers.bench_models import DELAY_SECONDS, MAX_BATCH, MODELS

ROOT = Path(__file__).resolve().parents[3]
_SERVERS = Path(__file__).with_name("servers")
_PINS = ROOT / "constraints" / "bench-serve.txt"
_INSTALLED = ROOT / "build" / "bench-serve" / "peers"
_INSTALL_SECONDS = 900

#: The command, and what its environment has beyond that of all servers.
Start = tuple[list[object], dict[str, str]]


@dataclass(frozen=True)
class Peer:
    """One of the others."""

    label: str
    dialects: Mapping[str, wire.Dialect]
    start: Callable[[Path, int, str], Start]  # a folder of its own, a port, a model
    packages: str = ""  # its paragraph of the pins


class Missing(Exception):
    """A peer that cannot be had here."""


def _python(packages: str, *words: object) -> Start:
    if not packages:
        return [sys.executable, *words], {"PYTHONPATH": str(_SERVERS)}
    folder = _INSTALLED / packages
    return [sys.executable, *words], {
        "PYTHONPATH": f"{_SERVERS}:{folder}",
        "PYTHONUSERBASE": str(folder),  # Mosec looks for its program there
    }


def _fastapi(_folder: Path, port: int, _model: str) -> Start:
    return _python("", _SERVERS / "with_fastapi.py", port)


def _batcher(_folder: Path, port: int, _model: str) -> Start:
    return _python("", _SERVERS / "with_fastapi.py", port, "batcher")


def _mosec(_folder: Path, port: int, _model: str) -> Start:
    options = ("--address", "127.0.0.1", "--port", port, "--timeout", 120_000, "--log-level", "warning")
    return _python("mosec", _SERVERS / "with_mosec.py", *options)


def _litserve(_folder: Path, port: int, _model: str) -> Start:
    return _python("litserve", _SERVERS / "with_litserve.py", port)


def _bentoml(_folder: Path, port: int, _model: str) -> Start:
    options = ("--working-dir", _SERVERS, "--host", "127.0.0.1", "--port", port)
    return _python("bentoml", "-m", "bentoml", "serve", "with_bentoml:Model", *options)


def _mlserver(folder: Path, port: int, model: str) -> Start:
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings |= {"debug": False, "parallel_workers": 0, "metrics_dir": str(folder)}
    described = {"name": model, "implementation": "with_mlserver.Model"}
    described |= {"max_batch_size": MAX_BATCH, "max_batch_time": DELAY_SECONDS}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(described))
    return _python("mlserver", "-c", "from mlserver.cli import main; main()", "start", folder)


_TRITON_MODEL = """\
name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {leads}, {samples} ] }} ]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ {outputs} ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


def _triton(folder: Path, port: int, model: str) -> Start:
    """The binary of PyTriton's wheel; its stub for Python 3.11 runs Debian's interpreter, not that of ``.venv``."""
    wheel = _INSTALLED / "triton"
    server = wheel / "pytriton" / "tritonserver"
    backend, repository = folder / "backends" / "python", folder / "models" / model
    if not backend.exists():
        shutil.copytree(server / "backends" / "python", backend)
        shutil.copy(server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend)
        (repository / "1").mkdir(parents=True)
        shutil.copy(_SERVERS / "with_triton.py", repository / "1" / "model.py")
    (leads, samples), outputs = MODELS[model].shape, MODELS[model].outputs
    described = _TRITON_MODEL.format(
        name=model, batch=MAX_BATCH, leads=leads, samples=samples, outputs=outputs, delay=int(DELAY_SECONDS * 1e6)
    )
    (repository / "config.pbtxt").write_text(described)
    command: list[object] = [
        server / "bin" / "tritonserver", f"--model-repository={folder}/models", f"--cache-directory={server}/caches",
        f"--backend-directory={folder}/backends", "--http-address=127.0.0.1", f"--http-port={port}",
        "--allow-grpc=false", "--metrics-address=127.0.0.1", f"--metrics-port={free_port()}",
    ]  # fmt: skip
    return command, {
        "LD_LIBRARY_PATH": str(wheel / "nvidia_pytriton.libs"),
        "BENCH_PATH": f"{_SERVERS}:{wheel}:{sysconfig.get_path('purelib')}",
        "PATH": "/usr/bin:/bin",
    }


PEERS = {
    "mosec": Peer("Mosec", wire.MOSEC, _mosec, "mosec"),
    "triton": Peer("Triton", wire.OIP, _triton, "triton"),
    "mlserver": Peer("MLServer", wire.OIP_JSON, _mlserver, "mlserver"),
    "litserve": Peer("LitServe", wire.PLAIN, _litserve, "litserve"),
    "bentoml": Peer("BentoML", wire.BATCH, _bentoml, "bentoml"),
    "batcher": Peer("FastAPI, batcher", wire.PLAIN, _batcher),
    "fastapi": Peer("FastAPI", wire.PLAIN, _fastapi),
}


def pins(packages: str) -> str:
    """A peer's paragraph of the pins."""
    for paragraph in _PINS.read_text().split("\n\n"):
        if paragraph.split()[1].rstrip(":") == packages:
            return paragraph + "\n"
    raise AssertionError(f"{_PINS}: has no paragraph for {packages}")


def install(packages: str) -> None:
    """Install a peer's packages, unless these very ones are there.

    Raises:
        Missing: they cannot be had, or would not run here.
    """
    if not packages:
        return
    if packages == "triton" and not Path("/usr/bin/python3.11").exists():
        raise Missing("its python backend needs Debian's python3.11")
    folder, wanted = _INSTALLED / packages, pins(packages)
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    sys.stderr.write(f"serve: installing {packages}\n")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "pins.txt").write_text(wanted)
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-input", "--progress-bar", "off", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", folder, "-r", folder / "pins.txt"],
        capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Missing(f"pip: {done.stderr.strip().splitlines()[-1][:200]}")
    stamp.write_text(wanted)
