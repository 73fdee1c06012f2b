"""Pericard's light client: send an ECG to a server, read the answer and its receipt.

    >>> from pericard_client import Client, read, prepare  # doctest: +SKIP

Names are loaded when they are first used, so that ``pericard-client --help`` loads neither numpy nor an HTTP stack.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pericard_client.client import AsyncClient, Client
    from pericard_client.errors import ClientError
    from pericard_client.formats import Recording, Strips, as_recorded, prepare, read
    from pericard_client.models import ModelIdentity, ModelMetadata, Prediction, PredictResult, Proof, Receipt

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "ModelIdentity",
    "ModelMetadata",
    "PredictResult",
    "Prediction",
    "Proof",
    "Receipt",
    "Recording",
    "Strips",
    "as_recorded",
    "prepare",
    "read",
]

_HOME = {
    "AsyncClient": "client",
    "Client": "client",
    "ClientError": "errors",
    "ModelIdentity": "models",
    "ModelMetadata": "models",
    "PredictResult": "models",
    "Prediction": "models",
    "Proof": "models",
    "Receipt": "models",
    "Recording": "formats",
    "Strips": "formats",
    "as_recorded": "formats",
    "prepare": "formats",
    "read": "formats",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
