"""``--inline``: engine and edge in one process, for debugging; same rooms, same pipe, no isolation.

It refuses to listen beyond loopback, since the process that parses the network then also holds weights and keys.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvloop

from pericard import hardening
from pericard.daemon import values
from pericard.edge.main import Edge
from pericard.engine.main import Engine
from pericard.errors import ConfigError
from pericard.keys import Identity, LogKey, wipe
from pericard.pipe import create
from pericard.settings import Settings, is_loopback
from pericard.unlock import unlock


def run(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reloads certificate and models.

    Raises:
        PericardError: it could not start, or was asked to listen beyond loopback.
    """
    if not is_loopback(settings.listen.host):
        raise ConfigError(
            f"listen.host: {settings.listen.host} is not loopback, which --inline needs", hint="leave --inline out"
        )
    runtime = values.judged(settings)
    hardening.harden()
    seeds = unlock(values.unlock_values(settings))
    try:
        identity, *others = map(Identity, seeds)
    finally:
        for seed in seeds:
            wipe(seed)
    listener, proxy = values.listen(settings), values.listen_proxy(settings)
    log_key, previous = LogKey.read(Path(settings.audit.key)), others[0] if others else None
    live = (identity,) if previous is None else (identity, previous)
    told = values.engine_values(settings, runtime)
    # one process: nobody else could keep the identity for a later load
    engine = Engine(told, identity, log_key, previous=previous, identities=lambda: live)
    engine.start(lambda: os._exit(70))
    try:
        edge = Edge(values.edge_values(settings))
        ours, theirs = socket.socketpair()
        region = create(settings.engine.shared_memory)
        engine.attach(ours, os.dup(region))

        async def serve() -> None:
            await edge.link.attach(theirs, region)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
            announce(f"serving {engine.serving} on {values.url(settings, listener)} (inline)")
            await edge.serve(listener, proxy=proxy)

        def reload() -> None:
            edge.reload()
            engine.reload()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    finally:
        engine.stop()
        listener.close()
        values.close_proxy(proxy)
