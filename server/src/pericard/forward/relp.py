"""RELP, the syslog transport that acknowledges each message, as a client over TLS 1.3 with both certificates.

Rules of this module: it knows frames and acknowledgements, not records. A message counts once its acknowledgement came
and never because it was written to a socket. Every wait has an end, and what a collector may make us hold is bounded.
Anything unexpected ends the session; whoever sends starts another one and sends again what was not acknowledged.

Written here since of the libraries ``pyrelp`` (a wrapper, last released in 2014) is not kept, and ``relppy`` waits
without an end, takes an acknowledgement that refuses for one, and sets no bound to what it reads. The client's half is
one frame: ``<number> SP <command> SP <length> [SP <data>] LF``.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from pericard.errors import CollectorUnavailable, ConfigError

_OFFER: Final = b"relp_version=0\nrelp_software=pericard\ncommands=syslog"
_HEAD = re.compile(rb"(\d{1,9}) ([a-z]{1,32}) (\d{1,6})(?: |\n)")
_LONGEST_HEAD = 9 + 1 + 32 + 1 + 6 + 1
_LONGEST_DATA = 16 * 1024
_LAST_NUMBER = 999_999_999
_CHUNK = 16 * 1024


def context(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.3, our certificate, and nobody but those whom ``ca`` vouches for.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    try:
        made = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"forward.ca: {ca} cannot be read as certificates in PEM") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        made.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"forward.certificate: {certificate} and {key} cannot be read as a certificate and its key",
            hint="both in PEM, the key without a passphrase and readable by the server's user",
        ) from error
    return made


def _no_password() -> str:
    return ""  # or OpenSSL would ask the terminal


class Session:
    """One connection to a collector; a context manager.

    Attributes:
        acknowledged: how many messages of the last :meth:`deliver` were, counted from its first one without a gap.
    """

    def __init__(self, host: str, port: int, name: str, tls: ssl.SSLContext, *, timeout: float) -> None:
        """Connect and open the session.

        Args:
            host: where the collector is.
            port: of its RELP listener.
            name: what its certificate must be made out to.
            tls: from :func:`context`.
            timeout: seconds; longest wait to connect, and for the acknowledgements of one :meth:`deliver`.

        Raises:
            CollectorUnavailable: it is not there, is somebody else, or does not speak RELP.
        """
        self.acknowledged = 0
        self._timeout = timeout
        self._number = 0
        self._buffer = bytearray()
        self._where = f"collector {host} port {port}"
        try:
            plain = socket.create_connection((host, port), timeout=timeout)
            try:
                self._socket = tls.wrap_socket(plain, server_hostname=name)
            except BaseException:
                plain.close()
                raise
        except (OSError, ValueError) as error:  # a name that is none is the latter
            raise self._unavailable(_reason(error)) from error
        try:
            self._exchange([(b"open", _OFFER)])
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def deliver(self, messages: Sequence[bytes]) -> None:
        """Send messages and return once each of them was acknowledged.

        Raises:
            CollectorUnavailable: one was not, in time or at all; ``acknowledged`` says how many were, and any of the
                others may have arrived. The session is over.
        """
        self._exchange([(b"syslog", message) for message in messages])

    def close(self) -> None:
        """Say goodbye and disconnect; whatever becomes of it."""
        try:
            self._exchange([(b"close", b"")])
        except CollectorUnavailable:
            return
        finally:
            self._socket.close()

    def _exchange(self, requests: Sequence[tuple[bytes, bytes]]) -> None:
        deadline = time.monotonic() + self._timeout
        awaited: deque[int] = deque()
        early: set[int] = set()  # acknowledged before one that was sent earlier
        self.acknowledged = 0
        frames = []
        for command, data in requests:
            self._number = self._number % _LAST_NUMBER + 1
            awaited.append(self._number)
            frames.append(b"%d %s %d%s%s\n" % (self._number, command, len(data), b" " * bool(data), data))
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(b"".join(frames))
            while awaited:
                number, command, data = self._receive(deadline)
                if command != b"rsp":  # "serverclose", mostly
                    raise self._unavailable(f"ended the session ({command.decode()})")
                if not data.startswith(b"200"):
                    raise self._unavailable("refused a message")
                if number not in awaited or number in early:
                    raise self._unavailable("acknowledged what was not sent")
                early.add(number)
                while awaited and awaited[0] in early:
                    early.remove(awaited.popleft())
                    self.acknowledged += 1
        except OSError as error:
            raise self._unavailable(_reason(error)) from error

    def _receive(self, deadline: float) -> tuple[int, bytes, bytes]:
        """One frame: its number, command and data."""
        while (found := _HEAD.match(self._buffer)) is None:
            if len(self._buffer) > _LONGEST_HEAD:
                raise self._unavailable("does not speak RELP")
            self._more(deadline)
        number, command, length = int(found[1]), bytes(found[2]), int(found[3])
        if length > _LONGEST_DATA:
            raise self._unavailable("sends more than a collector has to say")
        end = found.end() + length
        if length:  # behind data a newline ends the frame; without data it did already
            while len(self._buffer) < end + 1:
                self._more(deadline)
            if self._buffer[found.end() - 1 : found.end()] != b" " or self._buffer[end : end + 1] != b"\n":
                raise self._unavailable("does not speak RELP")
        data = bytes(self._buffer[found.end() : end])
        del self._buffer[: end + bool(length)]
        return number, command, data

    def _more(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        data = self._socket.recv(_CHUNK)
        if not data:
            raise self._unavailable("closed the connection")
        self._buffer += data

    def _unavailable(self, reason: str) -> CollectorUnavailable:
        return CollectorUnavailable(
            f"{self._where}: {reason}", hint="nothing is lost: what it did not acknowledge is sent again"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message.lower()}"
    if isinstance(error, ssl.SSLError):
        return f"tls failed ({(error.reason or 'no reason given').lower().replace('_', ' ')})"
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number and number > 0 else "cannot be reached under this name"
