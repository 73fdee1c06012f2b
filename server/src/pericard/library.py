"""Sealed models without the daemon: for notebooks and batch jobs, with the checks that the server makes.

Rules of this room: the same rooms in the same order as the engine's, and nothing weaker. What it lacks is the daemon
around it: no audit log, no second process. What a site must remember (withdrawn versions, licence time) it remembers
in a file of the user's own.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pericard import environment, hardening, unlock
from pericard.errors import BackendFailed, InvalidInput, KeySourceUnavailable, NotSealed, UnsupportedModel
from pericard.keys import Identity, Publisher, PublisherKey, Recipient, wipe
from pericard.progress import bar
from pericard.runtime import export, exported, host, loader, model_file
from pericard.runtime import questions as questions_of
from pericard.runtime.backend import Array
from pericard.runtime.export import Prepared, Program
from pericard.runtime.loader import LoadedModel
from pericard.sealed import (
    Description,
    Progress,
    Sealed,
    SealedModel,
    Term,
    add_grants_beside,
    notice,
    notices_in,
    recipients,
    require_new,
)
from pericard.sealed import seal as write_sealed
from pericard.trust import Pins, Policy, TrustState, TrustStore, clock
from pericard.unlock import UnlockValues

__all__ = ["Model", "Term", "Trust", "Who", "load", "seal", "term"]

_DAY = 86400
_NO_TERMINAL = (
    'without a terminal, pass identity=UnlockValues(kind="passphrase", path=…, passphrase_fd=…), an open descriptor '
    "that the passphrase is read from (pericard.unlock)"
)

Trust = str | Path | Publisher | Iterable[Publisher]
Who = str | Path | Identity | UnlockValues


class Model:
    """A sealed model that passed every check; call it with arrays. Close it, or use it in a ``with`` block."""

    def __init__(self, loaded: LoadedModel, policy: Policy) -> None:
        """Take a loaded model; :func:`load` is the way in."""
        self._loaded, self._policy, self._closed = loaded, policy, False

    @property
    def description(self) -> Description:
        """What the publisher signed: names, types and shapes of inputs and outputs, the signal, the intended use."""
        return self._loaded.description

    @property
    def manifest_hash(self) -> str:
        """The model's identity, as receipts and records name it."""
        return self._loaded.manifest_hash

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._loaded.device

    @property
    def licence(self) -> str:
        """``valid`` or ``grace``.

        Raises:
            LicenceExpired: it is over.
        """
        return self._loaded.licence.state(self._policy.licence_time(int(time.time())))

    def __call__(self, *inputs: ArrayLike) -> dict[str, NDArray[np.generic]]:
        """Answer any number of items.

        Args:
            inputs: one array per model input, each ``[n, …]`` in the input's type.

        Returns:
            One array per output name, each ``[n, …]``.

        Raises:
            LicenceExpired: the licence and its grace days are over.
            InvalidInput: the arrays do not fit the model's inputs.
            BackendFailed: the computation failed, or the model is closed.
        """
        if self._closed:
            raise BackendFailed(
                f"model {self.description.name}: is closed", hint="load it again; the end of a with block closes it"
            )
        self.licence  # noqa: B018  (raises once it is over)
        try:
            arrays = tuple(np.asarray(value) for value in inputs)
        except ValueError as error:
            raise InvalidInput(
                f"model {self.description.name}: takes arrays of numbers", hint=self._wanted()
            ) from error
        try:
            return self._loaded(*arrays)
        except InvalidInput as error:
            raise InvalidInput(error.message, hint=error.hint or self._wanted()) from error

    def close(self) -> None:
        """Zero the weights; it answers no more."""
        self._closed = True
        self._loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        about = self.description
        return f"<sealed model {about.name} {about.version} on {self.device}: {self._inputs()}>"

    def _inputs(self) -> str:
        return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in self.description.inputs)

    def _wanted(self) -> str:
        return f"call it with one array per input, of as many items each and finite: {self._inputs()}"


