from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pericard.audit import checkpoint, segment
from pericard.audit.segment import HEAD, RECORD, Group, frame, groups
from pericard.errors import AuditLogInvalid, LogTruncated, RecordAltered
from pericard.keys import LogKey

NOTE = checkpoint.sign("log.example", 2, bytes(32), LogKey(bytes(range(64))))
FIRST = frame(RECORD, b'{"a":0}') + frame(RECORD, b'{"a":1}') + frame(HEAD, NOTE)
SECOND = frame(RECORD, b'{"a":2}') + frame(HEAD, NOTE)


def test_a_frame_is_length_checksum_type_payload_little_endian() -> None:
    assert frame(RECORD, b"{}") == b"\2\0\0\0" + zlib.crc32(b"\1{}").to_bytes(4, "little") + b"\1" + b"{}"


def test_groups_come_back_as_written() -> None:
    found = list(groups(FIRST + SECOND, 7, newest=False))
    assert found == [
        Group(7, [b'{"a":0}', b'{"a":1}'], NOTE, len(FIRST)),
        Group(9, [b'{"a":2}'], NOTE, len(FIRST) + len(SECOND)),
    ]
    assert list(groups(b"", 0, newest=True)) == []


def test_the_newest_segment_may_break_off_anywhere_in_a_group_and_no_other_may() -> None:
    for cut in range(len(SECOND)):
        data = FIRST + SECOND[:cut]
        assert [group.first for group in groups(data, 0, newest=True)] == [0]
        if cut:
            with pytest.raises(RecordAltered, match="record 2: its segment goes on behind the last head"):
                list(groups(data, 0, newest=False))


def test_zeros_from_a_sector_on_are_a_power_failure_s_work() -> None:
    long = frame(RECORD, b'{"a":"' + b"x" * 3000 + b'"}') + frame(HEAD, NOTE)
    start = len(FIRST)
    for sector in range(-(-start // 512) * 512, start + len(long), 512):
        data = (FIRST + long)[:sector].ljust(start + len(long), b"\0")
        assert [group.first for group in groups(data, 0, newest=True)] == [0]
    # but zeros that no sector explains are damage
    with pytest.raises(RecordAltered, match="group from record 2 on: a frame of it is damaged"):
        list(groups(FIRST + SECOND[:-5] + bytes(5), 0, newest=True))
    # and so are sectors out of order
    hole = bytearray(FIRST + long)
    hole[512:1024] = bytes(512)
    with pytest.raises(RecordAltered, match="group from record 2 on: a frame of it is damaged"):
        list(groups(bytes(hole), 0, newest=True))


def test_a_flip_anywhere_in_signed_groups_never_looks_torn() -> None:
    data = FIRST + SECOND
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(RecordAltered):
                list(groups(bytes(flipped), 0, newest=True))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (frame(HEAD, NOTE), "record 0: a head stands in its place"),
        (FIRST + frame(HEAD, NOTE), "record 2: a head stands in its place"),
        (FIRST + b"\0\0\1\0" + SECOND[4:], "group from record 2 on: a frame of it is damaged"),
        (FIRST + b"\1\0\1\0" + SECOND[4:], "group from record 2 on: a frame of it is damaged"),
        (FIRST + SECOND[:8] + b"\3" + SECOND[9:], "group from record 2 on: a frame of it is damaged"),
        (FIRST + SECOND[:8] + b"\0" + SECOND[9:], "group from record 2 on: a frame of it is damaged"),
        (FIRST + frame(RECORD, b"line\nbreak") + frame(HEAD, NOTE), "group from record 2 on: a frame of it is damaged"),
        (FIRST + frame(RECORD, b'"' * 40)[:-1] + b"\n", "group from record 2 on: a frame of it is damaged"),
    ],
)
def test_what_no_torn_write_explains_is_damage(data: bytes, said: str) -> None:
    with pytest.raises(RecordAltered, match=said):
        list(groups(data, 0, newest=True))


def test_a_tail_is_no_longer_than_a_group() -> None:
    filler = frame(RECORD, b'"' * 65536)
    count = segment.MAX_GROUP // len(filler) + 1
    with pytest.raises(RecordAltered, match="more bytes follow the last head than one group has"):
        list(groups(FIRST + filler * count, 0, newest=True))


@settings(deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_either_raise_or_hold_no_group(data: bytes, newest: bool) -> None:
    try:
        found = list(groups(data, 0, newest=newest))
    except RecordAltered:
        return
    assert found == []


def write(directory: Path, **parts: bytes) -> list[segment.Segment]:
    for name, data in parts.items():
        (directory / segment.file_name(int(name[1:]))).write_bytes(data)
    return segment.listing(directory)


def test_a_walk_goes_through_consecutive_segments(quick: Path) -> None:
    walk = segment.Walk(write(quick, _0=FIRST, _2=SECOND + FIRST, _5=SECOND + b"\0"))
    assert [group.first for group in walk] == [0, 2, 3, 5]
    assert (walk.end, walk.torn) == (len(SECOND), 1)
    late = segment.Walk(segment.listing(quick)[1:], 2)
    assert [group.first for group in late] == [2, 3, 5]
    assert list(segment.Walk([])) == []


def test_gaps_and_overlaps_are_refused(quick: Path) -> None:
    segments = write(quick, _0=FIRST, _2=SECOND, _3=FIRST)
    with pytest.raises(LogTruncated, match="records 2 to 2: their segment is missing"):
        list(segment.Walk([segments[0], segments[2]]))
    with pytest.raises(LogTruncated, match="records 0 to 1: their segment is missing"):
        list(segment.Walk(segments[1:]))
    with pytest.raises(AuditLogInvalid, match="repeats records before 2"):
        list(segment.Walk([segments[0], segment.Segment(segments[1].path, 1)]))


def test_the_newest_segment_may_vanish_while_empty_and_no_other_may(quick: Path) -> None:
    segments = write(quick, _0=FIRST, _2=b"")
    (quick / segment.file_name(2)).unlink()
    walk = segment.Walk(segments)
    assert [group.first for group in walk] == [0]
    assert (walk.end, walk.torn) == (0, 0)
    segments = write(quick, _2=b"")
    (quick / segment.file_name(0)).unlink()
    with pytest.raises(FileNotFoundError):
        list(segment.Walk(segments))


@pytest.mark.parametrize("name", ["7.log", "0000000000000000000x.log", "x.log", "00000000000000000000.log.log"])
def test_a_foreign_file_among_the_segments_is_refused(quick: Path, name: str) -> None:
    (quick / "notes.txt").touch()
    assert segment.listing(quick) == []
    (quick / name).touch()
    with pytest.raises(AuditLogInvalid, match="is not a segment of an audit log"):
        segment.listing(quick)


def test_only_regular_files_of_bounded_size_are_read(quick: Path) -> None:
    path = quick / segment.file_name(0)
    os.mkfifo(path)
    with pytest.raises(AuditLogInvalid, match="is not a regular file"):
        segment.Segment(path, 0).read()
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        segment.Segment(path, 0).read()
    path.unlink()
    with path.open("wb") as file:
        file.truncate(segment.MAX_SEGMENT + 1)
    with pytest.raises(AuditLogInvalid, match="larger than"):
        segment.Segment(path, 0).read()
