"""What an engine makes of grants and notices beside its models, of the pinned set, and of licences that end."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import serving
from serving import DAY, GOOD, row

from pericard.audit import records
from pericard.engine.licences import stage
from pericard.engine.main import Engine
from pericard.errors import (
    AuditUnavailable,
    BadGrant,
    BadNotice,
    ConfigError,
    LicenceExpired,
    PericardError,
    TrustStateInvalid,
    UntrustedPublisher,
    VersionWithdrawn,
)
from pericard.keys import Identity, PublisherKey
from pericard.pipe import Answer, EngineLink
from pericard.sealed import Grant, SealedModel, Term, write_grants
from pericard.trust import Licence, TrustState, TrustStore


@pytest.fixture
def place(tmp_path: Path) -> serving.Site:
    """A site that this test may spoil."""
    return serving.Site(tmp_path / "place")


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


def starts(place: serving.Site, *models: Path) -> None:
    with place.engine(*models, started=False):
        pass


def floor(place: serving.Site, model: str = "ecg-anomaly") -> int:
    return TrustState(place.folder / "trust.json").current.floor(place.vendor.publisher.id, model)


def today() -> int:
    return int(time.time())


# --- grants beside a model


def test_a_licence_that_ended_goes_on_with_a_new_grant_beside_the_model(
    place: serving.Site, loop: serving.Loop
) -> None:
    path = place.seal(not_before=today() - 9 * DAY, not_after=today() - DAY)
    with pytest.raises(LicenceExpired):
        starts(place, path)
    place.grant(path, "ecg-anomaly.2027.grant", not_after=today() + 30 * DAY)

    with place.engine(path) as engine:
        link = loop.run(serving.attached(engine))
        assert loop.run(put(link, GOOD)).shared["licence"] == "valid"
        loop.loop.call_soon_threadsafe(link.close)
        (model,) = engine._repository
        assert model.licence.grant.not_after > today()
    assert log(place)[0]["event"] == "start"
    assert [record["code"] for record in log(place) if record["event"] == "model-refused"] == ["licence-expired"]


def test_a_rotation_says_which_identity_opened_each_model(
    place: serving.Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who reads this destroys no key that is still needed."""
    path = place.seal()
    old, new = place.identity, Identity.generate(tmp_path / "next.key")
    values = place.engine_values(path)
    Engine(values, new, place.log_key, previous=old).close()
    (warning,) = [text for text in caplog.messages if "previous identity" in text]
    assert warning == (
        f"model ecg-anomaly: was opened by the previous identity {old.recipient.id[:16]}; ask the vendor for a grant "
        f"to {new.recipient.id[:16]}"
    )

    caplog.clear()
    today_ = today()
    with SealedModel(path) as source:
        verified = source.verify([place.vendor.publisher])
        term = Term(new.recipient, today_ - DAY, today_ + DAY, 0)
        write_grants(place.folder / "ecg-anomaly.next.grant", verified.grant(old, place.vendor, [term]))
    Engine(values, new, place.log_key, previous=old).close()
    assert "previous identity" not in caplog.text
    opened = [record["recipient"] for record in log(place) if record["event"] == "model-loaded"]
    assert opened == [old.recipient.id, new.recipient.id]


def test_while_it_serves_a_licence_ends_and_a_restart_with_a_new_grant_recovers(
    place: serving.Site, loop: serving.Loop
) -> None:
    path = place.seal()
    with place.engine(path) as engine:
        (model,) = engine._repository
        model.licence = Licence(dataclasses.replace(model.licence.grant, not_after=today() - 5, grace_days=0))
        link = loop.run(serving.attached(engine))
        with pytest.raises(LicenceExpired):
            loop.run(put(link, GOOD))
        loop.loop.call_soon_threadsafe(link.close)
    place.grant(path, "ecg-anomaly.grant", not_after=today() + 30 * DAY)
    with place.engine(path) as engine:
        link = loop.run(serving.attached(engine))
        assert loop.run(put(link, GOOD)).shared["licence"] == "valid"
        loop.loop.call_soon_threadsafe(link.close)


