"""What one byte costs in each step that loading is made of, measured alone, hot, in one thread.

The rates serve to say what limits a row: a row's steps are known by construction, their price comes from here.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ways import MEBIBYTE

#: Labels of the rows that are rates and no loads.
CRYPTOGRAPHY = "AES-256-GCM, cryptography's OpenSSL, hot"
OPENSSL = "AES-256-GCM, the host's `openssl speed`"

_PAGE = mmap.PAGESIZE


def measure(path: Path, size: int) -> dict[str, dict[str, float]]:
    """Wall and CPU seconds per byte of each step.

    Args:
        path: a file in the page cache.
        size: how many bytes to spend on each step.
    """
    import numpy as np
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from pericard.hardening import PrivateMemory

    size -= size % MEBIBYTE
    rounds = size // MEBIBYTE
    chunk = bytearray(os.urandom(MEBIBYTE))
    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    sealed = cipher.encrypt(nonce, chunk, None)
    kept: list[object] = []  # until a step was timed: giving memory back is not part of it

    def fresh() -> None:
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(area, np.uint8)[::_PAGE] = 1
        kept.append(area)

    def private() -> None:
        memory = PrivateMemory(size)
        np.frombuffer(memory.view, np.uint8)[::_PAGE] = 1
        kept.append(memory)

    def mapped() -> None:
        with path.open("rb") as source:
            area = mmap.mmap(source.fileno(), size, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
        kept.append(int(np.frombuffer(area, np.uint8)[::_PAGE].sum()))

    def read() -> None:
        with path.open("rb", buffering=0) as source:
            for place in range(rounds):
                if os.preadv(source.fileno(), [chunk], place * MEBIBYTE) != MEBIBYTE:
                    raise AssertionError(f"{path.name}: is shorter than {size} bytes")

    first, second = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def copy() -> None:
        second[:] = first

    def hashing() -> None:
        for _ in range(rounds):
            hashlib.sha256(chunk)

    def decrypt() -> None:
        for _ in range(rounds):
            cipher.decrypt_into(nonce, sealed, None, chunk)

    hashing()  # once untimed: the processor is awake
    steps = {
        "fresh pages": fresh,
        "private pages": private,
        "mapped pages": mapped,
        "read": read,
        "copy": copy,
        "SHA-256": hashing,
        "AES-256-GCM": decrypt,
    }
    found = {}
    for name, step in steps.items():
        found[name] = _timed(step, size)
        kept.clear()
    return found


def _timed(step: Callable[[], None], size: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return {"wall": (time.perf_counter() - wall) / size, "cpu": (time.process_time() - cpu) / size}


def openssl_version() -> str | None:
    """The version of the host's ``openssl``, or None where there is none."""
    if shutil.which("openssl") is None:
        return None
    found = subprocess.run(["openssl", "version"], capture_output=True, text=True, timeout=20, check=True).stdout
    return found.split()[1]


def openssl_speed() -> float:
    """Seconds of CPU time that the host's ``openssl`` takes to decrypt a byte, hot, in one thread."""
    speed = ["openssl", "speed", "-mr", "-seconds", "1", "-bytes", str(MEBIBYTE), "-decrypt", "-evp", "aes-256-gcm"]
    found = subprocess.run(speed, capture_output=True, text=True, timeout=60, check=True).stdout
    rate = re.search(r"^\+F:.*:([0-9.]+)$", found, re.MULTILINE)
    if rate is None:
        raise AssertionError("openssl speed: says something else than it used to")
    return 1 / float(rate[1])
