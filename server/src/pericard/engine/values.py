"""What an engine is told at its start: plain values, never settings; its two secrets come beside them."""

from __future__ import annotations

import msgspec


class RepositoryValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values for the folder of sealed files.

    Attributes:
        folder: where they are.
        latest: how many of the newest versions of each model are served; None for all.
        sequences: for the models named here, these versions and no others.
        watch_seconds: from one look at the folder to the next; 0 for none but when asked.
    """

    folder: str
    latest: int | None = 1
    sequences: dict[str, tuple[int, ...]] = {}
    watch_seconds: float = 10.0


class EnvironmentValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found of the installed runtime at the start; as ``environment.Judgement`` says."""

    mode: str
    state: str
    kind: str
    lock: str | None
    digest: str | None
    findings: int


class EngineValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values for one engine.

    Attributes:
        models: sealed files to serve, each by its name.
        publishers: the file of pinned publishers.
        trust_state: the site's trust state file.
        audit_directory: where the audit log is.
        devices: ``auto``, ``cpu`` or ``cuda:N``, one for each instance of every model.
        threads: threads per operator.
        memory: ``locked`` as far as the host allows, or ``secret``.
        memory_budget: largest plaintext of one model in bytes, or None.
        queue: items that may wait.
        version: of the daemon.
        repository: the folder of sealed files, or None.
        memory_total: plaintext of all instances of all models in bytes, while one replaces another too, or None.
        per_caller: items of one principal that may wait or be in work, or None for all of them.
        caller_rate: rows a second of one principal, or None for any number.
        caller_burst: rows that a principal may send at once.
        batch_delay: seconds that an item may wait for others to share its batch.
        recheck_seconds: from one round of known answers to the next; 0 for none.
        drain_seconds: how long a version that was replaced may take to answer what it was asked.
        retention_days: records stay at least that long; None for ever.
        forward_cursor: the file that says what the collector has, so that nothing else is pruned, or None.
        forward_status: the file in which the forwarder says how far it is, or None.
        require: layers of the confinement without which the engine does not start.
        environment: what the process that was started first found of the runtime; None if nobody looked.
    """

    models: tuple[str, ...]
    publishers: str
    trust_state: str
    audit_directory: str
    devices: tuple[str, ...]
    threads: int
    memory: str
    memory_budget: int | None
    queue: int
    version: str
    repository: RepositoryValues | None = None
    memory_total: int | None = None
    per_caller: int | None = None
    caller_rate: float | None = None
    caller_burst: int = 256
    batch_delay: float = 0.0
    recheck_seconds: float = 3600.0
    drain_seconds: float = 30.0
    retention_days: int | None = None
    forward_cursor: str | None = None
    forward_status: str | None = None
    require: tuple[str, ...] = ("seccomp",)
    environment: EnvironmentValues | None = None
