"""Who is ready, and what the server and its models are, from the engine's catalog."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pericard.edge.oip.request import PRIORITY_LEVELS, Model
from pericard.pipe.frames import DEFAULT_PRIORITY

#: Of the protocol's extensions, those that are understood.
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
    "schedule_policy",
    "parameters",
)
_NOT_READY = "no model can answer at the moment"


def live(*, ready: bool) -> dict[str, Any]:
    """Body of the liveness answer, always 200. Clients differ in which of the two fields they read."""
    return {"live": True, "ready": ready}


def server_ready(*, ready: bool) -> dict[str, Any]:
    """Body of the readiness answer, 200 or 503."""
    found = {"ready": ready, "live": True}
    return found if ready else {"error": _NOT_READY, **found}


def model_ready(name: str, *, ready: bool, reason: str = "its licence does not allow it") -> dict[str, Any]:
    """Body of a model's readiness answer, 200 or 503."""
    found = {"name": name, "ready": ready}
    return found if ready else {"error": f"model {name}: cannot answer, {reason}", **found}


def server_metadata(version: str, runtime: str, environment: dict[str, Any]) -> dict[str, Any]:
    """``GET /v2``.

    Args:
        version: of the daemon.
        runtime: digest of the installed distributions.
        environment: what the engine says of the installed runtime and its host.
    """
    return {
        "name": "pericard", "version": version, "extensions": list(EXTENSIONS), "runtime": runtime,
        "environment": environment,
    }  # fmt: skip


def model_metadata(name: str, model: Model, runtime: str, versions: Sequence[str] | None = None) -> dict[str, Any]:
    """``GET /v2/models/{name}``.

    Args:
        name: the model's.
        model: the version that is described.
        runtime: digest of what it runs on.
        versions: all that are served; by default, this one.
    """
    identity = model["identity"]
    parameters: dict[str, Any] = {
        **{key: identity[key] for key in ("version", "sequence", "manifest", "publisher")},
        "runtime": runtime,
        "intended_use": model["intended_use"],
        "licence": model["licence"],
        "licence_not_after": model["licence_not_after"],
    }
    if model["signal"] is not None:
        parameters["signal"] = model["signal"]
    for output in model["outputs"]:
        if output["meaning"] == "score":
            parameters["score"] = {"output": output["name"], "threshold": output["threshold"]}
        elif output["meaning"] == "timeline":
            parameters["timeline"] = {"output": output["name"], "frame_seconds": output["frame_seconds"]}
    return {
        "name": name,
        "versions": _versions(model, versions),
        "platform": model["platform"],
        "inputs": [_tensor(spec) for spec in model["inputs"]],
        "outputs": [_tensor(spec) for spec in model["outputs"]],
        "parameters": parameters,
    }


def model_configuration(name: str, model: Model, versions: Sequence[str] | None = None) -> dict[str, Any]:
    """``GET /v2/models/{name}/config``: as much of Triton's configuration as its clients and tools ask for."""
    return {
        "name": name,
        "platform": model["platform"],
        "version_policy": {"specific": {"versions": [int(version) for version in _versions(model, versions)]}},
        "max_batch_size": model["max_batch"],
        "input": [_configured(spec) for spec in model["inputs"]],
        "output": [_configured(spec) for spec in model["outputs"]],
        "dynamic_batching": {
            "preferred_batch_size": [model["max_batch"]],
            "max_queue_delay_microseconds": 0,
            "priority_levels": PRIORITY_LEVELS,
            "default_priority_level": DEFAULT_PRIORITY,
        },
    }


def _versions(model: Model, versions: Sequence[str] | None) -> list[str]:
    return [str(model["identity"]["sequence"])] if versions is None else list(versions)


def _tensor(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: spec[key] for key in ("name", "datatype", "shape")}


def _configured(spec: dict[str, Any]) -> dict[str, Any]:
    """A tensor without its batch axis; a single number per row is written as Triton's configurations write it."""
    found = {"name": spec["name"], "data_type": f"TYPE_{spec['datatype']}", "dims": spec["shape"][1:] or [1]}
    return found if spec["shape"][1:] else {**found, "reshape": {"shape": []}}
