"""The exception tree: every failure that Pericard names.

Rules of this room: a leaf has a stable ``code`` (it is part of the HTTP interface and of the audit log); the message
is one lower-case sentence that names its subject; ``hint`` says what to do; nothing here knows HTTP, and no message
carries a secret. ::

    PericardError
    ├── ConfigError                  config-invalid
    ├── HardeningError               hardening-unavailable
    ├── EnvironmentDrift             environment-drift
    ├── KeyFileError
    │   ├── KeyFileInvalid           key-file-invalid
    │   └── KeyFileExposed           key-file-exposed
    ├── KeySourceError
    │   ├── KeySourceUnavailable     key-source-unavailable
    │   └── UnlockRefused            unlock-refused
    ├── SealedModelError
    │   ├── NotSealed                not-a-sealed-model
    │   ├── MalformedModel           malformed-sealed-model
    │   ├── BadSignature             bad-signature
    │   ├── BadGrant                 bad-grant
    │   ├── BadNotice                bad-notice
    │   ├── NoGrant                  no-grant
    │   ├── WrongFileKey             key-commitment-mismatch
    │   ├── CorruptPayload           corrupt-payload
    │   └── NotWritten               model-not-written
    ├── TrustError
    │   ├── UntrustedPublisher       untrusted-publisher
    │   ├── LicenceNotYetValid       licence-not-yet-valid
    │   ├── LicenceExpired           licence-expired
    │   ├── VersionWithdrawn         version-withdrawn
    │   ├── RuntimeNotAllowed        runtime-not-allowed
    │   └── TrustStateInvalid        trust-state-invalid
    ├── ModelError
    │   ├── UnsupportedModel         unsupported-model
    │   ├── ForbiddenGraph           forbidden-graph
    │   ├── ModelTooLarge            model-too-large
    │   └── KnownAnswerMismatch      known-answer-mismatch
    ├── RequestError
    │   ├── MalformedRequest         malformed-request
    │   ├── RequestTooLarge          request-too-large
    │   ├── RequestTimeout           request-timeout
    │   ├── UnsupportedMedia         unsupported-media-type
    │   ├── UnknownRoute             unknown-route
    │   └── MethodNotAllowed         method-not-allowed
    ├── AuthError
    │   ├── Unauthenticated          unauthenticated
    │   └── Forbidden                forbidden
    ├── InferenceError
    │   ├── InvalidInput             invalid-input
    │   ├── ContractMismatch         contract-mismatch
    │   ├── NotInterpretable         not-interpretable
    │   ├── UnknownModel             unknown-model
    │   ├── ModelNotReady            model-not-ready
    │   ├── Overloaded               overloaded
    │   ├── DeadlineExceeded         deadline-exceeded
    │   ├── EngineAway               engine-away
    │   └── BackendFailed            backend-failed
    ├── AuditError
    │   ├── AuditUnavailable         audit-unavailable
    │   ├── AuditLogInvalid          audit-log-invalid
    │   ├── RecordAltered            audit-record-altered
    │   ├── LogTruncated             audit-log-truncated
    │   └── SplitView                audit-split-view
    └── PipeError                    pipe-broken
"""

from __future__ import annotations

from typing import ClassVar


