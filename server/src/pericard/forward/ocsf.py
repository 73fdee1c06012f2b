"""A record in the words of the Open Cybersecurity Schema Framework, for whoever searches in a collector.

Rules of this module: the table in ``docs/spec/forwarding.md`` and nothing else. The record itself goes along byte for
byte in ``raw_data``: what is written beside it is for finding it, and proves nothing. What a record does not say is
left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

SCHEMA: Final = "1.3.0"


class _Kind(NamedTuple):
    """Class and activity of an event, and how much it matters when nothing went wrong."""

    category: int
    class_number: int
    activity: int
    severity: int = 1  # informational


_CALL = _Kind(6, 6003, 99)  # API Activity, an operation of its own
_READ = _Kind(6, 6003, 2)
_LOGON = _Kind(3, 3002, 1, 2)
_LIFECYCLE_START, _LIFECYCLE_STOP = _Kind(6, 6002, 3), _Kind(6, 6002, 4)
_ENABLED, _DISABLED, _IN_TROUBLE = _Kind(6, 6002, 6), _Kind(6, 6002, 7, 2), _Kind(6, 6002, 99, 4)
_CHANGED, _NOT_CHANGED = _Kind(3, 3004, 3, 2), _Kind(3, 3004, 99, 3)  # Entity Management, update
_NOTHING = _Kind(0, 0, 99)  # Base Event

_KINDS: Final[Mapping[str, _Kind]] = {
    "predict": _CALL,
    "refused": _CALL,
    "start": _LIFECYCLE_START,
    "stop": _LIFECYCLE_STOP,
    "model-loaded": _ENABLED,
    "model-unloaded": _DISABLED,
    "model-refused": _IN_TROUBLE,
    "known-answers-failed": _IN_TROUBLE,
    "known-answers-passed": _ENABLED,
    "licence": _IN_TROUBLE._replace(severity=2),
    "licence-changed": _CHANGED,
    "publishers-changed": _CHANGED,
    "publishers-refused": _NOT_CHANGED,
    "notice-refused": _NOT_CHANGED,
    "trust-state": _CHANGED,
    "trust-reset": _CHANGED._replace(severity=4),
    "trust-refused": _NOT_CHANGED._replace(severity=4),
    "clock-accepted": _CHANGED._replace(severity=3),
    "clock-stepped": _CHANGED._replace(severity=3),
    "policy-loaded": _CHANGED,
    "policy-refused": _NOT_CHANGED,
    "audit-read": _READ,
    "log-recovered": _IN_TROUBLE,
    "log-pruned": _CHANGED._replace(severity=3),
}
_OF_A_CALLER: Final = frozenset({"unauthenticated"})
_SUCCESS, _FAILURE = 1, 2
_FAILED_SEVERITY = 2


def event(record: Mapping[str, Any], raw: bytes, *, leaf: str, origin: str, version: str) -> dict[str, Any]:
    """The body of one record.

    Args:
        record: its members.
        raw: its canonical bytes.
        leaf: its leaf hash, hex.
        origin: the log's name.
        version: of the daemon that sends it.
    """
    name, code = str(record.get("event", "")), record.get("code")
    outcome = record.get("outcome", "ok" if code is None else code)
    kind = _LOGON if name == "refused" and outcome in _OF_A_CALLER else _KINDS.get(name, _NOTHING)
    good = outcome == "ok"
    return {
        **_head(kind, good=good),
        "activity_name": name,
        "status_code": str(outcome),
        "time": _milliseconds(str(record["time"])),
        "metadata": _metadata(origin, version) | {"uid": leaf, "sequence": record["index"]},
        "raw_data": raw.decode("ascii"),
        **_about(record, name),
    }


def checkpoint(note: bytes, *, origin: str, size: int, root: str, version: str, now: float) -> dict[str, Any]:
    """The body of a signed head: so many records, under this root (hex)."""
    return {
        **_head(_NOTHING, good=True),
        "activity_name": "checkpoint",
        "time": int(now * 1000),
        "metadata": _metadata(origin, version) | {"uid": root},
        "count": size,
        "raw_data": note.decode("utf-8"),
    }


def severity(body: Mapping[str, Any]) -> int:
    """The severity of RFC 5424 for a body: 6 informational, 5 notice, 4 warning, 3 error."""
    return {1: 6, 2: 5, 3: 4}.get(body["severity_id"], 3)


def _head(kind: _Kind, *, good: bool) -> dict[str, int]:
    return {
        "category_uid": kind.category,
        "class_uid": kind.class_number,
        "activity_id": kind.activity,
        "type_uid": kind.class_number * 100 + kind.activity,
        "severity_id": kind.severity if good else max(kind.severity, _FAILED_SEVERITY),
        "status_id": _SUCCESS if good else _FAILURE,
    }


def _metadata(origin: str, version: str) -> dict[str, Any]:
    product = {"name": "pericard", "vendor_name": "pericard", "version": version}
    return {"version": SCHEMA, "product": product, "log_name": origin}


def _about(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Who, from where, with what, and on which model."""
    found: dict[str, Any] = {}
    if "principal" in record:
        found["actor"] = {"user": {"name": record["principal"], "credential_uid": record.get("credential")}}
    if "address" in record:
        found["src_endpoint"] = {"ip": record["address"]}
    request = {"request": {"uid": record["request"]}} if "request" in record else {}
    found["api"] = {"operation": name, "service": {"name": "pericard"}, **request}
    model = record.get("model")
    if isinstance(model, Mapping):
        named = {"name": model.get("name"), "version": model.get("version"), "uid": model.get("manifest")}
        found["resources"] = [{"type": "model", **{key: value for key, value in named.items() if value is not None}}]
    if type(record.get("count")) is int:
        found["count"] = record["count"]
    return found


def _milliseconds(moment: str) -> int:
    return int(datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp() * 1000)
