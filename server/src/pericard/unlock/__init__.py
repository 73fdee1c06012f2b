"""Where the identity's secret comes from.

Rules of this room: a key source unlocks the *identity file*; it never appears in a sealed model. A source returns the
32-byte seed in a ``bytearray`` that the caller locks and wipes, or raises with a message that holds no secret. The
plain 0600 file is the only source so far; others join behind :class:`KeySource`.
"""

from pericard.unlock.file import PlainFile
from pericard.unlock.source import KeySource, source_for

__all__ = ["KeySource", "PlainFile", "source_for"]
