"""What a publisher asks of the host that serves a model: an optional member of the manifest.

It holds words and versions, and compares nothing with a host: ``trust`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from pericard.canonical import JSON


@dataclass(frozen=True, slots=True)
class HostBounds:
    """What the publisher asks of a host; at least one of them.

    Attributes:
        cpu_flags: what its CPU must have, in the words of Linux, sorted.
        driver: the least version of the NVIDIA driver, or None.
        cuda: of the CUDA libraries.
        cudnn: of cuDNN.
    """

    cpu_flags: tuple[str, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None

    def json(self) -> JSON:
        """As it stands in the manifest."""
        return {
            "cpu_flags": list(self.cpu_flags),
            "driver": self.driver,
            "cuda": self.cuda,
            "cudnn": self.cudnn,
        }

    def words(self) -> str:
        """For people."""
        named = (("driver", self.driver), ("CUDA", self.cuda), ("cuDNN", self.cudnn))
        least = [f"{name} {text} or later" for name, text in named if text is not None]
        return ", ".join([*(f"CPU with {flag}" for flag in self.cpu_flags), *least])


def version(text: str) -> tuple[int, ...]:
    """A version as its numbers, without zeros at the end: 12.10 is later than 12.9, and 9.0 is 9."""
    numbers = [int(part) for part in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
