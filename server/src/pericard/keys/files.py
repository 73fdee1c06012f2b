"""Key files: one line of text, ``<kind> <base64>``; lines that begin with ``#`` are comments.

A private file is created with mode 0600, synced, and renamed into place; it never replaces an existing file.
Reading a private file refuses one that other users could read, as ssh does.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from pericard import durable
from pericard.errors import KeyFileExposed, KeyFileInvalid
from pericard.keys.secrets import take, wipe

_MAX_KEY_FILE = 64 * 1024
#: The words before public keys: given where a private one belongs, they are a mix-up and no leak.
_PUBLIC_KINDS = (b"pericard-recipient-v1", b"pericard-publisher-v1", b"pericard-log-v1", b"pericard-log-v2")


def write_private_file(path: Path, kind: str, secret: bytes | bytearray, *, comment: str) -> None:
    """Write a private key file, mode 0600; refuse to replace an existing one."""
    text = _encode(kind, secret, comment)
    try:
        _write_once(path, text, 0o600)
    finally:
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


def read_public_file_of(path: Path, kinds: Mapping[str, int]) -> bytes:
    """Read a public key file of one of several kinds; for each, its length in bytes.

    Raises:
        KeyFileInvalid: it is missing, of another kind, or damaged.
    """
    text = _read(path)
    named = bytes(_lines(text, path, "key")[0].partition(b" ")[0]).decode("ascii", "replace")
    kind = named if named in kinds else next(iter(kinds))
    return bytes(_decode(text, path, kind, kinds[kind]))


def read_secret_file(path: Path, kind: str, length: int, *, shared: int = 0) -> bytearray:
    """Read a private key file; the caller wipes the result.

    Args:
        path: the file.
        kind: the word before the key.
        length: of the key in bytes.
        shared: permission bits beyond the owner's that are no leak here, where something else guards the folder.

    Raises:
        KeyFileExposed: other users of the host could read it.
        KeyFileInvalid: it is missing, of another kind, or damaged.
    """
    text = _read(path, private=True, shared=shared)
    try:
        return _decode(text, path, kind, length)
    finally:
        wipe(text)


def kind_of(path: Path) -> str:
    """Which kind of key a private file says it holds; at most 64 characters, not checked further.

    Raises:
        KeyFileExposed: other users of the host could read it.
        KeyFileInvalid: it is missing, or holds no key or several.
    """
    text = _read(path, private=True)
    try:
        lines = _lines(text, path, "key")
        kind, _, body = lines[0].partition(b" ")
        for line in (*lines, body):
            wipe(line)
        return bytes(kind[:64]).decode("ascii", "replace")
    finally:
        wipe(text)


def read_private_body(path: Path, kind: str) -> bytes:
    """The decoded body of a private file whose body is no secret, such as a locked identity; of any length.

    Raises:
        KeyFileExposed: other users of the host could read it.
        KeyFileInvalid: it is missing, of another kind, or damaged.
    """
    return bytes(_decode(_read(path, private=True), path, kind))


def read_private_line(path: Path) -> bytearray:
    """The one line of a private file that is not ours, such as a token; without its end. The caller wipes it.

    Raises:
        KeyFileExposed: other users of the host could read it.
        KeyFileInvalid: it is missing, or is no small file.
    """
    text = _read(path, private=True)
    try:
        return text.rstrip()
    finally:
        wipe(text)


def replace_private_file(path: Path, kind: str, secret: bytes | bytearray, *, comment: str) -> None:
    """Write a private key file, mode 0600, in the place of one that is there.

    Raises:
        KeyFileInvalid: it could not be made durable; the old one is still there.
    """
    path = path.resolve()  # of a link, the file is what must go
    text = _encode(kind, secret, comment)
    try:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags), "r+b", buffering=0) as old:
            found = os.fstat(old.fileno())
            ours = (os.geteuid(), os.getegid())
            theirs = (found.st_uid, found.st_gid)
            # root gives it to whom it belonged; whoever may not give files away keeps it
            owner = theirs if theirs != ours and os.geteuid() == 0 else None
            durable.replace(path, text, mode=0o600, owner=owner)
            _overwrite(old)
    except OSError as error:
        raise KeyFileInvalid(f"{path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error
    finally:
        wipe(text)


def _overwrite(old: FileIO) -> None:
    """Zero the blocks of a file that lost its name; on flash that may be in vain."""
    found = os.fstat(old.fileno())
    if not found.st_nlink:  # no other name leads to it
        old.write(bytes(found.st_size))
        os.fsync(old.fileno())


def _read(path: Path, *, private: bool = False, shared: int = 0) -> bytearray:
    try:
        # O_NONBLOCK: a named pipe in the file's place must be refused, not waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileInvalid(f"{path}: is not a regular file")
        exposed = _exposed(path, found.st_mode, shared) if private else None
        if found.st_size > _MAX_KEY_FILE:
            raise exposed or KeyFileInvalid(f"{path}: is too large for a key file ({found.st_size} bytes)")
        buffer = bytearray(found.st_size)
        size = os.readv(descriptor, [buffer]) if buffer else 0
        if size != len(buffer):
            wipe(buffer)
            raise exposed or KeyFileInvalid(f"{path}: changed while it was read")
        refusal = (_public(buffer, path) or exposed) if private else None
        if refusal is not None:
            wipe(buffer)
            raise refusal
    except OSError as error:
        raise KeyFileInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    finally:
        os.close(descriptor)
    return buffer


def _exposed(path: Path, mode: int, shared: int) -> KeyFileExposed | None:
    if not mode & 0o077 & ~shared:
        return None
    return KeyFileExposed(
        f"{path}: others may read this private key (mode {stat.S_IMODE(mode):04o})",
        hint=f"chmod 600 {path}, and think whether the key has leaked",
    )


def _public(text: bytearray, path: Path) -> KeyFileInvalid | None:
    """The refusal of a file that holds nothing but one public key."""
    starts = [start for start in _line_starts(text) if text[start : start + 1] != b"#"]
    if len(starts) != 1 or not any(text.startswith(kind + b" ", starts[0]) for kind in _PUBLIC_KINDS):
        return None
    return KeyFileInvalid(
        f"{path}: is the public half; the private one is needed", hint=f"give {path.with_suffix('.key')}"
    )


def _line_starts(text: bytearray) -> list[int]:
    """Where lines that hold something begin; by position, since a copy of a line could be a copy of a secret."""
    starts, at = [], 0
    while at < len(text):
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        if end > at:
            starts.append(at)
        at = end + 1
    return starts


def _encode(kind: str, secret: bytes | bytearray, comment: str) -> bytearray:
    encoded = take(base64.b64encode(secret))
    try:
        return bytearray().join((f"# {comment}\n{kind} ".encode("ascii"), encoded, b"\n"))
    finally:
        wipe(encoded)


def _lines(text: bytearray, path: Path, wanted: str) -> list[bytearray]:
    """The one line that is no comment, in a list that the caller wipes."""
    lines = [line for line in text.split(b"\n") if line.strip() and not line.startswith(b"#")]
    if len(lines) != 1:
        for line in lines:
            wipe(line)
        raise KeyFileInvalid(f"{path}: holds {len(lines)} keys, wanted one {wanted}")
    return lines


def _decode(text: bytearray, path: Path, kind: str, length: int | None = None) -> bytearray:
    lines = _lines(text, path, kind)
    body = bytearray()
    try:
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
        if length is not None and len(data) != length:
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
