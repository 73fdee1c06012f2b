"""Handlers of the audit log's routes: what may be asked for. The engine reads, and records who read what."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from pericard.edge.gate import Call
from pericard.edge.http import Response, json_headers
from pericard.edge.upstream import Upstream
from pericard.errors import MalformedRequest

#: Numbers that may stand in the query of ``/audit/records``: default, least and most.
QUERY: Final = {"from": (0, 0, 2**53), "limit": (100, 1, 1000)}

_NUMBER = re.compile(r"[0-9]{1,16}", re.ASCII)


async def records(upstream: Upstream, call: Call) -> Response:
    """Records of the log, in order."""
    _, body = await upstream.ask("audit-records", {**call.caller, **_numbers(call.head.query)})
    return Response(200, json_headers(call.request_id), body)


async def checkpoint(upstream: Upstream, call: Call) -> Response:
    """The signed head over all that is durable, published for this."""
    _, note = await upstream.ask("audit-checkpoint", {**call.caller})
    return Response(200, {**json_headers(call.request_id), "content-type": "text/plain; charset=utf-8"}, note)


async def receipt(upstream: Upstream, call: Call) -> Response:
    """A record, and the proof that it is in the log."""
    _, body = await upstream.ask("audit-receipt", {**call.caller, "index": int(call.record)})
    return Response(200, json_headers(call.request_id), body)


def _numbers(query: str) -> dict[str, int]:
    """What the query says; an unknown name, or one that stands twice, is not passed over."""
    found = {name: default for name, (default, _, _) in QUERY.items()}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=len(QUERY))
    except ValueError as error:
        raise MalformedRequest("query: cannot be read", hint="send ?from=0&limit=100") from error
    for name, text in pairs:
        if name not in QUERY or [one for one, _ in pairs].count(name) > 1:
            raise MalformedRequest("query: holds something else than from and limit, once each")
        _, least, most = QUERY[name]
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise MalformedRequest(f"{name}: is not a number from {least} to {most}")
        found[name] = int(text)
    return found
