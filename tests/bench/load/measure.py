"""One measurement in a process of its own: ``measure.py WAY FOLDER``, or ``measure.py rates FOLDER``.

Prints one line of JSON. What is timed begins with imports done, keys read, the file in the page cache and free memory
at hand, and ends when a byte of every page of every tensor was read. The tensors' digest is taken afterwards: every way
must give the same.
"""

from __future__ import annotations

import gc
import json
import mmap
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from model import digest
from rates import measure
from ways import MEBIBYTE, WAYS, Clock, Tensors

_PAGE = 4096


def touch(tensors: Tensors) -> int:
    """Read one byte of every page."""
    total = 0
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1).view(torch.uint8)
        total += int(flat[::_PAGE].sum(dtype=torch.int64)) + int(flat[-1])
    return total


def warm(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(4 * MEBIBYTE)
    with path.open("rb", buffering=0) as source:
        while source.readinto(buffer):
            pass


def back(size: int) -> None:
    """Make sure that free memory stands behind the next ``size`` bytes.

    A virtual machine may have given free pages back to its host; whoever touches them next waits for the host. Which
    way that is would be a matter of luck. Pages that were written and freed a moment ago are handed out first.
    """
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(area)
    view[::_PAGE] = bytes(len(view[::_PAGE]))
    view.release()
    area.close()


def resident(name: str) -> int:
    """Bytes, from the kernel: ``VmRSS`` now, ``VmHWM`` at most."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise AssertionError(f"/proc/self/status: has no {name}")
    return int(found[1]) * 1024


def once(name: str, folder: Path) -> dict[str, Any]:
    """Load once."""
    way = WAYS[name]
    path = folder / way.file
    load, clock = way.prepare(path), Clock()
    warm(path)
    back(path.stat().st_size * 5 // 4)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    wall, cpu = time.perf_counter(), time.process_time()
    tensors = load(clock)
    with clock.part("touch"):
        touch(tensors)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resident("VmHWM") - before
    found = {"wall": wall, "cpu": cpu, "peak": peak, "parts": clock.parts, "notes": clock.notes}
    return found | {"digest": digest(tensors), "file": path.stat().st_size}


def main() -> None:
    """Measure what the command line names."""
    torch.set_num_threads(1)
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "rates":
        path = folder / WAYS["torch"].file
        warm(path)
        size = min(path.stat().st_size, 512 * MEBIBYTE)
        back(3 * size)
        found: dict[str, Any] = measure(path, size)
    else:
        found = once(name, folder)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
