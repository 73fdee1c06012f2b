"""``pericard trust`` and ``pericard audit clock``: the hospital's verbs about whom and when it trusts."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from speaking import Say, listing, refused

from pericard.audit import AuditLog, records
from pericard.engine.journal import TrustJournal
from pericard.errors import TrustStateInvalid
from pericard.keys import LogKey, PublisherKey
from pericard.trust import TrustState, TrustStore

DAY = 86_400


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A folder with a configuration, a log key, a vendor's two keys, and no log yet."""
    LogKey.generate(tmp_path / "log.key")
    for name in ("old", "new"):
        PublisherKey.generate(tmp_path / f"{name}.key").publisher.write(tmp_path / f"{name}.pub")
    (tmp_path / "server.yaml").write_text("models: [ecg.sealed]\n")
    return tmp_path


def log(folder: Path) -> AuditLog:
    return AuditLog.open(folder / "audit", key=LogKey.read(folder / "log.key"))


def started(folder: Path) -> None:
    """What a server leaves after it started, learnt a floor and a time, and stopped."""
    with log(folder) as open_log:
        journal = TrustJournal(folder / "audit", open_log, TrustState(folder / "trust.json"))
        journal.settle()
        open_log.commit([{"event": "start", "trust_state": journal.state.current.digest}])
        publisher = TrustStore(folder / "publishers.json").read().publishers[0]
        for number in (6, 7):
            journal.change(journal.state.current.with_floor(publisher.id, "ecg", number))
        journal.change(journal.state.current.with_time(int(time.time())))


def events(folder: Path) -> list[dict[str, Any]]:
    return [dict(record) for _, record in records(folder / "audit")]


@pytest.fixture
def served(hospital: Path, say: Say) -> Path:
    """The same after its first days."""
    store = ["--store", hospital / "publishers.json"]
    assert say("trust", "add", "vendor", hospital / "old.pub", *store).status == 0
    started(hospital)
    return hospital


# --- whom


def test_a_publishers_life(say: Say, hospital: Path) -> None:
    store = ["--store", hospital / "publishers.json"]
    assert say("trust", "list", *store).out == ""
    old = say("trust", "add", "vendor", hospital / "old.pub", *store)
    assert re.fullmatch(r"[0-9a-f]{64}\n", old.out)
    assert "by another channel" in old.err.replace("\n", " ")
    new = say("trust", "add", "vendor", hospital / "new.pub", "--until", "2030-12-31", *store)
    assert "until 2030-12-31" in new.err

    rows = json.loads(say("trust", "list", "--json", *store).out)
    assert {row["id"]: row["until"] for row in rows} == {old.out.strip(): None, new.out.strip(): "2030-12-31"}
    assert {row["name"] for row in rows} == {"vendor"}
    lines = say("trust", "list", *store).out.splitlines()
    assert len(lines) == 2
    assert any("until 2030-12-31" in line for line in lines)
    pin = TrustStore(hospital / "publishers.json").read().get(new.out.strip())
    assert pin is not None
    assert pin.until is not None
    assert pin.until % DAY == DAY - 1  # the whole last day

    assert say("trust", "remove", old.out[:16], *store).status == 0
    assert say("trust", "remove", "vendor", *store).status == 0
    assert say("trust", "list", *store).out == ""
    refused(say("trust", "remove", "vendor", *store), "is not pinned")


def test_what_is_no_publisher_is_not_pinned(say: Say, hospital: Path) -> None:
    before = listing(hospital)
    store = ["--store", hospital / "publishers.json"]
    refused(say("trust", "add", "vendor", hospital / "log.key", *store), "log.key")
    refused(say("trust", "add", "A Vendor", hospital / "old.pub", *store), "publisher name")
    refused(say("trust", "add", "vendor", hospital / "old.pub", "--until", "soon", *store), "soon", status=2)
    assert listing(hospital) == before


def test_the_list_shows_what_was_withdrawn(say: Say, served: Path) -> None:
    said = say("trust", "list", "--config", served / "server.yaml")
    assert said.out.splitlines()[1].strip() == "ecg: withdrawn below sequence 7"
    (row,) = json.loads(say("trust", "list", "--config", served / "server.yaml", "--json").out)
    assert row["floors"] == {"ecg": 7}
    assert say("trust", "list", "--store", served / "publishers.json").out.count("\n") == 1


@pytest.mark.parametrize("how", ["removed", "older"])
def test_the_list_warns_of_a_state_that_no_server_starts_over(say: Say, served: Path, how: str) -> None:
    config = ["--config", served / "server.yaml"]
    assert say("trust", "list", *config).err == ""
    (served / "trust.json").unlink()
    if how == "older":
        TrustState(served / "trust.json").commit(TrustState(served / "trust.json").current.with_time(5))
    said = say("trust", "list", *config)
    assert said.status == 0
    assert ("is missing" if how == "removed" else "is not what the audit log recorded last") in said.err
    (served / "audit").rename(served / "elsewhere")
    assert say("trust", "list", *config).err == ""


# --- what is remembered


def test_a_reset_accepts_the_state_as_it_is_and_says_why(say: Say, served: Path) -> None:
    (served / "trust.json").unlink()
    with pytest.raises(TrustStateInvalid):
        started(served)

    said = say("trust", "reset", "--config", served / "server.yaml", "--reason", "disk replaced, no backup")
    assert said.status == 0, said
    assert "it begins empty" in said.err
    vendor = TrustStore(served / "publishers.json").read().publishers[0].id[:16]
    assert f"forgotten: ecg of {vendor} was withdrawn below sequence 7\n" in said.err
    record = events(served)[-1]
    assert (record["event"], record["reason"]) == ("trust-reset", "disk replaced, no backup")
    assert record["trust_state"] == said.out.strip() == TrustState(served / "trust.json").current.digest
    started(served)


