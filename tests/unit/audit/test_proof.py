"""The tree against RFC 6962's own definitions, written out naively here, and the reference roots of its first log."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pericard.audit import proof
from pericard.errors import RecordAltered, SplitView

# the eight leaves and roots that Certificate Transparency's implementations share as test data
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = st.integers(1, 70)


def leaves(count: int) -> list[bytes]:
    return [proof.leaf_hash(b"%d" % index) for index in range(count)]


def naive_root(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1."""
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return hashlib.sha256(b"\1" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


def naive_path(index: int, hashes: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 §2.1.1."""
    if len(hashes) == 1:
        return []
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    if index < k:
        return [*naive_path(index, hashes[:k]), naive_root(hashes[k:])]
    return [*naive_path(index - k, hashes[k:]), naive_root(hashes[:k])]


def naive_subproof(old: int, hashes: list[bytes], *, whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 §2.1.2."""
    if old == len(hashes):
        return [] if whole else [naive_root(hashes)]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    if old <= k:
        return [*naive_subproof(old, hashes[:k], whole=whole), naive_root(hashes[k:])]
    return [*naive_subproof(old - k, hashes[k:], whole=False), naive_root(hashes[:k])]


def test_the_reference_roots() -> None:
    tree = proof.CompactRange()
    assert tree.root() == proof.EMPTY_ROOT == hashlib.sha256().digest()
    for size, (leaf, root) in enumerate(zip(LEAVES, ROOTS, strict=True), 1):
        tree.append(proof.leaf_hash(bytes.fromhex(leaf)))
        assert (tree.size, tree.root().hex()) == (size, root)


def test_every_root_and_proof_up_to_70_leaves_is_what_the_rfc_defines() -> None:
    tree = proof.CompactRange()
    for size in range(1, 71):
        every = leaves(size)
        tree.append(every[-1])
        assert tree.root() == naive_root(every)
        for index in range(size):
            path = proof.inclusion_proof(iter(every), index, size)
            assert path == naive_path(index, every)
            proof.check_inclusion(every[index], index, size, path, tree.root())
            old = index + 1
            link = proof.consistency_proof(iter(every), old, size)
            assert link == naive_subproof(old, every, whole=True)
            proof.check_consistency(old, naive_root(every[:old]), size, tree.root(), link)


def test_a_copy_grows_alone() -> None:
    tree = proof.CompactRange()
    tree.append(leaves(1)[0])
    twin = tree.copy()
    twin.append(leaves(1)[0])
    assert (tree.size, twin.size) == (1, 2)
    assert tree.root() == naive_root(leaves(1))


@settings(deadline=None)
@given(st.data(), SIZES)
def test_an_inclusion_proof_holds_for_nothing_else(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    every = leaves(size)
    root, path = naive_root(every), naive_path(index, every)
    forged = list(path)
    change = data.draw(st.sampled_from(["leaf", "index", "size", "root", "drop", "add", "swap", "flip", "short"]))
    leaf, at, count = every[index], index, size
    if change == "leaf":
        leaf = proof.leaf_hash(b"another")
    elif change == "index":
        at = data.draw(st.integers(-2, 2 * size).filter(lambda other: other != index))
    elif change == "size":
        # a proof fixes the shape of the path, not the size; sizes of another shape must fail
        count = data.draw(st.sampled_from([0, -1, index, 2 ** (size.bit_length() + 1)]))
    elif change == "root":
        root = naive_root(leaves(size + 1))
    elif change == "drop" and forged:
        forged.pop(data.draw(st.integers(0, len(forged) - 1)))
    elif change == "swap" and len(forged) > 1:
        forged[0], forged[-1] = forged[-1], forged[0]
    elif change == "flip" and forged:
        at_byte = data.draw(st.integers(0, len(forged) - 1))
        forged[at_byte] = bytes([forged[at_byte][0] ^ 1]) + forged[at_byte][1:]
    elif change == "short" and forged:
        forged[0] = forged[0][:-1]
    else:
        forged.append(proof.EMPTY_ROOT)
    with pytest.raises(RecordAltered, match="not in the tree"):
        proof.check_inclusion(leaf, at, count, forged, root)


@settings(deadline=None)
@given(st.data(), SIZES, SIZES)
def test_a_consistency_proof_holds_for_nothing_else(data: st.DataObject, first: int, second: int) -> None:
    old, new = sorted((first, second))
    every = leaves(new)
    old_root, new_root, link = naive_root(every[:old]), naive_root(every), naive_subproof(old, every, whole=True)
    change = data.draw(st.sampled_from(["old root", "new root", "swap", "drop", "add", "flip", "order", "empty"]))
    if change == "old root":
        old_root = naive_root([proof.leaf_hash(b"another"), *every[1:old]])
    elif change == "new root":
        new_root = naive_root([*every, *every])
    elif change == "swap" and old != new:
        old_root, new_root = new_root, old_root
    elif change == "drop" and link:
        link.pop(data.draw(st.integers(0, len(link) - 1)))
    elif change == "flip" and link:
        link[0] = bytes([link[0][0] ^ 1]) + link[0][1:]
    elif change == "order" and old != new:
        old, new = new, old
    elif change == "empty":
        old = 0
    else:
        link.append(proof.EMPTY_ROOT)
    with pytest.raises(SplitView, match="not proven to continue"):
        proof.check_consistency(old, old_root, new, new_root, link)


def test_making_a_proof_refuses_what_is_not_there() -> None:
    for index, size in ((1, 1), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="not in a tree"):
            proof.inclusion_proof(leaves(2), index, size)
    for old, new in ((0, 1), (3, 2)):
        with pytest.raises(ValueError, match="cannot continue"):
            proof.consistency_proof(leaves(3), old, new)
    with pytest.raises(ValueError, match="fewer leaves"):
        proof.inclusion_proof(leaves(6), 0, 7)
    with pytest.raises(ValueError, match="fewer leaves"):
        proof.consistency_proof(leaves(6), 3, 7)


def test_between_different_sizes_an_empty_proof_proves_nothing() -> None:
    for old in (3, 4):
        with pytest.raises(SplitView):
            proof.check_consistency(old, naive_root(leaves(old)), 5, naive_root(leaves(5)), [])
