"""``pericard audit verify | show | forward``: evidence, offline."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def audit() -> None:
    """The audit log: prove that it is whole, and read it."""


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
@click.option("--from", "start", default=0, show_default=True, type=click.IntRange(0), help="First index.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Most records.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def show(directory: Path, start: int, limit: int, as_json: bool) -> None:
    """Show records of the log in DIRECTORY. Reads them; does not verify them."""
    from pericard.audit import records

    for count, (index, record) in enumerate(records(directory, start)):
        if count == limit:
            break
        if as_json:
            click.echo(json.dumps(record, sort_keys=True))
        else:
            rest = {key: value for key, value in record.items() if key not in {"index", "time", "event", "v"}}
            words = " ".join(f"{key}={_short(value)}" for key, value in sorted(rest.items()))
            click.echo(f"{index:>8}  {record['time']}  {record['event']:<14} {words}")


@audit.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--cursor", type=_FILE, required=True, help="Where to remember how far it came.")
@click.option("--follow", is_flag=True, help="Keep waiting for new records.")
def forward(directory: Path, cursor: Path, follow: bool) -> None:
    """Write each new record of DIRECTORY to stdout, one JSON line, at least once; for a collector's pipe."""
    from pericard.forward import send_lines

    send_lines(directory, cursor, sys.stdout.buffer, follow=follow)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "/".join(str(value[key])[:16] for key in ("name", "version", "manifest") if key in value)
    text = "".join(letter if letter.isprintable() else "�" for letter in str(value))
    return text if len(text) <= 24 else text[:16] + "…"  # noqa: PLR2004  (hashes are cut, words are not)
