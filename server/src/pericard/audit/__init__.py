"""Evidence: an append-only log of what was asked and answered, and the proof that it is whole.

Rules of this room: a record is canonical JSON without personal data, and what it must not show it commits to; the tree
is RFC 6962, a head is a C2SP checkpoint. Only ``log`` writes, ``pruned`` puts leaf hashes in the place of old segments,
and one process at a time does either; only ``segment`` and ``note`` know the files' bytes, only ``checkpoint`` believes
a head, ``verify`` takes the log's word for nothing, and ``reading`` knows no keys, so that carrying records takes none.
No answer is released before :meth:`AuditLog.commit` returned. Nothing here knows HTTP, models or the SIEM. The bytes
are specified in ``docs/spec/audit-log.md``, complete enough for a second reader, with vectors in
``tests/vectors/audit``.
"""

from pericard.audit.checkpoint import default_origin, open_head
from pericard.audit.log import AuditLog, Entry
from pericard.audit.note import Head
from pericard.audit.reading import latest, published, records, time_of_last
from pericard.audit.receipt import Receipt, open_commitment, open_receipt
from pericard.audit.record import commit, opening_key
from pericard.audit.verify import Report

# the functions ``receipt.receipt`` and ``verify.verify`` stay in the modules whose names they would hide
__all__ = [
    "AuditLog",
    "Entry",
    "Head",
    "Receipt",
    "Report",
    "commit",
    "default_origin",
    "latest",
    "open_commitment",
    "open_head",
    "open_receipt",
    "opening_key",
    "published",
    "records",
    "time_of_last",
]
