"""Public keys of an issuer (RFC 7517): parsed once, each bound to one algorithm, from a file or from what was fetched.

What a token's header says never chooses more than one of these keys by its ``kid``. Symmetric and private keys are
refused with the whole set: a secret that is published is none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import msgspec

from pericard import documents
from pericard.errors import ConfigError

Keys = Mapping[str, jwt.PyJWK]

_LEAST_RSA_BITS = 2048
_MOST_KEYS = 64
#: Type and curve of a key → what it may verify; the first is meant where a key does not say.
_ALGORITHMS: dict[tuple[object, object], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_FETCH_SECONDS = 600.0
_RETRY_SECONDS = 60.0
_GRACE_SECONDS = 24 * 3600.0


class _KeySet(msgspec.Struct, frozen=True):
    keys: tuple[dict[str, Any], ...]


def parse(data: bytes, *, subject: str) -> Keys:
    """The keys of a set that verify signatures, by their ids.

    Raises:
        ConfigError: it is no key set, holds a secret, holds no key that can be used, or two under one id.
    """
    try:
        found = msgspec.json.decode(data, type=_KeySet).keys
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{subject}: is not a JSON Web Key Set") from error
    if len(found) > _MOST_KEYS:
        raise ConfigError(f"{subject}: holds more than {_MOST_KEYS} keys")
    keys: dict[str, jwt.PyJWK] = {}
    for key in found:
        if key.get("kty") == "oct" or _PRIVATE & key.keys():
            raise ConfigError(f"{subject}: holds a secret key", hint="publish the public halves alone")
        kid = key.get("kid")
        if key.get("use", "sig") != "sig" or not isinstance(kid, str) or not kid:
            continue
        if kid in keys:
            raise ConfigError(f"{subject}: two keys have the id {kid[:64]!r}")
        usable = _bound(key, subject=subject)
        if usable is not None:
            keys[kid] = usable
    if not keys:
        raise ConfigError(
            f"{subject}: holds no key that can be used",
            hint="RSA from 2048 bits, P-256 to P-521 or Ed25519, with a kid",
        )
    return keys


def _bound(key: dict[str, Any], *, subject: str) -> jwt.PyJWK | None:
    """A key with its one algorithm; None for a kind that we do not take."""
    allowed = _ALGORITHMS.get((key.get("kty"), key.get("crv")), ())
    algorithm = key.get("alg", allowed[0] if allowed else None)
    if algorithm not in allowed:
        return None
    try:
        made = jwt.PyJWK(key, algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{subject}: holds a key that is damaged") from error
    if key["kty"] == "RSA" and made.key.key_size < _LEAST_RSA_BITS:
        raise ConfigError(f"{subject}: holds an RSA key of less than {_LEAST_RSA_BITS} bits")
    return made


class KeySource:
    """Where an issuer's keys come from, and those that it has.

    Attributes:
        location: a path, or an ``https`` address.
        ca: PEM file of who vouches for that address, or None for whom the system trusts.
    """

    def __init__(self, location: str, ca: str | None = None) -> None:
        """Use a source; keys of a file are read by :meth:`look`, others are fetched by whoever asks :meth:`due`."""
        self.location = location
        self.ca = ca
        self.remote = location.startswith("https://")
        self._keys: Keys = {}
        self._seen: tuple[int, int, int] | None = (0, 0, 0)  # not even None, which is a file that is not there
        self._refused: ConfigError | None = None
        self._due = self._ends = 0.0

    @property
    def keys(self) -> Keys:
        """The keys; none once they could not be fetched for longer than the grace."""
        if self.remote and self._keys and time.monotonic() >= self._ends:
            self._keys = {}
        return self._keys

    def look(self) -> bool:
        """Read a file again if it changed; whether it had.

        Raises:
            ConfigError: it cannot be taken; the keys before it stay.
        """
        if self.remote or documents.stamp(Path(self.location)) == self._seen:
            return False
        self._read()
        return True

    def require(self) -> None:
        """Refuse a file without keys; what is fetched may come later.

        Raises:
            ConfigError: there are none.
        """
        if self._refused is not None and not self._keys:
            raise self._refused

    def due(self) -> bool:
        """Whether the keys are to be fetched now; if so, not again for a minute."""
        now = time.monotonic()
        if not self.remote or now < self._due:
            return False
        self._due = now + _RETRY_SECONDS
        return True

    def take(self, data: bytes) -> None:
        """Take what was fetched.

        Raises:
            ConfigError: it is no key set; the keys before it stay, for as long as the grace lasts.
        """
        self._keys = parse(data, subject=self.location)
        now = time.monotonic()
        self._due, self._ends = now + _FETCH_SECONDS, now + _GRACE_SECONDS

    def _read(self) -> None:
        self._seen = documents.stamp(Path(self.location))
        try:
            self._keys, self._refused = parse(documents.read(Path(self.location)), subject=self.location), None
        except ConfigError as error:
            self._refused = error
            raise
