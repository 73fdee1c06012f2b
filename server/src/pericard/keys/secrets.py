"""Wiping secrets, as far as CPython allows.

``bytes`` cannot be cleared through Python. Where a library returns a secret as ``bytes``, :func:`take` moves it into a
``bytearray`` and clears the original through its address; this relies on CPython's object layout and is a
best effort, never a promise. Where a library frees a copy of its own without clearing it, :func:`overwriting` has the
allocator do so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_BYTES_HEADER = bytes.__basicsize__ - 1
_libc = ctypes.CDLL(None)
_mallopt = getattr(_libc, "mallopt", None)  # glibc's; another C library has none
_malloc, _free = _libc.malloc, _libc.free
_malloc.restype, _malloc.argtypes, _free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
_M_PERTURB = -6
_FILLER = 0xA5
_CACHED_SIZES = range(24, 1033, 16)  # usable sizes that a thread's cache of free blocks has room for,
_CACHED = 7  # and how many of each


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


@contextmanager
def overwriting() -> Iterator[None]:
    """Whatever this thread frees inside the block is overwritten when the block ends; on glibc, elsewhere nothing is.

    OpenSSL's Argon2, for one, is handed the passphrase in a parameter block that is freed as it is. The allocator fills
    what it frees, except for small blocks, which it puts into a cache: those are taken out once and filled by hand.
    """
    if _mallopt is None:
        yield
        return
    _mallopt(_M_PERTURB, _FILLER)
    try:
        yield
    finally:
        _mallopt(_M_PERTURB, 0)
        for size in _CACHED_SIZES:
            blocks = [_malloc(size) for _ in range(_CACHED)]
            for block in filter(None, blocks):
                ctypes.memset(block, 0, size)
                _free(block)
