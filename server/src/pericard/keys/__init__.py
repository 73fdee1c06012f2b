"""Key types and key files: identities, publishers, audit-log keys.

Rules of this room: one kind of recipient (HPKE with X-Wing), one pair of publisher signatures (Ed25519 *and*
ML-DSA-65, both required); primitives come from ``cryptography`` alone. A private key file is one line of text, mode
0600, written once and never overwritten. Verifying raises; nothing here returns a verdict. Secrets that Python copies
are wiped as far as CPython lets us (``keys.secrets``); what that cannot promise stands in ``docs/threat-model.md``.
"""

from pericard.keys.files import (
    kind_of,
    read_private_body,
    read_private_line,
    read_secret_file,
    replace_private_file,
    write_private_file,
    write_public_file,
)
from pericard.keys.identity import Identity, Recipient
from pericard.keys.log import LogKey, LogVerifier
from pericard.keys.publisher import Publisher, PublisherKey, Signature
from pericard.keys.secrets import overwriting, take, wipe

__all__ = [
    "Identity",
    "LogKey",
    "LogVerifier",
    "Publisher",
    "PublisherKey",
    "Recipient",
    "Signature",
    "kind_of",
    "overwriting",
    "read_private_body",
    "read_private_line",
    "read_secret_file",
    "replace_private_file",
    "take",
    "wipe",
    "write_private_file",
    "write_public_file",
]
