from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.audit import AuditLog, checkpoint, published, reading, record, records, segment
from pericard.audit.proof import CompactRange, leaf_hash
from pericard.audit.reading import raw_records
from pericard.audit.verify import verify
from pericard.errors import AuditLogInvalid, LogTruncated, RecordAltered, SplitView
from pericard.keys import LogKey

Opener = Callable[..., AuditLog]
ORIGIN = "log.example"


def forge(directory: Path, key: LogKey, *groups: list[bytes], origin: str = ORIGIN, first: int = 0) -> CompactRange:
    """Write a log as only the holder of the log key could, whatever its records say."""
    tree = CompactRange()
    data = b""
    for group in groups:
        for part in group:
            tree.append(leaf_hash(part))
            data += segment.frame(segment.RECORD, part)
        data += segment.frame(segment.HEAD, checkpoint.sign(origin, tree.size, tree.root(), key))
    directory.mkdir(exist_ok=True)
    (directory / segment.file_name(first)).write_bytes(data)
    return tree


def published_head(size: int, root: bytes, key: LogKey) -> bytes:
    """A head as it leaves the machine."""
    return checkpoint.attest(checkpoint.sign(ORIGIN, size, root, key), key)


def good(index: int, **fields: object) -> bytes:
    return record.encode({"time": record.stamp(index), "v": 1, "index": index, **fields})


def test_a_whole_log_is_reported(quick: Path, key: LogKey) -> None:
    tree = forge(quick, key, [good(0), good(1)], [good(2)])
    heads = [published_head(0, CompactRange().root(), key)]
    report = verify(quick, verifier=key.verifier, origin=ORIGIN, heads=heads)
    assert (report.origin, report.size, report.root, report.covered) == (ORIGIN, 3, tree.root().hex(), 0)
    assert (report.segments, report.torn) == (1, 0)
    assert report.first_time == "1970-01-01T00:00:00.000000Z"
    assert report.last_time == record.stamp(2)
    heads.append(published_head(3, tree.root(), key))
    assert verify(quick, verifier=key.verifier, origin=ORIGIN, heads=heads).covered == 3


def test_a_head_from_elsewhere_may_lie_between_groups(quick: Path, key: LogKey) -> None:
    forge(quick, key, [good(0), good(1)])
    tree = CompactRange()
    tree.append(leaf_hash(good(0)))
    inner = published_head(1, tree.root(), key)
    assert verify(quick, verifier=key.verifier, origin=ORIGIN, heads=[inner]).covered == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (good(7), "record 1: does not carry this index"),
        (good(1).replace(b'"index":1', b'"index":true'), "record 1: does not carry this index"),
        (record.encode({"time": record.stamp(0), "v": 1}), "record 1: does not carry this index"),
        (good(1, v=2), "record 1: is not of version 1"),
        (good(1, v=True), "record 1: is not of version 1"),
        (good(1, time="yesterday"), "record 1: carries no time"),
        (good(1, time="2026-11-23T00:00:00Z"), "record 1: carries no time"),
        (good(1, time=5), "record 1: carries no time"),
        (good(1) + b" ", "record 1: is not in canonical form"),
        (b"{}", "record 1: is not of version 1"),
        (b"[]", "record 1: is not in canonical form"),
        (b"", "record 1: is not JSON"),
    ],
)
def test_even_the_key_s_holder_must_write_proper_records(quick: Path, key: LogKey, data: bytes, said: str) -> None:
    forge(quick, key, [good(0), data])
    with pytest.raises(RecordAltered, match=said):
        verify(quick, verifier=key.verifier, origin=ORIGIN)


def test_nothing_signed_proves_nothing(quick: Path, key: LogKey) -> None:
    for name in ("empty", "torn"):
        (quick / name).mkdir()
    (quick / "torn" / segment.file_name(0)).write_bytes(segment.frame(segment.RECORD, good(0)))
    head = published_head(5, bytes(32), key)
    for name in ("empty", "torn"):
        with pytest.raises(AuditLogInvalid, match="holds no signed head"):
            verify(quick / name, verifier=key.verifier)
        with pytest.raises(LogTruncated, match="records 0 to 4"):
            verify(quick / name, verifier=key.verifier, origin=ORIGIN, heads=[head])
    with pytest.raises(AuditLogInvalid, match="cannot be read as an audit log: no such file"):
        verify(quick / "missing", verifier=key.verifier)
    with pytest.raises(AuditLogInvalid, match="cannot be read as an audit log: not a directory"):
        list(records(quick / "torn" / segment.file_name(0)))


