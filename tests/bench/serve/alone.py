"""The bare model, and one ``fdatasync``: ``BENCH_MODEL=NAME python alone.py SECONDS FOLDER`` prints JSON."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import bench_models
import numpy as np

_SYNCS = 200
_LINE = bytes(600)  # about one audit record with its signed head


def rate(engine: bench_models.Engine, rows: np.ndarray, seconds: float) -> float:
    """Samples a second in batches of these rows."""
    begun, batches = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < seconds or batches < 2:
        engine(rows)
        batches += 1
    return batches * len(rows) / elapsed


def sync_ms(folder: Path) -> float:
    """Median of appending a line and waiting until it is durable."""
    path, taken = folder / "fdatasync", []
    with path.open("ab", buffering=0) as out:
        for _ in range(_SYNCS):
            begun = time.perf_counter()
            out.write(_LINE)
            os.fdatasync(out)
            taken.append(time.perf_counter() - begun)
    path.unlink()
    return statistics.median(taken) * 1e3


def main() -> None:
    """Measure."""
    engine, seconds = bench_models.Engine(), float(sys.argv[1])
    rows = np.resize(bench_models.samples(os.environ["BENCH_MODEL"]), (bench_models.MAX_BATCH, *engine.shape))
    rates = {size: rate(engine, rows[:size], seconds) for size in (1, 8, bench_models.MAX_BATCH)}
    sys.stdout.write(json.dumps({"samples": rates, "fdatasync_ms": sync_ms(Path(sys.argv[2]))}) + "\n")


if __name__ == "__main__":
    main()
