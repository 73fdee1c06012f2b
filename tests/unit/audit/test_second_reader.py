"""A reader written from the specification alone makes the same of every vector, and of what is done to a real log."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pericard.audit import AuditLog, segment
from pericard.audit.consistency import consistency
from pericard.audit.receipt import receipt
from pericard.audit.verify import verify
from pericard.errors import AuditError
from pericard.keys import LogKey, LogVerifier

TESTS = Path(__file__).parents[2]
VECTORS = TESTS / "vectors" / "audit"
EXAMPLES = json.loads((VECTORS / "examples.json").read_text("ascii"))
HEADS = json.loads((VECTORS / "published-heads.json").read_text("ascii"))
LOGS = sorted(path.name for path in (VECTORS / "logs").iterdir())
FIRST, SECOND = bytes.fromhex(EXAMPLES["log_public_key"]), bytes.fromhex(HEADS["second_public_key"])

sys.path.insert(0, str(TESTS / "reader"))
reader: ModuleType = importlib.import_module("audit_reader")
sys.path.pop(0)

KEY = reader.Key(EXAMPLES["origin"], FIRST)
BOTH = reader.Key(EXAMPLES["origin"], FIRST, SECOND)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def code(key: Any, given: Mapping[str, bytes], heads: list[bytes]) -> str | None:
    try:
        reader.verify(given, key, heads)
    except reader.Refused as refused:
        return str(refused)
    return None


def test_it_has_nothing_of_the_product() -> None:
    source = (TESTS / "reader" / "audit_reader.py").read_text()
    assert "pericard" not in source


@pytest.mark.parametrize("name", LOGS)
def test_each_log_verifies_or_fails_as_expected(name: str) -> None:
    given = files(VECTORS / "logs" / name)
    expected = json.loads(given["expected.json"])
    assert code(KEY, given, [given["known-head"]] if "known-head" in given else []) == expected["code"]


def opened(data: bytes, made: dict[str, Any]) -> str | None:
    committed = {label: made[label].encode() for label in ("input", "answer") if made[label] is not None}
    try:
        reader.receipt(data, KEY, bytes.fromhex(made["opening_key"]), **committed)
    except reader.Refused as refused:
        return str(refused)
    return None


def test_each_receipt_opens_or_fails_as_expected() -> None:
    for file in ("receipts.json", "refused-receipts.json"):
        for made in json.loads((VECTORS / file).read_text("ascii")):
            said = {name: made[name] for name in ("index", "record", "proof", "head")}
            wanted = {"form": "audit-log-invalid", "head": "audit-log-invalid"}.get(
                made.get("part"), "audit-record-altered"
            )
            assert opened(json.dumps(said).encode(), made) == (wanted if "part" in made else None), made


def test_each_head_and_each_example_holds() -> None:
    for made in HEADS["heads"]:
        try:
            assert reader.head(made["head"].encode(), BOTH, published=True)[0] == 6
            found = True
        except reader.Refused:
            found = False
        assert found == made["opens"], made["why"]
    leaves = [bytes.fromhex(leaf) for leaf in EXAMPLES["leaves"]]
    roots = [bytes.fromhex(root) for root in EXAMPLES["roots"]]
    assert [reader.root(leaves[:size]) for size in range(len(roots))] == roots
    for case in EXAMPLES["inclusion"]:
        path = [bytes.fromhex(part) for part in case["proof"]]
        assert reader.rooted(case["index"], case["size"], leaves[case["index"]], path) == roots[case["size"]]
        assert reader.steps(case["index"], case["size"]) == len(path)
    for case in EXAMPLES["consistency"]:
        path, (old, new) = [bytes.fromhex(part) for part in case["proof"]], (case["old"], case["new"])
        assert reader.grown(old, new, path, roots[old]) == (roots[old], roots[new])
    for text in EXAMPLES["canonical_records"]:
        reader.record(text.encode(), "x")
    for text in EXAMPLES["not_records"]:
        with pytest.raises(reader.Refused):
            reader.record(text.encode("utf-8", "surrogatepass"), "x")


# --- a real log -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[bytes]]:
    """A log of several segments, the reader's key, and published heads."""
    directory, heads = tmp_path_factory.mktemp("second") / "log", []
    key = LogKey(bytes(range(64)))
    with AuditLog.open(directory, key=key, segment_bytes=1500) as log:
        for count in (1, 3, 2, 5, 1, 4):
            log.commit([{"event": "x", "text": "\x7f\u2028é" * count}] * count)
            heads.append(log.publish() or b"")
    return directory, BOTH, heads


