"""The forwarder against a played collector: at least once, in order, never beyond what is published, whoever breaks."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import collector
import msgspec
import pytest
from collector import Authority, Played, played
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from speaking import Say

from pericard.audit import AuditLog, note
from pericard.audit.proof import leaf_hash
from pericard.audit.reading import raw_records
from pericard.confinement import landlock
from pericard.engine.forwarding import Forwarding
from pericard.errors import CollectorUnavailable, ConfigError, LogTruncated, PericardError
from pericard.forward import Cursor, Forwarder, ForwardValues, main, message, status_path
from pericard.keys import LogKey

KEY = LogKey(bytes(range(64)))
MESSAGE = re.compile(
    rb"<(\d+)>1 (\S+) (\S+) pericard - (\S+) \[pericard@32473 ([^]]*)\] (\{.*\})", re.DOTALL
)  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog.open(tmp_path / "audit", key=KEY, segment_bytes=4000) as opened:
        yield opened


def write(log: AuditLog, count: int, size: int = 1, **fields: object) -> None:
    for _ in range(count):
        log.commit([{"event": "predict", "outcome": "ok", **fields}] * size)
    log.publish()


def taken(collector: Played, kind: str | None = None) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Structured data and body of what was acknowledged, records only unless another kind is named."""
    found = []
    for data in collector.taken:
        parts = MESSAGE.fullmatch(data)
        assert parts, data
        about = dict(re.findall(r'(\w+)="([^"]*)"', parts[5].decode()))
        if ("idx" in about) if kind is None else (parts[4].decode() == kind):
            found.append((about, json.loads(parts[6])))
    return found


def indices(collector: Played) -> list[int]:
    return [int(about["idx"]) for about, _ in taken(collector)]


def forward(told: ForwardValues) -> Forwarder:
    """Forward what is there; what breaks raises."""
    forwarder = Forwarder(told)
    forwarder.run(threading.Event(), follow=False)
    return forwarder


def status(folder: Path) -> dict[str, Any]:
    return json.loads(status_path(folder / "forward/cursor").read_bytes())


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_every_record_once_in_order_and_then_the_head(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 30, 3)
    with played(authority) as there:
        told = collector.values(authority, tmp_path, there.port)
        forward(told)
        assert indices(there) == list(range(90))
        assert Cursor(Path(told.cursor)).position == 90
        heads = taken(there, "checkpoint")
        assert [body["raw_data"].encode() for _, body in heads] == [log.publish()]
        assert there.taken[-1].find(b"checkpoint") > 0, "the head comes after all that it covers"
        write(log, 2)
        forward(told)
    assert indices(there) == list(range(92))
    assert there.sessions == 2


def test_a_message_holds_the_record_byte_for_byte_and_says_which_it_is(
    log: AuditLog, tmp_path: Path, authority: Authority
) -> None:
    log.commit([
        {"event": "predict", "outcome": "not-interpretable", "principal": "cart", "credential": "c1",
         "address": "10.0.0.7", "request": 'r"]1\\', "model": {"name": "ecg", "version": "1.0", "manifest": "ab"}},
        {"event": "refused", "code": "unauthenticated", "address": "10.0.0.9", "count": 7},
        {"event": "of-tomorrow", "name": "Zoë"},
    ])  # fmt: skip
    log.publish()
    with played(authority) as there:
        forward(collector.values(authority, tmp_path, there.port))
    raws = [raw for _, raw in raw_records(tmp_path / "audit")]
    for (about, body), raw, index in zip(taken(there), raws, range(3), strict=True):
        leaf = leaf_hash(raw).hex()
        assert about == {"idx": str(index), "leaf": leaf, "origin": log.origin}
        assert body["raw_data"].encode() == raw
        assert (body["metadata"]["uid"], body["metadata"]["sequence"]) == (leaf, index)
    predict, refused, unknown = (body for _, body in taken(there))
    assert (predict["class_uid"], predict["status_id"], predict["status_code"]) == (6003, 2, "not-interpretable")
    assert predict["actor"]["user"]["name"] == "cart"
    assert predict["resources"] == [{"type": "model", "name": "ecg", "version": "1.0", "uid": "ab"}]
    assert (refused["class_uid"], refused["type_uid"], refused["count"]) == (3002, 300201, 7)
    assert (unknown["class_uid"], unknown["activity_name"]) == (0, "of-tomorrow")
    for data in there.taken:
        assert data.isascii()
        assert b"\n" not in data


