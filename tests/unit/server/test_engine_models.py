"""Models that come, go, fail and drift in a whole engine in this process: what is served, and what is said of it."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from serving import DAY, GOOD, row

from pericard.audit import records
from pericard.engine.main import Engine
from pericard.engine.values import RepositoryValues
from pericard.errors import (
    CorruptPayload,
    ModelNotReady,
    ModelTooLarge,
    PericardError,
    UnknownModel,
    UnsupportedModel,
    VersionWithdrawn,
)
from pericard.keys import PublisherKey
from pericard.runtime.exported import ExportedBackend
from pericard.runtime.loader import LoadedModel
from pericard.trust import Licence, TrustStore

NAME = "ecg-anomaly"
WHO = {"principal": "operator", "address": "192.0.2.1"}


class Place(serving.Site):
    """A site with a repository folder."""

    @property
    def models(self) -> Path:
        path = self.folder / "models"
        path.mkdir(exist_ok=True)
        return path

    def put(self, sequence: int, file: str = "", *, spoil: bool = False, name: str = NAME, **changes: Any) -> Path:
        """Seal a version into the folder."""
        sealed = self.seal(name, sequence=sequence, version=f"{sequence}.0.0", **changes)
        if spoil:
            data = bytearray(sealed.read_bytes())
            data[-5] ^= 1
            sealed.write_bytes(data)
        return sealed.rename(self.models / (file or f"{name}-{sequence}.sealed"))

    @contextmanager
    def serving(self, *named: Path, started: bool = False, **changes: Any) -> Iterator[Engine]:
        policy = {key: changes.pop(key) for key in ("latest", "sequences") if key in changes}
        folder = RepositoryValues(str(self.models), watch_seconds=0.0, **policy)
        with self.engine(
            *named, started=started, **{"repository": folder, "recheck_seconds": 0.0, **changes}
        ) as engine:
            yield engine

    def log(self, event: str) -> list[dict[str, Any]]:
        return [dict(record) for _, record in records(self.folder / "audit") if record["event"] == event]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


def reload(engine: Engine) -> None:
    """What SIGHUP asks for, in this thread."""
    engine._caretaker._reload()


def look(engine: Engine) -> None:
    """One tick of the watch, in this thread."""
    engine._caretaker._watch()


def admin(engine: Engine, operation: str, name: str = NAME) -> dict[str, Any]:
    """An administrator's word, in this thread."""
    from pericard.engine.gate import Asked

    return getattr(engine._caretaker, f"_{operation}")(name, Asked("admin", WHO))  # type: ignore[no-any-return]


def served(engine: Engine, name: str = NAME) -> list[int]:
    """Sequences that may be asked, the newest first."""
    return [one.sequence for one in engine._repository.of(name)]


def index(engine: Engine) -> dict[tuple[str, str], str]:
    return {(one["name"], one["version"]): one["state"] for one in engine._repository.index()}


def reason(engine: Engine, version: str) -> str:
    return next(one["reason"] for one in engine._repository.index() if one["version"] == version)


# --- versions


def test_the_newest_version_is_served_and_a_newer_one_takes_its_place(place: Place) -> None:
    place.put(1)
    place.put(2)
    with place.serving() as engine:
        assert served(engine) == [2]
        (old,) = engine._repository
        weights = old.models[0]._plaintext._memory.view  # type: ignore[attr-defined]  # on the host, here
        assert any(weights)
        place.put(3)
        reload(engine)

        assert served(engine) == [3]
        with pytest.raises(UnknownModel):
            engine._repository.find(old.number)
        assert not any(weights)
    loaded = place.log("model-loaded")
    assert [(one["model"]["sequence"], one["asked"]) for one in loaded] == [(2, "start"), (3, "signal")]
    (gone,) = place.log("model-unloaded")
    assert (gone["model"]["sequence"], gone["drained"], gone["asked"]) == (2, True, "signal")


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [({"latest": None}, [3, 2, 1]), ({"latest": 2}, [3, 2]), ({"sequences": {NAME: (1, 3, 9)}}, [3, 1])],
    ids=str,
)
def test_the_version_policy_chooses(place: Place, policy: dict[str, Any], wanted: list[int]) -> None:
    for sequence in (1, 2, 3):
        place.put(sequence)
    with place.serving(**policy) as engine:
        assert served(engine) == wanted
        versions = engine._repository.catalog()["models"][NAME]
        assert list(versions["versions"]) == [str(sequence) for sequence in wanted]
        assert versions["current"] == str(versions["versions"][str(wanted[0])]["number"])


