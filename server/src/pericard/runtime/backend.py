"""What the engine needs of a backend, and nothing more."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Backend(Protocol):
    """A loaded model that answers batches.

    Attributes:
        device: ``cpu`` or ``cuda:N``; the part before the colon names the tolerance that applies.
    """

    device: str

    def infer(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Answer one batch.

        Args:
            inputs: one array per model input, in the manifest's order, each ``[bucket, …]`` and contiguous.

        Returns:
            One array per model output, in order, each ``[bucket, …]``.

        Raises:
            BackendFailed: the computation failed; the backend stays usable.
        """
        ...

    def close(self) -> None:
        """Drop every reference to the weights. The owner of the memory zeroes it."""
        ...
