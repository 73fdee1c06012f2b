"""A site of Pericard as its users make one, with the command line: every model sealed, authentication, audit, receipts.

Each start gets an audit log and a trust state of its own, in the folder of its run; keys and models are shared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from servers.bench_models import MAX_BATCH, MODELS, build

#: A batch is padded to the next of these; what is in between is computed for nothing.
BUCKETS = [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, MAX_BATCH]
#: Of the ResNet, whose known answers take a second each at the larger sizes.
FEW_BUCKETS = [1, 2, 4, 8, 16, 24, MAX_BATCH]


def _pericard(folder: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pericard", *map(str, words)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"pericard {words[0]}: ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def _description(name: str) -> dict[str, object]:
    model = MODELS[name]
    signal = {"sampling_rate": model.sampling_rate, "unit": "mV", "leads": [["II"]]}
    return {
        "name": name,
        "version": "1.0.0",
        "sequence": 1,
        "publisher": "Benchmark vendor",
        "intended_use": "a model for measurements",
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, *model.shape]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": [-1, model.outputs]}],
        "batch": {"max": MAX_BATCH, "buckets": FEW_BUCKETS if name == "resnet" else BUCKETS},
        **({"signal": signal} if model.sampling_rate else {}),
    }


def _seal(folder: Path, name: str) -> None:
    model = MODELS[name]
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    example = torch.linspace(-1, 1, 2 * model.shape[0] * model.shape[1]).reshape(2, *model.shape)
    program = torch.export.export(build(name), (example,), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, folder / f"{name}.pt2")
    (folder / f"{name}.model.yaml").write_text(json.dumps(_description(name)))
    _pericard(
        folder, "seal", f"{name}.pt2", "--manifest", f"{name}.model.yaml", "--sign-with", "vendor.key",
        "--archive", "archive.pub", "-r", "identity.pub", "--days", 30, "-o", f"{name}.sealed",
    )  # fmt: skip


def make(folder: Path, models: Sequence[str]) -> dict[str, str]:
    """Make keys, models, trust and a token; the headers of a caller who may ask every model."""
    folder.mkdir(parents=True)
    for kind, name in (("publisher", "vendor"), ("identity", "archive"), ("identity", "identity"), ("log", "log")):
        _pericard(folder, "keygen", kind, "-o", f"{name}.key")
    _pericard(folder, "keygen", "tls", "--host", "127.0.0.1", "-o", "tls.key")
    for name in models:
        _seal(folder, name)
    _pericard(folder, "trust", "add", "vendor", "vendor.pub", "--store", "publishers.json")
    token = _pericard(folder, "token", "create", "ecg-cart", "--model", "*", "--tokens", "tokens.json")
    return {"Authorization": f"Bearer {token}"}


def command(folder: Path, run: Path, model: str, port: int, *, tls: bool) -> list[object]:
    """How one model is served on a port; ``run`` is the folder of this start."""
    run.mkdir(parents=True, exist_ok=True)
    settings = {
        "models": [f"{folder}/{model}.sealed"],
        "publishers": f"{folder}/publishers.json",
        "listen": {"host": "127.0.0.1", "port": port},
        "identity": {"path": f"{folder}/identity.key"},
        "tokens": f"{folder}/tokens.json",
        "trust_state": f"{run}/trust.json",
        "audit": {"directory": f"{run}/audit", "key": f"{folder}/log.key"},
        **({"tls": {"certificate": f"{folder}/tls.crt", "key": f"{folder}/tls.key"}} if tls else {}),
    }
    (run / "server.yaml").write_text(json.dumps(settings))
    return [sys.executable, "-m", "pericard", "serve", "--config", run / "server.yaml"]
