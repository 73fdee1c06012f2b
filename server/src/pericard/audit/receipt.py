"""Receipts: one record, the proof that it is in the log, and the signed head it is proven under.

Rules of this module: a receipt shows one record and nothing of its neighbours but hashes. Opening one needs no log, no
network and no private key; opening what the record commits to needs the opening key that came with the answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pericard.audit import checkpoint, note, proof, record, segment
from pericard.audit.reading import raw_records, reading
from pericard.errors import AuditLogInvalid, RecordAltered
from pericard.keys import LogVerifier


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


def receipt(directory: Path, index: int) -> Receipt:
    """Make the receipt of one record, from the log's files alone.

    It is proven under the published checkpoint if that covers the record, otherwise under the head of the record's own
    group, which is durable for everybody who has the answer.

    Raises:
        AuditLogInvalid: the log has no such record under a head, or cannot be read.
        RecordAltered: the log's records do not lead to the head.
    """
    with reading(directory):
        signed = note.load(directory)
    if signed is None or note.claims(signed).size <= index:
        signed = _own_head(directory, index)
    head = note.claims(signed)
    found: dict[int, bytes] = {}
    try:
        path = proof.inclusion_proof(_leaves(directory, head.size, index, found), index, head.size)
    except ValueError as error:
        raise AuditLogInvalid(f"record {index}: is not in the log") from error
    proof.check_inclusion(proof.leaf_hash(found[index]), index, head.size, path, head.root)
    return Receipt(index, found[index], tuple(path), signed)


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
    _check_commitment(fields, index, opening_key, "input", input_bytes)
    _check_commitment(fields, index, opening_key, "answer", answer_bytes)
    return fields


def _check_commitment(
    fields: dict[str, object], index: int, opening_key: bytes | None, label: record.Label, data: bytes | None
) -> None:
    if data is None:
        return
    if opening_key is None or len(opening_key) != record.OPENING_KEY_SIZE:
        raise AuditLogInvalid(f"record {index}: opening its {label} takes its opening key of 32 bytes")
    said = fields.get(label)
    if not isinstance(said, str) or not hmac.compare_digest(
        said.encode(), record.commit(opening_key, label, data).encode()
    ):
        raise RecordAltered(f"record {index}: commits to another {label}, or this is not its opening key")


def _own_head(directory: Path, index: int) -> bytes:
    """The head of the group that a record was made durable with."""
    with reading(directory):
        segments = [part for part in segment.listing(directory) if part.first <= index][-1:]
        if segments and index >= 0:
            for group in segment.Walk(segments, segments[0].first):
                if index < group.first + len(group.records):
                    return group.head
    raise AuditLogInvalid(f"record {index}: is not in the log")


def _leaves(directory: Path, size: int, index: int, found: dict[int, bytes]) -> Iterator[bytes]:
    """The first ``size`` leaf hashes; the wanted record's bytes are left in ``found`` on the way."""
    for at, data in raw_records(directory, stop=size):
        if at == index:
            found[at] = data
        yield proof.leaf_hash(data)
