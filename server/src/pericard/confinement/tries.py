"""What an attacker inside would get: each way out is tried, harmlessly, and its answer kept.

Rules of this module: a try changes nothing when it succeeds: what it opens it closes, what it makes it removes, what it
asks is nonsense that only a kernel which lets the call through would notice. Its result is ``open`` or the name of the
error that stopped it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NamedTuple

from pericard.confinement.calls import call

OPEN: Final = "open"

_AF_VSOCK = 40
_PTRACE_PEEKDATA, _PR_SET_DUMPABLE, _F_SETOWN, _TIOCSTI = 2, 4, 8, 0x5412
_NOBODYS_PAGE = 0x1000


class _Try(NamedTuple):
    attempt: Callable[[], object]
    through: Collection[int] = ()  # errors that only a call which was let through has


def run(names: Collection[str]) -> dict[str, str]:
    """Make these tries; each one's result."""
    return {name: _result(_TRIES[name]) for name in names}


def _result(tried: _Try) -> str:
    try:
        tried.attempt()
    except OSError as error:
        number = error.errno or 0
        return OPEN if number in tried.through else errno.errorcode.get(number, str(number))
    return OPEN


def _socket(family: int, kind: int = socket.SOCK_STREAM) -> _Try:
    return _Try(lambda: socket.socket(family, kind).close())


def _socketpair() -> None:
    for end in socket.socketpair():
        end.close()


def _fork() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def _read_parent() -> None:
    byte = ctypes.create_string_buffer(1)
    ours, theirs = (struct.pack("@PN", address, 1) for address in (ctypes.addressof(byte), _NOBODYS_PAGE))
    call("process_vm_readv", os.getppid(), ours, 1, theirs, 1, 0)


def _create() -> None:
    path = Path(f"/dev/shm/.pericard-{os.getpid()}")  # noqa: S108  (a folder that everybody may write)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.unlink()


_TRIES = {
    "tcp": _socket(socket.AF_INET),
    "tcp6": _socket(socket.AF_INET6),
    "udp": _socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": _socket(socket.AF_UNIX),
    "netlink": _socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "vsock": _socket(_AF_VSOCK),
    "socketpair": _Try(_socketpair),
    "fork": _Try(_fork),
    "exec": _Try(lambda: call("execve", b"", None, None), {errno.ENOENT, errno.EFAULT}),
    "ptrace": _Try(lambda: call("ptrace", _PTRACE_PEEKDATA, os.getppid(), 0, 0), {errno.ESRCH}),
    "read-parent": _Try(_read_parent, {errno.EFAULT}),
    "signal": _Try(lambda: os.kill(os.getppid(), 0)),
    "owner": _Try(lambda: call("fcntl", -1, _F_SETOWN, os.getppid()), {errno.EBADF}),
    "limits": _Try(lambda: call("prlimit64", os.getppid(), -1, None, None), {errno.EINVAL}),
    "io_uring": _Try(lambda: call("io_uring_setup", 0, None), {errno.EINVAL, errno.EFAULT}),
    "namespace": _Try(lambda: call("unshare", 0)),
    "mount": _Try(lambda: call("fsopen", None, 0), {errno.EFAULT}),
    "keyring": _Try(lambda: call("keyctl", -1, 0, 0, 0, 0), {errno.EOPNOTSUPP}),
    "mode": _Try(lambda: call("fchmodat", -1, b"", 0), {errno.ENOENT, errno.EBADF}),
    "terminal": _Try(lambda: call("ioctl", -1, _TIOCSTI, 0), {errno.EBADF}),
    "dumpable": _Try(lambda: call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)),
    # a device that anybody may write
    "write": _Try(lambda: os.close(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC))),
    "create": _Try(_create),
}

#: What Landlock must stop, and what seccomp must.
OF_LANDLOCK: Final = ("write", "create")
OF_SECCOMP: Final = tuple(name for name in _TRIES if name not in OF_LANDLOCK)
