"""``pericard env lock | pack | install | diff | sbom | advisories``: a runtime from its lock."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pericard.cli.keys import FILE

if TYPE_CHECKING:
    from pericard.environment.lock import Lock, Virtual

_FOLDER = click.Path(path_type=Path, file_okay=False)
_LOCK = click.argument("lock", type=FILE)
_CHANNEL = click.option(
    "--channel", "channels", multiple=True, metavar="FOLDER|URL", help="Take archives from here first; repeat for more."
)
_PUBLISHER = click.option("--publisher", type=FILE, help="The public key that must have signed the lock.")


@contextmanager
def phases() -> Iterator[Callable[[str, int, int], None]]:
    """One progress bar for each thing that is done, on stderr, and only if that is a terminal."""
    from pericard.progress import bar

    with ExitStack() as stack:
        label, tell = "", None

        def told(what: str, done: int, size: int) -> None:
            nonlocal label, tell
            if what != label or tell is None:
                stack.close()
                label, tell = what, stack.enter_context(bar(what))
            tell(done, size)

        yield told


def read(path: Path, publisher: Path | None) -> Lock:
    """A lock; with a publisher's key, only if that one signed it."""
    from pericard.environment import lock
    from pericard.keys import Publisher

    return lock.read(path, Publisher.read(publisher) if publisher else None)


def _virtual(values: tuple[str, ...]) -> list[Virtual]:
    from pericard.environment.lock import Virtual

    found = []
    for value in values:
        name, _, rest = value.partition("=")
        version, _, build = rest.partition("=")
        if not name.startswith("__") or not version:
            raise click.BadParameter(f"{value!r} is not like __cuda=12.9", param_hint="--virtual")
        found.append(Virtual(name, version, build))
    return found


@click.command()
@click.option("--from", "source", type=FILE, help="Solve this environment.yml.")
@click.option("--prefix", type=_FOLDER, help="Or lock what this prefix was made of.")
@click.option(
    "--channel", "channels", multiple=True, metavar="NAME|FOLDER|URL",
    help="Allow these channels alone, in this order.  [default: those of the file; of a prefix, conda-forge]",
)  # fmt: skip
@click.option("--platform", help="For hosts of this kind, such as linux-64.  [default: this host's]")
@click.option("--virtual", multiple=True, metavar="NAME=VERSION", help="What hosts offer, such as __cuda=12.9.")
@click.option("--sign", type=FILE, required=True, help="The private key of whoever answers for the runtime.")
@click.option("-o", "--output", type=FILE, required=True, help="The lock; its signature goes beside it, as .sig.")
def lock(
    source: Path | None, prefix: Path | None, channels: tuple[str, ...], platform: str | None, virtual: tuple[str, ...],
    sign: Path, output: Path,
) -> None:  # fmt: skip
    """Lock a runtime: every archive by its SHA-256, signed."""
    from pericard.environment import asked, conda
    from pericard.environment import lock as locks
    from pericard.keys import PublisherKey

    if (source is None) == (prefix is None):
        raise click.UsageError("Give either --from or --prefix.")
    key, platform = PublisherKey.read(sign), platform or conda.here()
    if source is not None:
        made = asked.of_file(source, channels=channels, platform=platform, virtual=_virtual(virtual))
    elif prefix is not None and not virtual:
        made = asked.of_prefix(prefix, channels=channels, platform=platform)
    else:
        raise click.UsageError("--virtual goes with --from.")
    locks.write(output, made, key)
    click.echo(made.digest)
    told = ", ".join(one.line for one in made.virtual)
    click.echo(
        f"locked {len(made.packages)} packages for {platform} ({told}): {output}, signed: {output}.sig", err=True
    )


@click.command()
@_LOCK
@_PUBLISHER
@_CHANNEL
@click.option("-o", "--output", type=_FOLDER, required=True, help="A new folder.")
def pack(lock: Path, publisher: Path | None, channels: tuple[str, ...], output: Path) -> None:
    """Pack LOCK for a site without a network: its archives, an index of them, and itself, signed."""
    from pericard import durable
    from pericard.environment import lock as locks
    from pericard.environment import pack as packing
    from pericard.errors import LockInvalid

    made, beside = read(lock, publisher), locks.signature_path(lock)
    try:
        signature = durable.read(beside, limit=1 << 20)
    except OSError as error:
        raise LockInvalid(f"{beside}: cannot be read: a lock is packed with its signature") from error
    with phases() as progress:
        packing.pack(
            made, signature, output, channels=channels, progress=lambda done, size: progress("archives", done, size)
        )
    click.echo(made.digest)
    click.echo(
        f"packed {len(made.packages)} archives: {output}. There: pericard env install {output.name}/{packing.LOCK} "
        f"--channel {output.name} --prefix … --publisher …",
        err=True,
    )


