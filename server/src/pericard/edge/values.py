"""What an edge is told at its start: plain values, never settings, and no secret but the path of its TLS key."""

from __future__ import annotations

import msgspec


class EdgeValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values for one edge; ``limits`` as in ``edge.limits.Limits``."""

    version: str
    tokens: str
    body_bytes: int
    body_seconds: float
    answer_seconds: float
    header_bytes: int
    items: int
    connections: int
    drain_seconds: float
    certificate: str | None = None
    key: str | None = None
    minimum_version: str = "1.3"
    direct: bool = True
    failures: int | None = None
    refusals_log: str | None = None
    refusals_log_bytes: int = 1 << 20
    refusals_log_files: int = 4
    policy: str | None = None
    client_ca: str | None = None
    clients: str = "optional"
