"""Wiping secrets, as far as CPython allows.

``bytes`` cannot be cleared through Python. Where a library returns a secret as ``bytes``, :func:`take` moves it into a
``bytearray`` and clears the original through its address; this relies on CPython's object layout and is a
best effort, never a promise.
"""

from __future__ import annotations

import ctypes

_BYTES_HEADER = bytes.__basicsize__ - 1


def wipe(buffer: bytearray | memoryview) -> None:
    """Overwrite a writable buffer with zeros."""
    view = memoryview(buffer).cast("B")
    if len(view):
        ctypes.memset((ctypes.c_char * len(view)).from_buffer(view), 0, len(view))
    view.release()


def take(secret: bytes) -> bytearray:
    """Move a secret out of ``bytes`` into a ``bytearray`` and clear the original.

    Short ``bytes`` are shared by the interpreter (length 0 and 1), so those are left alone.
    """
    moved = bytearray(secret)
    if len(secret) > 1:
        ctypes.memset(id(secret) + _BYTES_HEADER, 0, len(secret))
    return moved
