"""``pericard trust add | list | remove | reset``: whom this site trusts, and what it remembers of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pericard.cli import licence
from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.engine.journal import TrustJournal
    from pericard.settings import Settings
    from pericard.trust import Pin, TrustState

CONFIG = Path("/etc/pericard/server.yaml")
_STORE = click.option(
    "--store",
    type=FILE,
    default=Path("/etc/pericard/publishers.json"),
    show_default=True,
    help="The site's file of pinned publishers, as in server.yaml.",
)
_LONGEST_REASON = 500


@click.group()
def trust() -> None:
    """The publishers that this site trusts, each pinned by key, and what is remembered of them."""


@trust.command()
@click.argument("name")
@click.argument("publisher", type=FILE)
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last day on which the key is trusted (UTC).")
@_STORE
def add(name: str, publisher: Path, until: datetime | None, store: Path) -> None:
    """Pin the vendor's key in the file PUBLISHER under NAME; for a key that is pinned, change its last day."""
    from pericard.keys import Publisher
    from pericard.trust import TrustStore

    key = Publisher.read(publisher)
    end = licence.last_second(until) if until else None
    pin = TrustStore(store).add(name, key, now=int(time.time()), until=end)
    click.echo(pin.publisher.id)
    click.echo(
        f"pinned as {name}{f' until {licence.date(end)}' if end else ''}; compare the line above with the vendor by "
        "another channel. A server takes it at its next start",
        err=True,
    )


@trust.command("list")
@click.option("--config", type=FILE, help="The server's configuration: its store, and what it remembers.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_STORE
def list_(config: Path | None, as_json: bool, store: Path) -> None:
    """Show the pinned keys, and with --config the sequences below which each one withdrew its models."""
    from pericard import settings
    from pericard.trust import Remembered, TrustState, TrustStore

    state = Remembered()
    if config is not None:
        found = settings.load(config)
        store, remembered = Path(found.publishers), TrustState(Path(found.trust_state))
        state = remembered.current
        _compare(Path(found.audit.directory), remembered)
    rows = [_row(pin, state.floors) for pin in TrustStore(store).read()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['name']:<20} {row['id'][:16]}  since {row['since']}  until {row['until'] or 'further notice'}"
        )
        for model, floor in row["floors"].items():
            click.echo(f"{'':<20} {model}: withdrawn below sequence {floor}")


def _compare(directory: Path, state: TrustState) -> None:
    """Warn of a state that a server would refuse; a log that is not there, or that we may not read, says nothing."""
    from pericard.engine.journal import agrees
    from pericard.errors import AuditError

    try:
        fits = agrees(directory, state)
    except AuditError:
        return
    if not fits:
        what = "is not what the audit log recorded last" if state.path.exists() else "is missing, and the log has one"
        click.echo(
            f"warning: {state.path}: {what}; what it withdrew may be more than stands here, and no server starts "
            "over it: restore the newest copy",
            err=True,
        )


def _row(pin: Pin, floors: Any) -> dict[str, Any]:  # noqa: ANN401  (a mapping from a module that is imported late)
    own = {key.partition("/")[2]: floor for key, floor in floors.items() if key.startswith(pin.publisher.id)}
    return {
        "name": pin.name,
        "id": pin.publisher.id,
        "since": licence.date(pin.since),
        "until": None if pin.until is None else licence.date(pin.until),
        "floors": dict(sorted(own.items())),
    }


@trust.command()
@click.argument("which")
@_STORE
def remove(which: str, store: Path) -> None:
    """Stop trusting every key named WHICH, or the one whose id begins with it; what it withdrew counts no longer."""
    from pericard.trust import TrustStore

    for pin in TrustStore(store).remove(which):
        click.echo(f"removed {pin.publisher.id[:16]} of {pin.name}; a server notices at its next start", err=True)


@trust.command()
@click.option("--config", type=FILE, default=CONFIG, show_default=True, help="The server's configuration.")
@click.option("--reason", required=True, help="Why, for the audit log.")
def reset(config: Path, reason: str) -> None:
    """Accept the trust state as it is now (restored, or removed), and record that. The server must be stopped."""
    from pericard import settings

    if not 1 <= len(reason) <= _LONGEST_REASON or not reason.isprintable():
        raise click.UsageError(f"--reason takes 1 to {_LONGEST_REASON} printable characters.")
    with journal(settings.load(config)) as found:
        forgotten = found.forgotten()
        found.reset(reason)
        state = found.state.current
        for key, floor in forgotten.items():
            publisher, _, model = key.partition("/")
            click.echo(f"forgotten: {model} of {publisher[:16]} was withdrawn below sequence {floor}", err=True)
        click.echo(state.digest)
        words = "it begins empty: no withdrawn version is known" if not state.floors else "its floors count"
        click.echo(f"the trust state is accepted as it is; {words}", err=True)


@contextmanager
def journal(settings: Settings) -> Iterator[TrustJournal]:
    """The trust state with the audit log, held as the server would hold them.

    Raises:
        AuditUnavailable: a server runs, or this is another user than its own.
        TrustStateInvalid: the state is damaged.
    """
    from pericard.audit import AuditLog
    from pericard.engine.journal import TrustJournal
    from pericard.errors import AuditUnavailable
    from pericard.keys import LogKey
    from pericard.trust import TrustState

    directory = Path(settings.audit.directory)
    key = LogKey.read(Path(settings.audit.key))
    try:
        owner = directory.stat().st_uid
    except OSError:
        owner = os.geteuid()  # there is no log yet
    if owner != os.geteuid():  # segments that the server could not read would end its log
        raise AuditUnavailable(f"{directory}: belongs to another user", hint="run this as the server's own user")
    state = TrustState(Path(settings.trust_state))
    try:
        log = AuditLog.open(directory, key=key)
    except AuditUnavailable as error:
        if isinstance(error.__cause__, BlockingIOError):  # somebody holds it
            raise AuditUnavailable(error.message, hint="stop the server first") from error
        raise
    with log:
        yield TrustJournal(directory, log, state)
