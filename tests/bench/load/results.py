"""From measurements to rows, goals, and the page.

Every ratio is the median over the rounds of a ratio within one round: what disturbs a round disturbs both of its sides.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rates import CRYPTOGRAPHY, OPENSSL
from tables import table
from ways import WAYS

#: What one round found: by way, and under ``rates``; under ``openssl`` seconds a byte, if it was there.
Round = Mapping[str, Any]

HEAD = ("way", "wall s", "CPU s", "GB/s", "x torch.load", "peak / model", "what limits it")
_QUIET = 0.05


@dataclass(frozen=True)
class Goal:
    """What was promised, and what was found."""

    text: str
    limit: float
    found: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        verdict = "reached" if self.found <= self.limit else "NOT reached"
        return (
            f"{self.text}: wanted <= {self.limit:.2f}, found {self.found:.2f}"
            f" (rounds {self.lowest:.2f} to {self.highest:.2f}): {verdict}"
        )


def ratios(rounds: Sequence[Round], way: str, other: str) -> list[float]:
    """Wall time over wall time, round by round."""
    return [each[way]["wall"] / each[other]["wall"] for each in rounds]


def goals(rounds: Sequence[Round], size: int) -> list[Goal]:
    """The three goals; ``size`` is the model's, in bytes."""
    peaks = [each["sealed"]["peak"] / size for each in rounds]
    wanted = [
        ("sealed load with full verification, wall time over torch.load", 1.3, ratios(rounds, "sealed", "torch")),
        ("the same without chunk hashes, wall time over torch.load", 0.7, ratios(rounds, "unhashed", "torch")),
        ("sealed load, peak resident memory over the model's size", 1.05, peaks),
    ]
    return [Goal(text, limit, median(found), min(found), max(found)) for text, limit, found in wanted]


def limit(way: str, rounds: Sequence[Round], size: int) -> str:
    """The step that takes most of a row's CPU time, and whether it uses more than one core.

    Each step's price is its rate times the model's size; what the steps leave of the measured time is the rest.
    """
    cpu = median(each[way]["cpu"] for each in rounds)
    wall = median(each[way]["wall"] for each in rounds)
    price = {step: median(each["rates"][step]["cpu"] for each in rounds) * size for step in WAYS[way].steps}
    price[WAYS[way].rest] = max(cpu - sum(price.values()), 0.0)
    whole = sum(price.values())
    first, second = sorted(price, key=lambda step: -price[step])[:2]
    said = f"{first} {price[first] / whole:.0%}, {second} {price[second] / whole:.0%} of CPU"
    return f"{said}; {cpu / wall:.1f} cores busy"


def rows(rounds: Sequence[Round], size: int) -> list[tuple[str, ...]]:
    """The table's rows; loads first, by wall time, then rates."""
    names = [name for name in WAYS if name in rounds[0]]
    names.sort(key=lambda name: median(each[name]["wall"] for each in rounds))
    made = []
    for name in names:
        wall, cpu = (median(each[name][key] for each in rounds) for key in ("wall", "cpu"))
        peak = median(each[name]["peak"] for each in rounds) / size
        ratio = median(ratios(rounds, name, "torch"))
        made.append(_row(WAYS[name].label, wall, cpu, size, ratio, f"{peak:.2f}", limit(name, rounds, size)))
    price = {key: median(each["rates"]["AES-256-GCM"][key] for each in rounds) * size for key in ("wall", "cpu")}
    limits = "the cipher alone: one thread, 1 MiB in cache, by construction"
    ratio = median(each["rates"]["AES-256-GCM"]["wall"] * size / each["torch"]["wall"] for each in rounds)
    made.append(_row(CRYPTOGRAPHY, price["wall"], price["cpu"], size, ratio, "", limits))
    if "openssl" in rounds[0]:
        wall = median(each["openssl"] for each in rounds) * size
        ratio = median(each["openssl"] * size / each["torch"]["wall"] for each in rounds)
        made.append(_row(OPENSSL, wall, wall, size, ratio, "", limits))
    return made


def _row(label: str, wall: float, cpu: float, size: int, ratio: float, peak: str, limits: str) -> tuple[str, ...]:
    return (label, f"{wall:.3f}", f"{cpu:.3f}", f"{size / wall / 1e9:.2f}", f"{ratio:.2f}", peak, limits)


def step_rows(rounds: Sequence[Round]) -> list[tuple[str, ...]]:
    """The rates: GB/s by CPU time."""
    return [
        (step, f"{1 / median(each['rates'][step]['cpu'] for each in rounds) / 1e9:.2f}") for step in rounds[0]["rates"]
    ]


def part_rows(rounds: Sequence[Round]) -> list[tuple[str, ...]]:
    """Milliseconds of each part of the sealed load, with and without hashes."""
    ways = ("sealed", "unhashed")
    return [
        (part, *(f"{median(each[way]['parts'][part] for each in rounds) * 1e3:.1f}" for way in ways))
        for part in rounds[0]["sealed"]["parts"]
    ]


def report(rounds: Sequence[Round], model: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Everything that was found, as plain text."""
    size = model["bytes"]
    quiet = machine["others"] <= _QUIET
    kind = machine["processor"] + (", virtual" if machine["virtual"] else "")
    lines = [
        f"model: {size / 1e6:.0f} MB in {model['tensors']} tensors; {len(rounds)} rounds, interleaved; page cache warm",
        f"machine: {kind}, {machine['cores']} cores, {machine['memory_gib']} GiB; {' '.join(machine['instructions'])}",
        f"system: Linux {machine['kernel']}, {machine['libc']}, Python {machine['python']}",
        f"versions: {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}",
        f"weights locked in memory: {'yes' if rounds[0]['sealed']['notes']['locked'] else 'no'}",
        f"used by others meanwhile: {machine['others']:.0%} of the cores"
        + ("" if quiet else " - THE MACHINE WAS NOT QUIET: measure again before quoting"),
        "",
        table(HEAD, rows(rounds, size), prose=True),
        "",
        *(f"goal: {goal}" for goal in goals(rounds, size)),
        "",
        table(("part of the sealed load", "full ms", "no hashes ms"), part_rows(rounds)),
        "",
        table(("step, alone, one thread", "GB/s of CPU time"), step_rows(rounds)),
    ]
    return "\n".join(lines)


_PAGE = """\
# Loading a sealed model

Written by `make bench BENCH=load` on {date}; not edited by hand. The machine is one of many: read ratios, not seconds.

    {text}

How to read it: each measurement is a process of its own, with imports done, the file in the page cache, and free memory
that a virtual machine's host has not taken away; it ends when a byte of every page of every tensor was read. Every way
gave the same bytes. Wall and CPU seconds are medians over the rounds; a ratio is the median of the ratios within each
round. "peak / model" is how far the process's resident memory rose, over the model's size; mapped file pages count.
"what limits it" multiplies the rate of each step that a way must take, measured alone in the same rounds, by the
model's size; what that leaves of the measured CPU time is the way's own. Steps in several threads slow each other down,
so the shares are estimates.

The row without chunk hashes exists in this benchmark alone. The product has no such switch: without the signed hashes,
whoever holds the file key could change the model.
"""


def page(text: str) -> str:
    """The page for ``docs/benchmarks/``."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return _PAGE.format(date=date, text=text.replace("\n", "\n    ").replace("    \n", "\n"))
