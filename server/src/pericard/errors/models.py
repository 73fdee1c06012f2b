"""What is wrong with a model: its file, the trust in it, what it computes."""

from __future__ import annotations

from pericard.errors.base import PericardError


class SealedModelError(PericardError):
    """Base: a sealed model was refused before any of it was used, or could not be made."""


class NotSealed(SealedModelError):
    """The file is not a sealed model at all."""

    code = "not-a-sealed-model"


class MalformedModel(SealedModelError):
    """The container's structure is wrong, or a limit is passed."""

    code = "malformed-sealed-model"


class BadSignature(SealedModelError):
    """A publisher's signature is missing or does not verify."""

    code = "bad-signature"


class BadGrant(SealedModelError):
    """A grant is malformed, made for another file, or does not open with this identity."""

    code = "bad-grant"


class BadNotice(SealedModelError):
    """A withdrawal notice is malformed."""

    code = "bad-notice"


class NoGrant(SealedModelError):
    """No grant opens this file for this identity."""

    code = "no-grant"


class WrongFileKey(SealedModelError):
    """A grant opened, but not with the key that the manifest commits to."""

    code = "key-commitment-mismatch"


class CorruptPayload(SealedModelError):
    """An encrypted chunk is missing, altered, repeated or out of place."""

    code = "corrupt-payload"


class NotWritten(SealedModelError):
    """A sealed model could not be written; no part of it was left behind."""

    code = "model-not-written"


class TrustError(PericardError):
    """Base: a genuine file that this site does not accept."""


class UntrustedPublisher(TrustError):
    """Nobody here pinned this publisher."""

    code = "untrusted-publisher"


class LicenceNotYetValid(TrustError):
    """The grant's first day lies ahead."""

    code = "licence-not-yet-valid"


class LicenceExpired(TrustError):
    """The grant's last day and its grace days are over."""

    code = "licence-expired"


class VersionWithdrawn(TrustError):
    """The publisher withdrew every version below a later floor."""

    code = "version-withdrawn"


class RuntimeNotAllowed(TrustError):
    """The manifest demands another runtime than this one."""

    code = "runtime-not-allowed"


class TrustStateInvalid(TrustError):
    """The remembered floors are missing, damaged or not the last audited ones."""

    code = "trust-state-invalid"


class ModelError(PericardError):
    """Base: the model itself cannot be used."""


class UnsupportedModel(ModelError):
    """The artifact is of a kind, version or shape that is not served."""

    code = "unsupported-model"


class ForbiddenGraph(ModelError):
    """The graph names an operator or an expression outside the allow-list."""

    code = "forbidden-graph"


class ModelTooLarge(ModelError):
    """The model does not fit the memory budget."""

    code = "model-too-large"


class KnownAnswerMismatch(ModelError):
    """This device does not compute what the vendor signed."""

    code = "known-answer-mismatch"