def test_a_reset_takes_a_restored_state(say: Say, served: Path) -> None:
    older = (served / "trust.json").read_bytes()
    with log(served) as open_log:
        journal = TrustJournal(served / "audit", open_log, TrustState(served / "trust.json"))
        journal.change(journal.state.current.with_time(journal.state.latest_time + DAY))
    (served / "trust.json").write_bytes(older)
    # the file from just before the newest change is what a crash leaves: the change is made again, nothing is lost
    assert say("audit", "clock", "--config", served / "server.yaml", "--accept").status == 0
    (served / "trust.json").write_bytes(older)

    said = say("trust", "reset", "--config", served / "server.yaml", "--reason", "restored")
    assert (said.status, "its floors count" in said.err, "forgotten" in said.err) == (0, True, False)
    assert TrustState(served / "trust.json").current.floors != {}
    started(served)


def test_a_damaged_state_is_not_accepted(say: Say, served: Path) -> None:
    (served / "trust.json").write_text("{}")
    size = len(events(served))

    refused(say("trust", "reset", "--config", served / "server.yaml", "--reason", "x"), "trust.json")
    assert len(events(served)) == size


@pytest.mark.parametrize("reason", ["", "a\nb", "x" * 501, "\x1b[31m"])
def test_a_reason_is_a_line(say: Say, served: Path, reason: str) -> None:
    refused(say("trust", "reset", "--config", served / "server.yaml", "--reason", reason), "--reason", status=2)


@pytest.fixture
def running(served: Path) -> Iterator[Path]:
    """A server holds the log."""
    with log(served):
        yield served


@pytest.mark.parametrize("verb", [("trust", "reset", "--reason", "x"), ("audit", "clock", "--accept")])
def test_a_running_server_is_not_changed_under_its_feet(say: Say, running: Path, verb: tuple[str, ...]) -> None:
    before = (running / "trust.json").read_bytes()
    said = say(*verb, "--config", running / "server.yaml")
    refused(said, "another process writes it")
    assert "hint: stop the server first" in said.err
    assert (running / "trust.json").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("verb", [("trust", "reset", "--reason", "x"), ("audit", "clock", "--accept")])
def test_another_user_leaves_no_files_that_the_server_cannot_read(
    say: Say, served: Path, verb: tuple[str, ...]
) -> None:
    os.chown(served / "audit", 65534, 65534)
    before = listing(served)
    said = say(*verb, "--config", served / "server.yaml")

    refused(said, "belongs to another user")
    assert "the server's own user" in said.err
    assert listing(served) == before


def test_changes_are_shown_in_words(say: Say, served: Path) -> None:
    say("trust", "reset", "--config", served / "server.yaml", "--reason", "restored from a backup of Monday")
    lines = say("audit", "show", served / "audit").out.splitlines()

    vendor = TrustStore(served / "publishers.json").read().publishers[0].id[:16]
    assert f" change={{floors:{{{vendor}/ecg:7}}}} " in lines[2]
    assert " reason=restored from a backup of Monday " in lines[-1]


# --- the clock


def test_the_clock_is_shown(say: Say, served: Path) -> None:
    shown = json.loads(say("audit", "clock", "--config", served / "server.yaml", "--json").out)
    assert shown.keys() == {"clock", "recorded", "licence_time", "synchronised"}
    assert shown["licence_time"] == max(shown["clock"], shown["recorded"])
    assert type(shown["synchronised"]) is bool
    lines = say("audit", "clock", "--config", served / "server.yaml").out.splitlines()
    assert [line.split()[0] for line in lines] == list(shown)
    assert lines[3].split()[1] in {"yes", "no"}


def test_before_a_first_start_nothing_is_recorded(say: Say, hospital: Path) -> None:
    shown = json.loads(say("audit", "clock", "--config", hospital / "server.yaml", "--json").out)
    assert shown["recorded"] == "nothing yet"
    assert "audit" not in listing(hospital)


def test_a_recorded_time_that_ran_ahead_is_set_right(say: Say, served: Path) -> None:
    ahead = int(time.time()) + 400 * DAY
    with log(served) as open_log:
        TrustJournal(served / "audit", open_log, TrustState(served / "trust.json")).accept_time(ahead)
    shown = json.loads(say("audit", "clock", "--config", served / "server.yaml", "--json").out)
    assert shown["licence_time"] == shown["recorded"] > shown["clock"]

    said = say("audit", "clock", "--config", served / "server.yaml", "--accept")
    assert said.status == 0, said
    record = events(served)[-1]
    assert (record["event"], record["from"]) == ("clock-accepted", ahead)
    assert abs(record["to"] - time.time()) < 60
    state = TrustState(served / "trust.json").current
    assert (state.latest_time, state.digest) == (record["to"], record["trust_state"])
    started(served)


def test_the_clock_is_not_accepted_over_a_state_that_is_not_the_recorded_one(say: Say, served: Path) -> None:
    (served / "trust.json").unlink()
    refused(say("audit", "clock", "--config", served / "server.yaml", "--accept"), "not what the audit log recorded")
    assert not (served / "trust.json").exists()
