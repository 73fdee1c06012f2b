"""A whole engine in this process: start, refuse, serve, lose edges, stop; what happened stands in the log."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import serving
from serving import GOOD, OTHER, row

from pericard import pipe
from pericard.audit import AuditLog, records
from pericard.audit.verify import verify
from pericard.engine.main import Engine
from pericard.engine.values import EnvironmentValues
from pericard.environment import describe
from pericard.errors import (
    AuditUnavailable,
    EngineAway,
    LicenceExpired,
    NoGrant,
    PericardError,
    SealedModelError,
    TrustStateInvalid,
    UnsupportedModel,
    UntrustedPublisher,
    VersionWithdrawn,
)
from pericard.keys import Identity
from pericard.pipe import Answer, EngineLink
from pericard.runtime.loader import LoadedModel
from pericard.sealed.manifest import MAX_SEQUENCE
from pericard.trust import Licence, TrustState


@pytest.fixture
def place(tmp_path: Path) -> serving.Site:
    """A site that this test may spoil."""
    return serving.Site(tmp_path / "place")


@pytest.fixture
def links(loop: serving.Loop) -> Iterator[list[EngineLink]]:
    made: list[EngineLink] = []
    yield made

    async def close() -> None:
        for link in made:
            link.close()
        await asyncio.sleep(0)

    loop.run(close())


def starts(place: serving.Site, *models: Path) -> None:
    with place.engine(*models, started=False):
        pass


def attach(loop: serving.Loop, links: list[EngineLink], engine: Engine) -> EngineLink:
    links.append(loop.run(serving.attached(engine)))
    return links[-1]


async def put(link: EngineLink, data: list[float], name: str = "ecg-anomaly") -> Answer:
    """Ask about a strip, as an edge does."""
    asked = serving.ask(link, row(data), serving.number_of(link, name))
    try:
        return await asked.future
    except asyncio.CancelledError:
        link.abandon(asked.number)
        raise


def log(place: serving.Site) -> list[dict[str, Any]]:
    return [dict(record) for _, record in records(place.folder / "audit")]


def test_a_torn_tail_is_cut_and_the_start_record_tells_how_much(place: serving.Site) -> None:
    path = place.seal()
    with place.engine(path, started=False):
        pass
    newest = max((place.folder / "audit").glob("*.log"))
    with newest.open("ab") as file:
        file.write(b"\5\0\0\0\0")
    with place.engine(path, started=False):
        pass
    starts = [record for record in log(place) if record["event"] == "start"]
    assert [record["recovered_bytes"] for record in starts] == [0, 5]
    verify(place.folder / "audit", verifier=place.log_key.verifier)


def test_what_the_supervisor_found_is_recorded_shown_and_counted(place: serving.Site) -> None:
    told = EnvironmentValues("warn", "drifted", "conda", "aa" * 32, "dd" * 32, 3)
    with place.engine(place.seal(), started=False, environment=told) as engine:
        catalog = engine._repository.catalog()
        metrics = engine._metrics.registry
        (sample,) = [
            sample for family in metrics.collect() if family.name == "pericard_environment" for sample in family.samples
        ]
        assert metrics.get_sample_value("pericard_environment_findings") == 3
    (start,) = [record for record in log(place) if record["event"] == "start"]

    assert catalog["runtime"] == start["runtime"] == describe().digest  # which this process found by itself
    assert catalog["environment"] == start["environment"]
    assert catalog["environment"].items() >= msgspec.structs.asdict(told).items()
    labels = {name: str(value or "") for name, value in catalog["environment"].items() if name != "findings"}
    assert (sample.name, sample.labels, sample.value) == ("pericard_environment_info", labels, 1)


def test_from_start_to_stop_everything_is_recorded(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink]
) -> None:
    path = place.seal()
    with place.engine(path) as engine:
        assert engine.serving.startswith("ecg-anomaly 1.0.0 (licensed until 2")
        link = attach(loop, links, engine)
        frame = loop.run(put(link, GOOD))
    with place.engine(path):
        pass

    found = log(place)
    events = ["start", "model-loaded", "trust-state", "predict", "stop", "start", "model-loaded", "trust-state", "stop"]
    while len(found) < len(events):  # the two starts fell into one second: there was no time to learn
        events.pop(7)
    assert [record["event"] for record in found] == events
    start, loaded, learnt, predict = found[:4]
    assert (start["version"], start["recovered_bytes"], len(start["trust_state"])) == ("test", 0, 64)
    shown = start["environment"]
    assert (shown["mode"], shown["state"], shown["digest"]) == ("off", "off", start["runtime"])
    assert shown["cpu"] == start["host"]["cpu"]["instructions"]
    assert loaded["model"] == predict["model"] == frame.shared["model"]
    assert (loaded["devices"], type(loaded["weights_locked"])) == (["cpu"], bool)
    assert (loaded["asked"], loaded["buckets"]) == ("start", [1, 4, 8])
    assert loaded["recipient"] == place.identity.recipient.id
    assert (learnt["previous"], learnt["change"].keys()) == (start["trust_state"], {"latest_time"})
    assert found[5]["trust_state"] == learnt["trust_state"] != start["trust_state"]  # the first start learnt the time
    assert verify(place.folder / "audit", verifier=place.log_key.verifier).size == len(found)


def test_a_model_of_the_highest_sequence_is_loaded_and_recorded(place: serving.Site) -> None:
    """The largest number that an audit record holds; it withdraws all versions below it."""
    path = place.seal(sequence=MAX_SEQUENCE, floor=MAX_SEQUENCE)
    for _ in range(2):
        with place.engine(path):
            pass

    found = log(place)
    loaded = [record for record in found if record["event"] == "model-loaded"]
    assert [record["model"]["sequence"] for record in loaded] == [2**53 - 1] * 2
    assert TrustState(place.folder / "trust.json").current.floor(place.vendor.publisher.id, "ecg-anomaly") == 2**53 - 1
    assert verify(place.folder / "audit", verifier=place.log_key.verifier).size == len(found)


def test_no_question_is_answered_before_start(place: serving.Site, loop: serving.Loop, links: list[EngineLink]) -> None:
    with place.engine(place.seal(), started=False) as engine:
        link = attach(loop, links, engine)
        with pytest.raises(TimeoutError):
            loop.run(put(link, GOOD), timeout=0.2)

    assert [record["event"] for record in log(place)] == ["start", "model-loaded", "trust-state"]


def refusals(place: serving.Site) -> dict[str, tuple[Path, type[PericardError], dict[str, Any]]]:
    """Sealed files that must not be served: the file, its error, and what of the engine's values is different."""
    tampered = place.seal("tampered")
    data = bytearray(tampered.read_bytes())
    data[-1] ^= 1
    tampered.write_bytes(data)
    nothing = place.folder / "nothing.sealed"
    nothing.write_bytes(b"not sealed at all")
    stranger = serving.Site(place.folder / "stranger")
    return {
        "tampered": (tampered, SealedModelError, {}),
        "not a sealed model": (nothing, SealedModelError, {}),
        "missing": (place.folder / "missing.sealed", SealedModelError, {}),
        "expired": (place.seal("expired", not_before=0, not_after=serving.DAY), LicenceExpired, {}),
        "untrusted": (stranger.seal(), UntrustedPublisher, {}),
        "too large": (place.seal("large"), PericardError, {"memory_budget": 10}),
    }


