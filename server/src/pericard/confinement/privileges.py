"""Capabilities: none left, none to be had.

Rules of this module: this thread has what it has, so it comes before other threads. What a process without privileges
cannot give up (the bounding set) it cannot use either, since it gets no new privileges.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import struct
from pathlib import Path

from pericard.confinement.calls import prctl

_libc = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_VERSION_3 = 0x20080522
_MOST = 64
_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_FIELDS = ("NoNewPrivs", "Seccomp", "Seccomp_filters", *_SETS, "CapBnd")


def drop() -> None:
    """Give up every capability; whether that succeeded is for :func:`none_left` to say.

    Raises:
        OSError: no new privileges could not be forbidden.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _keep_locking()
    with contextlib.suppress(OSError):  # not ours to give up, or the last one
        for capability in range(_MOST):
            prctl(_PR_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _libc.capset(struct.pack("=Ii", _VERSION_3, 0), bytes(24))


def status() -> dict[str, str]:
    """What the kernel says of this process's privileges and filters."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: fields[name] for name in _FIELDS if name in fields}


def none_left(found: dict[str, str]) -> bool:
    """Whether a status shows no capability that is in use or could be taken into use."""
    return all(name in found and not int(found[name], 16) for name in _SETS)


def _keep_locking() -> None:
    """Raise the limit of locked memory as far as we may: from now on it counts for root too."""
    limit = resource.RLIMIT_MEMLOCK
    for most in (resource.RLIM_INFINITY, resource.getrlimit(limit)[1]):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
            return
