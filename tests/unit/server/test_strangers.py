"""What strangers cost: their refusals summed, and refused credentials that wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from answering import Desk
from played_engine import until

from pericard.edge import delays, strangers
from pericard.edge.delays import Delays, network_of
from pericard.edge.http import Head, Response
from pericard.edge.refusals_log import RefusalsLog
from pericard.edge.strangers import Strangers
from pericard.errors import RateLimited
from pericard.pipe import FrameType

Check = Callable[[Desk], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Check], None]:
    def start(check: Check) -> None:
        async def whole() -> None:
            desk = Desk(tmp_path)
            await desk.attach()
            await check(desk)
            desk.link.close()
            await asyncio.sleep(0)
            desk.engine.sock.close()

        asyncio.run(asyncio.wait_for(whole(), 20))

    return start


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are told ten times a second."""
    monkeypatch.setattr(strangers, "_SECONDS", 0.1)


async def told(desk: Desk, total: int) -> tuple[int, Counter[tuple[str, str]]]:
    """Read events until so many refusals are told of: how many frames that took, and the sums."""
    sums: Counter[tuple[str, str]] = Counter()
    frames = 0
    while sums.total() < total:
        frame = await desk.engine.next()
        assert frame.type is FrameType.EVENT
        frames += 1
        sums[frame.meta["address"], frame.meta["code"]] += frame.meta["count"]
    return frames, sums


async def ask(desk: Desk, address: str = "192.0.2.7", token: str | None = None) -> Response:
    headers = {} if token is None else {"authorization": token}
    return await desk.answerer.answer(Head("GET", "/v2", headers, address), asyncio.Future)


# --- sums -------------------------------------------------------------------------------------------------------------


def test_one_refusal_is_told_at_once_and_a_flood_by_the_second(run: Callable[[Check], None], brisk: None) -> None:
    async def check(desk: Desk) -> None:
        found = desk.answerer.upstream.strangers
        found.refused("unauthenticated", "192.0.2.1")
        assert await asyncio.wait_for(told(desk, 1), 0.09)

        for place in range(20_000):
            found.refused("unauthenticated", f"192.0.2.{place % 4}")
            found.refused("unknown-route", "192.0.2.1")
        frames, sums = await told(desk, 40_000)

        assert frames == 5
        assert sums == {
            ("192.0.2.1", "unknown-route"): 20_000,
            **{(f"192.0.2.{place}", "unauthenticated"): 5_000 for place in range(4)},
        }

    run(check)


def test_a_flood_of_addresses_is_counted_whole_in_bounded_memory(
    run: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "_MOST_SUMS", 10)

    async def check(desk: Desk) -> None:
        for place in range(1000):
            desk.answerer.upstream.strangers.refused("unauthenticated", f"address {place}")

        frames, sums = await told(desk, 1000)

        assert (frames, sums["", "unauthenticated"]) == (11, 990)

    run(check)


def test_what_is_refused_while_the_engine_is_away_is_told_when_it_is_back(tmp_path: Path, brisk: None) -> None:
    async def check() -> None:
        desk = Desk(tmp_path)
        for _ in range(3):
            assert (await ask(desk)).status == 401
        await asyncio.sleep(0.15)  # the clock went round once, and nobody heard
        await desk.attach()

        assert (await told(desk, 3))[1] == {("192.0.2.7", "unauthenticated"): 3}
        desk.link.close()
        await asyncio.sleep(0)
        desk.engine.sock.close()

    asyncio.run(asyncio.wait_for(check(), 20))


def test_an_edge_that_stops_tells_what_is_left(run: Callable[[Check], None]) -> None:
    async def check(desk: Desk) -> None:
        found = desk.answerer.upstream.strangers
        found.refused("unauthenticated", "192.0.2.1")
        await told(desk, 1)
        for _ in range(50):
            found.refused("unauthenticated", "192.0.2.1")

        await found.finish()
        await desk.link.finish()

        assert (await told(desk, 50))[0] == 1
        assert await desk.engine.gone()

    run(check)


