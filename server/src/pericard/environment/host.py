"""The kind of host that this is: everything beside the installed runtime that decides which bits come out.

Libraries choose their kernels by the CPU's instructions, block loops by its caches, heed variables of the environment,
and call the host's libm. :func:`host_class` names all that; :func:`this_host` names what a publisher may ask of a host.
This room knows no framework: what only that can tell is handed in.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

_LONGEST = 512  # bytes of one line of a host's class; a CPU's instructions take about 150
_CPUINFO, _CACHES = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache")
_DRIVER = Path("/proc/driver/nvidia/version")  # of the loaded kernel module; libraries of another version do not run
_DRIVER_VERSION = re.compile(r"Kernel Module(?: for \w+)?\s+(\d+(?:\.\d+){1,3})\b")
#: What each line of a host's class is called, and where /proc/cpuinfo has it: x86 first, then Arm.
_FIELDS = {
    "vendor": ("vendor_id", "CPU implementer"),
    "family": ("cpu family", "CPU architecture"),
    "model": ("model", "CPU part"),
    "name": ("model name",),
}
#: Instructions that arithmetic is chosen by. A newer kernel lists more of the others on the same CPU.
_INSTRUCTIONS = re.compile(
    r"(?:ssse|sse|pni|avx|amx|fma|f16c|bmi|abm|popcnt|neon|asimd|sve|sme(?!p)|i8mm|bf16|fphp|fcma|fp\b)\w*"
)
#: Variables by which an operator makes the arithmetic libraries choose other kernels.
_VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_", "ONEDNN_", "DNNL_")


@dataclass(frozen=True, slots=True)
class HostClass:
    """A kind of host: two of one class, with one runtime, compute the same bits.

    Attributes:
        digest: SHA-256 over the lines, hex.
        lines: name and text of everything that counts.
    """

    digest: str
    lines: tuple[tuple[str, str], ...]

    def record(self) -> dict[str, str]:
        """As the audit log's ``start`` record holds it for each device: the digest as ``class``, and the lines."""
        return {"class": self.digest, **dict(self.lines)}


@dataclass(frozen=True, slots=True)
class Cuda:
    """Through what a CUDA device computes; a version that nobody tells is empty, and meets no bound.

    Attributes:
        driver: of the kernel module, such as ``570.124.06``.
        runtime: of the CUDA libraries, such as ``12.8``.
        cudnn: of cuDNN, such as ``9.10.2``.
    """

    driver: str = ""
    runtime: str = ""
    cudnn: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What a publisher may ask of a host. The default has nothing of it.

    Attributes:
        flags: of the CPU, as its kernel lists them.
        cuda: None where no CUDA device is used.
    """

    flags: frozenset[str] = frozenset()
    cuda: Cuda | None = None

    def record(self) -> dict[str, str | None]:
        """As it is shown beside the runtime's digest: the CPU's instructions for arithmetic, and versions or null."""
        cuda = self.cuda or Cuda()
        return {
            "cpu": _arithmetic(self.flags),
            "driver": cuda.driver or None,
            "cuda": cuda.runtime or None,
            "cudnn": cuda.cudnn or None,
        }


def this_host(cuda: Cuda | None = None) -> Host:
    """Describe this host.

    Args:
        cuda: what ``runtime.host.cuda`` says of the devices that are used.
    """
    return Host(frozenset(_flags(_cpuinfo())), cuda)


def driver() -> str:
    """Version of the NVIDIA driver that the kernel runs; empty where there is none."""
    try:
        found = _DRIVER_VERSION.search(_DRIVER.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""


def host_class(arithmetic: str) -> HostClass:
    """Describe the kind of host that this is.

    Vendor, family, model and name of the CPU, its instructions for arithmetic, its caches, the C library, and what the
    environment tells the arithmetic libraries.

    Args:
        arithmetic: what the model's framework says of its own choice (``runtime.host.arithmetic``); this room knows
            none.
    """
    cpu = _cpuinfo()
    chosen = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    found = {
        "machine": platform.machine(),
        **{name: next((cpu[key] for key in keys if key in cpu), "") for name, keys in _FIELDS.items()},
        "instructions": _arithmetic(frozenset(_flags(cpu))),
        "caches": _caches(),
        "libc": " ".join(platform.libc_ver()),
        "arithmetic": arithmetic,
        "variables": " ".join(f"{name}={chosen[name]}" for name in sorted(chosen)),
    }
    lines = tuple((name, _printable(text)) for name, text in found.items())
    return HostClass(hashlib.sha256("\n".join(f"{name} {text}" for name, text in lines).encode()).hexdigest(), lines)


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none to read."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", maxsplit=1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _flags(cpu: dict[str, str]) -> list[str]:
    """What the CPU can do, in the kernel's words; on Arm they have another title."""
    return cpu.get("flags", cpu.get("Features", "")).split()


def _arithmetic(flags: frozenset[str]) -> str:
    return " ".join(sorted(filter(_INSTRUCTIONS.fullmatch, flags)))


def _caches() -> str:
    """Level, type and size of each cache of the first processor; empty where the kernel does not say."""
    found = []
    for index in sorted(_CACHES.glob("index[0-9]")):
        try:
            level, kind, size = ((index / part).read_text().strip() for part in ("level", "type", "size"))
        except OSError:
            continue
        found.append(f"L{level} {kind.lower()} {size}")
    return ", ".join(found)


def _printable(text: str) -> str:
    """One line that a record can hold; what is longer is told apart by its hash."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[:_LONGEST]} {hashlib.sha256(text.encode(errors='replace')).hexdigest()}"
