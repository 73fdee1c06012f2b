"""The Open Inference Protocol's metadata, from the engine's catalog."""

from __future__ import annotations

from typing import Any

Model = dict[str, Any]


def ready(model: Model) -> bool:
    """Whether a model of the catalog can answer: its licence lasts."""
    return model["licence"] in {"valid", "grace"}


def server_metadata(version: str, runtime: str) -> dict[str, Any]:
    """``GET /v2``."""
    return {"name": "pericard", "version": version, "extensions": [], "runtime": runtime}


def model_metadata(name: str, model: Model, runtime: str) -> dict[str, Any]:
    """``GET /v2/models/{name}``."""
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
        "versions": [str(identity["sequence"])],
        "platform": model["platform"],
        "inputs": [_tensor(spec) for spec in model["inputs"]],
        "outputs": [_tensor(spec) for spec in model["outputs"]],
        "parameters": parameters,
    }


def _tensor(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: spec[key] for key in ("name", "datatype", "shape")}