def test_a_bad_grant_file_refuses_the_model_by_its_own_name(
    place: serving.Site, caplog: pytest.LogCaptureFixture
) -> None:
    path = place.seal()
    (place.folder / "ecg-anomaly.ward.grant").write_bytes(b"nothing")

    with pytest.raises(BadGrant, match=r"^ecg-anomaly\.ward\.grant: "):
        starts(place, path)
    last = log(place)[-1]
    assert (last["event"], last["file"], last["because"]) == ("model-refused", path.name, "ecg-anomaly.ward.grant")
    (place.folder / "ecg-anomaly.ward.grant").rename(place.folder / "other.grant")  # another model's
    caplog.clear()
    starts(place, path)
    (warning,) = [text for text in caplog.messages if "other.grant" in text]
    assert "goes with no model that is served" in warning


# --- notices beside a model


def test_a_notice_raises_the_floor_before_any_model_is_loaded(place: serving.Site) -> None:
    path = place.seal(version="3.0.0", sequence=3)
    place.notice(3)
    starts(place, path)

    assert floor(place) == 3
    found = [record for record in log(place) if record["event"] in {"start", "trust-state", "model-loaded"}]
    assert [record["event"] for record in found[:3]] == ["start", "trust-state", "model-loaded"]
    assert (found[1]["notice"], found[1]["change"]["floors"]) == (
        "ecg-anomaly-3.notice",
        {f"{place.vendor.publisher.id}/ecg-anomaly": "3"},
    )


def test_a_notice_is_heeded_once_and_for_a_model_that_is_not_here_too(place: serving.Site) -> None:
    path = place.seal(sequence=9)
    place.notice(3)
    place.notice(7, model="other")
    starts(place, path)
    starts(place, path)

    assert (floor(place), floor(place, "other")) == (3, 7)
    assert sum("notice" in record for record in log(place)) == 2


def test_a_bad_notice_refuses_the_start(place: serving.Site) -> None:
    path = place.seal()
    (place.folder / "x.notice").write_bytes(b"nothing")

    with pytest.raises(BadNotice, match=r"^x\.notice: "):
        starts(place, path)
    assert log(place)[-1] == log(place)[-1] | {"event": "notice-refused", "file": "x.notice", "code": "bad-notice"}
    (place.folder / "x.notice").unlink()
    starts(place, path)


def test_a_floor_that_cannot_be_recorded_is_not_raised_and_nothing_is_served(
    place: serving.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = place.seal(sequence=5, floor=4)
    starts(place, place.seal("other"))
    calls = []
    real = os.fdatasync

    def second(descriptor: int) -> None:
        calls.append(descriptor)
        (real if len(calls) == 1 else full)(descriptor)  # the start is recorded, the floor is not

    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", second)
        with pytest.raises(AuditUnavailable):
            starts(place, path)
    assert floor(place) == 0
    starts(place, path)
    assert floor(place) == 4


def test_a_state_that_cannot_be_written_refuses_the_model(place: serving.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = place.seal(sequence=5, floor=4)
    with monkeypatch.context() as patch:
        patch.setattr("pericard.trust.state.durable.replace", full)
        with pytest.raises(TrustStateInvalid):
            starts(place, path)
    assert log(place)[-1]["code"] == "trust-state-invalid"
    starts(place, path)
    assert floor(place) == 4


# --- the pinned set


def test_without_a_publisher_nothing_is_served(place: serving.Site) -> None:
    path = place.seal()
    (place.folder / "publishers.json").unlink()
    with pytest.raises(ConfigError, match="is missing, and with it every pinned publisher"):
        starts(place, path)


def test_a_key_that_ended_is_not_trusted_any_more(place: serving.Site) -> None:
    path = place.seal()
    store = TrustStore(place.folder / "publishers.json")
    store.add("vendor", place.vendor.publisher, now=today(), until=today() - 1)
    with pytest.raises(UntrustedPublisher, match="by a key of vendor that this site trusted until"):
        starts(place, path)
    store.add("vendor", place.vendor.publisher, now=today())
    starts(place, path)


def test_a_vendor_changes_keys_without_a_gap(place: serving.Site, tmp_path: Path) -> None:
    new = PublisherKey.generate(tmp_path / "new.key")
    TrustStore(place.folder / "publishers.json").add("vendor", new.publisher, now=today())
    starts(place, place.seal("first"), place.seal("second", signer=new))


# --- licences that end

NOW = 1_790_000_000


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (31, ""), (30, "30-days"), (7.1, "30-days"), (7, "7-days"), (1.1, "7-days"), (1, "1-day"), (0, "1-day"),
        (-0.1, "grace"), (-2, "grace"), (-2.1, "over"),
    ],
)  # fmt: skip
def test_the_stages_of_an_end(days: float, expected: str) -> None:
    grant = Grant("00" * 32, "00" * 32, 0, NOW + int(days * DAY), 2, b"")
    assert stage(Licence(grant), NOW) == expected


