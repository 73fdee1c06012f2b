"""The trust state and the audit log in step: recorded first, then written; and what a crash left is finished."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pericard.audit import AuditLog, latest, records
from pericard.engine.journal import TrustJournal
from pericard.errors import AuditUnavailable, LogTruncated, TrustStateInvalid
from pericard.keys import LogKey
from pericard.trust import Remembered, TrustState

VENDOR = "aa" * 32
NOW = 1_790_000_000
KEY = LogKey(bytes(range(64)))


class Place:
    """One site's log and state, opened and closed like a daemon's."""

    def __init__(self, folder: Path) -> None:
        self.audit, self.path = folder / "audit", folder / "trust.json"
        self._log: AuditLog | None = None

    def open(self) -> TrustJournal:
        self.close()
        self._log = AuditLog.open(self.audit, key=KEY, segment_bytes=8192)
        return TrustJournal(self.audit, self._log, TrustState(self.path))

    def start(self) -> TrustJournal:
        """As an engine starts."""
        journal = self.open()
        journal.settle()
        self.log.commit([{"event": "start", "trust_state": journal.state.current.digest}])
        return journal

    @property
    def log(self) -> AuditLog:
        assert self._log is not None
        return self._log

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def records(self) -> list[dict[str, Any]]:
        return [dict(record) for _, record in records(self.audit)]


@pytest.fixture
def place(quick: Path) -> Iterator[Place]:
    made = Place(quick)
    yield made
    made.close()


def raised(journal: TrustJournal, floor: int) -> Remembered:
    return journal.state.current.with_floor(VENDOR, "ecg", floor)


def test_a_change_is_recorded_before_it_is_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = place.start()
    before = journal.state.current
    seen: list[dict[str, Any]] = []
    real = TrustState.commit

    def commit(state: TrustState, proposed: Remembered) -> None:
        seen.extend(place.records()[-1:])  # what is durable by now
        real(state, proposed)

    monkeypatch.setattr(TrustState, "commit", commit)
    journal.change(raised(journal, 7), notice="ecg.notice")

    (record,) = seen
    assert (record["event"], record["notice"]) == ("trust-state", "ecg.notice")
    assert (record["previous"], record["trust_state"]) == (before.digest, journal.state.current.digest)
    assert record["change"] == {"floors": {f"{VENDOR}/ecg": "7"}}
    assert TrustState(place.path).current == journal.state.current == raised(journal, 7)


def test_what_changes_nothing_is_not_recorded(place: Place) -> None:
    journal = place.start()
    journal.change(raised(journal, 7))
    size = place.log.next_index
    journal.change(raised(journal, 7))
    journal.change(raised(journal, 6))
    assert place.log.next_index == size


def test_restarts_go_on_where_they_were(place: Place) -> None:
    for floor in range(1, 6):
        journal = place.start()
        assert journal.state.current.floor(VENDOR, "ecg") == floor - 1
        journal.change(raised(journal, floor))
        journal.change(journal.state.current.with_time(NOW + floor))
    assert place.start().state.latest_time == NOW + 5


def test_an_empty_log_accepts_any_state(place: Place) -> None:
    TrustState(place.path).commit(Remembered({f"{VENDOR}/ecg": 3}, NOW))
    assert place.start().state.current.floor(VENDOR, "ecg") == 3


def test_a_log_that_never_spoke_of_a_state_is_not_an_empty_one(place: Place) -> None:
    place.open()
    place.log.commit([{"event": "other"}])
    with pytest.raises(TrustStateInvalid):
        place.start()


# --- crashes


@pytest.mark.parametrize("event", ["trust-state", "clock-accepted"])
def test_a_crash_between_record_and_file_is_recovered(
    place: Place, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = place.start()
    journal.change(raised(journal, 7))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrustState, "commit", killed)
        change = {
            "trust-state": lambda: journal.change(raised(journal, 9).with_time(NOW)),
            "clock-accepted": lambda: journal.accept_time(NOW),
        }[event]
        with pytest.raises(KeyboardInterrupt):
            change()
    assert TrustState(place.path).current == raised(journal, 7)  # the file is as it was

    journal = place.open()
    journal.settle()
    assert journal.state.latest_time == NOW
    assert journal.state.current.floor(VENDOR, "ecg") == (9 if event == "trust-state" else 7)
    assert TrustState(place.path).current == journal.state.current
    place.start()  # and again, now that nothing is left to do


def test_a_crash_before_the_first_file_is_recovered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = place.start()
    with monkeypatch.context() as patch:
        patch.setattr(TrustState, "commit", lambda *_: None)
        journal.change(raised(journal, 4))
    assert not place.path.exists()
    assert place.start().state.current.floor(VENDOR, "ecg") == 4


def test_a_disk_that_was_full_for_the_file_alone_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = place.start()
    with monkeypatch.context() as patch:
        patch.setattr("pericard.durable.os.fsync", full)
        for floor in (3, 4):  # recorded twice, written never
            with pytest.raises(TrustStateInvalid, match="cannot be written: no space"):
                journal.change(raised(journal, floor))
    assert journal.state.current.floor(VENDOR, "ecg") == 0  # not believed in memory either

    assert place.start().state.current.floor(VENDOR, "ecg") == 4


def test_without_the_log_nothing_is_changed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = place.start()
    before = journal.state.current
    with monkeypatch.context() as patch:
        patch.setattr("pericard.audit.log.os.fdatasync", full)
        for change in (lambda: journal.change(raised(journal, 3)), lambda: journal.reset("x")):
            with pytest.raises(AuditUnavailable):
                change()
    assert journal.state.current is before
    assert not place.path.exists()
    place.start()


@pytest.mark.parametrize(
    "change", [None, "x", 5, {"floors": {"x": 1}}, {"floors": 1}, {"latest_time": "x"}, {"latest_time": 9}, {}], ids=str
)
def test_a_recorded_change_that_does_not_lead_there_is_refused(place: Place, change: object) -> None:
    journal = place.start()
    digest = journal.state.current.digest
    place.log.commit([{"event": "trust-state", "trust_state": "ab" * 32, "previous": digest, "change": change}])
    with pytest.raises(TrustStateInvalid, match="newest change"):
        place.start()


# --- a state that is not the recorded one


def spoil(place: Place, how: str, older: bytes) -> None:
    if how == "removed":
        place.path.unlink()
    elif how == "an older copy":
        place.path.write_bytes(older)
    else:
        state = TrustState(place.path).current
        floors = {key: floor - 1 for key, floor in state.floors.items()}
        place.path.write_bytes(dataclasses.replace(state, floors=floors).encode())


@pytest.fixture(params=["removed", "an older copy", "edited"])
def spoiled(request: pytest.FixtureRequest, place: Place) -> Callable[[], TrustJournal]:
    """A site whose state is not the one that was recorded; gives the journal, not yet settled."""
    journal = place.start()
    journal.change(raised(journal, 2))
    older = place.path.read_bytes()
    journal.change(raised(journal, 8))
    journal.change(journal.state.current.with_time(NOW))
    for number in range(200):  # several segments further on
        place.log.commit([{"event": "predict", "text": '{"trust_state":"' + "00" * 32 + '"}', "number": number}])
    spoil(place, request.param, older)
    return place.open


def test_another_state_is_refused_recorded_and_accepted_by_a_reset_alone(
    spoiled: Callable[[], TrustJournal], place: Place
) -> None:
    for _ in range(2):
        with pytest.raises(TrustStateInvalid, match="is not what the audit log recorded last") as caught:
            spoiled().settle()
        assert caught.value.hint is not None
        assert "pericard trust reset" in caught.value.hint
    refused = place.records()[-1]
    assert refused["event"] == "trust-refused"
    assert refused["found"] != refused["recorded"]

    spoiled().reset("restored from the backup of Monday")
    record = place.records()[-1]
    assert (record["event"], record["reason"]) == ("trust-reset", "restored from the backup of Monday")
    assert (record["previous"], record["trust_state"]) == (refused["recorded"], refused["found"])
    journal = place.start()
    journal.change(raised(journal, 11))
    assert place.start().state.current.floor(VENDOR, "ecg") == 11


def test_a_reset_cannot_be_turned_back_by_the_file_from_before(place: Place) -> None:
    journal = place.start()
    journal.change(raised(journal, 8))
    before = place.path.read_bytes()
    place.path.unlink()
    place.open().reset("begin anew")
    place.path.write_bytes(before)  # its digest is the reset's ``previous``, and there is no change to make again
    with pytest.raises(TrustStateInvalid):
        place.start()


def test_an_operator_may_set_the_time_either_way(place: Place) -> None:
    journal = place.start()
    journal.change(journal.state.current.with_time(NOW))
    for moment in (NOW - 900 * 86_400, NOW + 900 * 86_400):
        assert journal.accept_time(moment) == moment
        record = place.records()[-1]
        assert (record["event"], record["to"]) == ("clock-accepted", moment)
        assert record["trust_state"] == journal.state.current.digest
    assert place.start().state.latest_time == NOW + 900 * 86_400


# --- the newest record


def test_the_newest_record_is_found_from_the_end(place: Place) -> None:
    assert latest_of(place) is None
    place.open()
    place.log.commit([{"event": "a", "trust_state": "1"}, {"event": "a", "trust_state": "2"}, {"event": "b"}])
    for number in range(300):
        place.log.commit([{"event": "b", "inner": {"trust_state": number}}])  # not the record's own member
    assert latest_of(place) == 1
    assert len(list(place.audit.glob("*.log"))) > 5
    place.log.commit([{"event": "a", "trust_state": "3"}])
    assert latest_of(place) == 303
    place.close()
    assert latest_of(place) == 303
    assert latest(place.audit, "missing") is None


def latest_of(place: Place) -> int | None:
    place.audit.mkdir(exist_ok=True)
    found = latest(place.audit, "trust_state")
    return None if found is None else found[0]


def test_only_what_must_be_read_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.open()
    for number in range(300):
        place.log.commit([{"event": "a", "trust_state": str(number)}])
    from pericard.audit.segment import Segment

    reads: list[int] = []
    real = Segment.read
    monkeypatch.setattr(Segment, "read", lambda part, *which: reads.append(part.first) or real(part, *which))
    assert latest_of(place) == 299
    assert len(reads) <= 2


def test_a_missing_segment_on_the_way_is_damage(place: Place) -> None:
    place.open()
    place.log.commit([{"event": "a", "trust_state": "1"}])
    for number in range(300):
        place.log.commit([{"event": "b", "number": number}])
    place.close()
    sorted(place.audit.glob("*.log"))[2].unlink()
    with pytest.raises(LogTruncated, match="their segment is missing"):
        latest_of(place)
