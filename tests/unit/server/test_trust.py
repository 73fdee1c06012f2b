"""What a site decides: dates, grace, floors, runtime; and what it remembers."""

from __future__ import annotations

import json
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pericard.errors import (
    LicenceExpired,
    LicenceNotYetValid,
    NoGrant,
    PericardError,
    RuntimeNotAllowed,
    TrustStateInvalid,
    VersionWithdrawn,
)
from pericard.keys import Identity, PublisherKey
from pericard.sealed import Grant, SealedModel, Term, VerifiedModel
from pericard.trust import Licence, Policy, TrustState

DAY = 86_400
BEGIN, END = 1_000 * DAY, 1_030 * DAY
RUNTIME = "ab" * 32
Open = Callable[..., VerifiedModel]


def licence(*, grace_days: int = 14, begin: int = BEGIN, end: int = END) -> Licence:
    return Licence(Grant("00" * 32, "00" * 32, begin, end, grace_days, b""))


@pytest.fixture
def opened(seal_bytes: Callable[..., Path], publisher_key: PublisherKey) -> Open:
    """Seal something and verify it: ``opened(sequence=4, floor=2, terms=…)``."""

    def run(**changes: Any) -> VerifiedModel:
        with SealedModel(seal_bytes(b"plain", **changes)) as source:
            return source.verify([publisher_key.publisher])

    return run


# --- a licence's life


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (BEGIN, "valid"),
        (END, "valid"),
        (END + 1, "grace"),
        (END + 14 * DAY, "grace"),
    ],
)
def test_a_licence_is_valid_then_in_grace(now: int, expected: str) -> None:
    assert licence().state(now) == expected


def test_before_its_first_second_a_licence_is_not_valid() -> None:
    with pytest.raises(LicenceNotYetValid, match="licence: begins on 1972-09-27") as caught:
        licence().state(BEGIN - 1)

    assert caught.value.hint == "check the host's clock, then the vendor"


@pytest.mark.parametrize(("grace_days", "over"), [(14, END + 14 * DAY + 1), (0, END + 1)])
def test_after_its_grace_a_licence_has_expired(grace_days: int, over: int) -> None:
    with pytest.raises(LicenceExpired, match=f"licence: ended on 1972-10-27 and {grace_days} grace days later"):
        licence(grace_days=grace_days).state(over)


def test_a_date_that_no_calendar_holds_is_still_said() -> None:
    with pytest.raises(LicenceNotYetValid, match="begins on 9999-12-31"):
        licence(begin=(1 << 40) - 2, end=(1 << 40) - 1).state(0)


