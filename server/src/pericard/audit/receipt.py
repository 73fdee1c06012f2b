"""Receipts: one record, the proof that it is in the log, and the signed head it is proven under.

Rules of this module: a receipt shows one record and nothing of its neighbours but hashes. Opening one needs no log, no
network and no private key; opening what the record commits to needs the opening key that came with the answer. As a
file a receipt is one JSON object, read strictly.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pericard.audit import checkpoint, note, proof, record
from pericard.audit.reading import reading
from pericard.audit.tree import Tree
from pericard.errors import AuditLogInvalid, RecordAltered
from pericard.keys import LogVerifier

MOST_NODES: Final = 108  # of a proof about 2^53 records

_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What proves one record to somebody who has only the log's public key.

    Attributes:
        index: the record's place in the log.
        record: its canonical bytes.
        proof: the inclusion proof, 32 bytes each, from the leaf upwards.
        head: the signed note of the tree that it is proven in.
    """

    index: int
    record: bytes
    proof: tuple[bytes, ...]
    head: bytes

    def to_json(self) -> bytes:
        """The receipt as a file holds it and the server sends it."""
        nodes = [node.hex() for node in self.proof]
        return msgspec.json.encode(_Said(self.index, self.record.decode("ascii"), nodes, self.head.decode()))

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """Read a receipt; nothing that it says is believed before :func:`open_receipt`.

        Raises:
            AuditLogInvalid: it is none.
        """
        try:
            said = msgspec.json.decode(data, type=_Said)
            return cls(said.index, said.record.encode("ascii"), hashes(said.proof), said.head.encode())
        except ValueError as error:  # also what msgspec raises, and text that is not ASCII
            raise AuditLogInvalid(
                "receipt: is not a receipt", hint="give what GET /audit/receipts or pericard audit prove gave"
            ) from error


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    index: int
    record: str
    proof: list[str]
    head: str


def hashes(nodes: Sequence[str]) -> tuple[bytes, ...]:
    """A proof's hashes, from hex.

    Raises:
        ValueError: one is none, or there are more than any tree needs.
    """
    if len(nodes) > MOST_NODES or not all(_HASH.fullmatch(node) for node in nodes):
        raise ValueError("proof")
    return tuple(map(bytes.fromhex, nodes))


def receipt(directory: Path, index: int, tree: Tree | None = None) -> Receipt:
    """Make the receipt of one record, from the log's files alone.

    It is proven under the published checkpoint if that covers the record, otherwise under the head of the record's own
    group, which is durable for everybody who has the answer.

    Args:
        directory: the log's directory.
        index: the record's place in the log.
        tree: what was read of this log before; without it, everything up to the head is read.

    Raises:
        AuditLogInvalid: the log has no such record under a head, or cannot be read.
        RecordAltered, LogTruncated: the log's records do not lead to the head.
    """
    known = Tree(directory) if tree is None else tree
    with reading(directory):
        signed = note.load(directory)
        if signed is None or note.claims(signed).size <= index:
            signed = known.group(index).head
        head = note.claims(signed)
        try:
            spans = proof.inclusion_spans(index, head.size)
        except ValueError as error:
            raise AuditLogInvalid(f"record {index}: is not in the log") from error
        known.grow(head.size)
        data = known.record(index)
        path = known.roots(spans)
    proof.check_inclusion(proof.leaf_hash(data), index, head.size, path, head.root)
    return Receipt(index, data, tuple(path), signed)


def open_receipt(
    data: bytes,
    path: Sequence[bytes],
    signed: bytes,
    *,
    verifier: LogVerifier,
    origin: str | None = None,
    opening_key: bytes | None = None,
    input_bytes: bytes | None = None,
    answer_bytes: bytes | None = None,
) -> dict[str, object]:
    """Verify a receipt offline, and what its record commits to.

    Args:
        data: the record's bytes.
        path: the inclusion proof.
        signed: the head, a signed note.
        verifier: the log's public key.
        origin: the log's name; by default the one that a log of this key gets.
        opening_key: the record's 32-byte opening key; needed for the next two.
        input_bytes: what was asked; if given, the record must commit to it.
        answer_bytes: what was answered; if given, the record must commit to it.

    Returns:
        The record's members.

    Raises:
        RecordAltered: the record is not the one that was signed, or commits to another input or answer.
        AuditLogInvalid: the head or the record is malformed, or not of this log.
    """
    head = checkpoint.open_head(signed, checkpoint.default_origin(verifier) if origin is None else origin, verifier)
    fields = record.parse(data)
    index = fields.get("index")
    if type(index) is not int:
        raise AuditLogInvalid("receipt: its record carries no index")
    proof.check_inclusion(proof.leaf_hash(data), index, head.size, path, head.root)
    if input_bytes is not None:
        open_commitment(fields, "input", opening_key, (input_bytes,))
    if answer_bytes is not None:
        open_commitment(fields, "answer", opening_key, (answer_bytes,))
    return fields


def open_commitment(
    fields: Mapping[str, object], label: record.Label, opening_key: bytes | None, forms: Iterable[bytes]
) -> bytes:
    """Find what a record commits to.

    Args:
        fields: of a record that was proven.
        label: what is looked for.
        opening_key: the record's, 32 bytes.
        forms: the same numbers in every type that they may have had; the commitment decides which it was.

    Returns:
        The one of them that it commits to.

    Raises:
        RecordAltered: it commits to none of them, or this is not its opening key.
        AuditLogInvalid: there is no opening key.
    """
    index, said = fields.get("index"), fields.get(label)
    if opening_key is None or len(opening_key) != record.OPENING_KEY_SIZE:
        raise AuditLogInvalid(f"record {index}: opening its {label} takes its opening key of 32 bytes")
    if isinstance(said, str):
        for data in forms:
            if hmac.compare_digest(said.encode(), record.commit(opening_key, label, data).encode()):
                return data
    raise RecordAltered(f"record {index}: commits to another {label}, or this is not its opening key")
