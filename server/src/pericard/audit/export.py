"""A log as a folder that proves itself elsewhere: its segments, the published head, and the public key.

Rules of this module: the copy is verified before it is called one; the log is only read, and may be written meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pericard.audit import note, pruned, segment
from pericard.audit.reading import reading
from pericard.audit.verify import Report, verify
from pericard.errors import AuditLogInvalid
from pericard.keys import LogVerifier

KEY: Final = "log.pub"


def export(directory: Path, target: Path, *, verifier: LogVerifier, origin: str | None = None) -> Report:
    """Copy a log to a new folder, and verify the copy.

    The published head is taken first, so what the copy holds reaches at least as far.

    Args:
        directory: the log's directory.
        target: the folder to make.
        verifier: the log's public key; written beside the copy.
        origin: the log's name; by default the one that a log of this key gets.

    Returns:
        What verifying the copy proved.

    Raises:
        AuditLogInvalid: there is no published head, the target is there already, or cannot be written.
        RecordAltered, LogTruncated, SplitView: what was copied does not verify; the copy stays, as evidence.
    """
    with reading(directory):
        head = note.load(directory)
        segments = segment.listing(directory)
        if head is None or not segments:
            raise AuditLogInvalid(f"{directory}: has published no head, so a copy would prove nothing")
        try:
            target.mkdir(mode=0o750)
            for gone in pruned.listing(directory):
                (target / gone.path.name).write_bytes(b"".join(gone.hashes()))
            for part in segments:
                (target / part.path.name).write_bytes(part.read())
            note.store(target, head)
            verifier.write(target / KEY)
        except OSError as error:
            reason = (error.strerror or "i/o error").lower()
            raise AuditLogInvalid(
                f"{target}: cannot be written: {reason}", hint="give a folder that is not there"
            ) from error
    return verify(target, verifier=verifier, origin=origin, heads=[head])
