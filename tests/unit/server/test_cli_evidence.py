"""``pericard audit prove | check | export | report``: evidence for somebody who does not have the machine."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speaking import Say, refused

from pericard.audit import AuditLog, commit, opening_key
from pericard.keys import LogKey

STRIPS = np.arange(30, dtype="<f4").reshape(3, 10) / 7
OUTPUTS = [(np.float32(0.1) * place, np.arange(4, dtype="<f4") * np.float32(place + 0.3)) for place in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of one request with three strips, what the caller kept of it, and the public key."""
    key = LogKey.generate(tmp_path / "log.key")
    key.verifier.write(tmp_path / "log.pub")
    with AuditLog.open(tmp_path / "audit", key=key) as log:
        log.commit([{"event": "start"}])
        log.publish()
        (tmp_path / "old").write_bytes((tmp_path / "audit/checkpoint").read_bytes())
        keys = [opening_key(key.commitment_key, index) for index in range(1, 4)]
        made = [
            {
                "event": "predict", "principal": "ris", "outcome": "ok", "model": {"name": "ecg", "version": "1"},
                "input": commit(one, "input", strip.tobytes()),
                "answer": commit(one, "answer", np.float32(score).tobytes() + timeline.tobytes()),
            }
            for one, strip, (score, timeline) in zip(keys, STRIPS, OUTPUTS, strict=True)
        ]  # fmt: skip
        entries = log.commit(made)
        predictions = [
            {
                "status": "ok",
                "outputs": {"score": float(np.float32(score)), "timeline": [float(one) for one in timeline]},
                "receipt": {"log": log.origin, "index": entry.index, "leaf": entry.leaf, "opening_key": one.hex()},
            }
            for entry, one, (score, timeline) in zip(entries, keys, OUTPUTS, strict=True)
        ]
    (tmp_path / "answer.json").write_text(json.dumps({"model": {}, "predictions": predictions}))
    (tmp_path / "sent.json").write_text(json.dumps({"inputs": STRIPS.astype(float).tolist(), "unit": "mV"}))
    return tmp_path


def check(say: Say, folder: Path, item: int, **options: Any) -> Any:
    paths = [part for name, value in options.items() for part in (f"--{name}", value)]
    return say("audit", "check", folder / "receipt.json", "--key", folder / "log.pub", "--item", str(item), *paths)


def test_a_receipt_is_made_and_verified_with_answer_and_strip(say: Say, folder: Path) -> None:
    for item in range(3):
        assert say("audit", "prove", folder / "audit", str(item + 1), "-o", folder / "receipt.json").status == 0
        said = check(say, folder, item, answer=folder / "answer.json", input=folder / "sent.json")
        assert said.status == 0, said
        assert said.err == "verified: its record and the answer and the input, under a signed head of 4 records\n"
        assert "principal    ris" in said.out
    out = say("audit", "prove", folder / "audit", "0").out
    (folder / "receipt.json").write_text(out)
    said = say("audit", "check", folder / "receipt.json", "--key", folder / "log.pub", "--json")
    assert (json.loads(said.out)["event"], json.loads(said.out)["opened"]) == ("start", [])


@pytest.mark.parametrize("form", ["npy", "bytes", "base64", "one", "int16"])
def test_the_strip_may_have_any_form_in_which_it_was_sent(say: Say, folder: Path, form: str) -> None:
    say("audit", "prove", folder / "audit", "2", "-o", folder / "receipt.json")
    kept, sent = folder / "answer.json", folder / f"sent.{form}"
    if form == "npy":
        np.save(sent, STRIPS)
    elif form == "bytes":
        sent.write_bytes(STRIPS.tobytes())
    else:
        sent = sent.with_suffix(".json")
        kept = folder / "one.json"
        kept.write_text(json.dumps(json.loads((folder / "answer.json").read_text())["predictions"][1]))
        inputs: Any = [[STRIPS[1].astype(float).tolist()]]
        if form == "base64":
            inputs = base64.b64encode(STRIPS[1].tobytes()).decode()
        request = {"inputs": inputs}
        if form == "int16":  # whole units of the recorder, a seventh each
            samples = np.arange(10, 20, dtype="<i2")
            request = {"inputs": base64.b64encode(samples.tobytes()).decode(), "dtype": "int16", "gain": 7}
        sent.write_text(json.dumps(request))

    said = check(say, folder, 1, answer=kept, input=sent)
    assert said.status == 0, said
    assert "and the input" in said.err


