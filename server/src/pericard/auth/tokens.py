"""API tokens: made by command, kept as keyed hashes, looked up by id, compared in constant time.

A token is ``pcd_<id>_<secret>``: ten characters of id, 43 of base64url (256 bits). The file holds HMAC-SHA256 of the
whole token under a key of its own (``tokens.key``, mode 0600, beside it), so neither file alone lets a guess be
tested. The file is replaced atomically under a lock and read again when it changed.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from pericard import durable
from pericard.auth.principal import OPERATIONS, Principal
from pericard.errors import ConfigError, Unauthenticated

_TOKEN = re.compile(r"pcd_([a-z2-7]{10})_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PATTERN = re.compile(r"[a-z0-9*?][a-z0-9._*?-]{0,63}")
_KEY_SIZE = 32
_RECHECK_SECONDS = 1.0
_NOBODY = bytes(32)
_MOST_VERIFIED = 1024


class TokenRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of one token; times are Unix seconds."""

    id: Annotated[str, msgspec.Meta(pattern="^[a-z2-7]{10}$")]
    name: str
    hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    operations: tuple[str, ...]
    models: tuple[str, ...]
    created: int
    expires: int


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    tokens: tuple[TokenRecord, ...]


class Issued(NamedTuple):
    """A new token, shown once, and what is kept of it."""

    token: str
    record: TokenRecord


class _Known(NamedTuple):
    """A record as a request needs it."""

    hash: bytes
    expires: int
    principal: Principal


_FORMAT = "pericard/tokens/v1"


