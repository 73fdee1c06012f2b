"""P2 over time: what was withdrawn stays withdrawn, and only a publisher's own grants and notices count.

The attackers here own the folder of the models and the state's file: they may remove, restore and edit whatever lies
there, drop files beside a model, turn the clock and kill the server at the worst moment. They have no private key of
the pinned publisher and do not write the audit log. Every attack goes through a whole engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import serving
from serving import DAY

from pericard import canonical, sealed
from pericard.audit import records
from pericard.errors import PericardError
from pericard.keys import PublisherKey
from pericard.sealed import layout, notice, read_grants, write_grants
from pericard.trust import TrustState, TrustStore


@pytest.fixture
def place(tmp_path: Path) -> serving.Site:
    """A hospital that serves version 3, which withdrew everything below 2."""
    made = serving.Site(tmp_path / "place")
    starts(made, made.seal(version="3.0.0", sequence=3, floor=2))
    return made


@pytest.fixture
def stranger(tmp_path: Path) -> PublisherKey:
    return PublisherKey.generate(tmp_path / "stranger.key")


def starts(place: serving.Site, *models: Path, synchronised: bool = True) -> None:
    with place.engine(*models, started=False, synchronised=synchronised):
        pass


def refused(place: serving.Site, *models: Path) -> str:
    """The code of the refusal; the log says it too."""
    with pytest.raises(PericardError) as caught:
        starts(place, *models)
    *_, (_, record) = records(place.folder / "audit")
    assert record["event"] in {"model-refused", "notice-refused", "trust-refused"}
    assert record.get("code", caught.value.code) == caught.value.code
    return caught.value.code


# --- a state that is put back


def old_version(place: serving.Site) -> Path:
    return place.seal(version="1.0.0", sequence=1)


def remove(path: Path, _: bytes) -> None:
    path.unlink()


def restore(path: Path, older: bytes) -> None:
    path.write_bytes(older)


def edit(path: Path, _: bytes) -> None:
    state = TrustState(path).current
    path.write_bytes(dataclasses.replace(state, floors=dict.fromkeys(state.floors, 0)).encode())


def turn_back(path: Path, _: bytes) -> None:
    path.write_bytes(dataclasses.replace(TrustState(path).current, latest_time=1).encode())


def empty(path: Path, _: bytes) -> None:
    path.write_bytes(canonical.encode({"format": "pericard/trust-state/v1", "floors": {}, "latest_time": 0}))


@pytest.mark.parametrize("attack", [remove, restore, edit, turn_back, empty], ids=lambda attack: attack.__name__)
def test_a_state_that_is_not_the_last_recorded_one_starts_nothing_until_a_reset(
    place: serving.Site, attack: Callable[[Path, bytes], None]
) -> None:
    older = (place.folder / "trust.json").read_bytes()
    newest = place.seal(version="5.0.0", sequence=5, floor=4)
    place.notice(3)
    starts(place, newest)
    attack(place.folder / "trust.json", older)

    assert refused(place, newest) == "trust-state-invalid"
    assert refused(place, old_version(place)) == "trust-state-invalid"  # above all not the old version

    (place.folder / "server.yaml").write_text("models: [ecg-anomaly.sealed]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pericard", "trust", "reset", "--config", place.folder / "server.yaml",
         "--reason", "a test restored it"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    newest = place.seal(version="5.0.0", sequence=5, floor=4)
    starts(place, newest)
    events = [str(record["event"]) for _, record in records(place.folder / "audit")]
    assert events.count("trust-refused") == 2
    assert events.count("trust-reset") == 1
    assert refused(place, old_version(place)) == "version-withdrawn"


def test_the_file_of_just_before_the_last_change_gains_nothing(place: serving.Site) -> None:
    """It looks like a crash between record and file; so the recorded change is made again."""
    path = place.folder / "trust.json"
    newest = place.seal(version="5.0.0", sequence=5)
    before = path.read_bytes()
    place.notice(5)
    starts(place, newest, synchronised=False)
    path.write_bytes(before)

    assert refused(place, place.seal(version="4.0.0", sequence=4)) == "version-withdrawn"
    starts(place, place.seal(version="5.0.0", sequence=5))


KILLED = """
import os, signal, sys
from pathlib import Path
import msgspec
from pericard.engine.main import Engine
from pericard.engine.values import EngineValues
from pericard.keys import Identity, LogKey
from pericard import durable

folder, when = Path(sys.argv[1]), sys.argv[2]
real = durable.replace
def replace(path, data, **options):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data, **options)
    os.kill(os.getpid(), signal.SIGKILL)
