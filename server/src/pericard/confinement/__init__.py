"""How the engine locks itself in: before torch is imported, before a key arrives, for good.

Rules of this room: it is called once, by a process with one thread, after hardening (setuid and exec would undo that).
Three layers, each with one task: :mod:`seccomp` means no network, no programs and no other process, and is always
needed; :mod:`landlock` means read-only files, where the kernel has it; and no capabilities are left. What is in force
is found by trying, not by flags. Nothing here makes a namespace: a network namespace stops nothing that seccomp does
not, and from inside it takes a user namespace, which some hosts give by half. ctypes and the standard library only.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from pericard.confinement import landlock, privileges, seccomp, tries
from pericard.errors import HardeningError

LAYERS: Final = ("seccomp", "landlock", "capabilities", "no_new_privileges")

_SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl",
    "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/gai.conf", "/etc/services",
)  # fmt: skip

_logger = logging.getLogger(__name__)


def confine(
    *, writable: Collection[Path], devices: Collection[Path] = (), require: Collection[str] = ()
) -> dict[str, Any]:
    """Lock this process in, for good; what is in force, as plain values for the audit log.

    Args:
        writable: folders in which regular files may be made, changed and removed; everything else is read-only.
        devices: device files, or folders of them, to be used.
        require: layers without which nothing may start; seccomp is always one.

    Returns:
        ``layers``: whether each is in force; ``landlock_abi``: its version, 0 for none; ``tries``: what each way out
        gave; ``status``: what the kernel says of the process.

    Raises:
        HardeningError: a layer that is needed cannot be had, or one that is there does not stop what it should.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise HardeningError(f"confinement: {threads} threads run already, and not every layer would reach them")
    try:
        privileges.drop()
        abi = landlock.restrict(writable, devices)
        _refuse_without("landlock", bool(abi), require)
        seccomp.install()
    except OSError as error:
        raise _missing("seccomp", (error.strerror or "i/o error").lower()) from error
    found = examine()
    _hold(found, abi)
    if not abi:
        _logger.warning("landlock: this kernel has none for us; the engine's files are protected by their modes alone")
    return found | {"landlock_abi": abi, "layers": dict.fromkeys(LAYERS, True) | {"landlock": bool(abi)}}


def shed(*, readable: Collection[Path], writable: Collection[Path]) -> int:
    """Give up, for good, what a process with a network does not need: capabilities, and where Landlock is, other files.

    No seccomp: it needs the network. What it runs from can be read (the system's and the interpreter's folders, what
    finds hosts by name), and nothing else, whoever the user is.

    Args:
        readable: files and folders that may be read, beside those.
        writable: folders in which regular files may be made, changed and removed.

    Returns:
        Landlock's version; 0 where there is none.

    Raises:
        HardeningError: no new privileges could not be forbidden, or Landlock is there and refuses.
    """
    try:
        privileges.drop()
    except OSError as error:
        raise _missing("no new privileges", (error.strerror or "i/o error").lower()) from error
    own = (sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parent.parent))
    return landlock.restrict(writable, (), readable=[*map(Path, (*own, *_SYSTEM)), *readable], network=True)


def absent() -> dict[str, Any]:
    """What :func:`confine` would say of a process that was not locked in."""
    return {"layers": dict.fromkeys(LAYERS, False), "landlock_abi": 0, "tries": {}, "status": {}}


def examine() -> dict[str, Any]:
    """Try every way out, and ask the kernel: ``tries`` and ``status``."""
    return {"tries": tries.run((*tries.OF_SECCOMP, *tries.OF_LANDLOCK)), "status": privileges.status()}


def cuda_devices() -> list[Path]:
    """The device files of CUDA that this host has; their makers' programs could not be run from inside."""
    return sorted(Path("/dev").glob("nvidia*"))


def _hold(found: dict[str, Any], abi: int) -> None:
    """Refuse a layer that is said to be there and does not stop what it should."""
    results, status = found["tries"], found["status"]
    for layer, names in (("seccomp", tries.OF_SECCOMP), ("landlock", tries.OF_LANDLOCK if abi else ())):
        for name in names:
            stopped = results[name] == "EPERM" if layer == "seccomp" else results[name] != tries.OPEN
            if not stopped:
                raise HardeningError(f"{layer}: is in force and does not stop the way out {name!r}: {results[name]}")
    if not privileges.none_left(status):
        raise HardeningError("capabilities: some are left after all were given up")
    if status.get("NoNewPrivs") != "1" or status.get("Seccomp") != "2":
        raise HardeningError("confinement: the kernel does not confirm it")


def _refuse_without(layer: str, there: bool, require: Collection[str]) -> None:
    if not there and layer in require:
        raise _missing(layer, "this kernel has none, or a filter around us forbids it")


def _missing(layer: str, reason: str) -> HardeningError:
    return HardeningError(
        f"{layer}: is required and cannot be had: {reason}",
        hint="a container's or a unit's own filter may forbid it; without seccomp no engine starts",
    )