REFUSED = ["tampered", "not a sealed model", "missing", "expired", "untrusted", "too large"]


@pytest.mark.parametrize("name", REFUSED)
def test_one_refused_model_refuses_the_start_and_is_recorded(place: serving.Site, name: str) -> None:
    path, kind, changes = refusals(place)[name]
    good = place.seal()

    with pytest.raises(kind) as error, place.engine(good, path, **changes):
        pytest.fail("served what must be refused")

    found = [record for record in log(place) if record["event"] == "model-refused"]
    assert [(record["code"], record["file"]) for record in found][-1][0] == error.value.code
    assert str(place.folder) not in str(found)  # names, not paths
    # nothing is held any more: the log can be opened again, and a start with the good model alone works
    with place.engine(good) as engine:
        assert engine.serving.startswith("ecg-anomaly 1.0.0 (licensed until 2")


def test_another_sites_identity_opens_nothing(place: serving.Site, tmp_path: Path) -> None:
    path = place.seal()
    other = Identity.generate(tmp_path / "other.key")

    with pytest.raises(NoGrant):
        Engine(place.engine_values(path), other, place.log_key)


def test_copies_of_one_file_are_one_model(place: serving.Site) -> None:
    first = place.seal()
    second = first.with_name("again.sealed")
    second.write_bytes(first.read_bytes())

    with place.engine(first, second) as engine:
        assert len(engine._repository) == 1
    assert [record["event"] for record in log(place)].count("model-loaded") == 1


