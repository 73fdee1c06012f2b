"""The direct way: known heads, bodies in pieces, callers that leave, and what goes uvicorn's way."""

from __future__ import annotations

import asyncio
import gc
import json
import struct
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from answering import Desk
from played_engine import until
from uvicorn.server import ServerState

from pericard.edge import delays
from pericard.edge.asgi import RawEntrance
from pericard.edge.delays import Delays
from pericard.edge.direct import DirectProtocol, protocol
from pericard.edge.http import Head
from pericard.edge.inference import Pending
from pericard.edge.limits import Limits
from pericard.pipe import FrameType

ONE = b'{"model": "m", "inputs": [1, 2]}'
TWO = b'{"model": "m", "inputs": [3, 4]}'
HALF = b"\x00\x00\x00\x3f"
_MOST_FRAMES = 64


class Pipe(asyncio.Transport):
    """A peer's end that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.9", 1), "sockname": ("192.0.2.1", 443)})
        self.written = b""
        self.closed = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def statuses(self) -> list[int]:
        """Of the responses that were written."""
        return [int(part[:3]) for part in self.written.split(b"HTTP/1.1 ")[1:]]


class Line:
    """A protocol class over a played engine; each connection is a protocol and a pipe."""

    def __init__(self, folder: Path, *, keep_alive: float = 60, **limits: Any) -> None:
        self.desk = Desk(folder)
        self.desk.answerer.limits = Limits(**limits)
        self.made = protocol(self.desk.answerer, connections=8, direct=True)
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"today")]
        app = RawEntrance(self.desk.answerer)
        self.config = uvicorn.Config(app, http=self.made, lifespan="off", log_config=None, log_level="error")  # type: ignore[arg-type]
        self.config.timeout_keep_alive = keep_alive  # type: ignore[assignment]  # seconds of any kind
        self.config.load()

    def connect(self) -> tuple[DirectProtocol, Pipe]:
        made = self.made(config=self.config, server_state=self.state, app_state={})  # type: ignore[call-arg]
        assert isinstance(made, DirectProtocol)
        pipe = Pipe()
        made.connection_made(pipe)
        return made, pipe

    @property
    def heads(self) -> dict[bytes, Any]:
        heads: dict[bytes, Any] = self.made.heads  # type: ignore[attr-defined]
        return heads

    def head(self, size: int, *lines: str, path: str = "/predict", version: str = "1.1") -> bytes:
        """Of a request whose body has so many bytes."""
        given = [f"{name}: {value}" for name, value in self.desk.headers.items()]
        start = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {size}", *given, *lines]
        return "\r\n".join(start).encode() + b"\r\n\r\n"

    def post(self, body: bytes = ONE, *lines: str, **more: str) -> bytes:
        return self.head(len(body), *lines, **more) + body

    async def serve(self) -> bytes:
        """Answer the next question; the row that was asked about."""
        for _ in range(_MOST_FRAMES):
            frame = await self.desk.engine.next()
            if frame.type is FrameType.INFER:
                row = self.desk.engine.row(frame)
                self.desk.engine.answer(frame.request, head=self.desk.shared, data=HALF)
                return row
        raise AssertionError("nothing was asked")

    async def warm(self) -> tuple[DirectProtocol, Pipe]:
        """A connection whose usual head is known, and that has nothing to parse with any more."""
        made, pipe = self.connect()
        made.data_received(self.post())
        await self.serve()
        await until(lambda: pipe.statuses() == [200])
        assert len(self.heads) == 1
        made.parser = None  # type: ignore[assignment]
        pipe.written = b""
        return made, pipe


Check = Callable[[Line], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    def start(check: Check, **options: Any) -> None:
        async def whole() -> None:
            line = Line(tmp_path, **options)
            await line.desk.attach()
            await check(line)
            line.desk.link.close()
            await asyncio.sleep(0)
            line.desk.engine.sock.close()

        asyncio.run(asyncio.wait_for(whole(), 20))

    return start


def scores(pipe: Pipe) -> list[float]:
    bodies = [part.split(b"\r\n\r\n", 1)[1] for part in pipe.written.split(b"HTTP/1.1 ")[1:]]
    return [json.loads(body)["predictions"][0]["outputs"]["y"] for body in bodies]


def row(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


# --- known heads ------------------------------------------------------------------------------------------------------


def test_an_answer_leaves_nothing_for_the_garbage_collector(run: Callable[..., None]) -> None:
    """What refers to itself waits for a collection, in which nobody is answered: some 20 ms of each half second."""

    async def check(line: Line) -> None:
        made, pipe = await line.warm()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                made.data_received(line.post())
                await line.serve()
                await until(lambda: pipe.statuses() == [200])
                pipe.written = b""
            left = Counter(type(found) for found in gc.get_objects())
        finally:
            gc.enable()
        assert left[Pending] == 0
        assert left[Head] <= 1  # a connection knows its last request

    run(check)


def test_a_known_head_is_not_parsed_again_and_brings_another_body(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = await line.warm()
        made.data_received(line.post(TWO))
        assert await line.serve() == row(3, 4)
        await until(lambda: pipe.statuses() == [200])
        assert scores(pipe) == [0.5]
        assert b"date: today\r\n" in pipe.written

    run(check)


def test_it_is_known_on_every_connection(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        await line.warm()
        made, pipe = line.connect()
        made.parser = None  # type: ignore[assignment]
        made.data_received(line.post(TWO))
        await line.serve()
        await until(lambda: pipe.statuses() == [200])

    run(check)


@pytest.mark.parametrize("sizes", [(0, 1), (0, 31), (5, 9), (0, 0)])
def test_the_body_of_a_known_head_may_come_in_pieces(run: Callable[..., None], sizes: tuple[int, int]) -> None:
    async def check(line: Line) -> None:
        made, pipe = await line.warm()
        first, second = sizes
        made.data_received(line.head(len(TWO)) + TWO[:first])
        made.data_received(TWO[first:second])
        made.data_received(TWO[max(first, second) :])
        assert await line.serve() == row(3, 4)
        await until(lambda: pipe.statuses() == [200])

    run(check)


def test_what_follows_a_known_request_is_the_next_one(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = line.connect()
        made.data_received(line.post())
        await line.serve()
        await until(lambda: pipe.statuses() == [200])

        made.data_received(line.post(TWO) + line.post() + line.post(TWO)[:40])
        assert [await line.serve() for _ in range(2)] == [row(3, 4), row(1, 2)]
        made.data_received(line.post(TWO)[40:])
        assert await line.serve() == row(3, 4)
        await until(lambda: pipe.statuses() == [200] * 4)

    run(check)


def test_a_token_is_looked_at_every_time(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = line.connect()
        made.data_received(line.post())
        await line.serve()
        await until(lambda: pipe.statuses() == [200])

        tokens = line.desk.answerer._authority.tokens
        tokens.revoke(tokens.records()[0].id)
        made.data_received(line.post())
        await until(lambda: pipe.statuses() == [200, 401])

    run(check)


@pytest.mark.parametrize(
    ("lines", "more"),
    [
        (("Connection: close",), {}),
        (("Expect: 100-continue",), {}),
        (("X-Long: " + "x" * 2048,), {}),
        ((), {"version": "1.0"}),
    ],
)
def test_unusual_heads_are_not_remembered(
    run: Callable[..., None], lines: tuple[str, ...], more: dict[str, str]
) -> None:
    async def check(line: Line) -> None:
        made, pipe = line.connect()
        made.data_received(line.post(ONE, *lines, **more))
        await line.serve()
        await until(lambda: 200 in pipe.statuses())
        assert line.heads == {}

    run(check)


def test_a_head_that_was_refused_is_not_remembered(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = line.connect()
        made.data_received(line.post(b'{"model": "m", "inputs": [1, 2, 3]}'))
        await until(lambda: pipe.statuses() == [422] or pipe.statuses() == [400])
        made.data_received(line.head(0, path="/predict")[:-2] + b"X: y\r\n\r\n")
        await until(lambda: len(pipe.statuses()) == 2)
        assert line.heads == {}

    run(check)


def test_a_head_in_two_pieces_and_a_chunked_body_are_parsed(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = line.connect()
        whole = line.post()
        made.data_received(whole[:30])
        made.data_received(whole[30:])
        await line.serve()
        chunked = line.head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        made.data_received(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(TWO), TWO))
        assert await line.serve() == row(3, 4)
        await until(lambda: pipe.statuses() == [200, 200])
        assert line.heads == {}

    run(check)


def test_heads_are_bounded(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard.edge.direct._MOST_HEADS", 3)

    async def check(line: Line) -> None:
        made, pipe = line.connect()
        for number in range(8):
            made.data_received(line.post(ONE, f"X-Number: {number}"))
            await line.serve()
            await until(lambda number=number: len(pipe.statuses()) == number + 1)  # type: ignore[misc]
            assert len(line.heads) <= 3

    run(check)


# --- the end of things ------------------------------------------------------------------------------------------------


def test_who_leaves_takes_the_question_along(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = await line.warm()
        made.data_received(line.post())
        question = await line.desk.engine.next()
        pipe.closed = True
        made.connection_lost(None)
        cancel = await line.desk.engine.next()
        assert (cancel.type, cancel.request) == (FrameType.CANCEL, question.request)
        line.desk.engine.answer(question.request, head=line.desk.shared, data=HALF)
        await until(lambda: line.desk.held == 0)
        assert pipe.written == b""

    run(check)


@pytest.mark.parametrize("known", [True, False])
def test_who_leaves_in_the_middle_of_a_body_is_told_of(run: Callable[..., None], *, known: bool) -> None:
    async def check(line: Line) -> None:
        made, pipe = await line.warm() if known else line.connect()
        made.data_received(line.head(len(ONE)) + ONE[:5])
        pipe.closed = True
        made.connection_lost(None)
        event = await line.desk.engine.next()
        assert (event.meta["code"], event.meta["principal"]) == ("malformed-request", "ris")
        assert pipe.written == b""

    run(check)


@pytest.mark.parametrize("known", [True, False])
def test_a_body_that_never_ends_is_timed_out(run: Callable[..., None], *, known: bool) -> None:
    async def check(line: Line) -> None:
        made, pipe = await line.warm() if known else line.connect()
        made.data_received(line.head(len(ONE)) + ONE[:5])
        await until(lambda: pipe.statuses() == [408])
        made.data_received(ONE[5:])  # too late, and nobody's
        assert pipe.statuses() == [408]

    run(check, body_seconds=0.1)


def test_a_body_beyond_the_limit_is_refused_whole_or_in_pieces(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        chunked = line.head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        large = b"%x\r\n%b\r\n" % (80, b" " * 80)
        made, pipe = line.connect()
        made.data_received(chunked + large + b"0\r\n\r\n")
        await until(lambda: pipe.statuses() == [413])
        made.data_received(chunked)
        made.data_received(large)
        await until(lambda: pipe.statuses() == [413, 413])
        made.data_received(b"0\r\n\r\n" + line.post())
        await line.serve()
        await until(lambda: pipe.statuses() == [413, 413, 200])

    run(check, body_bytes=64)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = await line.warm()
        made.data_received(line.post())
        frame = await line.desk.engine.next()
        await asyncio.sleep(0.5)
        assert not pipe.closed
        line.desk.engine.answer(frame.request, head=line.desk.shared, data=HALF)
        await until(lambda: pipe.statuses() == [200])
        assert not pipe.closed
        await until(lambda: pipe.closed)

    run(check, keep_alive=0.2)


def test_a_stop_waits_for_the_answer_and_closes(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = await line.warm()
        made.data_received(line.post())
        made.shutdown()
        assert not pipe.closed
        await line.serve()
        await until(lambda: pipe.closed)
        assert pipe.statuses() == [200]
        assert b"connection: close\r\n" in pipe.written

        idle, other = line.connect()
        idle.data_received(line.post())
        await line.serve()
        await until(lambda: other.statuses() == [200])
        idle.shutdown()
        assert other.closed

    run(check)


def test_garbage_behind_a_request_does_not_cost_its_answer(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        made, pipe = line.connect()
        made.data_received(line.post() + b"\0\0garbage\r\n\r\n")
        await line.serve()
        await until(lambda: 200 in pipe.statuses())
        assert line.heads == {}

    run(check)


def test_a_chunk_that_breaks_the_rules_ends_the_request(run: Callable[..., None]) -> None:
    async def check(line: Line) -> None:
        chunked = line.head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        made, pipe = line.connect()
        made.data_received(chunked)
        made.data_received(b"zz\r\n")
        await until(lambda: pipe.statuses() == [400])
        event = await line.desk.engine.next()
        assert (event.meta["code"], event.meta["principal"]) == ("malformed-request", "ris")

    run(check)


# --- refusals that wait -----------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays of hundredths of a second."""
    monkeypatch.setattr(delays, "_FIRST", 0.05)
    monkeypatch.setattr(delays, "_LONGEST", 0.05)


