"""Two edges are one server: what a caller may have, and what is counted, is one over both."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import serving

from pericard.engine.main import Engine
from pericard.errors import PericardError, RateLimited
from pericard.pipe import EngineLink


@pytest.fixture
def site(tmp_path: Path) -> serving.Site:
    return serving.Site(tmp_path / "site")


def outcomes(loop: serving.Loop, engine: Engine, count: int, *, at_once: bool = True) -> list[str]:
    """What ``count`` questions of one caller get, put to two edges in turn."""

    async def one(link: EngineLink, number: int) -> str:
        try:
            await serving.ask(link, serving.row(serving.GOOD), number).future
        except PericardError as error:
            return error.code
        return "ok"

    async def ask() -> list[str]:
        links = [await serving.attached(engine), await serving.attached(engine)]
        number = serving.number_of(links[0])
        asked = [one(links[place % 2], number) for place in range(count)]
        found = list(await asyncio.gather(*asked)) if at_once else [await question for question in asked]
        for link in links:
            link.close()
        return found

    return loop.run(ask(), 60)


@pytest.fixture
def loop() -> serving.Loop:
    return serving.Loop()


def sample(engine: Engine, name: str, **labels: str) -> float:
    return engine._metrics.registry.get_sample_value(name, labels) or 0.0


def test_a_rate_is_one_over_both(site: serving.Site, loop: serving.Loop) -> None:
    with site.engine(site.seal(), caller_rate=0.001, caller_burst=7) as engine:
        found = outcomes(loop, engine, 20)

        assert (found.count("ok"), found.count(RateLimited.code)) == (7, 13)
        assert sample(engine, "pericard_requests_total", code="ok") == 7
        assert sample(engine, "pericard_requests_total", code=RateLimited.code) == 13
    loop.close()


def test_a_share_of_the_queue_is_one_over_both(site: serving.Site, loop: serving.Loop) -> None:
    with site.engine(site.seal(), per_caller=3) as engine:
        found = outcomes(loop, engine, 40)

        assert set(found) <= {"ok", RateLimited.code}
        assert found.count("ok") >= 3
        assert sample(engine, "pericard_requests_total", code="ok") == found.count("ok")
        assert outcomes(loop, engine, 20, at_once=False) == ["ok"] * 20  # one after the other, it has its share again
    loop.close()


def test_every_answer_is_counted_once(site: serving.Site, loop: serving.Loop) -> None:
    with site.engine(site.seal()) as engine:
        assert outcomes(loop, engine, 64) == ["ok"] * 64

        assert sample(engine, "pericard_requests_total", code="ok") == 64
        assert sample(engine, "pericard_queue_seconds_count") == 64
        assert sample(engine, "pericard_batch_size_sum") == 64
    loop.close()
