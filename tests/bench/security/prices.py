"""From measured steps to ratios, goals and tables.

A price is the CPU of an answer with security on over that with it off, both from the same round. What a flood leaves is
the valid answers in a second of the server's CPU over those in quiet, in the same round: that is the throughput of a
core that the server has for itself, whatever else the machine did meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from verdicts import Spread, said, table

Row = tuple[str, str, int]
Step = Mapping[str, Any]

#: What a price should not pass.
MOST: dict[Row, float] = {("small", "json", 32): 1.35, ("small", "binary", 32): 1.35, ("null", "binary", 32): 1.60}
LEAST_RATE = 0.90
MOST_LOGGED = 1_000_000  # bytes, of a minute
GOAL_FLOOD = "kept"
_QUIET = 0.05


@dataclass
class Found:
    """All that was measured."""

    prices: dict[Row, dict[str, dict[int, Step]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    floods: dict[str | None, dict[int, Step]] = field(default_factory=lambda: defaultdict(dict))
    log: dict[str, int] = field(default_factory=dict)

    def price(self, row: Row, variant: str, number: int, step: Step) -> None:
        """Keep a step of a price."""
        self.prices[row][variant][number] = step

    def flood(self, kind: str | None, number: int, step: Step) -> None:
        """Keep a step under a flood; None is quiet."""
        self.floods[kind][number] = step

    def logged(self, **sizes: int) -> None:
        """Keep what all floods together left behind: bytes in each log, and refusals that the audit log tells of."""
        self.log = sizes

    def all(self) -> Iterator[dict[str, Any]]:
        """Records, one for each step."""
        for row, variants in self.prices.items():
            for variant, steps in variants.items():
                yield from ({"row": row, "variant": variant, "round": number, **step} for number, step in steps.items())
        for kind, steps in self.floods.items():
            yield from ({"flood_kind": kind, "round": number, **step} for number, step in steps.items())
        yield {"log": self.log}

    def ratio(self, row: Row) -> Spread:
        """CPU of an answer with security on over off."""
        on, off = self.prices[row]["on"], self.prices[row]["off"]
        return Spread.of(on[number]["cpu_us"] / off[number]["cpu_us"] for number in on.keys() & off.keys())

    def left(self, kind: str) -> Spread:
        """Valid answers in a second of the server's CPU, under a flood over quiet."""
        quiet, under = self.floods[None], self.floods[kind]
        return Spread.of(quiet[number]["cpu_us"] / under[number]["cpu_us"] for number in under.keys() & quiet.keys())

    def asked(self) -> int:
        """Refused credentials that were sent, in all floods."""
        return sum(step["flood"].get("asked", 0) for kind in self.floods if kind for step in self.floods[kind].values())

    def flooded(self) -> float:
        """Seconds of all floods."""
        return sum(step["flood"]["seconds"] for kind in self.floods if kind for step in self.floods[kind].values())


def _goal(text: str, found: object, *, reached: bool) -> str:
    return f"- goal: {text}: {'reached' if reached else 'NOT reached'}, {found}"


def _goals(found: Found) -> list[str]:
    lines = [
        _goal(f"{said(row)}: at most {most:.2f} times the CPU", ratio, reached=ratio.middle <= most)
        for row, most in MOST.items()
        if row in found.prices
        for ratio in [found.ratio(row)]
    ]
    if found.floods:
        left = found.left(GOAL_FLOOD)
        text = f"a flood over connections that are kept leaves valid callers {LEAST_RATE:.0%} of their throughput"
        lines.append(_goal(text, left, reached=left.middle >= LEAST_RATE))
        minutes = found.flooded() / 60
        size = sum(found.log[name] for name in ("audit", "text", "said")) / minutes
        text = f"a minute of flood leaves less than {MOST_LOGGED} bytes in all logs"
        lines.append(_goal(text, f"{size:.0f}", reached=size < MOST_LOGGED))
    return lines


def _exact(found: Found) -> bool:
    """Whether every refusal is told of. One that was on its way at a flood's end may be missing from either count."""
    if not found.floods:
        return True
    rounds = sum(len(steps) for kind, steps in found.floods.items() if kind)
    return abs(found.log["told"] - found.asked()) <= 100 * rounds  # connections of a flood


def _prices(found: Found) -> str:
    rows = []
    for row, variants in found.prices.items():
        costs = [median(step["cpu_us"] for step in variants[name].values()) for name in ("on", "off")]
        waits = [median(step["p50_ms"] for step in variants[name].values()) for name in ("on", "off")]
        ratio = found.ratio(row)
        rows.append(
            [said(row), *(f"{cost:.0f}" for cost in costs), str(ratio), *(f"{wait:.2f}" for wait in waits)],
        )
    return table(["row", "on, µs", "off, µs", "on / off", "on, p50 ms", "off, p50 ms"], rows)


def _floods(found: Found) -> str:
    rows = []
    for kind, steps in found.floods.items():
        rate, tail = (median(step[name] for step in steps.values()) for name in ("rate", "p99_ms"))
        if kind is None:
            rows.insert(0, ["quiet", f"{rate:.0f}", "", f"{tail:.1f}", "", "", ""])
            continue
        counts = [step["flood"] for step in steps.values()]
        per = [sum(one.get(name, 0) for one in counts) / sum(one["seconds"] for one in counts) for name in _COUNTED]
        rows.append([kind, f"{rate:.0f}", str(found.left(kind)), f"{tail:.1f}", *(f"{each:.0f}" for each in per)])
    return table(["flood", "valid answers/s", "throughput left", "p99 ms", "asked/s", "401/s", "429/s"], rows)


_COUNTED = ("asked", "401", "429")


def report(found: Found, machine: Mapping[str, Any]) -> tuple[str, bool]:
    """Everything that was found as Markdown, and whether every refusal was counted."""
    steps = [step for variants in found.prices.values() for each in variants.values() for step in each.values()]
    foreign = median([step["foreign"] for step in steps] or [0.0])
    exact = _exact(found)
    kind = machine["processor"] + (", virtual" if machine["virtual"] else "")
    lines = [
        f"- {kind}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"- Linux {machine['kernel']}, Python {machine['python']}",
        f"- {', '.join(f'{name} {number}' for name, number in machine['versions'].items())}",
        f"- used of the servers' core by others, median of the steps: {foreign:.0%}"
        + ("" if foreign <= _QUIET else " – **the machine was not quiet: measure again before quoting**"),
        *_goals(found),
    ]
    if found.floods:
        lines.append(
            f"- {found.asked()} refused credentials in {found.flooded():.0f} s; the audit log tells of"
            f" {found.log['told']}{'' if exact else ' – **not all were counted**'}; bytes: audit log"
            f" {found.log['audit']}, text log {found.log['text']}, the daemon's words {found.log['said']}"
        )
    parts = [_prices(found)] * bool(found.prices) + [_floods(found)] * bool(found.floods)
    return "\n".join(lines) + "\n\n" + "\n\n".join(parts) + "\n", exact
