"""Audit records on their way out: from the log, behind a durable cursor, to a collector.

Rules of this room: the log is the queue; delivery is at least once and duplicates are told apart by index; the cursor
moves only after the sink took a record. Nothing here reaches a key, a model or a weight, and nothing here writes the
log. What leaves the machine, and what a collector can check of it, is specified in ``docs/spec/forwarding.md``.
"""

from pericard.forward.cursor import Cursor
from pericard.forward.lines import send_lines
from pericard.forward.main import Forwarder, Status, status_path
from pericard.forward.values import ForwardValues

__all__ = ["Cursor", "ForwardValues", "Forwarder", "Status", "send_lines", "status_path"]
