"""What an edge does by the clock, and never because of a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from pericard.auth import Authority, PolicyFile
from pericard.edge.fetching import fetch
from pericard.errors import ConfigError

_USES_SECONDS = 60.0
_POLICY_SECONDS = 1.0
_logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def keeping(authority: Authority, policy_looked: Callable[[ConfigError | None], None]) -> AsyncIterator[None]:
    """Do it while the block runs; at its end, write when each token was used last."""
    uses = _Uses(authority)
    tasks = [asyncio.create_task(uses.keep())]
    if authority.policy is not None:
        tasks.append(asyncio.create_task(_look(authority.policy, policy_looked)))
        tasks.append(asyncio.create_task(_fetch(authority.policy)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await uses.write()


async def _look(policy: PolicyFile, looked: Callable[[ConfigError | None], None]) -> None:
    """Take a policy that changed."""
    while True:
        await asyncio.sleep(_POLICY_SECONDS)
        policy.look(looked)


async def _fetch(policy: PolicyFile) -> None:
    """Fetch the keys of issuers when they are due; what fails is tried again, and the keys before it last a day."""
    while True:
        for source in policy.remote:
            if not source.due():
                continue
            try:
                source.take(await asyncio.to_thread(fetch, source.location, source.ca))
            except ConfigError as error:
                _logger.warning("%s; the keys before it stay in use for a day", error.message)
        await asyncio.sleep(_POLICY_SECONDS)


class _Uses:
    """Times of use, on their way into their file."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._said = False

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(_USES_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write them; other edges, and the disk, are waited for on a thread of its own."""
        try:
            await asyncio.to_thread(self._authority.tokens.write_uses)
        except OSError as error:
            if not self._said:  # once: it is nothing that keeps anybody from being answered
                _logger.warning("times of use: cannot be written: %s", (error.strerror or "i/o error").lower())
            self._said = True
