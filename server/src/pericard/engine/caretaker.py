"""The one thread that loads, unloads and checks models, one thing at a time, never on the engine's own.

It acts when asked (SIGHUP, an administrator) and by itself: a look at the repository folder, a round of known answers.
Whoever asks waits a bounded time; while the engine stops, nobody waits.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from pericard.engine.gate import Asked
from pericard.engine.loading import Identities
from pericard.engine.rechecking import Recheck
from pericard.engine.reloading import Reloader
from pericard.engine.repository import Repository
from pericard.engine.watching import Look, Watcher
from pericard.errors import ModelNotReady, Overloaded, PericardError, UnknownModel

_MOST_WAITING = 16
_ASK_SECONDS = 900.0
_STEP_SECONDS = 0.5
_BETWEEN_LOOKS = 0.5  # a file that did not change in between is not being written
_STOP_SECONDS = 5.0
_logger = logging.getLogger(__name__)

_Task = tuple[Callable[[], dict[str, Any]], "Future[dict[str, Any]]"]


class Caretaker:
    """Looks after the models of one engine."""

    def __init__(
        self,
        watcher: Watcher,
        reloader: Reloader,
        recheck: Recheck,
        repository: Repository,
        identities: Callable[[], Identities],
        stopping: threading.Event,
        *,
        watch_seconds: float,
        recheck_seconds: float,
    ) -> None:
        """Take what it works with.

        Args:
            watcher: looks at the files.
            reloader: makes what is served what it should be.
            recheck: asks known questions.
            repository: what is in memory.
            identities: gives the live identities for a later load.
            stopping: set when the engine stops; here, and by nobody else.
            watch_seconds: from one look at the folder to the next; 0 for none.
            recheck_seconds: from one round of known answers to the next; 0 for none.
        """
        self._watcher, self._reloader, self._recheck = watcher, reloader, recheck
        self._repository, self._identities, self._stopping = repository, identities, stopping
        self._watch_seconds, self._recheck_seconds = watch_seconds, recheck_seconds
        self._tasks: queue.Queue[_Task] = queue.Queue(_MOST_WAITING)
        self._hung_up = threading.Event()
        self._done = Look()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def first(self, identities: Identities) -> None:
        """Load what is there at the start, in the caller's thread.

        Raises:
            PericardError: a file that the settings name is refused.
        """
        self._done = self._watcher.look() if self._watcher.folder is None else self._settle()
        self._reloader.run(self._done, Asked("start"), lambda: identities)

    def start(self) -> None:
        """Act by itself from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; a load that is under way is given up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def reload(self) -> None:
        """Have everything reloaded soon, as SIGHUP asks; asked several times before it begins, it is done once."""
        self._hung_up.set()

    def admin(self, operation: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Carry out an administrator's ``load`` or ``unload``, or give the ``index``.

        Args:
            operation: which.
            fields: ``model``, and who asks.

        Raises:
            UnknownModel: no file that is there has this name.
            ModelNotReady: it was not done in time, or the engine stops.
            PericardError: why the newest version that is there is not served.
        """
        if operation == "index":
            return {"index": self._repository.index()}
        name = fields.get("model")
        works = {"load": self._load, "unload": self._unload}
        if not isinstance(name, str) or operation not in works:
            raise UnknownModel(f"{operation}: names no model")
        caller = {key: value for key, value in fields.items() if key != "model" and isinstance(value, str)}
        return self._wait(partial(works[operation], name, Asked("admin", caller)))

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        now = time.monotonic()
        look_at = now + self._watch_seconds if self._watch_seconds else None
        check_at = now + self._recheck_seconds if self._recheck_seconds else None
        while not self._stopping.is_set():
            self._one_task()
            if self._hung_up.is_set():
                self._hung_up.clear()
                self._guarded(self._reload)
            if look_at is not None and time.monotonic() >= look_at:
                self._guarded(self._watch)
                look_at = time.monotonic() + self._watch_seconds
            if check_at is not None and time.monotonic() >= check_at:
                self._guarded(self._recheck.everything)
                check_at = time.monotonic() + self._recheck_seconds
        self._refuse_rest()

    def _one_task(self) -> None:
        """Do what was asked, if anything is within a moment."""
        try:
            work, future = self._tasks.get(timeout=_STEP_SECONDS if not self._hung_up.is_set() else 0.01)
        except queue.Empty:
            return
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (it is the asker's)
                future.set_exception(error)

    def _refuse_rest(self) -> None:
        while True:
            try:
                _, future = self._tasks.get_nowait()
            except queue.Empty:
                return
            future.cancel()

    @staticmethod
    def _guarded(work: Callable[[], None]) -> None:
        """Whatever goes wrong must not end the thread."""
        try:
            work()
        except PericardError as error:
            _logger.error("models: %s", error.message)  # noqa: TRY400  (the message says it all)
        except Exception:
            _logger.exception("models: something went wrong inside")

    def _reload(self) -> None:
        self._done = self._settle()
        self._reloader.run(self._done, Asked("signal"), self._identities)

    def _watch(self) -> None:
        look = self._watcher.look()
        if not look.same(self._done) or self._reloader.due():
            self._reloader.run(look, Asked("watch"), self._identities)
            self._done = look

    def _load(self, name: str, asked: Asked) -> dict[str, Any]:
        self._reloader.allow(name)
        self._reloader.run(self._settle(), asked, self._identities, only=name)
        for served in self._repository.of(name):
            if served.fault is not None:
                self._recheck.one(served)
        current = self._repository.current(name)
        refusal = self._reloader.newest_refusal(name, after=current.sequence if current else -1)
        if refusal is not None:
            raise refusal
        if current is None:
            raise UnknownModel(f"model {name}: no sealed file that is there has this name")
        if current.fault is not None:
            raise current.fault
        return {"model": name, "version": str(current.sequence)}

    def _unload(self, name: str, asked: Asked) -> dict[str, Any]:
        self._reloader.unload(name, asked)
        return {"model": name}

    def _settle(self) -> Look:
        """Look; and once more if something may still be being written."""
        look = self._watcher.look()
        if not look.whole:
            self._stopping.wait(_BETWEEN_LOOKS)
            look = self._watcher.look()
        return look

    # --- whoever asks ------------------------------------------------------------------------------------------------

    def _wait(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        future: Future[dict[str, Any]] = Future()
        try:
            self._tasks.put_nowait((work, future))
        except queue.Full:
            raise Overloaded("engine: other models are being loaded", hint="try again later") from None
        end = time.monotonic() + _ASK_SECONDS
        while not self._stopping.is_set() and time.monotonic() < end:
            wait([future], timeout=_STEP_SECONDS)
            if future.done() and not future.cancelled():
                return future.result()
        raise ModelNotReady("engine: stops, or did not come to it in time", hint="the index says what became of it")
