"""The tree in memory gives the proofs that reading every leaf gives, and reads little for each of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pericard.audit import AuditLog, pruned, segment
from pericard.audit.proof import (
    consistency_proof,
    consistency_spans,
    inclusion_proof,
    inclusion_spans,
    leaf_hash,
)
from pericard.audit.receipt import open_receipt, receipt
from pericard.audit.tree import BLOCK, Tree
from pericard.errors import AuditLogInvalid, LogTruncated, Overloaded, RecordAltered
from pericard.keys import LogKey

Opener = Callable[..., AuditLog]
SIZE = 5 * BLOCK + 77


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A log of several segments and uneven groups, and its leaves."""
    directory = tmp_path_factory.mktemp("tree") / "log"
    key, leaves = LogKey(bytes(range(64))), []
    with AuditLog.open(directory, key=key, segment_bytes=40_000) as log:
        while len(leaves) < SIZE:
            count = min(1 + len(leaves) % 61, SIZE - len(leaves))
            made = log.commit([{"event": "x", "pad": "y" * (place % 50)} for place in range(count)])
            leaves += [leaf_hash(entry.record) for entry in made]
    assert len(segment.listing(directory)) > 3
    return directory, leaves


@pytest.fixture(scope="module")
def grown(whole: tuple[Path, list[bytes]]) -> Tree:
    tree = Tree(whole[0])
    tree.grow(SIZE)
    assert tree.known == 5 * BLOCK
    return tree


def test_its_proofs_outlive_the_records(whole: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    """A tree that was read before a segment was pruned, one that is read after, and one that is read on meanwhile."""
    directory, leaves = tmp_path / "log", whole[1]
    shutil.copytree(whole[0], directory)
    before, meanwhile = Tree(directory), Tree(directory)
    before.grow(SIZE)
    meanwhile.grow(2 * BLOCK)
    for part in pruned.prunable(directory, before="2999", below=SIZE)[:2]:
        pruned.prune(directory, part)
    first = pruned.beginning(directory)
    assert BLOCK < first < 4 * BLOCK
    assert first % BLOCK

    for tree in (before, meanwhile, Tree(directory)):
        tree.grow(SIZE)
        assert tree.beginning == first
        for index in (0, 3, BLOCK, first - 1, first, first + 1, SIZE - 1):
            assert tree.roots(inclusion_spans(index, SIZE)) == inclusion_proof(leaves, index, SIZE)
            if index < first:
                with pytest.raises(AuditLogInvalid, match=f"record {index}: was pruned"):
                    tree.record(index)
                with pytest.raises(AuditLogInvalid, match="not in the log"):
                    tree.group(index)
            else:
                assert leaf_hash(tree.record(index)) == leaves[index]
        for old in (1, 5, BLOCK, first, SIZE - 1):
            assert tree.roots(consistency_spans(old, SIZE)) == consistency_proof(leaves, old, SIZE)

    (directory / segment.file_name(first)).unlink()
    with pytest.raises(LogTruncated):
        Tree(directory).grow(SIZE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_its_proofs_are_those_of_every_leaf(data: st.DataObject, whole: tuple[Path, list[bytes]], grown: Tree) -> None:
    _, leaves = whole
    size = data.draw(st.integers(1, SIZE))
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))

    assert grown.roots(inclusion_spans(index, size)) == inclusion_proof(leaves, index, size)
    assert grown.roots(consistency_spans(old, size)) == consistency_proof(leaves, old, size)


