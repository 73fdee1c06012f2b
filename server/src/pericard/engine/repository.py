"""The versions of models that this engine holds in memory, and what the edge may know of them.

Rules of this module: a version has a number of its own, never used again, and frames name it by that; so a question is
answered by the version that was meant, whatever was loaded meanwhile. A version is listed while it may be asked, then
retired (what was asked already is still answered), then gone. The catalog is contract and identity, never a weight or
a tensor's name. Any thread may call; what changes, changes under one lock, and readers see whole states.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pericard.errors import ModelNotReady, PericardError, UnknownModel
from pericard.runtime.loader import LoadedModel
from pericard.sealed import Description, Signal
from pericard.trust import Licence

READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"
_PLATFORMS = {"exported": "pytorch_exported", "onnx": "onnxruntime_onnx"}
_LAST_DATE = 253402300799  # 9999-12-31T23:59:59Z; a grant may last longer, a date cannot be written


@dataclass(slots=True, eq=False)
class Served:
    """One version of one model, in memory.

    Attributes:
        number: unique in this engine's life, from 1 up; how frames from the edge name it.
        name: the model's name, from the signed manifest.
        sequence: which version it is; a higher one is newer.
        about: what the publisher signed.
        manifest_hash: SHA-256 of the manifest.
        publisher: id of the publisher.
        models: one instance per device, in the order of the engine's devices.
        buckets: the batch sizes that all of them are asked at, rising.
        identity: what names it in answers and records.
        licence: the grant that it is served under; a later one may take its place.
        size: bytes of plaintext of all instances together.
        waiting: jobs queued or in work; changed by the scheduler alone, under its lock.
        fault: why it cannot answer at the moment, or None.
    """

    number: int
    name: str
    sequence: int
    about: Description
    manifest_hash: str
    publisher: str
    models: tuple[LoadedModel, ...]
    buckets: tuple[int, ...]
    identity: dict[str, Any]
    licence: Licence
    size: int = 0
    waiting: int = 0
    fault: PericardError | None = None

    def close(self) -> None:
        """Zero the weights of every instance."""
        for model in self.models:
            model.close()


class Remark(NamedTuple):
    """What the index says of a version that is not in memory."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """Versions by number."""

    def __init__(
        self, *, runtime: str, licence_time: Callable[[int], int] = int, environment: dict[str, Any] | None = None
    ) -> None:
        """Start empty.

        Args:
            runtime: the digest that every answer names.
            licence_time: from the clock to the time that licences are held against.
            environment: what is shown beside that digest: what was found of the runtime at the start, and the host.
        """
        self.runtime = runtime
        self.environment = environment or {}
        self._licence_time = licence_time
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._listed: dict[int, Served] = {}  # replaced as a whole, so that readers need no lock
        self._retired: dict[int, Served] = {}
        self._remarks: tuple[Remark, ...] = ()
        self._generation = 1
        self._licences: dict[int, str] = {}

    # --- changes -----------------------------------------------------------------------------------------------------

    def make(self, models: Sequence[LoadedModel]) -> Served:
        """A version of one loaded instance per device, all of one sealed file; :meth:`add` lists it."""
        first = models[0]
        about = first.description
        return Served(
            number=next(self._numbers),
            name=about.name,
            sequence=about.sequence,
            about=about,
            manifest_hash=first.manifest_hash,
            publisher=first.publisher,
            models=tuple(models),
            buckets=tuple(sorted(set.intersection(*(set(model.buckets) for model in models)))),
            identity={
                "name": about.name,
                "version": about.version,
                "sequence": about.sequence,
                "manifest": first.manifest_hash,
                "publisher": first.publisher,
            },
            licence=first.licence,
            size=sum(model.size for model in models),
        )

    def add(self, served: Served) -> None:
        """List a version: it may be asked from now on."""
        with self._lock:
            self._listed = {**self._listed, served.number: served}
            self._generation += 1

    def retire(self, served: Served) -> None:
        """List it no more; what was asked of it already is still answered."""
        with self._lock:
            self._retired = {**self._retired, served.number: served}
            self._listed = _without(self._listed, served)
            self._generation += 1

    def remove(self, served: Served) -> None:
        """Forget a version; closing it is the caller's."""
        with self._lock:
            self._listed, self._retired = _without(self._listed, served), _without(self._retired, served)
            self._generation += 1

    def set_fault(self, served: Served, fault: PericardError | None) -> None:
        """Take a version out of service, or back into it."""
        with self._lock:
            served.fault = fault
            self._generation += 1

    def remark(self, remarks: Iterable[Remark]) -> None:
        """Replace what is said of versions that are not in memory."""
        with self._lock:
            found = tuple(remarks)
            if found != self._remarks:
                self._remarks = found
                self._generation += 1

    def close(self) -> None:
        """Zero every model's weights."""
        with self._lock:
            gone = [*self._listed.values(), *self._retired.values()]
            self._listed, self._retired = {}, {}
        for served in gone:
            served.close()

    # --- questions ---------------------------------------------------------------------------------------------------

    def find(self, number: int) -> Served:
        """The version of a number.

        Raises:
            UnknownModel: it was never there, or is gone.
            ModelNotReady: it was taken out of service.
        """
        served = self._listed.get(number) or self._retired.get(number)
        if served is None:
            raise UnknownModel("model: is not served here, or not any more", hint="ask again, for the current version")
        if served.fault is not None:
            raise ModelNotReady(
                f"model {served.name} {served.about.version}: was taken out of service ({served.fault.code})",
                hint="it comes back by itself once its known answers are right again; the operator's log says more",
            )
        return served

    def state_of_licence(self, served: Served, now: int) -> str:
        """``valid`` or ``grace``; raises ``TrustError`` once it is over."""
        return served.licence.state(self._licence_time(now))

    def of(self, name: str) -> list[Served]:
        """The listed versions of a name, the newest first."""
        return sorted((s for s in self._listed.values() if s.name == name), key=lambda s: s.sequence, reverse=True)

    def current(self, name: str, now: int | None = None) -> Served | None:
        """What a request without a version gets: the newest that can answer, or else the newest."""
        found = self.of(name)
        moment = int(time.time()) if now is None else now
        return next((served for served in found if self._trouble(served, moment) is None), next(iter(found), None))

    def ready(self, name: str, now: int | None = None) -> bool:
        """Whether some version of a name can answer."""
        moment = int(time.time()) if now is None else now
        return any(self._trouble(served, moment) is None for served in self.of(name))

    @property
    def generation(self) -> int:
        """Number of the present catalog."""
        return self._generation

    @property
    def names(self) -> list[str]:
        """The names of listed versions, sorted."""
        return sorted({served.name for served in self._listed.values()})

    @property
    def size(self) -> int:
        """Bytes of plaintext in memory, of retired versions too."""
        return sum(served.size for served in (*self._listed.values(), *self._retired.values()))

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._listed.values()))

    def __len__(self) -> int:
        return len(self._listed)

    # --- what leaves the engine --------------------------------------------------------------------------------------

    def catalog(self, now: int | None = None) -> dict[str, Any]:
        """What is served, for the edge; ``generation`` grows with every change, a licence's state among them."""
        moment = int(time.time()) if now is None else now
        with self._lock:
            models = {name: self._of_name(name, moment) for name in self.names}
            licences = {entry["number"]: entry["licence"] for m in models.values() for entry in m["versions"].values()}
            if licences != self._licences:
                self._licences = licences
                self._generation += 1
            refused = [remark._asdict() for remark in self._remarks]
            return {
                "generation": self._generation, "runtime": self.runtime, "environment": self.environment,
                "models": models, "refused": refused,
            }  # fmt: skip

    def index(self, now: int | None = None) -> list[dict[str, Any]]:
        """Every version that is in memory, that was refused, or that was unloaded; with its state and why."""
        moment = int(time.time()) if now is None else now
        found = list(self._remarks)
        for served in self:
            trouble = self._trouble(served, moment)
            state = READY if trouble is None else UNAVAILABLE
            found.append(Remark(served.name, str(served.sequence), state, trouble or ""))
        return [remark._asdict() for remark in sorted(found, key=lambda one: (one.name, one.version))]

    def _trouble(self, served: Served, now: int) -> str | None:
        """Why a version cannot answer at the moment; None if it can."""
        if served.fault is not None:
            return served.fault.message
        try:
            self.state_of_licence(served, now)
        except PericardError as error:
            return error.message
        return None

    def _of_name(self, name: str, now: int) -> dict[str, Any]:
        current = self.current(name, now)
        return {
            "current": str(current.number if current else 0),
            "versions": {str(served.sequence): self._entry(served, now) for served in self.of(name)},
        }

    def _entry(self, served: Served, now: int) -> dict[str, Any]:
        about, trouble = served.about, self._trouble(served, now)
        try:
            licence = self.state_of_licence(served, now)
        except PericardError as error:
            licence = error.code
        end = datetime.fromtimestamp(min(served.licence.grant.not_after, _LAST_DATE), UTC)
        return {
            "number": served.number,
            "ready": trouble is None,
            "reason": trouble,
            "identity": served.identity,
            "platform": _PLATFORMS[about.kind],
            "intended_use": about.intended_use,
            "inputs": [
                {"name": spec.name, "dtype": spec.dtype, "datatype": spec.datatype, "shape": list(spec.shape)}
                for spec in about.inputs
            ],
            "outputs": [
                {
                    "name": output.spec.name,
                    "dtype": output.spec.dtype,
                    "datatype": output.spec.datatype,
                    "shape": list(output.spec.shape),
                    "meaning": output.meaning,
                    "threshold": output.threshold,
                    "frame_seconds": output.frame_seconds,
                }
                for output in about.outputs
            ],
            "buckets": list(served.buckets),
            "max_batch": served.buckets[-1],
            "signal": _signal(about.signal),
            "licence": licence,
            "licence_not_after": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def _without(versions: dict[int, Served], gone: Served) -> dict[int, Served]:
    return {number: served for number, served in versions.items() if served is not gone}


def _signal(signal: Signal | None) -> dict[str, Any] | None:
    if signal is None:
        return None
    return {
        "sampling_rate": signal.sampling_rate,
        "unit": signal.unit,
        "leads": [list(names) for names in signal.leads],
    }
