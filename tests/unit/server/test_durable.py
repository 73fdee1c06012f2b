"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from pericard import durable


def test_a_new_file_takes_only_a_free_name(tmp_path: Path) -> None:
    durable.create(tmp_path / "it", b"one", mode=0o640)
    with pytest.raises(FileExistsError):
        durable.create(tmp_path / "it", b"two")

    assert ((tmp_path / "it").read_bytes(), (tmp_path / "it").stat().st_mode & 0o777) == (b"one", 0o640)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_what_fails_half_way_or_too_late_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def interrupted() -> None:
        with durable.creating(tmp_path / "it") as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []

    durable.replace(tmp_path / "it", b"old")
    with pytest.raises(FileExistsError), durable.creating(tmp_path / "it") as out:
        out.write(b"new")
    assert (tmp_path / "it").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_stream_takes_only_a_free_name_when_it_ends(tmp_path: Path) -> None:
    with durable.creating(tmp_path / "it", mode=0o640) as out:
        out.write(b"one")
        assert not (tmp_path / "it").exists()
    with pytest.raises(FileExistsError), durable.creating(tmp_path / "it") as out:
        out.write(b"two")

    assert ((tmp_path / "it").read_bytes(), (tmp_path / "it").stat().st_mode & 0o777) == (b"one", 0o640)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_an_owner_is_given_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    monkeypatch.setattr(os, "chown", None)  # never by a name, which another could have taken
    durable.replace(tmp_path / "it", b"data", owner=(1234, 4321))

    found = (tmp_path / "it").stat()
    assert (found.st_uid, found.st_gid) == (1234, 4321)


@pytest.mark.timeout(20)
def test_reading_is_bounded_and_waits_for_nobody(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")

    assert durable.read(tmp_path / "it", limit=5) == b"12345"
    for path, limit in ((tmp_path / "it", 4), (tmp_path / "pipe", 4), (tmp_path, 4)):
        with pytest.raises(OSError, match=r"larger|regular|directory"):
            durable.read(path, limit=limit)


def test_changes_come_one_after_another_and_a_lock_that_is_never_let_go_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def second() -> None:
        with durable.locked(tmp_path / "it"):
            order.append("second")

    with durable.locked(tmp_path / "it"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.1)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]

    monkeypatch.setattr(durable, "_LOCK_SECONDS", 0.1)
    with durable.locked(tmp_path / "it"), pytest.raises(OSError, match="another process"):
        second()
    assert (tmp_path / ".it.lock").stat().st_mode & 0o777 == 0o600