def wrong(line: Line, body: bytes = ONE, size: int | None = None) -> bytes:
    good = line.desk.headers["authorization"].encode()
    return line.head(len(body) if size is None else size).replace(good, b"Bearer wrong") + body


def test_a_refusal_waits_and_what_is_sent_meanwhile_is_not_kept(run: Callable[..., None], short: None) -> None:
    async def check(line: Line) -> None:
        line.desk.answerer.upstream.delays = Delays(1, 4)
        made, pipe = line.connect()
        made.data_received(wrong(line))
        assert pipe.statuses() == [401]

        made.data_received(wrong(line, size=1 << 20))
        exchange = made._open
        assert exchange is not None
        assert made.flow.read_paused
        for _ in range(8):
            made.data_received(b"x" * 10_000)
        assert (pipe.statuses(), exchange.size) == ([401], len(ONE))

        await until(lambda: pipe.statuses() == [401, 401])
        assert not made.flow.read_paused
        assert not pipe.closed

    run(check)


def test_a_valid_credential_does_not_wait_for_the_refusals_of_its_address(
    run: Callable[..., None], short: None
) -> None:
    async def check(line: Line) -> None:
        line.desk.answerer.upstream.delays = Delays(1, 4)
        refused = [line.connect() for _ in range(4)]
        for made, _ in refused:
            made.data_received(wrong(line))
        assert [pipe.statuses() for _, pipe in refused] == [[401], [], [], [429]]
        assert [pipe.closed for _, pipe in refused] == [False, False, False, True]
        assert refused[3][1].written.count(b"connection: close") == 1

        made, pipe = line.connect()
        made.data_received(line.post())
        await line.serve()
        await until(lambda: pipe.statuses() == [200])
        await until(lambda: [pipe.statuses() for _, pipe in refused] == [[401], [401], [401], [429]])

    run(check)


def test_who_leaves_while_its_refusal_waits_is_counted_once(run: Callable[..., None], short: None) -> None:
    async def check(line: Line) -> None:
        found = line.desk.answerer.upstream
        found.delays = Delays(1, 4)
        made, pipe = line.connect()
        made.data_received(wrong(line))
        pipe.written = b""
        for body in (b"", ONE):
            made, pipe = line.connect()
            made.data_received(wrong(line, body, size=len(ONE)))
            made.connection_lost(None)
            pipe.closed = True
        assert found.strangers._sums.total() == 3
        await asyncio.sleep(0.08)
        assert pipe.written == b""
        assert found.delays._all == 0

    run(check)
