"""What a forwarder is told at its start: plain values, never settings; it gets no secret."""

from __future__ import annotations

import msgspec


class ForwardValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values for the forwarder.

    Attributes:
        directory: the audit log.
        cursor: the file that says how far it came; its folder is the only one that is written.
        host: where the collector listens.
        port: on which port.
        name: what its certificate must be made out to.
        ca: PEM file of who vouches for it.
        certificate: PEM file by which the collector knows us.
        key: the private key that belongs to it.
        version: of the daemon.
        checkpoint_seconds: the published head is sent at least that often, also when nothing happens.
        timeout_seconds: longest wait for the collector, to connect or to acknowledge.
    """

    directory: str
    cursor: str
    host: str
    port: int
    name: str
    ca: str
    certificate: str
    key: str
    version: str
    checkpoint_seconds: float = 60.0
    timeout_seconds: float = 20.0
