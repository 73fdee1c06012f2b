"""What of this process decides which kernels compute, beyond the packages: asked of torch itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pericard import environment


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


def cuda(devices: Iterable[str]) -> environment.Cuda | None:
    """Through what the CUDA devices among these compute; None where none is one.

    Args:
        devices: ``cpu`` or ``cuda:N``.
    """
    if not any(device.startswith("cuda") for device in devices):
        return None
    found = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # None where it was built without
    return environment.Cuda(environment.driver(), torch.version.cuda or "", "" if found is None else cudnn(found))


def cudnn(number: int) -> str:
    """The version that cuDNN writes as one number: 91002 is 9.10.2, and before 9, 8902 is 8.9.2."""
    unit = 10_000 if number >= 90_000 else 1000  # noqa: PLR2004  (the first of the new kind)
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def threads() -> int:
    """How many threads one operator may use; see ``exported.set_threads``."""
    return torch.get_num_threads()
