from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.audit import AuditLog, checkpoint, open_receipt, record, segment
from pericard.audit import note as notes
from pericard.audit.proof import leaf_hash
from pericard.audit.receipt import Receipt, receipt
from pericard.errors import AuditLogInvalid, RecordAltered
from pericard.keys import LogKey

Opener = Callable[..., AuditLog]


def predictions(log: AuditLog, key: LogKey, count: int) -> list[dict[str, object]]:
    made = []
    for index in range(log.next_index, log.next_index + count):
        opening = record.opening_key(key.commitment_key, index)
        commitments = {
            label: record.commit(opening, label, b"%s %d" % (label.encode(), index)) for label in ("input", "answer")
        }
        made.append({"event": "predict", **commitments})
    return made


@pytest.fixture
def log(opened: Opener, key: LogKey) -> AuditLog:
    log = opened()
    for count in (1, 3, 2, 1):
        log.commit(predictions(log, key, count))
    return log


def opening(key: LogKey, index: int) -> bytes:
    return record.opening_key(key.commitment_key, index)


def test_every_record_has_a_receipt_that_opens_offline(log: AuditLog, quick: Path, key: LogKey) -> None:
    for index in range(7):
        made = receipt(quick / "log", index)
        assert made.index == index
        fields = open_receipt(
            made.record,
            made.proof,
            made.head,
            verifier=key.verifier,
            opening_key=opening(key, index),
            input_bytes=b"input %d" % index,
            answer_bytes=b"answer %d" % index,
        )
        assert fields["index"] == index


def test_a_receipt_prefers_the_published_head(log: AuditLog, quick: Path) -> None:
    assert notes.claims(receipt(quick / "log", 2).head).size == 4  # its own group's
    assert receipt(quick / "log", 2).head != log.publish()
    assert receipt(quick / "log", 2).head == notes.load(quick / "log")
    log.commit([{"name": "later"}])
    assert receipt(quick / "log", 2).head == notes.load(quick / "log")
    assert receipt(quick / "log", 7).head == log.head


def test_receipts_reach_across_segments(log: AuditLog, opened: Opener, quick: Path, key: LogKey) -> None:
    log.close()
    with opened() as again:
        again.commit([{"name": "b"}])
        for index in range(8):
            made = receipt(quick / "log", index)
            open_receipt(made.record, made.proof, made.head, verifier=key.verifier)


def test_a_receipt_shows_nothing_of_its_neighbours(log: AuditLog, quick: Path) -> None:
    made = receipt(quick / "log", 5)
    everything = made.record + b"".join(made.proof) + made.head
    assert everything.count(b'"event"') == 1
    assert all(len(part) == 32 for part in made.proof)


@pytest.mark.parametrize("index", [-1, 7, 10**9])
def test_there_is_no_receipt_for_what_is_not_there(log: AuditLog, quick: Path, index: int) -> None:
    for _ in range(2):
        with pytest.raises(AuditLogInvalid, match=f"record {index}: is not in the log"):
            receipt(quick / "log", index)
        log.publish()
    with pytest.raises(AuditLogInvalid, match="is not in the log"):
        receipt(quick, index)


def test_no_receipt_is_made_from_a_damaged_log(log: AuditLog, quick: Path) -> None:
    path = quick / "log" / segment.file_name(0)
    first, *_ = segment.groups(path.read_bytes(), 0, newest=True)
    forged = segment.frame(1, first.records[0].replace(b"predict", b"nothing"))
    log.publish()
    path.write_bytes(forged + path.read_bytes()[len(forged) :])
    for index in (0, 6):
        with pytest.raises(RecordAltered, match=f"record {index}: is not in the tree of 7 records"):
            receipt(quick / "log", index)


def test_a_published_head_beyond_the_log_is_noticed(log: AuditLog, quick: Path, key: LogKey) -> None:
    notes.store(quick / "log", checkpoint.sign(log.origin, 9, bytes(32), key))
    for index in (0, 8):
        with pytest.raises(AuditLogInvalid, match="is not in the log"):
            receipt(quick / "log", index)


def test_everything_in_a_receipt_is_bound(log: AuditLog, quick: Path, key: LogKey) -> None:
    made, other = receipt(quick / "log", 4), receipt(quick / "log", 5)
    wrong_index = record.encode({**record.parse(made.record), "index": 5})
    no_index = record.encode({"event": "predict"})

    def check(change: Receipt, **options: object) -> None:
        settings = {"verifier": key.verifier, **options}
        open_receipt(change.record, change.proof, change.head, **settings)

    check(made)
    check(made, origin=log.origin)
    for forged in (
        Receipt(4, other.record, made.proof, made.head),
        Receipt(4, made.record, other.proof, made.head),
        Receipt(4, made.record, made.proof[1:], made.head),
        Receipt(4, made.record, (*made.proof, bytes(32)), made.head),
        Receipt(4, made.record, made.proof, receipt(quick / "log", 0).head),
        Receipt(4, wrong_index, made.proof, made.head),
    ):
        with pytest.raises(RecordAltered, match="is not in the tree"):
            check(forged)
    with pytest.raises(AuditLogInvalid, match="carries no index"):
        check(Receipt(4, no_index, made.proof, made.head))
    with pytest.raises(AuditLogInvalid, match="not in canonical form"):
        check(Receipt(4, made.record + b"\n", made.proof, made.head))
    with pytest.raises(AuditLogInvalid, match="wanted"):
        check(made, verifier=LogKey(bytes(64)).verifier)
    with pytest.raises(AuditLogInvalid, match="wanted 'another'"):
        check(made, origin="another")


def test_a_commitment_opens_to_one_input_and_one_answer(log: AuditLog, quick: Path, key: LogKey) -> None:
    made = receipt(quick / "log", 4)

    def check(**options: object) -> None:
        open_receipt(made.record, made.proof, made.head, verifier=key.verifier, **options)

    check(opening_key=opening(key, 4), input_bytes=b"input 4")
    check(opening_key=opening(key, 4), answer_bytes=b"answer 4")
    for options in (
        {"opening_key": opening(key, 4), "input_bytes": b"input 5"},
        {"opening_key": opening(key, 4), "answer_bytes": b"input 4"},
        {"opening_key": opening(key, 5), "input_bytes": b"input 4"},
    ):
        with pytest.raises(RecordAltered, match="record 4: commits to another"):
            check(**options)
    for missing in (None, b"short"):
        with pytest.raises(AuditLogInvalid, match="takes its opening key"):
            check(opening_key=missing, input_bytes=b"input 4")


@pytest.mark.parametrize("said", [{}, {"input": None}, {"input": 5}, {"input": "é"}])
def test_a_record_without_a_commitment_opens_to_nothing(
    opened: Opener, quick: Path, key: LogKey, said: dict[str, object]
) -> None:
    log = opened()
    entry = log.commit([said])[0]
    assert log.head is not None
    assert bytes.fromhex(entry.leaf) == leaf_hash(entry.record)
    with pytest.raises(RecordAltered, match="commits to another input"):
        open_receipt(entry.record, [], log.head, verifier=key.verifier, opening_key=opening(key, 0), input_bytes=b"")
