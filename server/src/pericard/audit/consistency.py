"""That one signed head continues another: so that who kept an old one need not read the log to believe the new one.

Rules of this module: as of ``receipt``: opening one needs no log, no network and no private key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from pericard.audit import checkpoint, note, proof
from pericard.audit.note import Head
from pericard.audit.reading import reading
from pericard.audit.receipt import hashes
from pericard.audit.tree import Tree
from pericard.errors import AuditLogInvalid
from pericard.keys import LogVerifier


@dataclass(frozen=True, slots=True)
class Consistency:
    """What proves to somebody who has the log's public key that nothing under an old head changed.

    Attributes:
        old: the signed note of the smaller tree.
        new: the signed note of the larger tree.
        proof: the consistency proof, 32 bytes each.
    """

    old: bytes
    new: bytes
    proof: tuple[bytes, ...]

    def to_json(self) -> bytes:
        """The proof as a file holds it."""
        return msgspec.json.encode(_Said(self.old.decode(), self.new.decode(), [node.hex() for node in self.proof]))

    @classmethod
    def from_json(cls, data: bytes) -> Consistency:
        """Read a proof; nothing that it says is believed before :func:`open_consistency`.

        Raises:
            AuditLogInvalid: it is none.
        """
        try:
            said = msgspec.json.decode(data, type=_Said)
            return cls(said.old.encode(), said.new.encode(), hashes(said.proof))
        except ValueError as error:
            raise AuditLogInvalid(
                "consistency proof: is not one", hint="give what pericard audit prove --consistency gave"
            ) from error


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    old: str
    new: str
    proof: list[str]


def consistency(directory: Path, old: bytes, new: bytes | None = None, tree: Tree | None = None) -> Consistency:
    """Prove that one head continues another, from the log's files alone.

    Args:
        directory: the log's directory.
        old: the signed note of the smaller tree.
        new: that of the larger one; by default the published one.
        tree: what was read of this log before; without it, everything up to the new head is read.

    Raises:
        AuditLogInvalid: there is no new head, the two are out of order, or the log does not reach as far.
        RecordAltered, LogTruncated: the log's records cannot be read.
        SplitView: the log's records do not lead from the one to the other.
    """
    known = Tree(directory) if tree is None else tree
    with reading(directory):
        latest = note.load(directory) if new is None else new
        if latest is None:
            raise AuditLogInvalid("audit log: has published no head yet")
        smaller, larger = note.claims(old), note.claims(latest)
        try:
            spans = proof.consistency_spans(smaller.size, larger.size)
        except ValueError as error:
            raise AuditLogInvalid(
                f"heads of {smaller.size} and {larger.size} records: the second cannot continue the first",
                hint="give the older one first",
            ) from error
        known.grow(larger.size)
        path = known.roots(spans)
    proof.check_consistency(smaller.size, smaller.root, larger.size, larger.root, path)
    return Consistency(old, latest, tuple(path))


def open_consistency(given: Consistency, *, verifier: LogVerifier, origin: str | None = None) -> tuple[Head, Head]:
    """Verify offline that one head continues another.

    Args:
        given: both heads and the proof.
        verifier: the log's public key.
        origin: the log's name; by default the one that a log of this key gets.

    Returns:
        The old head and the new one.

    Raises:
        AuditLogInvalid: a head is malformed, or not of this log.
        SplitView: the new one is not proven to continue the old one.
    """
    name = checkpoint.default_origin(verifier) if origin is None else origin
    old, new = (checkpoint.open_head(signed, name, verifier, published=True) for signed in (given.old, given.new))
    proof.check_consistency(old.size, old.root, new.size, new.root, given.proof)
    return old, new
