"""Where the identity's secret comes from.

Rules of this room: a key source unlocks the *identity file*; it never appears in a sealed model. What it gives is a
``bytearray`` that the caller wipes, or an error whose message holds no secret. Every wait ends: on a descriptor, a
terminal, a tool, a socket. A plain file and a service manager's credential hold the identity itself. Everything else
is a *lock* that holds a key-encryption key, and one construction (``unlock.locked``) puts it before the identity. A
module of this room is imported when its kind is asked for, so whoever reads a plain file loads nothing else.
"""

from pericard.unlock.file import PlainFile
from pericard.unlock.kinds import ENTRY_POINTS, KINDS, check, kind_in, lock_of, sources, unlock
from pericard.unlock.locked import KEY_SIZE, LockedFile, LockedIdentity
from pericard.unlock.source import KeySource, Lock, Parameters
from pericard.unlock.values import UnlockValues, VaultValues

__all__ = [
    "ENTRY_POINTS",
    "KEY_SIZE",
    "KINDS",
    "KeySource",
    "Lock",
    "LockedFile",
    "LockedIdentity",
    "Parameters",
    "PlainFile",
    "UnlockValues",
    "VaultValues",
    "check",
    "kind_in",
    "lock_of",
    "sources",
    "unlock",
]
