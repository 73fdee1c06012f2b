"""Evidence from a real daemon, locked in as it is: fetched over TLS, then verified without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from integration_site import Daemon, pericard

from pericard_client.cli import main

pytestmark = pytest.mark.integration


def test_an_answer_is_proven_by_command_and_by_the_client(
    daemon: Daemon, strip: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = daemon.site.folder
    token = pericard(
        "token", "create", "auditor", "--model", "*", "--operation", "audit", "--tokens", "tokens.json", cwd=folder
    ).stdout.strip()
    answer = daemon.predict(strip)
    index = answer.body["predictions"][0]["receipt"]["index"]  # type: ignore[index]
    receipt = daemon.request(f"/audit/receipts/{index}", token=token)
    assert receipt.status == 200, receipt
    old = daemon.request("/audit/checkpoint", token=token).body["text"]
    assert daemon.request("/audit/checkpoint").status == 403
    page = daemon.request(f"/audit/records?from={index}", token=token).body
    assert [record["event"] for record in page["records"]][:3] == ["predict", "audit-read", "audit-read"]  # type: ignore[attr-defined]
    daemon.predict(strip)

    files = {"answer.json": answer.body, "receipt.json": receipt.body, "sent.json": {"inputs": strip}}
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "old").write_bytes(str(old).encode("latin-1"))
    assert daemon.stop() == 0

    log = folder / "audit"
    given = ("--answer", tmp_path / "answer.json", "--input", tmp_path / "sent.json")
    said = pericard("audit", "check", tmp_path / "receipt.json", "--key", "log.pub", *given, cwd=folder)
    assert said.stderr.startswith("verified: its record and the answer and the input, under a signed head of ")
    pericard("audit", "prove", log, "--consistency", tmp_path / "old", "-o", tmp_path / "proof.json", cwd=folder)
    pericard("audit", "check", tmp_path / "proof.json", "--key", "log.pub", cwd=folder)
    report = json.loads(pericard("audit", "report", log, "--json", cwd=folder).stdout)
    assert {(one["principal"], one["read"], one["count"]) for one in report["read"]} == {
        ("auditor", "receipt", 1), ("auditor", "checkpoint", 1), ("auditor", "records", 1),
    }  # fmt: skip
    arguments = ("receipt", tmp_path / "answer.json", "--key", folder / "log.pub", "--input", tmp_path / "sent.json")
    assert main([str(one) for one in (*arguments, "--receipt", tmp_path / "receipt.json")]) == 0
    assert "verified: record, answer, input" in capsys.readouterr().out
