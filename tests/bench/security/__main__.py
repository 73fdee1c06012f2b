"""Security's price: authentication, audit and receipts on against off, and a flood of refused credentials.

Both variants of the daemon are started anew in each round, on one core; every row takes each of them once, in a new
order and while the other is stopped. The flood is poured on the daemon as it ships, in turns with quiet. The exit
status is 1 if an answer was wrong or a refusal was not counted, else 0.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hospital
import wire
from machine import describe
from prices import Found, report
from processes import Generator, Server, cores, free_port, pinned, settle, started

from pericard.audit import records

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "security.md"
MARK = "<!-- Everything below this line is written by the benchmark. -->\n"
#: Model, encoding and connections, and what the ratio should not pass.
ROWS = (("small", "json", 32), ("small", "binary", 32), ("null", "binary", 32), ("small", "json", 1))
FLOODS = {"kept": 32, "more than may wait": 96, "anew": 32}  # connections
_READY_SECONDS = 120
_LEAD_SECONDS = 0.3  # from the flood's beginning to the measurement's


@dataclass
class Bench:
    """One run: with what, and what was found."""

    options: argparse.Namespace
    folder: Path
    generator: Generator
    core: int
    other: int
    headers: Mapping[str, str]
    found: Found = field(default_factory=Found)
    wrong: bool = False
    order: random.Random = field(default_factory=lambda: random.Random(0))

    @contextmanager
    def server(self, model: str, number: int, variant: str, **settings: object) -> Iterator[Server]:
        """One variant of the daemon."""
        run, port = self.folder / f"{model}-{number}-{variant}", free_port()
        command = hospital.command(self.folder / "site", run, model, port, tls=False)
        if settings:
            shown = json.loads((run / "server.yaml").read_text())
            (run / "server.yaml").write_text(json.dumps(shown | settings))
        if variant == "off":
            command = [sys.executable, HERE / "without.py", *command[3:]]
        with started(variant, port, model, command, {}, folder=run, core=self.core) as server:
            yield server

    def ready(self, server: Server, questions: Path) -> None:
        """Wait for a right answer."""
        deadline = time.monotonic() + _READY_SECONDS
        while "error" in (found := self.generator.step(server, questions, connections=4)):
            if "wrong" in found or time.monotonic() > deadline or server.process.poll() is not None:
                raise SystemExit(f"security: {server.name}: {found['error']}; {server.last_words()}")
            time.sleep(0.1)

    def step(self, server: Server, questions: Path, connections: int, seconds: float) -> dict[str, Any]:
        """One step; an error ends the run, since a figure without it would mislead."""
        found = self.generator.step(server, questions, connections=connections, seconds=seconds)
        if "error" in found:
            raise SystemExit(f"security: {server.name}: {found['error']}")
        return found

    # --- prices

    def price(self, model: str, number: int) -> None:
        """Every row of one model once with each variant."""
        rows = [row for row in ROWS if row[0] == model]
        questions = wire.Questions(self.folder, model)
        files = {row: questions.file(wire.PERICARD[row[1]], self.headers) for row in rows}
        with ExitStack() as stack:
            servers = [stack.enter_context(self.server(model, number, variant)) for variant in ("on", "off")]
            for server in servers:
                self.ready(server, files[rows[0]])
                for row in rows:
                    self.step(server, files[row], 32, self.options.seconds / 3)  # warm
                server.pause()
            for row in rows:
                for server in self.order.sample(servers, 2):
                    with server.awake():
                        step = self.step(server, files[row], row[2], self.options.seconds)
                    self.found.price(row, server.name, number, step)
            for server in servers:
                server.end()

    # --- a flood

    def flood(self) -> None:
        """Quiet and each kind of flood in turns, while 32 valid callers ask as fast as they are answered."""
        questions = wire.Questions(self.folder, "small").file(wire.PERICARD["json"], self.headers)
        run = self.folder / "small-0-flood"
        log = {"path": str(run / "refusals.log")}
        seconds = self.options.flood_seconds / self.options.rounds
        with self.server("small", 0, "flood", refusals_log=log) as server:
            self.ready(server, questions)
            self.step(server, questions, 32, seconds / 2)  # warm
            for number in range(self.options.rounds):
                for kind in self.order.sample([None, *FLOODS], 1 + len(FLOODS)):
                    found = self._pour(server, questions, kind, seconds)
                    self.found.flood(kind, number, found)
            server.end()
            server.process.wait(30)  # the last minute's sums are written
            said = server.log.stat().st_size
        told = [record for _, record in records(run / "audit") if record.get("event") == "refused"]
        text = sum(path.stat().st_size for path in run.glob("refusals.log*"))
        self.found.logged(
            audit=sum(len(json.dumps(record, separators=(",", ":"))) + 400 for record in told),
            text=text, said=said, told=sum(int(record.get("count", record.get("suppressed", 0))) for record in told),
        )  # fmt: skip

    def _pour(self, server: Server, questions: Path, kind: str | None, seconds: float) -> dict[str, Any]:
        time.sleep(2.0)  # what the last flood left waiting is over
        if kind is None:
            return self.step(server, questions, 32, seconds)
        words = [server.port, FLOODS[kind], seconds + 2 * _LEAD_SECONDS, int(kind != "anew")]
        command = pinned(self.other, [sys.executable, HERE / "flood.py", *words])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            time.sleep(_LEAD_SECONDS)
            found = self.step(server, questions, 32, seconds)
            out, _ = process.communicate(timeout=seconds + 60)
        return found | {"flood": json.loads(out)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH=security")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one step of a price")
    parser.add_argument("--flood-seconds", type=float, default=60.0, help="of each kind of flood, in all rounds")
    parser.add_argument("--only", choices=("prices", "flood"))
    parser.add_argument("--quick", action="store_true", help="try everything once, shortly")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder for the records")
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks/security.md as it is")
    options = parser.parse_args()
    names = ("rounds", "seconds", "flood_seconds", "only", "quick")
    whole = all(getattr(options, name) == parser.get_default(name) for name in names)
    options.page = whole and not options.no_page
    if options.quick:
        options.rounds, options.seconds, options.flood_seconds = 1, 0.3, 1.5
    if options.rounds < 1 or min(options.seconds, options.flood_seconds) <= 0:
        parser.error("--rounds, --seconds, --flood-seconds: must be positive")
    options.out = options.out.resolve()
    return options


def _measure(options: argparse.Namespace, folder: Path) -> Bench:
    core, other = cores()
    sys.stderr.write("security: sealing the models, building the generator\n")
    headers = hospital.make(folder / "site", ("small", "null"))
    settle(other)
    bench = Bench(options, folder, Generator(folder, other, core), core, other, headers)
    if options.only != "flood":
        for model in dict.fromkeys(row[0] for row in ROWS):
            for number in range(options.rounds):
                sys.stderr.write(f"security: {model}, round {number + 1} of {options.rounds}\n")
                bench.price(model, number)
    if options.only != "prices":
        sys.stderr.write("security: the flood\n")
        bench.flood()
    return bench


def main() -> int:
    """Measure, print, and write the records and the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    machine = describe()
    machine["versions"] = {name: version(name) for name in ("pericard-server", "torch", "uvicorn")}
    with tempfile.TemporaryDirectory(prefix="security-", dir=options.out) as folder:
        bench = _measure(options, Path(folder))
    with (options.out / "security.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in (machine, *bench.found.all()))
    text, exact = report(bench.found, machine)
    sys.stdout.write(text)
    if options.page:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        kept = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        PAGE.write_text(f"{kept}{MARK}\nMeasured on {date}.\n\n{text}", encoding="utf-8")
    return int(not exact)


if __name__ == "__main__":
    sys.exit(main())
