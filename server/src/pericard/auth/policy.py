"""The site's policy: one file that says who its callers are, what they may, and by what else than tokens it knows them.

Whoever is not named in it is nobody, whatever credential it has: a line that is removed takes effect at once, and for
every credential. What a caller may is the sum of its roles; what its token was made for narrows that and never adds to
it. A policy that cannot be taken leaves the one before in force, and is said. ::

    roles:
      reader: {operations: [predict, metadata], models: [ecg-anomaly, "icu-*"]}
    principals:
      ris: {roles: [reader], rate: 100, burst: 200, rows: 64, subjects: {hospital: [ris-service]}}
    issuers:
      hospital: {issuer: "https://idp.example", audience: pericard, keys: jwks.json}
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

from pericard import documents
from pericard.auth.certificate import Certificate
from pericard.auth.issuers import Issuer, Issuers, Vouched
from pericard.auth.jwks import KeySource
from pericard.auth.principal import OPERATIONS, Grant, Limits, Principal, not_valid
from pericard.errors import ConfigError

_Operation = Literal["predict", "metadata", "metrics", "audit", "admin"]
_Pattern = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9*?][a-z0-9._*?-]{0,63}\Z")]
_RoleName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")]
_Subject = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_CertificateName = Annotated[str, msgspec.Meta(pattern=r"^(uri|dns|email|subject):.{1,512}\Z")]
_MOST_VERIFIED = 1024
_HINT = "docs/guide/principals.md shows a whole one"

if get_args(_Operation) != OPERATIONS:
    raise AssertionError("the policy's operations are not the authoriser's")


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operations on models, under a name."""

    operations: Annotated[tuple[_Operation, ...], msgspec.Meta(min_length=1, max_length=len(OPERATIONS))]
    models: Annotated[tuple[_Pattern, ...], msgspec.Meta(min_length=1, max_length=256)]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A principal: its roles, its limits (what is left out is as for everybody), and its names with others."""

    roles: Annotated[tuple[_RoleName, ...], msgspec.Meta(min_length=1, max_length=64)]
    rate: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    rows: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    subjects: dict[_RoleName, tuple[_Subject, ...]] = {}
    certificates: tuple[_CertificateName, ...] = ()


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roles: dict[_RoleName, Role]
    principals: dict[_Name, Member]
    issuers: dict[_RoleName, Issuer] = {}


class _Allowed(NamedTuple):
    """What a principal has."""

    grants: tuple[Grant, ...]
    limits: Limits | None


class Policy:
    """A policy that was taken.

    Attributes:
        digest: SHA-256 of the file, in hex.
        issuers: whose tokens count.
    """

    def __init__(
        self, data: bytes, *, subject: str, folder: Path = Path(),
        sources: dict[tuple[str, str | None], KeySource] | None = None,
    ) -> None:  # fmt: skip
        """Take the text of a policy.

        Args:
            data: the text.
            subject: how errors call it.
            folder: where the files are that it names.
            sources: of keys, from the policy before; new ones are added.

        Raises:
            ConfigError: it has not the form of one, names a role or an issuer that it does not describe, or gives one
                subject to two principals.
        """
        written = documents.parse(data, _Written, subject=subject, hint=_HINT)
        self.issuers = Issuers(written.issuers, folder, {} if sources is None else sources)
        roles = {name: Grant(frozenset(role.operations), role.models) for name, role in written.roles.items()}
        self.digest = hashlib.sha256(data).hexdigest()
        self._members: dict[str, _Allowed] = {}
        for name, member in written.principals.items():
            unknown = sorted(set(member.roles) - roles.keys())
            if unknown:
                raise ConfigError(f"{subject}: principals.{name}: there is no role {unknown[0]}", hint=_HINT)
            limits = Limits(member.rate, member.burst, member.rows)
            granted = tuple(roles[role] for role in dict.fromkeys(member.roles))
            self._members[name] = _Allowed(granted, None if limits == Limits() else limits)
        self._tokens: dict[str, tuple[Principal, Principal]] = {}
        self._subjects = _subjects(written, subject=subject)
        self._verified: dict[str, tuple[Vouched, Principal]] = {}
        self._certificates = _certificates(written, subject=subject)

    @property
    def names(self) -> list[str]:
        """Every principal's name."""
        return sorted(self._members)

    def of_token(self, own: Principal) -> Principal:
        """The principal behind a token: what the policy says of its name, within what the token was made for.

        Raises:
            Unauthenticated: the policy does not name it.
        """
        known = self._tokens.get(own.credential)
        if known is not None and known[0] is own:  # the same record of the same token file
            return known[1]
        found = self.principal(own.name, own.credential, own.grants[0] if own.grants else None)
        self._tokens[own.credential] = (own, found)
        return found

    def of_jwt(self, token: str) -> Principal:
        """The principal behind a token of one of the issuers.

        Raises:
            Unauthenticated: there is none, or the token is not valid now.
        """
        known = self._verified.get(token)
        if known is not None and self.issuers.current(known[0]):
            return known[1]
        vouched = self.issuers.verify(token)
        name = self._subjects.get((vouched.issuer, vouched.subject))
        if name is None:
            raise not_valid()
        found = self.principal(name, f"jwt:{vouched.issuer}")
        if len(self._verified) >= _MOST_VERIFIED:
            self._verified.clear()
        self._verified[token] = (vouched, found)
        return found

    def of_certificate(self, certificate: Certificate) -> Principal:
        """The principal behind a client certificate.

        Raises:
            Unauthenticated: none of its names is a principal's, or they are of more than one; or it is not valid now.
        """
        found = {self._certificates[name] for name in certificate.names if name in self._certificates}
        if len(found) != 1 or not certificate.begins <= time.time() < certificate.ends:
            raise not_valid()
        return self.principal(found.pop(), f"certificate:{certificate.fingerprint[:16]}")

    def principal(self, name: str, credential: str, within: Grant | None = None) -> Principal:
        """A principal by its name.

        Raises:
            Unauthenticated: the policy does not name it.
        """
        allowed = self._members.get(name)
        if allowed is None:
            raise not_valid()
        return Principal(name, credential, allowed.grants, within, allowed.limits)


