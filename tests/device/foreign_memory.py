"""A look for secrets in the memory of a process, this one or another."""

from __future__ import annotations

from pathlib import Path

_STEP = 1 << 24


def on_host(pid: int, windows: list[bytes]) -> int:
    """How many of the windows lie in a process's writable memory, the fake device's own left out."""
    longest = max(map(len, windows))
    found: set[int] = set()
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_, name = line.split(None, 5) if line.count(" ") > 5 else (*line.split(None, 5), "")
            if "w" not in mode or "fake_device" in name:
                continue
            low, high = (int(part, 16) for part in span.split("-"))
            for start in range(low, high, _STEP):
                try:
                    memory.seek(start)
                    data = memory.read(min(high - start, _STEP + longest))
                except OSError:
                    continue
                found |= {number for number, window in enumerate(windows) if window in data}
    return len(found)
