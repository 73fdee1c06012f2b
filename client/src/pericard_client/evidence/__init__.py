"""Evidence, verified on the machine that asked: that a server's audit log holds what it answered.

Rules of this room: written from ``docs/spec/audit-log.md`` alone and offline; it believes the log's public key and
nothing else. What does not hold raises, and says which part. It takes ``cryptography`` and ``blake3``, which the
extra ``verify`` brings, and is the only room that does.
"""

from pericard_client.evidence.commitments import forms_of_outputs, forms_of_samples
from pericard_client.evidence.notes import LogKey
from pericard_client.evidence.verify import Verified, verify

__all__ = ["LogKey", "Verified", "forms_of_outputs", "forms_of_samples", "verify"]
