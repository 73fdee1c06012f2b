"""What this process does to keep its memory to itself; called before any secret is read.

Rules of this room: the kernel is asked through ``prctl``, ``mlock`` and ``madvise`` by ctypes; what was asked for and
cannot be had raises; what is best effort is reported, never assumed. Order matters: setuid and exec reset "not
dumpable", so :func:`harden` runs after both.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import tempfile
from pathlib import Path
from typing import Self

from pericard.errors import HardeningError
from pericard.keys import wipe

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_MADV_DONTDUMP = 16
_NO_FOLDER = "/proc/self"  # it is there, and not even root can make a file in it

#: glibc must keep its pages: with its defaults, a forward pass of a small model costs hundreds of page faults.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def harden() -> None:
    """No core dump, not dumpable (no ptrace or /proc/PID/mem for the same user), private files, no new privileges.

    Raises:
        HardeningError: the kernel refused one of them.
    """
    os.umask(0o077)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        raise HardeningError("core dumps: cannot be switched off") from error
    _prctl(_PR_SET_DUMPABLE, 0, "dumpable flag")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no-new-privileges flag")
    if _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise HardeningError("dumpable flag: is still set after it was cleared")


def forbid_temporary_files() -> None:
    """Make every library's temporary or cache file fail: the default folders become ones that take no file.

    Whoever needs a temporary file names the folder. Python would otherwise try candidates by writing to them, and torch
    makes its compiler's cache folder when it is imported.
    """
    tempfile.tempdir = _NO_FOLDER
    os.environ |= {"TMPDIR": _NO_FOLDER, "TORCHINDUCTOR_CACHE_DIR": _NO_FOLDER, "CUDA_CACHE_DISABLE": "1"}


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process as soon as its parent ends.

    Args:
        parent: the pid that started us; if it is gone already, this process ends now.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "parent-death signal")
    if os.getppid() != parent:
        os._exit(1)


def swap_in_use() -> bool:
    """Whether the host has any swap that memory could be written to; yes where that cannot be found out."""
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) > 1
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # a kernel without swap has no such file; without /proc nobody knows
    except OSError:
        return True


class PrivateMemory:
    """Anonymous memory for secrets and weights: left out of core dumps, locked if allowed, zeroed on close.

    Attributes:
        size: bytes that were asked for.
        locked: whether ``mlock`` succeeded (RLIMIT_MEMLOCK decides).
    """

    def __init__(self, size: int) -> None:
        """Map ``size`` bytes of zeroed, private memory.

        Raises:
            HardeningError: there is not so much.
        """
        self.size = size
        try:
            self._map = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            reason = (error.strerror or "i/o error").lower()
            raise HardeningError(f"private memory: {size} bytes cannot be had: {reason}") from error
        self._map.madvise(_MADV_DONTDUMP)
        anchor = ctypes.c_char.from_buffer(self._map)
        self._address = ctypes.addressof(anchor)
        del anchor  # an exported pointer would keep the map from being closed
        self.locked = _libc.mlock(ctypes.c_void_p(self._address), ctypes.c_size_t(len(self._map))) == 0

    @property
    def view(self) -> memoryview:
        """A writable view of exactly ``size`` bytes; release it before :meth:`close`."""
        return memoryview(self._map)[: self.size]

    def wipe(self) -> None:
        """Overwrite everything with zeros."""
        if not self._map.closed:
            ctypes.memset(self._address, 0, len(self._map))

    def close(self) -> None:
        """Zero and unmap. Views that are still held keep the (zeroed) mapping alive."""
        self.wipe()
        try:
            self._map.close()
        except BufferError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock_secret(secret: bytearray) -> PrivateMemory:
    """Move a secret into private memory and wipe the original."""
    held = PrivateMemory(len(secret))
    held.view[:] = secret
    wipe(secret)
    return held


def _prctl(option: int, value: int, subject: str) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno()).lower()
        raise HardeningError(f"{subject}: the kernel refused: {reason}")
