"""One forward pass of an exported model on the CPU, by the paths that a loaded model can take.

Every round takes every path of one network and batch in turn, in this process, on one core; ratios are within a round.
Time is the process's own CPU time, so that what others do matters less. Answers are compared before they are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import Watch, describe
from nets import NETS, sealed
from tables import table

from pericard.hardening import PrivateMemory, keep_pages
from pericard.runtime.exported import ExportedBackend

ROOT = Path(__file__).resolve().parents[3]
_BATCHES = (1, 2, 4, 8, 16, 32)
_SLICE = 0.02
_CLOSE = 1e-4
HEAD = ("network", "batch", "guarded us/row", "straight", "folded", "faults")


def _paths(name: str, batch: int) -> dict[str, Callable[[], Any]]:
    """A call of each path, all of which gave the same answer."""
    graph, weights, shape = sealed(name)
    rows = (np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32),)
    made = {path: ExportedBackend(graph, weights, device="cpu") for path in ("guarded", "straight", "folded")}
    made["straight"].settle([rows])
    if not made["folded"].fold(PrivateMemory) or made["folded"].settle([rows]):
        del made["folded"]
    wanted = made["guarded"].infer(rows)
    for path, backend in made.items():
        for one, other in zip(backend.infer(rows), wanted, strict=True):
            if not np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE):
                raise SystemExit(f"{name}, batch {batch}: {path} gives another answer")
    return {path: (lambda backend=backend: backend.infer(rows)) for path, backend in made.items()}


def _measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    calls = _paths(name, batch)
    for call in calls.values():
        call()
    start = time.process_time()
    calls["guarded"]()
    times = max(1, int(_SLICE / max(time.process_time() - start, 1e-6)))
    found: dict[str, list[float]] = {path: [] for path in calls}
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        for path, call in calls.items():
            start = time.process_time()
            for _ in range(times):
                call()
            found[path].append((time.process_time() - start) / times)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"network": name, "batch": batch, "seconds": found, "faults": faults / (rounds * times * len(calls))}


def row(one: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table: time a row of a batch behind guards, and the others' ratio to it."""
    base = one["seconds"]["guarded"]
    ratios = [
        f"{median(a / b for a, b in zip(one['seconds'][path], base, strict=True)):.2f}"
        if path in one["seconds"]
        else "-"
        for path in ("straight", "folded")
    ]
    price = f"{median(base) / one['batch'] * 1e6:.0f}"
    return (one["network"], str(one["batch"]), price, *ratios, f"{one['faults']:.1f}")


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=forward")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", default=",".join(NETS))
    parser.add_argument("--batches", default=",".join(map(str, _BATCHES)))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder for the records")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_pages()
    watch, machine, found = Watch(), describe(), []
    for name in options.networks.split(","):
        for batch in map(int, options.batches.split(",")):
            found.append(_measure(name, batch, options.rounds))
            sys.stderr.write(f"forward: {' '.join(row(found[-1]))}\n")
    machine |= {"others": watch.others(), "torch": torch.__version__}
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "forward.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(entry)}\n" for entry in ({"machine": machine}, *found))
    sys.stdout.write(
        f"{table(HEAD, [row(one) for one in found])}\n\nothers used {machine['others']:.0%} of all cores\n"
    )


if __name__ == "__main__":
    main()
