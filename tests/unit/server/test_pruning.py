"""What may be pruned and what may not: by age, by what the collector has, and recorded before it goes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import serving
import yaml
from speaking import Say

from pericard import settings
from pericard.audit import AuditLog, pruned, records
from pericard.audit.verify import verify
from pericard.engine.journal import TrustJournal
from pericard.engine.pruning import Pruner, Retention
from pericard.errors import AuditUnavailable, ConfigError
from pericard.keys import LogKey
from pericard.trust import TrustState

DAY = 86_400
YEAR = 365 * DAY


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A log of a year: a segment or two for each day of writing, the oldest one a year old."""
    key = LogKey.generate(tmp_path / "log.key")
    now = time.time()
    moments = iter([int((now - YEAR + day * DAY) * 1e9) for day in range(0, 365, 5)])
    with AuditLog.open(tmp_path / "audit", key=key, segment_bytes=3000, clock=lambda: next(moments)) as log:
        log.commit([{"event": "start", "trust_state": TrustState(tmp_path / "trust.json").current.digest}])
        for turn in range(72):
            log.commit([{"event": "predict", "turn": turn}] * 5)
    (tmp_path / "server.yaml").write_text("models: [ecg.sealed]\n")
    return tmp_path


def pruned_by(folder: Path, days: int, cursor: Path | None = None) -> tuple[int, list[dict[str, Any]]]:
    """How many records went, and what was recorded."""
    told: list[dict[str, Any]] = []
    return Retention(folder / "audit", days, cursor).prune(told.append, now=time.time()), told


def oldest(folder: Path) -> float:
    """Days since the oldest record that is there."""
    _, record = next(records(folder / "audit"))
    from datetime import datetime

    return (time.time() - datetime.fromisoformat(str(record["time"])).timestamp()) / DAY


def test_what_is_older_than_the_retention_goes_by_segments(hospital: Path) -> None:
    gone, told = pruned_by(hospital, 200)
    assert gone > 0
    assert pruned.beginning(hospital / "audit") == gone
    assert 199 < oldest(hospital) < 230, "nothing younger went, and not much that is older stayed"
    assert told == [
        {"event": "log-pruned", "first": gone, "segments": told[0]["segments"], "retention_days": 200, "floor": "kept"}
    ]
    assert pruned_by(hospital, 200) == (0, [])
    report = verify(hospital / "audit", verifier=LogKey.read(hospital / "log.key").verifier)
    assert (report.size, report.first) == (361, gone)


def test_nothing_goes_that_cannot_be_recorded(hospital: Path) -> None:
    def refuse(_: dict[str, Any]) -> None:
        raise AuditUnavailable("no")

    before = sorted((hospital / "audit").iterdir())
    with pytest.raises(AuditUnavailable):
        Retention(hospital / "audit", 200).prune(refuse, now=time.time())
    assert sorted((hospital / "audit").iterdir()) == before
    Pruner(Retention(hospital / "audit", 200), refuse).look()  # and nobody but the log hears of it
    assert sorted((hospital / "audit").iterdir()) == before


def test_nothing_goes_before_the_collector_has_it(hospital: Path) -> None:
    cursor = hospital / "cursor"
    for text in (None, "0\n", "nonsense", "-5", "99999999999999999999999999999999999999999999999999999999999999999"):
        if text is not None:
            cursor.write_text(text)
        assert pruned_by(hospital, 200, cursor) == (0, [])
    cursor.write_text("40\n")
    gone, _ = pruned_by(hospital, 200, cursor)
    assert 0 < gone <= 40
    cursor.write_text("361\n")
    more, _ = pruned_by(hospital, 200, cursor)
    assert more > 0


