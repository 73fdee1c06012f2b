"""Evidence verified by the client: a reader of its own, which must agree with the vectors and with a real log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pericard.audit import AuditLog, commit, opening_key
from pericard.audit.receipt import receipt as made_by_the_server
from pericard.keys import LogKey as ServerKey
from pericard.keys import LogVerifier
from pericard_client import wire
from pericard_client.cli import main
from pericard_client.client import Client
from pericard_client.errors import (
    ClientError,
    EvidenceError,
    HeadNotSigned,
    MalformedEvidence,
    OtherAnswer,
    OtherInput,
    RecordNotProven,
    UnexpectedReply,
    UnknownRecord,
    VerifierMissing,
)
from pericard_client.evidence import LogKey, Verified, verify
from pericard_client.evidence.notes import open_head
from pericard_client.models import Proof, Receipt

VECTORS = Path(__file__).parents[2] / "vectors" / "audit"
EXAMPLES = json.loads((VECTORS / "examples.json").read_text("ascii"))
RECEIPTS = json.loads((VECTORS / "receipts.json").read_text("ascii"))
REFUSED = json.loads((VECTORS / "refused-receipts.json").read_text("ascii"))
HEADS = json.loads((VECTORS / "published-heads.json").read_text("ascii"))
SECOND = bytes.fromhex(HEADS["second_public_key"])
KEY = LogKey(bytes.fromhex(EXAMPLES["log_public_key"]), EXAMPLES["origin"])
Run = Callable[..., tuple[int, str, str]]


# --- the vectors ------------------------------------------------------------------------------------------------------


def opened(made: dict[str, Any], key: LogKey = KEY) -> Verified:
    said = {name: made[name] for name in ("index", "record", "proof", "head")}
    try:
        proof = wire.parse_proof(wire.Reply(200, {}, json.dumps(said).encode()))
    except UnexpectedReply as error:
        raise MalformedEvidence(error.message) from error
    from hashlib import sha256

    leaf = sha256(b"\0" + made["record"].encode()).hexdigest()
    named = json.loads(made["record"]).get("index", -1)
    kept = Receipt(EXAMPLES["origin"], named, leaf, made["opening_key"])
    forms = {
        name: None if made[label] is None else [b"something else", made[label].encode()]
        for name, label in (("sent", "input"), ("answer", "answer"))
    }
    return verify(proof, key, receipt=kept, **forms)


def test_the_receipts_open() -> None:
    for made in RECEIPTS:
        found = opened(made)
        assert (found.record["index"], found.size, found.log) == (made["index"], 6, EXAMPLES["origin"])
        assert found.opened == (() if made["input"] is None else ("answer", "input"))


@pytest.mark.parametrize("made", REFUSED, ids=lambda made: made["why"])
def test_each_receipt_with_something_wrong_is_refused(made: dict[str, Any]) -> None:
    kinds: dict[str, tuple[type[EvidenceError], ...]] = {
        "form": (MalformedEvidence,),
        "head": (HeadNotSigned,),
        "record": (RecordNotProven,),
        "input": (OtherInput, OtherAnswer),  # a wrong opening key opens neither
        "answer": (OtherAnswer,),
    }
    with pytest.raises(kinds[made["part"]]):
        opened(made)


@pytest.mark.parametrize("made", HEADS["heads"], ids=lambda made: made["why"])
def test_a_second_signature_must_hold_where_there_is_one(made: dict[str, Any]) -> None:
    key = LogKey(KEY.public, KEY.origin, SECOND)
    if made["opens"] or made["why"] in {"the first one alone", "the second one by another key"}:  # the head of a group
        assert open_head(made["head"], key).size == 6
        return
    with pytest.raises(HeadNotSigned):
        open_head(made["head"], key)


@pytest.mark.parametrize("text", EXAMPLES["not_records"])
def test_what_is_no_record_is_refused(text: str) -> None:
    from pericard_client.evidence.commitments import members

    with pytest.raises(MalformedEvidence):
        members(text)
    for good in EXAMPLES["canonical_records"]:
        assert members(good) == json.loads(good)


def test_a_receipt_belongs_to_one_answer() -> None:
    made, other = RECEIPTS[3], RECEIPTS[4]
    proof = Proof(3, made["record"], tuple(map(bytes.fromhex, made["proof"])), made["head"])
    kept = Receipt(EXAMPLES["origin"], 3, "ab" * 32, made["opening_key"])
    for change in (kept, Receipt("other", 3, kept.leaf, kept.opening_key), Receipt(kept.log, 4, kept.leaf, "")):
        with pytest.raises(EvidenceError, match="is not the one that the answer names") as refused:
            verify(proof, KEY, receipt=change)
        assert refused.value.code == "other-record"
    assert verify(proof, KEY).opened == ()
    with pytest.raises(MalformedEvidence, match="takes its receipt"):
        verify(proof, KEY, answer=[b""])
    with pytest.raises(HeadNotSigned, match="is of the log"):
        opened(other, LogKey(KEY.public, "another"))
    with pytest.raises(HeadNotSigned, match="not signed by this key"):
        opened(other, LogKey(bytes(32), KEY.origin))


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "log.pub"
    ServerKey(bytes(range(64))).verifier.write(path)
    assert LogKey.read(path) == LogKey(KEY.public, KEY.origin, SECOND)
    path.unlink()
    LogVerifier(KEY.public).write(path)  # of before
    assert LogKey.read(path) == KEY
    for junk in (b"", b"\xff", b"pericard-publisher-v1 AAAA", b"pericard-log-v1 AAAA", path.read_bytes() * 2):
        path.write_bytes(junk)
        with pytest.raises(MalformedEvidence, match="is not one of a log"):
            LogKey.read(path)
    with pytest.raises(MalformedEvidence, match="no such file"):
        LogKey.read(tmp_path / "gone")


@pytest.mark.parametrize("name", ["cryptography.exceptions", "blake3"])
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(VerifierMissing) as refused:
        opened(RECEIPTS[1])
    assert refused.value.hint == "install pericard-client[verify]"


# --- with a log -------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(server: Any, quick: Path) -> Iterator[Path]:
    """The stand-in server with a real audit log; its folder."""
    key = ServerKey(bytes(range(64)))
    key.verifier.write(quick / "log.pub")
    with AuditLog.open(quick / "log", key=key) as log:
        plain, answers = server.one, server.answer

        def one(strip: list[float]) -> dict[str, Any]:
            made = plain(strip)
            opening = opening_key(key.commitment_key, log.next_index)
            record = {"event": "predict", "input": commit(opening, "input", np.array(strip, "<f4").tobytes())}
            if "outputs" in made:  # JSON holds 32-bit floats exactly
                made["outputs"] = {
                    name: np.array(value, "<f4").astype(float).tolist() for name, value in made["outputs"].items()
                }
                data = b"".join(np.array(value, "<f4").tobytes() for value in made["outputs"].values())
                record["answer"] = commit(opening, "answer", data)
            (entry,) = log.commit([record])
            receipt = {"log": log.origin, "index": entry.index, "leaf": entry.leaf, "opening_key": opening.hex()}
            return {**made, "receipt": receipt}

        def answer(request: Any) -> Any:
            if not request.path.startswith("/audit/receipts/"):
                return answers(request)
            index = int(request.path.rpartition("/")[2])
            if index >= log.next_index:
                return server.problem(404, "unknown-record", f"record {index}: is not in the log")
            return 200, {"content-type": "application/json"}, made_by_the_server(quick / "log", index).to_json()

        server.one, server.answer = one, answer
        yield quick


@pytest.fixture
def run(server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("PERICARD_SERVER", server.url)
    monkeypatch.setenv("PERICARD_TOKEN", server.token)
    monkeypatch.delenv("PERICARD_TOKEN_FILE", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def asked(site: Path, run: Run, ecg: Path) -> Path:
    """What ``predict`` printed of a real recording."""
    code, out, _ = run("predict", ecg, "--out", "json")
    assert code == 0
    (site / "answer.json").write_text(out)
    return site / "answer.json"


def test_an_answer_and_its_ecg_are_verified(run: Run, asked: Path, ecg: Path, site: Path) -> None:
    code, out, err = run("receipt", asked, "--key", site / "log.pub", "--input", ecg)
    assert (code, err) == (0, "")
    assert out == "  0         verified: record, answer, input; under a signed head of 1 records\n"
    code, out, _ = run("receipt", asked, "--key", site / "log.pub", "--input", ecg, "--out", "json")
    assert json.loads(out)["receipts"][0]["opened"] == ["answer", "input"]


def test_offline_with_a_receipt_that_was_kept(run: Run, asked: Path, ecg: Path, site: Path, server: Any) -> None:
    (site / "receipt.json").write_bytes(made_by_the_server(site / "log", 0).to_json())
    seen = len(server.seen)
    arguments = ("receipt", asked, "--key", site / "log.pub", "--receipt", site / "receipt.json", "--input", ecg)
    assert run(*arguments)[0] == 0
    assert len(server.seen) == seen


def test_what_does_not_hold_is_named(run: Run, asked: Path, ecg: Path, site: Path, tmp_path: Path) -> None:
    answer = json.loads(asked.read_text())
    key = ("--key", site / "log.pub")

    def changed(edit: Callable[[dict[str, Any]], None]) -> Path:
        copy = json.loads(json.dumps(answer))
        edit(copy["recordings"][0]["windows"][0])
        (tmp_path / "changed.json").write_text(json.dumps(copy))
        return tmp_path / "changed.json"

    for edit, code, word in (
        (lambda one: one["outputs"].update(score=0.5), 6, "commits to another answer"),
        (lambda one: one["receipt"].update(leaf="ab" * 32), 6, "is not the one that the answer names"),
        (lambda one: one["receipt"].update(opening_key="ab" * 32), 6, "commits to another answer"),
        (lambda one: one["receipt"].update(index=9), 1, "is not in the log"),
        (lambda one: one["receipt"].update(index="9"), 2, "is not a saved answer"),
        (lambda one: one.update(receipt=None), 2, "holds no receipt"),
    ):
        found, out, err = run("receipt", changed(edit), *key)
        assert (found, out) == (code, ""), err
        assert word in err
    beats = np.sin(np.arange(2500) / 20)
    np.save(tmp_path / "other.npy", beats)
    npy = ("--sampling-rate", "250", "--unit", "mV", "--leads", "II")
    code, _, err = run("receipt", asked, *key, "--input", tmp_path / "other.npy", *npy)
    assert (code, "commits to another input" in err) == (6, True)
    np.save(tmp_path / "long.npy", np.tile(beats, 2))
    code, _, err = run("receipt", asked, *key, "--input", tmp_path / "long.npy", *npy)
    assert (code, "gives 2 windows" in err) == (2, True)
    (tmp_path / "none.json").write_text("{}")
    assert run("receipt", asked, *key, "--receipt", tmp_path / "none.json")[0] == 2
    assert run("receipt", tmp_path / "none.json", *key)[0] == 2
    assert run("receipt", asked, *key, "--item", "5")[0] == 2


def test_it_needs_a_receipt_or_a_server(run: Run, asked: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERICARD_SERVER")
    code, _, err = run("receipt", asked, "--key", site / "log.pub")
    assert (code, "--server to fetch it from" in err) == (2, True)


@pytest.mark.parametrize("form", ["json", "npy", "bytes"])
def test_the_servers_own_answer_to_several_strips(run: Run, site: Path, server: Any, tmp_path: Path, form: str) -> None:
    strips = np.stack([np.sin(np.arange(2500) / rate) for rate in (17, 29, 41)]).astype("<f4")[:, np.newaxis]
    body = {"inputs": strips.astype(float).tolist(), "sampling_rate": 250}
    _, _, answer = server.predict(body, "r-1")
    (tmp_path / "answer.json").write_bytes(answer)
    sent = tmp_path / f"sent.{form}"
    if form == "json":
        sent.write_text(json.dumps(body))
    elif form == "npy":
        np.save(sent, strips)
    else:
        sent.write_bytes(strips.tobytes())

    code, out, err = run("receipt", tmp_path / "answer.json", "--key", site / "log.pub", "--input", sent)
    assert (code, err) == (0, "")
    assert out.count("verified: record, answer, input") == 3
    wrong = tmp_path / "wrong.bin"
    wrong.write_bytes(strips.tobytes()[:-1])
    code, _, err = run("receipt", tmp_path / "answer.json", "--key", site / "log.pub", "--input", wrong)
    assert (code, "is not 3 strips" in err) == (2, True)


def test_the_library_fetches_proofs(site: Path, server: Any, asked: Path) -> None:
    with Client(server.url, token=server.token) as client:
        proof = client.proof(0)
        assert verify(proof, LogKey.read(site / "log.pub")).record["event"] == "predict"
        with pytest.raises(UnknownRecord):
            client.proof(7)
        with pytest.raises(ClientError, match="is not the index"):
            client.proof(-1)