def test_two_files_of_one_version_that_differ_are_both_refused(place: serving.Site) -> None:
    first = place.seal(intended_use="tests: one")
    first = first.rename(first.with_name("first.sealed"))
    second = place.seal(intended_use="tests: another")

    with pytest.raises(UnsupportedModel, match="two sealed files carry ecg-anomaly with sequence 1"):
        starts(place, first, second)
    assert log(place)[-1]["code"] == "unsupported-model"


def test_a_model_that_cannot_be_recorded_is_zeroed(place: serving.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[memoryview] = []
    real = LoadedModel.check_known_answers

    def seen(model: LoadedModel) -> None:
        real(model)
        views.append(model._plaintext._memory.view)  # type: ignore[attr-defined]  # on the host, here

    def full(*_: object) -> None:
        raise TrustStateInvalid("trust.json: cannot be written: for this test")

    monkeypatch.setattr(LoadedModel, "check_known_answers", seen)
    monkeypatch.setattr(TrustState, "commit", full)
    with pytest.raises(TrustStateInvalid):
        starts(place, place.seal(sequence=2, floor=2))

    assert len(views) == 1
    assert not any(views[0])


def test_a_device_that_is_not_there_lets_go_of_the_log(place: serving.Site) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    path = place.seal()

    with pytest.raises(UnsupportedModel), place.engine(path, devices=("cuda:0",)):
        pytest.fail("served on a device that is not there")
    with place.engine(path):
        pass


def test_a_withdrawn_version_stays_withdrawn(place: serving.Site) -> None:
    newer = place.seal(version="3.0.0", sequence=3, floor=2)
    with place.engine(newer):
        pass
    older = place.seal(version="1.0.0", sequence=1)

    with pytest.raises(VersionWithdrawn), place.engine(older):
        pytest.fail("served a withdrawn version")
    assert log(place)[-1]["code"] == "version-withdrawn"


def test_a_version_that_fails_its_known_answers_teaches_no_floor(
    place: serving.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pericard.errors import KnownAnswerMismatch

    def fails(_: LoadedModel) -> None:
        raise KnownAnswerMismatch("model ecg-anomaly: for this test")

    newer = place.seal(version="3.0.0", sequence=3, floor=2)
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "check_known_answers", fails)
        with pytest.raises(KnownAnswerMismatch), place.engine(newer):
            pytest.fail("served a model that computes other answers")

    with place.engine(place.seal(version="1.0.0", sequence=1)) as engine:
        assert engine.serving.startswith("ecg-anomaly 1.0.0 (licensed until 2")


def test_one_log_has_one_engine(place: serving.Site) -> None:
    path = place.seal()
    with place.engine(path), pytest.raises(AuditUnavailable), place.engine(path):
        pytest.fail("two engines wrote one log")


def test_several_models_are_asked_side_by_side(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink]
) -> None:
    with place.engine(place.seal("first"), place.seal("second")) as engine:
        link = attach(loop, links, engine)

        async def ask() -> list[Any]:
            names = ["first", "second"] * 20
            return await asyncio.gather(*(put(link, GOOD, name) for name in names))

        frames = loop.run(ask())
    assert [frame.shared["model"]["name"] for frame in frames] == ["first", "second"] * 20
    indices = [frame.entry.log_index for frame in frames]
    assert sorted(indices) == list(range(min(indices), min(indices) + 40))


