"""The collector's side: a gap, an altered record or another history is named, whatever order and noise it came in."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from speaking import Say

from pericard.audit import AuditLog, default_origin, open_head
from pericard.audit.reading import raw_records
from pericard.errors import AuditLogInvalid
from pericard.forward import gaps, message
from pericard.keys import LogKey

KEY = LogKey(bytes(range(64)))


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """Twenty records with heads after each five, as a collector stored them."""
    found = []
    with AuditLog.open(tmp_path / "audit", key=KEY) as log:
        sender = message.Sender(log.origin, "1", "host")
        for turn in range(4):
            log.commit([{"event": "predict", "outcome": "ok", "turn": turn}] * 5)
            signed = log.publish()
            assert signed is not None
            raws = list(raw_records(tmp_path / "audit", turn * 5))
            found += [message.of_record(index, raw, sender).decode() for index, raw in raws]
            found.append(message.of_head(signed, sender, 1.0).decode())
    return found


def believed(signed: bytes) -> Any:
    return open_head(signed, default_origin(KEY.verifier), KEY.verifier)


def one(lines: list[str], **how: Any) -> gaps.Gaps:
    (found,) = gaps.check(lines, open_head=believed, **how)
    return found


def record(lines: list[str], index: int) -> str:
    (found,) = [line for line in lines if f' idx="{index}"' in line]
    return found


def test_nothing_missing_in_any_order_with_repetitions_and_noise(lines: list[str]) -> None:
    rng = random.Random(1)
    noise = ["", "Nov 29 rsyslogd: started", '{"activity_id":', '{"activity_id":1}', record(lines, 3)[:-9], "{}"]
    mixed = lines * 2 + noise
    rng.shuffle(mixed)
    found = one(mixed)
    assert found.whole
    assert (found.records, found.repeated, found.heads, found.covered, found.unchecked) == (20, 20, 4, 20, 0)


@pytest.mark.parametrize(
    ("gone", "missing"),
    [([7], [(7, 7)]), ([0, 1], [(0, 1)]), ([4, 5, 9], [(4, 5), (9, 9)]), ([18, 19], [(18, 19)])],
)
def test_every_missing_index_is_named(lines: list[str], gone: list[int], missing: list[tuple[int, int]]) -> None:
    found = one([line for line in lines if line not in [record(lines, index) for index in gone]])
    assert found.missing == missing
    assert not found.whole
    assert found.unchecked == sum(size > gone[0] for size in (5, 10, 15, 20))


def test_a_collector_that_began_later_says_from_where(lines: list[str]) -> None:
    late = [line for line in lines if not re.search(r' idx="[0-4]"', line)]
    assert one(late).missing == [(0, 4)]
    assert one(late, start=5).missing == []


def test_an_altered_record_is_named_however_it_was_done(lines: list[str]) -> None:
    whole = record(lines, 7)
    body = json.loads(whole[whole.index("] {") + 2 :])
    raw = body["raw_data"].replace('"outcome":"ok"', '"outcome":"no"')
    crude = whole.replace(json.dumps(body["raw_data"]), json.dumps(raw))
    assert crude != whole
    found = one([crude if line == whole else line for line in lines])
    assert found.altered == ["line 9: is not what it says (record 7)"]
    assert found.missing == [(7, 7)]

    sender = message.Sender(body["metadata"]["log_name"], "1", "host")
    forged = message.of_record(7, raw.encode(), sender).decode()  # its leaf fits, and no head does
    found = one([forged if line == whole else line for line in lines])
    assert (found.altered, found.split) == ([], [10, 15, 20])
    found = one([*lines, forged])
    assert found.altered == ["line 25: holds another record 7 than came before"]


def test_a_head_by_another_key_counts_for_nothing(lines: list[str], tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "other", key=LogKey(bytes(64)), origin=default_origin(KEY.verifier)) as log:
        log.commit([{"event": "predict"}] * 5)
        assert log.head is not None
        forged = message.of_head(log.head, message.Sender(log.origin, "1", "host"), 1.0).decode()
    found = one([forged, *lines])
    assert found.split == []
    assert len(found.altered) == 1
    (unsigned,) = gaps.check([forged, *lines])
    assert unsigned.split == [5], "two heads of one size, and nobody to say which"


def test_two_logs_are_two_results(lines: list[str]) -> None:
    other = [line.replace(default_origin(KEY.verifier), "ward/7") for line in lines[:3]]
    found = gaps.check(lines + other)
    assert [(log.origin, log.records) for log in found] == [(default_origin(KEY.verifier), 20), ("ward/7", 3)]


def test_nothing_of_ours_is_no_success() -> None:
    with pytest.raises(AuditLogInvalid, match="none are in"):
        gaps.check(["Nov 29 something else"])


def test_the_command_ends_with_1_where_something_is_missing(lines: list[str], tmp_path: Path, say: Say) -> None:
    KEY.verifier.write(tmp_path / "log.pub")
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("\n".join(lines[:10]) + "\n")
    second.write_text("\n".join(lines[10:]))
    words = ["audit", "gaps", str(first), str(second), "--key", str(tmp_path / "log.pub")]
    good = say(*words)
    assert good.status == 0, good
    assert re.search(r"^missing +none$", good.out, re.MULTILINE)
    assert "20 records are under heads with a good signature" in good.err
    second.write_text("\n".join(lines[12:]))
    bad = say(*words, "--json")
    assert bad.status == 1
    found = json.loads(bad.out)
    assert found["missing"] == [[9, 9]]
