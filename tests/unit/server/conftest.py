"""A real site with a real sealed model, made once, and a loaded model that nobody changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
from speaking import say

from pericard.runtime.loader import LoadedModel

__all__ = ["loop", "say", "site", "tiny_model", "tiny_sealed"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> serving.Site:
    """Keys and the sealed model ``ecg-anomaly``; tests that need other state make a site of their own."""
    made = serving.Site(tmp_path_factory.mktemp("site"))
    made.seal()
    return made


@pytest.fixture(scope="session")
def tiny_sealed(site: serving.Site) -> Path:
    return site.folder / "ecg-anomaly.sealed"


@pytest.fixture(scope="session")
def tiny_model(site: serving.Site, tiny_sealed: Path) -> Iterator[LoadedModel]:
    model = site.load(tiny_sealed)
    yield model
    model.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[serving.Loop]:
    made = serving.Loop()
    yield made
    made.close()