def test_whatever_does_not_belong_together_is_refused(say: Say, folder: Path) -> None:
    say("audit", "prove", folder / "audit", "2", "-o", folder / "receipt.json")
    refused(check(say, folder, 0, answer=folder / "answer.json"), "is not the one that the answer names")
    answer = json.loads((folder / "answer.json").read_text())
    answer["predictions"][1]["outputs"]["score"] = 0.25
    (folder / "other.json").write_text(json.dumps(answer))
    refused(check(say, folder, 1, answer=folder / "other.json"), "commits to another answer")
    wrong = STRIPS.copy()
    wrong[1, 3] += 1
    np.save(folder / "wrong.npy", wrong)
    refused(
        check(say, folder, 1, answer=folder / "answer.json", input=folder / "wrong.npy"), "commits to another input"
    )
    np.save(folder / "short.npy", STRIPS[0, :7])
    refused(check(say, folder, 1, answer=folder / "answer.json", input=folder / "short.npy"), "is not 3 strips")
    refused(check(say, folder, 1, answer=folder / "answer.json", input=folder / "gone.npy"), "gone.npy")
    receipt = json.loads((folder / "receipt.json").read_text())
    for change in (
        {"proof": []},
        {"record": receipt["record"].replace("ris", "lab")},
        {"index": 1, "proof": ["x"]},
        {"x": 1},
    ):
        (folder / "changed.json").write_text(json.dumps({**receipt, **change}))
        refused(say("audit", "check", folder / "changed.json", "--key", folder / "log.pub"))
    LogKey.generate(folder / "other.key").verifier.write(folder / "other.pub")
    refused(say("audit", "check", folder / "receipt.json", "--key", folder / "other.pub"), "is of the log")


def test_a_head_that_was_kept_is_continued(say: Say, folder: Path) -> None:
    said = say("audit", "prove", folder / "audit", "--consistency", folder / "old", "-o", folder / "proof.json")
    assert said.status == 0, said
    said = say("audit", "check", folder / "proof.json", "--key", folder / "log.pub", "--json")
    assert (said.status, json.loads(said.out)["old"], json.loads(said.out)["new"]) == (0, 1, 4)
    assert said.err == "verified: the first 1 of 4 records are as they were\n"
    proof = json.loads((folder / "proof.json").read_text())
    (folder / "proof.json").write_text(json.dumps({**proof, "proof": proof["proof"][1:]}))
    refused(say("audit", "check", folder / "proof.json", "--key", folder / "log.pub"), "not proven to continue")


@pytest.mark.parametrize(
    "arguments",
    [
        ("prove", "audit"),
        ("prove", "audit", "1", "--consistency", "old"),
        ("prove", "audit", "1", "--head", "old"),
        ("check", "old", "--key", "log.pub", "--input", "old"),
        ("report", "audit", "--since", "yesterday"),
        ("report", "audit", "--until", "2026-13-01"),
    ],
)
def test_wrong_use(say: Say, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.chdir(folder)
    assert say("audit", *arguments).status == 2


def test_the_public_half_of_a_key_in_use_is_made_anew(say: Say, folder: Path) -> None:
    said = say("keygen", "log", "--public-of", folder / "log.key", "-o", folder / "again.pub")
    assert said.status == 0
    assert (folder / "again.pub").read_bytes() == (folder / "log.pub").read_bytes()
    refused(say("keygen", "log", "--public-of", folder / "log.key", "-o", folder / "again.pub"), "exists already")


def test_a_log_is_taken_elsewhere(say: Say, folder: Path) -> None:
    said = say("audit", "export", folder / "audit", "--key", folder / "log.pub", "-o", folder / "copy")
    assert (said.status, said.out) == (0, "verified: 4 records in 1 segments\n")
    assert say("audit", "verify", folder / "copy", "--key", folder / "copy" / "log.pub").status == 0


def test_a_report(say: Say, folder: Path) -> None:
    said = say("audit", "report", folder / "audit", "--json")
    assert json.loads(said.out)["asked"] == [
        {"principal": "ris", "model": "ecg", "version": "1", "outcome": "ok", "count": 3}
    ]
    said = say("audit", "report", folder / "audit", "--since", "2020-01-01", "--until", "2100-01-01T00:00:00Z")
    assert said.out.startswith("4 records, index 0 to 3\n")
    assert "  ris        ecg    1        ok       3\n" in said.out
    assert say("audit", "report", folder / "audit", "--since", "2100-01-01").out == "0 records\n"
