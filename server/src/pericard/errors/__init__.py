"""The exception tree: every failure that Pericard names.

Rules of this room: a leaf has a stable ``code`` (it is part of the HTTP interface and of the audit log); the message
is one lower-case sentence that names its subject; ``hint`` says what to do; nothing here knows HTTP, and no message
carries a secret. ::

    PericardError
    ├── ConfigError                  config-invalid
    ├── HardeningError               hardening-unavailable
    ├── EnvironmentDrift             environment-drift
    ├── LockInvalid                  environment-lock-invalid
    ├── ArchiveRefused               environment-archive-refused
    ├── NotSolved                    environment-not-solved
    ├── NotInstalled                 environment-not-installed
    ├── AdvisoriesFound              environment-vulnerable
    ├── ManifestUnusable             environment-manifest-unusable
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
    │   ├── MethodNotAllowed         method-not-allowed
    │   └── UnknownRecord            unknown-record
    ├── AuthError
    │   ├── Unauthenticated          unauthenticated
    │   └── Forbidden                forbidden
    ├── InferenceError
    │   ├── InvalidInput             invalid-input
    │   ├── ContractMismatch         contract-mismatch
    │   ├── NotInterpretable         not-interpretable
    │   ├── UnknownModel             unknown-model
    │   ├── ModelNotReady            model-not-ready
    │   ├── ModelRefused             model-refused
    │   ├── Overloaded               overloaded
    │   ├── RateLimited              rate-limited
    │   ├── Cancelled                cancelled
    │   ├── DeadlineExceeded         deadline-exceeded
    │   ├── EngineAway               engine-away
    │   └── BackendFailed            backend-failed
    ├── AuditError
    │   ├── AuditUnavailable         audit-unavailable
    │   ├── AuditLogInvalid          audit-log-invalid
    │   ├── RecordAltered            audit-record-altered
    │   ├── LogTruncated             audit-log-truncated
    │   └── SplitView                audit-split-view
    ├── CollectorUnavailable         collector-unavailable
    ├── ReplayError
    │   ├── ReceiptInvalid           replay-receipt-invalid
    │   ├── NothingToReplay          replay-nothing
    │   ├── OpeningKeyWrong          replay-opening-key-wrong
    │   ├── InputDiffers             replay-input-differs
    │   ├── OtherModel               replay-other-model
    │   ├── OtherRuntime             replay-other-runtime
    │   ├── OtherHost                replay-other-host
    │   ├── ReplayImpossible         replay-impossible
    │   ├── AnswerDiffers            replay-answer-differs
    │   └── SavedAnswerDiffers       replay-saved-answer-differs
    └── PipeError                    pipe-broken
"""

from pericard.errors.base import PericardError, from_code, leaves
from pericard.errors.evidence import (
    AnswerDiffers,
    AuditError,
    AuditLogInvalid,
    AuditUnavailable,
    CollectorUnavailable,
    InputDiffers,
    LogTruncated,
    NothingToReplay,
    OpeningKeyWrong,
    OtherHost,
    OtherModel,
    OtherRuntime,
    ReceiptInvalid,
    RecordAltered,
    ReplayError,
    ReplayImpossible,
    SavedAnswerDiffers,
    SplitView,
)
from pericard.errors.models import (
    BadGrant,
    BadNotice,
    BadSignature,
    CorruptPayload,
    ForbiddenGraph,
    KnownAnswerMismatch,
    LicenceExpired,
    LicenceNotYetValid,
    MalformedModel,
    ModelError,
    ModelTooLarge,
    NoGrant,
    NotSealed,
    NotWritten,
    RuntimeNotAllowed,
    SealedModelError,
    TrustError,
    TrustStateInvalid,
    UnsupportedModel,
    UntrustedPublisher,
    VersionWithdrawn,
    WrongFileKey,
)
from pericard.errors.requests import (
    AuthError,
    BackendFailed,
    Cancelled,
    ContractMismatch,
    DeadlineExceeded,
    EngineAway,
    Forbidden,
    InferenceError,
    InvalidInput,
    MalformedRequest,
    MethodNotAllowed,
    ModelNotReady,
    ModelRefused,
    NotInterpretable,
    Overloaded,
    RateLimited,
    RequestError,
    RequestTimeout,
    RequestTooLarge,
    Unauthenticated,
    UnknownModel,
    UnknownRecord,
    UnknownRoute,
    UnsupportedMedia,
)
from pericard.errors.site import (
    AdvisoriesFound,
    ArchiveRefused,
    ConfigError,
    EnvironmentDrift,
    HardeningError,
    KeyFileError,
    KeyFileExposed,
    KeyFileInvalid,
    KeySourceError,
    KeySourceUnavailable,
    LockInvalid,
    ManifestUnusable,
    NotInstalled,
    NotSolved,
    PipeError,
    UnlockRefused,
)

__all__ = [
    "AdvisoriesFound",
    "AnswerDiffers",
    "ArchiveRefused",
    "AuditError",
    "AuditLogInvalid",
    "AuditUnavailable",
    "AuthError",
    "BackendFailed",
    "BadGrant",
    "BadNotice",
    "BadSignature",
    "Cancelled",
    "CollectorUnavailable",
    "ConfigError",
    "ContractMismatch",
    "CorruptPayload",
    "DeadlineExceeded",
    "EngineAway",
    "EnvironmentDrift",
    "Forbidden",
    "ForbiddenGraph",
    "HardeningError",
    "InferenceError",
    "InputDiffers",
    "InvalidInput",
    "KeyFileError",
    "KeyFileExposed",
    "KeyFileInvalid",
    "KeySourceError",
    "KeySourceUnavailable",
    "KnownAnswerMismatch",
    "LicenceExpired",
    "LicenceNotYetValid",
    "LockInvalid",
    "LogTruncated",
    "MalformedModel",
    "MalformedRequest",
    "ManifestUnusable",
    "MethodNotAllowed",
    "ModelError",
    "ModelNotReady",
    "ModelRefused",
    "ModelTooLarge",
    "NoGrant",
    "NotInstalled",
    "NotInterpretable",
    "NotSealed",
    "NotSolved",
    "NotWritten",
    "NothingToReplay",
    "OpeningKeyWrong",
    "OtherHost",
    "OtherModel",
    "OtherRuntime",
    "Overloaded",
    "PericardError",
    "PipeError",
    "RateLimited",
    "ReceiptInvalid",
    "RecordAltered",
    "ReplayError",
    "ReplayImpossible",
    "RequestError",
    "RequestTimeout",
    "RequestTooLarge",
    "RuntimeNotAllowed",
    "SavedAnswerDiffers",
    "SealedModelError",
    "SplitView",
    "TrustError",
    "TrustStateInvalid",
    "Unauthenticated",
    "UnknownModel",
    "UnknownRecord",
    "UnknownRoute",
    "UnlockRefused",
    "UnsupportedMedia",
    "UnsupportedModel",
    "UntrustedPublisher",
    "VersionWithdrawn",
    "WrongFileKey",
    "from_code",
    "leaves",
]
