"""The client's exception tree: every failure that a caller can meet has a name.

Rules of this room: a class has a stable ``code``; those of the server's refusals are the server's own codes. The
message is one lower-case sentence that names its subject; ``hint`` says what to do. No message carries a token, a
sample or a field of a patient. This room imports the standard library alone. ::

    ClientError
    ├── NotSendable                  not-sendable             the caller's values cannot make a request
    ├── FileError
    │   ├── UnreadableFile           unreadable-file          damaged, or not what it seems
    │   ├── UnsupportedRecording     unsupported-recording    sound, but of a kind that is not read
    │   └── ContractUnmet            contract-unmet           read, but not what the model was made for
    ├── TransportError
    │   ├── ServerUnreachable        server-unreachable       no connection: the request was not sent
    │   ├── TlsRefused               tls-refused              the server is not who it should be
    │   ├── TimedOut                 timed-out                sent, and no answer in time
    │   └── ConnectionLost           connection-lost          sent, and the connection broke
    ├── ServerError                  <the server's code>      refused, with a code that this version does not know
    │   ├── MalformedRequest         malformed-request
    │   ├── Unauthenticated          unauthenticated
    │   ├── Forbidden                forbidden
    │   ├── UnknownModel             unknown-model
    │   ├── UnknownRoute             unknown-route
    │   ├── UnknownRecord            unknown-record
    │   ├── MethodNotAllowed         method-not-allowed
    │   ├── RequestTimeout           request-timeout
    │   ├── RequestTooLarge          request-too-large
    │   ├── UnsupportedMedia         unsupported-media-type
    │   ├── ContractMismatch         contract-mismatch
    │   ├── InvalidInput             invalid-input
    │   ├── BackendFailed            backend-failed
    │   └── Unavailable              server-unavailable       any other 503
    │       ├── EngineAway           engine-away
    │       ├── ModelNotReady        model-not-ready
    │       ├── Overloaded           overloaded
    │       ├── AuditUnavailable     audit-unavailable
    │       └── DeadlineExceeded     deadline-exceeded
    ├── UnexpectedReply              unexpected-reply         not an answer of this interface
    ├── ModelIdentityMismatch        model-identity-mismatch  answered by another model than the one pinned
    ├── EvidenceError
    │   ├── MalformedEvidence        malformed-evidence       not a receipt, a key, or an answer
    │   ├── HeadNotSigned            head-not-signed          not signed by this log, or altered since
    │   ├── RecordNotProven          record-not-proven        not under the head
    │   ├── OtherRecord              other-record             not the one that the answer names
    │   ├── OtherAnswer              other-answer             commits to another answer
    │   ├── OtherInput               other-input              commits to another input
    │   └── VerifierMissing          verifier-missing         the extra "verify" is not installed
    └── PlotError                    plot-failed
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

_LONGEST = 2000  # characters


def printable(text: str) -> str:
    """Another machine's or file's words on one line, without anything that a terminal would obey."""
    return "".join(each if each.isprintable() else " " if each.isspace() else "?" for each in text[:_LONGEST])


class ClientError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        code: stable identifier of the kind of failure.
        message: one lower-case sentence that names its subject.
        hint: what the reader can do, or None.
    """

    code: str = "error"
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = printable(message)
        self.hint = self.default_hint if hint is None else printable(hint)
        super().__init__(self.message)


class NotSendable(ClientError):
    """The caller's own values cannot make a request: an address, a token, a shape, a number that JSON lacks."""

    code = "not-sendable"


class FileError(ClientError):
    """Base: something about the recording's file."""


class UnreadableFile(FileError):
    """The file is damaged, cut short, or not what it seems."""

    code = "unreadable-file"


class UnsupportedRecording(FileError):
    """The file is sound and holds something that is not read here."""

    code = "unsupported-recording"


class ContractUnmet(FileError):
    """The recording was read and cannot give the model what it was made for: a lead, a length, a unit."""

    code = "contract-unmet"


class TransportError(ClientError):
    """Base: no reply came back."""


class ServerUnreachable(TransportError):
    """No connection could be made, so the request was certainly not processed."""

    code = "server-unreachable"


class TlsRefused(TransportError):
    """The connection's other end did not prove to be the server."""

    code = "tls-refused"
    default_hint = "give the certificate authority of the server with --ca FILE"


class TimedOut(TransportError):
    """The request was sent and no whole reply came in time; it may have been processed."""

    code = "timed-out"


class ConnectionLost(TransportError):
    """The connection broke after the request was sent; it may have been processed."""

    code = "connection-lost"


