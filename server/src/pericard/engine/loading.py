"""From one sealed file to instances that passed their known answers, on every device of this engine.

Rules of this module: a file is examined first (signatures, manifest, grants; cheap, and no key is needed), so that its
name and version are the signed ones before anything is chosen by them; it is loaded later, and only if it still is the
file that was examined. What does not fit the memory budget is refused before its payload is read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pericard import environment
from pericard.engine.values import EngineValues
from pericard.errors import CorruptPayload, ModelNotReady, ModelTooLarge, PericardError, UnsupportedModel
from pericard.keys import Identity
from pericard.progress import bar
from pericard.runtime.loader import LoadedModel, load
from pericard.sealed import SealedModel, VerifiedModel
from pericard.sealed.detached import add_grants, grants_beside
from pericard.trust import Licence, Pins, Policy, Remembered, TrustState

Identities = tuple[Identity, ...]  # the live ones, the current one first


class SpoiledBeside(Exception):
    """A grant file beside a sealed one is bad, and so that one is refused."""

    def __init__(self, error: PericardError, file: Path) -> None:
        super().__init__(error.message)
        self.error = error
        self.file = file


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sealed file whose signatures verified.

    Attributes:
        path: the file.
        name: of the model, as signed.
        version: for people, as signed.
        sequence: which version it is.
        manifest_hash: its identity.
        publisher: id of the key that signed it.
        vendor: the name that this site pinned the key under.
        size: bytes of its plaintext.
        named: whether the settings name this very file.
        licence: what this site would serve it under now; None if nothing is.
        refusal: why it is not accepted; None if it is.
    """

    path: Path
    name: str
    version: str
    sequence: int
    manifest_hash: str
    publisher: str
    vendor: str
    size: int
    named: bool
    licence: Licence | None
    refusal: PericardError | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that may be put into service.

    Attributes:
        models: one instance per device.
        opener: whose grant it was opened with.
        floor: what it teaches the trust state, once it is in service.
    """

    models: tuple[LoadedModel, ...]
    opener: str
    floor: int

    def close(self) -> None:
        """Zero the weights of every instance."""
        for model in self.models:
            model.close()


class Loader:
    """Examines and loads; used by one thread at a time.

    Attributes:
        policy: what this site accepts now.
        recipients: ids of the live identities, the current one first.
    """

    def __init__(
        self,
        values: EngineValues,
        devices: tuple[str, ...],
        state: TrustState,
        pins: Pins,
        *,
        runtime: str,
        host: environment.Host,
    ) -> None:
        """Take the values, the devices as they were picked, and what the site trusts."""
        self._values = values
        self._devices = devices
        self._runtime, self._host = runtime, host
        self._state = state
        self.recipients: tuple[str, ...] = ()
        self.trust(pins)

    def trust(self, pins: Pins) -> None:
        """Accept these publishers from now on."""
        self.pins = pins
        self.policy = Policy(pins, self._state, runtime=self._runtime, host=self._host)

    def vendor(self, publisher: str) -> str:
        """The name that a key is pinned under; the key's id if it is not."""
        pin = self.pins.get(publisher)
        return publisher if pin is None else pin.name

    def accepts(self, publisher: str, name: str, sequence: int) -> bool:
        """Whether this site still accepts a version that it accepted once: its publisher and its floor."""
        pin = self.pins.get(publisher)
        trusted = pin is not None and pin.trusted(self.policy.licence_time(int(time.time())))
        return trusted and sequence >= self.policy.floor(publisher, name)

    @staticmethod
    def taught(candidate: Candidate, loaded: Loaded) -> Callable[[Remembered], Remembered]:
        """What is to be remembered of a version that passed its known answers: its floor."""
        return lambda before: before.with_floor(candidate.publisher, candidate.name, loaded.floor)

    def examine(self, path: Path, *, named: bool) -> Candidate:
        """Verify everything of a file but its payload.

        Raises:
            PericardError: it is not genuine.
            SpoiledBeside: a grant file beside it is not.
        """
        with SealedModel(path) as source:
            verified = self._verified(source, path)
            about = verified.manifest.description
            licence, refusal = self._accepted(verified)
            return Candidate(
                path, about.name, about.version, about.sequence, verified.manifest_hash, verified.publisher.id,
                self.vendor(verified.publisher.id), verified.manifest.payload.size, named, licence, refusal,
            )  # fmt: skip

    def load(
        self, candidate: Candidate, identities: Identities, *, held: int, stopping: Callable[[], bool] = lambda: False
    ) -> Loaded:
        """Decrypt it, attach it and ask it its known answers, on every device.

        Args:
            candidate: what was examined.
            identities: the live ones.
            held: bytes of plaintext that are in memory already.
            stopping: whether to give up.

        Raises:
            PericardError: it was refused; nothing of it is left in memory.
            SpoiledBeside: because of a grant file beside it.
        """
        path, now, models = candidate.path, int(time.time()), list[LoadedModel]()
        with SealedModel(path) as source, contextlib.ExitStack() as undo:
            verified = self._verified(source, path)
            if verified.manifest_hash != candidate.manifest_hash:
                raise CorruptPayload(f"{path.name}: was replaced while it was read", hint="copy it, then rename it")
            identity = self._whose(verified, identities, now)
            self.policy.accept(verified, identity.recipient.id, now)
            self._require_room(candidate, held)
            with bar(f"opening {path.name}") as shown:

                def progress(done: int, size: int) -> None:
                    if stopping():
                        raise ModelNotReady(f"{path.name}: was not read to its end, since the engine stops")
                    shown(done, size)

                for device in self._devices:
                    model = load(
                        verified, identity, self.policy, device=device, now=now, progress=progress,
                        memory_budget=self._values.memory_budget, secret=self._values.memory == "secret",
                    )  # fmt: skip
                    undo.callback(model.close)
                    models.append(model)
            self._require_common(models)
            undo.pop_all()
            floor = verified.manifest.description.floor
            return Loaded(tuple(models), identity.recipient.id, floor)

    def _verified(self, source: SealedModel, path: Path) -> VerifiedModel:
        verified = source.verify(self.policy.publishers)
        for file in grants_beside(path):
            try:
                add_grants(verified, file)
            except PericardError as error:
                raise SpoiledBeside(error, file) from error
        return verified

    def _accepted(self, verified: VerifiedModel) -> tuple[Licence | None, PericardError | None]:
        """What this site would serve a file under; the reason of the current identity if it would not."""
        refusal: PericardError | None = None
        for recipient in self.recipients:
            try:
                return self.policy.accept(verified, recipient, int(time.time())), None
            except PericardError as error:
                refusal = refusal or error
        return None, refusal

    def _whose(self, model: VerifiedModel, identities: Identities, now: int) -> Identity:
        """Whom a grant covers now, the current identity first; if nobody, its is the refusal to hear."""
        for identity in identities:
            with contextlib.suppress(PericardError):
                self.policy.accept(model, identity.recipient.id, now)
                return identity
        return identities[0]

    def _require_room(self, candidate: Candidate, held: int) -> None:
        total, needed = self._values.memory_total, candidate.size * len(self._devices)
        if total is not None and held + needed > total:
            raise ModelTooLarge(
                f"{candidate.path.name}: needs {needed} bytes, and {held} of {total} are taken by what is served",
                hint="raise engine.memory_total, or unload the old version first",
            )

    @staticmethod
    def _require_common(models: list[LoadedModel]) -> None:
        if not set.intersection(*(set(model.buckets) for model in models)):
            raise UnsupportedModel(f"model {models[0].description.name}: its devices share no batch size")
