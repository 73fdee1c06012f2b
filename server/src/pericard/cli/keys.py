"""``pericard keygen``: identities, publishers, audit-log keys, a first TLS certificate."""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def keygen() -> None:
    """Make a key pair: FILE holds the private half (mode 0600), FILE.pub the public one."""


@keygen.command()
@click.option("-o", "--output", type=FILE, required=True, help="Private key file; never overwritten.")
def identity(output: Path) -> None:
    """A server's identity (or a vendor's archive): models are sealed for its public half."""
    from pericard.keys import Identity

    made = Identity.generate(output)
    made.recipient.write(public(output))
    click.echo(made.recipient.id)
    click.echo(f"private: {output}  public: {public(output)} (give this one to the vendor)", err=True)


@keygen.command()
@click.option("-o", "--output", type=FILE, required=True, help="Private key file; never overwritten.")
def publisher(output: Path) -> None:
    """A vendor's signing key: Ed25519 and ML-DSA-65."""
    from pericard.keys import PublisherKey

    made = PublisherKey.generate(output)
    made.publisher.write(public(output))
    click.echo(made.publisher.id)
    click.echo(f"private: {output} (keep it offline)  public: {public(output)} (sites pin this one)", err=True)


@keygen.command()
@click.option("-o", "--output", type=FILE, required=True, help="Private key file; never overwritten.")
def log(output: Path) -> None:
    """An audit log's key."""
    from pericard.keys import LogKey

    made = LogKey.generate(output)
    made.verifier.write(public(output))
    click.echo(f"private: {output}  public: {public(output)} (auditors verify with this one)", err=True)


@keygen.command()
@click.option("--host", "hosts", multiple=True, required=True, help="Name or address; repeat for more.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 825))
@click.option("-o", "--output", type=FILE, required=True, help="Private key file; the certificate is beside it, .crt")
def tls(hosts: tuple[str, ...], days: int, output: Path) -> None:
    """A self-signed TLS certificate, for a first start; a site with a CA uses its own."""
    from pericard.keys.certificate import write_self_signed

    write_self_signed(output, output.with_suffix(".crt"), hosts, days=days)
    click.echo(f"private: {output}  certificate: {output.with_suffix('.crt')}", err=True)


def public(path: Path) -> Path:
    """Where the public half goes."""
    return path.with_suffix(".pub")