def load(
    path: str | Path,
    *,
    identity: Who,
    trust: Trust,
    device: str = "auto",
    state: str | Path | None = None,
    memory_budget: int | None = None,
    secret: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Load a sealed model with the server's checks.

    Signatures, grants, notices and grant files that lie beside it, withdrawn versions, licence time, the runtime that
    it may demand, every chunk, the graph, and its known answers at every batch size on this device. This process is
    hardened first: no core dump, and no other process of the same user may read its memory.

    Args:
        path: the sealed file.
        identity: an identity file (locked ones are unlocked, a passphrase is asked for on the terminal), or how to
            unlock one, or an identity.
        trust: ``publishers.json`` or one ``publisher.pub``, or publishers.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        state: where to remember withdrawn versions and licence time; by default ``pericard/trust.json`` in the user's
            state folder (``$XDG_STATE_HOME``). Never a daemon's: its log would not know the change.
        memory_budget: largest plaintext in bytes, or None.
        secret: hold the weights in memory that not even root can read.
        progress: called now and then with the bytes that are decrypted and those in all, instead of a bar on stderr
            where that is a terminal.

    Raises:
        PericardError: it was refused; nothing of it is left in memory.
    """
    if not Path(path).exists():
        raise NotSealed(f"{path}: there is no such file")
    hardening.protect_memory()
    chosen = exported.pick_device(device)
    here = environment.this_host(host.cuda([chosen]))
    policy = Policy(_pins(trust), TrustState(_state(state)), runtime=environment.describe().digest, host=here)
    path, now = Path(path), int(time.time())
    _heed_notices(path.parent, policy, now)
    who = open_identity(identity, unasked=_NO_TERMINAL)
    with SealedModel(path) as source:
        verified = source.verify(policy.publishers)
        add_grants_beside(verified, path)
        with bar(f"opening {path.name}") as shown:
            loaded = loader.load(
                verified, who, policy, device=chosen, now=now,
                memory_budget=memory_budget, secret=secret, progress=progress or shown,
            )  # fmt: skip
    try:
        policy.state.merge(policy.taught(verified))
        if clock.synchronised():
            policy.state.merge(policy.state.current.with_time(now))
    except BaseException:
        loaded.close()
        raise
    return Model(loaded, policy)


def seal(
    model: str | Path | Program,
    output: str | Path,
    *,
    about: str | Path,
    sign_with: str | Path | PublisherKey,
    archive: str | Path | Recipient,
    terms: Sequence[Term],
    factory: str | None = None,
    strip_prefix: str | None = None,
    questions: str | Path | None = None,
    remark: Callable[[str], None] = warnings.warn,
    progress: Progress | None = None,
) -> Sealed:
    """Seal a model: signed, encrypted, licensed.

    The installed runtime is held against its records first, and its digest is signed into the manifest. The signing
    key is read last, when no code of the model's runs any more.

    Args:
        model: a ``.pt2`` or ``.onnx`` file, a file of weights (with ``factory``), or a program of ``torch.export``.
        output: the sealed file; it never takes the place of a file that is there.
        about: ``model.yaml``: what the model is.
        sign_with: the publisher's private key.
        archive: the publisher's archive identity, from which later grants are made.
        terms: for whom, and from when to when.
        factory: ``pkg.mod:name`` of what makes the module that the weights are for.
        strip_prefix: taken off every name of the weights.
        questions: known questions of your own, ``.npz``; never a patient's.
        remark: called with each sentence that the vendor should read.
        progress: as for :func:`load`.

    Raises:
        PericardError: the runtime, the model, its description or a key cannot be used; nothing is written.
    """
    hardening.protect_memory()
    _require_program(model, factory)
    require_new(Path(output))
    environment.verify()
    description = model_file.read(Path(about), runtime=environment.describe().digest)
    own = None
    if questions is not None:
        own = questions_of.from_file(Path(questions), description.inputs)
        remark(
            f"{questions}: these questions and their answers go to every hospital, inside the sealed model; they must "
            "not be a patient's"
        )
    prepared = _prepared(model, description, own, factory, strip_prefix)
    for text in prepared.remarks:
        remark(text)
    keeper = _recipient(archive)
    signer = sign_with if isinstance(sign_with, PublisherKey) else PublisherKey.read(Path(sign_with))
    # the archive's grant has no licence in it: it lasts as long as a date can
    every = (Term(keeper, 0, (1 << 40) - 1, 0), *terms)
    path, about_it, plain = Path(output), prepared.description, prepared.plain
    with bar(f"sealing {path.name}") as shown:
        return write_sealed(path, about_it, plain, signer=signer, terms=every, progress=progress or shown)


def term(recipient: str | Path | Recipient, *, days: int, begin: int | None = None, grace_days: int = 14) -> Term:
    """For whom a model is sealed, and for how long.

    Args:
        recipient: the hospital's ``identity.pub``.
        days: length of the licence.
        begin: its first second, Unix time; by default the last midnight (UTC).
        grace_days: days on which the model still serves after the last one, and says so.
    """
    first = int(time.time()) // _DAY * _DAY if begin is None else begin
    return Term(_recipient(recipient), first, first + days * _DAY, grace_days)


def _recipient(recipient: str | Path | Recipient) -> Recipient:
    return recipient if isinstance(recipient, Recipient) else recipients.read(Path(recipient))


def _require_program(model: object, factory: object) -> None:
    """Only a file or a program can be sealed, and what makes a module is named, never passed."""
    if not isinstance(model, str | Path | Program):
        raise UnsupportedModel(
            f"{type(model).__name__}: is no program of torch.export, nor a path",
            hint="export it first: torch.export.export(module.eval(), …); weights go into a file, with factory=",
        )
    if factory is not None and not isinstance(factory, str):
        raise UnsupportedModel(
            f"factory: is a {type(factory).__name__}, not a name",
            hint="name what makes the module, factory='pkg.mod:make'; or export it first: "
            "torch.export.export(module.eval(), …)",
        )
    if factory is not None and isinstance(model, Program):
        raise UnsupportedModel("factory: goes with a file of weights; a program of torch.export needs none")


def _prepared(
    model: str | Path | Program,
    description: Description,
    own: tuple[tuple[Array, ...], ...] | None,
    factory: str | None,
    strip_prefix: str | None,
) -> Prepared:
    if not isinstance(model, str | Path):
        return export.prepare_program(model, description, own, subject=description.name)
    if factory is not None:
        return export.prepare_module(factory, Path(model), description, own, strip_prefix=strip_prefix)
    return export.prepare(Path(model), description, own)


def _heed_notices(folder: Path, policy: Policy, now: int) -> None:
    for file in notices_in(folder):
        found = notice.read(file, policy.publishers)
        policy.state.merge(policy.withdrawn(found, now, subject=file.name))


def _pins(trust: Trust) -> Pins:
    if isinstance(trust, Publisher):
        return Pins.of(trust)
    if isinstance(trust, str | Path):
        path = Path(trust)
        return Pins.of(Publisher.read(path)) if path.suffix == ".pub" else TrustStore(path).load()
    return Pins.of(*trust)


def open_identity(who: Who, *, unasked: str | None = None) -> Identity:
    """Read an identity, and unlock it if it is locked.

    Args:
        who: the identity, its file, or how it is unlocked.
        unasked: the hint where a passphrase cannot be asked for.

    Raises:
        PericardError: it cannot be had.
    """
    if isinstance(who, Identity):
        return who
    values = who if isinstance(who, UnlockValues) else UnlockValues(kind=unlock.kind_in(Path(who)), path=str(who))
    try:
        seeds = unlock.unlock(values)
    except KeySourceUnavailable as error:
        if unasked is None or values.kind != "passphrase" or values.passphrase_fd is not None:
            raise
        raise KeySourceUnavailable(error.message, hint=unasked) from error
    try:
        return Identity(seeds[0])
    finally:
        for seed in seeds:
            wipe(seed)


def _state(path: str | Path | None) -> Path:
    if path is not None:
        return Path(path)
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "pericard" / "trust.json"
