"""What of this process decides which kernels compute, beyond the packages: asked of torch itself."""

from __future__ import annotations

import torch


def arithmetic(device: str) -> str:
    """How torch computes on a device, for the description of the host's class.

    Args:
        device: ``cpu`` or ``cuda:N``.

    Returns:
        On the CPU the instruction set that torch's own kernels were chosen for; on CUDA also the card and its driver.
    """
    cpu = f"torch {torch.backends.cpu.get_cpu_capability().lower()}"
    if not device.startswith("cuda"):
        return cpu
    about = torch.cuda.get_device_properties(torch.device(device))
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # noqa: SLF001  (no public way, no stub)
    return f"{cpu}, {about.name} sm_{about.major}{about.minor}, cuda driver {driver}"


def threads() -> int:
    """How many threads one operator may use; see ``exported.set_threads``."""
    return torch.get_num_threads()
