"""A real rsyslogd with the shipped configuration: what was acknowledged is stored, however often it is killed."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import collector
import pytest
from collector import Authority, Rsyslog

from pericard.audit import AuditLog, Head, default_origin, open_head
from pericard.audit.proof import leaf_hash
from pericard.audit.reading import raw_records
from pericard.errors import CollectorUnavailable
from pericard.forward import Cursor, Forwarder, gaps, main
from pericard.keys import LogKey

KEY = LogKey(bytes(range(64)))
KILLS = 10


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def rsyslog(authority: Authority, tmp_path: Path) -> Iterator[Rsyslog]:
    found = Rsyslog(authority, tmp_path / "rsyslog")
    yield found
    found.kill()


def stored(rsyslog: Rsyslog) -> dict[int, bytes]:
    """The records that the collector has, by index; a line that a kill cut is no record."""
    found: dict[int, bytes] = {}
    for line in rsyslog.lines():
        about = re.search(r'\[pericard@32473 idx="(\d+)" leaf="([0-9a-f]{64})"', line)
        try:
            body = json.loads(line[line.index("] {") + 2 :])
        except ValueError:
            continue
        if about is not None:
            raw = body["raw_data"].encode()
            assert leaf_hash(raw).hex() == about[2]
            assert found.setdefault(int(about[1]), raw) == raw
    return found


def _believed(signed: bytes) -> Head:
    return open_head(signed, default_origin(KEY.verifier), KEY.verifier)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_the_shipped_configuration_stores_records_and_heads(
    rsyslog: Rsyslog, authority: Authority, tmp_path: Path
) -> None:
    rsyslog.check()
    rsyslog.start()
    with AuditLog.open(tmp_path / "audit", key=KEY) as log:
        log.commit([{"event": "start", "words": 'a\\"]\t\né' + "x" * 50_000}])  # longer than syslog usually has it
        log.commit([{"event": "predict", "outcome": "ok"}] * 300)
        log.publish()
        Forwarder(collector.values(authority, tmp_path, rsyslog.port)).run(threading.Event(), follow=False)
        head = log.publish()
    assert stored(rsyslog) == dict(raw_records(tmp_path / "audit"))
    heads = [json.loads(line[line.index("] {") + 2 :]) for line in rsyslog.lines() if " checkpoint [" in line]
    assert head is not None
    assert [body["raw_data"] for body in heads] == [head.decode()]


def test_only_the_sender_that_is_named_is_taken(rsyslog: Rsyslog, authority: Authority, tmp_path: Path) -> None:
    rsyslog.start()
    with AuditLog.open(tmp_path / "audit", key=KEY) as log:
        log.commit([{"event": "predict"}])
    certificate, key = authority.issue("somebody-else")
    for changes in (
        {"certificate": str(certificate), "key": str(key)},  # vouched for, and not named
        {"name": "siem.example"},  # and the other way round
    ):
        told = collector.values(authority, tmp_path, rsyslog.port, **changes)
        with pytest.raises(CollectorUnavailable):
            Forwarder(told).run(threading.Event(), follow=False)
        assert Cursor(Path(told.cursor)).position == 0
    assert stored(rsyslog) == {}


def test_a_collector_killed_ten_times_under_load_has_every_record(
    rsyslog: Rsyslog, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_LONGEST_PAUSE", 0.4)
    rng = random.Random(10)
    rsyslog.start()
    written = threading.Event()
    told = collector.values(authority, tmp_path, rsyslog.port)
    forwarder = Forwarder(told)
    stopping = threading.Event()
    with AuditLog.open(tmp_path / "audit", key=KEY, segment_bytes=200_000) as log:

        def load() -> None:
            while not written.is_set():
                log.commit([{"event": "predict", "outcome": "ok", "words": "x" * 100}] * 8)
                log.publish()
                written.wait(0.004)

        threads = [
            threading.Thread(target=load, daemon=True),
            threading.Thread(target=forwarder.run, args=(stopping,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        for _ in range(KILLS):
            before = forwarder.status.sent
            until(lambda sent=before: forwarder.status.sent > sent)  # it takes records when it is killed
            time.sleep(rng.uniform(0.0, 0.2))
            rsyslog.kill()
            rsyslog.start()
        written.set()
        threads[0].join(10)
        until(lambda: Cursor(Path(told.cursor)).position == log.next_index)
        stopping.set()
        threads[1].join(30)
        assert not any(thread.is_alive() for thread in threads)
    everything = dict(raw_records(tmp_path / "audit"))
    found = stored(rsyslog)
    assert sorted(everything.keys() - found.keys()) == []
    assert found == everything
    (seen,) = gaps.check(rsyslog.lines(), open_head=_believed)
    assert (seen.records, seen.covered) == (len(everything), len(everything))
    assert seen.whole, seen
    assert seen.heads > 1, "heads came while records did"
    assert forwarder.status.sessions > KILLS, "it was cut off each time"
    assert len(everything) > 1000
