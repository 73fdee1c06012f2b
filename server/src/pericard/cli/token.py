"""``pericard token create | rotate | list | revoke``: API tokens."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.auth import Issued

_NEVER = "never"
_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


def _seconds(_: click.Context, __: click.Parameter, value: str) -> int:
    """``7d``, ``12h``, ``30m`` or ``0``, in seconds."""
    match = re.fullmatch(r"(0)|([0-9]{1,6})([dhms])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a duration such as 7d, 12h or 0")
    return 0 if match[1] else int(match[2]) * _UNITS[match[3]]


_OUTPUT = click.option("-o", "--output", type=FILE, help="Write the token to a new file, mode 0600, instead of stdout.")
_TOKENS = click.option(
    "--tokens",
    type=FILE,
    default=Path("/etc/pericard/tokens.json"),
    show_default=True,
    help="The site's token file, as in server.yaml.",
)


@click.group()
def token() -> None:
    """API tokens: what callers send as Authorization: Bearer."""


@token.command()
@click.argument("name")
@click.option(
    "--operation", "operations", multiple=True,
    help="predict, metadata, metrics, audit or admin; repeat for more.  [default: predict, metadata]",
)  # fmt: skip
@click.option("--model", "models", multiple=True, help="Model name or pattern; repeat for more.")
@click.option("--by-policy", is_flag=True, help="Leave it all to the site's policy, which names NAME.")
@click.option("--days", default=365, show_default=True, type=int, help="How long it is valid.")
@_OUTPUT
@_TOKENS
def create(
    name: str,
    operations: tuple[str, ...],
    models: tuple[str, ...],
    by_policy: bool,
    days: int,
    output: Path | None,
    tokens: Path,
) -> None:
    """Make a token for NAME. It is shown once; only a keyed hash of it is kept."""
    from pericard.auth import TokenFile

    if by_policy and (operations or models):
        raise click.UsageError("--by-policy leaves operations and models to the policy")
    if not by_policy and not models:
        raise click.UsageError("Missing option '--model', or '--by-policy'.")
    if not by_policy:
        operations = operations or ("predict", "metadata")

    def make() -> Issued:
        return TokenFile(tokens).create(name, operations=operations, models=models, days=days)

    issued = _show(make, output)
    click.echo(f"token {issued.record.id} for {name}, until {_day(issued.record.expires)}", err=True)


@token.command()
@click.argument("token_id")
@click.option(
    "--overlap", callback=_seconds, default="7d", show_default=True, metavar="DURATION",
    help="How long the old token stays valid beside the new one; 0 ends it at once.",
)  # fmt: skip
@click.option("--days", type=int, help="How long the new token is valid; by default as long as the old one was.")
@_OUTPUT
@_TOKENS
def rotate(token_id: str, overlap: int, days: int | None, output: Path | None, tokens: Path) -> None:
    """Make a new token in the place of the one with this id, for the same caller and with the same grants."""
    from pericard.auth import TokenFile

    file = TokenFile(tokens)
    issued = _show(lambda: file.rotate(token_id, overlap=overlap, days=days), output)
    ends = {record.id: record.expires for record in file.records()}[token_id]
    click.echo(f"token {issued.record.id} for {issued.record.name}, until {_day(issued.record.expires)}", err=True)
    click.echo(f"the old one, {token_id}, is valid until {_moment(ends)}", err=True)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_TOKENS
def list_(as_json: bool, tokens: Path) -> None:
    """Show the tokens that are kept, without their secrets."""
    from pericard.auth import TokenFile

    file, now = TokenFile(tokens), int(time.time())
    records, uses = file.records(), file.uses.read()
    rows = [
        {
            "id": record.id,
            "name": record.name,
            "operations": list(record.operations),
            "models": list(record.models),
            "created": _day(record.created),
            "expires": _day(record.expires),
            "days_left": max(0, record.expires - now) // _UNITS["d"],
            "last_used": _moment(uses[record.id]) if record.id in uses else None,
        }
        for record in records
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row, record in zip(rows, records, strict=True):
        own = f"{','.join(record.operations)} on {','.join(record.models)}"
        allowed = own if record.operations else "by the policy"
        left = f"{row['days_left']} days left" if record.expires > now else "ended"
        used = row["last_used"] or _NEVER
        click.echo(f"{record.id}  {record.name:<20} {allowed:<40} until {row['expires']}  {left}  last used {used}")


@token.command()
@click.argument("token_id")
@_TOKENS
def revoke(token_id: str, tokens: Path) -> None:
    """Remove the token with this id; a running server stops taking it within a second or two."""
    from pericard.auth import TokenFile

    record = TokenFile(tokens).revoke(token_id)
    click.echo(f"revoked {record.id} of {record.name}", err=True)


def _show(make: Callable[[], Issued], output: Path | None) -> Issued:
    """Make a token, and hand it over once: on stdout, or in a file."""
    if output is not None:
        return _into(output, make)
    issued = make()
    click.echo(issued.token)
    return issued


def _into(output: Path, make: Callable[[], Issued]) -> Issued:
    """Make a token once its file is there, so that none is made that nobody has."""
    from pericard.errors import ConfigError

    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{output}: exists already", hint="tokens never overwrite a file") from error
    try:
        issued = make()
        with os.fdopen(descriptor, "w") as out:
            out.write(issued.token + "\n")
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    return issued


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


def _moment(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="minutes").replace("+00:00", "Z")
