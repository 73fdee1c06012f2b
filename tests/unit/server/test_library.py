"""The guarded loader as a library: the server's checks, without the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pericard
from pericard import durable, environment, hardening, library
from pericard.errors import (
    BackendFailed,
    ConfigError,
    EnvironmentDrift,
    InvalidInput,
    KeyFileInvalid,
    KeySourceUnavailable,
    LicenceExpired,
    NoGrant,
    NotSealed,
    NotWritten,
    UnsupportedModel,
    UntrustedPublisher,
    VersionWithdrawn,
)
from pericard.keys import Identity, PublisherKey
from pericard.runtime import export
from pericard.sealed import Description, Sealed, Term, notice, seal
from pericard.trust import TrustState, TrustStore
from pericard.unlock import UnlockValues

DAY = 86_400
ABOUT = """\
name: tiny
version: 1.0.0
sequence: 3
publisher: Test vendor
intended_use: a model for tests
inputs: [{name: ecg, dtype: float32, shape: [-1, 1, 64]}]
outputs:
  - {name: score, dtype: float32, shape: [-1], meaning: score}
  - {name: timeline, dtype: float32, shape: [-1, 15]}
batch: {max: 4, buckets: [1, 4]}
"""
Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@pytest.fixture(autouse=True)
def _this_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # the notebook example does both for real
    monkeypatch.setattr(hardening, "protect_memory", lambda: None)
    monkeypatch.setattr(environment, "verify", lambda: 1)


class Folder:
    """A vendor's and a hospital's files in one place."""

    def __init__(self, path: Path, pt2: Path, description: Description, key: PublisherKey, archive: Identity) -> None:
        self.path, self.pt2, self.key, self.archive = path, pt2, key, archive
        self.description = replace(description, sealed_in=environment.describe().digest)
        self.identity = Identity.generate(path / "identity.key")
        key.publisher.write(path / "vendor.pub")
        TrustStore(path / "publishers.json").add("vendor", key.publisher, now=0)

    def seal(
        self, name: str = "tiny.sealed", *, begin: int = -DAY, end: int = 30 * DAY, grace: int = 0, **changes: int
    ) -> Path:
        now = int(time.time())
        about = replace(self.description, **changes)
        terms = (
            Term(self.archive.recipient, 0, 1 << 39, 0),
            Term(self.identity.recipient, now + begin, now + end, grace),
        )
        seal(self.path / name, about, export.pack(self.pt2, about), signer=self.key, terms=terms)
        return self.path / name

    def load(self, path: Path, **how: object) -> library.Model:
        options: dict[str, object] = {
            "identity": self.path / "identity.key", "trust": self.path / "vendor.pub", "device": "cpu",
            "state": self.path / "trust.json",
        }  # fmt: skip
        return pericard.load(path, **(options | how))  # type: ignore[arg-type]


@pytest.fixture
def folder(
    tmp_path: Path, tiny_pt2: Path, tiny_description: Description, publisher_key: PublisherKey, archive: Identity
) -> Folder:
    return Folder(tmp_path, tiny_pt2, tiny_description, publisher_key, archive)


@pytest.fixture
def strips() -> Array:
    return np.random.default_rng(3).normal(0, 0.2, (9, 1, 64)).astype(np.float32)


def test_a_loaded_model_is_called_with_arrays_of_any_length(folder: Folder, strips: Array) -> None:
    told: list[tuple[int, int]] = []
    with folder.load(folder.seal(), progress=lambda done, size: told.append((done, size))) as model:
        answers = model(strips)
        one_by_one = [model(strip[None])["score"][0] for strip in strips]

        assert {name: value.shape for name, value in answers.items()} == {"score": (9,), "timeline": (9, 15)}
        assert np.allclose(answers["score"], one_by_one, atol=1e-6)
        assert np.array_equal(model(strips.tolist())["score"], answers["score"])
        assert (model.licence, model.device, len(model.manifest_hash)) == ("valid", "cpu", 64)
        assert repr(model) == "<sealed model tiny 1.0.0 on cpu: ecg float32[-1, 1, 64]>"
    assert told[-1][0] == told[-1][1] > 0


@pytest.mark.parametrize("wrong", [[["a"]], [[1.0]], [[[1.0] * 64], [[1.0] * 63]]])
def test_what_is_no_strip_is_refused(folder: Folder, wrong: list[object]) -> None:
    with folder.load(folder.seal()) as model, pytest.raises(InvalidInput) as caught:
        model(wrong)  # type: ignore[arg-type]
    assert caught.value.hint is not None
    assert "ecg float32[-1, 1, 64]" in caught.value.hint


def test_a_closed_model_says_so(folder: Folder, strips: Array) -> None:
    with folder.load(folder.seal()) as model:
        pass

    with pytest.raises(BackendFailed, match="model tiny: is closed"):
        model(strips)


def test_a_file_that_is_not_there_is_said_to_be_missing(folder: Folder) -> None:
    with pytest.raises(NotSealed, match=r"gone\.sealed: there is no such file"):
        folder.load(folder.path / "gone" / "gone.sealed")


def test_without_a_terminal_the_hint_says_how_a_passphrase_is_given(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: object) -> list[bytearray]:
        raise KeySourceUnavailable("passphrase: there is no terminal to ask for the identity")

    monkeypatch.setattr(library.unlock, "unlock", nobody)
    path = folder.seal()
    with pytest.raises(KeySourceUnavailable) as caught:
        folder.load(path, identity=UnlockValues(kind="passphrase", path="identity.key"))
    assert "passphrase_fd=" in (caught.value.hint or "")
    with pytest.raises(KeySourceUnavailable) as caught:
        folder.load(path, identity=UnlockValues(kind="passphrase", path="identity.key", passphrase_fd=9))
    assert caught.value.hint is None


def test_identity_and_trust_may_come_as_files_stores_and_objects(folder: Folder) -> None:
    path = folder.seal()
    for how in (
        {"trust": str(folder.path / "publishers.json")},
        {"trust": folder.key.publisher},
        {"trust": [folder.key.publisher], "identity": folder.identity},
        {"identity": str(folder.path / "identity.key")},
    ):
        folder.load(path, **how).close()


def test_a_stranger_and_a_site_that_pins_nobody_get_nothing(
    folder: Folder, foreign_key: PublisherKey, stranger: Identity
) -> None:
    path = folder.seal()
    with pytest.raises(UntrustedPublisher):
        folder.load(path, trust=foreign_key.publisher)
    with pytest.raises(NoGrant):
        folder.load(path, identity=stranger)
    with pytest.raises(ConfigError):
        folder.load(path, trust=folder.path / "nobody.json")


def test_a_licence_that_ends_while_the_model_is_loaded_ends_its_answers(
    folder: Folder, strips: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder.load(folder.seal(end=DAY, grace=1)) as model:
        start = time.time()
        monkeypatch.setattr(library.time, "time", lambda: start + 1.5 * DAY)
        assert model.licence == "grace"
        assert model(strips)["score"].shape == (9,)
        monkeypatch.setattr(library.time, "time", lambda: start + 2.5 * DAY)
        with pytest.raises(LicenceExpired):
            model(strips)


def test_a_later_version_and_a_notice_withdraw_what_came_before(folder: Folder) -> None:
    old = folder.seal("old.sealed")
    folder.load(old).close()
    folder.load(folder.seal("new.sealed", sequence=5, floor=4)).close()
    with pytest.raises(VersionWithdrawn):
        folder.load(old)

    last = folder.seal("last.sealed", sequence=6, floor=4)
    folder.load(last).close()
    durable.create(folder.path / "tiny.notice", notice.make(folder.key, model="tiny", floor=7, issued=1))
    with pytest.raises(VersionWithdrawn):
        folder.load(last)
    assert TrustState(folder.path / "trust.json").current.floor(folder.key.publisher.id, "tiny") == 7


def test_two_loads_at_once_forget_nothing(folder: Folder) -> None:
    path = folder.seal(sequence=3, floor=2)
    other = folder.key.publisher.id

    def meanwhile(done: int, size: int) -> None:
        shared = TrustState(folder.path / "trust.json")
        shared.merge(shared.current.with_floor(other, "another", 9))

    folder.load(path, progress=meanwhile).close()

    remembered = TrustState(folder.path / "trust.json").current
    assert (remembered.floor(other, "another"), remembered.floor(other, "tiny")) == (9, 2)


def test_what_is_remembered_lies_in_the_users_state_folder(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder.path / "state"))
    folder.load(folder.seal(), state=None).close()

    assert (folder.path / "state" / "pericard" / "trust.json").is_file()


def test_a_model_sealed_from_a_program_opens(
    folder: Folder, strips: Array, export_pt2: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    (folder.path / "model.yaml").write_text(ABOUT)
    program = torch.export.load(folder.pt2)
    made = sealed_by_hand(folder, program)

    assert made.manifest.description.sealed_in == environment.describe().digest
    with folder.load(folder.path / "it.sealed") as model:
        wanted = program.module()(torch.from_numpy(strips[:4]))[0].detach().numpy()
        assert np.allclose(model(strips[:4])["score"], wanted, atol=1e-6)

    def drifted() -> int:
        raise EnvironmentDrift("runtime: drifted")

    monkeypatch.setattr(environment, "verify", drifted)
    with pytest.raises(EnvironmentDrift):
        sealed_by_hand(folder, program, "again.sealed")
    assert not (folder.path / "again.sealed").exists()


def sealed_by_hand(folder: Folder, program: object, name: str = "it.sealed") -> Sealed:
    return pericard.seal(
        program,  # type: ignore[arg-type]
        folder.path / name,
        about=folder.path / "model.yaml",
        sign_with=folder.key,
        archive=folder.archive.recipient,
        terms=[pericard.term(folder.identity.recipient, days=30)],
    )


def test_only_a_program_or_a_file_is_sealed(folder: Folder) -> None:
    import torch

    module = torch.nn.Linear(1, 1)
    for wrong in (module, module.state_dict(), b"model.pt2"):
        with pytest.raises(UnsupportedModel, match=f"{type(wrong).__name__}: is no program of torch.export") as caught:
            sealed_by_hand(folder, wrong)
        assert "torch.export.export(module.eval(), …)" in (caught.value.hint or "")
    for model, factory in (("weights.pth", torch.nn.Module), (torch.export.load(folder.pt2), "pkg.mod:make")):
        with pytest.raises(UnsupportedModel, match="factory: "):
            pericard.seal(
                model, folder.path / "it.sealed", about="model.yaml", sign_with=folder.key,
                archive=folder.archive.recipient, terms=[], factory=factory,  # type: ignore[arg-type]
            )  # fmt: skip


def test_a_file_that_is_there_is_not_sealed_over(folder: Folder) -> None:
    (folder.path / "it.sealed").write_bytes(b"precious")
    with pytest.raises(NotWritten, match=r"it\.sealed: exists already"):
        sealed_by_hand(folder, folder.pt2)  # before the description is read: there is none


def test_a_term_names_a_recipient_of_the_right_kind(folder: Folder) -> None:
    (folder.path / "age.pub").write_text("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n")
    with pytest.raises(KeyFileInvalid, match=r"age\.pub: is no key file of ours") as caught:
        pericard.term(folder.path / "age.pub", days=3)
    assert "only X-Wing recipients are taken" in (caught.value.hint or "")


def test_a_vendors_own_questions_come_with_a_warning(folder: Folder, tiny_pt2: Path) -> None:
    (folder.path / "model.yaml").write_text(ABOUT)
    np.savez(folder.path / "own.npz", ecg=np.ones((2, 1, 64), np.float32))
    remarks: list[str] = []
    pericard.seal(
        tiny_pt2, folder.path / "it.sealed", about=folder.path / "model.yaml", sign_with=folder.key,
        archive=folder.archive.recipient, terms=[pericard.term(folder.identity.recipient, days=30)],
        questions=folder.path / "own.npz", remark=remarks.append,
    )  # fmt: skip

    assert len(remarks) == 1
    assert remarks[0].endswith("they must not be a patient's")


def test_a_description_that_is_wrong_names_the_key(folder: Folder, tiny_pt2: Path) -> None:
    (folder.path / "model.yaml").write_text(ABOUT.replace("sequence", "sequenz"))
    with pytest.raises(UnsupportedModel, match="sequenz"):
        sealed_by_hand(folder, tiny_pt2)


def test_a_warning_is_a_warning_where_nobody_listens(folder: Folder, tiny_pt2: Path) -> None:
    (folder.path / "model.yaml").write_text(ABOUT.replace("max: 4, buckets: [1, 4]", "max: 64, buckets: [1, 64]"))
    np.savez(folder.path / "own.npz", ecg=np.ones((2, 1, 64), np.float32))
    with pytest.warns(UserWarning, match="must not be a patient's"):
        pericard.seal(
            tiny_pt2, folder.path / "it.sealed", about=folder.path / "model.yaml", sign_with=folder.key,
            archive=folder.archive.recipient, terms=[], questions=folder.path / "own.npz",
        )  # fmt: skip


def test_importing_the_package_brings_no_torch() -> None:
    import subprocess
    import sys

    program = "import sys, pericard; assert 'torch' not in sys.modules; pericard.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
    with pytest.raises(AttributeError, match="has no attribute 'unknown'"):
        _ = pericard.unknown
