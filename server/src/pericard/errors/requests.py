"""What is wrong with a request, its caller, or the answer to it."""

from __future__ import annotations

from pericard.errors.base import PericardError


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


class UnknownRecord(RequestError):
    """The audit log has no such record, or not yet."""

    code = "unknown-record"


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
    """The signal cannot carry a meaningful score: flat, clipped, noisy or short."""

    code = "not-interpretable"


class UnknownModel(InferenceError):
    """No model of that name is served."""

    code = "unknown-model"


class ModelNotReady(InferenceError):
    """The model is known and not ready to answer."""

    code = "model-not-ready"


class ModelRefused(InferenceError):
    """A model that was asked for was not taken; the log and the repository index say why."""

    code = "model-refused"


class Overloaded(InferenceError):
    """The queue is full."""

    code = "overloaded"


class RateLimited(InferenceError):
    """One caller asks for more at a time, or faster, than it may."""

    code = "rate-limited"


class Cancelled(InferenceError):
    """The caller left before its turn came."""

    code = "cancelled"


class DeadlineExceeded(InferenceError):
    """The answer did not come in time."""

    code = "deadline-exceeded"


class EngineAway(InferenceError):
    """The engine process is starting, restarting or stopping."""

    code = "engine-away"


class BackendFailed(InferenceError):
    """The model's computation failed."""

    code = "backend-failed"
