"""The edge's end: answers find their questions, and an engine that is gone, late or hostile never hangs or leaks."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import serving
from played_engine import SHARED, Engine, ask, held, run, until

from pericard.errors import DeadlineExceeded, EngineAway, InvalidInput, Overloaded, PericardError, PipeError
from pericard.pipe import Answer, EngineLink, Entry, FrameReader, FrameType, Kind, create, edge_end, encode, frames
from pericard.pipe.region import MIN_SIZE, Window

Join = Callable[[EngineLink], Coroutine[Any, Any, Engine]]


@pytest.fixture
def join() -> Iterator[Join]:
    made: list[socket.socket] = []

    async def new(link: EngineLink) -> Engine:
        ours, theirs = socket.socketpair()
        made.extend((ours, theirs))
        region = create(MIN_SIZE)
        await link.attach(theirs, os.dup(region))
        return Engine(ours, Window(region))

    yield new
    for sock in made:
        sock.close()


def test_without_an_engine_every_question_is_refused_at_once() -> None:
    async def check() -> None:
        link = EngineLink()
        assert link.catalog is None
        with pytest.raises(EngineAway):
            link.reserve(5)
        with pytest.raises(EngineAway):
            await link.ask("metrics", seconds=5)
        link.event({"event": "refused"})
        link.close()

    run(check())


def test_a_row_a_question_and_its_answer(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        asked = ask(link, b"\x00\x01\x02")
        frame = await engine.next()
        assert frame.type is FrameType.INFER
        assert engine.row(frame) == b"\x00\x01\x02"
        engine.answer(frame.request, data=b"score")
        found = await asked.future
        assert found == Answer(
            {"model": {"name": "m"}, "licence": "valid"},
            Entry(frame.request, frame.request, b"l" * 32, b"k" * 32, Kind.OK, b"score"),
        )
        assert found.flaw is None

        asked = ask(link)
        engine.answer((await engine.next()).request, data=b"flat signal", kind=Kind.NOT_INTERPRETABLE)
        assert (await asked.future).flaw == "flat signal"
        assert held(link) == 0
        link.close()

    run(check())


def test_whatever_else_is_asked_is_replied(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        asking = asyncio.ensure_future(link.ask("load", {"model": "m"}, seconds=5))
        frame = await engine.next()
        assert (frame.type, frame.meta) == (FrameType.ASK, {"ask": "load", "model": "m"})
        engine.say(FrameType.REPLY, frame.request, {"done": 1}, b"text")
        assert await asking == ({"done": 1}, b"text")

        link.event({"event": "refused"})
        assert (await engine.next())[:2] == (FrameType.EVENT, 0)
        link.close()

    run(check())


def test_a_catalog_is_rested_on_and_that_is_said(join: Join) -> None:
    async def check() -> None:
        told = asyncio.Event()
        link = EngineLink(told.set)
        engine = await join(link)
        engine.say(FrameType.CATALOG, meta={"generation": 7, "models": {}})
        await told.wait()
        ask(link)
        assert link.catalog == {"generation": 7, "models": {}}
        # the word stands before every question that rests on it
        heard, question = await engine.next(), await engine.next()
        assert (heard.type, heard.meta) == (FrameType.HEARD, {"generation": 7})
        assert question.type is FrameType.INFER
        link.close()

    run(check())


def test_answers_find_their_questions_in_any_order_and_number(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        asked = [ask(link, bytes([number])) for number in range(20)]
        questions = [await engine.next() for _ in asked]
        assert [engine.row(frame) for frame in questions] == [bytes([number]) for number in range(20)]
        mixed = random.Random(1).sample(questions, len(questions))
        engine.answer(*(frame.request for frame in mixed[:15]))
        engine.answer(*(frame.request for frame in mixed[15:]), head=b'{"licence":"grace"}')
        answers = await asyncio.gather(*(one.future for one in asked))

        assert [answer.entry.request for answer in answers] == [one.number for one in asked]
        graces = {frame.request for frame in mixed[15:]}
        assert {a.entry.request for a in answers if a.shared == {"licence": "grace"}} == graces
        assert held(link) == 0
        link.close()

    run(check())


def test_what_is_asked_in_one_turn_of_the_loop_wakes_the_engine_once(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is woken by the first of many computes it alone, while the others wait."""

    async def check() -> None:
        link = EngineLink()
        await join(link)
        written: list[bytes] = []
        monkeypatch.setattr(link._transport, "write", written.append)
        for _ in range(2):
            for _ in range(32):
                ask(link)
            link.event({"event": "refused"})
            await asyncio.sleep(0)
        reader = FrameReader()
        kinds = [FrameType.INFER] * 32 + [FrameType.EVENT]
        assert [[frame.type for frame in reader.feed(data)] for data in written] == [kinds, kinds]
        link.close()

    run(check())