class PericardError(Exception):
    """Base of every error that Pericard raises on purpose.

    Attributes:
        code: stable identifier of the kind of failure; only leaves are raised.
        message: one lower-case sentence that names its subject.
        hint: what the reader can do, or None.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(PericardError):
    """A setting is missing, unknown, or unsafe."""

    code = "config-invalid"


class HardeningError(PericardError):
    """A protection of the process that was asked for cannot be had."""

    code = "hardening-unavailable"


class EnvironmentDrift(PericardError):
    """The installed runtime is not the one that was locked."""

    code = "environment-drift"


class KeyFileError(PericardError):
    """Base: something about a key file."""


class KeyFileInvalid(KeyFileError):
    """A key file is not what it should be."""

    code = "key-file-invalid"


class KeyFileExposed(KeyFileError):
    """A private key file can be read by others."""

    code = "key-file-exposed"


class KeySourceError(PericardError):
    """Base: the identity could not be unlocked."""


class KeySourceUnavailable(KeySourceError):
    """What would unlock the identity cannot be reached, or is not there."""

    code = "key-source-unavailable"


class UnlockRefused(KeySourceError):
    """The key source answered, and what it holds does not unlock this identity."""

    code = "unlock-refused"


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


class RequestError(PericardError):
    """Base: the request cannot be read."""


class MalformedRequest(RequestError):
    """The body or a header is not what the interface describes."""

    code = "malformed-request"


class RequestTooLarge(RequestError):
    """The body or the headers pass their limit."""

    code = "request-too-large"


class RequestTimeout(RequestError):
    """The body did not arrive in time."""

    code = "request-timeout"


class UnsupportedMedia(RequestError):
    """The content type or encoding is not accepted on this route."""

    code = "unsupported-media-type"


class UnknownRoute(RequestError):
    """No such path."""

    code = "unknown-route"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method-not-allowed"


class AuthError(PericardError):
    """Base: the caller may not."""


class Unauthenticated(AuthError):
    """No credential, or one that is not valid."""

    code = "unauthenticated"


class Forbidden(AuthError):
    """The caller is known and was not granted this."""

    code = "forbidden"


class InferenceError(PericardError):
    """Base: one inference failed; its neighbours did not."""


class InvalidInput(InferenceError):
    """The values do not fit the model's input: shape, type, finiteness."""

    code = "invalid-input"


class ContractMismatch(InferenceError):
    """What the caller declares (rate, unit, leads) is not what the model was made for."""

    code = "contract-mismatch"


class NotInterpretable(InferenceError):
    """The signal cannot carry a meaningful score: flat or clipped."""

    code = "not-interpretable"


class UnknownModel(InferenceError):
    """No model of that name is served."""

    code = "unknown-model"


class ModelNotReady(InferenceError):
    """The model is known and not ready to answer."""

    code = "model-not-ready"


class Overloaded(InferenceError):
    """The queue is full."""

    code = "overloaded"


class DeadlineExceeded(InferenceError):
    """The answer did not come in time."""

    code = "deadline-exceeded"


class EngineAway(InferenceError):
    """The engine process is starting, restarting or stopping."""

    code = "engine-away"


class BackendFailed(InferenceError):
    """The model's computation failed."""

    code = "backend-failed"


class AuditError(PericardError):
    """Base: the evidence."""


class AuditUnavailable(AuditError):
    """The audit log cannot be written, so nothing is answered."""

    code = "audit-unavailable"


class AuditLogInvalid(AuditError):
    """The log's files are not an audit log, or the key is not its key."""

    code = "audit-log-invalid"


class RecordAltered(AuditError):
    """A record under a signed head was altered, removed, moved or inserted."""

    code = "audit-record-altered"


class LogTruncated(AuditError):
    """Records that a signed head covers are gone."""

    code = "audit-log-truncated"


class SplitView(AuditError):
    """Two signed heads cannot belong to one history."""

    code = "audit-split-view"


class PipeError(PericardError):
    """A frame between edge and engine is malformed, or the other end is gone."""

    code = "pipe-broken"


def leaves() -> dict[str, type[PericardError]]:
    """Every error that can be raised, by its stable code."""
    found: dict[str, type[PericardError]] = {}
    pending: list[type[PericardError]] = [PericardError]
    while pending:
        kind = pending.pop()
        below = kind.__subclasses__()
        pending.extend(below)
        if not below:
            found[kind.code] = kind
    return dict(sorted(found.items()))


def from_code(code: str, message: str, hint: str | None = None) -> PericardError:
    """Rebuild an error that another process named; an unknown code becomes the base class."""
    return leaves().get(code, PericardError)(message, hint=hint)
