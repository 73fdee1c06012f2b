"""API tokens: made by command, kept as keyed hashes, looked up by id, compared in constant time.

A token is ``pcd_<id>_<secret>``: ten characters of id, 43 of base64url (256 bits). The file holds HMAC-SHA256 of the
whole token under a key of its own (``tokens.key``, mode 0600, beside it), so neither file alone lets a guess be
tested. The file is replaced atomically under a lock and read again when it changed. Times of use stand beside it
(``tokens.used``): they are no part of what is decided.
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
from pericard.auth.principal import OPERATIONS, Grant, Principal, not_valid
from pericard.auth.uses import Uses
from pericard.errors import ConfigError

_TOKEN = re.compile(r"pcd_([a-z2-7]{10})_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PATTERN = re.compile(r"[a-z0-9*?][a-z0-9._*?-]{0,63}")
_KEY_SIZE = 32
_RECHECK_SECONDS = 1.0
_NOBODY = bytes(32)
_MOST_VERIFIED = 1024
_DAY = 86_400
_LONGEST_OVERLAP = 90 * _DAY


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
        self.uses = Uses(path.with_suffix(".used"))
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
                Principal(record.name, record.id, _grants(record)),
            )
            for record in kept.values()
        }

    def authenticate(self, token: str) -> Principal:
        """The principal that a token stands for.

        Raises:
            Unauthenticated: it is not a token of this site, or it ended; the caller cannot tell which.
        """
        self._refresh()
        now = time.time()
        seen = self._verified.get(token)  # this very token was compared, in constant time, since the file last changed
        if seen is not None and now < seen.expires:
            self.uses.note(seen.principal.credential, now)
            return seen.principal
        match = _TOKEN.fullmatch(token)
        known = self._known.get(match[1]) if match else None
        # the same work for an unknown id, so that time does not tell which ids exist
        same = hmac.compare_digest(self._hash(token), known.hash if known else _NOBODY)
        if not same or known is None or now >= known.expires:
            raise not_valid()
        if len(self._verified) >= _MOST_VERIFIED:
            self._verified.clear()
        self._verified[token] = known
        self.uses.note(known.principal.credential, now)
        return known.principal

    def write_uses(self) -> None:
        """Write when each token was used last; for a timer, never for a request.

        Raises:
            OSError: it cannot be written; nothing is lost by that.
        """
        self.uses.write(self._records)

    def records(self) -> list[TokenRecord]:
        """All tokens that are kept, oldest first."""
        self._load()
        return sorted(self._records.values(), key=lambda record: record.created)

    def create(self, name: str, *, operations: tuple[str, ...], models: tuple[str, ...], days: int) -> Issued:
        """Make a token; without operations and models it may what the site's policy says of its name.

        Raises:
            ConfigError: a name, operation or pattern is not allowed, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"token name {name!r}: use letters, digits, dot, dash, underscore or @, at most 64")
        by_policy = not operations and not models
        if (not operations and not by_policy) or not set(operations) <= set(OPERATIONS):
            raise ConfigError(f"token {name}: operations must be some of {', '.join(OPERATIONS)}")
        if (not models and not by_policy) or not all(_PATTERN.fullmatch(pattern) for pattern in models):
            raise ConfigError(
                f"token {name}: needs model names or patterns", hint="--model ecg-anomaly, or --model '*'"
            )
        _check_days(name, days)
        with self._locked():
            self._load()
            self._make_key()
            issued = self._new(name, tuple(sorted(set(operations))), models, days * _DAY)
            self._write({**self._records, issued.record.id: issued.record})
        return issued

    def rotate(self, token_id: str, *, overlap: int, days: int | None = None) -> Issued:
        """Make a new token of the same principal with the same grants; the old one ends after the overlap.

        Args:
            token_id: of the old one.
            overlap: seconds for which both are valid; at most 90 days, and never beyond the old one's end.
            days: how long the new one is valid; None for as long as the old one was.

        Raises:
            ConfigError: there is no such token, or it ended already; a duration is out of range.
        """
        if not 0 <= overlap <= _LONGEST_OVERLAP:
            raise ConfigError(f"token {token_id}: the overlap must be 0 to {_LONGEST_OVERLAP // _DAY} days")
        _check_days(token_id, days)
        with self._locked():
            self._load()
            old, now = self._record(token_id), int(time.time())
            if old.expires <= now:
                raise ConfigError(f"token {token_id}: ended already", hint="pericard token create makes another one")
            lasts = old.expires - old.created if days is None else days * _DAY
            issued = self._new(old.name, old.operations, old.models, lasts)
            ending = msgspec.structs.replace(old, expires=min(old.expires, now + overlap))
            self._write({**self._records, token_id: ending, issued.record.id: issued.record})
        return issued

    def revoke(self, token_id: str) -> TokenRecord:
        """Remove a token by its id.

        Raises:
            ConfigError: there is none.
        """
        with self._locked():
            self._load()
            record = self._record(token_id)
            self._write({key: kept for key, kept in self._records.items() if key != token_id})
        return record

    def _record(self, token_id: str) -> TokenRecord:
        record = self._records.get(token_id)
        if record is None:
            raise ConfigError(f"token {token_id!r}: there is none", hint="pericard token list shows the ids")
        return record

    def _new(self, name: str, operations: tuple[str, ...], models: tuple[str, ...], lasts: int) -> Issued:
        """A token that is not kept yet, valid for ``lasts`` seconds from now on."""
        now = int(time.time())
        token_id = base64.b32encode(os.urandom(7)).decode("ascii").lower()[:10]
        secret = base64.urlsafe_b64encode(os.urandom(32)).decode("ascii").rstrip("=")
        token = f"pcd_{token_id}_{secret}"
        record = TokenRecord(token_id, name, self._hash(token).hex(), operations, models, now, now + lasts)
        return Issued(token, record)

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


def _grants(record: TokenRecord) -> tuple[Grant, ...]:
    """What a token was made for; nothing, if that is left to the policy."""
    return (Grant(frozenset(record.operations), record.models),) if record.operations else ()


def _check_days(subject: str, days: int | None) -> None:
    if days is not None and not 1 <= days <= 3660:  # noqa: PLR2004  (ten years)
        raise ConfigError(f"token {subject}: must last 1 to 3660 days")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all; what root writes belongs to whom the folder belongs, who runs the server."""
    folder = path.parent.stat() if os.geteuid() == 0 else None
    durable.replace(path, data, owner=None if folder is None else (folder.st_uid, folder.st_gid))
