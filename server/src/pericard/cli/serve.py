"""``pericard serve``: the daemon."""

from __future__ import annotations

import logging
from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/pericard/server.yaml"),
    show_default=True,
    help="The configuration file.",
)
@click.option("--check", is_flag=True, help="Check the configuration and the files that it names, and stop.")
@click.option("--inline", is_flag=True, help="One process, for debugging; loopback only.")
def serve(config: Path, check: bool, inline: bool) -> None:
    """Serve sealed models: verified, decrypted to memory only, authenticated, audited."""
    from pericard import settings

    found = settings.load(config)
    from pericard.daemon import values

    if check:
        from pericard.daemon import checks

        checks.require_files(found)
        for remark in values.remarks(found):
            click.echo(f"warning: {remark}", err=True)
        click.echo(f"{config}: is a valid configuration, and its files are there", err=True)
        return
    logging.basicConfig(format="pericard: %(levelname)s: %(message)s", level=logging.WARNING)
    if inline:
        from pericard.daemon import inline as daemon
    else:
        from pericard.daemon import supervisor as daemon  # type: ignore[no-redef]  # the other of two with one run

    def announce(line: str) -> None:
        click.echo(f"pericard: {line}", err=True)
        for remark in values.remarks(found):
            logging.getLogger(__name__).warning("%s", remark)

    daemon.run(found, announce=announce)
