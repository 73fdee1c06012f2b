"""``pericard grant | withdraw``: what a vendor changes about a model after it was sealed."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pericard.cli import licence
from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.keys import Identity, PublisherKey
    from pericard.sealed import SealedModel, VerifiedModel

_EXISTING = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("file", type=_EXISTING)
@click.option("--archive", type=_EXISTING, required=True, help="The publisher's archive identity, archive.key.")
@click.option("--sign-with", type=_EXISTING, required=True, help="The publisher's private key.")
@click.option(
    "-r", "--recipient", "recipients", type=_EXISTING, multiple=True, required=True,
    help="A hospital's identity.pub; repeat for more.",
)  # fmt: skip
@licence.options
@click.option("--embed", is_flag=True, help="Write a whole sealed model with the grants in it, not a grant file.")
@click.option("-o", "--output", type=FILE, required=True, help="NAME.grant, to lie beside NAME.sealed.")
def grant(
    file: Path,
    archive: Path,
    sign_with: Path,
    recipients: tuple[Path, ...],
    not_before: datetime | None,
    not_after: datetime | None,
    days: int | None,
    grace_days: int,
    embed: bool,
    output: Path,
) -> None:
    """Grant the sealed model FILE to more recipients, or for longer. Its payload is not read."""
    if not embed:
        _require_suffix(output, ".grant")
    period = licence.Period.given(not_before, not_after, days, grace_days)
    from pericard import hardening, sealed
    from pericard.keys import PublisherKey

    hardening.protect_memory()

    sealed.require_new(output)
    terms = [period.term(licence.recipient(path)) for path in recipients]
    key = PublisherKey.read(sign_with)
    with sealed.SealedModel(file) as source:
        model = _own(source, key, sign_with)
        packed = model.grant(_unlocked(archive), key, terms)
        if embed:
            sealed.embed(source, packed, output)
        else:
            sealed.write_grants(output, packed)
    about = model.manifest.description
    for term in terms:
        click.echo(term.recipient.id)
    click.echo(
        f"granted {about.name} {about.version} to {len(terms)} recipient(s) until {licence.date(period.end)}: {output}",
        err=True,
    )


def _unlocked(archive: Path) -> Identity:
    """The archive identity; one that a passphrase locks is asked for on the terminal."""
    from pericard import unlock
    from pericard.keys import Identity, wipe

    seeds = unlock.unlock(unlock.UnlockValues(kind=unlock.kind_in(archive), path=str(archive)))
    try:
        return Identity(seeds[0])
    finally:
        for seed in seeds:
            wipe(seed)


def _own(source: SealedModel, key: PublisherKey, sign_with: Path) -> VerifiedModel:
    """Verify a file as its publisher."""
    from pericard.errors import BadGrant, UntrustedPublisher

    try:
        return source.verify([key.publisher])
    except UntrustedPublisher as error:
        raise BadGrant(
            f"{source.subject}: was not signed with {sign_with.name}; only its publisher can grant it",
            hint="grants are made with the key that sealed the file; pericard inspect shows whose it is",
        ) from error


@click.command()
@click.option("--model", required=True, help="The model's name, as its manifest says it.")
@click.option(
    "--below", type=click.IntRange(2, (1 << 53) - 1), required=True, help="Withdraw every version below this sequence."
)
@click.option("--sign-with", type=_EXISTING, required=True, help="The publisher's private key.")
@click.option("-o", "--output", type=FILE, required=True, help="NAME.notice, to lie in the folder of the model.")
def withdraw(model: str, below: int, sign_with: Path, output: Path) -> None:
    """Withdraw versions of a model with a signed notice, without sealing a new one."""
    _require_suffix(output, ".notice")
    from pericard import hardening
    from pericard.keys import PublisherKey
    from pericard.sealed import detached, notice

    hardening.protect_memory()
    made = notice.make(PublisherKey.read(sign_with), model, floor=below, issued=int(time.time()))
    detached.write(output, made)
    click.echo(f"withdrawn: every version of {model} with a sequence below {below}: {output}", err=True)


def _require_suffix(path: Path, suffix: str) -> None:
    """A server finds these files by their names alone."""
    if path.suffix != suffix:
        raise click.UsageError(f"--output {path}: must end in {suffix}, or no server finds it.")
