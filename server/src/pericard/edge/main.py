"""One edge process: uvicorn on an inherited socket, and a control socket to the supervisor.

The supervisor hands over the engine's pipe, and a new one whenever the engine came back; it asks for a reload of the
certificate or for a stop; and when it is gone, the edge ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import uvicorn

from pericard.auth import Authority, PolicyFile, TokenFile
from pericard.edge import upkeep
from pericard.edge.answer import Answerer
from pericard.edge.app import create_app
from pericard.edge.asgi import RawEntrance
from pericard.edge.direct import protocol
from pericard.edge.limits import Limits
from pericard.edge.protocol import GuardedProtocol
from pericard.edge.refusals_log import RefusalsLog
from pericard.edge.values import EdgeValues
from pericard.errors import ConfigError
from pericard.pipe import EngineLink

_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 1024
_CONTROL_SIZE = 64
_REJOIN_SECONDS = 0.5
_WAITING_SHARE = 4  # of the connections, so many may belong to callers whose refusal waits
_logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with a second socket on which it speaks to a proxy.

    Its handlers raise the signal again once it has stopped, which would end us; and its sockets all have one protocol.
    """

    proxy: tuple[socket.socket, type[GuardedProtocol]] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self.proxy is not None:
            sock, kind = self.proxy
            made = partial(
                kind, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )  # fmt: skip
            loop = asyncio.get_running_loop()
            self.servers.append(await loop.create_unix_server(made, sock=sock, backlog=_BACKLOG))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to :meth:`Edge.serve`."""
        yield


class Edge:
    """Everything that one edge process holds."""

    def __init__(self, values: EdgeValues) -> None:
        """Build the application and the TLS context.

        Raises:
            ConfigError: the certificate, its key or the policy cannot be used.
        """
        self._values = values
        self.link = EngineLink(self._joined, self._lost)
        self._control_socket: socket.socket | None = None
        self._policy_told = False
        limits = _limits(values)
        policy = None if values.policy is None else PolicyFile(Path(values.policy))
        self.authority = Authority(TokenFile(Path(values.tokens)), policy)
        answerer = Answerer(
            self.link,
            self.authority,
            limits,
            version=values.version,
            refusals_log=_refusals_log(values),
        )
        self._strangers = answerer.upstream.strangers
        kind = partial(protocol, answerer, connections=values.connections, direct=values.direct)
        self._to_proxy = kind(believes=True)
        self._tls = _tls(values)
        self.authority.trust = "" if self._tls is None else self._tls.trust
        context = _tls(values)
        if context is not None:
            # a connection takes the newest certificate; one context alone would be broken by a bad reload
            context.sni_callback = self._newest
        config = uvicorn.Config(
            RawEntrance(answerer, create_app(answerer, version=values.version)),
            loop="uvloop",
            http=kind(),
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

    async def serve(
        self, listener: socket.socket, control: socket.socket | None = None, proxy: socket.socket | None = None
    ) -> None:
        """Serve until asked to stop, by the supervisor or by a signal.

        Args:
            listener: where callers come.
            control: to the supervisor.
            proxy: a Unix socket, where a proxy comes that says who its clients are.
        """
        if proxy is not None:
            self.server.proxy = (proxy, self._to_proxy)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop)
        if control is not None:
            control.setblocking(False)
            self._control_socket = control
            asyncio.get_running_loop().add_reader(control.fileno(), self._control, control)
        async with upkeep.keeping(self.authority, self._policy_looked):
            await self.server.serve(sockets=[listener])
        await self._strangers.finish()
        await self.link.finish()

    def reload(self) -> None:
        """Use a new certificate and new authorities for new connections, and the policy as it is now.

        Bad ones leave the old in use. A connection whose client was vouched for by other authorities brings no
        certificate from now on.
        """
        if self.authority.policy is not None:
            self.authority.policy.look(self._policy_looked, anew=True)
        try:
            self._tls = _tls(self._values)
            self.authority.trust = "" if self._tls is None else self._tls.trust
        except ConfigError as error:
            _logger.error("%s; the old one stays in use", error.message)  # noqa: TRY400  (the message says it all)

    def _newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._tls is not None:
            connection.context = self._tls

    def _policy_looked(self, error: ConfigError | None) -> None:
        """Say what became of a policy that changed."""
        if error is not None:
            _logger.error("%s; the policy before it stays in force", error.message)
        self._policy_told = False
        self._tell_policy()

    def _tell_policy(self) -> None:
        """Tell the engine, which counts and records it, whether the policy on disk is the one in force."""
        policy = self.authority.policy
        if policy is not None and self.link.catalog is not None and not self._policy_told:
            event = "policy-refused" if policy.refused else "policy-loaded"
            self.link.event({"event": event, "code": policy.refused, "policy": policy.current.digest})
            self._policy_told = True

    def _stop(self) -> None:
        self.server.should_exit = True

    def _joined(self) -> None:
        """Tell the supervisor that requests can be answered now, and the engine by which policy."""
        self._tell_policy()
        if self._control_socket is not None:
            with contextlib.suppress(OSError):
                self._control_socket.send(b'{"joined": true}')

    def _lost(self) -> None:
        """Ask for another pipe, unless the supervisor brings one by itself, as it does when the engine comes back."""
        self._policy_told = False  # to whoever comes next
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
    return Limits(
        values.body_bytes, values.body_seconds, values.answer_seconds, values.header_bytes, values.items,
        values.failures, values.connections // _WAITING_SHARE,
    )  # fmt: skip


def _refusals_log(values: EdgeValues) -> RefusalsLog | None:
    """The text log of refused credentials.

    Raises:
        ConfigError: it cannot be written.
    """
    if values.refusals_log is None:
        return None
    return RefusalsLog(Path(values.refusals_log), most_bytes=values.refusals_log_bytes, files=values.refusals_log_files)


class _Context(ssl.SSLContext):
    """A TLS context, and the digest of the authorities by which it verifies clients; empty if it asks for none."""

    trust = ""


def _tls(values: EdgeValues) -> _Context | None:
    if values.certificate is None:
        return None
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if values.minimum_version == "1.2" else ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(str(values.certificate), values.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"tls: certificate {values.certificate} and its key cannot be used",
            hint="both are PEM files, and the key must belong to the certificate",
        ) from error
    if values.client_ca is not None:
        _ask_for_certificates(context, values.client_ca, required=values.clients == "required")
    return context


def _ask_for_certificates(context: _Context, client_ca: str, *, required: bool) -> None:
    """Have clients prove who they are; nothing is resumed, since that would not look at their certificates again."""
    try:
        text = Path(client_ca).read_text("ascii")
        context.load_verify_locations(cadata=text)
    except (OSError, ValueError) as error:  # of which SSLError and UnicodeDecodeError are two
        raise ConfigError(
            f"tls: client_ca {client_ca} cannot be used", hint="a PEM file of one or several authorities"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.trust = hashlib.sha256(text.encode("ascii")).hexdigest()
