"""The system calls that this room refuses or makes, with their numbers on each machine that it knows.

Rules of this module: a number stands here only if a kernel header says it; a call that a machine does not have is None.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import NamedTuple

from pericard.errors import HardeningError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_Numbers = dict[str, tuple[int | None, int | None]]

#: Refused whatever their arguments are: (x86_64, aarch64).
REFUSED: _Numbers = {
    # the network, and every other way to be connected
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # programs and processes; clone is looked at more closely
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "uselib": (134, None),
    # other processes: their memory, their descriptors, their end
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "tkill": (200, 130),
    # messages and memory shared by name
    "mq_open": (240, 180), "mq_unlink": (241, 181), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    # a second way into the kernel, past this filter
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "open_tree_attr": (467, 467), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "statmount": (457, 457), "listmount": (458, 458),
    # what Landlock does not cover: who may open a file of ours, and files opened by number
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchown": (93, 55), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "mknod": (133, None), "mknodat": (259, 33),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "acct": (163, 89), "personality": (135, 92), "syslog": (103, 116), "lookup_dcookie": (212, 18),
    "vhangup": (153, 58), "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "nfsservctl": (180, 42), "modify_ldt": (154, None), "iopl": (172, None),
    "ioperm": (173, None), "seccomp": (317, 277), "lsm_set_self_attr": (460, 460),
}  # fmt: skip

#: Looked at more closely by the filter, or made by this room.
OTHER: _Numbers = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "prlimit64": (302, 261), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "ioctl": (16, 29), "fcntl": (72, 25), "prctl": (157, 167), "fchmod": (91, 52),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip


class Machine(NamedTuple):
    """A kind of processor.

    Attributes:
        arch: how the kernel's audit names it; a filter sees it beside each call.
        foreign: numbers from here on belong to another set of calls (x32), or None.
        numbers: of every call of this page that it has.
    """

    arch: int
    foreign: int | None
    numbers: dict[str, int]


def _machine(column: int, arch: int, foreign: int | None) -> Machine:
    found = {name: numbers[column] for name, numbers in (REFUSED | OTHER).items()}
    return Machine(arch, foreign, {name: number for name, number in found.items() if number is not None})


MACHINES = {
    "x86_64": _machine(0, 0xC000003E, 0x40000000),
    "aarch64": _machine(1, 0xC00000B7, None),
}


def this_machine() -> Machine:
    """The machine that we run on.

    Raises:
        HardeningError: its system calls are not known here.
    """
    name = platform.machine()
    if name not in MACHINES:
        raise HardeningError(f"confinement: the system calls of {name} are not known", hint="x86_64 and aarch64 are")
    return MACHINES[name]


def call(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call.

    Raises:
        OSError: the kernel, or a filter before it, refused.
    """
    number = this_machine().numbers[name]
    given = (ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments)
    result = int(_libc.syscall(ctypes.c_long(number), *given))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def prctl(option: int, *arguments: int) -> int:
    """Make the call ``prctl``; arguments that are left out are zero, as it wants them.

    Raises:
        OSError: the kernel refused.
    """
    return call("prctl", option, *(*arguments, 0, 0, 0, 0)[:4])