def test_cancelled_while_the_batch_computes_its_neighbours_are_answered(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, go_on = threading.Event(), threading.Event()
    real = LoadedModel.infer

    def infer(model: LoadedModel, inputs: Any) -> Any:
        computing.set()
        assert go_on.wait(10)
        return real(model, inputs)

    with place.engine(place.seal()) as engine:
        link = attach(loop, links, engine)
        monkeypatch.setattr(LoadedModel, "infer", infer)

        async def ask() -> list[Any]:
            first = asyncio.ensure_future(put(link, GOOD))
            await asyncio.to_thread(computing.wait, 5)
            rest = [asyncio.ensure_future(put(link, OTHER)) for _ in range(4)]
            await asyncio.sleep(0.05)
            first.cancel()  # it is being computed
            rest[1].cancel()  # it waits
            await asyncio.sleep(0.05)
            go_on.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

        first, *rest = loop.run(ask())

    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(rest[1], asyncio.CancelledError)
    bodies = {frame.entry.data for place_, frame in enumerate(rest) if place_ != 1}
    assert len(bodies) == 1
    assert [record["event"] for record in log(place)].count("predict") == 4  # the one that waited was not computed


def test_edges_come_and_go(place: serving.Site, loop: serving.Loop, links: list[EngineLink]) -> None:
    with place.engine(place.seal()) as engine:
        for _ in range(5):
            link = attach(loop, links, engine)
            assert loop.run(put(link, GOOD)).shared["licence"] == "valid"
            loop.loop.call_soon_threadsafe(link.close)
            time.sleep(0.02)
        last = attach(loop, links, engine)
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            link = attach(loop, links, engine)
            loop.loop.call_soon_threadsafe(link.close)
            time.sleep(0.02)

        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2
        assert loop.run(put(last, OTHER)).shared["licence"] == "valid"
        loop.loop.call_soon_threadsafe(last.close)


def test_two_edges_are_one_server(place: serving.Site, loop: serving.Loop, links: list[EngineLink]) -> None:
    with place.engine(place.seal()) as engine:
        one, other = attach(loop, links, engine), attach(loop, links, engine)

        async def ask() -> None:
            for _ in range(3):
                await asyncio.gather(put(one, GOOD), put(other, GOOD))

        loop.run(ask())
        text = loop.run(other.ask("metrics", seconds=5))[1].decode()

    assert 'pericard_requests_total{code="ok"} 6.0' in text
    assert 'pericard_build_info{runtime="' in text
    assert "pericard_models_ready 1.0" in text
    assert 'pericard_licence_days_left{model="ecg-anomaly"}' in text


def test_a_tick_tells_every_edge_of_the_licence(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink]
) -> None:
    with place.engine(place.seal()) as engine:
        link = attach(loop, links, engine)
        assert link.catalog is not None
        assert link.catalog["models"]["ecg-anomaly"]["versions"]["1"]["licence"] == "valid"
        (model,) = engine._repository
        grant = dataclasses.replace(model.licence.grant, not_after=int(time.time()) - 10, grace_days=1)
        model.licence = Licence(grant)

        engine.tick()
        end = time.monotonic() + 5
        while link.catalog["models"]["ecg-anomaly"]["versions"]["1"]["licence"] == "valid" and time.monotonic() < end:
            time.sleep(0.01)

        assert link.catalog["models"]["ecg-anomaly"]["versions"]["1"]["licence"] == "grace"
        days = engine._metrics.registry.get_sample_value("pericard_licence_days_left", {"model": "ecg-anomaly"})
        assert days is not None
        assert -0.01 < days < 0


def wait_for(what: Any) -> None:
    end = time.monotonic() + 5
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    assert what()


def set_back(place: serving.Site, engine: Engine, seconds: int) -> int:
    """Put the recorded time back, through the journal, as if the engine had run so long."""
    state = engine._journal.state
    earlier = state.latest_time - seconds
    engine._journal.change(dataclasses.replace(state.current, latest_time=earlier), "for-this-test")
    return earlier