def test_known_heads_must_agree_with_each_other_and_with_the_log(quick: Path, key: LogKey) -> None:
    tree = forge(quick, key, [good(0)], [good(1)])
    right = published_head(2, tree.root(), key)
    wrong = published_head(2, bytes(32), key)

    def check(*heads: bytes) -> int:
        return verify(quick, verifier=key.verifier, origin=ORIGIN, heads=heads).covered

    assert check(right, right) == 2
    with pytest.raises(SplitView, match="heads of 2 records: two of them differ"):
        check(right, wrong)
    with pytest.raises(SplitView, match="head of 2 records: does not belong"):
        check(wrong)
    with pytest.raises(LogTruncated, match="records 2 to 2: a signed head covers them"):
        check(published_head(3, bytes(32), key))
    with pytest.raises(AuditLogInvalid, match="not signed by this log key"):
        check(checkpoint.sign(ORIGIN, 2, tree.root(), LogKey(bytes(64))))
    (quick / "checkpoint").write_bytes(wrong)
    with pytest.raises(SplitView, match="two of them differ"):
        check(right)


def test_a_later_head_by_another_key_is_an_altered_group(quick: Path, key: LogKey) -> None:
    forge(quick, key, [good(0)], [good(1)])
    path = quick / segment.file_name(0)
    first, second = segment.groups(path.read_bytes(), 0, newest=True)
    tree = CompactRange()
    for part in (*first.records, *second.records):
        tree.append(leaf_hash(part))
    false = checkpoint.sign(ORIGIN, 2, tree.root(), LogKey(bytes(64)))
    path.write_bytes(path.read_bytes()[: -len(segment.frame(2, second.head))] + segment.frame(2, false))
    with pytest.raises(RecordAltered, match="records 1 to 1: log head: of 2 records, is not signed by this log key"):
        verify(quick, verifier=key.verifier, origin=ORIGIN)


def test_records_come_from_any_place_to_any_place(opened: Opener, quick: Path) -> None:
    for start in range(0, 9, 3):
        with opened() as log:
            log.commit([{"name": start}, {"name": start + 1}])
            log.commit([{"name": start + 2}])
    for start in range(-1, 12):
        for stop in (None, 0, 1, 4, 9, 20):
            wanted = [(at, at) for at in range(max(start, 0), 9 if stop is None else min(9, stop))]
            assert [(at, fields["name"]) for at, fields in records(quick / "log", start, stop)] == wanted


def test_records_leave_out_a_torn_tail_and_refuse_damage(opened: Opener, quick: Path) -> None:
    with opened() as log:
        log.commit([{"name": 0}])
    path = quick / "log" / segment.file_name(0)
    whole = path.read_bytes()
    path.write_bytes(whole + segment.frame(segment.RECORD, b'{"name":1}'))
    assert [at for at, _ in records(quick / "log")] == [0]
    path.write_bytes(whole[:20] + b"!" + whole[21:])
    with pytest.raises(RecordAltered, match="group from record 0 on"):
        list(records(quick / "log"))
    path.write_bytes(segment.frame(segment.RECORD, b'{"a": 1}') + segment.frame(segment.HEAD, b"any"))
    assert list(raw_records(quick / "log")) == [(0, b'{"a": 1}')]
    with pytest.raises(AuditLogInvalid, match="not in canonical form"):
        list(records(quick / "log"))


def test_an_empty_directory_has_no_records(quick: Path) -> None:
    assert list(records(quick)) == []


def test_what_may_be_sent_is_what_the_published_head_covers(opened: Opener, quick: Path) -> None:
    log = opened()
    assert published(quick / "log") == 0
    log.commit([{"name": 0}, {"name": 1}])
    assert published(quick / "log") == 0
    log.publish()
    log.commit([{"name": 2}])
    assert published(quick / "log") == 2
    assert [at for at, _ in records(quick / "log", stop=published(quick / "log"))] == [0, 1]
    (quick / "log" / "checkpoint").write_bytes(b"garbage")
    with pytest.raises(AuditLogInvalid, match="not a signed checkpoint"):
        published(quick / "log")


def test_reading_takes_no_keys() -> None:
    source = Path(reading.__file__).parent
    needed = {"reading", "segment", "note", "record", "pruned", "proof", "tail"}
    for name in needed:
        text = (source / f"{name}.py").read_text("utf-8")
        assert "pericard.keys" not in text
        found = re.findall(r"^from pericard\.audit(?:\.(\w+))? import (.*)$", text, re.MULTILINE)
        assert {module or part.strip() for module, parts in found for part in parts.split(",")} <= needed | {"MAX_NOTE"}