def test_it_finds_records_and_groups_wherever_they_lie(whole: tuple[Path, list[bytes]], grown: Tree) -> None:
    _, leaves = whole
    assert [leaf_hash(data) for data in grown.records(0, SIZE + 5)] == leaves
    for start in (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 17, SIZE - 1):
        assert [leaf_hash(data) for data in grown.records(start, start + 3)] == leaves[start : start + 3]
        assert leaf_hash(grown.record(start)) == leaves[start]
        group = grown.group(start)
        assert group.first <= start < group.first + len(group.records)
    for missing in (-1, SIZE):
        with pytest.raises(AuditLogInvalid, match=f"record {missing}: is not in the log"):
            grown.group(missing)
    with pytest.raises(AuditLogInvalid, match=f"record {SIZE}: is not in the log"):
        grown.record(SIZE)
    with pytest.raises(AuditLogInvalid, match=f"record {SIZE}: is not in the log"):
        grown.roots([(SIZE - 1, SIZE + 1)])


def test_a_proof_reads_a_few_blocks(
    whole: tuple[Path, list[bytes]], grown: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = whole
    read: list[tuple[int, int | None]] = []
    reads = segment.Segment.read

    def counted(part: segment.Segment, offset: int = 0, most: int | None = None) -> bytes:
        read.append((part.first, most))
        return reads(part, offset, most)

    monkeypatch.setattr(segment.Segment, "read", counted)
    receipt(directory, 3 * BLOCK + 5, grown)

    parts = [part.first for part in segment.listing(directory)]
    held = [first for first in parts if 2 * BLOCK < first < 4 * BLOCK or first > 4 * BLOCK]
    assert {first for first, _ in read} <= set(held) < set(parts)  # its own block and the last one
    assert len(read) <= 6
    assert all(most == segment.WINDOW for _, most in read)


def test_growing_stops_when_it_is_told_and_goes_on_from_there(whole: tuple[Path, list[bytes]]) -> None:
    directory, leaves = whole
    tree, pauses = Tree(directory), 0

    def once() -> None:
        nonlocal pauses
        pauses += 1
        raise Overloaded("later")

    for blocks in range(1, 6):
        with pytest.raises(Overloaded):
            tree.grow(SIZE, once)
        assert (tree.known, pauses) == (blocks * BLOCK, blocks)
    tree.grow(SIZE, once)
    assert pauses == 5
    assert tree.roots(inclusion_spans(700, SIZE)) == inclusion_proof(leaves, 700, SIZE)


def test_it_follows_a_log_that_grows(opened: Opener, quick: Path, key: LogKey) -> None:
    log, tree = opened(segment_bytes=30_000), Tree(quick / "log")
    for count in (1, 254, 1, 3, 260, 512, 9):
        log.commit([{"event": "x"}] * count)
        for index in (0, log.next_index - 1, log.next_index // 2):
            made = receipt(quick / "log", index, tree)
            open_receipt(made.record, made.proof, made.head, verifier=key.verifier)
    assert tree.known == log.next_index // BLOCK * BLOCK


def test_a_log_that_is_shorter_or_has_a_gap_is_noticed(whole: tuple[Path, list[bytes]], quick: Path) -> None:
    directory, _ = whole
    with pytest.raises(AuditLogInvalid, match="is not in the log"):
        Tree(directory).grow(SIZE + BLOCK)
    copy = quick / "copy"
    copy.mkdir()
    parts = segment.listing(directory)
    for part in (*parts[:1], *parts[2:]):
        (copy / part.path.name).write_bytes(part.path.read_bytes())
    with pytest.raises(LogTruncated, match="their segment is missing"):
        Tree(copy).grow(SIZE)


def test_a_tree_that_was_read_before_the_disk_changed_makes_no_receipt(
    whole: tuple[Path, list[bytes]], quick: Path
) -> None:
    directory, _ = whole
    copy = quick / "copy"
    copy.mkdir()
    for path in directory.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tree = Tree(copy)
    tree.grow(SIZE)
    first = copy / segment.file_name(0)
    group, *_ = segment.groups(first.read_bytes(), 0, newest=True)
    forged = segment.frame(segment.RECORD, group.records[0].replace(b'"x"', b'"y"'))
    first.write_bytes(forged + first.read_bytes()[len(forged) :])

    with pytest.raises(RecordAltered, match="record 0: is not in the tree"):
        receipt(copy, 0, tree)
