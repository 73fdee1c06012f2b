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

    half = public(output)
    made = Identity.generate(output)
    made.recipient.write(half)
    click.echo(made.recipient.id)
    click.echo(f"private: {output}  public: {half} (give this one to the vendor)", err=True)


@keygen.command()
@click.option("-o", "--output", type=FILE, required=True, help="Private key file; never overwritten.")
def publisher(output: Path) -> None:
    """A vendor's signing key: Ed25519 and ML-DSA-65."""
    from pericard.keys import PublisherKey

    half = public(output)
    made = PublisherKey.generate(output)
    made.publisher.write(half)
    click.echo(made.publisher.id)
    click.echo(f"private: {output} (keep it offline)  public: {half} (sites pin this one)", err=True)


@keygen.command()
@click.option("-o", "--output", type=FILE, required=True, help="Private key file; never overwritten.")
@click.option("--public-of", type=FILE, help="Make no key: write to --output the public half of this private one.")
def log(output: Path, public_of: Path | None) -> None:
    """An audit log's key: Ed25519 and ML-DSA-44, and what records commit with."""
    from pericard.keys import LogKey

    if public_of is not None:
        LogKey.read(public_of).verifier.write(output)
        click.echo(f"public: {output} (auditors verify with this one)", err=True)
        return
    half = public(output)
    made = LogKey.generate(output)
    made.verifier.write(half)
    click.echo(f"private: {output}  public: {half} (auditors verify with this one)", err=True)


@keygen.command()
@click.option("--host", "hosts", multiple=True, required=True, help="Name or address; repeat for more.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 825))
@click.option("-o", "--output", type=FILE, required=True, help="Private key file; the certificate is beside it, .crt")
def tls(hosts: tuple[str, ...], days: int, output: Path) -> None:
    """A self-signed TLS certificate, for a first start; a site with a CA uses its own."""
    from pericard.keys.certificate import write_self_signed

    half = public(output, ".crt")
    write_self_signed(output, half, hosts, days=days)
    click.echo(f"private: {output}  certificate: {half}", err=True)


def public(path: Path, suffix: str = ".pub") -> Path:
    """Where the public half goes; asked before the private one is written, so that neither is left alone.

    Raises:
        UsageError: the private half was to be written where the public one belongs.
        KeyFileInvalid: the public half is there already.
    """
    from pericard.errors import KeyFileInvalid

    half = path.with_suffix(suffix)
    if half == path:
        raise click.UsageError(
            f"{path}: is where the public half goes; name the private one, {path.with_suffix('.key')}"
        )
    if half.exists():
        raise KeyFileInvalid(f"{half}: exists already", hint="keys are never overwritten; move the old file away first")
    return half