def test_a_broken_new_version_leaves_the_old_one_and_says_why(place: Place) -> None:
    place.put(1)
    with place.serving() as engine:
        before = engine._repository.catalog()["generation"]
        place.put(2, spoil=True)
        reload(engine)

        assert served(engine) == [1]
        assert index(engine) == {(NAME, "1"): "READY", (NAME, "2"): "UNAVAILABLE"}
        assert "chunk" in reason(engine, "2")
        catalog = engine._repository.catalog()
        assert catalog["generation"] > before
        assert [one["version"] for one in catalog["refused"]] == ["2"]
        assert str(place.folder) not in str(catalog)
        loads = engine._metrics.registry.get_sample_value(
            "pericard_model_loads_total", {"model": NAME, "result": "corrupt-payload"}
        )
        assert loads == 1
    (refused,) = place.log("model-refused")
    assert (refused["code"], refused["sequence"], refused["file"]) == ("corrupt-payload", 2, f"{NAME}-2.sealed")
    assert len(refused["manifest"]) == 64


def test_a_file_that_was_replaced_by_a_broken_one_leaves_what_it_was(place: Place) -> None:
    path = place.put(1)
    with place.serving() as engine:
        path.write_bytes(b"half a copy")
        reload(engine)
        assert served(engine) == [1]
        assert index(engine)[path.name, ""] == "UNAVAILABLE"
        shutil.move(place.put(2), path)  # the same name, whole, and newer
        reload(engine)
        assert served(engine) == [2]
        assert index(engine) == {(NAME, "2"): "READY"}


def test_where_the_newest_is_broken_the_next_best_is_served(place: Place) -> None:
    place.put(1)
    place.put(2)
    place.put(3, spoil=True)
    with place.serving() as engine:
        assert served(engine) == [2]
    assert [one["sequence"] for one in place.log("model-refused")] == [3]


