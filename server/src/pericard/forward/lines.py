"""The simplest sink: JSON lines to a stream, flushed before the cursor moves."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import BinaryIO

from pericard.audit.reading import published, records
from pericard.errors import LogTruncated
from pericard.forward.cursor import Cursor

_GROUP = 256
_POLL_SECONDS = 0.5


def send_lines(directory: Path, cursor_path: Path, out: BinaryIO, *, follow: bool) -> None:
    """Write every record from the cursor on, one JSON object a line.

    It stops at the published checkpoint: only what that covers is durable for certain, and an index that left the
    machine must never be given to another record.

    Args:
        directory: the log's directory.
        cursor_path: where the cursor is kept.
        out: a stream; what it took and flushed counts as sent.
        follow: keep waiting for new records instead of returning at the end.

    Raises:
        LogTruncated: records that were sent already are not there any more.
        ConfigError: the cursor cannot be read or written.
        AuditError: the log cannot be read.
    """
    cursor = Cursor(cursor_path)
    while True:
        durable = published(directory)
        if durable < cursor.position:  # waiting for the log to grow back would hide it from whoever collects
            raise LogTruncated(
                f"{directory}: holds {durable} records, and {cursor.position} were sent already",
                hint="verify the log with a head that was sent; for another log, use another cursor",
            )
        group = list(itertools.islice(records(directory, cursor.position, durable), _GROUP))
        if group and group[0][0] != cursor.position:
            raise LogTruncated(
                f"records {cursor.position} to {group[0][0] - 1}: were pruned before they were sent",
                hint=f"move the cursor to {group[0][0]} to go on without them",
            )
        out.writelines(
            json.dumps(record, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n" for _, record in group
        )
        if group:
            out.flush()
            cursor.advance(group[-1][0] + 1)
        elif follow:
            time.sleep(_POLL_SECONDS)
        else:
            return
