"""``server.yaml``: read once, strictly, into values.

Rules of this room: an unknown key, a wrong type or an unsafe combination refuses the start and names the key; every
setting has its default here and stands in ``configs/server.yaml``; secrets appear only as file paths. Inner rooms
never see this module, they take plain values. Relative paths are relative to the file's own folder.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from pericard import unlock
from pericard.errors import ConfigError

_Positive = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the edge listens."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8443
    direct: bool = True


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server's certificate and private key, PEM files."""

    certificate: str
    key: str
    minimum_version: Literal["1.2", "1.3"] = "1.3"


_Descriptor = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Vault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The OpenBao or Vault server whose transit engine locks the identity."""

    address: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/@?#]{1,255}/?$")]
    ca: str | None = None
    token: str | None = None
    token_fd: _Descriptor | None = None


class IdentitySource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the identity comes from, and a second one that is live while models are granted anew."""

    path: str = "identity.key"
    previous: str | None = None
    unlock: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")] = "file"
    passphrase_fd: _Descriptor | None = None
    credential: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,255}$")] = "identity"
    tcti: str | None = None
    vault: Vault | None = None
    options: dict[str, str] = {}


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The audit log's directory and key."""

    directory: str = "audit"
    key: str = "log.key"


_Device = Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda:[0-9]{1,2})$")]
_Sequence = Annotated[int, msgspec.Meta(ge=1)]


class RepositorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder of sealed files, and which of their versions are served.

    ``versions`` is ``latest``, ``all``, or by name: the sequences of a model; ``latest`` among the names says how many
    of the newest the models that are not named have.
    """

    folder: str
    versions: Literal["latest", "all"] | dict[str, _Sequence | tuple[_Sequence, ...]] = "latest"
    watch_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0

    @property
    def latest(self) -> int | None:
        """How many of the newest versions of a model that is not named; None for all."""
        if isinstance(self.versions, str):
            return None if self.versions == "all" else 1
        found = self.versions.get("latest", 1)
        return found if isinstance(found, int) else 1

    @property
    def sequences(self) -> dict[str, tuple[int, ...]]:
        """The versions of the models that are named."""
        if isinstance(self.versions, str):
            return {}
        return {name: found for name, found in self.versions.items() if isinstance(found, tuple)}


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the engine computes."""

    device: _Device | Annotated[tuple[_Device, ...], msgspec.Meta(min_length=1, max_length=16)] = "auto"
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    memory: Literal["locked", "secret"] = "locked"
    memory_budget: Annotated[int, msgspec.Meta(ge=1)] | None = None
    memory_total: Annotated[int, msgspec.Meta(ge=1)] | None = None
    recheck_seconds: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 3600.0
    shared_memory: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 34)] = 64 << 20
    queue: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 512
    batch_delay_ms: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 0.0
    require: tuple[Literal["seccomp", "landlock"], ...] = ("seccomp",)


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one request may cost."""

    body_bytes: Annotated[int, msgspec.Meta(ge=1024, le=64 << 20)] = 8 << 20
    body_seconds: _Positive = 20.0
    answer_seconds: _Positive = 30.0
    header_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)] = 16 << 10
    items: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256
    connections: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 512
    drain_seconds: _Positive = 10.0
    caller_rows: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    caller_rate: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    caller_burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that ``server.yaml`` says."""

    models: tuple[str, ...] = ()
    repository: RepositorySettings | None = None
    publishers: str = "publishers.json"
    listen: Listen = Listen()
    tls: Tls | None = None
    edges: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    identity: IdentitySource = IdentitySource()
    tokens: str = "tokens.json"
    trust_state: str = "trust.json"
    audit: Audit = Audit()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()


class _Strict(yaml.SafeLoader):
    """Plain values, and no key twice: one of the two would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        found: dict[object, object] = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            line = node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(problem=f"a key stands twice in the block of line {line}")
        return found


def load(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: it cannot be read, a key or type is wrong, or a combination is unsafe.
    """
    try:
        value = _Strict(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"{path}: {error.problem or 'is not valid yaml'}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid yaml") from error
    try:
        settings = msgspec.convert(value, type=Settings, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path}: {str(error).lower()}", hint="configs/server.yaml shows every key with its default"
        ) from error
    return check(_absolute(settings, path.absolute().parent), subject=str(path))


def check(settings: Settings, *, subject: str) -> Settings:
    """Refuse combinations that are not safe.

    Raises:
        ConfigError: no model, no such version policy or key source, an engine without seccomp, or a bind beyond
            loopback without TLS.
    """
    if not settings.models and settings.repository is None:
        raise ConfigError(f"{subject}: needs at least one model", hint="name files in models, or a repository.folder")
    _check_versions(settings.repository, subject=subject)
    unlock.check(settings.identity.unlock, subject=f"{subject}: identity.unlock")
    if settings.identity.unlock == "vault" and settings.identity.vault is None:
        raise ConfigError(f"{subject}: identity.unlock is vault, so identity.vault is needed")
    if "seccomp" not in settings.engine.require:
        raise ConfigError(
            f"{subject}: engine.require must name seccomp",
            hint="without it the engine would have a network; add landlock",
        )
    if settings.tls is None and not is_loopback(settings.listen.host):
        raise ConfigError(
            f"{subject}: listen.host {settings.listen.host} is not loopback, so tls is needed",
            hint="set tls.certificate and tls.key, or listen on 127.0.0.1",
        )
    return settings


def _check_versions(repository: RepositorySettings | None, *, subject: str) -> None:
    if repository is None or isinstance(repository.versions, str):
        return
    for name, found in repository.versions.items():
        if isinstance(found, int) and name != "latest":
            raise ConfigError(
                f"{subject}: repository.versions: {name} needs a list of sequences", hint=f"write {name}: [{found}]"
            )


def is_loopback(host: str) -> bool:
    """Whether a listen address can only be reached from this host; names are not trusted to be."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(settings: Settings, folder: Path) -> Settings:
    def absolute(name: str) -> str:
        return str(folder / name)

    def absolute_or_none(name: str | None) -> str | None:
        return name if name is None else absolute(name)

    tls, identity = settings.tls, settings.identity
    vault = identity.vault and msgspec.structs.replace(
        identity.vault, ca=absolute_or_none(identity.vault.ca), token=absolute_or_none(identity.vault.token)
    )
    return msgspec.structs.replace(
        settings,
        models=tuple(map(absolute, settings.models)),
        repository=settings.repository
        and msgspec.structs.replace(settings.repository, folder=absolute(settings.repository.folder)),
        publishers=absolute(settings.publishers),
        tokens=absolute(settings.tokens),
        trust_state=absolute(settings.trust_state),
        identity=msgspec.structs.replace(
            identity, path=absolute(identity.path), previous=absolute_or_none(identity.previous), vault=vault
        ),
        audit=msgspec.structs.replace(
            settings.audit, directory=absolute(settings.audit.directory), key=absolute(settings.audit.key)
        ),
        tls=tls and msgspec.structs.replace(tls, certificate=absolute(tls.certificate), key=absolute(tls.key)),
    )
