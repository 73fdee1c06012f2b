"""How long a refused credential waits for its refusal: who guesses, guesses slowly.

Counted for each address (of IPv6: for each /64 network, which is one customer), in each edge. Only refusals wait: a
valid credential is answered at once, wherever it comes from. What waits is a connection and a timer, never a thread or
a place in a queue; how many may wait is bounded, for all together and for each network.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter

from pericard.errors import RateLimited

_WINDOW_SECONDS = 60.0
_FIRST, _LONGEST = 0.25, 2.0  # seconds
_MOST_NETWORKS = 10_000
_SHARE = 2  # one network's part of what may wait


class Delays:
    """Counts refused credentials, on an event loop."""

    def __init__(self, failures: int | None, waiting: int) -> None:
        """Delay refusals beyond so many a minute of one network.

        Args:
            failures: refusals that are not delayed; None delays none.
            waiting: refusals that may wait at a time; one network has half of it.
        """
        self._failures = failures
        self._most = max(1, waiting)
        self._seen: dict[str, tuple[int, float]] = {}  # how many, and since when
        self._waiting: Counter[str] = Counter()
        self._all = 0

    def failed(self, address: str) -> float:
        """Count one refused credential; seconds until its refusal may be written.

        Raises:
            RateLimited: too many wait already, so this one must not.
        """
        if self._failures is None:
            return 0.0
        loop = asyncio.get_running_loop()
        network, now = network_of(address), loop.time()
        count, since = self._seen.get(network, (0, now))
        if now - since >= _WINDOW_SECONDS:
            count, since = 0, now
        if network not in self._seen and len(self._seen) >= _MOST_NETWORKS:
            del self._seen[next(iter(self._seen))]  # the one that was seen first; somebody guesses from everywhere
        self._seen[network] = (count + 1, since)
        beyond = count - self._failures
        if beyond < 0:
            return 0.0
        if self._all >= self._most or self._waiting[network] >= max(1, self._most // _SHARE):
            raise RateLimited("credential: too many were refused from this address", hint="wait 2 seconds")
        seconds = min(_LONGEST, _FIRST * 2.0 ** min(beyond, 8))
        self._waiting[network] += 1
        self._all += 1
        loop.call_later(seconds, self._over, network)  # whether the caller stays or not
        return seconds

    def _over(self, network: str) -> None:
        self._all -= 1
        self._waiting[network] -= 1
        if not self._waiting[network]:
            del self._waiting[network]


def network_of(address: str) -> str:
    """Whom an address belongs to: itself, or of IPv6 its /64; what is no address is one network of its own."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return found.packed[:8].hex()
