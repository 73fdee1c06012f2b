"""What this process does to keep its memory to itself; called before any secret is read.

Rules of this room: the kernel is asked through ``prctl``, ``mlock`` and ``madvise`` by ctypes; what was asked for and
cannot be had raises; what is best effort is reported, never assumed. Order matters: setuid and exec reset "not
dumpable", so :func:`harden` runs after both.
"""

from __future__ import annotations

import ctypes
import errno
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
_MLOCK_ONFAULT = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SYS_MEMFD_SECRET = 447  # the same number on every architecture
_NO_FOLDER = "/proc/self"  # it is there, and not even root can make a file in it

#: glibc must keep its pages: with its defaults, a forward pass of a small model costs hundreds of page faults.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


#: The same for a process that runs already, by the numbers of glibc's ``malloc.h``.
_MALLOPT = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2}


def keep_pages() -> bool:
    """Have this process's allocator keep its pages as :data:`ALLOCATOR` says; whether it knows how.

    It may be called at any time and again: what loads a model calls it, so that every way into the house has it, the
    library's too, which cannot start its process anew. Up to a gigabyte that was freed stays with the process.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(_MALLOPT[name], int(value)) for name, value in ALLOCATOR.items()]  # all of them, whatever one says
    return all(taken)


def harden() -> None:
    """:func:`protect_memory`, and every file that this process makes is private.

    Raises:
        HardeningError: the kernel refused one of them.
    """
    os.umask(0o077)
    protect_memory()


def protect_memory() -> None:
    """No core dump, not dumpable (no ptrace or /proc/PID/mem for the same user), no new privileges.

    Raises:
        HardeningError: the kernel refused one of them.
    """
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

    Whoever needs a temporary file names the folder. Python would otherwise try candidates by writing to them, torch
    makes its compiler's cache folder when it is imported, and ONNX Runtime keeps a database.
    """
    tempfile.tempdir = _NO_FOLDER
    os.environ |= {
        "TMPDIR": _NO_FOLDER, "TORCHINDUCTOR_CACHE_DIR": _NO_FOLDER, "CUDA_CACHE_DISABLE": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime would make a device id and a database in the home folder
    }  # fmt: skip


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process as soon as its parent ends.

    Args:
        parent: the pid that started us; if it is gone already, this process ends now.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "parent-death signal")
    if os.getppid() != parent:
        os._exit(1)


def drop_network() -> bool:
    """Move this process into a network of its own, without any interface; whether the host allows it.

    To be called while there is one thread. Without privileges it takes a user namespace, in which we stay who we are.
    """
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return True
    # a process that is not dumpable does not own its /proc, and could not map its user
    if not _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) or _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    except OSError as error:  # half of it is done: files that we write would belong to nobody
        raise HardeningError("user namespace: this user cannot be mapped into it") from error
    return True


def swap_in_use() -> bool:
    """Whether the host has any swap that memory could be written to; yes where that cannot be found out."""
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) > 1
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # a kernel without swap has no such file; without /proc nobody knows
    except OSError:
        return True


class PrivateMemory:
    """Memory for secrets and weights: left out of core dumps, locked if allowed, zeroed on close.

    Attributes:
        size: bytes that were asked for.
        locked: whether it is locked, so that it is never swapped out (RLIMIT_MEMLOCK decides).
        secret: whether not even root can read it through the kernel.
    """

    def __init__(self, size: int, *, secret: bool = False) -> None:
        """Map ``size`` bytes of zeroed, private memory.

        Args:
            size: bytes.
            secret: take pages that the kernel itself unmaps (memfd_secret): ``/proc/PID/mem``, ptrace and a core dump
                give nothing of them, to root either. They are always locked, and slower to get.

        Raises:
            HardeningError: there is not so much, or the kernel has no secret memory for us.
        """
        self.size, self.secret = size, secret
        try:
            if secret:
                self._map = _secret_map(max(size, 1))
            else:
                self._map = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise _refused(size, error, secret=secret) from error
        self._map.madvise(_MADV_DONTDUMP)
        anchor = ctypes.c_char.from_buffer(self._map)
        self._address = ctypes.addressof(anchor)
        del anchor  # an exported pointer would keep the map from being closed
        self.locked = secret or _lock(self._address, len(self._map))

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


def _lock(address: int, size: int) -> bool:
    """Lock pages as they are first written: filled in advance, by one thread, they would cost a load half its time."""
    return bool(_libc.mlock2(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_uint(_MLOCK_ONFAULT)) == 0)


def _secret_map(size: int) -> mmap.mmap:
    descriptor = _libc.syscall(ctypes.c_long(_SYS_MEMFD_SECRET), ctypes.c_uint(os.O_CLOEXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)
    finally:
        os.close(descriptor)


def _refused(size: int, error: OSError, *, secret: bool) -> HardeningError:
    reason = (error.strerror or "i/o error").lower()
    if not secret:
        return HardeningError(f"private memory: {size} bytes cannot be had: {reason}")
    hint = {
        errno.ENOSYS: "the kernel was built without memfd_secret, or booted with secretmem.enable=0",
        errno.EAGAIN: "it counts against RLIMIT_MEMLOCK: raise LimitMEMLOCK= in the unit",
    }.get(error.errno or 0)
    return HardeningError(f"secret memory: {size} bytes cannot be had: {reason}", hint=hint)


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
