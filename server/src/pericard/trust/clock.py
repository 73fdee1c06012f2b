"""Whether the kernel says that its clock is synchronised; asked of ``adjtimex``, which needs no privilege to read.

Licence time believes a clock for good only then: a machine that starts with a dead battery, or whose time somebody
set by hand, must not end licences for ever.
"""

from __future__ import annotations

import ctypes

_ERROR = 5  # TIME_ERROR: the clock is not synchronised
_UNSYNCHRONISED = 0x0040  # STA_UNSYNC


class _Timex(ctypes.Structure):
    """The head of Linux's ``struct timex``; the rest is room for the kernel to fill."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]


def synchronised() -> bool:
    """Whether the kernel's clock is synchronised; what cannot be asked is not."""
    try:
        ask = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):  # no such system call here
        return False
    found = _Timex()  # modes 0: only read
    state = int(ask(ctypes.byref(found)))
    return 0 <= state < _ERROR and not found.status & _UNSYNCHRONISED
