from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pericard.audit import AuditLog, checkpoint, records, segment
from pericard.audit.verify import verify
from pericard.errors import AuditError, AuditLogInvalid, AuditUnavailable, LogTruncated, RecordAltered, SplitView
from pericard.keys import LogKey

Opener = Callable[..., AuditLog]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def names(directory: Path) -> list[object]:
    return [fields["name"] for _, fields in records(directory)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this: writes stop short, then fail (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# -- recovery


def test_opening_refuses_and_touches_nothing_when_published_records_are_gone(
    opened: Opener, quick: Path, key: LogKey
) -> None:
    with opened() as log:
        log.commit([{"name": "a"}])
        cut = (quick / "log" / segment.file_name(0)).stat().st_size
        log.commit([{"name": "b"}])
    path = quick / "log" / segment.file_name(0)
    path.write_bytes(path.read_bytes()[: cut + 40])  # the torn beginning of a group that was durable
    before = files(quick / "log")
    with pytest.raises(LogTruncated, match="records 1 to 1: a signed head covers them and they are gone"):
        opened()
    with pytest.raises(LogTruncated, match="records 1 to 1"):
        verify(quick / "log", verifier=key.verifier)
    assert files(quick / "log") == before
    (quick / "log" / "checkpoint").unlink()  # then nothing in the directory knows of the second record
    with opened() as log:
        assert (log.next_index, log.recovered_bytes) == (1, 40)


def test_opening_refuses_a_checkpoint_of_another_history(opened: Opener, quick: Path, key: LogKey) -> None:
    with opened() as log:
        log.commit([{"name": "a"}])
    note = checkpoint.sign(log.origin, 1, bytes(32), key)
    (quick / "log" / "checkpoint").write_bytes(note)
    with pytest.raises(SplitView, match="head of 1 records: does not belong to this log's history"):
        opened()
    (quick / "log" / "checkpoint").write_bytes(checkpoint.sign(log.origin, 0, bytes(32), key))
    with pytest.raises(SplitView, match="head of 0 records"):
        opened()
    (quick / "log" / "checkpoint").write_bytes(b"garbage")
    with pytest.raises(AuditLogInvalid, match="not a signed checkpoint"):
        opened()


def test_opening_with_another_key_or_name_is_refused(opened: Opener, quick: Path) -> None:
    with opened() as log:
        log.commit([{"name": "a"}])
    (quick / "log" / "checkpoint").unlink()
    with pytest.raises(AuditLogInvalid, match="wanted"):
        opened(key=LogKey(bytes(64)))
    with pytest.raises(AuditLogInvalid, match="not signed by this log key"):
        opened(key=LogKey(bytes(64)), origin=log.origin)
    with pytest.raises(AuditLogInvalid, match="wanted 'another'"):
        opened(origin="another")


def test_opening_checks_every_record_and_the_last_signature(opened: Opener, quick: Path, key: LogKey) -> None:
    with opened() as log:
        for name in range(4):
            log.commit([{"name": name}, {"name": name}])
    path = quick / "log" / segment.file_name(0)
    whole = path.read_bytes()
    (quick / "log" / "checkpoint").unlink()
    parts = list(segment.groups(whole, 0, newest=False))
    other = checkpoint.sign(log.origin, 8, bytes(32), key)
    borrowed = parts[3].head.split(b"\n\n")[0] + b"\n\n" + parts[2].head.split(b"\n\n")[1]
    for at, change, said in (
        (1, {"records": [parts[1].records[0], parts[1].records[0]]}, "records 2 to 3: differ from what was signed"),
        (3, {"head": other}, "records 6 to 7: differ from what was signed"),
        (3, {"head": borrowed}, "records 6 to 7: log head: of 8 records, was altered"),
    ):
        forged = b""
        for place, part in enumerate(parts):
            record_list = change.get("records", part.records) if place == at else part.records
            head = change.get("head", part.head) if place == at else part.head
            forged += b"".join(segment.frame(1, data) for data in record_list) + segment.frame(2, head)
        path.write_bytes(forged)
        with pytest.raises(RecordAltered, match=said):
            opened()
        assert path.read_bytes() == forged


OPERATIONS = st.lists(st.integers(1, 4) | st.sampled_from(["open", "publish", "tear", "zeros", "fail"]), max_size=12)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, data=st.data())
def test_whatever_happens_the_log_is_the_list_of_what_it_acknowledged(
    operations: list[int | str], data: st.DataObject, opened: Opener, quick: Path, key: LogKey
) -> None:
    name = f"model-{len(list(quick.iterdir()))}"
    log = opened(name, segment_bytes=700)
    expected: list[object] = []
    for step, operation in enumerate(operations):
        if isinstance(operation, int):
            group = [f"{step}.{item}" for item in range(operation)]
            entries = log.commit([{"name": item} for item in group])
            assert [entry.index for entry in entries] == list(range(len(expected), len(expected) + operation))
            expected += group
        elif operation == "publish":
            log.publish()
        elif operation == "fail":
            with largest_file(data.draw(st.integers(0, 100))), pytest.raises(AuditUnavailable):
                log.commit([{"name": "never", "long": "x" * 1000}])
            log.reopen()
        else:
            newest = segment.listing(quick / name)[-1].path
            log.close()
            if operation == "tear":
                extra = segment.frame(1, b'{"name":"torn"}') + segment.frame(2, b"never")
                with newest.open("ab") as file:
                    file.write(extra[: data.draw(st.integers(0, len(extra) - 1))])
            if operation == "zeros":
                with newest.open("ab") as file:
                    file.truncate((newest.stat().st_size // 512 + 2) * 512)
            log = opened(name, segment_bytes=700)
        assert log.next_index == len(expected)
    log.close()
    assert names(quick / name) == expected
    if expected:
        assert verify(quick / name, verifier=key.verifier).size == len(expected)


# -- failures


def test_a_full_disk_refuses_until_there_is_space_and_loses_nothing(opened: Opener, quick: Path, key: LogKey) -> None:
    log = opened()
    log.commit([{"name": "a"}])
    used = (quick / "log" / segment.file_name(0)).stat().st_size
    for room in (0, 1, 8, 9, 60, 100, 250):
        with largest_file(used + room):
            with pytest.raises(AuditUnavailable, match=r"cannot be written: (file too large|no space left on device)"):
                log.commit([{"name": "lost", "long": "x" * 300}])
            assert not log.available
            assert (quick / "log" / segment.file_name(0)).stat().st_size == used  # nothing of it is left to be found
            with pytest.raises(AuditUnavailable):
                log.commit([{"name": "small"}])
            with pytest.raises(AuditUnavailable):
                log.publish()
        log.reopen()
        log.commit([{"name": "a"}])
        log.close()
        for path in (quick / "log").iterdir():
            path.unlink()
        log = opened()
        log.commit([{"name": "a"}])
    log.commit([{"name": "b"}])
    assert names(quick / "log") == ["a", "b"]
    assert verify(quick / "log", verifier=key.verifier).size == 2


def test_reopening_on_a_disk_still_full_fails_and_can_be_tried_again(opened: Opener, quick: Path) -> None:
    log = opened()
    log.commit([{"name": "a"}])
    with largest_file(0):
        for _ in range(3):
            with pytest.raises(AuditUnavailable):
                log.commit([{"name": "lost"}])
            with pytest.raises(AuditUnavailable, match="cannot be written"):
                log.reopen()
            assert not log.available
    log.reopen()
    log.reopen()
    assert log.available
    assert log.commit([{"name": "b"}])[0].index == 1
    assert names(quick / "log") == ["a", "b"]


def test_a_short_write_is_a_failed_write_and_its_bytes_are_counted(opened: Opener, quick: Path) -> None:
    log = opened()
    log.commit([{"name": "a"}])
    used = (quick / "log" / segment.file_name(0)).stat().st_size
    with largest_file(used + 100), pytest.raises(AuditUnavailable, match="no space left on device"):
        log.commit([{"name": "lost"}])
    assert log.recovered_bytes == 100
    log.reopen()
    assert log.recovered_bytes == 100


def test_a_device_without_space(opened: Opener, quick: Path) -> None:
    log = opened()
    log.commit([{"name": "a"}])
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    os.close(full)
    with pytest.raises(AuditUnavailable, match="no space left on device"):
        log.commit([{"name": "lost"}])
    log.reopen()
    log.commit([{"name": "b"}])
    assert names(quick / "log") == ["a", "b"]


@pytest.mark.parametrize("cut_works", [True, False])
def test_a_whole_group_that_was_not_synced_never_comes_back(
    opened: Opener, quick: Path, key: LogKey, monkeypatch: pytest.MonkeyPatch, cut_works: bool
) -> None:
    log = opened()
    log.commit([{"name": "a"}])

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        if not cut_works:
            broken.setattr(os, "ftruncate", fail)
        with pytest.raises(AuditUnavailable, match="cannot be written: input/output error"):
            log.commit([{"name": "unsynced"}])
        if not cut_works:
            with pytest.raises(AuditUnavailable, match="cannot be reopened: input/output error"):
                log.reopen()
    assert names(quick / "log") == (["a"] if cut_works else ["a", "unsynced"])  # whole, and under a valid head
    log.reopen()
    assert log.recovered_bytes > 200
    log.commit([{"name": "b"}])
    assert names(quick / "log") == ["a", "b"]
    assert verify(quick / "log", verifier=key.verifier).size == 2


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_an_interrupted_commit_leaves_the_log_refusing_and_recoverable(
    opened: Opener, quick: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log = opened()
    log.commit([{"name": "a"}])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            log.commit([{"name": "lost"}])
    with pytest.raises(AuditUnavailable, match="was interrupted"):
        log.commit([{"name": "refused"}])
    log.reopen()
    log.commit([{"name": "b"}])
    assert names(quick / "log") == ["a", "b"]


def test_a_new_segment_that_cannot_be_made_is_a_failed_commit(opened: Opener, quick: Path) -> None:
    log = opened(segment_bytes=300)
    log.commit([{"name": "a"}])
    obstacle = quick / "log" / segment.file_name(1)
    obstacle.write_bytes(b"stray")
    with pytest.raises(AuditUnavailable, match="cannot be written: file exists"):
        log.commit([{"name": "lost"}])
    log.reopen()  # what lies where no durable record is goes, and is counted
    assert log.recovered_bytes == 5
    log.commit([{"name": "b"}])
    assert names(quick / "log") == ["a", "b"]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda data: data[: len(data) // 2], LogTruncated),
        (lambda data: data[:20] + b"!" + data[21:], RecordAltered),
        (lambda _: b"", LogTruncated),
        (lambda data: data[: -len(data) // 2] + bytes(len(data) // 2), AuditError),
    ],
)
def test_reopening_refuses_a_disk_that_lost_what_was_durable(
    opened: Opener, quick: Path, damage: Callable[[bytes], bytes], error: type[AuditError]
) -> None:
    log = opened()
    log.commit([{"name": "a"}])
    log.commit([{"name": "b"}])
    with largest_file(0), pytest.raises(AuditUnavailable):
        log.commit([{"name": "lost"}])
    path = quick / "log" / segment.file_name(0)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    for _ in range(2):
        with pytest.raises(error):
            log.reopen()
        assert not log.available
    path.write_bytes(whole)
    log.reopen()
    assert log.commit([{"name": "c"}])[0].index == 2