def _subjects(written: _Written, *, subject: str) -> dict[tuple[str, str], str]:
    """Who is meant by an issuer's subject."""
    found: dict[tuple[str, str], str] = {}
    for name, member in written.principals.items():
        for issuer, theirs in member.subjects.items():
            if issuer not in written.issuers:
                raise ConfigError(f"{subject}: principals.{name}: there is no issuer {issuer}", hint=_HINT)
            for one in theirs:
                if found.setdefault((issuer, one), name) != name:
                    raise ConfigError(f"{subject}: principals.{name}: subject {one!r} is another's already")
    return found


def _certificates(written: _Written, *, subject: str) -> dict[str, str]:
    """Who is meant by a name that a certificate bears."""
    found: dict[str, str] = {}
    for name, member in written.principals.items():
        for one in member.certificates:
            if found.setdefault(one, name) != name:
                raise ConfigError(f"{subject}: principals.{name}: certificate {one!r} is another's already")
    return found


class PolicyFile:
    """The policy in force, and the file that it came from.

    Attributes:
        current: the policy in force.
    """

    def __init__(self, path: Path) -> None:
        """Read the policy, and the files of keys that it names.

        Raises:
            ConfigError: one of them cannot be taken.
        """
        self._path = path
        self._sources: dict[tuple[str, str | None], KeySource] = {}
        self._seen = documents.stamp(path)
        self._broken: dict[str, str] = {}  # file → code
        self.current = self._read()

    @property
    def refused(self) -> str:
        """The code of what was wrong with a file as it is now; empty if all are in force."""
        return next(iter(self._broken.values()), "")

    @property
    def remote(self) -> list[KeySource]:
        """Keys that are fetched."""
        return [source for source in self.current.issuers.sources.values() if source.remote]

    def look(self, told: Callable[[ConfigError | None], None], *, anew: bool = False) -> None:
        """Take what changed; what cannot be taken leaves the one before it in force.

        Args:
            told: hears of what came of each change: None, or what is wrong with it.
            anew: read the policy, whether it changed or not.
        """
        keys = [self._attempt(source.location, source.look, told) for source in self._sources.values()]
        seen, mended = documents.stamp(self._path), str(self._path) in self._broken and any(keys)
        if seen != self._seen or anew or mended:
            self._seen = seen
            self._attempt(str(self._path), self._take, told)

    def _attempt(self, file: str, work: Callable[[], bool], told: Callable[[ConfigError | None], None]) -> bool:
        """Take one file; whether it changed and was taken."""
        try:
            changed = work()
        except ConfigError as error:
            self._broken[file] = error.code
            told(error)
            return False
        if changed:
            self._broken.pop(file, None)
            told(None)
        return changed

    def _take(self) -> bool:
        self.current = self._read()
        return True

    def _read(self) -> Policy:
        data = documents.read(self._path)
        found = Policy(data, subject=str(self._path), folder=self._path.parent, sources=self._sources)
        used = found.issuers.sources.values()
        self._sources = {place: source for place, source in self._sources.items() if source in used}
        return found
