"""From measured steps to ratios, verdicts, goals and tables.

A ratio is a peer's CPU per request over Pericard's, both from the same round, so above one Pericard is cheaper. What
is said of a row is the median over the rounds, with the lowest and the highest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Record = Mapping[str, Any]
Row = tuple[str, str, int]  # model, encoding, connections; 0 connections: the open loop

OURS, TLS, PLAIN = "pericard", "pericard-tls", "fastapi"
WIN, NOT_BEHIND, SATURATION = 1.10, 0.95, 0.90
QUIET = 0.05


@dataclass(frozen=True)
class Spread:
    """What the rounds found: median, lowest, highest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Iterable[float]) -> Spread:
        """Of at least one number."""
        numbers = list(found)
        return cls(median(numbers), min(numbers), max(numbers))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}–{self.high:.2f})"

    @property
    def verdict(self) -> str:
        """``win`` and ``loss`` are by 1.10 in the median, with every round on the same side of 1; else ``parity``."""
        if self.middle >= WIN and self.low > 1:
            return "win"
        return "loss" if self.middle <= 1 / WIN and self.high < 1 else "parity"


@dataclass
class Goal:
    """What is wanted, in how many places it was looked for, and where it was missed."""

    text: str
    places: int = 0
    missed: list[str] = field(default_factory=list)

    def see(self, place: str, *, reached: bool, found: object) -> None:
        """Note one place."""
        self.places += 1
        if not reached:
            self.missed.append(f"{place}: {found}")

    def __str__(self) -> str:
        if not self.places:
            return f"{self.text}: not measured"
        if not self.missed:
            return f"{self.text}: reached, {self.places} of {self.places}"
        missed = "".join(f"\n  - {place}" for place in self.missed)
        return f"{self.text}: NOT reached in {len(self.missed)} of {self.places}:{missed}"


