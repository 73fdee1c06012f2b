"""Serving, CPU per request: Pericard with authentication, audit and receipts, beside seven other servers.

In each round and for each model all servers are started anew on one core; then every row (an encoding, a number of
connections) takes each of them once, in a new order and while the others are stopped, so that what is compared was
measured within seconds. Pericard is started as a site would start it. Every answer's numbers are checked; the exit
status is 1 if one was wrong, else 0.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
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
from peers import PEERS, Missing, install, pins
from processes import Generator, Server, alone, cores, free_port, settle, started
from servers.bench_models import MODELS
from verdicts import OURS, TLS, Results, report

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "benchmarks" / "serve.md"
MARK = "<!-- Everything below this line is written by the benchmark. -->\n"
ENCODINGS = ("json", "binary")
_READY_SECONDS = 240
_LEAST_CAPACITY = 4.0  # requests a second; below that an open loop of seconds says nothing
_TLS_CONNECTIONS = 32
#: How much longer a step takes where one request takes long.
_LONGER = {"small": 1.0, "null": 1.0, "stripnet": 1.5, "resnet": 2.0}


@dataclass
class Bench:
    """One run: what is measured, with what, and what was found."""

    options: argparse.Namespace
    folder: Path
    generator: Generator
    core: int
    headers: Mapping[str, str]
    peers: list[str]
    records: list[dict[str, Any]] = field(default_factory=list)
    wrong: bool = False
    order: random.Random = field(default_factory=lambda: random.Random(0))

    def note(self, kind: str, **found: Any) -> None:
        """Keep a record, in memory and on disk."""
        self.records.append({"kind": kind, **found})
        with (self.options.out / "serve.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(self.records[-1]) + "\n")

    def miss(self, what: str, error: Mapping[str, Any]) -> None:
        """Note what could not be measured, and why."""
        self.wrong = self.wrong or "wrong" in error
        if not any(record.get("reason", "").startswith(f"{what}:") for record in self.records):
            sys.stderr.write(f"serve: {what}: {error['error']}\n")
            self.note("missing", reason=f"{what}: {error['error']}")

    # --- servers

    @contextmanager
    def servers(self, model: str, questions: wire.Questions, number: int) -> Iterator[dict[tuple[Server, str], Path]]:
        """Every server with this model, ready; for each and each encoding that it answers, the questions."""
        with ExitStack() as stack:
            running = [stack.enter_context(self._start(name, model, number)) for name in (OURS, TLS, *self.peers)]
            offered: dict[tuple[Server, str], Path] = {}
            deadline = time.monotonic() + _READY_SECONDS
            for server in running:
                if server.tls and not self.generator.tls:
                    self.miss("TLS", {"error": "the generator was built without OpenSSL's headers (libssl-dev)"})
                    continue
                for encoding, file in self._questions(server, questions).items():
                    if self._ready(server, f"{server.name}, {model}, {encoding}", file, deadline):
                        offered[server, encoding] = file
            if not any(server.name == OURS for server, _ in offered):
                raise SystemExit("serve: Pericard answered nothing")
            for server in running:
                server.pause()
            yield offered
            for server in running:  # all at once; each is waited for when the stack unwinds
                server.end()

    @contextmanager
    def _start(self, name: str, model: str, number: int) -> Iterator[Server]:
        folder, port = self.folder / f"{model}-{number}-{name}", free_port()
        folder.mkdir()
        environment: dict[str, str] = {}
        if name in (OURS, TLS):
            command = hospital.command(self.folder / "site", folder, model, port, tls=name == TLS)
        else:
            command, environment = PEERS[name].start(folder, port, model)
        with started(name, port, model, command, environment, folder=folder, core=self.core) as server:
            server.tls = name == TLS
            yield server
        shutil.rmtree(folder)

    def _questions(self, server: Server, questions: wire.Questions) -> dict[str, Path]:
        ours = server.name in (OURS, TLS)
        dialects = wire.PERICARD if ours else PEERS[server.name].dialects
        headers = self.headers if ours else {}
        wanted = self.options.encodings
        return {each: questions.file(dialects[each], headers) for each in wanted if each in dialects}

    def _ready(self, server: Server, what: str, file: Path, deadline: float) -> bool:
        """Wait for a right answer on each of a few connections; a refusal may mean that the server is not up yet."""
        while True:
            found = self.generator.step(server, file, connections=4)
            if "error" not in found:
                return True
            over = time.monotonic() > deadline or server.process.poll() is not None
            if "wrong" in found or over or self._settled(server, found):
                if server.process.poll() is not None:
                    found["error"] = f"ended: {server.last_words()}"
                self.miss(what, found)
                return False
            time.sleep(0.1)

    @staticmethod
    def _settled(server: Server, found: Mapping[str, Any]) -> bool:
        """Pericard says by 4xx that it does not know an encoding, and listens only when it is ready."""
        return server.name in (OURS, TLS) and "HTTP 4" in found["error"]

    # --- measuring

    def round(self, model: str, questions: wire.Questions, number: int) -> None:
        """All rows of one model once."""
        seconds = self.options.seconds * _LONGER[model]
        about = {"round": number, "model": model}
        self.note("alone", **about, **alone(model, seconds / 2, folder=self.folder, core=self.core))
        with self.servers(model, questions, number) as offered:
            for (server, _), file in offered.items():
                with server.awake():
                    self.generator.step(server, file, connections=_TLS_CONNECTIONS, seconds=seconds / 3)  # warm
            for encoding in self.options.encodings:
                best = 0.0
                for connections in self.options.concurrency:
                    for server, file in self._turns(offered, encoding, tls=connections == _TLS_CONNECTIONS):
                        load = {"connections": connections, "seconds": seconds}
                        rate = self._step(server, file, {**about, "encoding": encoding, "offered": 0}, load)
                        best = max(best, rate if server.name not in (OURS, TLS) else 0.0)
                if best >= _LEAST_CAPACITY:
                    for server, file in self._turns(offered, encoding, tls=False):
                        load = {"connections": 64, "seconds": 2 * seconds, "rate": best / 2}
                        self._step(server, file, {**about, "encoding": encoding, "offered": best / 2}, load)

    def _turns(
        self, offered: Mapping[tuple[Server, str], Path], encoding: str, *, tls: bool
    ) -> list[tuple[Server, Path]]:
        """The servers that take part in a row, in a new order."""
        turns = [
            (server, file) for (server, each), file in offered.items() if each == encoding and (tls or not server.tls)
        ]
        return self.order.sample(turns, len(turns))

    def _step(self, server: Server, file: Path, about: Mapping[str, Any], load: Mapping[str, Any]) -> float:
        """One step; the rate of its answers."""
        with server.awake():
            found = self.generator.step(server, file, **load)
        if "error" in found:
            what = f"{server.name}, {about['model']}, {about['encoding']}, {load['connections']} connections"
            self.miss(f"{what}{', open loop' if about['offered'] else ''}", found)
            return 0.0
        self.note("step", **about, server=server.name, connections=load["connections"], **found)
        return float(found["rate"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH=serve")

    def some(known: Mapping[str, object] | tuple[str, ...]) -> dict[str, Any]:
        return {"nargs": "+", "choices": list(known), "default": list(known)}

    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", **some(MODELS))
    parser.add_argument("--peers", **some(PEERS))
    parser.add_argument("--encodings", **some(ENCODINGS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--seconds", type=float, default=0.8, help="of one step; up to twice that with larger models")
    parser.add_argument("--quick", action="store_true", help="try everything once, shortly")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder for the records")
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks/serve.md as it is")
    options = parser.parse_args()
    options.whole = not options.no_page and all(
        getattr(options, name) == parser.get_default(name)
        for name in ("rounds", "models", "peers", "encodings", "concurrency", "seconds", "quick")
    )
    if options.quick:
        options.rounds, options.concurrency, options.seconds = 1, [1, 32], 0.3
    if options.rounds < 1 or options.seconds <= 0 or min(options.concurrency) < 1:
        parser.error("--rounds, --seconds, --concurrency: must be positive")
    options.out = options.out.resolve()
    return options


def _versions(peers: list[str]) -> dict[str, str]:
    found = {name: version(name) for name in ("pericard-server", "torch", "numpy", "fastapi", "uvicorn")}
    for packages in filter(None, (PEERS[name].packages for name in peers)):
        first = next(line for line in pins(packages).splitlines() if "==" in line)
        found |= dict([first.split("==")])
    return found


def _installed(bench: Bench) -> list[str]:
    found = []
    for name in bench.options.peers:
        try:
            install(PEERS[name].packages)
            found.append(name)
        except (Missing, subprocess.TimeoutExpired) as error:
            bench.miss(PEERS[name].label, {"error": str(error)})
    return found


def _measure(options: argparse.Namespace, folder: Path) -> Bench:
    core, other = cores()
    sys.stderr.write("serve: sealing the models, building the generator\n")
    headers = hospital.make(folder / "site", options.models)
    settle(other)
    bench = Bench(options, folder, Generator(folder, other, core), core, headers, [])
    bench.peers = _installed(bench)
    for model in options.models:
        questions = wire.Questions(folder, model)
        for number in range(options.rounds):
            sys.stderr.write(f"serve: {model}, round {number + 1} of {options.rounds}\n")
            bench.round(model, questions, number)
    return bench


def main() -> int:
    """Measure, print, and write the records and the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serve.jsonl").unlink(missing_ok=True)
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="serve-", dir=options.out) as folder:
        bench = _measure(options, Path(folder))
    machine["versions"] = _versions(bench.peers)
    bench.note("machine", **machine)
    labels = {name: PEERS[name].label for name in bench.peers}
    text = report(Results(bench.records, labels), machine)
    sys.stdout.write(text)
    if options.whole:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        kept = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        PAGE.write_text(f"{kept}{MARK}\nMeasured on {date}.\n\n{text}", encoding="utf-8")
    return int(bench.wrong)


if __name__ == "__main__":
    sys.exit(main())
