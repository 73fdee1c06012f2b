"""The lock: the exact archives that a runtime is made of, one line each, signed (docs/spec/environment-lock.md).

Rules of this room: text in, values out; nothing is fetched and no prefix is looked at. The signature covers the file's
bytes and is verified before a line is parsed. The text is conda's explicit form, so conda, mamba and rattler read it
too; it has one form, so that two locks of the same archives are the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pericard import canonical, durable
from pericard.errors import LockInvalid, UntrustedPublisher
from pericard.keys import Publisher, PublisherKey, Signature

DOMAIN = "pericard/v1/environment-lock"
FORMAT = "pericard/environment-lock-signature/v1"
HEADER = "# pericard environment lock 1"

_LARGEST, _LARGEST_SIGNATURE = 4 << 20, 16 << 10  # bytes
_MOST_PACKAGES = 20_000
_LONGEST_URL = 2048
_PLATFORM = re.compile(r"[a-z0-9]+-[a-z0-9_]+")
_VIRTUAL = re.compile(r"(__[a-z0-9_]+)=([0-9A-Za-z_.!+-]+)(?:=([0-9A-Za-z_.+-]+))?")
_LINE = re.compile(r"((?:https?|file)://[!-\"$-~]+)#sha256:([0-9a-f]{64})")
_FILE = re.compile(r"([a-z0-9_][a-z0-9_.-]*)-([^-/]+)-([^-/]+?)(\.conda|\.tar\.bz2)")
_SUBDIR = re.compile(r"noarch|[a-z0-9]+-[a-z0-9_]+")
_TOKEN = re.compile(r"^/t/[^/]+/")


@dataclass(frozen=True, slots=True)
class Virtual:
    """A virtual package: what the solver was told of the host, such as ``__glibc`` 2.36."""

    name: str
    version: str
    build: str = ""

    @property
    def line(self) -> str:
        """As it stands in the lock."""
        return f"{self.name}={self.version}" + (f"={self.build}" if self.build else "")


@dataclass(frozen=True, slots=True)
class Package:
    """One archive.

    Attributes:
        url: where it was when it was locked.
        sha256: of the archive, hex.
        channel: the URL without folder and file.
        subdir: the channel's folder, ``noarch`` or a platform.
        file: name of the archive.
        name: of the package.
        version: of the package.
        build: of the package.
    """

    url: str
    sha256: str
    channel: str
    subdir: str
    file: str
    name: str
    version: str
    build: str

    @classmethod
    def of(cls, url: str, sha256: str, *, subject: str) -> Package:
        """Take a URL apart.

        Raises:
            LockInvalid: it is no URL of an archive in a channel, or holds somebody's secret.
        """
        parts = urlsplit(url)
        place, _, file = parts.path.rpartition("/")
        channel, _, subdir = place.rpartition("/")
        match = _FILE.fullmatch(unquote(file))
        odd = any(part in {"", ".", ".."} for part in parts.path.split("/")[1:])
        if match is None or odd or not _SUBDIR.fullmatch(subdir) or parts.query or len(url) > _LONGEST_URL:
            raise LockInvalid(f"{subject}: is not the address of an archive in a channel: {url[:200]}")
        if parts.username is not None or _TOKEN.match(parts.path):
            raise LockInvalid(
                f"{subject}: the address of {file} holds a secret",
                hint="a lock is given to others; use a channel that needs no token, or edit the address",
            )
        return cls(
            url, sha256, f"{parts.scheme}://{parts.netloc}{channel}", subdir, match[0], match[1], match[2], match[3]
        )

    @property
    def record(self) -> str:
        """The name of conda's record of it, below the prefix."""
        return f"conda-meta/{self.name}-{self.version}-{self.build}.json"


