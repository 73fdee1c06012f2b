"""What is wrong with the evidence: the audit log, and an answer that is repeated from it."""

from __future__ import annotations

from pericard.errors.base import PericardError


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


class CollectorUnavailable(PericardError):
    """The collector of audit records did not take them; they are kept and sent again."""

    code = "collector-unavailable"


class ReplayError(PericardError):
    """Base: an answer was not repeated, and this is why."""


class ReceiptInvalid(ReplayError):
    """What was given is not a receipt, or not one of this log."""

    code = "replay-receipt-invalid"


class NothingToReplay(ReplayError):
    """The record holds no answer, or not how it was computed."""

    code = "replay-nothing"


class OpeningKeyWrong(ReplayError):
    """The opening key opens nothing in the record."""

    code = "replay-opening-key-wrong"


class InputDiffers(ReplayError):
    """The record commits to another input."""

    code = "replay-input-differs"


class OtherModel(ReplayError):
    """Another model, or another version of it, gave the answer."""

    code = "replay-other-model"


class OtherRuntime(ReplayError):
    """The bits differ, and so does the runtime; only the same one is covered."""

    code = "replay-other-runtime"


class OtherHost(ReplayError):
    """The bits differ, and so does, as far as is known, the kind of host; only the same one is covered."""

    code = "replay-other-host"


class ReplayImpossible(ReplayError):
    """The device, the batch size or the threads that the record names cannot be had here."""

    code = "replay-impossible"


class AnswerDiffers(ReplayError):
    """Everything is as it was recorded, and the bits of the answer are not."""

    code = "replay-answer-differs"


class SavedAnswerDiffers(ReplayError):
    """The recorded answer was repeated, and the saved one is another."""

    code = "replay-saved-answer-differs"
