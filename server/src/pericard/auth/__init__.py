"""Who may: principals, permissions, credentials.

Rules of this room: a credential is 256 random bits; only a keyed hash of it is stored; comparing takes constant time; a
caller that is refused learns nothing but that. Permissions are operations × model patterns, and what is not granted
is denied. Nothing here knows HTTP, and nothing here reaches a model or a model's key.
"""

from pericard.auth.authority import Authority
from pericard.auth.certificate import PROXIED, Certificate
from pericard.auth.certificate import read as read_certificate
from pericard.auth.policy import Policy, PolicyFile
from pericard.auth.principal import OPERATIONS, Grant, Limits, Principal, require
from pericard.auth.tokens import Issued, TokenFile, TokenRecord

__all__ = [
    "OPERATIONS", "PROXIED", "Authority", "Certificate", "Grant", "Issued", "Limits", "Policy", "PolicyFile",
    "Principal", "TokenFile", "TokenRecord", "read_certificate", "require",
]  # fmt: skip