def test_a_tick_remembers_the_time_once_a_day(place: serving.Site) -> None:
    with place.engine(place.seal(), started=False) as engine:
        earlier = set_back(place, engine, serving.DAY // 2)
        engine.tick()
        assert engine._journal.state.latest_time == earlier  # not at every tick
        engine._time_raised -= serving.DAY
        engine.tick()
        assert abs(engine._journal.state.latest_time - time.time()) < 60
        again = engine._journal.state.latest_time
        engine.tick()
        assert engine._journal.state.latest_time == again

    assert TrustState(place.folder / "trust.json").latest_time == again


def test_the_engines_thread_does_what_a_tick_asked_for(place: serving.Site) -> None:
    with place.engine(place.seal()) as engine:
        engine._time_raised -= serving.DAY
        raised = engine._time_raised
        engine.tick()
        wait_for(lambda: engine._time_raised > raised)
    assert verify(place.folder / "audit", verifier=place.log_key.verifier)


def test_a_time_that_cannot_be_recorded_is_tried_at_the_next_tick(
    place: serving.Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with place.engine(place.seal(), started=False) as engine:
        earlier = set_back(place, engine, serving.DAY // 2)
        engine._time_raised -= serving.DAY
        for place_that_fails in ("pericard.durable.os.fsync", "pericard.audit.log.os.fdatasync"):
            with monkeypatch.context() as patch:
                patch.setattr(place_that_fails, full)
                engine.tick()
            assert engine._journal.state.latest_time == earlier
            assert "licence time was not recorded" in caplog.text
            caplog.clear()
        engine._log.reopen()
        engine.tick()
        assert engine._journal.state.latest_time > earlier

    with place.engine(place.folder / "ecg-anomaly.sealed"):  # and log and state agree
        pass


def test_a_clock_that_nobody_vouches_for_teaches_no_time(place: serving.Site) -> None:
    path = place.seal()
    with place.engine(path, started=False, synchronised=False) as engine:
        engine.tick()
        assert engine._journal.state.latest_time == 0

    assert not (place.folder / "trust.json").exists()
    assert [record["event"] for record in log(place)] == ["start", "model-loaded"]
    with place.engine(path):
        pass
    assert TrustState(place.folder / "trust.json").latest_time > 0


def test_stopping_answers_what_waits(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    real = LoadedModel.infer

    def infer(model: LoadedModel, inputs: Any) -> Any:
        assert go_on.wait(10)
        return real(model, inputs)

    with place.engine(place.seal()) as engine:
        link = attach(loop, links, engine)
        monkeypatch.setattr(LoadedModel, "infer", infer)
        asked = [asyncio.run_coroutine_threadsafe(put(link, GOOD), loop.loop) for _ in range(20)]
        time.sleep(0.1)
        threading.Timer(0.1, go_on.set).start()
    results = [waiting.result(5) for waiting in asked]

    assert len({frame.entry.data for frame in results}) <= 2  # of at most two buckets
    assert [record["event"] for record in log(place)].count("predict") == 20
    assert log(place)[-1]["event"] == "stop"


def test_stopping_with_a_broken_log_ends_all_the_same(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with place.engine(place.seal()) as engine:
        link = attach(loop, links, engine)
        monkeypatch.setattr("pericard.audit.log.os.fdatasync", broken)
        with pytest.raises(AuditUnavailable):
            loop.run(put(link, GOOD))
        told = {"event": "refused", "code": "unauthenticated", "address": "192.0.2.1"}
        loop.loop.call_soon_threadsafe(link.event, told)

    monkeypatch.undo()
    assert [record["event"] for record in log(place)] == ["start", "model-loaded", "trust-state"]


def test_a_thread_that_dies_is_told_to_who_watches(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink], caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(place.engine_values(place.seal()), place.identity, place.log_key)
    died = threading.Event()
    engine.start(died.set)
    link = attach(loop, links, engine)
    engine._service._repository = None  # type: ignore[assignment]  # a bug, as far as the thread can tell

    asked = asyncio.run_coroutine_threadsafe(put(link, GOOD), loop.loop)
    assert died.wait(5)
    engine.stop()

    with pytest.raises(EngineAway):
        asked.result(5)
    assert "the engine's thread failed" in caplog.text


def test_the_trust_state_is_learnt_only_from_what_is_served(place: serving.Site) -> None:
    place_state = TrustState(place.folder / "trust.json")
    assert place_state.latest_time == 0
    with place.engine(place.seal()):
        pass

    assert abs(TrustState(place.folder / "trust.json").latest_time - time.time()) < 60


def test_the_engines_log_is_the_one_that_its_key_names(place: serving.Site) -> None:
    with place.engine(place.seal()):
        pass
    other = serving.Site(place.folder / "other")

    with pytest.raises(PericardError):
        AuditLog.open(place.folder / "audit", key=other.log_key)


def test_a_socket_that_is_closed_already_harms_nothing(
    place: serving.Site, loop: serving.Loop, links: list[EngineLink]
) -> None:
    with place.engine(place.seal()) as engine:
        ours, theirs = socket.socketpair()
        theirs.close()
        engine.attach(ours, pipe.create(1 << 20))
        link = attach(loop, links, engine)

        assert loop.run(put(link, GOOD)).shared["licence"] == "valid"
