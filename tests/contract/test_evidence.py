"""The audit log over HTTP, through every entrance: an answer's receipt is there at once, and proves the answer."""

from __future__ import annotations

from typing import Any

import pytest
import serving
from entrances import Door, Entrance, Keys, bearer, predict_body

from pericard.audit import open_head, open_receipt, records
from pericard.engine.main import Engine
from pericard.keys import LogVerifier


@pytest.fixture(scope="module")
def verifier(site: serving.Site) -> LogVerifier:
    return site.log_key.verifier


def ask(entrance: Entrance, keys: Keys, path: str) -> Any:
    reply = entrance.ask("GET", path, {**bearer(keys.idle), "x-request-id": "audit-1"})
    assert reply.status == 200, reply
    assert reply.headers["cache-control"] == "no-store"
    return reply


def predicted(entrance: Entrance, keys: Keys) -> dict[str, Any]:
    headers = {**bearer(keys.good), "content-type": "application/json"}
    (one,) = entrance.ask("POST", "/predict", headers, predict_body(serving.GOOD)).json["predictions"]
    receipt: dict[str, Any] = one["receipt"]
    return receipt


def test_a_receipt_is_there_as_soon_as_the_answer(
    entrance: Entrance, keys: Keys, engine: Engine, verifier: LogVerifier
) -> None:
    kept = predicted(entrance, keys)
    made = ask(entrance, keys, f"/audit/receipts/{kept['index']}").json

    fields = open_receipt(
        made["record"].encode(),
        [bytes.fromhex(node) for node in made["proof"]],
        made["head"].encode(),
        verifier=verifier,
        opening_key=bytes.fromhex(kept["opening_key"]),
        input_bytes=serving.row(serving.GOOD),
    )
    assert (fields["event"], fields["outcome"], fields["index"]) == ("predict", "ok", kept["index"])


def test_records_and_checkpoint(entrance: Entrance, keys: Keys, engine: Engine, verifier: LogVerifier) -> None:
    kept = predicted(entrance, keys)
    page = ask(entrance, keys, f"/audit/records?from={kept['index']}&limit=1").json
    assert (page["log"], page["from"], page["next"]) == (kept["log"], kept["index"], kept["index"] + 1)
    assert page["records"][0]["index"] == kept["index"]
    assert page["size"] > kept["index"]
    reply = ask(entrance, keys, "/audit/checkpoint")
    assert open_head(reply.body, kept["log"], verifier).size > 0
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"

    reads = [one for _, one in records(engine._log.directory, kept["index"]) if one["event"] == "audit-read"]
    assert [(one["read"], one["principal"], one["request"]) for one in reads] == [
        ("records", "idle", "audit-1"),
        ("checkpoint", "idle", "audit-1"),
    ]


def test_what_is_not_there_is_refused(entrance: Entrance, keys: Keys, engine: Engine) -> None:
    for path, code in (
        ("/audit/receipts/99999999", "unknown-record"),
        ("/audit/records?from=99999999", "unknown-record"),
        ("/audit/records?limit=0", "malformed-request"),
        ("/audit/records?first=0", "malformed-request"),
    ):
        assert entrance.ask("GET", path, bearer(keys.idle)).code == code
    assert entrance.ask("GET", "/audit/receipts/x", bearer(keys.idle)).code == "unknown-route"


def test_without_an_engine_nothing_is_shown(alone: Door, keys: Keys) -> None:
    for path in ("/audit/records", "/audit/checkpoint", "/audit/receipts/0"):
        assert alone.network.ask("GET", path, bearer(keys.idle)).code == "engine-away"
