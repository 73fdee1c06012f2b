"""Attacks on the evidence (P6): every way to alter, drop, move or invent a record.

What cannot be found is tested too, so that the documents never promise it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.audit import AuditLog, checkpoint, record, records, segment
from pericard.audit import note as notes
from pericard.audit.proof import check_consistency, consistency_proof, leaf_hash
from pericard.audit.reading import raw_records
from pericard.audit.verify import verify
from pericard.errors import AuditError, AuditLogInvalid, LogTruncated, RecordAltered, SplitView
from pericard.keys import LogKey

KEY = LogKey(bytes(range(64)))
Groups = list[tuple[list[bytes], bytes]]


def make(directory: Path, *groups: int, note: str = "") -> AuditLog:
    """Append groups of so many records and close."""
    with AuditLog.open(directory, key=KEY) as log:
        for count in groups:
            log.commit([{"event": "predict", "note": note} for _ in range(count)])
    return log


def newest(directory: Path) -> Path:
    return segment.listing(directory)[-1].path


def read(path: Path) -> Groups:
    return [(group.records, group.head) for group in segment.groups(path.read_bytes(), int(path.stem), newest=True)]


def write(path: Path, groups: Groups) -> None:
    """Write groups with every checksum right, as an attacker would."""
    frames = [
        segment.frame(kind, payload)
        for parts, head in groups
        for kind, payload in [*((segment.RECORD, part) for part in parts), (segment.HEAD, head)]
        if payload
    ]
    path.write_bytes(b"".join(frames))


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# -- without the key: every change under a signed head is found


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_every_flipped_byte_is_found_by_reader_and_writer(quick: Path, with_checkpoint: bool) -> None:
    directory = quick / "log"
    make(directory, 1, 3, 2)
    path = newest(directory)
    whole = path.read_bytes()
    if not with_checkpoint:
        (directory / "checkpoint").unlink()
    rng = random.Random(20261123)
    for place in range(len(whole)):
        for change in {0x01, 0x80, 0xFF, whole[place] or 1, rng.randrange(1, 256)}:
            forged = bytearray(whole)
            forged[place] ^= change
            path.write_bytes(forged)
            with pytest.raises(AuditError):
                verify(directory, verifier=KEY.verifier)
        with pytest.raises(AuditError):
            AuditLog.open(directory, key=KEY)
        assert path.read_bytes() == forged  # what does not verify is evidence and stays as it is
    path.write_bytes(whole)
    assert verify(directory, verifier=KEY.verifier).size == 6


def test_every_flipped_byte_of_the_checkpoint_is_found(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 2)
    whole = (directory / "checkpoint").read_bytes()
    second = whole.rindex(notes.DASH.encode())
    for place in range(len(whole)):
        forged = bytearray(whole)
        forged[place] ^= 0x04
        (directory / "checkpoint").write_bytes(forged)
        with pytest.raises(AuditError):
            verify(directory, verifier=KEY.verifier)
        if place < second:  # the writer takes a head of before there was a second signature
            with pytest.raises(AuditError):
                AuditLog.open(directory, key=KEY)


def swap_groups(groups: Groups) -> Groups:
    return [groups[0], groups[2], groups[1], *groups[3:]]


MADE_UP = record.encode({"event": "predict", "index": 3, "time": record.stamp(0), "v": 1})
EDITS: dict[str, Callable[[Groups], Groups]] = {
    "edit": lambda g: [g[0], ([g[1][0][0].replace(b"predict", b"nothing"), *g[1][0][1:]], g[1][1]), *g[2:]],
    "drop the first": lambda g: [(g[0][0][1:], g[0][1]), *g[1:]],
    "drop in the middle": lambda g: [g[0], (g[1][0][:1] + g[1][0][2:], g[1][1]), *g[2:]],
    "drop the last": lambda g: [*g[:-1], (g[-1][0][:-1], g[-1][1])],
    "drop a group": lambda g: [g[0], *g[2:]],
    "drop a group, keep its head": lambda g: [g[0], ([], g[1][1]), *g[2:]],
    "swap in a group": lambda g: [g[0], ([g[1][0][1], g[1][0][0], g[1][0][2]], g[1][1]), *g[2:]],
    "swap across groups": lambda g: [
        ([g[1][0][0], *g[0][0][1:]], g[0][1]),
        ([g[0][0][0], *g[1][0][1:]], g[1][1]),
        *g[2:],
    ],
    "swap groups": swap_groups,
    "swap heads": lambda g: [(g[0][0], g[1][1]), (g[1][0], g[0][1]), *g[2:]],
    "insert": lambda g: [g[0], ([*g[1][0][:1], MADE_UP, *g[1][0][1:]], g[1][1]), *g[2:]],
    "repeat": lambda g: [g[0], ([*g[1][0], g[1][0][-1]], g[1][1]), *g[2:]],
    "repeat a group": lambda g: [g[0], g[1], g[1], *g[2:]],
    "append under an old head": lambda g: [*g, ([MADE_UP], g[-1][1])],
    "move to another group": lambda g: [(g[0][0] + g[1][0][:1], g[0][1]), (g[1][0][1:], g[1][1]), *g[2:]],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_records_cannot_be_altered_dropped_moved_or_inserted(
    quick: Path, edit: Callable[[Groups], Groups], with_checkpoint: bool
) -> None:
    directory = quick / "log"
    make(directory, 2, 3, 1, 2)
    if not with_checkpoint:
        (directory / "checkpoint").unlink()
    path = newest(directory)
    write(path, edit(read(path)))
    before = content(directory)
    with pytest.raises((RecordAltered, LogTruncated)):
        verify(directory, verifier=KEY.verifier)
    with pytest.raises((RecordAltered, LogTruncated)):
        AuditLog.open(directory, key=KEY)
    assert content(directory) == before


def test_the_error_names_the_group_down_to_which_the_log_proves(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 2, 3, 1)
    path = newest(directory)
    groups = read(path)
    forged = groups[1][0][1].replace(b"predict", b"nothing")
    write(path, [groups[0], ([groups[1][0][0], forged, groups[1][0][2]], groups[1][1]), groups[2]])
    with pytest.raises(RecordAltered, match=r"^records 2 to 4: differ from what was signed"):
        verify(directory, verifier=KEY.verifier)


def test_an_inner_head_may_be_dropped_since_the_next_one_proves_as_much(quick: Path) -> None:
    directory = quick / "log"
    made = make(directory, 2, 3)
    path = newest(directory)
    (first, _), (second, head) = read(path)
    write(path, [(first + second, head)])
    report = verify(directory, verifier=KEY.verifier)
    assert (report.size, made.head) == (5, head)


def test_a_key_that_is_not_the_log_s_never_passes(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 1, 2)
    for seed in range(1, 20):
        stranger = LogKey(bytes([seed]) * 64)
        for origin in (None, checkpoint.default_origin(KEY.verifier)):
            with pytest.raises(AuditLogInvalid):
                verify(directory, verifier=stranger.verifier, origin=origin)


def test_another_log_of_the_same_key_cannot_stand_in(quick: Path) -> None:
    with AuditLog.open(quick / "log", origin="site/engine-0", key=KEY) as log:
        log.commit([{"event": "start"}])
    with pytest.raises(AuditLogInvalid, match="wanted 'site/engine-1'"):
        verify(quick / "log", verifier=KEY.verifier, origin="site/engine-1")


def test_an_emptied_log_is_not_a_log_without_findings(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 3)
    newest(directory).write_bytes(b"")
    with pytest.raises(LogTruncated):
        verify(directory, verifier=KEY.verifier)
    (directory / "checkpoint").unlink()
    with pytest.raises(AuditLogInvalid, match="proves nothing"):
        verify(directory, verifier=KEY.verifier)


def test_a_caller_s_text_cannot_forge_frames_or_heads(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 1)
    head = (directory / "checkpoint").read_text("utf-8")
    with AuditLog.open(directory, key=KEY) as log:
        log.commit([{"event": head, "frame": segment.frame(2, head.encode()).decode("latin-1")}])
        log.commit([{"event": '","index":9,"x":"'}])
    assert verify(directory, verifier=KEY.verifier).size == 3
    data = newest(directory).read_bytes()
    for cut in range(len(data)):
        shutil.rmtree(quick / "copy", ignore_errors=True)
        shutil.copytree(directory, quick / "copy")
        (quick / "copy" / "checkpoint").unlink()
        newest(quick / "copy").write_bytes(data[:cut])
        assert len(list(raw_records(quick / "copy"))) in (1, 2, 3)


def test_files_that_hang_or_lead_elsewhere_are_refused(quick: Path) -> None:
    for place in ("segment", "checkpoint"):
        directory = quick / place
        make(directory, 1)
        path = newest(directory) if place == "segment" else directory / "checkpoint"
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(AuditLogInvalid):
            verify(directory, verifier=KEY.verifier)
        path.unlink()
        (quick / "elsewhere").write_bytes(kept)
        path.symlink_to(quick / "elsewhere")
        with pytest.raises(AuditLogInvalid, match="symbolic links"):
            verify(directory, verifier=KEY.verifier)
        with pytest.raises(AuditError):
            AuditLog.open(directory, key=KEY)


# -- with the disk or the key: what leaves the machine decides


def test_a_dropped_tail_is_found_by_any_head_that_counts_it(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 2, 2)
    outside = (directory / "checkpoint").read_bytes()
    path = newest(directory)
    write(path, read(path)[:1])
    for known in ([], [outside]):
        with pytest.raises(LogTruncated, match="records 2 to 3"):
            verify(directory, verifier=KEY.verifier, heads=known)
    with pytest.raises(LogTruncated):
        AuditLog.open(directory, key=KEY)
    (directory / "checkpoint").unlink()
    with pytest.raises(LogTruncated, match="records 2 to 3"):
        verify(directory, verifier=KEY.verifier, heads=[outside])
    # nothing in the directory can show it, and the report says that nothing outside does
    report = verify(directory, verifier=KEY.verifier)
    assert (report.size, report.covered) == (2, 0)


def test_truncating_and_going_on_is_found_by_a_head_from_before(quick: Path) -> None:
    directory = quick / "log"
    make(directory, 2, 2)
    outside = (directory / "checkpoint").read_bytes()
    path = newest(directory)
    write(path, read(path)[:1])
    (directory / "checkpoint").unlink()
    make(directory, 5)
    assert verify(directory, verifier=KEY.verifier).size == 7
    with pytest.raises(SplitView, match="head of 4 records"):
        verify(directory, verifier=KEY.verifier, heads=[outside])


def test_history_signed_again_with_the_real_key_is_found_by_a_head_from_before(quick: Path) -> None:
    make(quick / "log", 3)
    outside = (quick / "log" / "checkpoint").read_bytes()
    make(quick / "forged", 3, note="never happened")
    make(quick / "forged", 9)
    with pytest.raises(SplitView, match="head of 3 records: does not belong"):
        verify(quick / "forged", verifier=KEY.verifier, heads=[outside])


def test_two_histories_from_one_log_are_found(quick: Path) -> None:
    make(quick / "log", 3)
    shutil.copytree(quick / "log", quick / "restored")
    make(quick / "log", 2, note="here")
    make(quick / "restored", 2, note="there")
    heads = [(quick / name / "checkpoint").read_bytes() for name in ("log", "restored")]
    for name, other in (("log", heads[1]), ("restored", heads[0])):
        with pytest.raises(SplitView, match="heads of 5 records: two of them differ"):
            verify(quick / name, verifier=KEY.verifier, heads=[other])
    leaves = [leaf_hash(data) for _, data in raw_records(quick / "log")]
    left, right = (notes.claims(head) for head in heads)
    link = consistency_proof(leaves, 3, 5)
    old = notes.claims(heads[0]).root
    with pytest.raises(SplitView):
        check_consistency(5, left.root, 5, right.root, [])
    with pytest.raises(SplitView):
        check_consistency(3, old, 5, right.root, link)


def test_records_do_not_reveal_what_they_commit_to(quick: Path) -> None:
    flat = bytes(5000)
    with AuditLog.open(quick / "log", key=KEY) as log:
        for _ in range(20):
            opening = record.opening_key(KEY.commitment_key, log.next_index)
            log.commit(
                [{"input": record.commit(opening, "input", flat), "answer": record.commit(opening, "answer", b"0")}]
            )
    found = [fields[label] for _, fields in records(quick / "log") for label in ("input", "answer")]
    assert len(set(found)) == 40  # equal strips and equal answers look different every time
