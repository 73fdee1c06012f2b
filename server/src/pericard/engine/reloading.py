"""Making what is served what it should be: the files that are there, the site's trust, the operator's word.

Rules of this module: every file is examined anew and chosen by what its publisher signed; a version that fails leaves
in service what was there, and the next best is tried; nothing is unloaded because something cannot be read. One thread
uses it. What it refused, it says once (in the log, as a metric, in the index) and tries again when something about the
file changed, after an hour, or when somebody asks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pericard.engine.choosing import served_by_policy, unambiguous
from pericard.engine.gate import Asked, Gate
from pericard.engine.loading import Candidate, Identities, Loader, SpoiledBeside
from pericard.engine.repository import LOADING, UNAVAILABLE, Remark, Repository, Served
from pericard.engine.trusting import SiteTrust
from pericard.engine.versions import VersionPolicy
from pericard.engine.watching import Look, Watcher
from pericard.errors import PericardError, UnknownModel, UnsupportedModel
from pericard.metrics import Metrics
from pericard.sealed.detached import stray_grants

_RETRY_SECONDS = 3600.0
_LONGEST_REASON = 500
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A file that was refused, and everything that decided it."""

    mark: object
    wide: bool  # whether every sealed file that is there decided it
    again: float  # ``time.monotonic()`` from which it is tried again although nothing changed
    remark: Remark
    error: PericardError


