"""What a benchmark ran on: enough to tell one machine from another, nothing that names it."""

from __future__ import annotations

import os
import platform
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Instructions that decide how fast ciphers and hashes are.
_FLAGS = ("aes", "vaes", "pclmulqdq", "vpclmulqdq", "sha_ni", "avx2", "avx512f", "asimd", "sha2")
_TICKS = os.sysconf("SC_CLK_TCK")


def _field(path: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", Path(path).read_text(), re.MULTILINE)
    return found[1].strip() if found else "unknown"


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernel and Python; the load of the last minute."""
    flags = set(f"{_field('/proc/cpuinfo', 'flags')} {_field('/proc/cpuinfo', 'Features')}".split())
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "virtual": "hypervisor" in flags,
        "instructions": [flag for flag in _FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
        "kernel": platform.release().partition("-")[0],
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


@dataclass
class Watch:
    """How much of the machine others used since it was made, from the kernel's own counters."""

    def __post_init__(self) -> None:
        self._start = _counters()

    def others(self) -> float:
        """Share of all cores that was used by others than this process and its finished children, 0 to 1."""
        whole, busy, ours = (now - then for now, then in zip(_counters(), self._start, strict=True))
        return min(max((busy - ours) / whole, 0.0), 1.0) if whole else 0.0


def _counters() -> tuple[float, float, float]:
    """Seconds of all cores, of these busy or stolen, and of these ours."""
    fields = [int(field) / _TICKS for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    ours = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        ours += used.ru_utime + used.ru_stime
    return sum(fields), sum(fields) - idle, ours