def test_a_disk_that_refuses_leaves_a_whole_log(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pericard.durable.os.fsync", full)
        with pytest.raises(AuditUnavailable, match="cannot be pruned: no space left"):
            pruned_by(hospital, 200)
    verifier = LogKey.read(hospital / "log.key").verifier
    assert verify(hospital / "audit", verifier=verifier).first == 0
    assert pruned_by(hospital, 200)[0] > 0
    assert verify(hospital / "audit", verifier=verifier).first > 0


def test_the_trust_state_is_known_though_its_records_went(hospital: Path, say: Say) -> None:
    done = say("audit", "prune", "--config", hospital / "server.yaml", "--days", "183")
    assert done.status == 0, done
    key = LogKey.read(hospital / "log.key")
    newest = [dict(record) for _, record in records(hospital / "audit")][-1]
    assert (newest["event"], newest["floor"]) == ("log-pruned", "kept")
    with AuditLog.open(hospital / "audit", key=key) as log:
        journal = TrustJournal(hospital / "audit", log, TrustState(hospital / "trust.json"))
        journal.settle()
        assert newest["trust_state"] == journal.state.current.digest
    assert pruned.beginning(hospital / "audit") == newest["first"]


def test_fewer_days_than_the_floor_are_asked_for_by_name_and_recorded(hospital: Path, say: Say) -> None:
    words = ("audit", "prune", "--config", hospital / "server.yaml", "--days", "30")
    assert say(*words).status == 2
    assert pruned.beginning(hospital / "audit") == 0
    assert say(*words, "--below-floor").status == 0
    (record,) = [record for _, record in records(hospital / "audit") if record["event"] == "log-pruned"]
    assert (record["retention_days"], record["floor"]) == (30, "undercut")
    assert say("audit", "prune", "--config", hospital / "server.yaml").status == 2, "no days anywhere"


def test_the_settings_hold_the_floor(tmp_path: Path) -> None:
    def load(**audit: object) -> settings.Settings:
        (tmp_path / "server.yaml").write_text(yaml.safe_dump({"models": ["a"], "audit": audit}))
        return settings.load(tmp_path / "server.yaml")

    assert load(retention_days=183).audit.retention_days == 183
    assert load(retention_days=30, retention_below_floor=True).audit.retention_days == 30
    with pytest.raises(ConfigError, match="records stay 183 days at least"):
        load(retention_days=182)
    with pytest.raises(ConfigError):
        load(retention_days=0, retention_below_floor=True)


def test_a_running_engine_prunes_and_goes_on(tmp_path: Path) -> None:
    place = serving.Site(tmp_path / "place")
    path = place.seal()
    moments = iter([int((time.time() - YEAR + day * DAY) * 1e9) for day in range(0, 365, 5)])
    with AuditLog.open(
        place.folder / "audit", key=place.log_key, segment_bytes=3000, clock=lambda: next(moments)
    ) as log:
        log.commit([{"event": "start", "trust_state": TrustState(place.folder / "trust.json").current.digest}])
        for turn in range(60):
            log.commit([{"event": "predict", "turn": turn}] * 5)
    with place.engine(path, retention_days=200) as engine:
        engine.tick()
        deadline = time.monotonic() + 10
        while not pruned.beginning(place.folder / "audit"):
            assert time.monotonic() < deadline, "it did not prune"
            time.sleep(0.02)
    events = [record["event"] for _, record in records(place.folder / "audit")]
    assert events.count("log-pruned") == 1
    assert events[-1] == "stop"
    assert verify(place.folder / "audit", verifier=place.log_key.verifier).first > 0
    with place.engine(path, retention_days=200, started=False):
        pass


CONFINED = """
import sys, time
from pathlib import Path
from pericard import confinement, hardening
from pericard.audit import pruned
from pericard.engine.pruning import Retention
hardening.forbid_temporary_files()
confinement.confine(writable=[Path(sys.argv[1])], require=("seccomp",))
print(Retention(Path(sys.argv[1]), 200).prune(lambda event: None, now=time.time()))
"""


def test_it_is_done_from_inside_the_engines_walls(hospital: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", CONFINED, hospital / "audit"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == pruned.beginning(hospital / "audit") > 0
    assert verify(hospital / "audit", verifier=LogKey.read(hospital / "log.key").verifier).first > 0
