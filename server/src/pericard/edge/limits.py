"""What a caller may cost before anybody knows who it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pericard.edge.http import Head
from pericard.errors import MalformedRequest, RequestTimeout, RequestTooLarge


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one edge.

    Attributes:
        body_bytes: largest body.
        body_seconds: longest time for a body to arrive.
        answer_seconds: longest time for an answer.
        header_bytes: largest sum of header names and values.
        items: most items in one request.
        failures: refused credentials a minute of one address, beyond which their refusals wait; None: no limit.
        waiting: refusals that may wait at a time.
    """

    body_bytes: int = 8 << 20
    body_seconds: float = 20.0
    answer_seconds: float = 30.0
    header_bytes: int = 16 << 10
    items: int = 256
    failures: int | None = None
    waiting: int = 128

    def check_body(self, size: int) -> None:
        """Hold what arrived of a body against the limit.

        Raises:
            RequestTooLarge: it is larger.
        """
        if size > self.body_bytes:
            raise RequestTooLarge(f"body: is larger than {self.body_bytes} bytes", hint="send fewer items at a time")


def check_head(head: Head, limits: Limits) -> None:
    """Refuse a head that is too large or announces too much.

    Raises:
        RequestTooLarge, MalformedRequest: it does.
    """
    size = sum(map(len, head.headers)) + sum(map(len, head.headers.values())) + len(head.path) + len(head.query)
    if size > limits.header_bytes:
        raise RequestTooLarge(f"headers: are larger than {limits.header_bytes} bytes")
    length = head.headers.get("content-length")
    if length is not None:
        if not length.isascii() or not length.isdigit():
            raise MalformedRequest("content-length: is not a number")
        if len(length) > 15 or int(length) > limits.body_bytes:  # noqa: PLR2004  (a petabyte has 16 digits)
            raise RequestTooLarge(
                f"body: announces {length[:20]} bytes, allowed are {limits.body_bytes}",
                hint="send fewer items at a time",
            )


async def read_body(chunks: AsyncIterator[bytes], limits: Limits) -> bytes:
    """Collect a body: what arrives is counted, whatever was announced.

    Raises:
        RequestTooLarge: it is larger than allowed.
        RequestTimeout: it did not arrive in time.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in chunks:
                size += len(chunk)
                limits.check_body(size)
                parts.append(chunk)
    except TimeoutError as error:
        raise RequestTimeout(f"body: did not arrive within {limits.body_seconds:g} seconds") from error
    return b"".join(parts)
