"""``pericard identity show | relock | rotate | backup | restore``: what a site does with its private key."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pericard.cli.keys import FILE, public

if TYPE_CHECKING:
    from pericard.keys import Recipient
    from pericard.unlock import Lock, UnlockValues

_PLAIN = "file"
_DESCRIPTOR = click.IntRange(0, 1_000_000)


@dataclass(frozen=True)
class Reach:
    """How the present lock, and a new one, are reached."""

    passphrase_fd: int | None
    tcti: str | None
    vault: str | None
    vault_ca: Path | None
    vault_token: Path | None
    vault_token_fd: int | None
    options: tuple[str, ...]

    def values(self, kind: str) -> UnlockValues:
        """The same, for the room that unlocks."""
        from pericard.unlock import UnlockValues, VaultValues

        ca, token = (str(path) if path else None for path in (self.vault_ca, self.vault_token))
        vault = VaultValues(self.vault, ca, token, self.vault_token_fd) if self.vault else None
        pairs = [option.partition("=") for option in self.options]
        if any(not equals for _, equals, _ in pairs):
            raise click.UsageError("--option: wants name=value")
        options = {name: value for name, _, value in pairs}
        return UnlockValues(kind=kind, passphrase_fd=self.passphrase_fd, tcti=self.tcti, vault=vault, options=options)


@dataclass(frozen=True)
class NewLock:
    """What a new lock shall be bound to; what is None is the default."""

    new_passphrase_fd: int | None = None
    pcrs: str | None = None
    vault_mount: str | None = None
    vault_key: str | None = None


def _options(*made: Callable[..., Any]) -> Callable[..., Any]:
    def add(verb: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(made):
            verb = option(verb)
        return verb

    return add


_REACH = _options(
    click.option("--passphrase-fd", type=_DESCRIPTOR, help="Descriptor with the passphrase; else it is asked for."),
    click.option("--tcti", help="How the TPM is reached, such as device:/dev/tpmrm0."),
    click.option("--vault", metavar="URL", help="OpenBao or Vault server, such as https://vault:8200."),
    click.option("--vault-ca", type=FILE, help="PEM file of the authority that signs its certificate."),
    click.option("--vault-token", type=FILE, help="File with the token, mode 0600."),
    click.option("--vault-token-fd", type=_DESCRIPTOR, help="Descriptor with the token."),
    click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="For an installed key source."),
)
_NEW = _options(
    click.option("--new-passphrase-fd", type=_DESCRIPTOR, help="Descriptor with the new passphrase."),
    click.option("--pcrs", help="TPM registers that the key is bound to.  [default: sha256:7]"),
    click.option("--vault-mount", help="Path of the transit engine.  [default: transit]"),
    click.option("--vault-key", help="Name of the transit key.  [default: pericard]"),
)
_KIND = "file, passphrase, tpm, vault, or a key source that is installed."


@click.group()
def identity() -> None:
    """This server's private key: its lock, its successor, its backup. FILE is the one that server.yaml names."""


@identity.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(file: Path, as_json: bool) -> None:
    """Show the id of the identity in FILE and its lock; a locked one is not opened."""
    from pericard.keys import Identity
    from pericard.unlock.locked import read

    found = read(file)
    about: dict[str, Any] = {"id": found.recipient if found else Identity.read(file).recipient.id}
    about["lock"] = {**found.parameters, "kind": found.kind} if found else {"kind": _PLAIN}
    if as_json:
        click.echo(json.dumps(about, indent=2, sort_keys=True))
        return
    click.echo(about["id"])
    names = ("pcrs", "mount", "key", "memory_kib", "iterations")
    words = [f"{name} {about['lock'][name]}" for name in names if name in about["lock"]]
    click.echo(", ".join([f"lock: {about['lock']['kind']}", *words]), err=True)


@identity.command()
@click.argument("file", type=FILE)
@click.option("--to", "kind", required=True, help=f"The new lock: {_KIND}")
@_REACH
@_NEW
def relock(file: Path, kind: str, **options: object) -> None:
    """Change the lock of FILE in its place. The identity stays the same, so no vendor is needed."""
    reach, new = _split(options)
    with _made(kind, reach, new) as lock, _opened(file, reach) as present:
        recipient = _write(file, present.seed, kind, lock, replace=True)
    click.echo(recipient.id)
    said = "is plain now, mode 0600" if lock is None else f"is locked with {kind} now"
    click.echo(f"{file}: {said}; server.yaml must say identity: {{unlock: {kind}}}", err=True)


@identity.command()
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The new identity; never overwritten.")
@_REACH
def rotate(file: Path, output: Path, **options: object) -> None:
    """Make a new identity with the same lock as FILE's. FILE stays as it is, for as long as models need it."""
    from pericard.keys import take, wipe
    from pericard.keys.identity import SEED_SIZE

    reach, _ = _split(options)
    half = public(output)
    with _opened(file, reach) as present:
        seed = take(os.urandom(SEED_SIZE))
        try:
            recipient = _write(output, seed, present.kind, present.lock)
        finally:
            wipe(seed)
    recipient.write(half)
    click.echo(recipient.id)
    click.echo(f"private: {output}  public: {half} (send this one to the vendor, who makes new grants)", err=True)
    click.echo(f"until each model has one, server.yaml says identity: {{path: {output}, previous: {file}}}", err=True)