class Results:
    """All that was measured, by row, server and round."""

    def __init__(self, records: Iterable[Record], labels: Mapping[str, str]) -> None:
        """Sort the records; ``labels`` are the peers' names in tables, in their order."""
        self.labels = labels
        self.missing: dict[str, None] = {}
        self.alone: dict[str, dict[int, Record]] = defaultdict(dict)
        self.steps: dict[Row, dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
        for record in records:
            if record["kind"] == "step":
                row = (record["model"], record["encoding"], record["connections"] if not record["offered"] else 0)
                self.steps[row][record["server"]][record["round"]] = record
            elif record["kind"] == "alone":
                self.alone[record["model"]][record["round"]] = record
            elif record["kind"] == "missing":
                self.missing[record["reason"]] = None

    def rows(self, *, open_loop: bool = False) -> list[Row]:
        """The rows in the order in which they were measured."""
        return [row for row in self.steps if (row[2] == 0) == open_loop]

    def peers(self, row: Row) -> list[str]:
        """The peers that have the row."""
        return [name for name in self.labels if name in self.steps[row]]

    def paired(self, row: Row, one: str, other: str) -> list[tuple[Record, Record]]:
        """Both servers' steps in the rounds that have both."""
        first, second = self.steps[row].get(one, {}), self.steps[row].get(other, {})
        return [(first[number], second[number]) for number in sorted(first.keys() & second.keys())]

    def ratio(self, row: Row, peer: str, ours: str = OURS) -> Spread | None:
        """CPU per request of another over ours."""
        pairs = self.paired(row, peer, ours)
        return Spread.of(theirs["cpu_us"] / ours["cpu_us"] for theirs, ours in pairs) if pairs else None

    def middle(self, row: Row, server: str, key: str) -> float | None:
        """Median of one figure over the rounds."""
        found = [step[key] for step in self.steps[row].get(server, {}).values()]
        return median(found) if found else None

    def saturation(self, model: str, encoding: str) -> Spread | None:
        """Samples a second of ours at the best number of connections, over the bare model's at its best batch size."""
        found = []
        for number, alone in self.alone[model].items():
            rates = [
                self.steps[row][OURS][number]["rate"]
                for row in self.rows()
                if row[:2] == (model, encoding) and number in self.steps[row].get(OURS, {})
            ]
            if rates:
                found.append(max(rates) / max(alone["samples"].values()))
        return Spread.of(found) if found else None

    def wait(self, row: Row) -> Spread | None:
        """Our median latency over that of FastAPI without a batcher plus one ``fdatasync``."""
        alone = self.alone[row[0]]
        found = [
            ours["p50_ms"] / (theirs["p50_ms"] + alone[ours["round"]]["fdatasync_ms"])
            for ours, theirs in self.paired(row, OURS, PLAIN)
            if ours["round"] in alone
        ]
        return Spread.of(found) if found else None


def said(row: Row) -> str:
    """A row in words."""
    model, encoding, connections = row
    return f"{model} {encoding}" + (f" {connections}" if connections else "")


def goals(results: Results) -> list[Goal]:
    """Every goal, with where it was missed."""
    return [_wins(results), _mosec(results), _behind(results), _full(results), _alone(results), _tail(results)]


def _wins(results: Results) -> Goal:
    goal = Goal("wins against all but Mosec in every row")
    _each_ratio(results, goal, lambda _row, peer: peer != "mosec")
    return goal


def _mosec(results: Results) -> Goal:
    goal = Goal("wins against Mosec in JSON at 64 connections and with the null model")
    _each_ratio(
        results, goal, lambda row, peer: peer == "mosec" and (row[0] == "null" or (row[1] == "json" and row[2] == 64))
    )
    return goal


def _each_ratio(results: Results, goal: Goal, counts: Callable[[Row, str], bool]) -> None:
    for row in results.rows():
        for peer in results.peers(row):
            ratio = results.ratio(row, peer)
            if ratio is not None and counts(row, peer):
                place = f"{said(row)} {results.labels[peer]}"
                goal.see(place, reached=ratio.verdict == "win", found=f"{ratio} {ratio.verdict}")


def _behind(results: Results) -> Goal:
    goal = Goal(f"no row below {NOT_BEHIND:.2f} of the best peer")
    for row in results.rows():
        ratios = {peer: ratio for peer in results.peers(row) if (ratio := results.ratio(row, peer)) is not None}
        if ratios:
            best = min(ratios, key=lambda peer: ratios[peer].middle)
            found = f"{results.labels[best]} {ratios[best]}"
            goal.see(said(row), reached=ratios[best].middle >= NOT_BEHIND, found=found)
    return goal


def _full(results: Results) -> Goal:
    goal = Goal(f"StripNet in binary and the ResNet: at least {SATURATION:.0%} of the bare model's samples a second")
    for model, encoding in (("stripnet", "binary"), ("resnet", "json"), ("resnet", "binary")):
        found = results.saturation(model, encoding)
        if found is not None:
            goal.see(f"{model} {encoding}", reached=found.middle >= SATURATION, found=found)
    return goal


def _alone(results: Results) -> Goal:
    goal = Goal("median latency of one connection: at most that of FastAPI without a batcher plus one fdatasync")
    for row in results.rows():
        if row[2] == 1 and (found := results.wait(row)) is not None:
            goal.see(said(row), reached=found.middle <= 1, found=f"{found} of it")
    return goal


def _tail(results: Results) -> Goal:
    goal = Goal("open loop at half of the best peer's capacity: p99 no worse than any peer's")
    for row in results.rows(open_loop=True):
        ours = results.middle(row, OURS, "p99_ms")
        theirs = {
            peer: tail for peer in results.peers(row) if (tail := results.middle(row, peer, "p99_ms")) is not None
        }
        if ours is not None and theirs:
            best = min(theirs, key=lambda peer: theirs[peer])
            found = f"{ours:.2f} ms, {results.labels[best]} {theirs[best]:.2f} ms"
            goal.see(said(row), reached=ours <= theirs[best], found=found)
    return goal


# --- tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(found: Spread | None, *, verdict: bool = True) -> str:
    return "–" if found is None else f"{found} {found.verdict}" if verdict else str(found)


def _cpu(results: Results) -> str:
    def cells(row: Row) -> list[str]:
        ratios = [_ratio(results.ratio(row, peer)) for peer in results.labels]
        return [said(row), _number(results.middle(row, OURS, "cpu_us")), *ratios]

    return table(["row", "Pericard, µs", *results.labels.values()], map(cells, results.rows()))


def _latency(results: Results) -> str:
    rows = []
    for row in results.rows():
        if row[2] == 1:
            sync = median(alone["fdatasync_ms"] for alone in results.alone[row[0]].values())
            p50 = [_number(results.middle(row, server, "p50_ms")) for server in (OURS, *results.labels)]
            rows.append([said((*row[:2], 0)), *p50, _number(sync), _ratio(results.wait(row), verdict=False)])
    head = ["one connection, p50 ms", "Pericard", *results.labels.values(), "fdatasync", "Pericard / (FastAPI + it)"]
    return table(head, rows)


def _saturation(results: Results) -> str:
    rows = []
    for model, encoding in dict.fromkeys(row[:2] for row in results.rows()):
        bare = median(max(alone["samples"].values()) for alone in results.alone[model].values())
        share = _ratio(results.saturation(model, encoding), verdict=False)
        rows.append([f"{model} {encoding}", _number(bare), share])
    return table(["saturation", "bare model, samples/s", "Pericard's share"], rows)


def _open(results: Results) -> str:
    def cells(row: Row) -> list[str]:
        steps = [step for found in results.steps[row].values() for step in found.values()]
        offered = median(step["offered"] for step in steps)
        tails = [_number(results.middle(row, server, "p99_ms")) for server in (OURS, *results.labels)]
        return [said(row), _number(offered), *tails]

    head = ["open loop, p99 ms", "requests/s", "Pericard", *results.labels.values()]
    return table(head, map(cells, results.rows(open_loop=True)))


def _tls(results: Results) -> str:
    rows = [row for row in results.rows() if TLS in results.steps[row]]
    return table(
        ["TLS", "Pericard with TLS, µs", "over without"],
        [
            [said(row), _number(results.middle(row, TLS, "cpu_us")), _ratio(results.ratio(row, TLS), verdict=False)]
            for row in rows
        ],
    )


def report(results: Results, machine: Mapping[str, Any]) -> str:
    """Everything that was found, as Markdown."""
    steps = [step for row in results.steps.values() for found in row.values() for step in found.values()]
    rounds = 1 + max((step["round"] for step in steps), default=-1)
    foreign = median([step["foreign"] for step in steps] or [0.0])
    limited = sum(step["generator"] > 0.9 for step in steps)
    kind = machine["processor"] + (", virtual" if machine["virtual"] else "")
    lines = [
        f"- {rounds} rounds, interleaved; {sum(step['right'] for step in steps)} answers, each checked",
        f"- {kind}, {machine['cores']} cores, {machine['memory_gib']} GiB; {' '.join(machine['instructions'])}",
        f"- Linux {machine['kernel']}, {machine['libc']}, Python {machine['python']}",
        f"- {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}",
        f"- used of the servers' core by others, median of the steps: {foreign:.0%}"
        + ("" if foreign <= QUIET else " – **the machine was not quiet: measure again before quoting**"),
        *([f"- in {limited} steps the generator was over 90 % busy: they say less than they seem"] if limited else []),
        *(f"- not measured: {reason}" for reason in results.missing),
        "",
        *(f"- goal: {goal}" for goal in goals(results)),
        "",
    ]
    parts = [_cpu(results), _latency(results), _saturation(results), _open(results), _tls(results)]
    return "\n".join(lines) + "\n" + "\n\n".join(parts) + "\n"
