"""The sealed model: one file format, written and opened here and nowhere else.

Rules of this room: ``cryptography`` and the standard library only; one construction a module; nothing is parsed
as JSON before its signatures verified; every refusal is an error with a code; no function here decides whether a site
*accepts* a genuine file, that is ``trust``. The format stands in ``docs/spec/sealed-model.md``.
"""

from pericard.sealed.artifact import Artifact, KnownAnswer, Source, Tensor
from pericard.sealed.container import SealedModel, VerifiedModel
from pericard.sealed.grant import Grant
from pericard.sealed.manifest import Description, Manifest, Output, Signal, Tolerance
from pericard.sealed.seal import Sealed, Term, seal

__all__ = [
    "Artifact",
    "Description",
    "Grant",
    "KnownAnswer",
    "Manifest",
    "Output",
    "Sealed",
    "SealedModel",
    "Signal",
    "Source",
    "Tensor",
    "Term",
    "Tolerance",
    "VerifiedModel",
    "seal",
]