@dataclass(frozen=True)
class Lock:
    """What a lock file says.

    Attributes:
        platform: ``linux-64``, say; every archive is for it or for none.
        virtual: what the solver was told of the host.
        packages: sorted by name, one of each.
    """

    platform: str
    virtual: tuple[Virtual, ...]
    packages: tuple[Package, ...]

    @cached_property
    def data(self) -> bytes:
        """The lock file."""
        lines = [HEADER, f"# platform: {self.platform}"]
        lines += [f"# virtual: {virtual.line}" for virtual in self.virtual]
        lines += ["@EXPLICIT", *(f"{package.url}#sha256:{package.sha256}" for package in self.packages)]
        return "".join(f"{line}\n" for line in lines).encode("ascii")

    @cached_property
    def sha256(self) -> str:
        """Of the lock file, hex."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def digest(self) -> str:
        """Of the packages alone, hex: the same wherever they came from, and wherever they are installed."""
        lines = sorted(f"{package.subdir}/{package.file} {package.sha256}\n" for package in self.packages)
        return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def make(platform: str, virtual: Iterable[Virtual], packages: Iterable[tuple[str, str]], *, subject: str) -> Lock:
    """A lock of archives: URL and SHA-256 in hex of each, in any order; raises as :func:`parse`."""
    virtual = sorted(virtual, key=lambda one: one.name)
    found = sorted((Package.of(url, sha256, subject=subject) for url, sha256 in packages), key=lambda one: one.name)
    return parse(Lock(platform, tuple(virtual), tuple(found)).data, subject=subject)


def parse(data: bytes, *, subject: str) -> Lock:
    """Read a lock file's bytes.

    Raises:
        LockInvalid: they are not in the one form that a lock has.
    """
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise LockInvalid(f"{subject}: is not ascii") from error
    if lines.pop() != "" or lines[:1] != [HEADER] or "@EXPLICIT" not in lines:
        raise LockInvalid(f"{subject}: is not a pericard environment lock", hint="pericard env lock makes one")
    start = lines.index("@EXPLICIT")
    platform, virtual = _told(lines[1:start], subject)
    if not 0 < len(lines) - start - 1 <= _MOST_PACKAGES:
        raise LockInvalid(f"{subject}: names {len(lines) - start - 1} packages, allowed are 1 to {_MOST_PACKAGES}")
    packages = []
    for number, line in enumerate(lines[start + 1 :], start + 2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise LockInvalid(f"{subject}: line {number} is not an address and its sha256")
        packages.append(Package.of(match[1], match[2], subject=f"{subject}: line {number}"))
    names = [package.name for package in packages]
    if names != sorted(set(names)):
        raise LockInvalid(f"{subject}: its packages are not sorted by name, each once")
    foreign = [package.file for package in packages if package.subdir not in {"noarch", platform}]
    if foreign:
        raise LockInvalid(f"{subject}: is for {platform}, and {foreign[0]} is not")
    return Lock(platform, virtual, tuple(packages))


def _told(lines: list[str], subject: str) -> tuple[str, tuple[Virtual, ...]]:
    platform = lines[0].removeprefix("# platform: ") if lines else ""
    if not _PLATFORM.fullmatch(platform):
        raise LockInvalid(f"{subject}: does not say its platform in line 2")
    virtual = []
    for number, line in enumerate(lines[1:], 3):
        match = _VIRTUAL.fullmatch(line.removeprefix("# virtual: ")) if line.startswith("# virtual: ") else None
        if match is None:
            raise LockInvalid(f"{subject}: line {number} is not a virtual package")
        virtual.append(Virtual(match[1], match[2], match[3] or ""))
    names = [one.name for one in virtual]
    if names != sorted(set(names)):
        raise LockInvalid(f"{subject}: its virtual packages are not sorted by name, each once")
    return platform, tuple(virtual)


# --- signed


def signature_path(path: Path) -> Path:
    """Where the signature of a lock lies: beside it."""
    return path.with_name(path.name + ".sig")


def sign(data: bytes, key: PublisherKey) -> bytes:
    """The signature file of a lock's bytes."""
    signatures = [
        {
            "algorithm": signature.algorithm,
            "key": signature.key_id.hex(),
            "value": base64.b64encode(signature.value).decode("ascii"),
        }
        for signature in key.sign(DOMAIN, data)
    ]
    body = {"format": FORMAT, "publisher": key.publisher.id, "signatures": signatures}
    return canonical.encode(body) + b"\n"


def verify(data: bytes, signature: bytes, publisher: Publisher, *, subject: str) -> None:
    """Check that the publisher signed these bytes as a lock.

    Raises:
        LockInvalid: the signature file is not one.
        UntrustedPublisher: it names another publisher.
        BadSignature: a signature does not verify.
    """
    try:
        value = canonical.decode(signature.removesuffix(b"\n"), limit=_LARGEST_SIGNATURE)
        if value.keys() != {"format", "publisher", "signatures"} or value["format"] != FORMAT:
            raise ValueError("format")
        named = value["publisher"]
        signatures = tuple(_signature(one) for one in value["signatures"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LockInvalid(f"{subject}: its signature file is malformed") from error
    if named != publisher.id or not publisher.claimed(signatures):
        raise UntrustedPublisher(
            f"{subject}: was not signed by publisher {publisher.id[:16]}",
            hint="compare the fingerprint of the key with whoever locked the environment, by another channel",
        )
    publisher.verify(DOMAIN, data, signatures, subject=subject)


def _signature(value: dict[str, object]) -> Signature:
    if value.keys() != {"algorithm", "key", "value"}:
        raise ValueError("members")
    algorithm, key, text = value["algorithm"], value["key"], value["value"]
    if not isinstance(algorithm, int) or not isinstance(key, str) or not isinstance(text, str):
        raise TypeError("members")
    return Signature(algorithm, bytes.fromhex(key), binascii.a2b_base64(text, strict_mode=True))


def read(path: Path, publisher: Publisher | None) -> Lock:
    """Read a lock file; with a publisher, only if that one signed it.

    Raises:
        LockInvalid: it or its signature cannot be read, or is malformed.
        UntrustedPublisher: another publisher signed it.
        BadSignature: its signature does not verify.
    """
    data = _bytes(path, _LARGEST)
    if publisher is not None:
        verify(data, _bytes(signature_path(path), _LARGEST_SIGNATURE), publisher, subject=path.name)
    return parse(data, subject=path.name)


def write(path: Path, lock: Lock, key: PublisherKey) -> None:
    """Write a lock and its signature; the signature first, so that no lock is ever without the one that fits.

    Raises:
        LockInvalid: they cannot be written.
    """
    try:
        durable.replace(signature_path(path), sign(lock.data, key), mode=0o644)
        durable.replace(path, lock.data, mode=0o644)
    except OSError as error:
        raise LockInvalid(f"{path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error


def _bytes(path: Path, limit: int) -> bytes:
    try:
        return durable.read(path, limit=limit)
    except FileNotFoundError as error:
        hint = "a lock lies beside its signature; pericard env lock writes both" if path.suffix == ".sig" else None
        raise LockInvalid(f"{path}: is not there", hint=hint) from error
    except OSError as error:
        raise LockInvalid(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
