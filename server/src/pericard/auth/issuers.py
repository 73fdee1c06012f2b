"""JSON Web Tokens (RFC 7519) of issuers that the policy names, by the rules of RFC 8725.

A header may say ``alg``, ``kid`` and ``typ``, and nothing else: what would bring a key along or ask for more (``jku``,
``x5u``, ``jwk``, ``x5c``, ``crit``, ``b64``) is no token here. The issuer's own key set decides the algorithm. No token
causes a look at a file or at the network.
"""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import jwt
import msgspec

from pericard.auth.jwks import Keys, KeySource
from pericard.auth.principal import not_valid
from pericard.errors import ConfigError

LONGEST = 8192
_LEEWAY_SECONDS = 30
_TYPES = (None, "JWT", "at+jwt", "application/at+jwt")


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An issuer as the policy describes it; ``keys`` is a file, or an ``https`` address with perhaps a ``ca``."""

    issuer: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    audience: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    keys: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    ca: str | None = None
    longest_seconds: Annotated[int, msgspec.Meta(ge=60, le=7 * 86_400)] = 3600


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    typ: str | None = None


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    aud: str | tuple[str, ...]
    exp: int | float
    iat: int | float
    nbf: int | float | None = None


class Vouched(NamedTuple):
    """What an issuer vouches for.

    Attributes:
        issuer: its name in the policy.
        subject: who the token is about.
        expires: Unix seconds.
        keys: that it was verified with; once these are not the issuer's any more, it is worth nothing.
    """

    issuer: str
    subject: str
    expires: float
    keys: Keys


class Issuers:
    """The issuers of one policy.

    Attributes:
        sources: of each issuer's keys, by its name in the policy.
    """

    def __init__(self, written: dict[str, Issuer], folder: Path, kept: dict[tuple[str, str | None], KeySource]) -> None:
        """Take issuers.

        Args:
            written: as the policy describes them, by name.
            folder: of the policy.
            kept: sources that are there already, by location and ca; new ones are added.

        Raises:
            ConfigError: two of them are one, or a file of keys cannot be taken.
        """
        self._issuers = written
        self._names = {issuer.issuer: name for name, issuer in written.items()}
        if len(self._names) != len(written):
            raise ConfigError("policy: two of the issuers are the same")
        self.sources: dict[str, KeySource] = {}
        for name, issuer in written.items():
            remote = "://" in issuer.keys
            if remote and not issuer.keys.startswith("https://"):
                raise ConfigError(f"policy: issuers.{name}: keys must be a file or an https address")
            location = issuer.keys if remote else str(folder / issuer.keys)
            place = location, issuer.ca and str(folder / issuer.ca)
            if place not in kept:
                kept[place] = KeySource(*place)
                kept[place].look()
            kept[place].require()
            self.sources[name] = kept[place]

    def current(self, vouched: Vouched) -> bool:
        """Whether what was verified before still is."""
        return time.time() < vouched.expires and self.sources[vouched.issuer].keys is vouched.keys

    def verify(self, token: str) -> Vouched:
        """Verify a token.

        Raises:
            Unauthenticated: it is not one of these issuers', or not valid now; the caller cannot tell which.
        """
        try:
            return self._verify(token)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError, LookupError) as error:
            raise not_valid() from error

    def _verify(self, token: str) -> Vouched:
        if len(token) > LONGEST:
            raise ValueError("is too long")
        head, body, _ = token.encode("ascii").split(b".")
        header = msgspec.json.decode(_decoded(head), type=_Header)
        claims = msgspec.json.decode(_decoded(body), type=_Claims)  # before the signature: only to find its issuer
        name = self._names[claims.iss]
        issuer, keys = self._issuers[name], self.sources[name].keys
        key = keys[header.kid]
        jwt.decode(
            token, key, algorithms=[key.algorithm_name], issuer=issuer.issuer, audience=issuer.audience,
            leeway=_LEEWAY_SECONDS, options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )  # fmt: skip
        longest = issuer.longest_seconds
        lives = max(claims.exp - claims.iat, claims.exp - time.time() - _LEEWAY_SECONDS)
        if header.typ not in _TYPES or lives > longest:
            raise ValueError("is no access token, or lives too long")
        return Vouched(name, claims.sub, claims.exp, keys)


def _decoded(part: bytes) -> bytes:
    return base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
