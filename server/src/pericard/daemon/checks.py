"""Whether the files that the settings name are there and fit: for ``serve --check``.

Each check reads a file as the daemon would, so it is to be run as the daemon's user. Nothing is unlocked, decrypted or
written, and no signature is checked: a start does that.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pericard import environment
from pericard.auth import PolicyFile
from pericard.errors import ConfigError, PericardError
from pericard.keys import LogKey, wipe
from pericard.sealed import SealedModel
from pericard.settings import Settings
from pericard.trust import TrustState, TrustStore
from pericard.unlock import kind_in


def require_files(settings: Settings) -> None:
    """Refuse settings of which a file is missing, cannot be read, or is of another kind.

    Raises:
        PericardError: the first such file, with how it is made.
    """
    environment.require_manifest(settings.environment.mode, Path(settings.environment.manifest))
    for name in settings.models:
        _hinted(
            lambda path: SealedModel(path).close(), Path(name), "models: put the sealed file that the vendor sent there"
        )
    if settings.repository is not None and not Path(settings.repository.folder).is_dir():
        raise ConfigError(
            f"{settings.repository.folder}: is no folder",
            hint="repository.folder: make it, and put sealed files into it",
        )
    if settings.refusals_log is not None and not Path(settings.refusals_log.path).parent.is_dir():
        raise ConfigError(
            f"{settings.refusals_log.path}: its folder is missing",
            hint="refusals_log.path: make the folder, and give it to the server's account",
        )
    TrustStore(Path(settings.publishers)).load()
    _identities(settings)
    _hinted(_log_key, Path(settings.audit.key), f"pericard keygen log -o {settings.audit.key}")
    TrustState(Path(settings.trust_state))
    if settings.policy is not None:
        _hinted(PolicyFile, Path(settings.policy), "policy: docs/guide/principals.md shows a whole one")
    _tls(settings)


def _hinted(check: Callable[[Path], object], path: Path, hint: str) -> None:
    """Run a check; a file that is missing is told with how it is made."""
    try:
        check(path)
    except PericardError as error:
        if path.exists():
            raise
        raise type(error)(error.message, hint=hint) from error


def _log_key(path: Path) -> None:
    wipe(LogKey.read_secret(path))


def _identities(settings: Settings) -> None:
    source = settings.identity
    if source.unlock != "systemd":  # only the service manager has a credential
        check = partial(_identity, kinds={source.unlock})
        _hinted(check, Path(source.path), f"pericard keygen identity -o {source.path}")
    if source.previous is not None:
        check = partial(_identity, kinds={"file", source.unlock})
        _hinted(check, Path(source.previous), "take identity.previous out if every model was granted anew")


def _identity(path: Path, kinds: set[str]) -> None:
    found = kind_in(path)
    if found not in kinds:
        raise ConfigError(
            f"{path}: has the lock {found}, and identity.unlock says {' or '.join(sorted(kinds))}",
            hint=f"change identity.unlock, or pericard identity relock {path} --to KIND",
        )


def _tls(settings: Settings) -> None:
    if settings.tls is None:
        return
    for name in (settings.tls.certificate, settings.tls.key):
        try:
            Path(name).open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"{name}: cannot be read: {(error.strerror or 'i/o error').lower()}",
                hint="pericard keygen tls makes a first certificate",
            ) from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls.certificate, settings.tls.key, password=lambda: ""
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{settings.tls.certificate}: is no certificate that goes with {settings.tls.key}",
            hint="two PEM files; the key without a passphrase",
        ) from error
    _client_ca(settings.tls.client_ca)


def _client_ca(name: str | None) -> None:
    if name is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: holds no authorities", hint="tls.client_ca: a PEM file of who vouches for callers"
        ) from error
