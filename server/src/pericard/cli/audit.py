"""``pericard audit verify | show | prove | check | export | report | forward | gaps | prune | clock``: evidence."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pericard.cli import evidence, trust

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def audit() -> None:
    """The audit log: prove that it is whole, and read it."""


for command in (evidence.prove, evidence.check, evidence.export, evidence.report):
    audit.add_command(command)


@audit.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--key", type=_FILE, required=True, help="The log's public key, log.pub.")
@click.option("--head", "heads", type=_FILE, multiple=True, help="A head that left the machine; repeat for more.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def verify(directory: Path, key: Path, heads: tuple[Path, ...], as_json: bool) -> None:
    """Verify the log in DIRECTORY: every record, every signed head, and the heads you bring."""
    from pericard.audit.verify import verify as verify_log
    from pericard.errors import AuditLogInvalid
    from pericard.keys import LogVerifier

    try:
        brought = [path.read_bytes() for path in heads]
    except OSError as error:
        raise AuditLogInvalid(f"{error.filename}: cannot be read") from error
    report = verify_log(directory, verifier=LogVerifier.read(key), heads=brought)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        for name, value in asdict(report).items():
            click.echo(f"{name:<12} {value}")
    proved = f"the first {report.covered} are" if brought else "without a head that left it (--head), none is"
    click.echo(f"verified: {report.size} records; {proved} proved against whoever holds this machine", err=True)


@audit.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--from", "start", type=click.IntRange(0), help="First index.  [default: the newest records]")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Most records.")
@click.option("--last", type=click.IntRange(1), help="The newest so many records.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def show(directory: Path, start: int | None, limit: int, last: int | None, as_json: bool) -> None:
    """Show records of the log in DIRECTORY, the newest unless --from says otherwise. Does not verify them."""
    from pericard.audit import records

    if start is not None and last is not None:
        raise click.UsageError("Give either --from or --last.")
    size = _size(directory)
    most = limit if last is None else last
    first = max(0, size - most) if start is None else start
    shown = 0
    for index, record in records(directory, first, min(first + most, size)):
        shown += 1
        if as_json:
            click.echo(json.dumps(record, sort_keys=True))
        else:
            rest = {key: value for key, value in record.items() if key not in {"index", "time", "event", "v"}}
            words = " ".join(f"{key}={_short(value)}" for key, value in sorted(rest.items()))
            click.echo(f"{index:>8}  {record['time']}  {record['event']:<14} {words}")
    if start is not None and start >= size:
        click.echo(f"no record: the log holds {size}, and --from {start} is beyond its end", err=True)
    elif first + shown < size:
        following = first + shown
        click.echo(f"{shown} of {size} records; --from {following} goes on, --last {most} shows the newest", err=True)
    elif first:
        click.echo(f"{shown} of {size} records, the newest; --from 0 begins with the oldest", err=True)


def _size(directory: Path) -> int:
    """How many records can be read: those under the published head, and what was written since."""
    from pericard.audit import published, records
    from pericard.errors import AuditLogInvalid

    try:
        size = published(directory)
    except AuditLogInvalid:  # a damaged head: this verb shows what is there all the same
        size = 0
    for start in (max(0, size - 1), 0):  # from 0 where the log is shorter than its head says
        index = None
        for index, _ in records(directory, start):  # noqa: B007  (the last one counts)
            pass
        if index is not None:
            return index + 1
    return 0


@audit.command()
@click.argument("directory", type=_DIRECTORY, required=False)
@click.option("--cursor", type=_FILE, help="Where to remember how far it came.")
@click.option("--config", type=_FILE, help="The server's configuration: send to its collector instead.")
@click.option("--follow", is_flag=True, help="Keep waiting for new records.")
def forward(directory: Path | None, cursor: Path | None, config: Path | None, follow: bool) -> None:
    """Send on each new record, at least once: of DIRECTORY to stdout, one JSON line, for a collector's pipe.

    With --config, to the collector that the server's configuration names, while no server does.
    """
    from pericard.forward import send_lines

    if config is not None and directory is None and cursor is None:
        _forward_to_collector(config, follow=follow)
    elif config is None and directory is not None and cursor is not None:
        send_lines(directory, cursor, sys.stdout.buffer, follow=follow)
    else:
        raise click.UsageError("Give DIRECTORY and --cursor, or --config alone.")


def _forward_to_collector(config: Path, *, follow: bool) -> None:
    import threading

    from pericard import settings
    from pericard.daemon import values
    from pericard.forward import Forwarder

    told = values.forward_values(settings.load(config))
    with contextlib.suppress(OSError):  # the cursor says what is wrong with its folder
        Path(told.cursor).parent.mkdir(mode=0o700)
    forwarder = Forwarder(told)
    forwarder.run(threading.Event(), follow=follow)
    click.echo(f"{forwarder.status.sent} records acknowledged; the next one is {forwarder.status.cursor}", err=True)


@audit.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--key", type=_FILE, help="The log's public key, log.pub: a head counts only with its signature.")
@click.option("--from", "start", default=0, type=click.IntRange(0), help="First index that should be there.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def gaps(files: tuple[Path, ...], key: Path | None, start: int, as_json: bool) -> None:
    """Say what is missing or altered in FILES, in which a collector stored what was forwarded; - is stdin."""
    from pericard.audit import note, open_head
    from pericard.audit.checkpoint import default_origin
    from pericard.errors import AuditLogInvalid
    from pericard.forward import gaps as collected
    from pericard.keys import LogVerifier

    verifier = None if key is None else LogVerifier.read(key)

    def opens(signed: bytes) -> note.Head:
        return note.claims(signed) if verifier is None else open_head(signed, default_origin(verifier), verifier)

    try:
        with contextlib.ExitStack() as opened:
            texts = [opened.enter_context(click.open_file(str(name), errors="replace")) for name in files]
            logs = collected.check((line for text in texts for line in text), open_head=opens, start=start)
    except OSError as error:
        raise AuditLogInvalid(f"{error.filename}: cannot be read") from error
    for found in logs:
        _print_gaps(asdict(found), as_json=as_json)
    bad = [found.origin for found in logs if not found.whole]
    if bad:
        click.echo(f"not whole: {', '.join(bad)}", err=True)
        raise click.exceptions.Exit(1)
    signed = "under heads with a good signature" if key else "under heads whose signature was not checked (--key)"
    click.echo(f"nothing is missing; {sum(found.covered for found in logs)} records are {signed}", err=True)


def _print_gaps(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        spans = (f"{first} to {last}" if last > first else f"{first}" for first, last in found["missing"])
        click.echo(f"{name:<12} {(', '.join(spans) or 'none') if name == 'missing' else _plain(value)}")


@audit.command()
@click.option("--config", type=_FILE, default=trust.CONFIG, show_default=True, help="The server's configuration.")
@click.option("--days", type=click.IntRange(1), help="Records stay that long.  [default: audit.retention_days]")
@click.option("--below-floor", is_flag=True, help="Allow fewer than 183 days; this is recorded.")
def prune(config: Path, days: int | None, below_floor: bool) -> None:
    """Remove old records from the log, by whole segments; their leaf hashes stay. The server must be stopped.

    With a collector configured, nothing goes that it has not acknowledged.
    """
    from pericard import settings
    from pericard.audit.pruned import FLOOR_DAYS
    from pericard.engine.pruning import Retention

    found = settings.load(config)
    asked = found.audit.retention_days if days is None else days
    if asked is None:
        raise click.UsageError("Give --days, or set audit.retention_days.")
    if asked < FLOOR_DAYS and not (below_floor or (days is None and found.audit.retention_below_floor)):
        raise click.UsageError(f"Records stay {FLOOR_DAYS} days at least; --below-floor allows less, recorded.")
    cursor = Path(found.forward.cursor) if found.forward else None
    with trust.journal(found) as journal:
        journal.settle()
        gone = Retention(Path(found.audit.directory), asked, cursor).prune(journal.record, now=time.time())
    click.echo(f"{gone} records were pruned; their leaf hashes stay", err=True)


@audit.command()
@click.option("--config", type=_FILE, default=trust.CONFIG, show_default=True, help="The server's configuration.")
@click.option(
    "--accept", is_flag=True, help="Set the recorded time to the clock, recorded. The server must be stopped."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def clock(config: Path, accept: bool, as_json: bool) -> None:
    """Show the clock, licence time, and whether the kernel calls its clock synchronised."""
    from pericard import settings
    from pericard.trust import TrustState
    from pericard.trust.clock import synchronised

    found, now = settings.load(config), int(time.time())
    if accept:
        with trust.journal(found) as journal:
            journal.settle()
            latest = journal.accept_time(now)
    else:
        latest = TrustState(Path(found.trust_state)).latest_time
    shown: dict[str, object] = {
        "clock": _moment(now),
        "recorded": _moment(latest) if latest else "nothing yet",
        "licence_time": _moment(max(now, latest)),
        "synchronised": synchronised(),
    }
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for name, value in shown.items():
        click.echo(f"{name:<13} {value if isinstance(value, str) else 'yes' if value else 'no'}")


def _moment(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _short(value: object) -> str:
    if isinstance(value, dict):
        known = "/".join(str(value[key])[:16] for key in ("name", "version", "manifest") if key in value)
        if known:
            return known
        names = {key: "/".join(part[:16] for part in _plain(key).split("/")) for key in value}
        return "{" + ",".join(f"{names[key]}:{_short(inner)}" for key, inner in sorted(value.items())) + "}"
    text = _plain(value)
    return text[:16] + "…" if len(text) > 24 and " " not in text else text  # noqa: PLR2004  (words are not cut)


def _plain(value: object) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))
