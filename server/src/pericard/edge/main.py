"""One edge process: uvicorn on an inherited socket, and a control socket to the supervisor.

The supervisor hands over the engine's pipe, and a new one whenever the engine came back; it asks for a reload of the
certificate or for a stop; and when it is gone, the edge ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from pericard.auth import TokenFile
from pericard.edge.answer import Answerer
from pericard.edge.app import create_app
from pericard.edge.asgi import RawEntrance
from pericard.edge.direct import protocol
from pericard.edge.limits import Limits
from pericard.edge.values import EdgeValues
from pericard.errors import ConfigError
from pericard.pipe import EngineLink

_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 1024
_CONTROL_SIZE = 64
_REJOIN_SECONDS = 0.5
_logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: those raise the signal again once it has stopped, which would end us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to :meth:`Edge.serve`."""
        yield


class Edge:
    """Everything that one edge process holds."""

    def __init__(self, values: EdgeValues) -> None:
        """Build the application and the TLS context.

        Raises:
            ConfigError: the certificate or its key cannot be used.
        """
        self._values = values
        self.link = EngineLink(self._joined, self._lost)
        self._control_socket: socket.socket | None = None
        limits = _limits(values)
        answerer = Answerer(self.link, TokenFile(Path(values.tokens)), limits, version=values.version)
        self._tls = _tls(values)
        context = _tls(values)
        if context is not None:
            # a connection takes the newest certificate; one context alone would be broken by a bad reload
            context.sni_callback = self._newest
        config = uvicorn.Config(
            RawEntrance(answerer, create_app(answerer, version=values.version)),
            loop="uvloop",
            http=protocol(answerer, connections=values.connections, direct=values.direct),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # its warnings are what strangers send, and those are counted
            access_log=False,
            proxy_headers=False,  # an address is what the kernel says it is
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(values.drain_seconds),
            ssl_context_factory=None if context is None else lambda *_: context,
        )
        self.server = _Server(config)

    async def serve(self, listener: socket.socket, control: socket.socket | None = None) -> None:
        """Serve until asked to stop, by the supervisor or by a signal."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop)
        if control is not None:
            control.setblocking(False)
            self._control_socket = control
            asyncio.get_running_loop().add_reader(control.fileno(), self._control, control)
        await self.server.serve(sockets=[listener])
        self.link.close()

    def reload(self) -> None:
        """Use a new certificate for new connections; a bad one leaves the old one in use."""
        try:
            self._tls = _tls(self._values)
        except ConfigError as error:
            _logger.error("%s; the old one stays in use", error.message)  # noqa: TRY400  (the message says it all)

    def _newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._tls is not None:
            connection.context = self._tls

    def _stop(self) -> None:
        self.server.should_exit = True

    def _joined(self) -> None:
        """Tell the supervisor that requests can be answered now."""
        if self._control_socket is not None:
            with contextlib.suppress(OSError):
                self._control_socket.send(b'{"joined": true}')

    def _lost(self) -> None:
        """Ask for another pipe, unless the supervisor brings one by itself, as it does when the engine comes back."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and we with it
            asyncio.get_running_loop().call_later(_REJOIN_SECONDS, self._ask_for_pipe)

    def _ask_for_pipe(self) -> None:
        if self._control_socket is not None and self.link.catalog is None and not self.server.should_exit:
            with contextlib.suppress(OSError):
                self._control_socket.send(b'{"lost": true}')

    def _control(self, control: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, _CONTROL_SIZE, 2)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        if message == b"pipe" and len(descriptors) == 2:  # noqa: PLR2004  (a socket and its region)
            task = asyncio.ensure_future(self.link.attach(socket.socket(fileno=descriptors[0]), descriptors[1]))
            task.add_done_callback(lambda done: done.exception())
        elif message == b"reload":
            self.reload()
        elif message == b"stop":
            self._stop()
        else:
            os._exit(1)  # the supervisor is gone, and with it everything that answers could rest on


def _limits(values: EdgeValues) -> Limits:
    return Limits(values.body_bytes, values.body_seconds, values.answer_seconds, values.header_bytes, values.items)


def _tls(values: EdgeValues) -> ssl.SSLContext | None:
    if values.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if values.minimum_version == "1.2" else ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(str(values.certificate), values.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"tls: certificate {values.certificate} and its key cannot be used",
            hint="both are PEM files, and the key must belong to the certificate",
        ) from error
    return context
