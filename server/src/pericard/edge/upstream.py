"""What the handlers of every route use: the engine behind its link, what it serves, and the limits."""

from __future__ import annotations

from typing import Any

from pericard.auth import Principal
from pericard.edge.catalog import Catalog, Model
from pericard.edge.delays import Delays
from pericard.edge.http import Head
from pericard.edge.inference import Inference, Terms
from pericard.edge.limits import Limits
from pericard.edge.oip import Parameters, Plans
from pericard.edge.predict import Said
from pericard.edge.quick import Reader
from pericard.edge.refusals_log import RefusalsLog
from pericard.edge.strangers import Strangers
from pericard.errors import EngineAway, MalformedRequest, PericardError
from pericard.pipe import EngineLink, Meta


class Upstream:
    """The engine, as one edge sees it.

    Attributes:
        limits: of one request.
        version: of the daemon.
        inference: asks about rows.
        terms: of a request that asks for no other.
        reader: reads JSON bodies.
        said: writes them.
        plans: reads requests of the Open Inference Protocol.
        parameters: of its answers.
        strangers: whose refusals are summed.
        delays: how long refused credentials wait.
    """

    def __init__(
        self, link: EngineLink, limits: Limits, *, version: str, refusals_log: RefusalsLog | None = None
    ) -> None:
        """Take the engine's link, the limits, and the text log of refused credentials."""
        self._link = link
        self.limits = limits
        self.version = version
        self.inference = Inference(link, self.note)
        self.terms = Terms(limits.answer_seconds)
        self.reader = Reader()
        self.said = Said()
        self.plans = Plans()
        self.parameters = Parameters()
        self.strangers = Strangers(link, refusals_log)
        self.delays = Delays(limits.failures, limits.waiting)
        self._catalog: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        """What is served.

        Raises:
            EngineAway: nobody says.
        """
        said = self._link.catalog
        if said is None:
            raise EngineAway("engine: is not there at the moment", hint="try again in a second")
        if self._catalog is None or self._catalog.said is not said:
            self._catalog = Catalog(said)
        return self._catalog

    @property
    def any_ready(self) -> bool:
        """Whether some model can answer."""
        return self._link.catalog is not None and any(model.ready for model in self.catalog)

    def only_model(self, principal: Principal) -> str:
        """The one model that a caller can mean who names none.

        Raises:
            MalformedRequest: there is more or less than one.
        """
        names = [name for name in self.catalog.names if principal.may("predict", name)]
        if len(names) != 1:
            raise MalformedRequest(
                "model: is missing, and more or less than one could be meant", hint='name it: {"model": "…"}'
            )
        return names[0]

    def model(self, name: str, version: str = "") -> Model:
        """A version of a model; see :meth:`Catalog.model`."""
        return self.catalog.model(name, version)

    async def ask(
        self, name: str, fields: dict[str, Any] | None = None, *, seconds: float | None = None
    ) -> tuple[Meta, bytes]:
        """Ask the engine for anything but an inference; head and body of its reply.

        Raises:
            EngineAway, DeadlineExceeded, PericardError: as ``EngineLink.ask``.
        """
        return await self._link.ask(name, fields, seconds=self.limits.answer_seconds if seconds is None else seconds)

    def note(self, error: PericardError, head: Head, principal: Principal | None) -> None:
        """Tell the engine of a refusal that it does not know of; nobody waits for it."""
        if principal is None:
            self.refused(error, head.address)
            return
        self._link.event(
            {
                "event": "refused", "code": error.code, "address": head.address, "principal": principal.name,
                "credential": principal.credential, "request": head.request_id,
            }
        )  # fmt: skip

    def refused(self, error: PericardError, address: str) -> None:
        """Have the engine told of a stranger's refusal; nobody waits for it."""
        self.strangers.refused(error.code, address)