def test_a_version_that_fails_its_known_answers_never_serves_and_teaches_no_floor(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put(1)
    with place.serving() as engine:
        place.put(2, floor=2)
        _drifting(monkeypatch)
        reload(engine)
        assert served(engine) == [1]
        assert engine._journal.state.current.floor(place.vendor.publisher.id, NAME) == 0
    assert place.log("model-refused")[0]["code"] == "known-answer-mismatch"


def test_copies_of_one_file_are_one_and_removing_one_changes_nothing(place: Place) -> None:
    path = place.put(1)
    copy = path.with_name("again.sealed")
    copy.write_bytes(path.read_bytes())
    with place.serving() as engine:
        assert len(engine._repository) == 1
        path.unlink()
        reload(engine)
        copy.unlink()
        place.put(7, name="other")
        reload(engine)
        assert (served(engine), served(engine, "other")) == ([], [7])
    assert [one["reason"] for one in place.log("model-unloaded")] == ["its file was removed"]


def test_two_files_of_one_version_are_refused_and_what_is_served_stays(place: Place) -> None:
    place.put(1)
    with place.serving() as engine:
        place.put(1, "other.sealed", intended_use="tests: another file of that version")
        reload(engine)
        assert served(engine) == [1]
        assert "two sealed files carry ecg-anomaly with sequence 1" in reason(engine, "1")
        (place.models / "other.sealed").unlink()
        reload(engine)
        assert index(engine) == {(NAME, "1"): "READY"}
    with place.serving() as engine:  # nobody was first
        assert served(engine) == [1]


def test_a_name_is_one_vendors(place: Place, tmp_path: Path) -> None:
    other = PublisherKey.generate(tmp_path / "other.key")
    TrustStore(place.folder / "publishers.json").add("rival", other.publisher, now=int(time.time()))
    place.put(1)
    with place.serving() as engine:
        place.put(2, signer=other)
        reload(engine)
        assert served(engine) == [1]
        assert "is used by vendor too" in reason(engine, "2")
    with place.serving() as engine:
        assert served(engine) == []  # nobody was first: the operator must say whose it is
        assert engine.serving == "no model yet"


# --- files that the settings name


def test_a_named_file_is_needed_at_the_start_and_reloaded_later(place: Place) -> None:
    path = place.put(1)
    named = path.rename(place.folder / "named.sealed")
    with place.serving(named) as engine:
        shutil.move(place.put(2), named)
        reload(engine)
        assert served(engine) == [2]
        named.unlink()  # a disk that is away for a moment unloads nothing
        reload(engine)
        assert served(engine) == [2]
        assert index(engine)["named.sealed", ""] == "UNAVAILABLE"
    with pytest.raises(PericardError), place.serving(named):
        pytest.fail("started without a file that it must serve")


def test_nothing_is_unloaded_because_a_folder_seems_empty(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    path = place.put(1)
    with place.serving() as engine:
        path.unlink()
        look(engine)
        assert served(engine) == [1]
        assert "nothing is unloaded before SIGHUP" in caplog.text
        reload(engine)
        assert served(engine) == []


def test_the_watch_takes_a_file_only_once_it_stopped_changing(place: Place) -> None:
    place.put(1)
    with place.serving() as engine:
        path = place.put(2)
        look(engine)
        assert served(engine) == [1]
        assert index(engine)[path.name, ""] == "LOADING"
        path.touch()
        look(engine)
        assert served(engine) == [1]
        look(engine)
        assert served(engine) == [2]


def test_the_watch_says_a_refusal_once_and_tries_again_when_the_file_changes(place: Place) -> None:
    place.put(1)
    with place.serving() as engine:
        path = place.put(2, spoil=True)
        for _ in range(3):
            look(engine)
            place.put(1, "irrelevant.sealed")  # something else changes meanwhile
        assert len(place.log("model-refused")) == 1
        path.unlink()
        place.put(2)
        look(engine)
        look(engine)
        assert served(engine) == [2]


# --- trust, while it runs


def test_a_notice_withdraws_what_is_served(place: Place) -> None:
    place.put(1)
    place.put(2)
    with place.serving(latest=None) as engine:
        place.notice(2).rename(place.models / "tiny.notice")
        reload(engine)
        assert served(engine) == [2]
        assert index(engine)[NAME, "1"] == "UNAVAILABLE"
    assert place.log("model-unloaded")[0]["reason"].startswith("withdrawn")
    assert place.log("model-refused")[-1]["code"] == VersionWithdrawn.code


def test_a_bad_notice_is_recorded_and_costs_nothing(place: Place) -> None:
    place.put(1)
    with place.serving() as engine:
        (place.models / "x.notice").write_bytes(b"nothing")
        look(engine)
        look(engine)
        place.put(2)
        look(engine)
        look(engine)
        assert served(engine) == [2]
    assert len(place.log("notice-refused")) == 1
    with place.serving() as engine:
        assert served(engine) == [2]


def test_a_grant_beside_a_served_model_renews_its_licence(place: Place) -> None:
    path = place.put(1, not_after=int(time.time()) + 2 * DAY)
    with place.serving() as engine:
        (one,) = engine._repository
        model = one.models[0]
        engine.tick()
        until = int(time.time()) + 90 * DAY
        grant = place.grant(path, "new.grant", not_after=until)
        shutil.move(grant, place.models / f"{path.stem}.new.grant")
        reload(engine)
        assert one.licence.grant.not_after == until
        assert engine._repository.find(one.number).models[0] is model  # nothing was loaded anew
        one.licence = Licence(dataclasses.replace(one.licence.grant, not_after=int(time.time()) + 2 * DAY))
        engine.tick()
    (changed,) = place.log("licence-changed")
    assert changed["not_after"] == until
    assert len(place.log("licence")) == 0  # they wait for the thread, which was not started


def test_a_publisher_that_is_pinned_no_more_serves_no_more(place: Place, tmp_path: Path) -> None:
    other = PublisherKey.generate(tmp_path / "other.key")
    store = TrustStore(place.folder / "publishers.json")
    store.add("rival", other.publisher, now=int(time.time()))
    place.put(1)
    place.put(1, name="theirs", signer=other)
    with place.serving() as engine:
        assert served(engine, "theirs") == [1]
        store.remove("rival")
        reload(engine)
        assert (served(engine), served(engine, "theirs")) == ([1], [])
        (place.folder / "publishers.json").write_text("nothing")
        place.put(2)
        reload(engine)  # what was pinned still is
        assert served(engine) == [2]
    assert place.log("publishers-changed")[0]["removed"] == [other.publisher.id]
    assert place.log("publishers-refused")[0]["code"] == "config-invalid"


# --- an administrator's word


def test_unloaded_by_an_administrator_it_stays_so_until_it_is_loaded_again(place: Place) -> None:
    place.put(1)
    with place.serving() as engine:
        assert admin(engine, "unload") == {"model": NAME}
        reload(engine)
        look(engine)
        assert served(engine) == []
        assert index(engine) == {(NAME, ""): "UNAVAILABLE"}
        assert admin(engine, "unload") == {"model": NAME}  # once more is no error
        assert admin(engine, "load") == {"model": NAME, "version": "1"}
        assert served(engine) == [1]
        with pytest.raises(UnknownModel):
            admin(engine, "unload", "nothing")
        for name in ("nothing", "../models/ecg-anomaly-1", f"{NAME}-1.sealed"):
            with pytest.raises(UnknownModel):
                admin(engine, "load", name)
    (gone,) = place.log("model-unloaded")
    assert (gone["principal"], gone["asked"]) == ("operator", "admin")
    assert place.log("model-loaded")[-1]["principal"] == "operator"
    with place.serving() as engine:
        assert served(engine) == [1]  # a restart forgets it


def test_a_load_says_why_the_newest_is_not_served_and_touches_no_other_model(place: Place) -> None:
    place.put(1)
    with place.serving() as engine:
        place.put(2, spoil=True)
        place.put(5, name="other")
        with pytest.raises(CorruptPayload):
            admin(engine, "load")
        assert served(engine) == [1]
        assert served(engine, "other") == []  # whoever may load one model loads no other


def test_from_another_thread_the_operations_are_carried_out_and_end_with_the_engine(place: Place) -> None:
    place.put(1)
    with place.serving(started=True) as engine:
        assert engine._admin("load", {"model": NAME, **WHO})["version"] == "1"
        assert engine._admin("index", {})["index"][0]["state"] == "READY"
        for operation, fields in (("load", {}), ("format", {"model": NAME}), ("load", {"model": 7})):
            with pytest.raises(UnknownModel):
                engine._admin(operation, fields)
        engine.reload()
        engine._admin("unload", {"model": NAME})
        assert served(engine) == []
    with pytest.raises(ModelNotReady):
        engine._admin("load", {"model": NAME})


# --- memory


def test_memory_for_all_models_counts_the_old_beside_the_new(place: Place) -> None:
    place.put(1)
    size = len(serving.artifact())
    with place.serving(memory_total=2 * size - 1) as engine:
        path = place.put(2)
        os_read: list[int] = []
        reload(engine)
        assert served(engine) == [1]
        assert "are taken by what is served" in reason(engine, "2")
        with pytest.raises(ModelTooLarge) as refused:
            admin(engine, "load")
        assert "unload the old version first" in str(refused.value.hint)
        admin(engine, "unload")
        assert admin(engine, "load")["version"] == "2"
        assert not os_read
        assert path.exists()


def test_without_the_identity_nothing_new_is_loaded_and_the_old_one_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put(1)
    with place.serving() as engine:
        from pericard.engine.main import _no_identity

        engine._caretaker._identities = _no_identity
        reload(engine)  # nothing is to be loaded, so nobody asks for it
        place.put(2)
        reload(engine)
        assert served(engine) == [1]
        assert "identity: cannot be had" in reason(engine, "2")


# --- devices


def test_each_device_has_its_own_copy_and_answers_the_same(place: Place, loop: serving.Loop) -> None:
    place.put(1)
    with place.serving(started=True, devices=("cpu", "cpu")) as engine:
        (one,) = engine._repository
        assert len(one.models) == 2
        assert one.models[0]._plaintext is not one.models[1]._plaintext
        link = loop.run(serving.attached(engine))

        async def ask() -> list[Any]:
            asked = [serving.ask(link, row(GOOD), serving.number_of(link)) for _ in range(64)]
            return await asyncio.gather(*(one.future for one in asked))

        answers = loop.run(ask())
        assert len({tuple(np.round(serving.numbers(answer), 5)) for answer in answers}) == 1
        loop.loop.call_soon_threadsafe(link.close)
    assert place.log("model-loaded")[0]["devices"] == ["cpu", "cpu"]


# --- known answers again


def _drifting(monkeypatch: pytest.MonkeyPatch, *, at: int | None = None) -> None:
    """From now on, the device computes other numbers (at one batch size)."""
    real = ExportedBackend.infer

    def infer(backend: ExportedBackend, inputs: Any) -> Any:
        found = real(backend, inputs)
        return tuple(output + np.float32(0.01) for output in found) if at in {None, len(inputs[0])} else found

    monkeypatch.setattr(ExportedBackend, "infer", infer)


@pytest.mark.parametrize("at", [None, 4])
def test_a_drifted_device_takes_its_model_out_of_service_and_back(
    place: Place, loop: serving.Loop, monkeypatch: pytest.MonkeyPatch, at: int | None
) -> None:
    place.put(1)
    with place.serving(started=True) as engine:
        link = loop.run(serving.attached(engine))
        (one,) = engine._repository
        value = engine._metrics.registry.get_sample_value
        with monkeypatch.context() as patch:
            _drifting(patch, at=at)
            engine._caretaker._recheck.everything()
            assert one.fault is not None
            with pytest.raises(ModelNotReady):
                loop.run(asked(link, one.number))
            entry = engine._repository.catalog()["models"][NAME]["versions"]["1"]
            assert (entry["ready"], "known answer" in entry["reason"]) == (False, True)
            assert value("pericard_models_ready") == 0
            engine._caretaker._recheck.everything()  # still wrong: said once, counted twice
        assert value("pericard_known_answer_failures_total", {"model": NAME}) == 2
        engine._caretaker._recheck.everything()
        assert one.fault is None
        assert loop.run(asked(link, one.number)).shared["licence"] == "valid"
        passed = value("pericard_known_answers_passed_timestamp", {"model": NAME})
        assert passed is not None
        assert abs(passed - time.time()) < 60
        loop.loop.call_soon_threadsafe(link.close)
    (failed,) = place.log("known-answers-failed")
    assert (failed["device"], failed["code"], failed["model"]["sequence"]) == ("cpu", "known-answer-mismatch", 1)
    assert failed["bucket"] == (at or 1)
    assert len(place.log("known-answers-passed")) == 1


def test_a_check_that_fails_is_a_failure_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put(1)
    with place.serving() as engine:
        (one,) = engine._repository

        def gone(*_: object) -> Any:
            raise RuntimeError("CUDA error: the device is lost")

        with monkeypatch.context() as patch:
            patch.setattr(LoadedModel, "recheck", gone)
            engine._caretaker._recheck.everything()
        assert one.fault is not None
        assert admin(engine, "load")["version"] == "1"  # an administrator's load asks at once
        assert one.fault is None
    assert place.log("known-answers-failed")[0]["code"] == "backend-failed"


async def asked(link: Any, number: int) -> Any:
    return await serving.ask(link, row(GOOD), number).future


def test_the_timer_asks_by_itself_and_traffic_goes_on(
    place: Place, loop: serving.Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put(1)
    rounds: list[int] = []
    real = LoadedModel.recheck

    def recheck(model: LoadedModel, bucket: int) -> None:
        rounds.append(bucket)
        real(model, bucket)

    monkeypatch.setattr(LoadedModel, "recheck", recheck)
    with place.serving(started=True, recheck_seconds=0.2) as engine:
        link = loop.run(serving.attached(engine))
        end = time.monotonic() + 30
        while len(rounds) < 6 and time.monotonic() < end:
            loop.run(asked(link, 1))
        loop.loop.call_soon_threadsafe(link.close)
    assert rounds[:6] == [1, 4, 8, 1, 4, 8]


def test_a_refusal_that_names_no_model_is_listed_by_its_file(place: Place) -> None:
    (place.models / "stranger.sealed").write_bytes(b"not sealed at all")
    with place.serving() as engine:
        assert index(engine) == {("stranger.sealed", ""): "UNAVAILABLE"}
        assert engine._repository.catalog()["models"] == {}
        with pytest.raises(UnknownModel):
            admin(engine, "load", "stranger.sealed")
    assert place.log("model-refused")[0]["code"] == "not-a-sealed-model"


def test_an_error_inside_a_framework_costs_that_model_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put(1)
    with place.serving() as engine:
        place.put(2)

        def explode(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(LoadedModel, "check_known_answers", explode)
        reload(engine)
        assert served(engine) == [1]
        assert "could not be loaded (MemoryError)" in reason(engine, "2")
    assert place.log("model-refused")[0]["code"] == UnsupportedModel.code
