"""Syslog messages as RFC 5424 has them: one for a record, one for a signed head.

Rules of this module: ASCII only, one line; what stands in the header comes from the record or from us, and no byte
of it can end a field. A message says in its structured data which record it is, so that a collector finds gaps without
reading the body.
"""

from __future__ import annotations

import json
import re
import socket
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pericard.audit import note
from pericard.audit.proof import leaf_hash
from pericard.audit.record import parse
from pericard.errors import RecordAltered
from pericard.forward import ocsf

SD_ID: Final = "pericard@32473"  # RFC 5612's number for whoever has none
_FACILITY: Final = 13  # log audit
_NOT_A_NAME = re.compile(r"[^!-~]")
_LONGEST_MSGID, _LONGEST_HOST = 32, 255


class Sender(NamedTuple):
    """What every message says of where it comes from.

    Attributes:
        origin: the log's name.
        version: of the daemon.
        host: this machine's name.
    """

    origin: str
    version: str
    host: str

    @classmethod
    def here(cls, origin: str, version: str) -> Sender:
        """A sender on this machine."""
        return cls(origin, version, _NOT_A_NAME.sub("", socket.gethostname())[:_LONGEST_HOST] or "-")


def of_record(index: int, raw: bytes, sender: Sender) -> bytes:
    """The message of one record, from its canonical bytes.

    Raises:
        AuditLogInvalid: they are not a record.
        RecordAltered: it lacks what every record has.
    """
    fields, leaf = parse(raw), leaf_hash(raw).hex()
    try:
        body = ocsf.event(fields, raw, leaf=leaf, origin=sender.origin, version=sender.version)
    except (KeyError, ValueError) as error:
        raise RecordAltered(f"record {index}: carries no time or index") from error
    about = {"idx": str(index), "leaf": leaf, "origin": sender.origin}
    return _message(sender, str(fields["time"]), str(fields.get("event", "")), about, body)


def of_head(signed: bytes, sender: Sender, now: float) -> bytes:
    """The message of a signed head, from the note's bytes; ``now`` is seconds since the epoch.

    Raises:
        AuditLogInvalid: it is not a head.
    """
    head = note.claims(signed)
    body = ocsf.checkpoint(
        signed, origin=head.origin, size=head.size, root=head.root.hex(), version=sender.version, now=now
    )
    about = {"origin": head.origin, "size": str(head.size), "root": head.root.hex()}
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return _message(sender, moment, "checkpoint", about, body)


def _message(sender: Sender, moment: str, kind: str, about: dict[str, str], body: dict[str, Any]) -> bytes:
    priority = _FACILITY * 8 + ocsf.severity(body)
    name = _NOT_A_NAME.sub("", kind)[:_LONGEST_MSGID] or "-"
    data = " ".join(f'{key}="{_escaped(value)}"' for key, value in about.items())
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    line = f"<{priority}>1 {moment} {sender.host} pericard - {name} [{SD_ID} {data}] {text}"
    return line.encode("ascii", "replace")


def _escaped(value: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", value)
