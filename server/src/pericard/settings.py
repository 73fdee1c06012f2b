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

from pericard import documents, unlock
from pericard.audit.pruned import FLOOR_DAYS
from pericard.errors import ConfigError

_Positive = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the edge listens."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8443
    direct: bool = True
    proxy: str | None = None


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server's certificate and private key, PEM files; and who vouches for clients that have one."""

    certificate: str
    key: str
    minimum_version: Literal["1.2", "1.3"] = "1.3"
    client_ca: str | None = None
    clients: Literal["optional", "required"] = "optional"


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
    """The audit log's directory and key, and how long its records stay."""

    directory: str = "audit"
    key: str = "log.key"
    retention_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] | None = None
    retention_below_floor: bool = False


class Forward(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The collector that audit records are sent to, over RELP and TLS 1.3, and who it is known by."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    ca: str
    certificate: str
    key: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 2514
    name: str | None = None
    cursor: str = "forward/cursor"
    checkpoint_seconds: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0
    timeout_seconds: Annotated[float, msgspec.Meta(ge=1, le=600)] = 20.0


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
    failures: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = 10


class RefusalsLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text log of refused credentials, for programs that block addresses."""

    path: str
    bytes: Annotated[int, msgspec.Meta(ge=64 << 10, le=1 << 30)] = 1 << 20
    files: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4


class EnvironmentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the installed runtime is held against its manifest at the start, and where that is."""

    mode: Literal["off", "warn", "enforce", "auto"] = "auto"
    manifest: str = "/etc/pericard/environment.json"


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
    policy: str | None = None
    trust_state: str = "trust.json"
    audit: Audit = Audit()
    refusals_log: RefusalsLog | None = None
    forward: Forward | None = None
    environment: EnvironmentSettings = EnvironmentSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()


def load(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: it cannot be read, a key or type is wrong, or a combination is unsafe.
    """
    hint = "configs/server.yaml shows every key with its default"
    settings = documents.parse(documents.read(path), Settings, subject=str(path), hint=hint)
    return check(_absolute(settings, path.absolute().parent), subject=str(path))


def check(settings: Settings, *, subject: str) -> Settings:
    """Refuse combinations that are not safe.

    Raises:
        ConfigError: no model, no such version policy or key source, an engine without seccomp, a retention below the
            floor, a bind beyond loopback without TLS, or client certificates without who vouches for them, or over
            TLS 1.2.
    """
    if not settings.models and settings.repository is None:
        raise ConfigError(f"{subject}: needs at least one model", hint="name files in models, or a repository.folder")
    _check_versions(settings.repository, subject=subject)
    unlock.check(settings.identity.unlock, subject=f"{subject}: identity.unlock")
    if settings.identity.unlock == "vault" and settings.identity.vault is None:
        raise ConfigError(f"{subject}: identity.unlock is vault, so identity.vault is needed")
    days = settings.audit.retention_days
    if days is not None and days < FLOOR_DAYS and not settings.audit.retention_below_floor:
        raise ConfigError(
            f"{subject}: audit.retention_days is {days}, and records stay {FLOOR_DAYS} days at least",
            hint="audit.retention_below_floor: true allows less, and is recorded each time that records go",
        )
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
    _check_clients(settings.tls, subject=subject)
    return settings


def _check_clients(tls: Tls | None, *, subject: str) -> None:
    if tls is None:
        return
    if tls.client_ca is None and tls.clients == "required":
        raise ConfigError(f"{subject}: tls.clients is required, so tls.client_ca is needed")
    if tls.client_ca is not None and tls.minimum_version != "1.3":
        raise ConfigError(
            f"{subject}: tls.client_ca needs tls.minimum_version 1.3",
            hint="an older session is resumed without looking at the client's certificate again",
        )


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

    tls, identity, forward = settings.tls, settings.identity, settings.forward
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
        policy=absolute_or_none(settings.policy),
        listen=msgspec.structs.replace(settings.listen, proxy=absolute_or_none(settings.listen.proxy)),
        trust_state=absolute(settings.trust_state),
        environment=msgspec.structs.replace(settings.environment, manifest=absolute(settings.environment.manifest)),
        identity=msgspec.structs.replace(
            identity, path=absolute(identity.path), previous=absolute_or_none(identity.previous), vault=vault
        ),
        audit=msgspec.structs.replace(
            settings.audit, directory=absolute(settings.audit.directory), key=absolute(settings.audit.key)
        ),
        refusals_log=settings.refusals_log
        and msgspec.structs.replace(settings.refusals_log, path=absolute(settings.refusals_log.path)),
        forward=forward
        and msgspec.structs.replace(
            forward, **{name: absolute(getattr(forward, name)) for name in ("ca", "certificate", "key", "cursor")}
        ),
        tls=tls
        and msgspec.structs.replace(
            tls,
            certificate=absolute(tls.certificate),
            key=absolute(tls.key),
            client_ca=absolute_or_none(tls.client_ca),
        ),
    )
