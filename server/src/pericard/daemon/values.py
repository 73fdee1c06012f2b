"""Settings → values: what each child is told."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import socket
from pathlib import Path

from pericard import __version__, environment
from pericard.edge.values import EdgeValues
from pericard.engine.values import EngineValues, EnvironmentValues, RepositoryValues
from pericard.errors import ConfigError
from pericard.forward import ForwardValues, status_path
from pericard.settings import RepositorySettings, Settings
from pericard.unlock import UnlockValues, VaultValues

_logger = logging.getLogger(__name__)


def judged(settings: Settings) -> environment.Judgement:
    """Judge the installed runtime, once for all processes: before a key is touched, and before hardening.

    Raises:
        PericardError: this server is not to run in it.
    """
    found = settings.environment
    return environment.judge(found.mode, Path(found.manifest), warn=_logger.warning)


def engine_values(settings: Settings, runtime: environment.Judgement | None = None) -> EngineValues:
    """What an engine needs to know."""
    engine = settings.engine
    return EngineValues(
        models=settings.models,
        publishers=settings.publishers,
        trust_state=settings.trust_state,
        audit_directory=settings.audit.directory,
        devices=(engine.device,) if isinstance(engine.device, str) else engine.device,
        threads=engine.threads,
        memory=engine.memory,
        memory_budget=engine.memory_budget,
        queue=engine.queue,
        version=__version__,
        repository=_repository(settings.repository) if settings.repository else None,
        memory_total=engine.memory_total,
        per_caller=settings.limits.caller_rows,
        caller_rate=settings.limits.caller_rate,
        caller_burst=settings.limits.caller_burst,
        batch_delay=engine.batch_delay_ms / 1000,
        recheck_seconds=engine.recheck_seconds,
        drain_seconds=settings.limits.answer_seconds,  # after that, nobody waits for an answer any more
        require=engine.require,
        retention_days=settings.audit.retention_days,
        forward_cursor=settings.forward.cursor if settings.forward else None,
        forward_status=str(status_path(Path(settings.forward.cursor))) if settings.forward else None,
        environment=EnvironmentValues(**dataclasses.asdict(runtime)) if runtime else None,
    )


def _repository(found: RepositorySettings) -> RepositoryValues:
    return RepositoryValues(found.folder, found.latest, found.sequences, found.watch_seconds)


def unlock_values(settings: Settings) -> UnlockValues:
    """How the identity is unlocked."""
    source = settings.identity
    vault = source.vault
    return UnlockValues(
        kind=source.unlock,
        path=source.path,
        previous=source.previous,
        passphrase_fd=source.passphrase_fd if source.unlock == "passphrase" else None,
        credential=source.credential,
        tcti=source.tcti,
        vault=VaultValues(vault.address, vault.ca, vault.token, vault.token_fd) if vault else None,
        options=source.options,
    )


def forward_values(settings: Settings) -> ForwardValues:
    """What the forwarder needs to know.

    Raises:
        ConfigError: the settings name no collector.
    """
    found = settings.forward
    if found is None:
        raise ConfigError("forward: the settings name no collector", hint="set forward.host and its certificates")
    return ForwardValues(
        directory=settings.audit.directory,
        cursor=found.cursor,
        host=found.host,
        port=found.port,
        name=found.name or found.host,
        ca=found.ca,
        certificate=found.certificate,
        key=found.key,
        version=__version__,
        checkpoint_seconds=found.checkpoint_seconds,
        timeout_seconds=found.timeout_seconds,
    )


def edge_values(settings: Settings) -> EdgeValues:
    """What an edge needs to know."""
    limits, tls, log = settings.limits, settings.tls, settings.refusals_log
    return EdgeValues(
        version=__version__,
        tokens=settings.tokens,
        policy=settings.policy,
        body_bytes=limits.body_bytes,
        body_seconds=limits.body_seconds,
        answer_seconds=limits.answer_seconds,
        header_bytes=limits.header_bytes,
        items=limits.items,
        connections=limits.connections,
        direct=settings.listen.direct,
        drain_seconds=limits.drain_seconds,
        certificate=tls.certificate if tls else None,
        key=tls.key if tls else None,
        minimum_version=tls.minimum_version if tls else "1.3",
        failures=limits.failures,
        refusals_log=log.path if log else None,
        refusals_log_bytes=log.bytes if log else 1 << 20,
        refusals_log_files=log.files if log else 4,
        client_ca=tls.client_ca if tls else None,
        clients=tls.clients if tls else "optional",
    )


def remarks(settings: Settings) -> list[str]:
    """What does not stop a start, and yet is hardly meant: one sentence each."""
    tokens = Path(settings.tokens)
    if tokens.exists():
        return []
    return [f"{tokens}: is missing, so nobody is answered; pericard token create makes it"]


def listen(settings: Settings) -> socket.socket:
    """Bind the listening socket.

    Raises:
        ConfigError: the address is not ours or is taken.
    """
    host, port = settings.listen.host, settings.listen.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
    except (OSError, ValueError, TypeError) as error:  # a host that is no name at all is one of the latter
        sock.close()
        reason = (getattr(error, "strerror", None) or "it is no address or name").lower()
        raise ConfigError(f"listen: cannot bind {host} port {port}: {reason}") from error
    return sock


def listen_proxy(settings: Settings) -> socket.socket | None:
    """Bind the Unix socket where a proxy says who its clients are; for our own user alone.

    Raises:
        ConfigError: something else is there, another server listens on it, or it cannot be made.
    """
    if settings.listen.proxy is None:
        return None
    path, sock = Path(settings.listen.proxy), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                if asking.connect_ex(str(path)) == 0:
                    raise OSError(errno.EADDRINUSE, "another server listens on it")
            path.unlink()  # of one that was killed
        before = os.umask(0o177)  # from its first moment on: between bind and chmod somebody could connect
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigError(f"listen.proxy: cannot bind {path}: {(error.strerror or str(error)).lower()}") from error
    return sock


def close_proxy(sock: socket.socket | None) -> None:
    """Close that socket, and take its name away."""
    if sock is not None:
        Path(sock.getsockname()).unlink(missing_ok=True)
        sock.close()


def url(settings: Settings, listener: socket.socket) -> str:
    """Where the server can be reached."""
    host = settings.listen.host
    return f"{'https' if settings.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
