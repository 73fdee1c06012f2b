"""Which kinds of lock there are, and the way from values to seeds.

The built-in kinds are registered here and cannot be replaced. Another package adds one as an entry point of the group
``pericard.key_sources``: its name is the kind, its object is called with ``identity.options`` and returns a ``Lock``.
Only the one that is asked for is imported, since importing runs its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pericard.errors import ConfigError, KeySourceUnavailable, PericardError
from pericard.keys import wipe
from pericard.unlock.file import PlainFile
from pericard.unlock.locked import LockedFile, read
from pericard.unlock.source import KeySource, Lock
from pericard.unlock.values import UnlockValues

ENTRY_POINTS = "pericard.key_sources"
#: The kinds that need nothing but this package; the first two hold the identity itself.
KINDS = ("file", "systemd", "passphrase", "tpm", "vault")


def check(kind: str, *, subject: str = "identity.unlock") -> None:
    """Refuse a kind that cannot be had; imports nothing of it.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in KINDS and not _brought(kind):
        raise ConfigError(
            f"{subject}: {kind[:64]!r} is not a key source",
            hint=f"there are {', '.join(KINDS)}, and what installed packages add in {ENTRY_POINTS}",
        )


def lock_of(values: UnlockValues, *, new: Mapping[str, str] | None = None) -> Lock:
    """The lock of a kind.

    Args:
        values: how it is reached.
        new: what a new lock shall be bound to: ``pcrs`` for a TPM, ``mount`` and ``key`` for a transit engine.

    Raises:
        ConfigError: the kind is none, is no lock, or lacks a setting.
        KeySourceUnavailable: another package's lock does not load.
    """
    wanted = {name: str(value) for name, value in (new or {}).items()}
    match values.kind:
        case "passphrase":
            from pericard.unlock import passphrase  # noqa: PLC0415  (a kind is imported when it is asked for)

            fd = values.passphrase_fd
            ask = partial(passphrase.from_terminal, "the identity")
            return passphrase.PassphraseLock(ask if fd is None else partial(passphrase.from_descriptor, fd))
        case "tpm":
            from pericard.unlock.tpm import TpmLock  # noqa: PLC0415

            return TpmLock(values.tcti, pcrs=wanted.get("pcrs", "sha256:7"))
        case "vault":
            from pericard.unlock.vault import VaultLock  # noqa: PLC0415

            if values.vault is None:
                raise ConfigError(
                    "vault: needs an address and a token",
                    hint="identity.vault in server.yaml, or --vault and --vault-token on the command line",
                )
            return VaultLock(values.vault, mount=wanted.get("mount", "transit"), key=wanted.get("key", "pericard"))
        case "file" | "systemd":
            raise ConfigError(f"identity.unlock: {values.kind} is no lock, it holds the identity itself")
        case kind:
            return _load(kind, values.options)


def kind_in(path: Path) -> str:
    """The kind that an identity file says it is: ``file``, or its lock.

    Raises:
        KeyFileError: it is no identity file, cannot be read, or others could read it.
    """
    locked = read(path)
    return "file" if locked is None else locked.kind


@contextmanager
def sources(values: UnlockValues) -> Iterator[tuple[KeySource, ...]]:
    """The sources of every identity that is live: the current one, then the previous one if there is one.

    Raises:
        PericardError: a kind is none, or a file cannot be read.
    """
    previous = Path(values.previous) if values.previous else None
    plain = () if previous is None else (PlainFile(previous),)
    if values.kind == "file":
        yield (PlainFile(Path(values.path)), *plain)
        return
    if values.kind == "systemd":
        from pericard.unlock.systemd import Credential  # noqa: PLC0415

        yield (Credential(values.credential), *plain)
        return
    with closing(lock_of(values)) as lock:
        kind, current = values.kind, Path(values.path)
        if previous is None or read(previous) is None:
            yield (LockedFile(current, kind, lock), *plain)
        else:
            yield (LockedFile(current, kind, lock), LockedFile(previous, kind, lock))


def unlock(values: UnlockValues) -> list[bytearray]:
    """Every live identity's seed, the current one first; the caller wipes them.

    Raises:
        PericardError: one of them cannot be had.
    """
    found: list[bytearray] = []
    try:
        with sources(values) as every:
            found.extend(source.seed() for source in every)
    except BaseException:
        for seed in found:
            wipe(seed)
        raise
    return found


def _brought(kind: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINTS, name=kind))


def _load(kind: str, options: Mapping[str, str]) -> Lock:
    """Another package's lock; whatever goes wrong inside it is said in our words, since its own might say too much."""
    check(kind)
    found = _brought(kind)
    if len({point.value for point in found}) > 1:
        raise ConfigError(f"identity.unlock: {kind} is brought by more than one installed package")
    try:
        lock: Lock = found[0].load()(dict(options))
    except PericardError:
        raise
    except Exception as error:
        raise KeySourceUnavailable(f"key source {kind}: does not load ({type(error).__name__})") from error
    return lock
