from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.audit import AuditLog, default_origin, open_head, record, records, segment
from pericard.audit import note as notes
from pericard.audit.proof import CompactRange, leaf_hash
from pericard.audit.verify import verify
from pericard.errors import AuditLogInvalid, AuditUnavailable
from pericard.keys import LogKey, LogVerifier

Opener = Callable[..., AuditLog]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def names(directory: Path) -> list[object]:
    return [fields["name"] for _, fields in records(directory)]


def test_a_group_is_one_write_of_frames_under_a_signed_head(opened: Opener, quick: Path, key: LogKey) -> None:
    log = opened()
    assert (log.next_index, log.head, log.available, log.recovered_bytes) == (0, None, True, 0)
    entries = log.commit([{"event": "start"}, {"event": "load"}])
    assert [entry.index for entry in entries] == [0, 1]
    assert entries[0].record == b'{"event":"start","index":0,"time":"2026-09-21T14:13:20.000000Z","v":1}'
    tree = CompactRange()
    for entry in entries:
        assert entry.leaf == leaf_hash(entry.record).hex()
        tree.append(bytes.fromhex(entry.leaf))
    assert log.next_index == 2
    assert log.head is not None
    head = open_head(log.head, default_origin(key.verifier), key.verifier)
    assert (head.size, head.root) == (2, tree.root())
    written = (quick / "log" / segment.file_name(0)).read_bytes()
    assert written == b"".join(segment.frame(1, entry.record) for entry in entries) + segment.frame(2, log.head)


def test_each_opening_starts_a_segment_and_goes_on_counting(opened: Opener, quick: Path, key: LogKey) -> None:
    for start in range(3):
        with opened() as log:
            assert log.next_index == 2 * start
            log.commit([{"name": f"{start}a"}])
            log.commit([{"name": f"{start}b"}])
    assert list(files(quick / "log")) == [segment.file_name(first) for first in (0, 2, 4)] + ["checkpoint"]
    assert names(quick / "log") == ["0a", "0b", "1a", "1b", "2a", "2b"]
    report = verify(quick / "log", verifier=key.verifier)
    assert (report.size, report.segments, report.torn, report.covered) == (6, 3, 0, 0)


def test_an_opening_without_records_leaves_no_empty_segments_behind(opened: Opener, quick: Path) -> None:
    for _ in range(3):
        opened().close()
    assert list(files(quick / "log")) == [segment.file_name(0)]
    with opened() as log:
        log.commit([{"name": "a"}])
    opened().close()
    opened().close()
    assert list(files(quick / "log")) == [segment.file_name(0), segment.file_name(1), "checkpoint"]


def test_segments_change_at_their_size_and_only_between_groups(opened: Opener, quick: Path, key: LogKey) -> None:
    with opened(segment_bytes=600) as log:
        for name in range(9):
            log.commit([{"name": name}])
    sizes = [len(data) for name, data in files(quick / "log").items() if name.endswith(".log")]
    assert len(sizes) > 3
    assert all(0 < size <= 600 for size in sizes)
    with opened(segment_bytes=600) as log:
        log.commit([{"name": 9, "long": "x" * 5000}])  # a group larger than a segment gets one of its own
        log.commit([{"name": 10}])
    assert names(quick / "log") == list(range(11))
    assert verify(quick / "log", verifier=key.verifier).size == 11


def test_impossible_options_are_refused(opened: Opener, quick: Path) -> None:
    for size in (0, segment.MAX_SEGMENT):
        with pytest.raises(AuditLogInvalid, match="not possible"):
            opened(segment_bytes=size)
    with pytest.raises(AuditLogInvalid, match="origin"):
        opened(origin="two words")
    assert not (quick / "log").exists()


def test_no_records_write_nothing(opened: Opener, quick: Path) -> None:
    log = opened()
    assert log.commit([]) == []
    assert log.publish() is None
    assert files(quick / "log") == {segment.file_name(0): b""}


@pytest.mark.parametrize(
    "group",
    [
        [{"fine": 1}, {"score": 0.5}],
        [{"index": 3}],
        [{"time": "now"}],
        [{"v": 2}],
        [{}] * 1025,
        [{"long": "x" * 65000}] * 300,
    ],
    ids=["float", "index", "time", "v", "many", "large"],
)
def test_a_group_that_cannot_be_recorded_is_refused_whole_and_the_log_goes_on(
    opened: Opener, quick: Path, group: list[dict[str, object]]
) -> None:
    log = opened()
    log.commit([{"name": "a"}])
    before = files(quick / "log")
    with pytest.raises(AuditLogInvalid):
        log.commit(group)
    assert files(quick / "log") == before
    assert log.commit([{"name": "b"}])[0].index == 1


