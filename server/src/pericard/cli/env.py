"""``pericard env``: the runtime that is installed here, held against what it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pericard.cli import locked
from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.environment.verifier import Finding

_FOLDER = click.Path(path_type=Path, file_okay=False)
_SHOWN = 100


@click.group()
def env() -> None:
    """The runtime: locked, packed for a site without a network, installed, verified."""


for command in (locked.lock, locked.pack, locked.install, locked.diff, locked.sbom, locked.advisories):
    env.add_command(command)


@env.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(as_json: bool) -> None:
    """Show the digest of this runtime and every distribution in it."""
    from pericard import environment

    runtime = environment.describe()
    if as_json:
        value = {
            "digest": runtime.digest,
            "python": runtime.python,
            "machine": runtime.machine,
            "distributions": [
                {"name": name, "version": version, "record": record} for name, version, record in runtime.distributions
            ],
        }
        click.echo(json.dumps(value, indent=2))
        return
    click.echo(runtime.digest)
    click.echo(f"python {runtime.python} {runtime.machine}")
    for name, version, record in runtime.distributions:
        click.echo(f"{name} {version} {record[:16]}")


@env.command()
@click.option("--manifest", type=FILE, help="Of an installed prefix.  [default: /etc/pericard/environment.json]")
@click.option("--lock", type=FILE, help="Hold a prefix against a lock and its archives instead.")
@click.option(
    "--archives", multiple=True, metavar="FOLDER", help="With --lock: a channel that has them; repeat for more."
)
@click.option("--publisher", type=FILE, help="With --lock: the public key that must have signed it.")
@click.option("--prefix", type=_FOLDER, help="Where the prefix is; with --manifest, if elsewhere than that says.")
@click.option("--record", is_flag=True, help="Hold what pip installed here against what it recorded, instead.")
@click.option("--owner", type=click.IntRange(0), default=0, help="User id that all must belong to.  [default: root]")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def verify(
    manifest: Path | None, lock: Path | None, archives: tuple[str, ...], publisher: Path | None, prefix: Path | None,
    record: bool, owner: int, as_json: bool,
) -> None:  # fmt: skip
    """Verify every file of a runtime, and say against what.

    Against its manifest, which pericard env install writes; against a lock and its archives, whichever conda client
    made the prefix; or, in an environment of pip's, against what pip recorded. Without an option: against the manifest,
    or if there is none, against what pip recorded.
    """
    from pericard.environment import verifier

    if (manifest is not None) + (lock is not None) + record > 1:
        raise click.UsageError("Give one of --manifest, --lock and --record.")
    if lock is None and (archives or publisher):
        raise click.UsageError("--archives and --publisher go with --lock.")
    if lock is not None:
        if prefix is None:
            raise click.UsageError("Missing option '--prefix': --lock does not say where the prefix is.")
        _by_lock(lock, archives, publisher, prefix, as_json=as_json)
    elif record or (manifest is None and prefix is None and not verifier.DEFAULT.exists()):
        _by_record(as_json=as_json)
    else:
        _by_manifest(manifest or verifier.DEFAULT, prefix, owner, as_json=as_json)


def _by_manifest(path: Path, prefix: Path | None, owner: int, *, as_json: bool) -> None:
    from pericard.environment import verifier
    from pericard.errors import EnvironmentDrift
    from pericard.progress import bar

    try:
        manifest = verifier.read(path, owner=owner)
    except verifier.Refused as error:
        raise EnvironmentDrift(
            f"cannot judge: {verifier.printable(str(error))}", hint="pericard env install writes it, as root"
        ) from error
    place = prefix.absolute() if prefix else manifest.prefix
    with bar(f"verifying {place}") as progress:
        found = verifier.check(manifest, prefix=place, progress=progress)
    about = f"the manifest {path} of the lock {manifest.lock[:16]}"
    _say("manifest", place, len(manifest.files), found, about, as_json=as_json)


def _by_lock(path: Path, archives: tuple[str, ...], publisher: Path | None, prefix: Path, *, as_json: bool) -> None:
    from pericard.environment import held

    lock = locked.read(path, publisher)
    if not prefix.is_dir():
        raise click.UsageError(f"{prefix} is not a folder.")
    with locked.phases() as progress:
        count, found = held.compare(lock, prefix, channels=archives, progress=progress)
    signed = "signed by " + publisher.name if publisher else "whose signature was not looked at (--publisher does)"
    _say("lock", prefix, count, found, f"the archives of {path}, {signed}", as_json=as_json)


def _by_record(*, as_json: bool) -> None:
    from pericard import environment

    count = environment.verify()
    if as_json:
        click.echo(json.dumps({"kind": "record", "files": count, "findings": []}, indent=2))
        return
    click.echo(f"verified: {count} files, as pip recorded them; what it did not install was not looked at")


def _say(kind: str, prefix: Path, count: int, found: list[Finding], about: str, *, as_json: bool) -> None:
    """The result; findings are an error, after each has been named."""
    from pericard.environment.verifier import printable
    from pericard.errors import EnvironmentDrift

    if as_json:
        findings = [finding._asdict() for finding in found]
        click.echo(json.dumps({"kind": kind, "prefix": str(prefix), "paths": count, "findings": findings}, indent=2))
    else:
        for finding in found[:_SHOWN]:
            click.echo(printable(f"{finding.code}: {finding.message}"), err=True)
    if found:
        more = f"; --json has those after the first {_SHOWN}" if len(found) > _SHOWN and not as_json else ""
        plural = "" if len(found) == 1 else "s"
        raise EnvironmentDrift(
            f"{prefix}: is not what was locked: {len(found)} finding{plural} among {count} paths{more}",
            hint="install it again from the lock, and find out who changed it",
        )
    if not as_json:
        click.echo(f"verified: {prefix}: {count} paths, against {about}")
