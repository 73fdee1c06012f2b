"""What a real daemon answered under load, replayed: every bucket, every place, and the guide's own words."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration_site import MODEL_YAML, SAMPLES, Daemon, Site, pericard, running
from speaking import Say, say

from pericard import environment
from pericard.audit import records

__all__ = ["say"]  # a fixture

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "replay.md"
LARGEST = 8
PLACES = {(bucket, place) for bucket in range(1, LARGEST + 1) for place in range(bucket)}
ROUNDS = 60

Kept = tuple[dict[str, Any], list[float]]


@pytest.fixture(scope="module")
def answering(made_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose model is asked at every batch size up to eight."""
    site = made_site.copy(tmp_path_factory.mktemp("replay"))
    (site.folder / "model.yaml").write_text(MODEL_YAML.replace("[1, 4, 8]", str(list(range(1, LARGEST + 1)))))
    (site.folder / "tiny.sealed").unlink()
    pericard(
        "seal", "tiny.pt2", "--manifest", "model.yaml", "--sign-with", "vendor.key", "--archive", "archive.pub",
        "-r", "identity.pub", "--days", 30, "-o", "tiny.sealed", cwd=site.folder,
    )  # fmt: skip
    with running(site) as daemon:
        daemon.wait_ready()
        yield daemon


def strips(count: int, seed: int) -> list[list[float]]:
    return np.random.default_rng(seed).normal(0, 0.5, size=(count, SAMPLES)).round(4).tolist()


def ask(daemon: Daemon, count: int, seed: int) -> list[Kept]:
    sent = strips(count, seed)
    answer = daemon.predict(*sent)
    assert answer.status == 200, answer.body
    predictions: Any = answer.body["predictions"]
    return list(zip(predictions, sent, strict=True))


def conditions(site: Site) -> dict[int, tuple[int, int]]:
    found: dict[int, Any] = dict(records(site.folder / "audit"))
    return {index: (one["bucket"], one["place"]) for index, one in found.items() if one["event"] == "predict"}


@pytest.fixture(scope="module")
def everywhere(answering: Daemon) -> dict[tuple[int, int], Kept]:
    """One answer of every bucket and place, out of what many callers at once were answered."""
    found: dict[tuple[int, int], Kept] = {}
    with ThreadPoolExecutor(4) as callers:
        for number in range(ROUNDS):
            asked = [callers.submit(ask, answering, 1 + (number + at) % LARGEST, 16 * number + at) for at in range(8)]
            kept = [one for answers in asked for one in answers.result()]
            stood = conditions(answering.site)
            found = {stood[prediction["receipt"]["index"]]: (prediction, strip) for prediction, strip in kept} | found
            if found.keys() >= PLACES:
                break
    assert found.keys() >= PLACES, PLACES - found.keys()
    return found


def test_every_answer_under_load_gives_the_same_bits(
    answering: Daemon, everywhere: dict[tuple[int, int], Kept], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = environment.describe()
    monkeypatch.setattr(environment, "describe", lambda: runtime)  # it is the same one each time
    folder = answering.site.folder
    for (bucket, place), (prediction, strip) in sorted(everywhere.items()):
        (folder / "one.json").write_text(json.dumps(prediction))
        (folder / "strip.json").write_text(json.dumps(strip))

        said = say("replay", folder / "one.json", "--input", folder / "strip.json", "--config", folder / "server.yaml")

        assert said.status == 0, said.err
        assert f"bucket {bucket}, place {place}, 1 thread, cpu, runtime {runtime.digest[:16]}" in said.out


def examples() -> list[tuple[str, list[str]]]:
    """The guide's commands, and what they say."""
    blocks = re.findall(r"^```console\n\$ (pericard .+?)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [(command, said.splitlines()) for command, said in blocks]


def test_there_are_examples() -> None:
    assert len(examples()) == 3


@pytest.mark.parametrize("number", range(3))
def test_the_guides_examples_are_true(answering: Daemon, number: int) -> None:
    folder, sent = answering.site.folder, strips(LARGEST, seed=7)
    body = {"model": "tiny", "inputs": sent, "sampling_rate": 250, "unit": "mV", "leads": ["II"]}
    (folder / "request.json").write_text(json.dumps(body))
    (folder / "answer.json").write_text(json.dumps(answering.request("/predict", body=body).body))
    (folder / "other.json").write_text(json.dumps(body | {"inputs": sent[::-1]}))
    command, wanted = examples()[number]

    said = pericard(*shlex.split(command)[1:], cwd=folder, check=False)

    def shape(lines: list[str]) -> list[str]:
        return [re.sub(r"\b[0-9a-f]{16}\b|\b\d+\b", "N", line) for line in lines]

    assert shape((said.stdout + said.stderr).splitlines()) == shape(wanted)
    assert said.returncode == (0 if "same bits" in wanted[0] else 1)
