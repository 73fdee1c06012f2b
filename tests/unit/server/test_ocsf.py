"""What a collector reads beside a record: every event of the server has a class, as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pericard.forward import ocsf

ROOT = Path(__file__).parents[3]
#: Events by the words that the server writes them with, wherever it does.
_WRITTEN = re.compile(r'"event": "([a-z-]+)"|"(policy-[a-z]+)" (?:if|else|\))|event: str = "([a-z-]+)"')


def written() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "server/src/pericard").rglob("*.py"):
        for names in _WRITTEN.findall(path.read_text("utf-8")):
            found.update(filter(None, names))
    return found | {"policy-loaded"}


def test_every_event_that_the_server_writes_has_a_class() -> None:
    events = written()
    assert {"predict", "audit-read", "clock-stepped", "policy-refused", "trust-state"} <= events
    assert sorted(events - ocsf._KINDS.keys()) == []


@pytest.mark.parametrize("name", sorted(ocsf._KINDS))
def test_the_page_has_the_class_of_each(name: str) -> None:
    page = (ROOT / "docs/spec/forwarding.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
    assert rows, "the page's table has it"

    said = ocsf.event(
        {"event": name, "time": "2026-11-29T00:00:00.000000Z", "index": 7},
        b"{}", leaf="ab", origin="log", version="0",
    )  # fmt: skip
    assert said["activity_name"] == name
    assert said["class_uid"] == ocsf._KINDS[name].class_number > 0
