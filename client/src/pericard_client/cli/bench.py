"""``bench``: load on a server, and the figures, with what they are worth."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pericard_client.bench import (
    LATE,
    PERCENTILES,
    Carrier,
    Judge,
    Load,
    Measurement,
    Plan,
    cut,
    payloads,
    synthetic,
)
from pericard_client.cli.verbs import connect, only_model
from pericard_client.cli.voice import EXIT_FAILED, EXIT_INTERRUPTED, NAME, lines, report, say
from pericard_client.client.conversation import Conversation
from pericard_client.formats import Strips, prepare, read
from pericard_client.models import ModelMetadata

_LONGEST = 86_400.0  # seconds; a run that is bounded by its requests alone ends then at the latest
_USUAL = 10.0
_CLOSED, _OPEN = 8, 256
_PIPE_WIDTH = 100
_MILLI = 1000


@dataclass(slots=True)
class BenchRun:
    """One run of ``bench``."""

    options: dict[str, Any]

    def run(self) -> int:
        """Measure, print, and return the exit code."""
        options, plan = self.options, self._plan()
        with connect(options) as client:
            name = options["model"] or only_model(client.models())
            metadata = client.metadata(name)
        strips = self._strips(metadata)
        talk = _conversation(options)
        requests = payloads(talk, metadata, strips, cut(strips, options["items"]), options["encoding"])
        carrier = Carrier(talk.address, talk.trust, talk.timeout)
        load = Load(plan, options["items"], carrier, requests, Judge(options["encoding"], options["items"]))
        found = load.run()
        if options["out"] == "json":
            click.echo(json.dumps(_document(found, plan, metadata, options)))
        else:
            _show(found, plan, metadata, options)
        return _outcome(found, plan)

    def _plan(self) -> Plan:
        options = self.options
        rate, requests = options["rate"], options["requests"]
        return Plan(
            concurrency=options["concurrency"] or (_CLOSED if rate is None else _OPEN),
            duration=options["duration"] or (_USUAL if requests is None else _LONGEST),
            warmup=options["warmup"],
            requests=requests,
            rate=rate,
            arrivals=options["arrivals"],
            seed=options["seed"],
        )

    def _strips(self, metadata: ModelMetadata) -> Strips:
        options = self.options
        if options["input"] is None:
            return synthetic(metadata, options["items"], options["seed"])
        leads = tuple(name.strip() for name in (options["leads"] or "").split(",") if name.strip())
        recording = read(options["input"], sampling_rate=options["sampling_rate"], unit=options["unit"], leads=leads)
        return prepare(recording, metadata, leads=tuple(options["lead"]))


def _outcome(found: Measurement, plan: Plan) -> int:
    """Say what keeps the figures from being what was asked for; the highest exit code of it."""
    code = 0
    for name, count in found.failures.items():
        code = max(code, report(found.examples[name], f"{count} of {found.started} requests"))
    if not found.rate_reached:
        reason = (
            "the generator had too little processor time"
            if found.generator_bound
            else f"all {plan.concurrency} connections waited for the server"
        )
        say(
            f"rate: {plan.rate:g}/s was not reached: {found.backlog} requests were due and not sent by the end, the "
            f"first for {found.backlog_age:.1f} s; {reason}",
            "latencies of such a run grow with its length: ask for less, or allow more with --concurrency",
        )
        code = max(code, EXIT_FAILED)
    if not found.started:
        say("requests: none was due in the time that is measured", "allow more time, or a higher rate")
        code = max(code, EXIT_FAILED)
    if found.generator_bound:
        how = f"{found.cpu:.0%} of one core, woke {_ms(found.lag[0])} ms late"
        click.echo(
            f"{NAME}: warning: the generator was the limit ({how}): these figures are its own as much as the server's; "
            "run it on a machine with idle cores",
            err=True,
        )
    return EXIT_INTERRUPTED if found.interrupted else code


def _conversation(options: dict[str, Any]) -> Conversation:
    """What the client would say with these options; a request of the load is never repeated."""
    return Conversation(
        options["server"],
        token=os.environ.get("PERICARD_TOKEN") or None,
        token_file=options["token_file"],
        ca_file=options["ca"],
        timeout=options["timeout"],
        retries=0,
        allow_plaintext=options["allow_plaintext"],
    )


def _ms(seconds: float) -> str:
    return f"{seconds * _MILLI:.2f}"


def _load_in_words(plan: Plan, options: dict[str, Any]) -> str:
    items, encoding = options["items"], options["encoding"]
    what = f"{encoding}, {items} strip{'s' if items > 1 else ''} a request"
    if plan.rate is None:
        return f"closed loop, {plan.concurrency} at once; {what}"
    return f"open loop, {plan.rate:g} requests/s, {plan.arrivals}, at most {plan.concurrency} at once; {what}"


def _show(found: Measurement, plan: Plan, metadata: ModelMetadata, options: dict[str, Any]) -> None:
    pace = f"{found.requests_per_second:.1f} requests/s, {found.items_per_second:.1f} strips/s"
    failed = ", ".join(f"{count} {name}" for name, count in found.failures.items())
    identity = metadata.identity
    lines(
        [
            ("model", f"{identity.name} {identity.version} (sequence {identity.sequence})"),
            ("load", _load_in_words(plan, options)),
            ("measured", f"{found.seconds:.1f} s after {plan.warmup:g} s of warm-up{_broken_off(found)}"),
            ("answered", f"{found.answered} of {found.started} requests: {pace}"),
            ("failed", failed or "none"),
        ]
    )
    if plan.rate is not None:
        lines(
            [
                ("late", f"{found.late} were sent more than {LATE * _MILLI:g} ms after they were due"),
                ("backlog", f"{found.backlog} due and not sent at the end; {found.in_flight} sent, not yet answered"),
            ]
        )
    woke = f"woke {_ms(found.lag[0])} ms late (p50), {_ms(found.lag[1])} ms (p99)"
    lines([("generator", f"{found.cpu:.0%} of one core; {woke}")])
    Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(_table(found))


def _broken_off(found: Measurement) -> str:
    return f", broken off with {found.unanswered} requests unanswered" if found.interrupted else ""


def _table(found: Measurement) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=True, padding=(0, 1))
    table.add_column("latency", no_wrap=True)
    for name in (*PERCENTILES, "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("ms", *(_ms(found.latencies[name]) if found.latencies else "" for name in (*PERCENTILES, "max")))
    return table


def _document(found: Measurement, plan: Plan, metadata: ModelMetadata, options: dict[str, Any]) -> dict[str, Any]:
    identity = metadata.identity
    return {
        "model": {"name": identity.name, "version": identity.version, "manifest": identity.manifest},
        "load": {
            "loop": "closed" if plan.rate is None else "open",
            "concurrency": plan.concurrency,
            "rate": plan.rate,
            "arrivals": None if plan.rate is None else plan.arrivals,
            "encoding": options["encoding"],
            "items": options["items"],
            "warmup_seconds": plan.warmup,
            "seed": plan.seed,
        },
        "seconds": found.seconds,
        "interrupted": found.interrupted,
        "requests": {
            "sent": found.started,
            "answered": found.answered,
            "failed": found.failures,
            "late": found.late,
            "backlog": found.backlog,
            "backlog_seconds": found.backlog_age,
            "in_flight_at_end": found.in_flight,
            "unanswered": found.unanswered,
        },
        "requests_per_second": found.requests_per_second,
        "strips_per_second": found.items_per_second,
        "rate_reached": found.rate_reached,
        "latency_ms": {name: seconds * _MILLI for name, seconds in found.latencies.items()},
        "latency_samples": found.samples,
        "generator": {
            "cpu": found.cpu,
            "lag_ms": {"p50": found.lag[0] * _MILLI, "p99": found.lag[1] * _MILLI},
            "bound": found.generator_bound,
        },
    }
