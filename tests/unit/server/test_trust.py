"""What a site decides: dates, grace, floors, runtime; and what it remembers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pericard.environment import Cuda, Host
from pericard.errors import (
    LicenceExpired,
    LicenceNotYetValid,
    NoGrant,
    PericardError,
    RuntimeNotAllowed,
    TrustStateInvalid,
    UntrustedPublisher,
    VersionWithdrawn,
)
from pericard.keys import Identity, PublisherKey
from pericard.sealed import Grant, HostBounds, Notice, SealedModel, Term, VerifiedModel, version
from pericard.trust import Licence, Pin, Pins, Policy, Remembered, TrustState, clock

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
    policy.state.commit(policy.state.current.with_time(now + 100 * DAY))

    assert policy.licence_time(now) == now + 100 * DAY
    with pytest.raises(LicenceExpired):
        policy.accept(model, identity.recipient.id, now)


def test_a_model_may_demand_a_runtime(opened: Open, policy: Policy, identity: Identity, now: int) -> None:
    assert policy.accept(opened(required_runtime=RUNTIME), identity.recipient.id, now)
    with pytest.raises(RuntimeNotAllowed, match="is licensed for runtime efefefefefefefef, this is abababababababab"):
        policy.accept(opened(required_runtime="ef" * 32), identity.recipient.id, now)


BOUNDS = HostBounds(("avx2", "fma"), "550.54", "12.4", "9.1")
SUITS = Host(frozenset({"avx2", "fma", "sse2"}), Cuda("550.54.15", "12.4", "9.10.2"))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (SUITS, None),
        (replace(SUITS, cuda=None), None),  # it computes on the CPU: the other bounds are none of its business
        (replace(SUITS, cuda=Cuda("1000", "13", "10")), None),
        (replace(SUITS, flags=frozenset({"fma"})), "needs a CPU with avx2, which this one lacks"),
        (Host(), "needs a CPU with avx2, fma, which this one lacks"),
        (None, "needs a CPU with avx2, fma, which this one lacks"),
        (
            replace(SUITS, cuda=Cuda("535.183.1", "12.4", "9.10.2")),
            "needs the NVIDIA driver 550.54 or later, this host",
        ),
        (replace(SUITS, cuda=Cuda("550.54", "12.3", "9.1")), "needs CUDA 12.4 or later, this host has 12.3"),
        (replace(SUITS, cuda=Cuda("550.54", "12.4", "9.0.9")), "needs cuDNN 9.1 or later, this host has 9.0.9"),
        (replace(SUITS, cuda=Cuda()), "needs the NVIDIA driver 550.54 or later, this host has none that can be told"),
    ],
)
def test_a_model_may_bound_the_host(
    opened: Open, policy: Policy, identity: Identity, now: int, publisher_key: PublisherKey, host: Host | None,
    words: str | None,
) -> None:  # fmt: skip
    site = Policy(Pins.of(publisher_key.publisher), policy.state, runtime=RUNTIME, host=host)
    bounded = opened(required_host=BOUNDS)
    if words is None:
        assert site.accept(bounded, identity.recipient.id, now)
        return
    with pytest.raises(RuntimeNotAllowed, match=words) as caught:
        site.accept(bounded, identity.recipient.id, now)
    assert caught.value.hint
    assert site.accept(opened(), identity.recipient.id, now)  # what asks for nothing is served anywhere


def test_versions_are_compared_as_numbers() -> None:
    assert version("12.10") > version("12.9")
    assert version("9") == version("9.0.0")
    assert version("550.054") == version("550.54")
    assert version("0") == ()


# --- withdrawn versions


def test_a_version_below_the_floor_never_comes_back(
    opened: Open, policy: Policy, identity: Identity, publisher_key: PublisherKey, now: int, tmp_path: Path
) -> None:
    older, newer = opened(version="1.0.3", sequence=3, floor=2), opened(version="1.1", sequence=5, floor=4)
    assert policy.accept(older, identity.recipient.id, now)
    policy.accept(newer, identity.recipient.id, now)
    assert policy.accept(older, identity.recipient.id, now)  # the floor rises only once the new one has served
    policy.state.commit(policy.taught(newer))

    restarted = Policy(Pins.of(publisher_key.publisher), TrustState(tmp_path / "trust.json"), runtime=RUNTIME)
    for site in (policy, restarted):
        with pytest.raises(VersionWithdrawn, match=r"version 1\.0\.3 \(sequence 3\) was withdrawn") as caught:
            site.accept(older, identity.recipient.id, now)
        assert caught.value.hint == "install a version with sequence 4 or later"
        assert site.accept(newer, identity.recipient.id, now)
        assert site.accept(opened(sequence=4, floor=0), identity.recipient.id, now)


def test_a_floor_is_for_one_publisher_and_one_model() -> None:
    state = Remembered().with_floor("aa" * 32, "ecg", 7)

    assert state.floor("aa" * 32, "ecg") == 7
    assert state.floor("bb" * 32, "ecg") == state.floor("aa" * 32, "ecg-2") == 0


def rotated(policy: Policy, *keys: PublisherKey, until: int | None = None) -> Policy:
    """The same site with these keys under one name; ``until`` ends the first."""
    pins = [Pin("vendor", key.publisher, 0, None if place else until) for place, key in enumerate(keys)]
    return Policy(Pins(pins), policy.state, runtime=RUNTIME)


def test_a_new_key_of_a_vendor_brings_no_withdrawn_version_back(
    seal_bytes: Callable[..., Path], policy: Policy, identity: Identity, publisher_key: PublisherKey,
    foreign_key: PublisherKey, now: int,
) -> None:  # fmt: skip
    policy.state.commit(policy.state.current.with_floor(publisher_key.publisher.id, "tiny", 9))
    with SealedModel(seal_bytes(b"plain", sequence=8, signer=foreign_key)) as source:
        again = source.verify([foreign_key.publisher])
        with pytest.raises(VersionWithdrawn):
            rotated(policy, publisher_key, foreign_key).accept(again, identity.recipient.id, now)
        with pytest.raises(VersionWithdrawn):  # also when the old key ended
            rotated(policy, publisher_key, foreign_key, until=now - 1).accept(again, identity.recipient.id, now)
        # a key that was removed says nothing any more, and another vendor's never did
        assert rotated(policy, foreign_key).accept(again, identity.recipient.id, now)
        others = Pins.of(publisher_key.publisher, foreign_key.publisher)
        assert Policy(others, policy.state, runtime=RUNTIME).accept(again, identity.recipient.id, now)


def test_a_key_is_trusted_until_its_last_second(
    opened: Open, policy: Policy, identity: Identity, publisher_key: PublisherKey, foreign_key: PublisherKey, now: int
) -> None:
    site = rotated(policy, publisher_key, foreign_key, until=now + 5)

    assert site.accept(opened(), identity.recipient.id, now + 5)
    with pytest.raises(UntrustedPublisher, match=r"by a key of vendor that this site trusted until 2026-09-21"):
        site.accept(opened(), identity.recipient.id, now + 6)
    site.state.commit(site.state.current.with_time(now + 6))
    with pytest.raises(UntrustedPublisher):  # nor with the clock set back
        site.accept(opened(), identity.recipient.id, now)


def test_a_key_that_nobody_pinned_is_refused_here_too(
    opened: Open, policy: Policy, identity: Identity, foreign_key: PublisherKey, now: int
) -> None:
    with pytest.raises(UntrustedPublisher):
        rotated(policy, foreign_key).accept(opened(), identity.recipient.id, now)


def test_a_notice_counts_at_once_and_never_lowers(
    policy: Policy, publisher_key: PublisherKey, foreign_key: PublisherKey, now: int
) -> None:
    def told(site: Policy, floor: int) -> Remembered:
        return site.withdrawn(Notice(publisher_key.publisher.id, "tiny", floor, now), now, subject="it")

    policy.state.commit(told(policy, 5))
    assert policy.floor(publisher_key.publisher.id, "tiny") == 5
    assert told(policy, 4) == told(policy, 5) == policy.state.current
    ended = rotated(policy, publisher_key, foreign_key, until=now - 1)
    assert told(ended, 5) == policy.state.current  # one that lay there before the key ended may lie on
    with pytest.raises(UntrustedPublisher):
        told(ended, 6)


# --- what is remembered


def test_floors_and_time_only_rise(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    for floor, time in ((5, 100), (3, 50), (5, 100)):
        state.commit(state.current.with_floor("aa" * 32, "ecg", floor).with_time(time))

    found = TrustState(tmp_path / "trust.json").current
    assert (found.floor("aa" * 32, "ecg"), found.latest_time) == (5, 100)
    assert found.digest == state.current.digest == hashlib.sha256((tmp_path / "trust.json").read_bytes()).hexdigest()


def test_time_rises_by_a_day_a_step_after_the_first() -> None:
    state = Remembered().with_time(1_000_000)
    assert state.latest_time == 1_000_000
    assert state.with_time(4_000_000_000).latest_time == 1_086_400  # one start with a clock far ahead


def test_proposing_changes_nothing(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    before = state.current
    before.with_floor("aa" * 32, "ecg", 3).with_time(5)

    assert state.current is before
    assert (before.floors, before.latest_time) == ({}, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_change_is_not_written_again(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    state.commit(state.current.with_time(100))
    before = (tmp_path / "trust.json").stat().st_ino
    assert state.current.with_time(99) is state.current
    assert state.current.with_floor("aa" * 32, "ecg", 0) is state.current
    state.commit(state.current)

    assert (tmp_path / "trust.json").stat().st_ino == before


def test_a_change_makes_the_one_from_the_other() -> None:
    before = Remembered({"aa" * 32 + "/ecg": 3, "bb" * 32 + "/ecg": 1}, 5)
    for after in (
        before,
        before.with_time(9),
        before.with_floor("aa" * 32, "ecg", 4),
        before.with_floor("cc" * 32, "new", 1).with_time(10),
        before.with_floor("cc" * 32, "new", (1 << 53) - 1),
    ):
        assert before.changed(after.change(before)) == after
        assert len({before.digest, after.digest}) == 1 + (after is not before)
    assert before.with_floor("aa" * 32, "ecg", 4).change(before) == {"floors": {"aa" * 32 + "/ecg": "4"}}
    assert before.change(before) == {}


@pytest.mark.parametrize(
    "change",
    [{"latest_time": "5"}, {"latest_time": -1}, {"latest_time": True}, {"latest_time": 1 << 40}, {"other": 1},
     {"floors": []}, {"floors": {"ecg": "1"}}, {"floors": {"aa" * 32 + "/ecg": 1}},
     {"floors": {"aa" * 32 + "/ecg": "-1"}}, {"floors": {"aa" * 32 + "/ecg": str(1 << 53)}},
     {"floors": {"aa" * 32 + "/ecg": "9" * 5000}}],
    ids=str,
)  # fmt: skip
def test_what_is_no_change_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"has a bad|is no change"):
        Remembered().changed(change)


def test_the_file_is_its_owners_and_stands_alone(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "new" / "trust.json")
    state.commit(state.current.with_time(100))

    assert stat.S_IMODE((tmp_path / "new" / "trust.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["trust.json"]


def test_a_full_disk_leaves_the_old_state_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    state = TrustState(path)
    state.commit(state.current.with_floor("aa" * 32, "ecg", 1))
    before = path.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(TrustStateInvalid, match="cannot be written: file too large"):
            state.commit(state.current.with_floor("aa" * 32, "ecg", 2))
        with pytest.raises(TrustStateInvalid, match="cannot be written"):
            state.commit(state.current.with_time(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {"trust.json": before}
    assert (state.current.floor("aa" * 32, "ecg"), state.latest_time) == (1, 0)
    state.commit(state.current.with_floor("aa" * 32, "ecg", 2))
    assert TrustState(path).current.floor("aa" * 32, "ecg") == 2


def test_a_state_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    state = TrustState(tmp_path / "trust.json")
    many = {f"{number:064x}/{'m' * 64}": 1 for number in range(8000)}

    with pytest.raises(TrustStateInvalid, match="would be larger"):
        state.commit(Remembered(many))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(TrustStateInvalid, match="cannot be read: not a directory"):
        TrustState(tmp_path / "file" / "trust.json")
    state = TrustState(tmp_path / "gone" / "trust.json")
    (tmp_path / "gone").write_text("")
    with pytest.raises(TrustStateInvalid, match="cannot be written"):
        state.commit(state.current.with_time(1))


# --- the clock


def test_whether_the_clock_is_synchronised_is_the_kernels_word() -> None:
    """Held against a second way to ask, where there is one."""
    assert clock.synchronised() in {True, False}
    asked = (
        shutil.which("timedatectl")
        and subprocess.run(
            ["timedatectl", "show", "-p", "NTPSynchronized"], capture_output=True, text=True, timeout=10, check=False
        ).stdout.strip()
    )
    if asked:
        assert asked == f"NTPSynchronized={'yes' if clock.synchronised() else 'no'}"


@pytest.mark.parametrize(
    ("state", "status", "expected"),
    [(0, 0x2001, True), (0, 0, True), (1, 0x1, True), (4, 0, True), (0, 0x40, False), (5, 0x40, False), (5, 0, False),
     (-1, 0, False)],
)  # fmt: skip
def test_what_the_kernel_says_is_understood(
    state: int, status: int, monkeypatch: pytest.MonkeyPatch, *, expected: bool
) -> None:
    class Kernel:
        def __init__(self, *_: object, **__: object) -> None: ...

        def adjtimex(self, found: Any) -> int:
            assert found._obj.modes == 0  # nothing is set
            found._obj.status = status
            return state

    monkeypatch.setattr(clock.ctypes, "CDLL", Kernel)
    assert clock.synchronised() is expected


def test_where_nobody_can_be_asked_the_clock_is_not_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock.ctypes, "CDLL", lambda *_, **__: object())
    assert clock.synchronised() is False


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
        canonical(GOOD | {"latest_time": 1 << 40}),
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
    assert not re.search(r"line \d|char \d|Expecting|Extra data", caught.value.message)  # the parser's own words


def test_a_good_state_is_read(tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_bytes(canonical(GOOD))

    state = TrustState(tmp_path / "trust.json")
    assert (state.current.floor("aa" * 32, "ecg"), state.latest_time) == (3, 5)


def test_a_state_that_several_processes_share_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    one, other = TrustState(path), TrustState(path)
    other.merge(other.current.with_floor("ab" * 32, "ecg", 9).with_time(50))
    one.merge(one.current.with_floor("ab" * 32, "beat", 2).with_time(40))
    one.merge(one.current.with_floor("ab" * 32, "ecg", 3))

    assert one.current == TrustState(path).current
    assert (one.current.floor("ab" * 32, "ecg"), one.current.floor("ab" * 32, "beat")) == (9, 2)
    assert one.latest_time == 50


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_the_state_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trust.json")
    with pytest.raises(TrustStateInvalid, match="not a regular file"):
        TrustState(tmp_path / "trust.json")
    (tmp_path / "large.json").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(TrustStateInvalid, match="larger than"):
        TrustState(tmp_path / "large.json")
