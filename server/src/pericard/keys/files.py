"""Key files: one line of text, ``<kind> <base64>``; lines that begin with ``#`` are comments.

A private file is created with mode 0600, synced, and renamed into place; it never replaces an existing file.
Reading a private file refuses one that other users could read, as ssh does.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

from pericard import durable
from pericard.errors import KeyFileExposed, KeyFileInvalid
from pericard.keys.secrets import take, wipe

_MAX_KEY_FILE = 64 * 1024


def write_private_file(path: Path, kind: str, secret: bytes | bytearray, *, comment: str) -> None:
    """Write a private key file, mode 0600; refuse to replace an existing one."""
    encoded = take(base64.b64encode(secret))
    text = bytearray().join((f"# {comment}\n{kind} ".encode("ascii"), encoded, b"\n"))
    try:
        _write_once(path, text, 0o600)
    finally:
        wipe(encoded)
        wipe(text)


def write_public_file(path: Path, kind: str, data: bytes, *, comment: str) -> None:
    """Write a public key file, mode 0644; refuse to replace an existing one."""
    _write_once(path, f"# {comment}\n{encode_line(kind, data)}\n".encode("ascii"), 0o644)


def encode_line(kind: str, data: bytes) -> str:
    """The one-line text form of a key."""
    return f"{kind} {base64.b64encode(data).decode('ascii')}"


def read_public_file(path: Path, kind: str, length: int) -> bytes:
    """Read a public key file of the given kind and length in bytes.

    Raises:
        KeyFileInvalid: it is missing, of another kind, or damaged.
    """
    return bytes(_decode(_read(path), path, kind, length))


def read_secret_file(path: Path, kind: str, length: int) -> bytearray:
    """Read a private key file; the caller wipes the result.

    Raises:
        KeyFileExposed: other users of the host could read it.
        KeyFileInvalid: it is missing, of another kind, or damaged.
    """
    text = _read(path, private=True)
    try:
        return _decode(text, path, kind, length)
    finally:
        wipe(text)


def _read(path: Path, *, private: bool = False) -> bytearray:
    try:
        # O_NONBLOCK: a named pipe in the file's place must be refused, not waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileInvalid(f"{path}: is not a regular file")
        if private and found.st_mode & 0o077:
            raise KeyFileExposed(
                f"{path}: others may read this private key (mode {stat.S_IMODE(found.st_mode):04o})",
                hint=f"chmod 600 {path}, and think whether the key has leaked",
            )
        if found.st_size > _MAX_KEY_FILE:
            raise KeyFileInvalid(f"{path}: is too large for a key file ({found.st_size} bytes)")
        buffer = bytearray(found.st_size)
        size = os.readv(descriptor, [buffer]) if buffer else 0
        if size != len(buffer):
            wipe(buffer)
            raise KeyFileInvalid(f"{path}: changed while it was read")
    except OSError as error:
        raise KeyFileInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    finally:
        os.close(descriptor)
    return buffer


def _decode(text: bytearray, path: Path, kind: str, length: int) -> bytearray:
    lines = [line for line in text.split(b"\n") if line.strip() and not line.startswith(b"#")]
    body = bytearray()
    try:
        if len(lines) != 1:
            raise KeyFileInvalid(f"{path}: holds {len(lines)} keys, wanted one {kind}")
        found, _, body = lines[0].partition(b" ")
        if bytes(found) != kind.encode("ascii"):
            name = bytes(found[:40]).decode("ascii", "replace")
            raise KeyFileInvalid(
                f"{path}: is a {name!r} file, wanted {kind!r}",
                hint="private and public halves, identities and publishers are different files",
            )
        try:
            data = take(binascii.a2b_base64(body, strict_mode=True))
        except ValueError as error:
            raise KeyFileInvalid(f"{path}: is not base64 after {kind!r}") from error
        if len(data) != length:
            wipe(data)
            raise KeyFileInvalid(f"{path}: holds {len(data)} bytes of key, wanted {length}")
        return data
    finally:
        for line in (*lines, body):
            wipe(line)


def _write_once(path: Path, text: bytes | bytearray, mode: int) -> None:
    try:
        durable.create(path, text, mode=mode)
    except FileExistsError as error:
        raise KeyFileInvalid(
            f"{path}: exists already",
            hint="keys are never overwritten; move the old file away first",
        ) from error
    except OSError as error:
        raise KeyFileInvalid(f"{path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error
