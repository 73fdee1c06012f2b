"""What an engine is told at its start: plain values, never settings; its two secrets come beside them."""

from __future__ import annotations

from pathlib import Path

import msgspec


class EngineValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values for one engine.

    Attributes:
        models: sealed files to serve.
        publishers: pinned publishers' key files.
        trust_state: the site's trust state file.
        audit_directory: where the audit log is.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        threads: threads per operator.
        memory_budget: largest plaintext of one model in bytes, or None.
        queue: items that may wait.
        version: of the daemon.
    """

    models: tuple[str, ...]
    publishers: tuple[str, ...]
    trust_state: str
    audit_directory: str
    device: str
    threads: int
    memory_budget: int | None
    queue: int
    version: str

    def paths(self, names: tuple[str, ...]) -> list[Path]:
        """Names as paths."""
        return [Path(name) for name in names]
