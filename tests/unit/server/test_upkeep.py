"""What an edge does by the clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pericard.auth import Authority, PolicyFile, TokenFile
from pericard.edge import upkeep
from pericard.errors import ConfigError

POLICY = "roles: {}\nprincipals: {}\n"


def used(folder: Path) -> Authority:
    """A site whose one token was just used."""
    file = TokenFile(folder / "tokens.json")
    file.authenticate(file.create("ris", operations=("predict",), models=("*",), days=1).token)
    return Authority(file)


def keep(authority: Authority, until: Callable[[], object] = lambda: True) -> list[ConfigError | None]:
    """Keep it up until something is so; what was said of the policy."""
    said: list[ConfigError | None] = []

    async def run() -> None:
        async with upkeep.keeping(authority, said.append):
            for _ in range(1000):
                await asyncio.sleep(0.005)
                if until():
                    return
        raise AssertionError("it did not happen")

    asyncio.run(run())
    return said


def test_uses_are_written_at_the_end(tmp_path: Path) -> None:
    authority = used(tmp_path)

    keep(authority)

    assert len(authority.tokens.uses.read()) == 1


def test_uses_are_written_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = used(tmp_path)
    monkeypatch.setattr(upkeep, "_USES_SECONDS", 0.01)

    keep(authority, authority.tokens.uses.read)


def test_what_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = used(tmp_path)
    monkeypatch.setattr(upkeep, "_USES_SECONDS", 0.005)
    tried: list[int] = []

    def refuse() -> None:
        tried.append(1)
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(authority.tokens, "write_uses", refuse)
    with caplog.at_level(logging.WARNING):
        keep(authority, lambda: len(tried) > 3)

    assert [record.getMessage() for record in caplog.records] == [
        "times of use: cannot be written: read-only file system"
    ]


def test_a_policy_that_changed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    monkeypatch.setattr(upkeep, "_POLICY_SECONDS", 0.005)
    policy = PolicyFile(path)
    path.write_text(POLICY + "# another\n")
    before = policy.current

    said = keep(Authority(TokenFile(tmp_path / "tokens.json"), policy), lambda: policy.current is not before)

    assert said == [None]