@pytest.mark.parametrize(("now", "days"), [(END - DAY, 1.0), (END, 0.0), (END + DAY // 2, -0.5)])
def test_the_days_left_are_counted(now: int, days: float) -> None:
    assert licence().days_left(now) == days


# --- the decision


def test_a_granted_model_is_accepted(opened: Open, policy: Policy, identity: Identity, now: int) -> None:
    accepted = policy.accept(opened(), identity.recipient.id, now)

    assert accepted.grant.recipient == identity.recipient.id
    assert accepted.state(now) == "valid"


def test_no_grant_is_no_licence(opened: Open, policy: Policy, stranger: Identity, now: int) -> None:
    with pytest.raises(NoGrant):
        policy.accept(opened(), stranger.recipient.id, now)


@pytest.mark.parametrize(
    ("days", "error"), [(-2, LicenceNotYetValid), (31 + 14, LicenceExpired), (400, LicenceExpired)]
)
def test_dates_are_held_against_licence_time(
    days: int, error: type[PericardError], opened: Open, policy: Policy, identity: Identity, now: int
) -> None:
    with pytest.raises(error):
        policy.accept(opened(), identity.recipient.id, now + days * DAY)


def test_of_several_grants_the_one_that_lasts_longest_counts(
    opened: Open, policy: Policy, identity: Identity, now: int
) -> None:
    def term(begin: int, end: int) -> Term:
        return Term(identity.recipient, now + begin * DAY, now + end * DAY, 0)

    model = opened(terms=(term(-9, 3), term(-9, 8), term(-9, 5), term(10, 90)))
    assert policy.accept(model, identity.recipient.id, now).grant.not_after == now + 8 * DAY
    assert policy.accept(model, identity.recipient.id, now + 20 * DAY).grant.not_after == now + 90 * DAY
    with pytest.raises(LicenceNotYetValid):  # what begins later says more than what is over
        policy.accept(model, identity.recipient.id, now + 9 * DAY)


def test_the_clock_set_back_does_not_bring_a_licence_back(
    opened: Open, policy: Policy, identity: Identity, now: int
) -> None:
    model = opened()
    policy.served(model, now + 100 * DAY)

    assert policy.licence_time(now) == now + 100 * DAY
    with pytest.raises(LicenceExpired):
        policy.accept(model, identity.recipient.id, now)


def test_a_model_may_demand_a_runtime(opened: Open, policy: Policy, identity: Identity, now: int) -> None:
    assert policy.accept(opened(required_runtime=RUNTIME), identity.recipient.id, now)
    with pytest.raises(RuntimeNotAllowed, match="is licensed for runtime efefefefefefefef, this is abababababababab"):
        policy.accept(opened(required_runtime="ef" * 32), identity.recipient.id, now)


# --- withdrawn versions


def test_a_version_below_the_floor_never_comes_back(
    opened: Open, policy: Policy, identity: Identity, publisher_key: PublisherKey, now: int, tmp_path: Path
) -> None:
    older, newer = opened(version="1.0.3", sequence=3, floor=2), opened(version="1.1", sequence=5, floor=4)
    assert policy.accept(older, identity.recipient.id, now)
    policy.accept(newer, identity.recipient.id, now)
    assert policy.accept(older, identity.recipient.id, now)  # the floor rises only once the new one has served
    policy.served(newer, now)

    restarted = Policy((publisher_key.publisher,), TrustState(tmp_path / "trust.json"), runtime=RUNTIME)
    for site in (policy, restarted):
        with pytest.raises(VersionWithdrawn, match=r"version 1\.0\.3 \(sequence 3\) was withdrawn") as caught:
            site.accept(older, identity.recipient.id, now)
        assert caught.value.hint == "install a version with sequence 4 or later"
        assert site.accept(newer, identity.recipient.id, now)
        assert site.accept(opened(sequence=4, floor=0), identity.recipient.id, now)


def test_a_floor_is_for_one_publisher_and_one_model(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    state.raise_floor("aa" * 32, "ecg", 7)

    assert state.floor("aa" * 32, "ecg") == 7
    assert state.floor("bb" * 32, "ecg") == state.floor("aa" * 32, "ecg-2") == 0


# --- what is remembered


def test_floors_and_time_only_rise(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    for floor, time in ((5, 100), (3, 50), (5, 100)):
        state.raise_floor("aa" * 32, "ecg", floor)
        state.raise_time(time)

    found = TrustState(tmp_path / "trust.json")
    assert (found.floor("aa" * 32, "ecg"), found.latest_time) == (5, 100)
    assert found.digest == state.digest


def test_time_rises_by_a_day_a_step_after_the_first(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    state.raise_time(1_000_000)
    state.raise_time(4_000_000_000)  # one start with a clock far ahead
    assert state.latest_time == 1_086_400


def test_what_does_not_change_is_not_written_again(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    assert not (tmp_path / "trust.json").exists()
    state.raise_time(100)
    before = (tmp_path / "trust.json").stat().st_ino
    state.raise_time(99)
    state.raise_floor("aa" * 32, "ecg", 0)

    assert (tmp_path / "trust.json").stat().st_ino == before


def test_every_change_changes_the_digest(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    digests = {state.digest}
    state.raise_time(100)
    digests.add(state.digest)
    state.raise_floor("aa" * 32, "ecg", 1)
    digests.add(state.digest)

    assert len(digests) == 3


def test_the_file_is_its_owners_and_stands_alone(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "new" / "trust.json")
    state.raise_time(100)

    assert stat.S_IMODE((tmp_path / "new" / "trust.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["trust.json"]


def test_a_full_disk_leaves_the_old_state_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    state = TrustState(path)
    state.raise_floor("aa" * 32, "ecg", 1)
    before = path.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(TrustStateInvalid, match="cannot be written: file too large"):
            state.raise_floor("aa" * 32, "ecg", 2)
        with pytest.raises(TrustStateInvalid, match="cannot be written"):
            state.raise_time(100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {"trust.json": before}
    assert (state.floor("aa" * 32, "ecg"), state.latest_time) == (1, 0)
    state.raise_floor("aa" * 32, "ecg", 2)
    assert TrustState(path).floor("aa" * 32, "ecg") == 2


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(TrustStateInvalid, match="cannot be read: not a directory"):
        TrustState(tmp_path / "file" / "trust.json")
    state = TrustState(tmp_path / "gone" / "trust.json")
    (tmp_path / "gone").write_text("")
    with pytest.raises(TrustStateInvalid, match="cannot be written"):
        state.raise_time(1)


GOOD = {"format": "pericard/trust-state/v1", "floors": {"aa" * 32 + "/ecg": 3}, "latest_time": 5}


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        canonical(GOOD)[:-1],
        canonical(GOOD) + b"\n",
        canonical([GOOD]),
        b"\0" * 100,
        canonical(GOOD | {"format": "pericard/trust-state/v2"}),
        canonical(GOOD | {"extra": 1}),
        canonical({"format": GOOD["format"], "floors": {}}),
        canonical(GOOD | {"latest_time": "5"}),
        canonical(GOOD | {"latest_time": True}),
        canonical(GOOD | {"latest_time": -1}),
        canonical(GOOD | {"floors": []}),
        canonical(GOOD | {"floors": {"ecg": 3}}),
        canonical(GOOD | {"floors": {"aa" * 32 + "/../ecg": 3}}),
        canonical(GOOD | {"floors": {"aa" * 32 + "/ecg": -1}}),
        canonical(GOOD | {"floors": {"aa" * 32 + "/ecg": True}}),
        canonical(GOOD | {"floors": {"aa" * 32 + "/ecg": None}}),
    ],
)
def test_a_damaged_state_is_refused_never_taken_for_an_empty_one(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_bytes(data)

    with pytest.raises(TrustStateInvalid, match=r"trust\.json: ") as caught:
        TrustState(tmp_path / "trust.json")
    assert caught.value.hint is not None
    assert "backup" in caught.value.hint


def test_a_good_state_is_read(tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_bytes(canonical(GOOD))

    state = TrustState(tmp_path / "trust.json")
    assert (state.floor("aa" * 32, "ecg"), state.latest_time) == (3, 5)