class TokenFile:
    """The site's tokens."""

    def __init__(self, path: Path) -> None:
        """Use a token file; it is made by the first :meth:`create`."""
        self._path = path
        self._key_path = path.with_suffix(".key")
        self._records = {}
        self._key = b""
        self._seen: tuple[tuple[int, int, int], ...] | None = None
        self._checked = float("-inf")

    @property
    def _records(self) -> dict[str, TokenRecord]:
        return self._kept

    @_records.setter
    def _records(self, kept: dict[str, TokenRecord]) -> None:
        """Replace every record, and what requests need of them."""
        self._kept = kept
        self._verified: dict[str, _Known] = {}
        self._known = {
            record.id: _Known(
                bytes.fromhex(record.hash),
                record.expires,
                Principal(record.name, record.id, frozenset(record.operations), record.models),
            )
            for record in kept.values()
        }

    def authenticate(self, token: str) -> Principal:
        """The principal that a token stands for.

        Raises:
            Unauthenticated: it is not a token of this site, or it ended; the caller cannot tell which.
        """
        self._refresh()
        seen = self._verified.get(token)  # this very token was compared, in constant time, since the file last changed
        if seen is not None and time.time() < seen.expires:
            return seen.principal
        match = _TOKEN.fullmatch(token)
        known = self._known.get(match[1]) if match else None
        # the same work for an unknown id, so that time does not tell which ids exist
        same = hmac.compare_digest(self._hash(token), known.hash if known else _NOBODY)
        if not same or known is None or time.time() >= known.expires:
            raise Unauthenticated(
                "credential: is not valid", hint="send Authorization: Bearer <token>; the operator makes tokens"
            )
        if len(self._verified) >= _MOST_VERIFIED:
            self._verified.clear()
        self._verified[token] = known
        return known.principal

    def records(self) -> list[TokenRecord]:
        """All tokens that are kept, oldest first."""
        self._load()
        return sorted(self._records.values(), key=lambda record: record.created)

    def create(self, name: str, *, operations: tuple[str, ...], models: tuple[str, ...], days: int) -> Issued:
        """Make a token.

        Raises:
            ConfigError: a name, operation or pattern is not allowed, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"token name {name!r}: use letters, digits, dot, dash, underscore or @, at most 64")
        if not operations or not set(operations) <= set(OPERATIONS):
            raise ConfigError(f"token {name}: operations must be some of {', '.join(OPERATIONS)}")
        if not models or not all(_PATTERN.fullmatch(pattern) for pattern in models):
            raise ConfigError(
                f"token {name}: needs model names or patterns", hint="--model ecg-anomaly, or --model '*'"
            )
        if not 1 <= days <= 3660:  # noqa: PLR2004  (ten years)
            raise ConfigError(f"token {name}: must last 1 to 3660 days")
        now = int(time.time())
        with self._locked():
            self._load()
            self._make_key()
            token_id = base64.b32encode(os.urandom(7)).decode("ascii").lower()[:10]
            secret = base64.urlsafe_b64encode(os.urandom(32)).decode("ascii").rstrip("=")
            token = f"pcd_{token_id}_{secret}"
            record = TokenRecord(
                token_id, name, self._hash(token).hex(), tuple(sorted(set(operations))), models, now, now + days * 86400
            )
            self._write({**self._records, token_id: record})
        return Issued(token, record)

    def revoke(self, token_id: str) -> TokenRecord:
        """Remove a token by its id.

        Raises:
            ConfigError: there is none.
        """
        with self._locked():
            self._load()
            record = self._records.get(token_id)
            if record is None:
                raise ConfigError(f"token {token_id!r}: there is none", hint="pericard token list shows the ids")
            self._write({key: kept for key, kept in self._records.items() if key != token_id})
        return record

    def _hash(self, token: str) -> bytes:
        return hmac.digest(self._key or _NOBODY, token.encode("utf-8", "replace"), "sha256")

    def _refresh(self) -> None:
        """Read the file again if it changed; looks at most once a second."""
        now = time.monotonic()
        if now - self._checked < _RECHECK_SECONDS:
            return
        self._checked = now
        try:
            found = (self._path.stat(), self._key_path.stat())
        except OSError:
            self._records, self._seen = {}, None
            return
        seen = tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)
        if seen != self._seen:
            try:
                self._load()
            except ConfigError:
                self._records = {}  # a damaged file lets nobody in
            self._seen = seen

    def _load(self) -> None:
        """Read both files; none at all is a site without tokens.

        Raises:
            ConfigError: one of them is damaged, or the file is there without its key.
        """
        try:
            text, key = _read(self._path), _read(self._key_path)
            contents = msgspec.json.decode(text, type=_Contents) if text is not None else _Contents(_FORMAT, ())
        except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
            raise ConfigError(f"{self._path}: cannot be read as a token file") from error
        if text is not None and key is None:
            raise ConfigError(
                f"{self._path}: its key {self._key_path.name} is missing",
                hint="restore it from a backup; or remove the token file, and every caller gets a new token",
            )
        if contents.format != _FORMAT or (key is not None and len(key) != _KEY_SIZE):
            raise ConfigError(f"{self._path}: is not a token file, or its key is damaged")
        self._key = key or b""
        self._records = {record.id: record for record in contents.tokens}

    def _make_key(self) -> None:
        if not self._key:
            key = os.urandom(_KEY_SIZE)
            _replace(self._key_path, key)
            self._key = key

    def _write(self, records: dict[str, TokenRecord]) -> None:
        contents = _Contents(_FORMAT, tuple(sorted(records.values(), key=lambda record: record.created)))
        _replace(self._path, msgspec.json.format(msgspec.json.encode(contents)) + b"\n")
        self._records = records

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            reason = (error.strerror or "i/o error").lower()
            raise ConfigError(f"{self._path}: cannot be written: {reason}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except OSError as error:
            reason = (error.strerror or "i/o error").lower()
            raise ConfigError(f"{self._path}: cannot be written: {reason}") from error
        finally:
            os.close(descriptor)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all; what root writes belongs to whom the folder belongs, who runs the server."""
    folder = path.parent.stat() if os.geteuid() == 0 else None
    durable.replace(path, data, owner=None if folder is None else (folder.st_uid, folder.st_gid))
