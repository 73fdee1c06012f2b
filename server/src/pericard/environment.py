"""The runtime that this process really uses: a digest of the installed distributions, and the host's class.

Rules of this room: it describes, it does not judge (``trust`` decides whether a digest is acceptable). The digest is
SHA-256 over the sorted lines ``name version sha256(RECORD)``, one for each distribution that the interpreter can
import; RECORD holds a hash of every installed file, and :func:`verify` holds the files against it. It finds drift; an
attacker inside the interpreter can lie.

What the distributions compute also depends on the host: libraries choose their kernels by the CPU's instructions, block
loops by its caches, heed variables of the environment, and call the host's libm. :func:`host_class` names all that.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pericard.errors import EnvironmentDrift

_SHOWN = 3
_LONGEST = 512  # bytes of one line of a host's class; a CPU's instructions take about 150
_CPUINFO, _CACHES = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache")
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
class Runtime:
    """The installed runtime.

    Attributes:
        digest: SHA-256 over the distributions, hex.
        distributions: sorted ``(name, version, sha256 of RECORD)``.
        python: version of the interpreter.
        machine: architecture.
    """

    digest: str
    distributions: tuple[tuple[str, str, str], ...]
    python: str
    machine: str


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


def host_class(arithmetic: str) -> HostClass:
    """Describe the kind of host that this is.

    Vendor, family, model and name of the CPU, its instructions for arithmetic, its caches, the C library, and what the
    environment tells the arithmetic libraries.

    Args:
        arithmetic: what the model's framework says of its own choice (``runtime.host.arithmetic``); this room knows
            none.
    """
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", ""))
    chosen = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    found = {
        "machine": platform.machine(),
        **{name: next((cpu[key] for key in keys if key in cpu), "") for name, keys in _FIELDS.items()},
        "instructions": " ".join(sorted(filter(_INSTRUCTIONS.fullmatch, set(flags.split())))),
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


def describe() -> Runtime:
    """Describe the runtime of this interpreter; the first of two distributions of one name is the one imported."""
    found: dict[str, tuple[str, str]] = {}
    for name, distribution in _installed():
        record = distribution.read_text("RECORD") or ""
        version = distribution.metadata["Version"] or "unknown"
        found[name] = (version, hashlib.sha256(record.encode()).hexdigest())
    distributions = tuple((name, *found[name]) for name in sorted(found))
    python, machine = platform.python_version(), platform.machine()
    lines = [f"python {python} {machine}", *(" ".join(entry) for entry in distributions)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Runtime(digest, distributions, python, machine)


def verify() -> int:
    """Hold every installed file against the hash that its distribution recorded; returns how many there are.

    Raises:
        EnvironmentDrift: a file differs or is missing.
    """
    recorded = [entry for _, distribution in _installed() for entry in _recorded(distribution)]
    with ThreadPoolExecutor() as pool:
        wrong = sorted(path for found in pool.map(_differing, _hands(recorded)) for path in found)
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise EnvironmentDrift(
            f"runtime: {len(wrong)} of {len(recorded)} installed files are not what was installed: {shown}",
            hint="install the runtime again; what it computes cannot be vouched for",
        )
    return len(recorded)


def _installed() -> Iterator[tuple[str, metadata.Distribution]]:
    """Normalised name and distribution; the first of two of one name, which is the one that is imported."""
    seen = set()
    for distribution in metadata.distributions():
        # an interrupted installation leaves folders without metadata: described too, not tripped over
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "unknown").lower()
        if name not in seen:
            seen.add(name)
            yield name, distribution


def _recorded(distribution: metadata.Distribution) -> Iterator[tuple[str, str, str]]:
    """Path, algorithm and hash of every file that has one; a compiled file and RECORD itself have none."""
    folder = str(distribution.locate_file(""))
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        if len(row) > 1 and row[1]:
            algorithm, _, value = row[1].partition("=")
            yield os.path.join(folder, row[0]), algorithm, value  # noqa: PTH118  (pathlib costs seconds here)


def _hands(recorded: list[tuple[str, str, str]]) -> list[list[tuple[str, str, str]]]:
    """As many parts as there are cores, each with its share of the large files."""
    count = len(os.sched_getaffinity(0))
    return [recorded[place::count] for place in range(count)]


def _differing(recorded: list[tuple[str, str, str]]) -> list[str]:
    found = []
    for path, algorithm, wanted in recorded:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (the same)
                digest = hashlib.file_digest(file, algorithm).digest()
        except (OSError, ValueError):
            found.append(path)
            continue
        if base64.urlsafe_b64encode(digest).rstrip(b"=") != wanted.encode():
            found.append(path)
    return found
