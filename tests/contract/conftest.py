"""One engine for the whole session, and every way in as a parameter."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
from entrances import Door, Entrance, Keys, door, make_keys

from pericard.engine.main import Engine


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> serving.Site:
    return serving.Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def loop() -> Iterator[serving.Loop]:
    made = serving.Loop()
    yield made
    made.close()


@pytest.fixture(scope="session")
def tokens(site: serving.Site) -> Path:
    return site.folder / "tokens.json"


@pytest.fixture(scope="session")
def keys(tokens: Path) -> Keys:
    return make_keys(tokens)


@pytest.fixture(scope="session")
def engine(site: serving.Site) -> Iterator[Engine]:
    with site.engine(site.seal(), site.seal("ecg-other")) as made:
        yield made


@pytest.fixture(scope="session")
def wide(engine: Engine, tokens: Path, keys: Keys, loop: serving.Loop) -> Iterator[Door]:
    """The entrances with the default limits."""
    with door(engine, tokens, loop) as made:
        yield made


@pytest.fixture(scope="session")
def narrow_door(engine: Engine, tokens: Path, keys: Keys, loop: serving.Loop) -> Iterator[Door]:
    """The entrances with small limits, so that passing one takes no time."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("pericard.edge.protocol._GRACE_SECONDS", 0.3)
    monkeypatch.setattr("pericard.edge.protocol._LINGER_SECONDS", 0.3)
    limits = {
        "body_bytes": 4096,
        "body_seconds": 0.4,
        "header_bytes": 2048,
        "items": 8,
        "connections": 12,
        "answer_seconds": 1.5,
    }
    with door(engine, tokens, loop, **limits) as made:
        yield made
    monkeypatch.undo()


@pytest.fixture(params=["uvicorn", "direct"])
def narrow(narrow_door: Door, request: pytest.FixtureRequest) -> Door:
    """The same, with either way through the network."""
    return narrow_door.by(request.param)


@pytest.fixture(scope="session")
def alone(tokens: Path, keys: Keys, loop: serving.Loop) -> Iterator[Door]:
    """The entrances while there is no engine."""
    with door(None, tokens, loop) as made:
        yield made


@pytest.fixture(params=["answer", "application", "raw", "uvicorn", "direct"])
def entrance(wide: Door, request: pytest.FixtureRequest) -> Entrance:
    return wide.entrances[request.param]


@pytest.fixture(params=["answer", "application", "raw", "uvicorn", "direct"])
def narrow_entrance(narrow_door: Door, request: pytest.FixtureRequest) -> Entrance:
    return narrow_door.entrances[request.param]


@pytest.fixture(params=["answer", "application", "raw", "uvicorn", "direct"])
def alone_entrance(alone: Door, request: pytest.FixtureRequest) -> Entrance:
    return alone.entrances[request.param]


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, tokens: Path, keys: Keys, loop: serving.Loop) -> Iterator[Door]:
    """The entrances to an engine whose queue is full, and stays so: its one computation does not end."""
    place = serving.Site(tmp_path_factory.mktemp("full"))
    held = threading.Event()
    with place.engine(place.seal(), queue=1) as engine, door(engine, tokens, loop) as made:
        (served,) = engine._repository
        computes = served.models[0].infer
        served.models[0].infer = lambda inputs: (held.wait(), computes(inputs))[1]
        link = made.links[0]

        async def ask() -> None:
            serving.ask(link, serving.row(serving.GOOD), serving.number_of(link), seconds=600, deadline_ms=600_000)

        for waiting in (0, 1):  # one in work, one in the queue
            loop.run(ask())
            while len(engine._scheduler) < waiting or served.waiting <= waiting:
                time.sleep(0.005)
        yield made
        held.set()