@identity.command()
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The copy; never overwritten.")
@click.option("--new-passphrase-fd", type=_DESCRIPTOR, help="Descriptor with the copy's passphrase; else it is asked.")
@_REACH
def backup(file: Path, output: Path, new_passphrase_fd: int | None, **options: object) -> None:
    """Write a copy of the identity in FILE under a passphrase of its own, to be kept elsewhere."""
    _absent(output)
    reach, _ = _split(options)
    with _made("passphrase", reach, NewLock(new_passphrase_fd)) as lock, _opened(file, reach) as present:
        recipient = _write(output, present.seed, "passphrase", lock)
    click.echo(recipient.id)
    click.echo(f"{output}: keep it away from this server, and its passphrase away from it", err=True)


@identity.command()
@click.argument("copy", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The identity; never overwritten.")
@click.option("--to", "kind", default=_PLAIN, show_default=True, help=f"Its lock: {_KIND}")
@_REACH
@_NEW
def restore(copy: Path, output: Path, kind: str, **options: object) -> None:
    """Make an identity of the backup COPY, with its public half beside it."""
    _absent(output)
    half = public(output)
    reach, new = _split(options)
    with _made(kind, reach, new) as lock, _opened(copy, reach) as present:
        recipient = _write(output, present.seed, kind, lock)
    recipient.write(half)
    click.echo(recipient.id)
    click.echo(f"private: {output}  public: {half}; server.yaml must say identity: {{unlock: {kind}}}", err=True)


@dataclass(frozen=True)
class Present:
    """An identity that was unlocked; its lock is None for a plain file."""

    seed: bytearray
    kind: str
    lock: Lock | None


@contextmanager
def _opened(file: Path, reach: Reach) -> Iterator[Present]:
    """Unlock a file, whatever its lock; the lock would make a new one as it made this one."""
    from pericard import hardening
    from pericard.keys import wipe
    from pericard.unlock import PlainFile, lock_of
    from pericard.unlock.locked import read

    hardening.harden()
    found = read(file)
    with contextlib.ExitStack() as after:
        if found is None:
            present = Present(PlainFile(file).seed(), _PLAIN, None)
        else:
            bound = {name: found.parameters[name] for name in ("pcrs", "mount", "key") if name in found.parameters}
            lock = after.enter_context(closing(lock_of(reach.values(found.kind), new=bound)))
            present = Present(found.open(lock), found.kind, lock)
        after.callback(wipe, present.seed)
        yield present


@contextmanager
def _made(kind: str, reach: Reach, new: NewLock) -> Iterator[Lock | None]:
    """What a new file shall be locked with, or None if it shall be plain; nobody is asked for anything yet."""
    from pericard.errors import ConfigError
    from pericard.unlock import check, lock_of
    from pericard.unlock.passphrase import PassphraseLock, from_descriptor, from_terminal

    if kind == _PLAIN:
        yield None
        return
    check(kind, subject="--to")
    if kind == "systemd":
        raise ConfigError(
            "--to systemd: a credential of systemd holds the identity itself, so no file is locked with it",
            hint="systemd-creds encrypt --name=identity identity.key /etc/pericard/identity.cred, of a plain file; "
            "the guide on identities goes on from there",
        )
    lock: Lock
    if kind == "passphrase":
        ask = partial(from_terminal, "the new lock", twice=True, option="--new-passphrase-fd")
        fd = new.new_passphrase_fd
        lock = PassphraseLock(ask if fd is None else partial(from_descriptor, fd))
    else:
        wanted = {"pcrs": new.pcrs} if kind == "tpm" else {"mount": new.vault_mount, "key": new.vault_key}
        lock = lock_of(reach.values(kind), new={name: value for name, value in wanted.items() if value is not None})
    with closing(lock):
        yield lock


def _write(path: Path, seed: bytearray, kind: str, lock: Lock | None, *, replace: bool = False) -> Recipient:
    """Write an identity file, and see that it names who it should."""
    from pericard.errors import KeyFileInvalid
    from pericard.keys import Identity
    from pericard.unlock import LockedIdentity

    recipient = Identity(seed).recipient
    if lock is None:
        Identity.write_seed(path, seed, recipient.id, replace=replace)
        written = Identity.read(path).recipient.id
    else:
        LockedIdentity.seal(seed, kind, lock).write(path, replace=replace)
        written = LockedIdentity.read(path).recipient
    if written != recipient.id:
        raise KeyFileInvalid(f"{path}: holds another identity than was written to it")
    return recipient


def _absent(path: Path) -> None:
    """Asked before anybody is asked for a passphrase; writing sees to it again, in one step."""
    from pericard.errors import KeyFileInvalid

    if path.exists():
        raise KeyFileInvalid(f"{path}: exists already", hint="keys are never overwritten; move the old file away first")


def _split(options: dict[str, object]) -> tuple[Reach, NewLock]:
    given = cast("dict[str, Any]", options)  # click checked each against its option
    new = {name: given.pop(name) for name in NewLock.__dataclass_fields__ if name in given}
    return Reach(**given), NewLock(**new)
