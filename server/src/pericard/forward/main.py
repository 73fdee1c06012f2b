"""The forwarder: carries every published record to one collector, in order, at least once, and the signed heads after.

The log on disk is the queue, so nothing but a window of messages is ever in memory. The cursor moves once the collector
acknowledged, never before; after whatever broke, what was not acknowledged is sent again. A head goes out when all that
it covers was acknowledged, and again and again while nothing happens, so that silence can be told from a cut. What goes
wrong is said in the status file beside the cursor, for the metrics, and tried again with a growing pause: nothing that
happens here, or at the collector, holds up the server.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Final

import msgspec

from pericard import durable
from pericard.audit import note
from pericard.audit.reading import reading
from pericard.audit.tail import Tail
from pericard.errors import AuditLogInvalid, ConfigError, LogTruncated, PericardError
from pericard.forward import message, relp
from pericard.forward.cursor import Cursor
from pericard.forward.values import ForwardValues

_WINDOW_RECORDS: Final = 256
_WINDOW_BYTES: Final = 1 << 20
_POLL_SECONDS = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
_CURSOR_SECONDS = 1.0  # what came since would be sent again after a crash
_CHANGED_HEAD_SECONDS = 10.0
_STATUS_SECONDS = 2.0

_logger = logging.getLogger(__name__)


class Status(msgspec.Struct):
    """What the status file says; ``docs/spec/forwarding.md`` lists it.

    Attributes:
        time: when it was written, in seconds since the epoch.
        cursor: records that were acknowledged, all before this index.
        published: records that may be sent.
        oldest: time of the oldest record that was not acknowledged, in seconds since the epoch, or None.
        connected: whether there is a session.
        sent: records acknowledged since the process began.
        sessions: sessions begun since then.
        missing: records that were to be sent and are not in the log.
        error: code of what is wrong now, or None.
    """

    time: float = 0.0
    cursor: int = 0
    published: int = 0
    oldest: float | None = None
    connected: bool = False
    sent: int = 0
    sessions: int = 0
    missing: int = 0
    error: str | None = None


def status_path(cursor: Path) -> Path:
    """Where the status of the forwarder with this cursor is."""
    return cursor.with_name(f"{cursor.name}.status")


class Forwarder:
    """Forwards one log to one collector; used by one thread."""

    def __init__(self, values: ForwardValues) -> None:
        """Read the cursor and the certificates.

        Raises:
            ConfigError: one of them cannot be read.
        """
        self._values = values
        self._directory = Path(values.directory)
        self._cursor = Cursor(Path(values.cursor))
        self._tls = relp.context(values.ca, values.certificate, values.key)
        self._sender: message.Sender | None = None
        self._tail: Tail | None = None
        self._window: list[tuple[int, bytes]] = []  # read and not acknowledged
        self._position = self._cursor.position
        self._session: relp.Session | None = None
        self._head: tuple[bytes, int] | None = None
        self._head_sent: tuple[bytes, float] | None = None
        self._cursor_written = self._status_written = float("-inf")
        self.status = Status(cursor=self._position)

    def run(
        self, stopping: Event, *, follow: bool = True, patience: float = math.inf, last_seconds: float = 2.0
    ) -> None:
        """Forward until told to stop, then for a moment longer what is there already.

        Args:
            stopping: set when the process is to end.
            follow: wait for new records, and try again after an error; otherwise both end it.
            patience: seconds without a success after which it ends all the same, to be started afresh: what this
                process holds (a resolver's files, its own certificates) may be what is wrong.
            last_seconds: how long the rest may take once it is to end.

        Raises:
            PericardError: something is wrong, and ``follow`` is not set or the patience is over; or another process
                uses this cursor.
        """
        pause, good = _FIRST_PAUSE, time.monotonic()
        with self._alone():
            try:
                while not stopping.is_set():
                    try:
                        done = self.step()
                    except PericardError as error:
                        self._failed(error)
                        if not follow or time.monotonic() - good > patience:
                            raise
                        stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  (so that many do not come at once)
                        pause = min(pause * 2, _LONGEST_PAUSE)
                        continue
                    pause, good = _FIRST_PAUSE, time.monotonic()
                    if done:
                        if not follow:
                            return
                        stopping.wait(_POLL_SECONDS)
                self._finish(last_seconds)
            finally:
                self._leave()

    def step(self) -> bool:
        """Deliver one window, or the head once there is no record left; whether nothing is left to do now.

        Raises:
            PericardError: the collector, the log or the cursor's file is in the way; nothing is lost.
        """
        self._look()
        if self._session is None and self._anything_due():
            self._connect()
        if self._window:
            self._deliver()
            if self._head_due():  # here too, or a log that never rests would never show one
                self._deliver_head()
            return False
        self._remember(force=True)
        if self._session is not None and self._head_due():
            self._deliver_head()
        self.status.error = None
        self._say()
        return True

    def _look(self) -> None:
        """See what is published, and have the next records of it at hand."""
        with reading(self._directory):
            signed = note.load(self._directory)
        if signed is None:
            if not self._directory.is_dir():
                raise AuditLogInvalid(f"{self._directory}: is not there")
            return
        head = note.claims(signed)
        if self._head is None or self._head[1] <= self._position:
            self._head = signed, head.size  # else one is being caught up with: a log that outruns us would show none
        self._sender = self._sender or message.Sender.here(head.origin, self._values.version)
        self.status.published = head.size
        if head.size < self._position:
            self.status.missing = self._position - head.size
            raise LogTruncated(
                f"{self._directory}: holds {head.size} records, and {self._position} were sent already",
                hint="verify the log with a head that the collector has; for another log, use another cursor",
            )
        if not self._window and head.size > self._position:
            self._tail = self._tail or Tail(self._directory, self._position)
            try:
                self._window = self._tail.read(head.size, _WINDOW_RECORDS)
            except PericardError as error:
                self._tail = None  # begins again at the cursor
                if isinstance(error, LogTruncated):
                    self.status.missing = head.size - self._position
                raise
        self.status.missing = 0

    def _anything_due(self) -> bool:
        return bool(self._window) or self._head_due()

    def _connect(self) -> None:
        values = self._values
        self._session = relp.Session(values.host, values.port, values.name, self._tls, timeout=values.timeout_seconds)
        self._head_sent = None  # whoever is there now may not have it
        self.status.connected, self.status.sessions = True, self.status.sessions + 1
        if self.status.error is not None:
            _logger.warning("the collector takes records again")
            self.status.error = None

    def _deliver(self) -> None:
        if self._session is None or self._sender is None:
            raise AssertionError("there is a window, so there is a session and a head")
        while self._window:
            size, messages = 0, []
            for index, raw in self._window:
                messages.append(message.of_record(index, raw, self._sender))
                size += len(messages[-1])
                if size >= _WINDOW_BYTES:
                    break
            try:
                self._session.deliver(messages)
            finally:  # a collector that dies again and again gets further all the same
                self._acknowledged(self._session.acknowledged)
            self._remember()
            self._say()

    def _acknowledged(self, count: int) -> None:
        if count:
            self._position = self._window[count - 1][0] + 1
            del self._window[:count]
            self.status.sent += count

    def _head_due(self) -> bool:
        """Whether the newest head is to be sent, everything that it covers having been."""
        if self._head is None or self._head[1] > self._position or self._window:
            return False
        if self._head_sent is None:
            return True
        sent, moment = self._head_sent
        changed = sent != self._head[0]
        seconds = self._values.checkpoint_seconds
        return time.monotonic() - moment >= (min(_CHANGED_HEAD_SECONDS, seconds) if changed else seconds)

    def _deliver_head(self) -> None:
        if self._session is None or self._head is None or self._sender is None:
            raise AssertionError("a head is due, so there is one, and a session")
        self._session.deliver([message.of_head(self._head[0], self._sender, time.time())])
        self._head_sent = self._head[0], time.monotonic()

    def _remember(self, *, force: bool = False) -> None:
        """Move the cursor, and not so often that its syncs would slow down those of the log."""
        now = time.monotonic()
        if self._cursor.position != self._position and (force or now - self._cursor_written >= _CURSOR_SECONDS):
            self._cursor_written = now
            self._cursor.advance(self._position)

    def _failed(self, error: PericardError) -> None:
        if self.status.error != error.code:
            _logger.warning("%s%s", error.message, f"; {error.hint}" if error.hint else "")
        self.status.error = error.code
        self._drop()
        self._say(force=True)

    def _drop(self) -> None:
        if self._session is not None:
            with self._session:
                self._session = None
        self.status.connected = False

    def _finish(self, seconds: float) -> None:
        """Deliver what is there, the head over it last, as far as the time goes."""
        end = time.monotonic() + seconds
        with contextlib.suppress(PericardError):
            while time.monotonic() < end and not self.step():
                pass
            if self._session is not None and self._head is not None and self._head[1] <= self._position:
                self._deliver_head()

    def _leave(self) -> None:
        with contextlib.suppress(PericardError):
            self._remember(force=True)
        if self._session is not None and self.status.error is None:
            self._session.close()
            self._session = None
        self._drop()
        self._say(force=True)

    def _say(self, *, force: bool = False) -> None:
        """Write the status file; a disk that does not take it is no reason not to forward."""
        now = time.monotonic()
        if not force and now - self._status_written < _STATUS_SECONDS:
            return
        self._status_written = now
        self.status.time, self.status.cursor = time.time(), self._position
        self.status.oldest = _time_of(self._window[0][1]) if self._window else None
        path = status_path(Path(self._values.cursor))
        with contextlib.suppress(OSError):
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(msgspec.json.encode(self.status))
            temporary.replace(path)  # not synced: after a crash the next one counts

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process uses a cursor, or each would move it past what the other did not deliver."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(durable.locked(Path(self._values.cursor)))
            except OSError as error:
                reason = (error.strerror or "i/o error").lower()
                raise ConfigError(f"{self._values.cursor}: cannot be locked: {reason}") from error
            yield


def _time_of(raw: bytes) -> float | None:
    try:
        return datetime.fromisoformat(msgspec.json.decode(raw)["time"]).timestamp()
    except (KeyError, TypeError, ValueError):  # damaged: whoever makes its message says so
        return None