class ServerError(ClientError):
    """The server refused or failed, and said so.

    Attributes:
        status: the HTTP status.
        request_id: what to quote to the operator, or None.
        retry_after: seconds that the server asks to wait, or None.
    """

    code = "server-error"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        hint: str | None = None,
        request_id: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after


class MalformedRequest(ServerError):
    """The body or a header is not what the interface describes."""

    code = "malformed-request"


class Unauthenticated(ServerError):
    """No credential, or one that is not valid."""

    code = "unauthenticated"
    default_hint = "name a file that holds a valid token: --token-file, or PERICARD_TOKEN_FILE"


class Forbidden(ServerError):
    """The caller is known and was not granted this."""

    code = "forbidden"
    default_hint = "the token needs the permissions metadata and predict on this model: ask the operator"


class UnknownModel(ServerError):
    """No model of that name is served."""

    code = "unknown-model"
    default_hint = "pericard-client model lists the models that the token may use"


class UnknownRoute(ServerError):
    """The server has no such path."""

    code = "unknown-route"


class UnknownRecord(ServerError):
    """The audit log has no such record, or not yet."""

    code = "unknown-record"


class MethodNotAllowed(ServerError):
    """The path exists, the method does not."""

    code = "method-not-allowed"


class RequestTimeout(ServerError):
    """The server did not receive the body in time."""

    code = "request-timeout"


class RequestTooLarge(ServerError):
    """The body passes the server's limit."""

    code = "request-too-large"


class UnsupportedMedia(ServerError):
    """The content type is not accepted."""

    code = "unsupported-media-type"


class ContractMismatch(ServerError):
    """What was declared (rate, unit, leads) is not what the model was made for."""

    code = "contract-mismatch"


class InvalidInput(ServerError):
    """The values do not fit the model's input."""

    code = "invalid-input"


class BackendFailed(ServerError):
    """The model's computation failed."""

    code = "backend-failed"


class Unavailable(ServerError):
    """The server cannot answer now."""

    code = "server-unavailable"


class EngineAway(Unavailable):
    """The engine process is starting, restarting or stopping."""

    code = "engine-away"


class ModelNotReady(Unavailable):
    """The model is known and not ready to answer."""

    code = "model-not-ready"


class Overloaded(Unavailable):
    """The queue is full."""

    code = "overloaded"


class AuditUnavailable(Unavailable):
    """The audit log cannot be written, so nothing is answered."""

    code = "audit-unavailable"


class DeadlineExceeded(Unavailable):
    """The answer did not come within the server's deadline."""

    code = "deadline-exceeded"


class UnexpectedReply(ClientError):
    """The reply is not one that this interface describes; nothing of it is used."""

    code = "unexpected-reply"


class ModelIdentityMismatch(ClientError):
    """Another model answered than the one that was pinned or described."""

    code = "model-identity-mismatch"


class EvidenceError(ClientError):
    """Base: what should prove an answer does not."""


class MalformedEvidence(EvidenceError):
    """A receipt, a key or an answer is not what it should be."""

    code = "malformed-evidence"


class HeadNotSigned(EvidenceError):
    """The head is of another log, not signed by its key, or altered since."""

    code = "head-not-signed"
    default_hint = "give the public key of the server that answered"


class RecordNotProven(EvidenceError):
    """The record is not under the head: it, its proof or the head was altered."""

    code = "record-not-proven"


class OtherRecord(EvidenceError):
    """The record is not the one that the answer names."""

    code = "other-record"


class OtherAnswer(EvidenceError):
    """The record commits to another answer."""

    code = "other-answer"
    default_hint = "give the answer as it came; numbers that were rounded are others"


class OtherInput(EvidenceError):
    """The record commits to another input."""

    code = "other-input"
    default_hint = "give what was sent, to the sample"


class VerifierMissing(EvidenceError):
    """The libraries that verifying takes are not installed."""

    code = "verifier-missing"
    default_hint = "install pericard-client[verify]"


class PlotError(ClientError):
    """The picture cannot be drawn or written."""

    code = "plot-failed"


def refusals() -> dict[str, type[ServerError]]:
    """Every refusal of the server that has a class of its own, by the server's code."""
    found: dict[str, type[ServerError]] = {}
    pending: list[type[ServerError]] = [ServerError]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        found[kind.code] = kind
    return found


def refusal(
    code: str,
    message: str,
    *,
    status: int,
    hint: str | None = None,
    request_id: str | None = None,
    retry_after: int | None = None,
) -> ServerError:
    """The error for a refusal; a code of a newer server keeps its name on the generic class."""
    fallback = Unavailable if status == HTTPStatus.SERVICE_UNAVAILABLE else ServerError
    kind = refusals().get(code, fallback)
    error = kind(message, status=status, hint=hint, request_id=request_id, retry_after=retry_after)
    error.code = code
    return error
