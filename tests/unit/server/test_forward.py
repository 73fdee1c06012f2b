"""Records on their way out: at least once, in order, never before they are durable, from a cursor that survives."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pericard.audit import AuditLog
from pericard.errors import AuditLogInvalid, ConfigError
from pericard.forward import Cursor, lines, send_lines
from pericard.keys import LogKey


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog.open(tmp_path / "audit", key=LogKey(bytes(range(64)))) as opened:
        yield opened


def write(log: AuditLog, *numbers: int) -> None:
    for number in numbers:
        log.commit([{"event": "predict", "number": number}])
    log.publish()


def sent(out: io.BytesIO) -> list[int]:
    return [json.loads(line)["number"] for line in out.getvalue().splitlines()]


def forward(folder: Path) -> list[int]:
    out = io.BytesIO()
    send_lines(folder / "audit", folder / "cursor", out, follow=False)
    return sent(out)


def test_each_record_once_and_then_the_new_ones(log: AuditLog, tmp_path: Path) -> None:
    write(log, 0, 1, 2)
    assert forward(tmp_path) == [0, 1, 2]
    assert forward(tmp_path) == []
    write(log, 3, 4)
    assert forward(tmp_path) == [3, 4]
    assert (tmp_path / "cursor").read_text() == "5\n"


def test_a_line_is_the_record_in_its_canonical_form(log: AuditLog, tmp_path: Path) -> None:
    log.commit([{"event": "refused", "address": "2001:db8::1", "name": "Zoë"}])
    log.publish()
    out = io.BytesIO()
    send_lines(tmp_path / "audit", tmp_path / "cursor", out, follow=False)

    (line,) = out.getvalue().splitlines()
    assert line.isascii()
    assert json.loads(line)["name"] == "Zoë"
    assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode()
    assert json.loads(line)["index"] == 0  # by which a collector knows a repetition


def test_what_is_not_published_stays_here(log: AuditLog, tmp_path: Path) -> None:
    write(log, 0)
    log.commit([{"event": "predict", "number": 1}])

    assert forward(tmp_path) == [0]
    log.publish()
    assert forward(tmp_path) == [1]


def test_many_records_go_in_groups(log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_GROUP", 3)
    log.commit([{"event": "predict", "number": number} for number in range(10)])
    log.publish()

    assert forward(tmp_path) == list(range(10))


class Broken(io.BytesIO):
    """A collector that takes lines and goes away before it took them for certain."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def flush(self) -> None:
        self._after -= 1
        if self._after < 0:
            raise BrokenPipeError


def test_what_a_collector_did_not_take_for_certain_is_sent_again(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_GROUP", 2)
    write(log, *range(5))
    broken = Broken(after=1)

    with pytest.raises(BrokenPipeError):
        send_lines(tmp_path / "audit", tmp_path / "cursor", broken, follow=False)

    again = forward(tmp_path)
    assert again == [2, 3, 4]
    assert sorted(set(sent(broken) + again)) == list(range(5))  # none is missing, some came twice


def test_a_cursor_that_cannot_be_written_costs_a_repetition(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, 0, 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pericard.durable.os.fsync", full)
        with pytest.raises(ConfigError, match="no space left"):
            forward(tmp_path)

    assert not list(tmp_path.glob(".cursor*"))
    assert forward(tmp_path) == [0, 1]


def test_following_waits_for_what_comes(log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_POLL_SECONDS", 0.01)
    write(log, 0)
    read, written = os.pipe()
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            with os.fdopen(written, "wb") as out:
                send_lines(tmp_path / "audit", tmp_path / "cursor", out, follow=True)
        except BrokenPipeError:
            return
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            failures.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    with os.fdopen(read, "rb") as received:
        assert json.loads(received.readline())["number"] == 0
        write(log, 1)
        assert json.loads(received.readline())["number"] == 1
        write(log, 2, 3)
        assert [json.loads(received.readline())["number"] for _ in range(2)] == [2, 3]
    end = time.monotonic() + 10
    while thread.is_alive() and time.monotonic() < end:
        write(log, 4)
        thread.join(0.05)

    assert not thread.is_alive()
    assert failures == []


def test_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditLogInvalid):
        send_lines(tmp_path / "missing", tmp_path / "cursor", io.BytesIO(), follow=False)
    assert not (tmp_path / "cursor").exists()


# --- the cursor -------------------------------------------------------------------------------------------------------


def test_no_cursor_is_the_beginning(tmp_path: Path) -> None:
    assert Cursor(tmp_path / "cursor").position == 0


def test_the_cursor_is_kept(tmp_path: Path) -> None:
    cursor = Cursor(tmp_path / "cursor")
    for position in (1, 7, 10**15):
        cursor.advance(position)
        assert cursor.position == position == Cursor(tmp_path / "cursor").position
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]


@pytest.mark.parametrize("text", [b"", b"\n", b"-1", b"1.5", b"x", b"1 2", b"9" * 21, b"\xff", b"\xd9\xa3", b"0x1"])
def test_a_damaged_cursor_is_not_guessed(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "cursor").write_bytes(text)

    with pytest.raises(ConfigError, match="cursor"):
        Cursor(tmp_path / "cursor")


def test_a_cursor_in_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Cursor(tmp_path / "missing" / "cursor").advance(1)
    with pytest.raises(ConfigError):
        Cursor(tmp_path)


def test_a_cut_write_leaves_the_old_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = Cursor(tmp_path / "cursor")
    cursor.advance(5)

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pericard.durable.os.fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cursor.advance(6)

    assert Cursor(tmp_path / "cursor").position == cursor.position == 5
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]
