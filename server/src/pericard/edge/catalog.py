"""What the engine serves, as the edge looks it up: by name, and by version if one is named.

Made once from each catalog that the engine sends. It holds contracts and identities; what a caller may see of them, the
authoriser decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pericard.errors import ModelNotReady, UnknownModel

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """Where one output lies in an answer's bytes.

    Attributes:
        name: of the output.
        dtype: of its elements.
        count: of its elements.
        shape: of one row.
        start: first byte.
    """

    name: str
    dtype: np.dtype[np.generic]
    count: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One version of a model.

    Attributes:
        name: the model's name.
        version: the publisher's sequence number, in digits.
        number: how the engine calls this version.
        entry: what the engine said of it.
        dtypes: element type of each input.
        row_bytes: bytes of one row of all inputs.
        outputs: where each output lies in an answer.
        answer_bytes: bytes of one row of all outputs.
    """

    name: str
    version: str
    number: int
    entry: Entry
    dtypes: tuple[np.dtype[np.generic], ...] = field(init=False)
    row_bytes: int = field(init=False)
    outputs: tuple[Output, ...] = field(init=False)
    answer_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Work out the layout once, for every answer."""
        dtypes = tuple(np.dtype(spec["dtype"]) for spec in self.entry["inputs"])
        counts = [math.prod(spec["shape"][1:]) for spec in self.entry["inputs"]]
        outputs, start = [], 0
        for spec in self.entry["outputs"]:
            shape, dtype = tuple(spec["shape"][1:]), np.dtype(spec["dtype"])
            outputs.append(Output(spec["name"], dtype, math.prod(shape), shape, start))
            start += outputs[-1].count * dtype.itemsize
        object.__setattr__(self, "dtypes", dtypes)
        row_bytes = sum(dtype.itemsize * count for dtype, count in zip(dtypes, counts, strict=True))
        object.__setattr__(self, "row_bytes", row_bytes)
        object.__setattr__(self, "outputs", tuple(outputs))
        object.__setattr__(self, "answer_bytes", start)

    @property
    def ready(self) -> bool:
        """Whether it can answer."""
        return bool(self.entry["ready"])


class Catalog:
    """Everything that the engine said last."""

    def __init__(self, said: dict[str, Any]) -> None:
        """Take the engine's own catalog."""
        self.said = said
        self.runtime = str(said["runtime"])
        self.environment: dict[str, Any] = said["environment"]
        self._models = {
            name: {
                version: Model(name, version, entry["number"], entry) for version, entry in found["versions"].items()
            }
            for name, found in said["models"].items()
        }
        self._current = {
            name: next((model for model in self._models[name].values() if str(model.number) == found["current"]), None)
            for name, found in said["models"].items()
        }

    @property
    def names(self) -> list[str]:
        """The models' names."""
        return list(self._models)

    def versions(self, name: str) -> list[str]:
        """The versions of a name that are served."""
        return list(self._models.get(name, ()))

    def model(self, name: str, version: str = "") -> Model:
        """A version of a model; without a version, the one that the site's policy makes current.

        Raises:
            UnknownModel: there is none.
            ModelNotReady: there are versions, and none is current.
        """
        found = self._models.get(name)
        if found is None:
            raise UnknownModel(f"model {name[:64]}: is not served here")
        if version:
            model = found.get(version)
            if model is None:
                raise UnknownModel(f"model {name[:64]}: version {version[:20]} is not served here")
            return model
        current = self._current[name]
        if current is None:
            raise ModelNotReady(f"model {name[:64]}: no version can answer at the moment", hint="try again later")
        return current

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())
