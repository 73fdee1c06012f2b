"""A pruned log: what went leaves its leaf hashes, and everything that could be proven still can be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.audit import AuditLog, Head, checkpoint, latest, open_head, open_receipt, pruned, records, segment
from pericard.audit.proof import check_consistency, consistency_proof, leaf_hash
from pericard.audit.reading import raw_records
from pericard.audit.receipt import receipt
from pericard.audit.tail import Tail
from pericard.audit.verify import verify
from pericard.errors import AuditError, AuditLogInvalid, LogTruncated, RecordAltered, SplitView
from pericard.keys import LogKey

Opener = Callable[..., AuditLog]
LATER = "2999-01-01T00:00:00.000000Z"


def grown(opened: Opener, groups: int = 40) -> list[bytes]:
    """A log of many small segments; its heads, one for each group of three records."""
    heads = []
    with opened(segment_bytes=3000) as log:
        for turn in range(groups):
            log.commit([{"event": "predict", "turn": turn, "name": str(turn)}] * 3)
            assert log.head is not None
            heads.append(log.head)
    return heads


def cut(directory: Path, *, below: int = 10**9, before: str = LATER) -> int:
    """Prune what may go; the minimum index then."""
    for part in pruned.prunable(directory, before=before, below=below):
        pruned.prune(directory, part)
    return pruned.beginning(directory)


def test_a_pruned_log_verifies_and_says_from_where_records_are_there(opened: Opener, quick: Path, key: LogKey) -> None:
    heads = [checkpoint.attest(head, key) for head in grown(opened)]
    directory = quick / "log"
    before = verify(directory, verifier=key.verifier)
    kept = list(raw_records(directory))
    first = cut(directory)
    assert first > 80
    report = verify(directory, verifier=key.verifier, heads=[heads[2], heads[-1]])  # also a head over what went
    assert (report.size, report.root, report.first, report.covered) == (120, before.root, first, 120)
    assert before.first == 0
    assert list(raw_records(directory)) == kept[first:]
    assert latest(directory, "turn") == (119, dict(list(records(directory))[-1][1]))
    gone = [path for path in directory.iterdir() if path.suffix == ".leaves"]
    assert sum(path.stat().st_size for path in gone) == first * 32


def test_it_opens_goes_on_and_is_pruned_again(opened: Opener, quick: Path, key: LogKey) -> None:
    grown(opened)
    first = cut(quick / "log")
    with opened(segment_bytes=3000) as log:
        assert log.next_index == 120
        for turn in range(40):
            log.commit([{"turn": turn}] * 3)
    second = cut(quick / "log")
    assert second > first
    report = verify(quick / "log", verifier=key.verifier)
    assert (report.size, report.first) == (240, second)


def test_proofs_reach_into_what_was_pruned(opened: Opener, quick: Path, key: LogKey) -> None:
    heads = [checkpoint.attest(head, key) for head in grown(opened)]
    directory = quick / "log"
    leaves = [leaf_hash(data) for _, data in raw_records(directory)]
    early = receipt(directory, 4)
    first = cut(directory)
    assert list(pruned.leaves(directory)) == leaves[:first]

    # an inclusion proof for each record that is there, and the one that was handed out before
    for index in (first, first + 1, 119):
        found = receipt(directory, index)
        assert open_receipt(found.record, found.proof, found.head, verifier=key.verifier)["index"] == index
    assert open_receipt(early.record, early.proof, early.head, verifier=key.verifier)["index"] == 4
    with pytest.raises(AuditLogInvalid, match="record 4: was pruned"):
        receipt(directory, 4)

    # the log still proves that it continues a head over records that went
    opened_heads = [opens(signed, key) for signed in (heads[1], heads[-1])]
    every = [*pruned.leaves(directory), *(leaf_hash(data) for _, data in raw_records(directory))]
    old, new = opened_heads
    check_consistency(old.size, old.root, new.size, new.root, consistency_proof(every, old.size, new.size))


def opens(signed: bytes, key: LogKey) -> Head:
    from pericard.audit import default_origin

    return open_head(signed, default_origin(key.verifier), key.verifier)


def test_what_stays_is_held_against_the_signed_heads(opened: Opener, quick: Path, key: LogKey) -> None:
    heads = [checkpoint.attest(head, key) for head in grown(opened)]
    directory = quick / "log"
    cut(directory)
    files = sorted(directory.glob("*.leaves"))
    for place, how in ((0, "flip"), (len(files) // 2, "flip"), (-1, "swap"), (-1, "drop")):
        copy = quick / "copy"
        shutil.copytree(directory, copy)
        path = copy / files[place].name
        data = bytearray(path.read_bytes())
        if how == "flip":
            data[40] ^= 1
        elif how == "swap":
            data[:32], data[32:64] = data[32:64], data[:32]
        path.write_bytes(data[:-32] if how == "drop" else data)
        for look in (lambda: verify(copy, verifier=key.verifier), lambda: AuditLog.open(copy, key=key)):  # noqa: B023
            with pytest.raises((RecordAltered, SplitView, LogTruncated, AuditLogInvalid)):
                look()
        shutil.rmtree(copy)
    # even with a known head over what went, the log itself is accused first of what it did not sign
    (directory / files[0].name).write_bytes(os.urandom(files[0].stat().st_size))
    with pytest.raises(RecordAltered):
        verify(directory, verifier=key.verifier, heads=[heads[0]])


@pytest.mark.parametrize("name", ["first", "middle", "last", "all"])
def test_hashes_that_are_gone_are_missed(opened: Opener, quick: Path, key: LogKey, name: str) -> None:
    grown(opened)
    directory = quick / "log"
    cut(directory)
    files = sorted(directory.glob("*.leaves"))
    for path in {"first": files[:1], "middle": files[3:4], "last": files[-1:], "all": files}[name]:
        path.unlink()
    for look in (lambda: verify(directory, verifier=key.verifier), lambda: AuditLog.open(directory, key=key)):
        with pytest.raises(LogTruncated):
            look()


@pytest.mark.parametrize("name", ["1.leaves", "x.leaves", f"{0:020d}.leaves", f"{7:021d}.leaves"])
def test_a_file_that_holds_no_hashes_is_refused(opened: Opener, quick: Path, key: LogKey, name: str) -> None:
    grown(opened)
    cut(quick / "log")
    (quick / "log" / name).write_bytes(b"x" * 33)
    with pytest.raises(AuditLogInvalid):
        verify(quick / "log", verifier=key.verifier)


def test_without_a_segment_the_hashes_prove_nothing(opened: Opener, quick: Path, key: LogKey) -> None:
    grown(opened)
    directory = quick / "log"
    cut(directory)
    for path in directory.glob("*.log"):
        path.unlink()
    with pytest.raises(AuditError):
        AuditLog.open(directory, key=key)
    (directory / "checkpoint").unlink()
    with pytest.raises(LogTruncated, match="what proves those before"):
        AuditLog.open(directory, key=key)


def test_the_last_two_segments_the_young_and_the_unsent_stay(opened: Opener, quick: Path) -> None:
    grown(opened)
    directory = quick / "log"
    parts = segment.listing(directory)
    assert pruned.prunable(directory, before=LATER, below=10**9) == parts[:-2]
    assert pruned.prunable(directory, before="2000-01-01T00:00:00.000000Z", below=10**9) == []
    sent = parts[3].first
    assert pruned.prunable(directory, before=LATER, below=sent) == parts[:3]
    assert pruned.prunable(directory, before=LATER, below=sent - 1) == parts[:2]
    assert pruned.prunable(directory, before=LATER, below=0) == []


def test_a_crash_between_hashes_and_segment_costs_nothing(opened: Opener, quick: Path, key: LogKey) -> None:
    grown(opened)
    directory = quick / "log"
    (part, *_) = pruned.prunable(directory, before=LATER, below=10**9)
    copy = quick / "kept"
    shutil.copy(part.path, copy)
    pruned.prune(directory, part)
    shutil.copy(copy, part.path)  # as if it had ended before the segment was removed
    assert pruned.beginning(directory) == 0
    assert verify(directory, verifier=key.verifier).first == 0
    with opened():
        pass
    assert cut(directory) > 0
    assert verify(directory, verifier=key.verifier).first > 0


def test_following_from_a_record_that_went_is_an_error(opened: Opener, quick: Path) -> None:
    grown(opened)
    first = cut(quick / "log")
    with pytest.raises(LogTruncated, match="is not there any more"):
        Tail(quick / "log", first - 1).read(120, 10)
    found = Tail(quick / "log", first).read(120, 10)
    assert [index for index, _ in found][:10] == list(range(first, first + 10))
