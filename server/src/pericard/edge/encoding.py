"""Content-Encoding: what callers compressed, unpacked within a limit, and answers compressed for who asks for it.

A compressed body is a promise about its size that only unpacking can check, so it is unpacked into at most the limit
and not one byte further. ``deflate`` is the zlib format (RFC 9110 §8.4.1.2). A stream that is cut, that is followed by
anything, or that holds several members is refused: whatever stands in front of us might read another body out of it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from pericard.errors import MalformedRequest, RequestTooLarge, UnsupportedMedia

#: What is understood in requests and offered in answers, best first; the value is zlib's window.
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_ALIASES = {"x-gzip": "gzip"}
_WORTH_BYTES = 1024
_LEVEL = 1
_MOST_CHOICES = 16
_CHOICE = re.compile(r"\s*([a-z0-9*_-]{1,16})\s*(?:;\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?")


def unpack(body: bytes | memoryview, headers: Mapping[str, str], *, limit: int) -> bytes | memoryview:
    """A request's body as it was before its ``Content-Encoding``.

    Args:
        body: as it was received.
        headers: lower-case names.
        limit: most bytes that may come out.

    Raises:
        UnsupportedMedia: the encoding is not one of ours, or there are several.
        MalformedRequest: the body is not, or not only, one whole compressed stream.
        RequestTooLarge: more than ``limit`` bytes would come out.
    """
    name = headers.get("content-encoding", "identity").strip().lower()
    name = _ALIASES.get(name, name)
    if name == "identity":
        return body
    if name not in _WINDOWS:
        raise UnsupportedMedia(f"content-encoding: {name[:60]!r} is not accepted here", hint="use gzip or deflate")
    stream = zlib.decompressobj(_WINDOWS[name])
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedRequest(f"body: is not {name} data", hint="deflate means the zlib format") from error
    if len(found) > limit:
        raise RequestTooLarge(f"body: is larger than {limit} bytes when unpacked", hint="send fewer items at a time")
    if not stream.eof:
        raise MalformedRequest(f"body: its {name} data ends before its end")
    if stream.unused_data:
        raise MalformedRequest(f"body: something follows its {name} data")
    return found


def pack(body: bytes, accept: str | None) -> tuple[dict[str, str], bytes]:
    """An answer's body for a caller's ``Accept-Encoding``: compressed if that was asked for and is worth it.

    Returns:
        Headers to add, and the body.
    """
    name = _chosen(accept) if accept and len(body) >= _WORTH_BYTES else None
    if name is None:
        return {}, body
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOWS[name])
    packed = stream.compress(body) + stream.flush()
    if len(packed) >= len(body):
        return {"vary": "accept-encoding"}, body
    return {"vary": "accept-encoding", "content-encoding": name}, packed


def _chosen(accept: str) -> str | None:
    """The encoding that a caller likes best; none if it named neither, or something that is not a choice."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(",", _MOST_CHOICES)[:_MOST_CHOICES]:
        match = _CHOICE.fullmatch(part)
        if match is not None:
            weights[_ALIASES.get(match[1], match[1])] = float(match[2] or 1)
    liked = {name: weights.get(name, weights.get("*", 0.0)) for name in _WINDOWS}
    best = max(liked, key=lambda name: liked[name])  # the first of equals
    return best if liked[best] > 0 and liked[best] >= weights.get("identity", 0.0) else None
