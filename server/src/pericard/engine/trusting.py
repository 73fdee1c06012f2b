"""The site's trust while the engine runs: pinned publishers and notices are read again, and their changes recorded.

A bad notice refuses the start if the settings name a model beside it. Otherwise what cannot be read changes nothing: it
is recorded once, and said; what was pinned stays pinned, and a floor never falls.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pericard.engine.gate import Asked, Gate
from pericard.engine.loading import Loader
from pericard.engine.watching import Look, Stamp, Watcher
from pericard.errors import ConfigError, PericardError
from pericard.sealed import notice, notices_in
from pericard.trust import TrustStore

_logger = logging.getLogger(__name__)


class SiteTrust:
    """Keeps a loader's trust up to date; used by the loader's thread."""

    def __init__(self, publishers: Path, loader: Loader, gate: Gate) -> None:
        """Take the file of pinned publishers, whose trust to change, and who records it."""
        self._publishers = publishers
        self._loader = loader
        self._gate = gate
        self._refused: dict[Path, Stamp | None] = {}

    def reread(self, asked: Asked) -> None:
        """Trust the publishers that are pinned now; a file that cannot be read leaves the old ones."""
        if asked.by == "start":
            return  # they were just read
        try:
            pins = TrustStore(self._publishers).load()
        except ConfigError as error:
            _logger.error("%s; the publishers that were pinned before still are", error.message)  # noqa: TRY400
            self._gate.record({**asked.fields, "event": "publishers-refused", "code": error.code})
            return
        before, after = ({pin.publisher.id: pin.until for pin in found} for found in (self._loader.pins, pins))
        if before != after:
            added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
            event = {"event": "publishers-changed", "added": added, "removed": removed}
            self._gate.require_record({**asked.fields, **event})
            self._loader.trust(pins)

    def heed_notices(self, watcher: Watcher, look: Look, asked: Asked) -> None:
        """Raise the floors that notices beside the models tell of.

        Raises:
            PericardError: at the start, one beside a model that the settings name is bad.
        """
        strict = {path.parent for path in watcher.named} if asked.by == "start" else set()
        for folder in watcher.folders:
            try:
                files = notices_in(folder)
            except PericardError as error:
                self._refuse(folder, error, look, asked, strict=folder in strict)
                continue
            for file in files:
                if self._refused.get(file) == look.beside.get(file, ()) and asked.by == "watch":
                    continue  # said already
                self._heed(file, look, asked, strict=folder in strict)

    def _heed(self, file: Path, look: Look, asked: Asked, *, strict: bool) -> None:
        now, policy = int(time.time()), self._loader.policy
        try:
            found = notice.read(file, policy.publishers)
            self._gate.change(lambda: policy.withdrawn(found, now, subject=file.name), notice=_readable(file.name))
        except PericardError as error:
            self._refuse(file, error, look, asked, strict=strict)
        else:
            self._refused.pop(file, None)

    def _refuse(self, file: Path, error: PericardError, look: Look, asked: Asked, *, strict: bool) -> None:
        self._refused[file] = look.beside.get(file)
        event = {**asked.fields, "event": "notice-refused", "file": _readable(file.name), "code": error.code}
        if strict:
            self._gate.require_record(event)
            raise error
        self._gate.record(event)
        _logger.error("%s; what it may withdraw is not known", error.message)


def _readable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")