def test_a_licence_that_has_not_begun_is_not_at_its_end() -> None:
    assert stage(Licence(Grant("00" * 32, "00" * 32, NOW + 1, NOW + 2, 0, b"")), NOW) == ""


def test_each_threshold_is_said_once(
    place: serving.Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = place.seal(not_after=today() + 29 * DAY, grace_days=3)
    with place.engine(path) as engine:
        (model,) = engine._repository
        grant = model.licence.grant
        for left in (29, 28, 6, 0.5, 5, -1, -2, -4, -5):
            model.licence = Licence(dataclasses.replace(grant, not_after=today() + int(left * DAY)))
            engine.tick()
            engine.tick()
    found = [record for record in log(place) if record["event"] == "licence"]

    assert [record["state"] for record in found] == ["30-days", "7-days", "1-day", "grace", "over"]
    assert all(record["model"]["name"] == "ecg-anomaly" for record in found)
    assert found[0]["not_after"] == grant.not_after
    said = [message for message in caplog.messages if "its licence" in message]
    assert len(said) == 5
    assert all(re.search(r" on 20\d\d-\d\d-\d\d[;,]", message) for message in said)


def test_a_start_within_thirty_days_says_so(place: serving.Site) -> None:
    path = place.seal(not_after=today() + 3 * DAY)
    for _ in range(2):
        with place.engine(path):
            pass
    assert [record["state"] for record in log(place) if record["event"] == "licence"] == ["7-days"] * 2


def test_a_warning_that_the_log_cannot_take_is_said_later(place: serving.Site) -> None:
    path = place.seal(not_after=today() + 3 * DAY)
    with place.engine(path, started=False) as engine:
        said: list[dict[str, Any]] = []
        engine._watch._said.clear()
        engine._watch._record = lambda _: False
        engine.tick()
        engine._watch._record = lambda event: said.append(event) or True
        engine.tick()
        engine.tick()
        assert [event["state"] for event in said] == ["7-days"]


# --- a state that is not the recorded one


@pytest.mark.parametrize("how", ["removed", "older"])
def test_an_engine_does_not_start_over_a_state_that_was_put_back(place: serving.Site, how: str) -> None:
    path = place.seal(version="1.0.0", sequence=1)
    with place.engine(path, started=False):
        pass
    older = (place.folder / "trust.json").read_bytes()
    newer = place.seal(version="3.0.0", sequence=3, floor=3)
    place.notice(2)
    starts(place, newer)
    if how == "removed":
        (place.folder / "trust.json").unlink()
    else:
        (place.folder / "trust.json").write_bytes(older)

    with pytest.raises(TrustStateInvalid):
        Engine(place.engine_values(newer), place.identity, place.log_key)
    assert log(place)[-1]["event"] == "trust-refused"
    with pytest.raises(TrustStateInvalid):
        starts(place, place.seal(version="1.0.0", sequence=1))


def test_going_back_to_a_version_at_the_floor_is_possible(place: serving.Site) -> None:
    starts(place, place.seal(version="3.0.0", sequence=3, floor=2))
    starts(place, place.seal(version="2.0.0", sequence=2))
    with pytest.raises(VersionWithdrawn) as caught:
        starts(place, place.seal(version="1.0.0", sequence=1))
    error: PericardError = caught.value
    assert error.hint == "install a version with sequence 2 or later"