def test_a_head_is_read_once_and_never_for_another(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        seen = []
        for head in (SHARED, SHARED, b'{"licence":"grace"}', SHARED):
            asked = ask(link)
            engine.answer((await engine.next()).request, head=head)
            seen.append((await asked.future).shared)

        assert seen[0] is seen[1]
        assert [one["licence"] for one in seen] == ["valid", "valid", "grace", "valid"]
        link.close()

    run(check())


@pytest.mark.parametrize(
    ("meta", "kind", "hint"),
    [
        ({"code": "invalid-input", "message": "no", "hint": "do"}, InvalidInput, "do"),
        ({"code": "invented", "message": "no", "hint": 5}, PericardError, None),
        ({}, PericardError, None),
    ],
)
def test_an_error_comes_back_as_itself(
    join: Join, meta: dict[str, Any], kind: type[PericardError], hint: str | None
) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        asked = ask(link)
        engine.say(FrameType.ERROR, (await engine.next()).request, meta)
        with pytest.raises(PericardError) as error:
            await asked.future
        assert (type(error.value), error.value.hint, held(link)) == (kind, hint, 0)
        link.close()

    run(check())


# --- engines come and go ----------------------------------------------------------------------------------------------


def test_who_waits_learns_that_the_engine_went_away_and_it_may_come_back(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        engine.say(FrameType.CATALOG, meta={"models": {}})
        asked = [ask(link) for _ in range(5)]
        asking = asyncio.ensure_future(link.ask("metrics", seconds=5))
        await until(lambda: link.catalog is not None)
        engine.sock.close()
        for waiting in (*(one.future for one in asked), asking):
            with pytest.raises(EngineAway):
                await waiting
        assert link.catalog is None
        assert link._asked == {}

        back = await join(link)
        again = ask(link, b"again")
        frame = await back.next()
        assert back.row(frame) == b"again"
        back.answer(frame.request)
        await again.future
        link.close()

    run(check())


def test_a_place_in_a_region_that_is_gone_is_none_in_the_next(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        await join(link)
        old, given_back = link.reserve(100), link.reserve(100)
        engine = await join(link)
        mine = link.reserve(100)
        assert mine.offset == old.offset
        with pytest.raises(EngineAway):
            link.infer(old, serving.question(old), 5, print)  # it would have named somebody else's row
        link.release(given_back)

        assert held(link) == 128
        link.infer(mine, serving.question(mine), 5, print)
        assert frames.unpack_question(await engine.next()).size == 100
        link.close()

    run(check())


def test_an_engine_that_is_gone_before_anybody_asks_is_away(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        engine.say(FrameType.CATALOG, meta={"models": {}})
        engine.sock.close()
        await asyncio.sleep(0.05)

        assert link.catalog is None
        with pytest.raises(EngineAway):
            link.reserve(1)

    run(check())


def test_attached_several_times_at_once_one_connection_is_left(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engines = await asyncio.gather(*(join(link) for _ in range(4)))
        asked = ask(link)
        await asyncio.sleep(0.05)
        received = [await asyncio.to_thread(engine.sock.recv, 200) for engine in engines]

        assert sum(bool(data) for data in received) == 1  # the others were closed
        link.close()
        with pytest.raises(EngineAway):
            await asked.future

    run(check())


def test_memory_that_is_not_sealed_is_never_attached() -> None:
    async def check() -> None:
        link = EngineLink()
        ours, theirs = socket.socketpair()
        loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
        os.ftruncate(loose, MIN_SIZE)
        with ours, theirs, pytest.raises(PipeError):
            await link.attach(theirs, loose)
        with pytest.raises(EngineAway):
            link.reserve(1)

    run(check())


# --- nobody waits any more --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["answer", "error"])
def test_a_place_is_used_again_only_once_the_engine_answered(join: Join, reply: str) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        asked = ask(link)
        question = await engine.next()
        link.abandon(asked.number)
        assert (await engine.next())[:2] == (FrameType.CANCEL, question.request)
        assert held(link) == 64  # the engine may still read there
        assert link.reserve(1).offset != frames.unpack_question(question).offset

        if reply == "answer":
            engine.answer(question.request, question.request)  # twice: it changes nothing
        else:
            engine.say(FrameType.ERROR, question.request, {"code": "cancelled", "message": "no"})
        await until(lambda: held(link) == 64)
        link.abandon(asked.number)
        assert link._asked == {}
        assert not asked.future.done()  # who said that nobody waits is told nothing
        link.close()

    run(check())


def test_the_deadline_ends_the_wait_and_tells_the_engine(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        asked = ask(link, seconds=0.05)
        question = await engine.next()
        with pytest.raises(TimeoutError):
            await asked.future
        assert (await engine.next())[:2] == (FrameType.CANCEL, question.request)
        assert held(link) == 64
        engine.answer(question.request)  # late
        await until(lambda: held(link) == 0)

        asking = asyncio.ensure_future(link.ask("metrics", seconds=0.05))
        number = (await engine.next()).request
        with pytest.raises(DeadlineExceeded):
            await asking
        engine.say(FrameType.REPLY, number)
        engine.say(FrameType.ERROR, 9999, {"code": "invalid-input", "message": "of nothing that was asked"})
        again = ask(link)
        engine.answer((await engine.next()).request)
        await again.future
        assert link._asked == {}
        link.close()

    run(check())


def test_a_question_that_fits_no_frame_costs_no_place(join: Join) -> None:
    async def check() -> None:
        link = EngineLink()
        await join(link)
        slot = link.reserve(100)
        with pytest.raises(PipeError):
            link.infer(slot, serving.question(slot, request_id=bytes(256)), 5, print)

        assert (held(link), link._asked) == (0, {})
        link.close()

    run(check())


# --- a bad engine -----------------------------------------------------------------------------------------------------


def test_an_engine_that_does_not_read_is_overloaded_and_events_are_dropped(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_end, "_MAX_UNSENT", 1 << 20)

    async def check() -> None:
        link = EngineLink()
        await join(link)
        assert link._transport is not None
        for _ in range(100_000):
            link.event({"event": "refused", "address": "192.0.2.1"})
        assert 1 << 20 <= link._unsent() <= (1 << 20) + 100
        await asyncio.sleep(0.01)
        for _ in range(100_000):
            link.event({"event": "refused", "address": "192.0.2.1"})
        assert 1 << 20 <= link._unsent() <= (1 << 20) + 100
        asking = [asyncio.ensure_future(link.ask("index", {"x": "y" * 1000}, seconds=9)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await asking[1]
        for _ in range(16):
            link.reserve(MIN_SIZE // 16)
        with pytest.raises(Overloaded):  # rows are bounded by the region, whatever the engine does
            link.reserve(1)

        link.close()
        await asyncio.gather(*asking, return_exceptions=True)

    run(check())


WRONG = {
    "garbage": b"\x00" * 64,
    "a question": encode(FrameType.INFER, 1, {}),
    "an event": encode(FrameType.EVENT, 1, {}),
    "a reply that is no object": frames.pack(FrameType.REPLY, 1, b"5"),
    "a catalog that is a list": frames.pack(FrameType.CATALOG, 0, b"[]"),
    "a bad head of answers": frames.pack(FrameType.ANSWERS, 0, b"[]"),
    "entries that end early": frames.pack(FrameType.ANSWERS, 0, b"{}", bytes(10)),
    "an error that is no object": frames.pack(FrameType.ERROR, 1, b"5"),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_an_engine_that_breaks_the_rules_is_cut_off(join: Join, data: bytes) -> None:
    async def check() -> None:
        link = EngineLink()
        engine = await join(link)
        others = [ask(link) for _ in range(2)]
        await engine.next()
        engine.sock.sendall(data)
        for asked in others:
            with pytest.raises(EngineAway):
                async with asyncio.timeout(5):
                    await asked.future
        assert await engine.gone()

    run(check())
