"""Frames and both ends of the pipe: what is split, hostile, late, gone or stuck never crashes, grows or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pericard.errors import (
    DeadlineExceeded,
    EngineAway,
    InvalidInput,
    Overloaded,
    PericardError,
    PipeError,
)
from pericard.pipe import EdgeLink, EngineLink, Frame, FrameReader, FrameType, edge_end, encode, engine_end, frames
from pericard.pipe.engine_end import error_frame

HEADER = frames.HEADER
LIMIT = HEADER.size + frames.MAX_META + frames.MAX_BODY


# --- frames -----------------------------------------------------------------------------------------------------------

metas = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
a_frame = st.builds(Frame, st.sampled_from(FrameType), st.integers(0, 2**64 - 1), metas, st.binary(max_size=64))


@given(sent=st.lists(a_frame, max_size=6), seed=st.integers(0, 2**32), most=st.integers(1, 200))
def test_frames_come_back_whatever_way_the_stream_is_cut(sent: list[Frame], seed: int, most: int) -> None:
    stream = b"".join(encode(*frame) for frame in sent)
    cuts, reader, found = random.Random(seed), FrameReader(), []
    while stream:
        size = cuts.randint(1, most)
        found += reader.feed(stream[:size])
        stream = stream[size:]

    assert found == sent


def test_a_frame_is_taken_from_every_kind_of_buffer() -> None:
    data = encode(FrameType.INFER, 7, {"model": "m"}, b"body")

    for kind in (bytes, bytearray, memoryview):
        assert FrameReader().feed(kind(data)) == [Frame(FrameType.INFER, 7, {"model": "m"}, b"body")]


def header(magic: bytes = b"PF", kind: int = 2, zero: int = 0, request: int = 1, meta: int = 2, body: int = 0) -> bytes:
    return struct.pack("<2sBBQII", magic, kind, zero, request, meta, body)


HOSTILE = {
    "another magic": header(magic=b"PG") + b"{}",
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(64),
    "a set reserved byte": header(zero=1) + b"{}",
    "too long a meta": header(meta=frames.MAX_META + 1),
    "too long a body": header(body=frames.MAX_BODY + 1),
    "the longest lengths": header(meta=2**32 - 1, body=2**32 - 1),
    "an unknown type": header(kind=99) + b"{}",
    "type zero": header(kind=0) + b"{}",
    "meta that is not JSON": header(meta=3) + b"{x}",
    "no meta": header(meta=0),
    "meta that is a list": header() + b"[]",
    "meta that is a number": header(meta=1) + b"1",
    "meta that is not text": header() + b"\xff\xfe",
    "a lone surrogate half": header(meta=4) + b"\xed\xa0\x80\xff",
    "nesting": header(meta=200_000) + b"[" * 200_000,
    "nested objects": header(meta=500_000) + b'{"a":' * 100_000,
    "an endless number": header(meta=100_006) + b'{"a":' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_is_refused(data: bytes) -> None:
    with pytest.raises(PipeError):
        FrameReader().feed(data)


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_is_refused_byte_by_byte_too(data: bytes) -> None:
    reader = FrameReader()

    parts = [data[place : place + 997] for place in range(0, len(data), 997)]

    with pytest.raises(PipeError):
        list(map(reader.feed, parts))


@given(data=st.binary(max_size=200))
def test_no_bytes_do_more_than_raise(data: bytes) -> None:
    reader = FrameReader()
    try:
        found = reader.feed(data)
    except PipeError:
        return

    assert all(isinstance(frame, Frame) for frame in found)
    assert len(reader._buffer) <= len(data)


def test_a_bad_length_is_refused_before_its_bytes_are_waited_for() -> None:
    reader = FrameReader()

    with pytest.raises(PipeError):
        reader.feed(header(body=frames.MAX_BODY + 1))
    assert len(reader._buffer) <= HEADER.size


def test_the_buffer_holds_at_most_one_frame_and_what_was_just_fed() -> None:
    reader, most = FrameReader(), 0
    body = bytes(5000)
    for _ in range(200):
        reader.feed(encode(FrameType.INFER, 1, {}, body))
        reader.feed(encode(FrameType.INFER, 1, {}, body)[:100])
        reader.feed(encode(FrameType.INFER, 1, {}, body)[100:])
        most = max(most, len(reader._buffer))

    assert most == 0


# --- the edge's end ---------------------------------------------------------------------------------------------------


class Engine:
    """The other end of an ``EngineLink``: a plain socket that says what the test wants."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(5)
        self._reader = FrameReader()
        self._found: list[Frame] = []

    async def next(self) -> Frame:
        while not self._found:
            data = await asyncio.to_thread(self.sock.recv, 1 << 20)
            assert data, "the edge closed the connection"
            self._found += self._reader.feed(data)
        return self._found.pop(0)

    def say(self, kind: FrameType, request: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self.sock.sendall(encode(kind, request, meta or {}, body))

    async def gone(self) -> bool:
        """Whether the edge hung up."""
        try:
            return await asyncio.to_thread(self.sock.recv, 1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def sockets() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    made: list[socket.socket] = []

    def pair() -> tuple[socket.socket, socket.socket]:
        both = socket.socketpair()
        made.extend(both)
        return both

    yield pair
    for sock in made:
        sock.close()


Pair = Callable[[], tuple[socket.socket, socket.socket]]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def connected(pair: Pair) -> tuple[EngineLink, Engine]:
    link = EngineLink()
    ours, theirs = pair()
    await link.attach(theirs)
    return link, Engine(ours)


def test_without_an_engine_every_question_is_refused_at_once() -> None:
    async def check() -> None:
        link = EngineLink()
        assert link.catalog is None
        with pytest.raises(EngineAway):
            await link.infer({}, b"")
        with pytest.raises(EngineAway):
            await link.metrics()
        link.event({"event": "refused"})
        link.close()

    run(check())


def test_a_question_and_its_answer(sockets: Pair) -> None:
    async def check() -> None:
        told = asyncio.Event()
        link = EngineLink(told.set)
        ours, theirs = sockets()
        await link.attach(theirs)
        engine = Engine(ours)
        engine.say(FrameType.CATALOG, meta={"models": {}})
        await told.wait()
        assert link.catalog == {"models": {}}

        asked = asyncio.ensure_future(link.infer({"model": "m"}, b"\x00\x01"))
        frame = await engine.next()
        assert frame[0] is FrameType.INFER
        assert frame[2:] == ({"model": "m"}, b"\x00\x01")
        engine.say(FrameType.ANSWER, frame.request, {"licence": "valid"}, b"\x02")
        assert (await asked)[2:] == ({"licence": "valid"}, b"\x02")

        metrics = asyncio.ensure_future(link.metrics())
        frame = await engine.next()
        assert frame.type is FrameType.METRICS
        engine.say(FrameType.ANSWER, frame.request, {}, b"text")
        assert await metrics == b"text"

        link.event({"event": "refused"})
        assert (await engine.next())[:3] == (FrameType.EVENT, 0, {"event": "refused"})
        link.close()

    run(check())


def test_answers_find_their_questions_in_any_order(sockets: Pair) -> None:
    async def check() -> None:
        link, engine = await connected(sockets)
        asked = [asyncio.ensure_future(link.infer({"number": number}, b"")) for number in range(20)]
        questions = [await engine.next() for _ in asked]
        for frame in random.Random(1).sample(questions, len(questions)):
            engine.say(FrameType.ANSWER, frame.request, frame.meta)
        answers = await asyncio.gather(*asked)

        assert [answer.meta["number"] for answer in answers] == list(range(20))
        link.close()

    run(check())


def test_an_error_comes_back_as_itself(sockets: Pair) -> None:
    async def check(meta: dict[str, Any], kind: type[PericardError], hint: str | None) -> None:
        link, engine = await connected(sockets)
        asked = asyncio.ensure_future(link.infer({}, b""))
        engine.say(FrameType.ERROR, (await engine.next()).request, meta)
        with pytest.raises(PericardError) as error:
            await asked
        assert type(error.value) is kind
        assert error.value.hint == hint
        link.close()

    run(check({"code": "invalid-input", "message": "no", "hint": "do"}, InvalidInput, "do"))
    run(check({"code": "invented", "message": "no", "hint": 5}, PericardError, None))
    run(check({}, PericardError, None))


def test_an_error_survives_both_ends(sockets: Pair) -> None:
    (frame,) = FrameReader().feed(error_frame(5, DeadlineExceeded("late", hint="wait")))

    assert frame == (FrameType.ERROR, 5, {"code": "deadline-exceeded", "message": "late", "hint": "wait"}, b"")


def test_who_waits_learns_that_the_engine_went_away_and_it_may_come_back(sockets: Pair) -> None:
    async def check() -> None:
        link, engine = await connected(sockets)
        engine.say(FrameType.CATALOG, meta={"models": {"m": 1}})
        asked = [asyncio.ensure_future(link.infer({}, b"")) for _ in range(5)]
        await engine.next()
        engine.sock.close()
        for waiting in asked:
            with pytest.raises(EngineAway):
                await waiting
        assert link.catalog is None
        with pytest.raises(EngineAway):
            await link.infer({}, b"")

        ours, theirs = sockets()
        await link.attach(theirs)
        back = Engine(ours)
        again = asyncio.ensure_future(link.infer({}, b""))
        back.say(FrameType.ANSWER, (await back.next()).request)
        await again
        link.close()

    run(check())


def test_an_engine_that_is_gone_before_anybody_asks_is_away(sockets: Pair) -> None:
    async def check() -> None:
        link = EngineLink()
        ours, theirs = sockets()
        ours.sendall(encode(FrameType.CATALOG, 0, {"models": {"m": 1}}))
        ours.close()
        await link.attach(theirs)
        await asyncio.sleep(0.05)

        assert link.catalog is None
        with pytest.raises(EngineAway):
            async with asyncio.timeout(1):
                await link.infer({}, b"")

    run(check())


def test_attached_twice_at_once_one_connection_is_left(sockets: Pair) -> None:
    async def check() -> None:
        link = EngineLink()
        pairs = [sockets() for _ in range(4)]
        await asyncio.gather(*(link.attach(theirs) for _, theirs in pairs))
        asked = asyncio.ensure_future(link.infer({}, b""))
        await asyncio.sleep(0.05)
        for ours, _ in pairs:
            ours.settimeout(1)
        received = [await asyncio.to_thread(ours.recv, 100) for ours, _ in pairs]

        assert sum(bool(data) for data in received) == 1  # the others were closed
        asked.cancel()
        link.close()
        await asyncio.gather(asked, return_exceptions=True)

    run(check())


def test_a_new_engine_ends_the_wait_for_the_old_one(sockets: Pair) -> None:
    async def check() -> None:
        link, _ = await connected(sockets)
        asked = asyncio.ensure_future(link.infer({}, b""))
        await asyncio.sleep(0)
        await link.attach(sockets()[1])

        with pytest.raises(EngineAway):
            await asked
        link.close()

    run(check())


def test_who_stops_waiting_tells_the_engine(sockets: Pair) -> None:
    async def check() -> None:
        link, engine = await connected(sockets)
        asked = asyncio.ensure_future(link.infer({}, b""))
        question = await engine.next()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

        cancel = await engine.next()
        assert (cancel.type, cancel.request) == (FrameType.CANCEL, question.request)
        assert link._waiting == {}

        # its late answer, one twice, and one that was never asked for change nothing
        engine.say(FrameType.ANSWER, question.request)
        engine.say(FrameType.ANSWER, question.request)
        engine.say(FrameType.ERROR, 9999, {"code": "invalid-input", "message": "no"})
        again = asyncio.ensure_future(link.infer({}, b""))
        engine.say(FrameType.ANSWER, (await engine.next()).request)
        assert (await again).type is FrameType.ANSWER
        link.close()

    run(check())


def test_who_stops_waiting_for_an_engine_that_is_gone_hears_only_that(sockets: Pair) -> None:
    async def check() -> None:
        link, _ = await connected(sockets)
        asked = asyncio.ensure_future(link.infer({}, b""))
        await asyncio.sleep(0)
        link.close()
        asked.cancel()
        with pytest.raises((asyncio.CancelledError, EngineAway)):
            await asked

    run(check())


def test_an_engine_that_does_not_read_is_overloaded_and_events_are_dropped(
    sockets: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_end, "_MAX_UNSENT", 1 << 20)

    async def check() -> None:
        link, _engine = await connected(sockets)
        asked = [asyncio.ensure_future(link.infer({}, bytes(1 << 18))) for _ in range(100)]
        with pytest.raises(Overloaded):
            await asked[-1]
        assert link._transport is not None
        held = link._transport.get_write_buffer_size()
        for _ in range(1000):
            link.event({"event": "refused", "address": "192.0.2.1"})
        assert link._transport.get_write_buffer_size() == held <= 2 << 20

        link.close()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(result) for result in results} == {EngineAway, Overloaded}

    run(check())


WRONG = {
    "garbage": b"\x00" * 64,
    "a question": encode(FrameType.INFER, 1, {}),
    "an event": encode(FrameType.EVENT, 1, {}),
    "a bad meta": header(kind=3) + b"[]",
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_an_engine_that_breaks_the_rules_is_cut_off(sockets: Pair, data: bytes) -> None:
    async def check() -> None:
        link, engine = await connected(sockets)
        asked = asyncio.ensure_future(link.infer({}, b""))
        assert (await engine.next()).request == 1
        engine.sock.sendall(data)

        with pytest.raises(EngineAway):
            await asked
        assert await engine.gone()

    run(check())


# --- the engine's end -------------------------------------------------------------------------------------------------


class Edge:
    """The other end of an ``EdgeLink``."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.sock = ours
        self.sock.settimeout(5)
        self.received: list[Frame] = []
        self.link = EdgeLink(theirs, self._handle)
        self.link.start()

    def _handle(self, link: EdgeLink, frame: Frame) -> None:
        assert link is self.link
        self.received.append(frame)

    def wait(self, count: int) -> list[Frame]:
        end = time.monotonic() + 5
        while len(self.received) < count and time.monotonic() < end:
            time.sleep(0.002)
        return self.received

    def gone(self) -> bool:
        """Whether the engine hung up; reads what is left."""
        try:
            while self.sock.recv(1 << 20):
                pass
        except ConnectionResetError:
            return True
        return True

    def close(self) -> None:
        self.link.close()
        self.sock.close()


@pytest.fixture
def edge() -> Iterator[Edge]:
    made = Edge()
    yield made
    made.close()


def test_frames_reach_the_handler_and_frames_go_back(edge: Edge) -> None:
    edge.sock.sendall(encode(FrameType.INFER, 1, {"model": "m"}, b"x") + encode(FrameType.CANCEL, 1, {}))
    assert [frame.type for frame in edge.wait(2)] == [FrameType.INFER, FrameType.CANCEL]

    edge.link.catalog({"models": {}})
    edge.link.send([encode(FrameType.ANSWER, number, {}, b"y") for number in range(3)])
    reader, found = FrameReader(), []
    while len(found) < 4:
        found += reader.feed(edge.sock.recv(1 << 16))

    assert found[0] == (FrameType.CATALOG, 0, {"models": {}}, b"")
    assert [frame.request for frame in found[1:]] == [0, 1, 2]


@pytest.mark.parametrize("data", [*HOSTILE.values()], ids=HOSTILE.keys())
def test_an_edge_that_breaks_the_rules_is_cut_off(edge: Edge, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # cut off before it had said everything
            edge.sock.sendall(data)
        assert edge.gone()

    assert not edge.received
    assert "edge cut off" in caplog.text
    _ended(edge.link)


def _ended(link: EdgeLink) -> None:
    end = time.monotonic() + 5
    while link.open and time.monotonic() < end:
        time.sleep(0.002)
    assert not link.open


def test_an_edge_that_hangs_up_ends_the_thread_quietly(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    assert edge.link.open
    edge.sock.close()

    _ended(edge.link)
    edge.link.send([b"late"])
    edge.link.send([b"later"])
    assert caplog.text == ""


def test_many_threads_send_whole_frames(edge: Edge) -> None:
    def send(number: int) -> None:
        for _ in range(50):
            edge.link.send([encode(FrameType.ANSWER, number, {}, bytes([number]) * 3000)])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    reader, found = FrameReader(), []
    while len(found) < 200:
        found += reader.feed(edge.sock.recv(1 << 16))
    for thread in threads:
        thread.join(5)

    assert all(frame.body == bytes([frame.request]) * 3000 for frame in found)


def test_a_stuck_edge_is_cut_off_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_end, "_SEND_SECONDS", 1)
    edge = Edge()
    started = time.monotonic()

    edge.link.send([bytes(64 << 20)])

    assert time.monotonic() - started < 4
    assert edge.gone()
    edge.close()


def test_an_edge_that_reads_a_little_at_a_time_is_cut_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_end, "_SEND_SECONDS", 1)
    edge = Edge()
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.2):
            try:
                if not edge.sock.recv(4096):
                    return
            except OSError:
                return

    reading = threading.Thread(target=trickle)
    reading.start()
    started = time.monotonic()
    edge.link.send([bytes(64 << 20)])
    seconds = time.monotonic() - started
    stop.set()
    reading.join(5)

    assert seconds < 4
    assert edge.gone()
    edge.close()


def test_closing_twice_and_before_starting_is_harmless() -> None:
    ours, theirs = socket.socketpair()
    link = EdgeLink(theirs, lambda *_: None)
    link.close()
    link.close()
    ours.close()


def test_the_handler_may_close_its_own_link() -> None:
    ours, theirs = socket.socketpair()
    done = threading.Event()

    def handle(link: EdgeLink, _: Frame) -> None:
        link.close()
        done.set()

    link = EdgeLink(theirs, handle)
    link.start()
    ours.sendall(encode(FrameType.EVENT, 0, {}))

    assert done.wait(5)
    _ended(link)
    ours.close()
