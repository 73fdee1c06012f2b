"""Verifying a receipt: the head, the record under it, and what the record commits to."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pericard_client.errors import MalformedEvidence, OtherAnswer, OtherInput, OtherRecord, RecordNotProven
from pericard_client.evidence.commitments import members, open_commitment
from pericard_client.evidence.notes import Head, LogKey, open_head
from pericard_client.models import Proof, Receipt

_MOST_NODES = 108


@dataclass(frozen=True, slots=True)
class Verified:
    """What holds.

    Attributes:
        log: the log's name.
        size: records under the signed head.
        record: the record's members.
        opened: what of the commitments was opened, too: ``answer``, ``input``.
    """

    log: str
    size: int
    record: Mapping[str, Any]
    opened: tuple[str, ...]


def verify(
    proof: Proof,
    key: LogKey,
    *,
    receipt: Receipt | None = None,
    answer: Iterable[bytes] | None = None,
    sent: Iterable[bytes] | None = None,
) -> Verified:
    """Verify offline that a log holds a record, and that the record is an answer's.

    Args:
        proof: what the server gave of the record.
        key: the log's public key.
        receipt: came with the answer; names the record and brings the opening key.
        answer: what was answered, in every type that the numbers may have had; takes ``receipt``.
        sent: what was asked, likewise.

    Raises:
        MalformedEvidence: something is not what it should be.
        HeadNotSigned: the head is not of this log, or was altered.
        RecordNotProven: the record is not under the head.
        OtherRecord: the answer names another record.
        OtherAnswer, OtherInput: the record commits to something else.
        VerifierMissing: the extra ``verify`` is not installed.
    """
    head = open_head(proof.head, key)
    fields = members(proof.record)
    leaf = hashlib.sha256(b"\x00" + proof.record.encode("ascii")).digest()
    index = fields.get("index")
    if type(index) is not int or fields.get("v") != 1:
        raise MalformedEvidence("record: carries no index, or is of another version")
    check_inclusion(leaf, index, proof.proof, head)
    if receipt is None:
        if answer is not None or sent is not None:
            raise MalformedEvidence("answer: takes its receipt to be held against a record")
        return Verified(head.origin, head.size, fields, ())
    if (receipt.log, receipt.index, receipt.leaf) != (head.origin, index, leaf.hex()):
        raise OtherRecord(
            f"record {index}: is not the one that the answer names, {receipt.index} of {receipt.log}",
            hint="one of the two was altered, or they do not belong together",
        )
    opened = []
    if answer is not None:
        open_commitment(fields, "answer", receipt.opening_key, answer, OtherAnswer)
        opened.append("answer")
    if sent is not None:
        open_commitment(fields, "input", receipt.opening_key, sent, OtherInput)
        opened.append("input")
    return Verified(head.origin, head.size, fields, tuple(opened))


def check_inclusion(leaf: bytes, index: int, path: Sequence[bytes], head: Head) -> None:
    """Check an inclusion proof as in RFC 9162 §2.1.3.2.

    Raises:
        RecordNotProven: it does not lead from this leaf to the head's root.
    """
    failure = RecordNotProven(f"record {index}: is not among the {head.size} records that were signed")
    if not 0 <= index < head.size or len(path) > _MOST_NODES:
        raise failure
    place, last, node = index, head.size - 1, leaf
    for sibling in path:
        if last == 0:
            raise failure
        if place & 1 or place == last:
            node = hashlib.sha256(b"\x01" + sibling + node).digest()
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\x01" + node + sibling).digest()
        place, last = place >> 1, last >> 1
    if last != 0 or not hmac.compare_digest(node, head.root):
        raise failure
