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


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the engine computes."""

    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda:[0-9]{1,2})$")] = "auto"
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    memory: Literal["locked", "secret"] = "locked"
    memory_budget: Annotated[int, msgspec.Meta(ge=1)] | None = None
    queue: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 512


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one request may cost."""

    body_bytes: Annotated[int, msgspec.Meta(ge=1024, le=64 << 20)] = 8 << 20
    body_seconds: _Positive = 20.0
    answer_seconds: _Positive = 30.0
    header_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)] = 16 << 10
    items: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256
    connections: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 512
    drain_seconds: _Positive = 10.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that ``server.yaml`` says."""

    models: tuple[str, ...]
    publishers: str = "publishers.json"
    listen: Listen = Listen()
    tls: Tls | None = None
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
        ConfigError: no model, no such key source, or a bind beyond loopback without TLS.
    """
    if not settings.models:
        raise ConfigError(f"{subject}: needs at least one model")
    unlock.check(settings.identity.unlock, subject=f"{subject}: identity.unlock")
    if settings.identity.unlock == "vault" and settings.identity.vault is None:
        raise ConfigError(f"{subject}: identity.unlock is vault, so identity.vault is needed")
    if settings.tls is None and not is_loopback(settings.listen.host):
        raise ConfigError(
            f"{subject}: listen.host {settings.listen.host} is not loopback, so tls is needed",
            hint="set tls.certificate and tls.key, or listen on 127.0.0.1",
        )
    return settings


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
