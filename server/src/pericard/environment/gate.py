"""The judgement at start: whether this process runs in the environment that was locked, before it touches a key.

Rules of this room: it is asked once, by the process that is started first, and its children are told. ``enforce``
raises, ``warn`` says so and goes on, ``off`` looks at nothing, and ``auto`` is ``enforce`` as soon as there is a
manifest. There is one only if nothing hides it: what cannot be looked at is refused, never taken for absent.

With a manifest every file is held against it. Without one, ``enforce`` in an environment that pip made holds what pip
recorded against the files; conda's records cannot vouch for themselves, so there a manifest is needed. ``warn``
without a manifest hashes nothing. All of it finds drift: an interpreter that somebody else has already changed says
what they like, which is why ``verifier`` is also a file outside of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pericard.environment import injected, installed, verifier
from pericard.environment.verifier import Finding, Manifest
from pericard.errors import EnvironmentDrift, ManifestUnusable

_SHOWN = 3
_HINT = (
    "start it with python -I and without such variables; pericard env verify shows all files; pericard env install "
    "makes the environment anew"
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found at the start.

    Attributes:
        mode: ``off``, ``warn`` or ``enforce``; what ``auto`` came to.
        state: ``verified`` (every file), ``drifted`` (something differs, and the mode is ``warn``), ``unlocked``
            (there is nothing to hold the files against, and they were not looked at) or ``off``.
        kind: ``conda`` or ``pip``: what made the environment, and so what its files were held against.
        lock: SHA-256 of the lock that was installed, hex; None without one.
        digest: of the lock's packages, hex; None without one. What python sees of them, each process finds by itself
            (``installed.describe``): what got into this one's module path does not get into its children's.
        findings: how many; also in an ``unlocked`` one, of code from elsewhere.
    """

    mode: str
    state: str
    kind: str
    lock: str | None
    digest: str | None
    findings: int


def judge(mode: str, manifest: Path, *, warn: Callable[[str], None]) -> Judgement:
    """Judge this process's environment; to be called before it hardens itself, which closes ``/proc/self`` to it.

    Args:
        mode: ``off``, ``warn``, ``enforce`` or ``auto``.
        manifest: where the manifest is, once there is one.
        warn: takes one line for the log, in ``warn`` where not everything is verified.

    Raises:
        EnvironmentDrift: in ``enforce``: a file is not what was installed, or code comes from elsewhere.
        ManifestUnusable: in ``enforce``: there is no manifest where one is needed, or it is not root's alone, or
            malformed; in ``auto`` also: whether there is one cannot be seen.
    """
    if mode == "off":
        return unjudged()
    kind = _kind()
    try:
        present = _present(manifest)
        mode = ("enforce" if present else "warn") if mode == "auto" else mode
        if present:
            read = _read(manifest)
            found = _held(read)
            verdict = Judgement(mode, _state(found), read.kind, read.lock, read.digest, len(found))
        else:
            found = _unlocked(mode, kind, manifest)
            state = _state(found) if mode == "enforce" else "unlocked"
            verdict = Judgement(mode, state, kind, None, None, len(found))
    except ManifestUnusable as error:
        if mode != "warn":
            raise
        found = [*injected.find(), Finding("manifest", str(manifest), error.message)]
        verdict = Judgement(mode, "drifted", kind, None, None, len(found))
    if mode == "enforce" and found:
        raise EnvironmentDrift(f"environment: {_words(found)}", hint=_HINT)
    if verdict.state != "verified":
        why = "is not what was locked" if verdict.state == "drifted" else f"is not locked: {manifest} is not there"
        warn(f"environment: {why}{'; ' + _words(found) if found else ''}")
    return verdict


def unjudged() -> Judgement:
    """Nobody looked."""
    return Judgement("off", "off", _kind(), None, None, 0)


def require_manifest(mode: str, manifest: Path) -> None:
    """Read the manifest as :func:`judge` will, and hold nothing against it.

    Raises:
        ManifestUnusable: :func:`judge` would raise it.
    """
    if mode == "off":
        return
    if _present(manifest):
        _read(manifest)
    elif mode == "enforce" and _kind() == "conda":
        raise _needed(manifest)


def _kind() -> str:
    return "conda" if Path(sys.prefix, "conda-meta").is_dir() else "pip"


def _state(found: list[Finding]) -> str:
    return "drifted" if found else "verified"


def _present(manifest: Path) -> bool:
    """Whether there is a manifest; no only where its folder can be searched, or is not there either."""
    try:
        manifest.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        reason = (error.strerror or "i/o error").lower()
        raise ManifestUnusable(
            f"{manifest}: whether it is there cannot be seen: {reason}",
            hint="the account that serves must be able to look into its folder: mode 755, owned by root",
        ) from error
    return True


def _read(manifest: Path) -> Manifest:
    try:
        return verifier.read(manifest)
    except (verifier.Refused, OSError) as error:
        raise ManifestUnusable(
            verifier.printable(str(error)), hint="pericard env install writes it, as root, mode 644"
        ) from error


def _held(manifest: Manifest) -> list[Finding]:
    """This interpreter and what gets into it, and then every file, against the manifest."""
    prefix = manifest.prefix.resolve()
    places = dict.fromkeys(Path(place).resolve() for place in (*injected.prefixes(), sys.executable))
    elsewhere = [
        Finding("prefix", str(place), f"{place}: is where this interpreter is from, not {manifest.prefix}")
        for place in places
        if not place.is_relative_to(prefix)
    ]
    found = [*injected.find([str(prefix)]), *elsewhere]  # what somebody set comes first: three are shown
    return found if elsewhere else found + verifier.check(manifest)  # files that do not run here say nothing


def _unlocked(mode: str, kind: str, manifest: Path) -> list[Finding]:
    """What is found without a manifest."""
    if mode == "enforce" and kind == "conda":
        raise _needed(manifest)
    found = injected.find()
    if mode == "enforce":
        try:
            installed.verify()
        except EnvironmentDrift as error:
            found.append(Finding("changed", "", error.message))
    return found


def _needed(manifest: Path) -> ManifestUnusable:
    return ManifestUnusable(
        f"{manifest}: is not there, and what conda recorded cannot vouch for itself",
        hint="install a lock, which writes it: pericard env install",
    )


def _words(found: list[Finding]) -> str:
    """How many, and the first of them."""
    first = "; ".join(finding.message for finding in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} finding{'' if len(found) == 1 else 's'}: {verifier.printable(first)}{more}"
