"""The models that this engine serves, by name.

One version of each name so far, and every file that was configured: an engine that cannot load one of them does not
start. The catalog is what the edge may know: contract and identity, never a weight or a tensor name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pericard.errors import PericardError, UnknownModel, UnsupportedModel
from pericard.runtime.loader import LoadedModel
from pericard.sealed import Signal

_PLATFORMS = {"exported": "pytorch_exported", "onnx": "onnxruntime_onnx"}
_LAST_DATE = 253402300799  # 9999-12-31T23:59:59Z; a grant may last longer, a date cannot be written


class Repository:
    """Loaded models."""

    def __init__(self, *, runtime: str, licence_time: Callable[[int], int] = int) -> None:
        """Start empty.

        Args:
            runtime: the digest that every answer names.
            licence_time: from the clock to the time that licences are held against.
        """
        self.runtime = runtime
        self._licence_time = licence_time
        self._models: dict[str, LoadedModel] = {}

    def add(self, model: LoadedModel) -> None:
        """Serve a model.

        Raises:
            UnsupportedModel: another one of that name is served already.
        """
        name = model.description.name
        if name in self._models:
            raise UnsupportedModel(f"model {name}: two sealed files carry this name", hint="keep one of them")
        self._models[name] = model

    def get(self, name: str) -> LoadedModel:
        """The model of a name.

        Raises:
            UnknownModel: there is none.
        """
        model = self._models.get(name)
        if model is None:
            raise UnknownModel(f"model {name}: is not served here")
        return model

    def licence(self, model: LoadedModel, now: int) -> str:
        """The licence's state; raises ``TrustError`` once it is over."""
        return model.licence.state(self._licence_time(now))

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def close(self) -> None:
        """Zero every model's weights."""
        for model in self._models.values():
            model.close()
        self._models.clear()

    def identity(self, model: LoadedModel) -> dict[str, Any]:
        """What names a model in answers and records."""
        about = model.description
        return {
            "name": about.name,
            "version": about.version,
            "sequence": about.sequence,
            "manifest": model.manifest_hash,
            "publisher": model.publisher,
        }

    def catalog(self, now: int | None = None) -> dict[str, Any]:
        """What is served, for the edge."""
        moment = int(time.time()) if now is None else now
        return {"runtime": self.runtime, "models": {m.description.name: self._entry(m, moment) for m in self}}

    def _entry(self, model: LoadedModel, now: int) -> dict[str, Any]:
        about = model.description
        try:
            licence = self.licence(model, now)
        except PericardError as error:
            licence = error.code
        end = datetime.fromtimestamp(min(model.licence.grant.not_after, _LAST_DATE), UTC)
        return {
            "identity": self.identity(model),
            "platform": _PLATFORMS[about.kind],
            "intended_use": about.intended_use,
            "inputs": [
                {"name": spec.name, "dtype": spec.dtype, "datatype": spec.datatype, "shape": list(spec.shape)}
                for spec in about.inputs
            ],
            "outputs": [
                {
                    "name": output.spec.name,
                    "dtype": output.spec.dtype,
                    "datatype": output.spec.datatype,
                    "shape": list(output.spec.shape),
                    "meaning": output.meaning,
                    "threshold": output.threshold,
                    "frame_seconds": output.frame_seconds,
                }
                for output in about.outputs
            ],
            "max_batch": model.buckets[-1],
            "signal": _signal(about.signal),
            "licence": licence,
            "licence_not_after": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def _signal(signal: Signal | None) -> dict[str, Any] | None:
    if signal is None:
        return None
    return {
        "sampling_rate": signal.sampling_rate,
        "unit": signal.unit,
        "leads": [list(names) for names in signal.leads],
    }
