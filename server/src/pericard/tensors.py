"""Tensor types and specifications: names, types and shapes, never values.

Rules of this room: standard library only; a shape's first axis is the batch and is written ``-1`` in a specification.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

#: Type name → (bytes per element, Open Inference Protocol datatype).
DTYPES: dict[str, tuple[int, str]] = {
    "bool": (1, "BOOL"),
    "uint8": (1, "UINT8"),
    "int8": (1, "INT8"),
    "int16": (2, "INT16"),
    "int32": (4, "INT32"),
    "int64": (8, "INT64"),
    "float16": (2, "FP16"),
    "bfloat16": (2, "BF16"),
    "float32": (4, "FP32"),
    "float64": (8, "FP64"),
}

#: What a model, an input or an output may be called.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_MAX_AXES = 8
_MAX_ELEMENTS = 1 << 40


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: lower-case identifier.
        dtype: a key of :data:`DTYPES`.
        shape: sizes per axis; the first is ``-1``, the batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the specification.

        Raises:
            ValueError: the name, type or shape is not allowed.
        """
        if not NAME.fullmatch(self.name):
            raise ValueError(f"tensor name {self.name!r} is not allowed")
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name}: type {self.dtype!r} is not known (known: {', '.join(DTYPES)})")
        if not 1 <= len(self.shape) <= _MAX_AXES or self.shape[0] != -1:
            raise ValueError(f"tensor {self.name}: the shape must have 1 to {_MAX_AXES} axes and begin with -1")
        if any(size < 1 for size in self.shape[1:]) or math.prod(self.shape[1:]) > _MAX_ELEMENTS:
            raise ValueError(f"tensor {self.name}: axis sizes after the batch must be positive and bounded")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one item of a batch."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Bytes of one item of a batch, row-major, little-endian."""
        return math.prod(self.row_shape) * DTYPES[self.dtype][0]

    @property
    def datatype(self) -> str:
        """The Open Inference Protocol's name of the type."""
        return DTYPES[self.dtype][1]