def test_a_log_has_one_writer(opened: Opener, quick: Path, key: LogKey) -> None:
    log = opened()
    with pytest.raises(AuditUnavailable, match="another process writes it"):
        opened()
    log.close()
    opened()
    code = (
        "import sys; from pathlib import Path; from pericard.audit import AuditLog; from pericard.keys import LogKey\n"
        "AuditLog.open(Path(sys.argv[1]), key=LogKey(bytes(range(64))))"
    )
    other = subprocess.run([sys.executable, "-c", code, quick / "log"], capture_output=True, timeout=60, check=False)
    assert b"AuditUnavailable: audit log: another process writes it" in other.stderr


def test_a_closed_log_takes_nothing(opened: Opener) -> None:
    log = opened()
    log.close()
    log.close()
    for call in (lambda: log.commit([{"a": 1}]), log.publish, log.reopen):
        with pytest.raises(AuditUnavailable, match="audit log: is closed"):
            call()


def test_a_directory_that_cannot_be_had_is_unavailable(quick: Path, key: LogKey) -> None:
    with pytest.raises(AuditUnavailable, match="cannot be opened: no such file or directory"):
        AuditLog.open(quick / "missing" / "log", key=key)
    (quick / "file").touch()
    with pytest.raises(AuditUnavailable, match="cannot be opened: not a directory"):
        AuditLog.open(quick / "file", key=key)


def test_only_its_owner_and_group_read_the_log(opened: Opener, quick: Path) -> None:
    with opened() as log:
        log.commit([{"a": 1}])
    assert (quick / "log").stat().st_mode & 0o027 == 0
    assert all(path.stat().st_mode & 0o137 == 0 for path in (quick / "log").iterdir())


# -- the published head


def test_a_log_of_before_there_was_a_second_signature_goes_on_and_has_it(
    opened: Opener, quick: Path, key: LogKey
) -> None:
    with opened() as log:
        log.commit([{"a": 1}])
    path = quick / "log" / "checkpoint"
    before = path.read_bytes()
    path.write_bytes(before[: before.rindex(notes.DASH.encode())])
    with pytest.raises(AuditLogInvalid, match="has no ML-DSA-44 signature"):
        verify(quick / "log", verifier=key.verifier)
    assert verify(quick / "log", verifier=LogVerifier(key.verifier.public)).size == 1
    with opened():
        pass
    assert verify(quick / "log", verifier=key.verifier).size == 1


def test_the_head_is_published_every_so_many_groups_at_close_and_on_demand(
    opened: Opener, quick: Path, key: LogKey
) -> None:
    log = opened(checkpoint_every=3)
    published = []
    for _ in range(7):
        log.commit([{"a": 1}])
        note = notes.load(quick / "log")
        published.append(0 if note is None else notes.claims(note).size)
    assert published == [0, 0, 3, 3, 3, 6, 6]
    assert log.head is not None
    assert log.publish() == notes.load(quick / "log")
    assert (notes.load(quick / "log") or b"").startswith(log.head)  # and a second signature
    inode = (quick / "log" / "checkpoint").stat().st_ino
    assert log.publish() == notes.load(quick / "log")
    assert (quick / "log" / "checkpoint").stat().st_ino == inode  # nothing new, nothing written
    log.commit([{"a": 1}])
    log.close()
    note = notes.load(quick / "log")
    assert note is not None
    assert open_head(note, log.origin, key.verifier).size == 8


def test_a_group_is_kept_although_publishing_after_it_fails(opened: Opener, quick: Path) -> None:
    log = opened(checkpoint_every=1)
    (quick / "log" / ".checkpoint.tmp").mkdir()  # which the log will not remove
    assert log.commit([{"name": "kept"}])[0].index == 0
    assert not log.available
    with pytest.raises(AuditUnavailable, match="cannot be written: is a directory"):
        log.commit([{"name": "refused"}])
    with pytest.raises(AuditUnavailable, match="is a directory"):
        log.reopen()
    (quick / "log" / ".checkpoint.tmp").rmdir()
    log.reopen()
    log.commit([{"name": "next"}])
    assert names(quick / "log") == ["kept", "next"]


def test_the_opening_key_of_the_next_record_is_known_before_it_is_made(opened: Opener, key: LogKey) -> None:
    log = opened()
    opening = record.opening_key(key.commitment_key, log.next_index)
    commitment = record.commit(opening, "input", b"strip")
    entry = log.commit([{"input": commitment}])[0]
    assert record.parse(entry.record)["input"] == record.commit(
        record.opening_key(key.commitment_key, entry.index), "input", b"strip"
    )