def test_a_link_whose_engine_does_not_read_is_closed_all_the_same(
    run: Callable[[Check], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pericard.pipe.edge_end._FINISH_SECONDS", 0.05)

    async def check(desk: Desk) -> None:
        for place in range(20_000):
            desk.link.event({"event": "refused", "code": "unauthenticated", "address": str(place) * 20})
        await desk.link.finish()

        assert desk.link.catalog is None
        await desk.link.finish()  # again, nothing happens

    run(check)


class Held(RefusalsLog):
    """A log on a disk that hangs until it is let go."""

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self.writes = 0
        self.hangs = True
        self.fails = False

    def write(self, counts: Counter[str]) -> None:
        while self.hangs:
            time.sleep(0.005)
        if self.fails:
            raise RuntimeError
        self.writes += 1
        self.written += counts


def test_a_text_log_that_hangs_holds_nobody_up_and_misses_nothing(run: Callable[[Check], None], brisk: None) -> None:
    async def check(desk: Desk) -> None:
        log = Held()
        found = Strangers(desk.link, log)
        for _ in range(4):
            for _ in range(10):
                found.refused("unauthenticated", "192.0.2.1")
                found.refused("unknown-route", "192.0.2.1")  # no credential was refused
            await asyncio.sleep(0.08)
        assert log.writes == 0
        await told(desk, 1)  # the engine hears of it meanwhile

        log.hangs = False
        await until(lambda: log.written.total() == 40)
        assert (log.written, log.writes) == ({"192.0.2.1": 40}, 2)

        found.refused("unauthenticated", "192.0.2.2")
        await found.finish()
        assert log.written["192.0.2.2"] == 1

    run(check)


def test_a_text_log_that_fails_is_said(
    run: Callable[[Check], None], brisk: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(desk: Desk) -> None:
        log = Held()
        log.hangs, log.fails = False, True
        found = Strangers(desk.link, log)
        found.refused("unauthenticated", "192.0.2.1")
        await until(lambda: bool(caplog.records))

        assert caplog.messages == ["refusals log: failed: RuntimeError"]
        log.fails = False
        found.refused("unauthenticated", "192.0.2.1")
        await until(lambda: log.written.total() == 1)

    with caplog.at_level(logging.ERROR, "pericard.edge"):
        run(check)


# --- delays -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays of hundredths of a second."""
    monkeypatch.setattr(delays, "_FIRST", 0.02)
    monkeypatch.setattr(delays, "_LONGEST", 0.16)


def test_refused_credentials_wait_longer_and_longer() -> None:
    async def check() -> None:
        found = Delays(3, 100)

        assert [found.failed("192.0.2.1") for _ in range(9)] == [0, 0, 0, 0.25, 0.5, 1, 2, 2, 2]
        assert found.failed("192.0.2.2") == 0  # a neighbour
        assert Delays(None, 100).failed("192.0.2.1") == 0

    asyncio.run(check())


def test_what_waits_is_bounded_for_one_network_and_for_all(short: None) -> None:
    async def check() -> None:
        found = Delays(1, 6)
        for place in range(8):
            found.failed(f"192.0.2.{place}")

        for _ in range(3):
            assert found.failed("192.0.2.0") > 0
        with pytest.raises(RateLimited):
            found.failed("192.0.2.0")
        for place in range(1, 4):
            assert found.failed(f"192.0.2.{place}") > 0
        with pytest.raises(RateLimited):
            found.failed("192.0.2.5")

        await asyncio.sleep(0.25)
        assert found.failed("192.0.2.5") > 0  # the time of the others is over
        assert (found._all, found._waiting) == (1, {"192.0.2.5": 1})

    asyncio.run(check())


def test_a_minute_later_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delays, "_WINDOW_SECONDS", 0.05)

    async def check() -> None:
        found = Delays(1, 6)
        assert [found.failed("192.0.2.1"), found.failed("192.0.2.1")] == [0, 0.25]
        await asyncio.sleep(0.06)
        assert found.failed("192.0.2.1") == 0

    asyncio.run(check())


def test_what_is_remembered_of_networks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delays, "_MOST_NETWORKS", 20)

    async def check() -> None:
        found = Delays(1, 6)
        for place in range(1000):
            assert found.failed(f"10.0.{place // 250}.{place % 250}") == 0

        assert len(found._seen) == 20

    asyncio.run(check())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8:0:0:ffff::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("", "not an address", True),
    ],
)
def test_whom_an_address_belongs_to(one: str, other: str, *, same: bool) -> None:
    assert (network_of(one) == network_of(other)) == same


def test_the_answer_function_delays_refusals_and_no_valid_credential(run: Callable[[Check], None], short: None) -> None:
    async def check(desk: Desk) -> None:
        desk.answerer.upstream.delays = Delays(2, 4)
        good = desk.headers["authorization"]
        for _ in range(2):
            begun = time.monotonic()
            assert (await ask(desk, token="Bearer wrong")).status == 401
            assert time.monotonic() - begun < 0.02

        waiting = [asyncio.create_task(ask(desk)) for _ in range(2)]
        await asyncio.sleep(0)
        begun = time.monotonic()
        refused = await ask(desk)
        known = await ask(desk, token=good)
        assert time.monotonic() - begun < 0.02  # neither waits for the two that do
        assert not any(task.done() for task in waiting)
        assert (refused.status, refused.headers["connection"], refused.headers["retry-after"]) == (429, "close", "1")
        assert known.status == 200
        assert [(await task).status for task in waiting] == [401, 401]
        assert time.monotonic() - begun >= 0.02
        assert (await told(desk, 5))[1] == {("192.0.2.7", "unauthenticated"): 5}  # however they were answered

    run(check)
