"""The client: one conversation with a server, driven by blocking calls or by ``asyncio``.

Rules of this room: what is said, and what is said again, is decided once, in generators that do no I/O
(``conversation``); ``Client`` and ``AsyncClient`` only carry their requests. A request is repeated only where it was
provably not processed: no connection was made, or the server answered 503. Redirects, proxies and credentials from
the environment are not followed: samples and token go to the address that was given, or nowhere.
"""

from pericard_client.client.conversation import LONGEST_WAIT, MOST_RETRIES, Options
from pericard_client.client.transport import AsyncClient, Client

__all__ = ["LONGEST_WAIT", "MOST_RETRIES", "AsyncClient", "Client", "Options"]