@click.command()
@_LOCK
@click.option("--prefix", type=_FOLDER, required=True, help="Where to; a new folder, such as /opt/pericard/env.")
@click.option("--publisher", type=FILE, required=True, help="The public key that must have signed LOCK.")
@_CHANNEL
@click.option("--manifest", type=FILE, help="Where the manifest goes.  [default: /etc/pericard/environment.json]")
@click.option("--replace", is_flag=True, help="Put aside the prefix that is there; it comes back if this fails.")
def install(
    lock: Path, prefix: Path, publisher: Path, channels: tuple[str, ...], manifest: Path | None, replace: bool
) -> None:
    """Install LOCK: hash every archive, link them, verify the result, and write its manifest."""
    from pericard.environment import install as installing
    from pericard.environment import lock as locks
    from pericard.environment import verifier
    from pericard.keys import Publisher

    key = Publisher.read(publisher)
    made = locks.read(lock, key)
    path = (manifest or verifier.DEFAULT).absolute()
    with phases() as progress:
        done = installing.install(
            made, prefix.absolute(), publisher=key.id, manifest_path=path, channels=channels, replace=replace,
            progress=progress, remark=lambda text: click.echo(f"warning: {text}", err=True),
        )  # fmt: skip
    click.echo(done.digest)
    click.echo(
        f"installed {len(made.packages)} packages, {done.files} paths: {prefix.absolute()}; manifest: {path}; before "
        f"each start: {done.script} {path}",
        err=True,
    )


@click.command()
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show what differs between two locks: + came, - went, ~ changed."""
    from dataclasses import asdict

    from pericard.environment.compare import differences

    found = differences(read(old, None), read(new, None))
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    for one in found:
        click.echo(one.line)
    click.echo(f"{len(found)} packages differ" if found else "the same archives from the same channels", err=True)


@click.command()
@_LOCK
@_PUBLISHER
@click.option(
    "--archives", multiple=True, metavar="FOLDER|URL", help="Read licences and needs out of the archives, here."
)
@click.option("-o", "--output", type=FILE, help="Write it there.  [default: the terminal]")
def sbom(lock: Path, publisher: Path | None, archives: tuple[str, ...], output: Path | None) -> None:
    """Write the bill of materials of LOCK, in CycloneDX."""
    from pericard import __version__, durable
    from pericard.environment import held
    from pericard.environment import sbom as materials

    made = read(lock, publisher)
    if archives:
        with tempfile.TemporaryDirectory(prefix="pericard-") as work, phases() as progress:
            unpacked = held.unpacked(made, Path(work), channels=archives, progress=progress)
            data = materials.render(made, {one.package.name: one for one in unpacked}, version=__version__)
    else:
        data = materials.render(made, version=__version__)
    if output is None:
        click.echo(data.decode("ascii"), nl=False)
        return
    durable.replace(output, data, mode=0o644)
    click.echo(f"{len(made.packages)} components: {output}", err=True)


@click.command()
@_LOCK
@_PUBLISHER
@click.option("--osv", "exports", type=FILE, multiple=True, required=True, help="An export of OSV; repeat for more.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def advisories(lock: Path, publisher: Path | None, exports: tuple[Path, ...], as_json: bool) -> None:
    """Look LOCK up in an export of the OSV database, offline. A hit is an error.

    Python packages are found by PyPI's names, the rest by conda's, where an export has those.
    """
    from dataclasses import asdict

    from pericard.environment import advisories as known
    from pericard.environment import conda
    from pericard.errors import AdvisoriesFound

    made, count = read(lock, publisher), 0

    def every() -> Iterator[dict[str, object]]:
        nonlocal count
        for path in exports:
            for one in known.read(path):
                count += 1
                yield one

    found = known.found(made, every(), older=conda.below)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            click.echo(one.line)
    if found:
        packages = len({one.package.name for one in found})
        raise AdvisoriesFound(
            f"{lock.name}: {len(found)} advisories name {packages} of its {len(made.packages)} packages",
            hint="lock newer versions, or find out whether the server uses what is broken",
        )
    click.echo(f"none of {count} advisories names one of {len(made.packages)} packages in its version", err=True)
