"""The filter of system calls: no network, no programs, no other process, nothing that undoes it.

Rules of this module: a list of what is refused, since what torch, CUDA and glibc need changes with each of them, while
the ways out are the kernel's and known. Refused calls fail with EPERM, so that a library sees an error and not its end;
calls of another set (32-bit, x32) end the process. Only the low half of an argument is compared where the kernel reads
no more. Every path through the program returns, so each check begins with the call's number at hand.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Collection

from pericard.confinement.calls import REFUSED, Machine, call, this_machine
from pericard.errors import HardeningError

_Instruction = tuple[int, int, int, int]

# classic BPF: load a word of the call's description; jump if equal, not below, any bit set; mask; return
_LOAD, _EQUAL, _NOT_BELOW, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

_KILL: _Instruction = (_RETURN, 0, 0, 0x80000000)
_ALLOW: _Instruction = (_RETURN, 0, 0, 0x7FFF0000)
_REFUSE: _Instruction = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
_UNKNOWN: _Instruction = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)

_CLONE_THREAD, _CLONE_NEW_NAMESPACES = 0x00010000, 0x7E020000
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1

#: Calls whose first argument is a process, which must be this one (or 0, where that means this one).
_ON_ITSELF = {
    "kill": False, "tgkill": False, "rt_sigqueueinfo": False, "rt_tgsigqueueinfo": False,
    "prlimit64": True, "migrate_pages": True, "move_pages": True,
}  # fmt: skip

#: Of these calls, some commands only: (position of the command, commands that are refused).
_COMMANDS = {
    # typing into the terminal (TIOCSTI, TIOCLINUX), and having any signal sent to anybody when a descriptor is ready
    "ioctl": (1, (0x5412, 0x541C, 0x8901, 0x8902)),
    "fcntl": (1, (8, 10, 15)),
    # what hardening set: end with the parent, not dumpable; and PR_SET_MM, PR_SET_PTRACER
    "prctl": (0, (1, 4, 35, 0x59616D61)),
}
_OWNERS_ONLY = 0o600  # what fchmod may give


def program(machine: Machine, pid: int) -> list[_Instruction]:
    """The filter for a process, as instructions of classic BPF."""
    numbers = machine.numbers
    made = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, machine.arch), _KILL, (_LOAD, 0, 0, _NUMBER)]
    if machine.foreign is not None:
        made += [(_NOT_BELOW, 0, 1, machine.foreign), _KILL]
    # glibc then takes clone, whose flags can be seen
    made += _when(numbers["clone3"], [_UNKNOWN])
    made += _when(numbers["clone"], [
        _argument(0), (_AND, 0, 0, _CLONE_THREAD | _CLONE_NEW_NAMESPACES), (_EQUAL, 0, 1, _CLONE_THREAD),
        _ALLOW, _REFUSE,
    ])  # fmt: skip
    for name, zero in _ON_ITSELF.items():
        made += _when(numbers[name], _only(0, (pid, 0) if zero else (pid,)))
    for name, (position, commands) in _COMMANDS.items():
        made += _when(numbers[name], _never(position, commands))
    made += _when(numbers["fchmod"], [_argument(1), (_ANY_BIT, 0, 1, 0o7777 & ~_OWNERS_ONLY), _REFUSE, _ALLOW])
    for name in REFUSED:
        if name in numbers:
            made += _when(numbers[name], [_REFUSE])
    return [*made, _ALLOW]


def install() -> None:
    """Put every thread of this process under the filter, for good.

    Raises:
        OSError: the kernel has no filters, or one that is there already forbids them.
        HardeningError: this machine is not known, or a thread could not be made to follow.
    """
    made = program(this_machine(), os.getpid())
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in made))
    handed = struct.pack("@HP", len(made), ctypes.addressof(code))
    behind = call("seccomp", _SET_MODE_FILTER, _FLAG_TSYNC, handed)
    if behind:  # success is 0; the number of a thread is not
        raise HardeningError(f"seccomp: thread {behind} does not follow the filter")


def _when(number: int, body: list[_Instruction]) -> list[_Instruction]:
    return [(_EQUAL, 0, len(body), number), *body]


def _argument(position: int) -> _Instruction:
    """Load the low half of an argument; both machines store it first."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * position)


def _only(position: int, values: Collection[int]) -> list[_Instruction]:
    checks = [step for value in values for step in ((_EQUAL, 0, 1, value), _ALLOW)]
    return [_argument(position), *checks, _REFUSE]


def _never(position: int, values: Collection[int]) -> list[_Instruction]:
    checks = [step for value in values for step in ((_EQUAL, 0, 1, value), _REFUSE)]
    return [_argument(position), *checks, _ALLOW]
