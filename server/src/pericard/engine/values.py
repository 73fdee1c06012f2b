"""What an engine is told at its start: plain values, never settings; its two secrets come beside them."""

from __future__ import annotations

import msgspec


class EngineValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values for one engine.

    Attributes:
        models: sealed files to serve.
        publishers: the file of pinned publishers.
        trust_state: the site's trust state file.
        audit_directory: where the audit log is.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        threads: threads per operator.
        memory: ``locked`` as far as the host allows, or ``secret``.
        memory_budget: largest plaintext of one model in bytes, or None.
        queue: items that may wait.
        version: of the daemon.
    """

    models: tuple[str, ...]
    publishers: str
    trust_state: str
    audit_directory: str
    device: str
    threads: int
    memory: str
    memory_budget: int | None
    queue: int
    version: str
