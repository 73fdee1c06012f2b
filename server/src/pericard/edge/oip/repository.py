"""The repository and statistics extensions: what callers may ask, and what they are shown of the engine's lists.

The engine's lists hold every version of every model; a caller sees those of the models that it may see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from pericard.edge.oip import json_text
from pericard.errors import MalformedRequest, RequestTooLarge

Entry = Mapping[str, Any]
May = Callable[[str], bool]

_T = TypeVar("_T")
_LARGEST = 64 << 10
_READY = "READY"
_OWN_CONFIGURATION = ("config", "file:")


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    ready: bool | None = None


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    parameters: msgspec.Raw = msgspec.Raw()


def parse_index(body: bytes) -> bool:
    """``POST /v2/repository/index``: whether only models that are ready are asked for; the body may be empty.

    Raises:
        MalformedRequest, RequestTooLarge: it is something else.
    """
    return bool(_small(body, _Index).ready) if body else False


def parse_load(body: bytes) -> None:
    """``POST /v2/repository/models/{name}/load``: there is nothing to choose.

    Raises:
        MalformedRequest: the body asks for another configuration or other files than those that were sealed, or for
            anything else.
        RequestTooLarge: it is too large to be read.
    """
    for name in _changes(body):
        if name.startswith(_OWN_CONFIGURATION):
            raise MalformedRequest(
                "load: a sealed model brings its own configuration and files", hint="leave config and file: out"
            )
        raise MalformedRequest(f"load: parameter {name[:64]!r} is not known")


def parse_unload(body: bytes) -> None:
    """``POST /v2/repository/models/{name}/unload``: ``unload_dependents`` may be given; no model has any.

    Raises:
        MalformedRequest, RequestTooLarge: the body asks for something else.
    """
    given = _changes(body)
    json_text.flag(given, "unload_dependents", "unload", default=False)
    for name in given:
        if name != "unload_dependents":
            raise MalformedRequest(f"unload: parameter {name[:64]!r} is not known")


def index(entries: Iterable[Entry], may: May, *, ready: bool = False) -> list[dict[str, Any]]:
    """The answer to an index request.

    Args:
        entries: all versions, each with name, version, state and reason.
        may: whether the caller may see a model.
        ready: leave out what is not.
    """
    return [
        {"name": entry["name"], "version": str(entry["version"]), "state": entry["state"], "reason": entry["reason"]}
        for entry in entries
        if may(entry["name"]) and (not ready or entry["state"] == _READY)
    ]


def statistics(
    entries: Iterable[Entry], may: May, *, name: str | None = None, version: str | None = None
) -> dict[str, Any]:
    """The answer to a statistics request: the engine's own entries, of one model or version if those are named."""
    return {
        "model_stats": [
            entry
            for entry in entries
            if may(entry["name"]) and name in {None, entry["name"]} and version in {None, str(entry["version"])}
        ]
    }


def _changes(body: bytes) -> json_text.Parameters:
    return json_text.parameters(_small(body, _Change).parameters, "request") if body else {}


def _small(body: bytes, kind: type[_T]) -> _T:
    if len(body) > _LARGEST:
        raise RequestTooLarge(f"body: is larger than {_LARGEST} bytes")
    found = json_text.decode(body, kind, "body")
    json_text.refuse_repetition(body)
    return found