def test_a_name_cannot_end_a_field() -> None:
    sender = message.Sender('o"]\\', "1", "host")
    raw = b'{"event":"a b]","index":0,"time":"2026-11-29T00:00:00.000000Z","v":1}'
    data = message.of_record(0, raw, sender)
    assert b'origin="o\\"\\]\\\\"] {' in data
    assert b" pericard - ab] [" in data


def test_nothing_goes_beyond_the_published_head(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 3)
    log.commit([{"event": "predict"}])
    with played(authority) as there:
        told = collector.values(authority, tmp_path, there.port)
        forward(told)
        assert indices(there) == [0, 1, 2]
        log.publish()
        forward(told)
    assert indices(there) == [0, 1, 2, 3]


def test_the_head_comes_again_while_nothing_happens(
    log: AuditLog, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_POLL_SECONDS", 0.01)
    write(log, 1)
    with played(authority) as there:
        told = collector.values(authority, tmp_path, there.port, checkpoint_seconds=0.05)
        with running(told):
            until(lambda: len(taken(there, "checkpoint")) >= 3)
            write(log, 1)
            until(lambda: indices(there) == [0, 1])
        assert indices(there) == [0, 1]
        assert [int(about["size"]) for about, _ in taken(there, "checkpoint")][-1] == 2, "the last word is a head"


# --- whoever breaks ---------------------------------------------------------------------------------------------------


class running:  # noqa: N801  (a context manager)
    """A forwarder on a thread, told to stop at the end."""

    def __init__(self, told: ForwardValues) -> None:
        self.forwarder = Forwarder(told)
        self._stopping = threading.Event()
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.forwarder.run(self._stopping)
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            self._failure.append(error)

    def __enter__(self) -> Forwarder:
        self._thread.start()
        return self.forwarder

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self._failure == []


def until(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_what_was_not_acknowledged_is_sent_again(
    log: AuditLog, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(main, "_WINDOW_RECORDS", 8)
    write(log, 40)
    seen: list[int] = []

    def behave(connection: ssl.SSLSocket, number: int, command: bytes, data: bytes) -> bool:
        if command != b"syslog":
            return False
        seen.append(number)
        if len(seen) % 7 == 3:  # took it and dies before it says so
            there.taken.append(data)
            connection.close()
            raise OSError
        if len(seen) % 7 == 5:  # dies before it took it
            connection.close()
            raise OSError
        return False

    with played(authority, behave) as there, running(collector.values(authority, tmp_path, there.port)) as forwarder:
        until(lambda: set(indices(there)) == set(range(40)))
        assert forwarder.status.sessions > 3
    first = list(dict.fromkeys(indices(there)))
    assert first == sorted(first), "in order, but for repetitions"
    assert Cursor(tmp_path / "forward/cursor").position == 40


ANSWERS = {
    "refuses": b"%d rsp 9 500 full!\n",
    "ends the session": b"0 serverclose 0\n",
    "answers what was not asked": b"77%d rsp 6 200 OK\n",
    "does not speak RELP": b"HTTP/1.1 400 Bad Request\r\n\r\n%d",
    "goes on without end": b"%d rsp 999999 200 OK",
    "has no newline": b"%d rsp 6 200 OK!",
    "has a long head": b"%d" + b"1" * 60,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_no_acknowledgement_moves_nothing(
    log: AuditLog, tmp_path: Path, authority: Authority, answer: bytes
) -> None:
    write(log, 3)

    def behave(connection: ssl.SSLSocket, number: int, command: bytes, _: bytes) -> bool:
        if command == b"syslog":
            connection.sendall(answer % number if b"%d" in answer else answer)
        return command == b"syslog"

    with played(authority, behave) as there:
        told = collector.values(authority, tmp_path, there.port)
        with pytest.raises(CollectorUnavailable, match=r"^collector 127\.0\.0\.1 port \d+: "):
            forward(told)
    assert Cursor(Path(told.cursor)).position == 0
    assert status(tmp_path)["error"] == "collector-unavailable"
    assert status(tmp_path)["oldest"] == pytest.approx(time.time(), abs=60)


def test_a_collector_that_says_nothing_is_not_waited_for(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 3)
    with played(authority, lambda _, __, command, ___: command == b"syslog") as there:
        told = collector.values(authority, tmp_path, there.port, timeout_seconds=0.3)
        with pytest.raises(CollectorUnavailable, match="did not answer in time"):
            forward(told)


def test_who_is_not_who_they_should_be_gets_nothing(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 3)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "impostor")
    with played(other) as impostor:
        with pytest.raises(CollectorUnavailable, match="certificate is not accepted"):
            forward(collector.values(authority, tmp_path, impostor.port))
        assert impostor.taken == []
    with played(authority) as there:
        with pytest.raises(CollectorUnavailable, match="certificate is not accepted: hostname mismatch"):
            forward(collector.values(authority, tmp_path, there.port, name="siem.example"))
        with pytest.raises(CollectorUnavailable):  # the collector does not know who signed for us
            forward(collector.values(other, tmp_path, there.port, ca=str(authority.path)))
        assert there.taken == []


def test_an_old_tls_is_refused(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 1)
    with played(authority) as there:
        there._tls.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(CollectorUnavailable, match="tls failed"):
            forward(collector.values(authority, tmp_path, there.port))


def test_nobody_there_is_said_and_waited_for_with_a_growing_pause(
    log: AuditLog, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_FIRST_PAUSE", 0.01)
    write(log, 3)
    with played(authority) as gone:
        pass
    told = collector.values(authority, tmp_path, gone.port)
    with running(told):
        until(lambda: status_path(Path(told.cursor)).exists() and bool(status(tmp_path)["error"]))
        assert (status(tmp_path)["error"], status(tmp_path)["connected"]) == ("collector-unavailable", False)
        assert (status(tmp_path)["published"], status(tmp_path)["cursor"]) == (3, 0)
    with pytest.raises(CollectorUnavailable, match="connection refused"):
        Forwarder(told).run(threading.Event(), patience=0.0)


def test_a_log_that_lost_what_was_sent_is_said(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 3)
    with played(authority) as there:
        told = collector.values(authority, tmp_path, there.port)
        Cursor(Path(told.cursor)).advance(10)
        with pytest.raises(LogTruncated, match="10 were sent already"):
            forward(told)
        assert there.taken == []
    assert status(tmp_path)["missing"] == 7


def test_records_that_are_gone_are_said_and_not_skipped(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 60)
    first, *_ = sorted((tmp_path / "audit").glob("*.log"))
    first.unlink()
    with played(authority) as there:
        with pytest.raises(LogTruncated):
            forward(collector.values(authority, tmp_path, there.port))
        assert there.taken == []
    assert status(tmp_path)["missing"] == 60


def test_two_forwarders_do_not_share_a_cursor(
    log: AuditLog, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pericard.durable._LOCK_SECONDS", 0.05)
    write(log, 1)
    with played(authority) as there:
        told = collector.values(authority, tmp_path, there.port)
        with running(told):
            until(lambda: indices(there) == [0])
            with pytest.raises(ConfigError, match="another process"):
                forward(told)


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
def test_certificates_that_are_none_are_named(tmp_path: Path, authority: Authority, name: str) -> None:
    told = collector.values(authority, tmp_path, 1)
    (tmp_path / "nonsense").write_text("nonsense")
    for path in ("nonsense", "missing"):
        with pytest.raises(ConfigError, match=r"forward\.(ca|certificate)"):
            Forwarder(msgspec.structs.replace(told, **{name: str(tmp_path / path)}))


def test_an_empty_log_is_nothing_to_do(tmp_path: Path, authority: Authority) -> None:
    with AuditLog.open(tmp_path / "audit", key=KEY), played(authority) as there:
        forward(collector.values(authority, tmp_path, there.port))
        assert there.sessions == 0
    with pytest.raises(PericardError):
        forward(msgspec.structs.replace(collector.values(authority, tmp_path, 1), directory=str(tmp_path / "none")))


def test_a_long_log_is_read_once(
    log: AuditLog, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window goes on where the last one ended; the segments together are read about once."""
    write(log, 20, 50)
    read: list[int] = []
    pread = main.Tail._bytes
    monkeypatch.setattr(main.Tail, "_bytes", lambda self, size: (read.append(len(data := pread(self, size))), data)[1])
    with played(authority) as there:
        forward(collector.values(authority, tmp_path, there.port))
    assert indices(there) == list(range(1000))
    written = sum(path.stat().st_size for path in (tmp_path / "audit").glob("*.log"))
    assert sum(read) < 2 * written


def test_by_hand_it_goes_to_the_collector_that_the_configuration_names(
    log: AuditLog, tmp_path: Path, authority: Authority, say: Say
) -> None:
    write(log, 5)
    certificate, key = authority.issue("by-hand")
    with played(authority) as there:
        forward = {
            "host": "127.0.0.1", "port": there.port, "name": "localhost", "ca": str(authority.path),
            "certificate": str(certificate), "key": str(key),
        }  # fmt: skip
        (tmp_path / "server.yaml").write_text(json.dumps({"models": ["a"], "forward": forward}))
        said = say("audit", "forward", "--config", tmp_path / "server.yaml")
        assert (said.status, said.out) == (0, ""), said
        assert said.err == "5 records acknowledged; the next one is 5\n"
        assert indices(there) == list(range(5))
    assert (tmp_path / "forward/cursor").read_text() == "5\n"
    for words in ((), (tmp_path,), (tmp_path, "--cursor", "c", "--config", "x")):
        assert say("audit", "forward", *words).status == 2


CONFINED = """
import os, socket, ssl, sys
from pathlib import Path
from pericard import confinement
folder = Path(sys.argv[1])
confinement.shed(readable=[folder / "audit"], writable=[folder / "forward"])
(folder / "forward/new").write_text("1")
os.replace(folder / "forward/new", folder / "forward/cursor")
print((folder / "audit/record").read_text())
with socket.create_server(("127.0.0.1", 0)) as there:
    socket.create_connection(there.getsockname()).close()
ssl.create_default_context()
for name, mode in (("log.key", "r"), ("audit/record", "a"), ("audit/new", "w"), ("new", "w")):
    try:
        open(folder / name, mode).close()
    except PermissionError:
        print("refused")
"""


def test_the_process_reads_the_log_and_no_key(tmp_path: Path) -> None:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock; capabilities are all that can be given up")
    for name in ("audit", "forward"):
        (tmp_path / name).mkdir()
    (tmp_path / "audit/record").write_text("the record")
    (tmp_path / "log.key").write_text("secret")
    done = subprocess.run(
        [sys.executable, "-I", "-c", CONFINED, tmp_path], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.split("\n") == ["the record", *["refused"] * 4, ""], done.stderr


# --- the metrics ------------------------------------------------------------------------------------------------------


def metrics(path: Path, size: int) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(Forwarding(path, lambda: size))
    lines = generate_latest(registry).decode().splitlines()
    found = (line.removeprefix("pericard_forward_").split() for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in found}


def test_the_metrics_say_how_far_it_is(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 4)
    path = status_path(tmp_path / "forward/cursor")
    nothing = metrics(path, 4)
    assert (nothing["up"], nothing["lag_records"], nothing["oldest_unsent_seconds"]) == (0, 4, 0)
    with played(authority) as there:
        told = collector.values(authority, tmp_path, there.port)
        with running(told):
            until(lambda: path.exists() and status(tmp_path)["cursor"] == 4)
            assert metrics(path, 4) == {
                "up": 1, "lag_records": 0, "oldest_unsent_seconds": 0, "missing_records": 0,
                "sent_records_total": 4, "sessions_total": 1,
            }  # fmt: skip
    assert metrics(path, 4)["up"] == 0, "it said goodbye"
    found = json.loads(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**found, "time": time.time() - 1000, "connected": True}))
    stale = metrics(path, 9)
    assert (stale["up"], stale["lag_records"]) == (0, 5)
    assert stale["oldest_unsent_seconds"] == pytest.approx(1000, abs=5)
    for damaged in (b"", b"{", b"[]", b'{"time": "x"}', b"x" * 5000):
        path.write_bytes(damaged)
        assert metrics(path, 9)["up"] == 0


def test_what_is_forwarded_is_what_the_log_published(log: AuditLog, tmp_path: Path, authority: Authority) -> None:
    write(log, 1)
    signed = note.load(tmp_path / "audit")
    assert signed is not None
    data = message.of_head(signed, message.Sender.here(log.origin, "1"), 1_790_000_000.25)
    assert data.startswith(b"<110>1 2026-09-21T14:13:20.250000Z ")
    body = json.loads(data[data.index(b"] {") + 2 :])
    assert (body["count"], body["raw_data"].encode()) == (1, signed)
