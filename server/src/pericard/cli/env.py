"""``pericard env``: the runtime that is installed here."""

from __future__ import annotations

import json

import click


@click.group()
def env() -> None:
    """The installed runtime: what it is made of, and its digest."""


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
