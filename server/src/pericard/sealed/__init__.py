"""The sealed model: one file format, written and opened here and nowhere else.

Rules of this room: ``cryptography`` and the standard library only; one construction a module; nothing is parsed
as JSON before its signatures verified; every refusal is an error with a code; no function here decides whether a site
*accepts* a genuine file, that is ``trust``. The format stands in ``docs/spec/sealed-model.md``.
"""

from pericard.sealed.artifact import Artifact, KnownAnswer, Source, Tensor
from pericard.sealed.bounds import HostBounds, version
from pericard.sealed.chunks import Progress
from pericard.sealed.container import SealedModel, VerifiedModel
from pericard.sealed.detached import add_grants_beside, grants_beside, notices_in, read_grants, write_grants
from pericard.sealed.embed import embed
from pericard.sealed.grant import Grant, Term
from pericard.sealed.manifest import Description, Manifest, Output, Signal, Tolerance
from pericard.sealed.notice import Notice
from pericard.sealed.seal import Sealed, require_new, seal

__all__ = [
    "Artifact",
    "Description",
    "Grant",
    "HostBounds",
    "KnownAnswer",
    "Manifest",
    "Notice",
    "Output",
    "Progress",
    "Sealed",
    "SealedModel",
    "Signal",
    "Source",
    "Tensor",
    "Term",
    "Tolerance",
    "VerifiedModel",
    "add_grants_beside",
    "embed",
    "grants_beside",
    "notices_in",
    "read_grants",
    "require_new",
    "seal",
    "version",
    "write_grants",
]