durable.replace = replace
values = msgspec.json.decode(sys.stdin.read(), type=EngineValues)
Engine(values, Identity.read(folder / "identity.key"), LogKey.read(folder / "log.key"), synchronised=lambda: False)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_between_record_and_file_the_floor_is_raised_all_the_same(place: serving.Site, when: str) -> None:
    import msgspec

    newest = place.seal(version="5.0.0", sequence=5, floor=5)
    path = place.folder / "trust.json"
    before = path.read_bytes()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, place.folder, when],
        input=msgspec.json.encode(place.engine_values(newest)), timeout=90, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert (path.read_bytes() == before) == (when == "before")

    assert refused(place, place.seal(version="4.0.0", sequence=4)) == "version-withdrawn"
    assert TrustState(path).current.floor(place.vendor.publisher.id, "ecg-anomaly") == 5


def test_the_clock_set_far_ahead_ends_licences_only_while_it_is(
    place: serving.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For good it is believed only when synchronised, and by a day at a start."""
    path = place.seal(sequence=3, not_after=int(time.time()) + 30 * DAY)
    real = time.time
    for synchronised in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: real() + 20 * DAY)
            starts(place, path, synchronised=synchronised)
        latest = TrustState(place.folder / "trust.json").latest_time
        assert latest <= real() + (DAY if synchronised else 0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 40 * DAY)
        assert refused(place, path) == "licence-expired"
    starts(place, path)


def test_the_clock_set_back_brings_no_licence_back(place: serving.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    path = place.seal(sequence=3, not_before=now - 30 * DAY, not_after=now - 10)
    monkeypatch.setattr(time, "time", lambda: float(now - 20 * DAY))
    assert refused(place, path) == "licence-expired"


# --- withdrawn by a notice


def test_what_a_notice_withdrew_stays_withdrawn_when_the_notice_is_gone(place: serving.Site) -> None:
    told = place.notice(3)
    assert refused(place, place.seal(version="2.0.0", sequence=2)) == "version-withdrawn"
    told.unlink()

    assert refused(place, place.seal(version="2.0.0", sequence=2)) == "version-withdrawn"
    starts(place, place.seal(version="3.0.0", sequence=3))


def test_a_notice_by_a_stranger_starts_nothing(place: serving.Site, stranger: PublisherKey) -> None:
    path = place.seal(sequence=3)
    told = place.notice(3, signer=stranger)
    assert refused(place, path) == "untrusted-publisher"

    genuine = notice.make(place.vendor, "ecg-anomaly", floor=3, issued=1)
    for spoiled, code in (
        (genuine.replace(b'"floor":3', b'"floor":9'), "bad-signature"),
        (genuine[:-1], "bad-notice"),
        (genuine + b"\0", "bad-notice"),
        (genuine[:4] + b"[" + genuine[5:], "bad-signature"),
        (b"", "bad-notice"),
    ):
        told.write_bytes(spoiled)
        assert refused(place, path) == code
    told.write_bytes(genuine)
    starts(place, path)


def test_a_pinned_vendor_withdraws_its_own_models_and_no_other_vendors(
    place: serving.Site, stranger: PublisherKey
) -> None:
    TrustStore(place.folder / "publishers.json").add("other", stranger.publisher, now=1)
    place.notice((1 << 53) - 1, signer=stranger)
    starts(place, place.seal(version="3.0.0", sequence=3))
    assert refused(place, place.seal(version="9", sequence=9, signer=stranger)) == "version-withdrawn"


# --- keys that change


def test_a_changed_key_cannot_bring_a_withdrawn_version_back(place: serving.Site, stranger: PublisherKey) -> None:
    """Whoever stole the vendor's *new* key seals the old version again under it."""
    place.notice(3)
    starts(place, place.seal(version="3.0.0", sequence=3))
    store = TrustStore(place.folder / "publishers.json")
    store.add("vendor", stranger.publisher, now=1)
    again = place.seal(version="2.0.0", sequence=2, signer=stranger)
    assert refused(place, again) == "version-withdrawn"
    store.add("vendor", place.vendor.publisher, now=1, until=int(time.time()) - DAY)
    (place.folder / "ecg-anomaly-3.notice").rename(place.folder / "kept")
    assert refused(place, again) == "version-withdrawn"
    starts(place, place.seal(version="3.0.1", sequence=3, signer=stranger))


def test_a_stolen_key_that_raised_its_floor_to_the_sky_is_undone_by_removing_it(
    place: serving.Site, stranger: PublisherKey
) -> None:
    store = TrustStore(place.folder / "publishers.json")
    store.add("vendor", stranger.publisher, now=1)
    sky = place.notice((1 << 53) - 1, signer=stranger)
    path = place.seal(version="3.0.0", sequence=3)
    assert refused(place, path) == "version-withdrawn"
    sky.unlink()
    assert refused(place, path) == "version-withdrawn"

    store.remove(stranger.publisher.id)
    starts(place, path)


def test_a_key_that_ended_withdraws_nothing_new(place: serving.Site, stranger: PublisherKey) -> None:
    store = TrustStore(place.folder / "publishers.json")
    store.add("vendor", stranger.publisher, now=1)
    old = place.notice(3, signer=stranger)
    path = place.seal(version="3.0.0", sequence=3)
    starts(place, path)
    store.add("vendor", stranger.publisher, now=1, until=int(time.time()) - DAY)
    starts(place, path)  # what it said while it was trusted may lie on
    old.unlink()
    place.notice((1 << 53) - 1, signer=stranger)
    assert refused(place, path) == "untrusted-publisher"


def test_a_store_that_others_may_write_is_not_believed(place: serving.Site) -> None:
    (place.folder / "publishers.json").chmod(0o666)
    with pytest.raises(PericardError, match="others may write it"):
        starts(place, place.seal(sequence=3))


# --- grants dropped beside a model


def drop(place: serving.Site, body: bytes, signatures: object, name: str = "ecg-anomaly.x.grant") -> None:
    path = place.folder / name
    path.unlink(missing_ok=True)
    write_grants(path, (layout.pack_grant(body, signatures),))  # type: ignore[arg-type]  # whatever an attacker has


def test_a_grant_with_altered_dates_is_refused(place: serving.Site, stranger: PublisherKey) -> None:
    now = int(time.time())
    path = place.seal(sequence=3, not_before=now - 9 * DAY, not_after=now - DAY)
    granted = place.grant(path, "kept.bin", not_after=now - DAY)
    ((body, signatures),) = read_grants(granted)
    fields = json.loads(body)
    for changes in ({"not_after": now + 999 * DAY}, {"grace_days": 366}, {"not_before": 0}, {"recipient": "00" * 32}):
        longer = canonical.encode(fields | changes)
        for by in (signatures, stranger.sign(layout.GRANT_DOMAIN, longer), signatures[:1], ()):
            drop(place, longer, by)
            assert refused(place, path) == "bad-signature"
    drop(place, body, signatures)
    assert refused(place, path) == "licence-expired"  # genuine, and over


def test_another_files_grant_is_refused(place: serving.Site) -> None:
    path, other = place.seal(sequence=3), place.seal("other")
    genuine = place.grant(other, "kept.bin", not_after=int(time.time()) + DAY)
    genuine.rename(place.folder / "ecg-anomaly.x.grant")
    assert refused(place, path) == "bad-grant"


def test_a_grant_by_another_publisher_is_refused(place: serving.Site, stranger: PublisherKey) -> None:
    """Also by one that is pinned, and also by a hospital that knows the file key."""
    path = place.seal(sequence=3)
    granted = place.grant(path, "kept.bin", not_after=int(time.time()) + DAY)
    ((body, _),) = read_grants(granted)
    drop(place, body, stranger.sign(layout.GRANT_DOMAIN, body))
    assert refused(place, path) == "bad-signature"
    TrustStore(place.folder / "publishers.json").add("other", stranger.publisher, now=1)
    assert refused(place, path) == "bad-signature"


def test_a_grant_for_somebody_else_gives_us_nothing(place: serving.Site) -> None:
    now = int(time.time())
    path = place.seal(sequence=3, not_before=now - 9 * DAY, not_after=now - DAY)
    other = serving.Site(place.folder / "other")
    with sealed.SealedModel(path) as source:
        recipient = other.identity.recipient
        term = sealed.Term(recipient, now - DAY, now + DAY, 0)
        made = source.verify([place.vendor.publisher]).grant(place.identity, place.vendor, [term])
    write_grants(place.folder / "ecg-anomaly.grant", made)
    assert refused(place, path) == "licence-expired"


def test_what_is_dropped_beside_a_model_cannot_hold_the_engine_up(place: serving.Site) -> None:
    path = place.seal(sequence=3)
    os.mkfifo(place.folder / "ecg-anomaly.grant")
    assert refused(place, path) == "bad-grant"
    (place.folder / "ecg-anomaly.grant").unlink()
    os.mkfifo(place.folder / "x.notice")
    assert refused(place, path) == "bad-notice"
    (place.folder / "x.notice").unlink()
    with (place.folder / "ecg-anomaly.grant").open("wb") as file:
        file.truncate(1 << 40)
    assert refused(place, path) == "bad-grant"
