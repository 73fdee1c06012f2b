"""The Merkle tree over the records, and proofs about it.

Rules of this module: hashes only, no files and no signatures; the tree is that of RFC 6962 §2.1 with SHA-256, proofs
are made as there (§2.1.1, §2.1.2) and checked as in RFC 9162 §2.1.3.2 and §2.1.4.2. A check raises or returns nothing.
Making a proof reads each leaf once and remembers O(log n) hashes, so the log may be larger than memory.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Final

from pericard.errors import RecordAltered, SplitView

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(record: bytes) -> bytes:
    """The leaf of one record: SHA-256 over 0x00 ‖ record."""
    return hashlib.sha256(b"\x00" + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """An inner node: SHA-256 over 0x01 ‖ left ‖ right."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The tree over everything appended so far, kept as the roots of its full subtrees, largest first.

    There is one such root per set bit of the size: the state is O(log n) hashes, and an append makes one on average.

    Attributes:
        size: the number of leaves.
    """

    __slots__ = ("_roots", "size")

    def __init__(self) -> None:
        """Start with the empty tree."""
        self.size = 0
        self._roots: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        node, carry = leaf, self.size
        while carry & 1:
            node = hashlib.sha256(b"\x01" + self._roots.pop() + node).digest()
            carry >>= 1
        self._roots.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The tree's root hash; of the empty tree, the hash of nothing."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> CompactRange:
        """An independent copy."""
        twin = CompactRange()
        twin.size = self.size
        twin._roots = self._roots.copy()
        return twin


def inclusion_proof(leaves: Iterable[bytes], index: int, size: int) -> list[bytes]:
    """Prove that a leaf is in the tree over the first ``size`` leaf hashes (RFC 6962 §2.1.1, PATH).

    Raises:
        ValueError: there is no such leaf, or fewer leaves than ``size``.
    """
    return _roots_of(leaves, inclusion_spans(index, size))


def consistency_proof(leaves: Iterable[bytes], old: int, new: int) -> list[bytes]:
    """Prove that the tree over the first ``new`` leaf hashes continues that over the first ``old`` (§2.1.2, PROOF).

    Raises:
        ValueError: the sizes are out of order, or there are fewer leaves than ``new``.
    """
    return _roots_of(leaves, consistency_spans(old, new))


def inclusion_spans(index: int, size: int) -> list[tuple[int, int]]:
    """The spans of leaves, first and one past the last, whose roots are an inclusion proof, in its order.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    siblings: list[tuple[int, int]] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + split(high - low)
        if index < middle:
            siblings.append((middle, high))
            high = middle
        else:
            siblings.append((low, middle))
            low = middle
    return siblings[::-1]


def consistency_spans(old: int, new: int) -> list[tuple[int, int]]:
    """The spans of leaves whose roots are a consistency proof, in its order.

    Raises:
        ValueError: the sizes are out of order.
    """
    if not 0 < old <= new:
        raise ValueError(f"a tree of {new} leaves cannot continue one of {old}")
    spans: list[tuple[int, int]] = []
    low, high, whole = 0, new, True
    while high != old:
        middle = low + split(high - low)
        if old <= middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low, whole = middle, False
    if not whole:
        spans.append((low, high))
    return spans[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check an inclusion proof (RFC 9162 §2.1.3.2).

    Raises:
        RecordAltered: it does not lead from this leaf to this root.
    """
    failure = RecordAltered(f"record {index}: is not in the tree of {size} records that was signed")
    if not 0 <= index < size or not _are_hashes(leaf, root, *proof):
        raise failure
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise failure
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            position, last = _climb(position, last)
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or not hmac.compare_digest(node, root):
        raise failure


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check a consistency proof (RFC 9162 §2.1.4.2); about the empty tree there is nothing to prove.

    Raises:
        SplitView: the larger tree is not proven to continue the smaller one.
    """
    failure = SplitView(f"heads of {old} and {new} records: the second is not proven to continue the first")
    if not 0 < old <= new or not _are_hashes(old_root, new_root, *proof):
        raise failure
    if old == new:
        if proof or old_root != new_root:
            raise failure
        return
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        raise failure
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_node = new_node = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise failure
        if position & 1 or position == last:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
            position, last = _climb(position, last)
        else:
            new_node = node_hash(new_node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or (old_node, new_node) != (old_root, new_root):
        raise failure


def _are_hashes(*values: bytes) -> bool:
    return all(len(value) == HASH_SIZE for value in values)


def _climb(position: int, last: int) -> tuple[int, int]:
    """Skip the levels on which the rightmost node has no sibling."""
    while position and not position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def split(count: int) -> int:
    """The largest power of two smaller than ``count`` (> 1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _roots_of(leaves: Iterable[bytes], spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The roots over disjoint spans of leaves, in the order of ``spans``, in one pass."""
    ranges = {span: CompactRange() for span in spans}
    pending = sorted(spans, reverse=True)
    for index, leaf in enumerate(leaves):
        if pending and index == pending[-1][1]:
            pending.pop()
        if not pending:
            break
        if index >= pending[-1][0]:
            ranges[pending[-1]].append(leaf)
    if any(found.size != high - low for (low, high), found in ranges.items()):
        raise ValueError("there are fewer leaves than the tree has")
    return [ranges[span].root() for span in spans]
