"""What edges say: every kind of frame; a hostile edge loses its connection, and nobody else loses anything by it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import serving
from hostile_frames import HOSTILE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiving import GOOD, Counter, Edge

from pericard.engine import reception
from pericard.engine.evidence import ASKS
from pericard.engine.rates import NO_LIMITS, Rates
from pericard.errors import PericardError, PipeError, UnknownModel
from pericard.pipe import FrameReader, FrameType, Question, encode, frames
from pericard.pipe.region import MIN_SIZE
from pericard.runtime.loader import LoadedModel


@pytest.fixture
def make(tiny_model: LoadedModel) -> Iterator[Callable[..., Counter]]:
    made: list[Counter] = []

    def new(**changes: Any) -> Counter:
        made.append(Counter(tiny_model, **changes))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture
def counter(make: Callable[..., Counter]) -> Counter:
    return make()


@pytest.fixture
def edge(counter: Counter) -> Edge:
    return counter.edge()


# --- questions --------------------------------------------------------------------------------------------------------


def test_a_question_becomes_a_job(counter: Counter, edge: Edge) -> None:
    before = time.monotonic()
    edge.ask(7, deadline_ms=3000, priority=1)
    (job,) = counter.work().jobs

    assert (job.link, job.number, job.served, job.question.priority) == (edge.link, 7, counter.served, 1)
    assert job.caller._asdict() == {**serving.CALLER, "limits": NO_LIMITS}
    assert before + 2.9 < job.deadline <= time.monotonic() + 3
    assert (job.question.request_id, job.question.trace) == (b"r-1", b"ab" * 16)


def test_what_is_wrong_with_a_question_is_its_own_error(make: Callable[..., Counter]) -> None:
    counter = make(queue=2)
    edge = counter.edge()
    edge.ask(1, model=99)
    assert edge.error(1) == "unknown-model"
    edge.ask(2)
    edge.ask(3)
    edge.ask(4)
    assert edge.error(4) == "overloaded"
    counter.repository.set_fault(counter.served, UnknownModel("wrong"))
    edge.ask(5)
    assert edge.error(5) == "model-not-ready"

    assert [job.number for job in counter.work().jobs] == [2, 3]
    assert [counter.counted(code) for code in ("unknown-model", "overloaded", "model-not-ready")] == [1, 1, 1]
    counter.scheduler.stop()
    edge.ask(6, model=1)
    assert edge.error(6) == "model-not-ready"
    assert edge.link.open


def test_callers_have_a_rate_and_a_share(make: Callable[..., Counter]) -> None:
    counter = make(rates=Rates(0.001, burst=2))
    edge = counter.edge()
    for number in (1, 2, 3):
        edge.ask(number)
    assert edge.error(3) == "rate-limited"
    edge.ask(4, caller=b'{"principal":"other"}')
    assert [job.number for job in counter.work().jobs] == [1, 2, 4]

    counter = make(per_caller=1)
    one, two = counter.edge(), counter.edge()
    one.ask(1)
    two.ask(1)  # over another edge it is the same caller
    assert two.error(1) == "rate-limited"


def test_a_caller_has_limits_of_its_own(make: Callable[..., Counter]) -> None:
    counter = make(rates=Rates(), per_caller=100)
    edge = counter.edge()
    slow, narrow = b'{"principal":"slow","limits":[0.001,2,null]}', b'{"principal":"narrow","limits":[null,null,1]}'
    for number in (1, 2, 3):
        edge.ask(number, caller=slow)
    assert edge.error(3) == "rate-limited"
    for number in (4, 5):
        edge.ask(number, caller=narrow)
    assert edge.error(5) == "rate-limited"
    for number in (6, 7, 8):
        edge.ask(number, caller=b'{"principal":"wide"}')
    assert [job.number for job in counter.work().jobs] == [1, 2, 4, 6, 7, 8]

    edge.ask(9, caller=b'{"principal":"slow","limits":[null,null,null]}')  # a policy that changed counts at once
    assert [job.number for job in counter.work().jobs] == [9]


def test_an_edge_says_which_policy_is_in_force(make: Callable[..., Counter]) -> None:
    counter = make()
    edge = counter.edge()
    edge.say(encode(FrameType.EVENT, 0, {"event": "policy-loaded", "code": "", "policy": "ab" * 32}))
    refused = {"event": "policy-refused", "code": "config-invalid", "policy": "ab" * 32}
    edge.say(encode(FrameType.EVENT, 0, refused))
    counter.read()

    assert counter.work().events == [
        {"event": "policy-loaded", "policy": "ab" * 32},
        refused,
    ]
    assert counter.metrics.policy_refused._value.get() == 1
    found = [counter.metrics.policy_loads.labels(result)._value.get() for result in ("ok", "config-invalid")]
    assert found == [1, 1]


CALLERS = {
    "a rate below zero": b'{"limits":[-1,null,null]}',
    "a rate of zero": b'{"limits":[0,null,null]}',
    "no burst": b'{"limits":[1,0,null]}',
    "half a row": b'{"limits":[null,null,0.5]}',
    "limits in words": b'{"limits":"none"}',
    "nothing": b"",
    "no object": b"[]",
    "null": b"null",
    "not JSON": b"{x}",
    "no UTF-8": b'{"principal":"\xff"}',
    "no UTF-8 in a name": b'{"\xed\xa0\x80":1}',
    "nesting": b'{"a":' * 10_000,
    "too long": b'{"a":"' + b"x" * 4096 + b'"}',
}


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS.keys())
def test_a_caller_that_cannot_be_read_is_that_questions_error(counter: Counter, edge: Edge, caller: bytes) -> None:
    edge.ask(1, caller=caller)
    assert edge.error(1) == "malformed-request"
    edge.ask(2)

    assert [job.number for job in counter.work().jobs] == [2]


@pytest.mark.parametrize("caller", [b"{}", b'{"principal":5,"credential":null,"address":["x"]}'])
def test_a_caller_without_a_name_has_an_empty_one(counter: Counter, edge: Edge, caller: bytes) -> None:
    edge.ask(1, caller=caller)

    assert counter.work().jobs[0].caller == ("", "", "", NO_LIMITS)


def test_what_is_remembered_of_callers_is_short_and_bounded(
    counter: Counter, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "_MOST_CALLERS", 10)
    edge.ask(0, priority=1, caller=json.dumps({"principal": "x" * 1000}).encode())
    for number in range(1, 50):
        edge.ask(number, caller=json.dumps({"principal": f"p{number}"}).encode())

    assert len(counter.reception._callers) <= 10
    assert len(counter.work().jobs[0].caller.principal) == 200


WRONG_QUESTIONS: dict[str, Any] = {
    "priority 0": {"priority": 0},
    "priority 4": {"priority": 4},
    "priority 9": {"priority": 9},
    "no deadline": {"deadline_ms": 0},
    "a deadline without end": {"deadline_ms": 2**32 - 1},
    "beyond the region": {"offset": MIN_SIZE, "size": 1},
    "across its end": {"offset": MIN_SIZE - 1, "size": 2},
    "at the end of all numbers": {"offset": 2**64 - 1, "size": 2**32 - 1},
}
WRONG = HOSTILE | {name: frames.pack_question(1, GOOD._replace(**bad)) for name, bad in WRONG_QUESTIONS.items()} | {
    "one number twice": frames.pack_question(1, GOOD) * 2,
    "a short question": frames.pack(FrameType.INFER, 1, bytes(10)),
    "a body": frames.pack(FrameType.EVENT, 1, b"{}", b"x"),
    "a long head": frames.pack(FrameType.EVENT, 1, b" " * 70_000),
    "an answer": encode(FrameType.ANSWERS, 1, {}),
    "an error": encode(FrameType.ERROR, 1, {}),
    "a catalog": encode(FrameType.CATALOG, 1, {}),
    "a reply": encode(FrameType.REPLY, 1, {}),
    "an unknown ask": encode(FrameType.ASK, 1, {"ask": "shell"}),
    "an ask of nothing": encode(FrameType.ASK, 1, {}),
    "an ask of a list": encode(FrameType.ASK, 1, {"ask": []}),
    "an ask of an object": encode(FrameType.ASK, 1, {"ask": {}}),
    "an ask that is no object": frames.pack(FrameType.ASK, 1, b"[]"),
    "an event of the engine's own": encode(FrameType.EVENT, 0, {"event": "model-loaded", "principal": "x"}),
    "an event that is none": encode(FrameType.EVENT, 0, {"event": ["refused"]}),
    "an event without a name": encode(FrameType.EVENT, 0, {"code": "overloaded"}),
    "a word without a number": encode(FrameType.HEARD, 0, {}),
    "a word with a truth": encode(FrameType.HEARD, 0, {"generation": True}),
    "a word with a fraction": encode(FrameType.HEARD, 0, {"generation": 1.5}),
    "a word with nothing": frames.pack(FrameType.HEARD, 0, b'{"generation":NaN}'),
}  # fmt: skip


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_an_edge_that_breaks_the_rules_loses_its_connection_and_nobody_else_anything(
    counter: Counter, edge: Edge, data: bytes
) -> None:
    other = counter.edge()
    other.ask(1)
    edge.ask(100)
    edge.say(data)

    assert edge.gone()
    assert counter.reception.links == [other.link]
    other.ask(2)
    assert [(job.link, job.number) for job in counter.work().jobs] == [(other.link, 1), (other.link, 2)]
    assert (len(counter.scheduler), counter.served.waiting) == (0, 0)  # what it had asked went with it


# --- cancel, hear, event ----------------------------------------------------------------------------------------------


def test_who_cancels_is_answered_once_and_alone(counter: Counter, edge: Edge) -> None:
    for number in (1, 2, 3):
        edge.ask(number)
    edge.say(encode(FrameType.CANCEL, 2, {}), encode(FrameType.CANCEL, 2, {}))
    assert edge.error(2) == "cancelled"

    assert [job.number for job in counter.work().jobs] == [1, 3]
    edge.say(encode(FrameType.CANCEL, 1, {}))  # in work: its answer comes
    edge.ask(1, model=99)
    assert edge.error(1) == "unknown-model"


def test_a_hundred_thousand_cancels_are_read_and_forgotten(counter: Counter, edge: Edge) -> None:
    other = counter.edge()
    data = b"".join(frames.pack(FrameType.CANCEL, number, b"") for number in range(100_000))
    sending = threading.Thread(target=edge.sock.sendall, args=(data,))
    sending.start()
    while sending.is_alive():
        counter.reception.read(0.1)
    other.ask(1)
    edge.ask(1)

    assert {job.link for job in counter.work().jobs} == {edge.link, other.link}


def test_an_edge_says_which_catalog_it_rests_on(edge: Edge) -> None:
    assert edge.link.heard == -1
    for generation, heard in ((5, 5), (3, 5), (2**70, 2**70)):
        edge.say(encode(FrameType.HEARD, 0, {"generation": generation}))
        assert edge.link.heard == heard


def test_refusals_are_counted_and_those_of_known_callers_recorded(counter: Counter, edge: Edge) -> None:
    event = {"event": "refused", "code": "forbidden", "address": "192.0.2.1"}
    edge.say(encode(FrameType.EVENT, 0, event), encode(FrameType.EVENT, 0, {**event, "code": "invented"}))
    edge.say(encode(FrameType.EVENT, 0, {**event, "principal": "ris", "secret": "x", "request": "r" * 900}))
    edge.say(frames.pack(FrameType.EVENT, 0, b'{"event":"refused","code":"\xed\xa0\x80","principal":"p"}'))

    first, second = counter.work().events
    assert first == {**event, "principal": "ris", "request": "r" * 200}
    assert second["code"].encode() == b"?"
    assert (counter.counted("forbidden"), counter.counted("unknown")) == (2, 2)
    assert [record["count"] for record in counter.refusals.due(force=True)] == [1, 1]


# --- asks -------------------------------------------------------------------------------------------------------------


def test_what_is_asked_is_replied(counter: Counter, edge: Edge) -> None:
    edge.ask(1)
    edge.say(*(encode(FrameType.ASK, n, {"ask": name}) for n, name in enumerate(("metrics", "statistics", "index"))))
    metrics, statistics, index = (edge.hear() for _ in range(3))

    assert b"pericard_queue_depth 1.0" in metrics.body
    assert statistics.meta == {"model_stats": [{"name": "ecg-anomaly"}]}
    assert (index.request, index.meta["index"][0]["name"]) == (2, "ecg-anomaly")


def test_operations_run_beside_and_one_after_the_other(counter: Counter, edge: Edge) -> None:
    let, begun = threading.Event(), threading.Event()

    def wait(name: str, fields: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert let.wait(10)
        return counter._admin(name, fields)

    counter.admin = wait
    count = reception._MOST_ASKED
    edge.say(*(encode(FrameType.ASK, n, {"ask": "load", "model": "m", "x": 1, **serving.CALLER}) for n in range(count)))
    assert begun.wait(5)
    edge.say(encode(FrameType.ASK, 99, {"ask": "unload"}))
    assert edge.error(99) == "overloaded"
    edge.ask(5)  # questions go on meanwhile
    assert len(counter.work().jobs) == 1
    let.set()

    assert [edge.hear().request for _ in range(count)] == list(range(count))
    assert counter.operated == [("load", {"model": "m", **serving.CALLER})] * count
    for number in (1, 2):
        edge.say(encode(FrameType.ASK, number, {"ask": "unload"}))
        assert edge.hear().meta == {"done": "unload"}


@pytest.mark.parametrize(("error", "code"), [(UnknownModel("m"), "unknown-model"), (KeyError("m"), PericardError.code)])
def test_an_operation_that_fails_says_why_and_no_more(
    counter: Counter, edge: Edge, error: Exception, code: str
) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise error

    counter.admin = fail
    for number in range(3):
        edge.say(encode(FrameType.ASK, number, {"ask": "load"}))
        assert edge.error(number) == code


@pytest.mark.parametrize("name", ASKS)
def test_the_log_is_read_beside_everything_else(counter: Counter, edge: Edge, name: str) -> None:
    let, begun = threading.Event(), threading.Event()

    def wait(*asked: Any) -> bytes:
        begun.set()
        assert let.wait(10)
        return json.dumps(asked).encode()

    counter.evidence = wait
    count = reception._MOST_ASKED
    edge.say(*(encode(FrameType.ASK, number, {"ask": name}) for number in range(count)))
    assert begun.wait(5)
    edge.say(encode(FrameType.ASK, 99, {"ask": name}))
    assert edge.error(99) == "overloaded"
    edge.say(encode(FrameType.ASK, 98, {"ask": "unload"}))  # that is another line
    assert edge.hear().meta == {"done": "unload"}
    edge.ask(5)
    assert len(counter.work().jobs) == 1
    let.set()
    assert [edge.hear().request for _ in range(count)] == list(range(count))

    edge.say(encode(FrameType.ASK, 1, {"ask": name, "index": 4, **serving.CALLER}))
    reply = edge.hear()
    assert (reply.type, reply.request, json.loads(reply.body)[0]) == (FrameType.REPLY, 1, name)
    assert json.loads(reply.body)[1]["index"] == 4
    assert json.loads(reply.body)[2] == serving.CALLER


# --- coming and going -------------------------------------------------------------------------------------------------


def test_an_edge_that_hangs_up_takes_its_questions_along(counter: Counter, edge: Edge) -> None:
    other = counter.edge()
    edge.ask(1)
    other.ask(1)
    edge.sock.close()
    counter.read()

    assert counter.reception.links == [other.link]
    assert [job.link for job in counter.work().jobs] == [other.link]


def test_descriptors_are_used_again(counter: Counter) -> None:
    """A new edge gets the number of one that is gone, and nothing of it."""
    for number in range(1, 50):
        edge = counter.edge()
        edge.ask(number)
        edge.say(b"x" * 64)
        assert edge.gone()
    edge = counter.edge()
    edge.ask(1)

    assert [job.link for job in counter.work().jobs] == [edge.link]
    assert len(counter.reception._links) == 1


def test_whoever_waits_is_woken(counter: Counter) -> None:
    threading.Timer(0.05, counter.reception.wake).start()
    started = time.monotonic()
    counter.reception.read(10)

    assert time.monotonic() - started < 5
    counter.reception.read(0)  # the bell rang once
    counter.reception.close()
    counter.reception.wake()  # by a thread that ends late


# --- anything ---------------------------------------------------------------------------------------------------------

leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
names = ["ask", "event", "code", "principal", "credential", "address", "request", "model", "operation", "generation"]
words = st.sampled_from(["refused", "metrics", "index", "statistics", "load", "unload", "predict", ""])
meta = st.dictionaries(st.sampled_from(names), value | words).map(lambda found: json.dumps(found).encode())
question = st.builds(
    Question, st.integers(0, MIN_SIZE) | st.integers(0, 2**64 - 1), st.integers(0, 64) | st.integers(0, 2**32 - 1),
    st.integers(0, 3), st.integers(0, 10_000_000), st.integers(0, 4), st.binary(max_size=9), st.binary(max_size=9),
    meta | st.binary(max_size=40),
).map(lambda one: frames.pack_question(1, one)[20:])  # fmt: skip
said = st.tuples(st.sampled_from(FrameType), st.integers(0, 5), meta | question | st.binary(max_size=60))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(said, min_size=1, max_size=8))
def test_whatever_an_edge_says_is_taken_or_breaks_the_rules(
    counter: Counter, found: list[tuple[FrameType, int, bytes]]
) -> None:
    edge = counter.edge()
    try:
        for kind, number, head in found:
            (frame,) = FrameReader(head=1 << 16, body=0).feed(frames.pack(kind, number, head))
            counter.reception.receive(edge.link, frame)
    except PipeError:
        pass
    edge.sock.close()
    counter.read()
    counter.work()

    assert (len(counter.scheduler), counter.served.waiting) == (0, 0)
