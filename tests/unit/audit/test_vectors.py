"""The vectors: they say what they say, a fresh run makes the same bytes, and each reader refuses what it should."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pericard.audit import AuditLog, Receipt, log, open_head, open_receipt, record, records, segment
from pericard.audit import note as notes
from pericard.audit.proof import CompactRange, check_consistency, check_inclusion, consistency_proof, inclusion_proof
from pericard.audit.verify import verify
from pericard.errors import AuditError, AuditLogInvalid
from pericard.keys import LogKey, LogVerifier

VECTORS = Path(__file__).parents[2] / "vectors"
LOGS = sorted(path.name for path in (VECTORS / "audit" / "logs").iterdir())
EXAMPLES = json.loads((VECTORS / "audit" / "examples.json").read_text("ascii"))
REFUSED = json.loads((VECTORS / "audit" / "refused-receipts.json").read_text("ascii"))
HEADS = json.loads((VECTORS / "audit" / "published-heads.json").read_text("ascii"))
VERIFIER = LogVerifier(bytes.fromhex(EXAMPLES["log_public_key"]))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_audit", VECTORS / "generate" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tree(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_a_fresh_run_makes_the_same_bytes(generator: ModuleType, quick: Path) -> None:
    generator.generate(quick)
    fresh, kept = tree(quick), tree(VECTORS / "audit")
    fresh["published-heads.json"] = kept["published-heads.json"]  # ML-DSA draws random numbers
    assert sorted(fresh) == sorted(kept)
    assert [name for name in fresh if fresh[name] != kept[name]] == []


@pytest.mark.parametrize("name", LOGS)
def test_each_log_verifies_or_fails_as_expected(name: str) -> None:
    directory = VECTORS / "audit" / "logs" / name
    expected = json.loads((directory / "expected.json").read_text("ascii"))
    known = [path.read_bytes() for path in directory.glob("known-head")]
    if expected["code"] is None:
        report = verify(directory, verifier=VERIFIER, heads=known)
        assert report.size == expected["size"]
        assert [index for index, _ in records(directory)] == list(range(report.first, expected["size"]))
        return
    with pytest.raises(AuditError) as refused:
        verify(directory, verifier=VERIFIER, heads=known)
    assert refused.value.code == expected["code"]


@pytest.mark.parametrize("name", LOGS)
def test_the_writer_refuses_or_goes_on_as_expected(name: str, quick: Path) -> None:
    source = VECTORS / "audit" / "logs" / name
    expected = json.loads((source / "expected.json").read_text("ascii"))
    directory = quick / name
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    before = tree(directory)
    key = LogKey(bytes(range(64)))
    code = expected.get("writer", expected["code"])
    if code in (None, "goes on"):
        with AuditLog.open(directory, key=key) as opened:
            assert opened.next_index == expected.get("size", opened.next_index)
        return
    with pytest.raises(AuditError) as refused:
        AuditLog.open(directory, key=key)
    assert refused.value.code == code
    assert tree(directory) == before


def test_every_audit_error_a_reader_can_meet_has_a_vector() -> None:
    codes = {json.loads((VECTORS / "audit" / "logs" / name / "expected.json").read_text())["code"] for name in LOGS}
    leaves = {kind.code for kind in AuditError.__subclasses__()}
    assert codes - {None} == leaves - {"audit-unavailable"}


def test_the_examples_hold() -> None:
    key = bytes.fromhex(EXAMPLES["commitment_key"])
    for index, opening in EXAMPLES["opening_keys"].items():
        assert record.opening_key(key, int(index)).hex() == opening
    for case in EXAMPLES["commitments"]:
        opening_key = record.opening_key(key, case["index"])
        assert record.commit(opening_key, case["label"], bytes.fromhex(case["data"])) == case["commitment"]
    grown = CompactRange()
    leaves = [bytes.fromhex(leaf) for leaf in EXAMPLES["leaves"]]
    roots = [bytes.fromhex(root) for root in EXAMPLES["roots"]]
    for leaf, root in zip([None, *leaves], roots, strict=True):
        if leaf is not None:
            grown.append(leaf)
        assert grown.root() == root
    for case in EXAMPLES["inclusion"]:
        path = [bytes.fromhex(part) for part in case["proof"]]
        assert inclusion_proof(leaves, case["index"], case["size"]) == path
        check_inclusion(leaves[case["index"]], case["index"], case["size"], path, roots[case["size"]])
    for case in EXAMPLES["consistency"]:
        path = [bytes.fromhex(part) for part in case["proof"]]
        assert consistency_proof(leaves, case["old"], case["new"]) == path
        check_consistency(case["old"], roots[case["old"]], case["new"], roots[case["new"]], path)
    for text in EXAMPLES["canonical_records"]:
        assert record.encode(record.parse(text.encode("ascii"))) == text.encode("ascii")
    for text in EXAMPLES["not_records"]:
        with pytest.raises(AuditLogInvalid):
            record.parse(text.encode())


def test_the_specification_states_this_code_s_limits_and_errors() -> None:
    page = (VECTORS.parents[1] / "docs" / "spec" / "audit-log.md").read_text("utf-8")
    for name, value in {
        "record": f"{record.MAX_RECORD} bytes",
        "depth of a record": record.MAX_DEPTH,
        "head": f"{notes.MAX_NOTE} bytes",
        "signature lines": notes.MAX_SIGNATURES,
        "records in a group": log.MAX_RECORDS,
        "group": f"{segment.MAX_GROUP} bytes",
        "segment as written": f"{log.SEGMENT_BYTES} bytes",
        "segment as read": f"{segment.MAX_SEGMENT} bytes",
        "size of a log": f"{notes.MAX_SIZE} records",
    }.items():
        assert f"\n| {name} | {value} |\n" in page
    assert f'"{record.OPENING_KEY_CONTEXT}"' in page
    assert f"every {log.CHECKPOINT_EVERY} groups" in page
    for kind in AuditError.__subclasses__():
        assert f"| `{kind.code}` |" in page


@pytest.mark.parametrize("made", HEADS["heads"], ids=lambda made: made["why"])
def test_each_published_head_opens_or_does_not(made: dict[str, Any]) -> None:
    verifier = LogVerifier(VERIFIER.public, bytes.fromhex(HEADS["second_public_key"]))
    assert verifier.second == LogKey(bytes(range(64))).verifier.second
    if made["opens"]:
        assert open_head(made["head"].encode(), EXAMPLES["origin"], verifier, published=True).size == 6
        return
    with pytest.raises(AuditLogInvalid):
        open_head(made["head"].encode(), EXAMPLES["origin"], verifier, published=True)


def opened(made: dict[str, Any]) -> dict[str, object]:
    said = {name: made[name] for name in ("index", "record", "proof", "head")}
    given = Receipt.from_json(json.dumps(said).encode())
    assert json.loads(given.to_json()) == said
    return open_receipt(
        given.record,
        given.proof,
        given.head,
        verifier=VERIFIER,
        opening_key=bytes.fromhex(made["opening_key"]),
        input_bytes=made["input"] and made["input"].encode(),
        answer_bytes=made["answer"] and made["answer"].encode(),
    )


def test_the_receipts_open() -> None:
    receipts = json.loads((VECTORS / "audit" / "receipts.json").read_text("ascii"))
    assert [made["index"] for made in receipts] == list(range(6))
    for made in receipts:
        assert opened(made)["index"] == made["index"]


@pytest.mark.parametrize("made", REFUSED, ids=lambda made: made["why"])
def test_each_receipt_with_something_wrong_is_refused(made: dict[str, Any]) -> None:
    with pytest.raises(AuditError) as refused:
        opened(made)
    assert refused.value.code == ("audit-log-invalid" if made["part"] in {"form", "head"} else "audit-record-altered")
    if made["part"] in {"input", "answer"}:
        assert f"commits to another {made['part']}" in refused.value.message
