"""What comes from the edges: read, and sorted into what is computed, what is counted and what is answered at once.

One thread at a time reads. A frame that breaks the rules costs its edge the connection; whatever else is wrong with a
question is that question's error.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from pericard.engine.evidence import ASKS
from pericard.engine.rates import NO_LIMITS, Limits, Rates
from pericard.engine.refusals import Refusals
from pericard.engine.repository import Repository
from pericard.engine.scheduler import Caller, Job, Scheduler
from pericard.errors import Cancelled, MalformedRequest, Overloaded, PericardError, PipeError, leaves
from pericard.metrics import Metrics
from pericard.pipe import EdgeLink, Frame, FrameType, encode, error_frame
from pericard.pipe.frames import PRIORITIES, unpack_question

_logger = logging.getLogger(__name__)
_MAX_WAIT_MS = 3_600_000  # as long as an operator may let an edge wait
_LONGEST = 200
_MOST_CALLERS = 4096
_MAX_CALLER = 4096  # bytes: what is remembered of callers is bounded
_MOST_REFUSALS = 1 << 32  # in one sum
_MOST_ASKED = 16  # that wait for their turn, of what takes long
_CALLER_FIELDS = ("principal", "credential", "address", "request")
_POLICY_EVENTS = ("policy-loaded", "policy-refused")
_EVENTS = ("refused", *_POLICY_EVENTS)  # of an edge; whatever else the log holds, the engine saw itself
_EVENT_FIELDS = ("event", "code", *_CALLER_FIELDS, "model", "operation", "policy")

Admin = Callable[[str, dict[str, Any]], dict[str, Any]]
#: Reads the log: what is asked for, how, and by whom.
Reading = Callable[[str, dict[str, Any], dict[str, str]], bytes]


class Reception:
    """Reads the edges' frames."""

    def __init__(
        self,
        repository: Repository,
        scheduler: Scheduler,
        metrics: Metrics,
        refusals: Refusals,
        *,
        rates: Rates,
        admin: Admin,
        statistics: Callable[[], list[dict[str, object]]],
        evidence: Reading,
    ) -> None:
        """Take what frames are turned into.

        Args:
            repository: finds the model of a question.
            scheduler: takes questions and events.
            metrics: counts what is refused here.
            refusals: sums strangers.
            rates: how fast a caller may ask.
            admin: carries out an operation on the repository; called on a thread of its own.
            statistics: of every version that is served, for whoever asks.
            evidence: reads the log; called on a thread of its own.
        """
        self._repository = repository
        self._scheduler = scheduler
        self._metrics = metrics
        self._refusals = refusals
        self._rates = rates
        self._admin = admin
        self._statistics = statistics
        self._evidence = evidence
        self._codes = frozenset(leaves())
        self._callers: dict[bytes, Caller] = {}
        self._links: dict[int, EdgeLink] = {}
        self._poll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._bell, select.EPOLLIN)
        self._operators = _Turns("operator")
        self._readers = _Turns("evidence")  # a load may take minutes

    @property
    def links(self) -> list[EdgeLink]:
        """The edges that may still be there."""
        return [link for link in list(self._links.values()) if link.open]

    def add(self, link: EdgeLink) -> None:
        """Read a new edge's frames from now on."""
        self._links[link.fileno()] = link
        self._poll.register(link.fileno(), select.EPOLLIN)

    def wake(self) -> None:
        """End a :meth:`read` that waits; once closed, nobody does."""
        if not self._poll.closed:
            os.eventfd_write(self._bell, 1)

    def read(self, timeout: float) -> None:
        """Read what is there; wait up to ``timeout`` seconds for the first of it."""
        for descriptor, _ in self._poll.poll(max(0.0, timeout)):
            if descriptor == self._bell:
                os.eventfd_read(self._bell)
                continue
            link = self._links[descriptor]
            try:
                for frame in link.read():
                    self.receive(link, frame)
            except PipeError as error:
                link.cut_off(error)
            if not link.open:
                self._forget(descriptor, link)

    def close(self) -> None:
        """Close every link; again, nothing happens."""
        if self._poll.closed:
            return
        self._operators.close()
        self._readers.close()
        for descriptor, link in list(self._links.items()):
            self._forget(descriptor, link)
        self._poll.close()
        os.close(self._bell)

    def _forget(self, descriptor: int, link: EdgeLink) -> None:
        self._poll.unregister(descriptor)
        del self._links[descriptor]
        self._scheduler.drop(link)
        link.close()

    # --- frames ------------------------------------------------------------------------------------------------------

    def receive(self, link: EdgeLink, frame: Frame) -> None:
        """Take one frame from an edge.

        Raises:
            PipeError: it breaks the rules.
        """
        if frame.type is FrameType.INFER:
            self._infer(link, frame)
        elif frame.type is FrameType.CANCEL:
            if self._scheduler.cancel(link, frame.request) is not None:
                self._refuse(link, frame.request, Cancelled("request: its caller left"))
        elif frame.type is FrameType.EVENT:
            self._event(fields(meta := frame.meta, _EVENT_FIELDS), meta.get("count", 1))
        elif frame.type is FrameType.ASK:
            self._ask(link, frame)
        elif frame.type is FrameType.HEARD:
            generation = frame.meta.get("generation")
            if type(generation) is not int:
                raise PipeError("pipe: an edge heard a catalog that has no number")
            link.heard = max(link.heard, generation)
        else:
            raise PipeError(f"pipe: an edge sent a frame of type {frame.type.name}")

    def _infer(self, link: EdgeLink, frame: Frame) -> None:
        question = unpack_question(frame)
        if not 0 < question.deadline_ms <= _MAX_WAIT_MS or not 0 < question.priority <= PRIORITIES:
            raise PipeError("pipe: a question has no deadline or no priority")
        link.row(question)  # raises if it lies elsewhere
        now = time.monotonic()
        try:
            caller = self._caller(question.caller)
            served = self._repository.find(question.model)
            self._rates.admit(caller.principal, now, caller.limits)
            deadline = now + question.deadline_ms / 1000
            self._scheduler.submit(Job(link, frame.request, question, served, caller, deadline, now))
        except PipeError:
            raise
        except PericardError as error:
            self._refuse(link, frame.request, error)

    def _caller(self, data: bytes) -> Caller:
        """Who asks; the same few callers ask again and again."""
        caller = self._callers.get(data)
        if caller is None:
            if len(data) > _MAX_CALLER:
                raise MalformedRequest(f"pipe: a question's caller takes more than {_MAX_CALLER} bytes")
            try:
                said = msgspec.json.decode(data, type=dict[str, Any])
                limits = msgspec.convert(said["limits"], type=Limits) if "limits" in said else NO_LIMITS
            except (ValueError, RecursionError) as error:  # of which a DecodeError is one, and text that is no UTF-8
                raise MalformedRequest("pipe: a question's caller cannot be read") from error
            found = fields(said, _CALLER_FIELDS)
            caller = Caller(found.get("principal", ""), found.get("credential", ""), found.get("address", ""), limits)
            if len(self._callers) >= _MOST_CALLERS:
                self._callers.clear()
            self._callers[data] = caller
        return caller

    def _refuse(self, link: EdgeLink, number: int, error: PericardError) -> None:
        self._metrics.requests.labels(error.code).inc()
        link.send([error_frame(number, error)])

    def _event(self, event: dict[str, str], count: object) -> None:
        """Count an event; refusals of a stranger become part of a minute's sum instead of a record.

        Raises:
            PipeError: it is none that an edge may tell.
        """
        if event.get("event") not in _EVENTS:
            raise PipeError("pipe: an edge told an event that is not its to tell")
        if type(count) is not int or not 0 < count <= _MOST_REFUSALS:
            raise PipeError("pipe: an edge told of a number of events that is none")
        code = event.get("code", "")
        if event["event"] in _POLICY_EVENTS:
            self._policy(event, code if code in self._codes else "unknown")
            return
        if code:
            self._metrics.requests.labels(code if code in self._codes else "unknown").inc(count)
        if "principal" not in event:
            self._refusals.add(event.get("address", ""), code, count)
        elif not self._scheduler.record(event):
            self._refusals.suppress(count)

    def _policy(self, event: dict[str, str], code: str) -> None:
        """An edge took a policy, or kept the one before."""
        taken = event["event"] == "policy-loaded"
        self._metrics.policy_loads.labels("ok" if taken else code).inc()
        self._metrics.policy_refused.set(not taken)
        if not self._scheduler.record({name: text for name, text in event.items() if text}):
            self._refusals.suppress(1)

    def _ask(self, link: EdgeLink, frame: Frame) -> None:
        asked = frame.meta
        name = asked.pop("ask", None)
        if name == "metrics":
            self._metrics.queue_depth.set(len(self._scheduler))
            link.send([encode(FrameType.REPLY, frame.request, {}, self._metrics.render())])
        elif name == "statistics":
            link.send([encode(FrameType.REPLY, frame.request, {"model_stats": self._statistics()})])
        elif name == "index":
            link.send([encode(FrameType.REPLY, frame.request, {"index": self._repository.index()})])
        elif name == "load" or name == "unload":  # noqa: PLR1714  (a set needs a hash, which what an edge sent may lack)
            wanted = fields(asked, (*_CALLER_FIELDS, "model"))
            work = partial(self._reply, link, frame.request, lambda: (self._admin(name, wanted), b""))
            if not self._operators.take(work):
                self._refuse(link, frame.request, Overloaded("engine: other models are being loaded"))
        elif isinstance(name, str) and name in ASKS:
            caller = fields(asked, _CALLER_FIELDS)
            work = partial(self._reply, link, frame.request, lambda: ({}, self._evidence(name, asked, caller)))
            if not self._readers.take(work):
                self._refuse(link, frame.request, Overloaded("engine: others read the log", hint="try again later"))
        else:
            raise PipeError("pipe: an edge asked for something that there is not")

    def _reply(self, link: EdgeLink, number: int, work: Callable[[], tuple[dict[str, Any], bytes]]) -> None:
        """Do what takes long, on a thread of its own, and send what came of it."""
        try:
            head, body = work()
            link.send([encode(FrameType.REPLY, number, head, body)])
        except PericardError as error:
            link.send([error_frame(number, error)])
        except Exception:
            _logger.exception("what an edge asked for: failed")
            link.send([error_frame(number, PericardError("engine: failed"))])


class _Turns:
    """One thread, and at most so many that wait for it."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._free = threading.Semaphore(_MOST_ASKED)

    def take(self, work: Callable[[], None]) -> bool:
        """Have it done when its turn comes; False if too many wait already."""
        if not self._free.acquire(blocking=False):
            return False
        self._thread.submit(self._do, work)
        return True

    def close(self) -> None:
        """Do nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._free.release()


def fields(meta: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What a record takes of a frame: known fields, short text, and nothing that the log cannot encode."""
    texts = {name: meta[name] for name in names if isinstance(meta.get(name), str)}
    return {name: text[:_LONGEST].encode("utf-8", "replace").decode("utf-8") for name, text in texts.items()}