def test_both_readers_take_a_real_log(site: tuple[Path, Any, list[bytes]]) -> None:
    directory, key, heads = site
    report = verify(directory, verifier=LogVerifier(FIRST, SECOND), heads=heads[:3])
    assert reader.verify(files(directory), key, heads[:3]) == (report.size, bytes.fromhex(report.root), report.covered)
    for index in range(report.size):
        assert reader.receipt(receipt(directory, index).to_json(), key)["index"] == index
    for place, old in enumerate(heads):
        for new in heads[place:]:
            made = consistency(directory, old, new).to_json()
            assert reader.consistency(made, key)[0] == reader.head(old, key)[0]


def spoilt(given: dict[str, bytes], draw: random.Random) -> dict[str, bytes]:
    """A log after one edit, cut, swap or splice of its bytes."""
    name = draw.choice(sorted(given))
    data = bytearray(given[name])
    kind = draw.choice(("flip", "cut", "swap", "splice", "repeat", "insert", "remove"))
    a, b = sorted((draw.randrange(len(data)), draw.randrange(len(data))))
    if kind == "flip":
        data[a] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[a:]
    elif kind == "swap":
        data[a], data[b] = data[b], data[a]
    elif kind == "splice":
        other = given[draw.choice(sorted(given))]
        data[a:b] = other[a : a + (b - a)]
    elif kind == "repeat":
        data[a:a] = data[a:b]
    elif kind == "insert":
        data[a:a] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
    else:
        return {other: kept for other, kept in given.items() if other != name}
    return {**given, name: bytes(data)}


def test_whatever_is_done_to_a_log_neither_takes_it_for_another(
    site: tuple[Path, Any, list[bytes]], quick: Path
) -> None:
    """A thousand random edits: both readers say the same, and what passes is the very same history."""
    directory, key, heads = site
    whole, draw = files(directory), random.Random(20261129)
    truth = reader.verify(whole, key)
    passed = 0
    for number in range(1000):
        given = spoilt(whole, draw)
        found = code(key, given, heads[-1:])
        copy = quick / str(number)
        copy.mkdir()
        for name, data in given.items():
            (copy / name).write_bytes(data)
        if found is not None:
            with pytest.raises(AuditError) as refused:
                verify(copy, verifier=LogVerifier(FIRST, SECOND), heads=heads[-1:])
            assert refused.value.code == found, number
            continue
        report = verify(copy, verifier=LogVerifier(FIRST, SECOND), heads=heads[-1:])
        assert (report.size, bytes.fromhex(report.root)) == truth[:2]
        passed += 1
    assert passed < 250  # a file that nothing needs, or a swap of equal bytes


def test_a_tail_dropped_with_its_heads_is_caught_by_a_head_that_left(
    site: tuple[Path, Any, list[bytes]], quick: Path
) -> None:
    directory, key, heads = site
    given = files(directory)
    newest = max(name for name in given if name.endswith(".log") and given[name])
    groups = list(segment.groups(given[newest], int(newest[:20]), newest=True))
    shorter = {**given, newest: given[newest][: groups[-2].end] if len(groups) > 1 else b""}
    del shorter["checkpoint"]

    assert code(key, shorter, []) is None
    assert code(key, shorter, heads[-1:]) == "audit-log-truncated"
