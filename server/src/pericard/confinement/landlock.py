"""Landlock: every file read-only, but for what is named; where the kernel has it, as far as its version goes.

Rules of this module: it acts on the calling thread and those made later, so it comes first. A right that the kernel
does not know yet is left out; what it knows is asked for, and a refusal then is an error. Programs cannot be run, which
leaves libraries loadable. A folder that takes new files takes regular ones only, and none of them leaves it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pericard.confinement.calls import call
from pericard.errors import HardeningError

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE, _IOCTL_DEV = 1 << 5, 1 << 8, 1 << 14, 1 << 15
_ON_A_FILE = 1 << 0 | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

READ = _READ_FILE | _READ_DIR
KEEP = READ | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE
DEVICE = READ | _WRITE_FILE | _IOCTL_DEV

_RULE_PATH_BENEATH = 1
_WITH_NETWORK, _WITH_SCOPES = 4, 6  # the versions that brought them
_FLAG_VERSION = 1


class Handled(NamedTuple):
    """What one version of Landlock can forbid: rights on files, on the network, and beyond its own domain."""

    files: int
    network: int
    scopes: int


def handled(abi: int) -> Handled:
    """What is forbidden under a version, but for what rules give."""
    files = (1 << 13) - 1  # version 1: execute … make symbolic links
    for since, bit in ((2, 13), (3, 14), (5, 15)):  # move between folders, truncate, ioctl on devices
        files |= (abi >= since) << bit
    return Handled(
        files, 3 * (abi >= _WITH_NETWORK), 3 * (abi >= _WITH_SCOPES)
    )  # TCP: bind, connect; abstract sockets, signals


def version() -> int:
    """The kernel's version of Landlock; 0 where there is none, or a filter forbids it."""
    try:
        return call("landlock_create_ruleset", None, 0, _FLAG_VERSION)
    except OSError:
        return 0


def restrict(
    writable: Iterable[Path],
    devices: Iterable[Path],
    *,
    readable: Iterable[Path] = (Path("/"),),
    network: bool = False,
) -> int:
    """Restrict this thread; the version that is in force, or 0.

    Args:
        readable: files and folders that may be read; by default all of them.
        network: whether TCP may be used.
        writable: folders whose regular files may be made, written, cut, renamed and removed.
        devices: device files, or folders of them, that may be read, written and controlled.

    Raises:
        HardeningError: the kernel has Landlock and refuses it.
    """
    abi = version()
    if not abi:
        return 0
    wanted = handled(abi)._replace(network=0) if network else handled(abi)
    known = 1 + (abi >= _WITH_NETWORK) + (abi >= _WITH_SCOPES)  # a kernel refuses fields that it does not know
    attributes = struct.pack("=QQQ", *wanted)[: 8 * known]
    try:
        ruleset = call("landlock_create_ruleset", attributes, len(attributes), 0)
        try:
            for paths, rights in ((readable, READ), (writable, KEEP), (devices, DEVICE)):
                for path in paths:
                    _allow(ruleset, path, rights & handled(abi).files)
            call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise HardeningError(f"landlock: the kernel refused: {(error.strerror or 'i/o error').lower()}") from error
    return abi


def _allow(ruleset: int, path: Path, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # what is not there is nothing that could be written
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= _ON_A_FILE
            call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
        finally:
            os.close(place)
