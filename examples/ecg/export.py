"""Export StripNet to the .pt2 file that ``pericard seal`` takes.

Run it as ``python examples/ecg/export.py -o ecg.pt2``.
"""

import argparse
from pathlib import Path

import torch
from stripnet import SAMPLING_RATE, STRIP_SAMPLES, build
from torch import nn
from torch.export import Dim, ExportedProgram

WEIGHTS = Path(__file__).with_name("stripnet.pth")
"""The weights that ship with this example."""

LARGEST_BATCH = 256
"""Strips in one call, at most; the graph holds for every number from one up to it."""


def export(network: nn.Module) -> ExportedProgram:
    """Turn the network into a graph whose batch dimension is free.

    Args:
        network: In evaluation mode; takes ``[B, 1, 2500]``.

    Returns:
        The graph for 1 to 256 strips. Its example input is a sine wave, never a patient.
    """
    seconds = torch.arange(STRIP_SAMPLES) / SAMPLING_RATE
    example = torch.sin(2 * torch.pi * seconds).expand(2, 1, STRIP_SAMPLES).contiguous()
    batch = Dim("batch", min=1, max=LARGEST_BATCH)
    return torch.export.export(network, (example,), dynamic_shapes={"ecg": {0: batch}})


def main() -> None:
    """Export the given weights and write the file."""
    parser = argparse.ArgumentParser(description="Export StripNet to a .pt2 file.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="state dict to export")
    arguments = parser.parse_args()
    torch.export.save(export(build(arguments.weights)), arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