class Reloader:
    """Holds what is served against what should be."""

    def __init__(
        self,
        watcher: Watcher,
        loader: Loader,
        trust: SiteTrust,
        gate: Gate,
        repository: Repository,
        metrics: Metrics,
        versions: VersionPolicy,
        *,
        renewed: Callable[[Served], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Take what it works with.

        Args:
            watcher: looks at the files.
            loader: examines and loads them.
            trust: pins and notices.
            gate: lets versions in and out.
            repository: what is in memory.
            metrics: counts refusals.
            versions: the site's choice among the versions in its folder.
            renewed: told of a version whose licence changed.
            stopping: whether to give up.
        """
        self._watcher, self._loader, self._trust, self._gate = watcher, loader, trust, gate
        self._repository, self._metrics, self._versions = repository, metrics, versions
        self._renewed, self._stopping = renewed, stopping
        self._identities: Callable[[], Identities] = tuple
        self._refusals: dict[Path, _Refusal] = {}
        self._sources: dict[int, Path] = {}
        self._unloaded: set[str] = set()
        self._loading: Remark | None = None
        self._writing: tuple[Path, ...] = ()

    def run(self, look: Look, asked: Asked, identities: Callable[[], Identities], *, only: str | None = None) -> None:
        """Load what is new, refuse what is bad, unload what should not be served.

        Args:
            look: the files as they are.
            asked: on whose word.
            identities: gives the live identities; called at most once, and only if something is to be loaded.
            only: leave every other model as it is.

        Raises:
            PericardError: at the start, the reason why a file that the settings name is not served.
        """
        if asked.by == "watch" and self._sources and not look.sealed:
            _logger.error("models: no sealed file is there any more; nothing is unloaded before SIGHUP asks for it")
            return
        self._identities = _once(identities)
        try:
            self._trust.reread(asked)
            self._trust.heed_notices(self._watcher, look, asked)
            if asked.by in {"start", "signal"}:
                self._warn_of_strays(look)
            candidates = self._examined(look, asked)
            names = {candidate.name for candidate in candidates} | set(self._repository.names)
            for name in sorted(names if only is None else names & {only}):
                self._bring(name, [found for found in candidates if found.name == name], look, asked)
        finally:
            self._identities = tuple  # nothing here needs them again
            self._say()
            self._gate.announce()

    def newest_refusal(self, name: str, *, after: int) -> PericardError | None:
        """Why the newest version of a model that is there is not served; None if none has a sequence ``after`` that."""
        refusals = [one for one in self._refusals.values() if one.remark.name == name and one.remark.version]
        found = [one for one in refusals if int(one.remark.version) > after]
        return max(found, key=lambda one: int(one.remark.version)).error if found else None

    def due(self) -> bool:
        """Whether something that was refused may be tried again."""
        return any(time.monotonic() >= refusal.again for refusal in self._refusals.values())

    def allow(self, name: str) -> None:
        """Forget that a model was unloaded by an administrator."""
        self._unloaded.discard(name)

    def unload(self, name: str, asked: Asked) -> None:
        """Unload every version of a model, and leave it unloaded until it is allowed again.

        Raises:
            UnknownModel: there is none of that name.
        """
        if not self._repository.of(name) and name not in self._unloaded:
            raise UnknownModel(f"model {name}: is not served here")
        self._unloaded.add(name)
        for served in self._repository.of(name):
            self._leave(served, "unloaded by an administrator", asked)
        self._say()
        self._gate.announce()

    # --- which files -------------------------------------------------------------------------------------------------

    def _examined(self, look: Look, asked: Asked) -> list[Candidate]:
        """The files that are genuine, whole, accepted and not ambiguous; the others are refused."""
        named = dict.fromkeys(self._watcher.named)
        self._refusals = {path: one for path, one in self._refusals.items() if path in look.sealed or path in named}
        self._writing = tuple(path for path in look.sealed if self._is_written(path, look, asked))
        found = []
        for path in [*named, *sorted(set(look.sealed) - named.keys())]:
            if path in self._writing or self._stands(path, look, asked):
                continue
            try:
                candidate = self._loader.examine(path, named=path in named)
            except (PericardError, SpoiledBeside) as error:
                self._refuse(path, error, look, asked)
                continue
            if candidate.refusal is not None and not self._keeps_licence(candidate):
                self._refuse(path, candidate.refusal, look, asked, candidate)
                continue
            found.append(candidate)
        kept, refused = unambiguous(found, self._repository, self._loader.vendor)
        for candidate, reason in refused:
            self._refuse(candidate.path, reason, look, asked, candidate, wide=True)
        return kept

    def _is_written(self, path: Path, look: Look, asked: Asked) -> bool:
        return path not in look.settled and not (asked.by == "start" and path in self._watcher.named)

    def _stands(self, path: Path, look: Look, asked: Asked) -> bool:
        """Whether a file was refused, and there is no reason to look at it again."""
        refusal = self._refusals.get(path)
        return (
            refusal is not None
            and asked.by == "watch"
            and refusal.mark == _mark(path, look, wide=refusal.wide)
            and time.monotonic() < refusal.again
        )

    def _keeps_licence(self, candidate: Candidate) -> bool:
        """Whether a version is served already, and only its licence is over: a new grant may come."""
        return self._in_memory(candidate.manifest_hash) is not None and self._loader.accepts(
            candidate.publisher, candidate.name, candidate.sequence
        )

    def _in_memory(self, manifest_hash: str) -> Served | None:
        return next((served for served in self._repository if served.manifest_hash == manifest_hash), None)

    # --- one model ---------------------------------------------------------------------------------------------------

    def _bring(self, name: str, candidates: list[Candidate], look: Look, asked: Asked) -> None:
        """Serve the versions of a model that should be: first in, then out."""
        failed: set[str] = set()
        while True:  # each round serves one, or fails one
            good = [found for found in candidates if found.manifest_hash not in failed]
            wanted = self._wanted(name, good, look)
            missing = [found for found in good if found.manifest_hash in wanted - self._manifests(name)]
            if not missing or self._stopping():
                break
            newest = max(missing, key=lambda found: found.sequence)
            if not self._load(newest, look, asked):
                failed.add(newest.manifest_hash)
        if self._stopping():
            return
        for served in self._repository.of(name):
            if served.manifest_hash not in wanted:
                self._leave(served, self._why(served, look), asked)
        for found in good:
            self._renew(found)

    def _manifests(self, name: str) -> set[str]:
        return {served.manifest_hash for served in self._repository.of(name)}

    def _wanted(self, name: str, good: list[Candidate], look: Look) -> set[str]:
        """Manifests of the versions to serve, of those that are there and of those that are held in memory."""
        if name in self._unloaded:
            return set()
        held = [served for served in self._repository.of(name) if self._holds(served, good, look)]
        return served_by_policy(name, good, held, self._versions) | {
            served.manifest_hash for served in held if self._sources.get(served.number) in self._watcher.named
        }

    def _holds(self, served: Served, good: list[Candidate], look: Look) -> bool:
        """Whether a version stays although its file cannot be read, is being written, or became one that failed."""
        path = self._sources.get(served.number)
        return (
            served.manifest_hash not in {found.manifest_hash for found in good}
            and path not in {found.path for found in good}
            and (path in look.sealed or path in self._watcher.named)
            and self._loader.accepts(served.publisher, served.name, served.sequence)
        )

    def _why(self, served: Served, look: Look) -> str:
        path = self._sources.get(served.number)
        if not self._loader.accepts(served.publisher, served.name, served.sequence):
            return "withdrawn, or its publisher is not trusted any more"
        if path not in look.sealed and path not in self._watcher.named:
            return "its file was removed"
        return "replaced, or not chosen by the version policy any more"

    def _load(self, candidate: Candidate, look: Look, asked: Asked) -> bool:
        """Load a version and put it into service; whether that was done."""
        self._loading = Remark(candidate.name, str(candidate.sequence), LOADING, "")
        self._say()
        try:
            loaded = self._loader.load(
                candidate, self._identities(), held=self._repository.size, stopping=self._stopping
            )
            try:
                served = self._gate.enter(loaded, self._loader.taught(candidate, loaded), asked)
            except BaseException:
                loaded.close()
                raise
        except (PericardError, SpoiledBeside) as error:
            if not self._stopping():
                self._refuse(candidate.path, error, look, asked, candidate)
            return False
        except Exception as error:  # whatever a framework raises must not cost the models that are served
            _logger.exception("model %s: could not be loaded", candidate.name)
            reason = UnsupportedModel(f"{candidate.path.name}: could not be loaded ({type(error).__name__})")
            self._refuse(candidate.path, reason, look, asked, candidate)
            return False
        finally:
            self._loading = None
        self._sources[served.number] = candidate.path
        self._refusals.pop(candidate.path, None)
        self._remark_on(served, loaded.opener)
        return True

    def _remark_on(self, served: Served, opener: str) -> None:
        """Say what an operator should know of a version that is served now."""
        _logger.warning("model %s %s: is served", served.name, served.about.version)
        for model in served.models:
            if model.batching is not None:
                _logger.warning("model %s: is asked one by one: %s", served.name, model.batching)
        current = self._loader.recipients[0]
        if opener != current:
            _logger.warning(
                "model %s: was opened by the previous identity %s; ask the vendor for a grant to %s",
                served.name, opener[:16], current[:16],
            )  # fmt: skip

    def _renew(self, candidate: Candidate) -> None:
        """Serve a version under the licence that its files give now."""
        served = self._in_memory(candidate.manifest_hash)
        if served is None or candidate.licence is None or candidate.licence.grant == served.licence.grant:
            return
        served.licence = candidate.licence
        self._renewed(served)
        not_after = served.licence.grant.not_after
        self._gate.record({"event": "licence-changed", "model": served.identity, "not_after": not_after})
        _logger.warning("model %s: is licensed until %s now", served.name, served.licence.last_day)

    def _leave(self, served: Served, reason: str, asked: Asked) -> None:
        self._gate.leave(served, reason, asked)
        self._sources.pop(served.number, None)

    # --- what is said ------------------------------------------------------------------------------------------------

    def _refuse(
        self,
        path: Path,
        why: PericardError | SpoiledBeside,
        look: Look,
        asked: Asked,
        candidate: Candidate | None = None,
        *,
        wide: bool = False,
    ) -> None:
        """Record a refusal, and remember it; at the start, what the settings name must be served."""
        error, because = (why.error, why.file) if isinstance(why, SpoiledBeside) else (why, None)
        name = path.name if candidate is None else candidate.name
        sequence = "" if candidate is None else str(candidate.sequence)
        reason = error.message.replace(f"{path.parent}/", "")[:_LONGEST_REASON]
        remark = Remark(readable(name), sequence, UNAVAILABLE, readable(reason))
        mark, again = _mark(path, look, wide=wide), time.monotonic() + _RETRY_SECONDS
        self._refusals[path] = _Refusal(mark, wide, again, remark, error)
        event: dict[str, Any] = {
            "event": "model-refused",
            "file": readable(path.name),
            "code": error.code,
            "reason": remark.reason,
        }
        if because is not None:
            event["because"] = readable(because.name)
        if candidate is not None:
            event |= {"model": candidate.name, "sequence": candidate.sequence, "manifest": candidate.manifest_hash}
        self._metrics.model_loads.labels(candidate.name if candidate else "", error.code).inc()
        if asked.by == "start" and path in self._watcher.named:
            self._gate.require_record({**asked.fields, **event})
            raise error
        self._gate.record({**asked.fields, **event})
        _logger.error("%s; what was served before still is", reason)

    def _say(self) -> None:
        """Tell the index what is not in memory, and why."""
        remarks = [refusal.remark for refusal in self._refusals.values()]
        remarks += [
            Remark(readable(path.name), "", LOADING, "is still being written") for path in self._writing
        ]  # fmt: skip
        remarks += [Remark(name, "", UNAVAILABLE, "unloaded by an administrator") for name in sorted(self._unloaded)]
        if self._loading is not None:
            remarks.append(self._loading)
        self._repository.remark(remarks)

    def _warn_of_strays(self, look: Look) -> None:
        try:
            strays = stray_grants([*self._watcher.named, *look.sealed])
        except PericardError:  # a folder that cannot be read is said when its model is examined
            return
        for path in strays:
            _logger.warning(
                "%s: goes with no model that is served; a grant of NAME.sealed is called NAME.grant or NAME.*.grant",
                readable(path.name),
            )


def readable(text: str) -> str:
    """A file's name as the log can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _mark(path: Path, look: Look, *, wide: bool) -> object:
    return tuple(sorted(look.sealed.items())) if wide else look.mark(path)


def _once(make: Callable[[], Identities]) -> Callable[[], Identities]:
    made: list[Identities] = []

    def give() -> Identities:
        if not made:
            made.append(make())
        return made[0]

    return give
