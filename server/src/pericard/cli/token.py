"""``pericard token create | list | revoke``: API tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.auth import Issued

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
    "--operation", "operations", multiple=True, default=("predict", "metadata"), show_default=True,
    help="predict, metadata, metrics, audit or admin; repeat for more.",
)  # fmt: skip
@click.option("--model", "models", multiple=True, required=True, help="Model name or pattern; repeat for more.")
@click.option("--days", default=365, show_default=True, type=int, help="How long it is valid.")
@click.option("-o", "--output", type=FILE, help="Write the token to a new file, mode 0600, instead of stdout.")
@_TOKENS
def create(
    name: str, operations: tuple[str, ...], models: tuple[str, ...], days: int, output: Path | None, tokens: Path
) -> None:
    """Make a token for NAME. It is shown once; only a keyed hash of it is kept."""
    from pericard.auth import TokenFile

    def make() -> Issued:
        return TokenFile(tokens).create(name, operations=operations, models=models, days=days)

    if output is None:
        issued = make()
        click.echo(issued.token)
    else:
        issued = _into(output, make)
    click.echo(f"token {issued.record.id} for {name}, until {_day(issued.record.expires)}", err=True)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_TOKENS
def list_(as_json: bool, tokens: Path) -> None:
    """Show the tokens that are kept, without their secrets."""
    from pericard.auth import TokenFile

    rows = [
        {
            "id": record.id,
            "name": record.name,
            "operations": list(record.operations),
            "models": list(record.models),
            "created": _day(record.created),
            "expires": _day(record.expires),
        }
        for record in TokenFile(tokens).records()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        allowed = f"{','.join(row['operations'])} on {','.join(row['models'])}"
        click.echo(f"{row['id']}  {row['name']:<20} {allowed:<40} until {row['expires']}")


@token.command()
@click.argument("token_id")
@_TOKENS
def revoke(token_id: str, tokens: Path) -> None:
    """Remove the token with this id; a running server stops taking it within a second or two."""
    from pericard.auth import TokenFile

    record = TokenFile(tokens).revoke(token_id)
    click.echo(f"revoked {record.id} of {record.name}", err=True)


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
