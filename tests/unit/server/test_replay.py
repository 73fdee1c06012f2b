"""Replaying an answer from its receipt: the same bits, or the one reason why not.

``Ledger`` answers as the engine does (a padded batch, the rows' places, commitments under each record's opening key)
and lets a test write a record that says something else. Logs, models and keys are real.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
import torch
from serving import GOOD, OTHER, SAMPLES, row
from speaking import Said, Say, refused

from pericard import environment, errors, sealed
from pericard.audit import AuditLog, commit, opening_key
from pericard.engine.replay import Claim, Here, conditions, replay
from pericard.errors import ReplayError, ReplayImpossible, leaves
from pericard.keys import LogKey, Recipient
from pericard.runtime import export, exported, host
from pericard.runtime.loader import LoadedModel
from pericard.sealed import Term

EVERY = tuple(range(1, 9))
PAGE = Path(__file__).resolve().parents[3] / "docs" / "guide" / "replay.md"

Prediction = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def _one_description() -> Iterator[None]:
    """The runtime is described once: it is the same one for every verb that runs in this process."""
    found = environment.describe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "describe", lambda: found)
        yield


@pytest.fixture(scope="module")
def here() -> str:
    return environment.host_class(host.arithmetic("cpu")).digest


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> serving.Site:
    made = serving.Site(tmp_path_factory.mktemp("replay"))
    made.seal(buckets=EVERY)
    return made


@pytest.fixture(scope="module")
def model(own_site: serving.Site) -> Iterator[LoadedModel]:
    with own_site.load(own_site.folder / "ecg-anomaly.sealed") as found:
        yield found


class Ledger:
    """A log of answers."""

    def __init__(self, folder: Path, site: serving.Site, *, host_class: str | None) -> None:
        self.folder, self.site, self.key = folder, site, site.log_key
        self.directory = folder / "audit"
        self.log = AuditLog.open(self.directory, key=self.key)
        start = {"event": "start"} if host_class is None else {"event": "start", "host": {"cpu": {"class": host_class}}}
        self.log.commit([start])

    def answer(self, served: LoadedModel, rows: list[bytes], /, **changes: Any) -> list[Prediction]:
        """Answer a batch, and record it; ``changes`` go into every record, and None takes a member out."""
        about, bucket = served.description, served.bucket(len(rows))
        batch = np.zeros((bucket, 1, SAMPLES), np.float32)
        batch[: len(rows)] = [np.frombuffer(each, np.float32).reshape(1, SAMPLES) for each in rows]
        outputs = served.infer((batch,))
        made, records = [], []
        for place, asked in enumerate(rows):
            key = opening_key(self.key.commitment_key, self.log.next_index + place)
            said = b"".join(output[place].tobytes() for output in outputs)
            record = {
                "event": "predict",
                "outcome": "ok",
                "model": {"name": about.name, "version": about.version, "manifest": served.manifest_hash},
                "runtime": environment.describe().digest,
                "device": served.device,
                "bucket": bucket,
                "place": place,
                "threads": 1,
                "input": commit(key, "input", asked),
                "answer": commit(key, "answer", changes.get("answer", said)),
            } | {name: value for name, value in changes.items() if name != "answer"}
            records.append({name: value for name, value in record.items() if value is not None})
            outs = {
                output.spec.name: found[place].tolist() for output, found in zip(about.outputs, outputs, strict=True)
            }
            made.append({"status": "ok", "outputs": outs, "receipt": {"opening_key": key.hex()}})
        for entry, prediction in zip(self.log.commit(records), made, strict=True):
            prediction["receipt"] |= {"log": self.log.origin, "index": entry.index, "leaf": entry.leaf}
        return made

    def words(self, receipt: Any, strip: bytes, **changes: Any) -> list[str | Path]:
        """What ``pericard replay`` is called with; ``changes`` are options, and None takes one out."""
        (self.folder / "answer.json").write_text(json.dumps(receipt))
        (self.folder / "strip.bin").write_bytes(strip)
        folder = self.site.folder
        options = {
            "input": self.folder / "strip.bin", "log": self.directory, "key": folder / "log.pub",
            "model": folder / "ecg-anomaly.sealed", "identity": folder / "identity.key",
            "publishers": folder / "vendor.pub",
        } | changes  # fmt: skip
        given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
        return ["replay", self.folder / "answer.json", *given]


@pytest.fixture
def ledger(tmp_path: Path, own_site: serving.Site, here: str) -> Iterator[Ledger]:
    made = Ledger(tmp_path, own_site, host_class=here)
    yield made
    made.log.close()


def strips(count: int, seed: int = 0) -> list[bytes]:
    return [row(values) for values in np.random.default_rng(seed).normal(size=(count, SAMPLES)).clip(-2, 2).tolist()]


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_every_bucket_and_place_gives_the_same_bits(ledger: Ledger, model: LoadedModel, here: str) -> None:
    for bucket in EVERY:
        asked = strips(bucket, seed=bucket)
        for place, prediction in enumerate(ledger.answer(model, asked)):
            claim, wanted = read(ledger, prediction)
            found = replay(wanted, claim, asked[place], model, Here(wanted.runtime, here, 1), host=here)

            assert (found.conditions.bucket, found.conditions.place) == (bucket, place)
            assert (found.same_runtime, found.same_host, found.saved) == (True, True, False)


def test_the_verdict_is_one_line(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    asked = strips(8)
    fourth = ledger.answer(model, asked)[3]

    said = say(*ledger.words(fourth, asked[3]))

    assert (said.status, said.err) == (0, "")
    assert said.out == (
        f"same bits: record 4, ecg-anomaly 1.0.0, bucket 8, place 3, 1 thread, cpu, runtime "
        f"{environment.describe().digest[:16]}\n"
    )


def test_the_servers_configuration_says_where_everything_is(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    good, _ = ledger.answer(model, [row(GOOD), row(OTHER)])
    config = ledger.site.folder / "server.yaml"
    config.write_text(f"models: [ecg-anomaly.sealed]\naudit: {{directory: {ledger.directory}, key: log.key}}\n")
    explicit = ("log", "key", "model", "identity", "publishers")

    said = say(*ledger.words(good, row(GOOD), config=config, **dict.fromkeys(explicit)))

    assert (said.status, said.err) == (0, "")


def test_json_says_the_conditions(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    good, _ = ledger.answer(model, [row(GOOD), row(OTHER)])

    said = say(*ledger.words(good, row(GOOD)), "--json")

    found = json.loads(said.out)
    assert (said.status, found["same_bits"], found["same_runtime"], found["same_host"]) == (0, True, True, True)
    assert (found["bucket"], found["place"], found["threads"], found["device"]) == (2, 0, 1, "cpu")
    assert (found["log"], found["index"], found["manifest"]) == (ledger.log.origin, 1, model.manifest_hash)
    assert found["saved_answer"] is True


def test_the_recorded_number_of_threads_is_used(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    (good,) = ledger.answer(model, [row(GOOD)], threads=2)
    try:
        said = say(*ledger.words(good, row(GOOD)))
        assert (said.status, host.threads()) == (0, 2)
        assert "2 threads" in said.out
    finally:
        exported.set_threads(1)


@pytest.mark.parametrize("form", ["answer", "prediction", "receipt"])
def test_a_receipt_comes_in_three_forms(ledger: Ledger, model: LoadedModel, say: Say, form: str) -> None:
    predictions = ledger.answer(model, [row(GOOD), row(OTHER)])
    answer = {"model": {}, "runtime": "", "licence": "valid", "request_id": "r", "predictions": predictions}
    given = {"answer": answer, "prediction": predictions[1], "receipt": predictions[1]["receipt"]}[form]

    said = say(*ledger.words(given, row(OTHER)), *(["--item", "1"] if form == "answer" else []))

    assert said.status == 0
    assert "place 1" in said.out


def written(folder: Path, form: str) -> Path:
    """Two strips, or one, in one of the forms in which a strip is kept."""
    both = np.array([GOOD, OTHER])
    path = folder / f"strips.{form.partition(' ')[0]}"
    if form == "npy":
        np.save(path, both.astype(np.float32)[:, np.newaxis])
    elif form == "npy of doubles, one":
        np.save(path, both[1])
    elif form == "csv":
        path.write_text("\n".join(",".join(map(repr, values)) for values in both.tolist()))
    elif form == "csv with a lead a column":
        path.write_text("II\n" + "\n".join(map(repr, OTHER)) + "\n")
    elif form == "json":
        path.write_text(json.dumps({"model": "ecg-anomaly", "inputs": [GOOD, OTHER], "unit": "mV", "leads": ["II"]}))
    elif form == "json beside a bad strip":
        path.write_text(json.dumps({"inputs": [[[1.0, 2.0]], [OTHER]]}))
    elif form == "json of base64":
        units = np.round(both * 1000).astype("<i2").tobytes()  # every value is a whole number of thousandths
        body = {"inputs": base64.b64encode(units).decode(), "dtype": "int16", "gain": 1000}
        path.write_text(json.dumps(body))
    elif form == "json of the inputs":
        path.write_text(json.dumps(OTHER))
    else:
        path.write_bytes(both.astype("<f4").tobytes())
    return path


@pytest.mark.parametrize(
    "form",
    [
        "npy", "npy of doubles, one", "csv", "csv with a lead a column", "json", "json beside a bad strip",
        "json of base64", "json of the inputs", "raw",
    ],
)  # fmt: skip
def test_a_strip_comes_in_any_form(ledger: Ledger, model: LoadedModel, say: Say, form: str) -> None:
    _, other = ledger.answer(model, [row(GOOD), row(OTHER)])

    said = say(*ledger.words(other, b"", input=written(ledger.folder, form)), "--item", "1")

    assert (said.status, said.err) == (0, ""), said.err


# --- what differs -----------------------------------------------------------------------------------------------------


def outcome(say: Say, words: list[Any], code: str) -> Said:
    """Run a verb that must be refused with the message of one leaf and no other."""
    raised: list[type[BaseException]] = []
    original = errors.PericardError.__init__

    def noted(self: errors.PericardError, message: str, *, hint: str | None = None) -> None:
        raised.append(type(self))
        original(self, message, hint=hint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors.PericardError, "__init__", noted)
        said = say(*words)
    refused(said)
    assert raised[-1] is leaves()[code], (raised, said)
    return said


def test_another_input(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    good, _ = ledger.answer(model, [row(GOOD), row(OTHER)])
    nearly = bytearray(row(GOOD))
    nearly[0] ^= 1

    outcome(say, ledger.words(good, bytes(nearly)), "replay-input-differs")
    said = outcome(say, ledger.words(good["receipt"], bytes(nearly)), "replay-input-differs")
    assert "or this is not its opening key" in said.err


def test_another_opening_key(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    good, other = ledger.answer(model, [row(GOOD), row(OTHER)])
    good["receipt"]["opening_key"] = other["receipt"]["opening_key"]

    outcome(say, ledger.words(good, row(GOOD)), "replay-opening-key-wrong")


def test_a_saved_answer_that_was_changed(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    good["outputs"]["score"] += 0.25

    said = outcome(say, ledger.words(good, row(GOOD)), "replay-saved-answer-differs")
    assert "the largest difference is 0.25, in score" in said.err


def test_saved_outputs_of_another_model(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    for outputs in ({"score": 1}, {"score": [1, 2], "timeline": [1, 2]}, {"score": "x", "timeline": [1, 2]}):
        outcome(say, ledger.words(good | {"outputs": outputs}, row(GOOD)), "replay-receipt-invalid")


def test_another_version_of_the_model(ledger: Ledger, model: LoadedModel, say: Say, tmp_path: Path) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    newer = tmp_path / "newer.sealed"
    term = Term(Recipient.read(ledger.site.folder / "identity.pub"), 0, (1 << 40) - 1, 0)
    about = serving.description(version="1.0.1", sequence=2, buckets=EVERY)
    plain = serving.artifact()
    sealed.seal(newer, about, (len(plain), [plain]), signer=ledger.site.vendor, terms=(term,))

    said = outcome(say, ledger.words(good, row(GOOD), model=newer), "replay-other-model")
    assert "was answered by ecg-anomaly 1.0.0" in said.err
    assert "newer.sealed" in said.err


def test_a_device_that_is_not_here(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    (good,) = ledger.answer(model, [row(GOOD)], device="cuda:0")

    said = outcome(say, ledger.words(good, row(GOOD)), "replay-impossible")
    assert "was computed on cuda:0, and none is here" in said.err


def test_a_batch_size_that_the_model_is_not_asked_at(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    (good,) = ledger.answer(model, [row(GOOD)], bucket=16)

    said = outcome(say, ledger.words(good, row(GOOD)), "replay-impossible")
    assert "in a batch of 16" in said.err


def test_other_threads_than_the_recorded_ones(ledger: Ledger, model: LoadedModel, here: str) -> None:
    (good,) = ledger.answer(model, [row(GOOD)], threads=3)
    claim, wanted = read(ledger, good)

    with pytest.raises(ReplayImpossible, match="computed with 3 threads, here are 1 thread"):
        replay(wanted, claim, row(GOOD), model, Here(wanted.runtime, here, 1), host=here)


def test_the_same_bits_on_another_host_and_runtime_are_the_same_bits(
    model: LoadedModel, own_site: serving.Site, tmp_path: Path, say: Say
) -> None:
    ledger = Ledger(tmp_path, own_site, host_class="ab" * 32)
    (good,) = ledger.answer(model, [row(GOOD)], runtime="cd" * 32)

    said = say(*ledger.words(good, row(GOOD)))

    assert said.status == 0
    assert "another runtime" in said.err
    assert "another class of host" in said.err
    ledger.log.close()


@pytest.mark.parametrize(
    ("recorded", "runtime", "code", "words"),
    [
        ("here", None, "replay-answer-differs", "are the recorded ones"),
        ("elsewhere", None, "replay-other-host", "this host is of another class"),
        (None, None, "replay-other-host", "no class of host was recorded"),
        ("here", "cd" * 32, "replay-other-runtime", "not the recorded cdcdcdcd"),
    ],
)
def test_other_bits_are_refused_with_the_reason_that_is_known(
    model: LoadedModel, own_site: serving.Site, tmp_path: Path, say: Say, here: str,
    recorded: str | None, runtime: str | None, code: str, words: str,
) -> None:  # fmt: skip
    ledger = Ledger(tmp_path, own_site, host_class={"here": here, "elsewhere": "ab" * 32}.get(str(recorded)))
    other = np.array([0.5, 0.25, 0.125], "<f4")
    changes = {} if runtime is None else {"runtime": runtime}
    (good,) = ledger.answer(model, [row(GOOD)], answer=other.tobytes(), **changes)

    assert words in outcome(say, ledger.words(good["receipt"], row(GOOD)), code).err
    good["outputs"] = {"score": 0.5, "timeline": [0.25, 0.125]}
    said = outcome(say, ledger.words(good, row(GOOD)), code)
    assert "the bits differ; the largest difference is " in said.err
    ledger.log.close()


def test_a_model_whose_rows_disturb_each_other_within_its_tolerance_is_found(
    own_site: serving.Site, tmp_path: Path, say: Say, here: str
) -> None:
    class Leaky(torch.nn.Module):
        def forward(self, ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            score = ecg[:, 0].mean(1) + 1e-6 * ecg.mean()
            return score, ecg[:, 0, :2] * 1.0

    path = tmp_path / "leaky.pt2"
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Leaky().eval(), (torch.zeros(2, 1, SAMPLES),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    about = serving.description("leaky", buckets=EVERY)
    term = Term(Recipient.read(own_site.folder / "identity.pub"), 0, (1 << 40) - 1, 0)
    sealed.seal(path.with_suffix(".sealed"), about, export.pack(path, about), signer=own_site.vendor, terms=(term,))
    ledger = Ledger(tmp_path, own_site, host_class=here)
    with own_site.load(path.with_suffix(".sealed")) as leaky:
        assert leaky.batching is None, "its publisher's tolerance hides it"
        alone, (among, *_) = ledger.answer(leaky, [row(GOOD)]), ledger.answer(leaky, [row(GOOD), *strips(3)])
    model = path.with_suffix(".sealed")

    assert say(*ledger.words(alone[0], row(GOOD), model=model)).status == 0
    said = outcome(say, ledger.words(among, row(GOOD), model=model), "replay-answer-differs")
    assert "rows of a batch disturb each other" in said.err
    ledger.log.close()


# --- the evidence -----------------------------------------------------------------------------------------------------


def read(ledger: Ledger, prediction: Prediction) -> tuple[Claim, Any]:
    from pericard.audit.receipt import receipt as made

    found = prediction["receipt"]
    claim = Claim(found["log"], found["index"], found["leaf"], bytes.fromhex(found["opening_key"]))
    return claim, conditions(made(ledger.directory, claim.index).record, claim)


def test_a_receipt_of_another_record(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    good, other = ledger.answer(model, [row(GOOD), row(OTHER)])
    for member, value in (("index", other["receipt"]["index"]), ("leaf", other["receipt"]["leaf"]), ("index", 0)):
        changed_one = good | {"receipt": good["receipt"] | {member: value}}
        said = outcome(say, ledger.words(changed_one, row(GOOD)), "audit-record-altered")
        assert "one of the two was altered" in said.err


@pytest.mark.parametrize(("old", "new"), [(b'"bucket":2', b'"bucket":8'), (b'"threads":1', b'"threads":2')])
def test_a_record_that_was_tampered_with(ledger: Ledger, model: LoadedModel, say: Say, old: bytes, new: bytes) -> None:
    import zlib

    good, _ = ledger.answer(model, [row(GOOD), row(OTHER)])
    (segment,) = ledger.directory.glob("*.log")
    data = bytearray(segment.read_bytes())
    at = data.index(old)
    data[at : at + len(old)] = new
    start = data.rindex(b'{"answer"', 0, at) - 9  # the frame's header: length, checksum, type
    length = int.from_bytes(data[start : start + 4], "little")
    checksum = zlib.crc32(data[start + 8 : start + 9 + length])
    data[start + 4 : start + 8] = checksum.to_bytes(4, "little")  # what anybody can do
    segment.write_bytes(data)

    outcome(say, ledger.words(good, row(GOOD)), "audit-record-altered")


def test_a_log_of_another_key(ledger: Ledger, model: LoadedModel, say: Say, tmp_path: Path) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    LogKey.generate(tmp_path / "other.key").verifier.write(tmp_path / "other.pub")

    outcome(say, ledger.words(good, row(GOOD), key=tmp_path / "other.pub"), "replay-receipt-invalid")
    forged = good | {"receipt": good["receipt"] | {"log": AuditLogOf(tmp_path / "other.pub").origin}}
    outcome(say, ledger.words(forged, row(GOOD), key=tmp_path / "other.pub"), "audit-log-invalid")


class AuditLogOf:
    """The name that a log of a key gets."""

    def __init__(self, path: Path) -> None:
        from pericard.audit import default_origin
        from pericard.keys import LogVerifier

        self.origin = default_origin(LogVerifier.read(path))


def test_a_record_beyond_the_log(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    good["receipt"]["index"] = 99

    outcome(say, ledger.words(good, row(GOOD)), "audit-log-invalid")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": "not-interpretable"}, "of an answer that was not-interpretable"),
        ({"event": "token-created"}, "of the event token-created"),
        ({"place": None}, "does not say how its answer was computed"),
        ({"threads": "1"}, "does not say how its answer was computed"),
        ({"device": 0}, "does not say how its answer was computed"),
        ({"model": "ecg"}, "does not say how its answer was computed"),
        ({"place": 1}, "place 1 of 1 is not in a batch"),
    ],
)
def test_a_record_without_an_answer(
    ledger: Ledger, model: LoadedModel, say: Say, changes: dict[str, Any], words: str
) -> None:
    (good,) = ledger.answer(model, [row(GOOD)], **changes)

    assert words in outcome(say, ledger.words(good, row(GOOD)), "replay-nothing").err


def test_the_last_start_before_the_answer_says_which_host(
    ledger: Ledger, model: LoadedModel, say: Say, here: str
) -> None:
    (first,) = ledger.answer(model, [row(GOOD)])
    ledger.log.commit([{"event": "start", "host": {"cpu": {"class": "ab" * 32}}}])
    (second,) = ledger.answer(model, [row(GOOD)])

    assert json.loads(say(*ledger.words(first, row(GOOD)), "--json").out)["same_host"] is True
    assert json.loads(say(*ledger.words(second, row(GOOD)), "--json").out)["same_host"] is False


# --- what is no receipt, and no strip ---------------------------------------------------------------------------------


RECEIPT = {"log": "pericard/0", "index": 1, "leaf": "ab" * 32, "opening_key": "cd" * 32}


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing", "[]", "null", "[" * 100_000, '{"predictions": []}', '{"predictions": [{}, {}]}',
        '{"status": "error", "error": {}}', json.dumps(RECEIPT | {"index": True}), json.dumps(RECEIPT | {"index": -1}),
        json.dumps(RECEIPT | {"leaf": "AB" * 32}), json.dumps(RECEIPT | {"opening_key": "cd" * 31}),
        json.dumps(RECEIPT | {"log": 7}), json.dumps({"status": "ok", "outputs": [], "receipt": RECEIPT}),
    ],
)  # fmt: skip
def test_what_is_no_receipt(ledger: Ledger, say: Say, text: str) -> None:
    words = ledger.words({}, row(GOOD))
    (ledger.folder / "answer.json").write_text(text)

    outcome(say, words, "replay-receipt-invalid")


def test_of_several_one_must_be_chosen(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    predictions = ledger.answer(model, [row(GOOD), row(OTHER)])

    for options in ([], ["--item", "2"]):
        words = [*ledger.words({"predictions": predictions}, row(GOOD)), *options]
        assert "holds 2 predictions" in outcome(say, words, "replay-receipt-invalid").err
        words = [*ledger.words(predictions[0], row(GOOD) + row(OTHER)), *options]
        assert "holds 2 strips" in outcome(say, words, "invalid-input").err


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.bin", b""), ("x.bin", b"123"), ("x.json", b"{"), ("x.json", b'{"inputs": [1, 2]}'), ("x.json", b"{}"),
        ("x.json", b'{"inputs": "text"}'), ("x.json", b"[" * 100_000), ("x.csv", b""), ("x.csv", b"1,2\n3\n"),
        ("x.csv", b"\xff"), ("x.npy", b"\x93NUMPY"), ("x.npy", b""),
    ],
)  # fmt: skip
def test_what_is_no_strip(ledger: Ledger, model: LoadedModel, say: Say, name: str, data: bytes) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    (ledger.folder / name).write_bytes(data)

    outcome(say, ledger.words(good, b"", input=ledger.folder / name), "invalid-input")


def test_a_pickle_in_an_array_is_not_opened(ledger: Ledger, model: LoadedModel, say: Say) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    np.save(ledger.folder / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    outcome(say, ledger.words(good, b"", input=ledger.folder / "x.npy"), "invalid-input")


def test_options_that_do_not_go_together(ledger: Ledger, model: LoadedModel, say: Say, tmp_path: Path) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])

    refused(say(*ledger.words(good, row(GOOD), key=None)), "go together", status=2)
    refused(say(*ledger.words(good, row(GOOD), config=tmp_path / "server.yaml")), "give either --config", status=2)
    refused(say(*ledger.words(good, row(GOOD), input=tmp_path / "none.bin")), "does not exist", status=2)


def test_every_reason_stands_on_the_page() -> None:
    codes = {code for code, kind in leaves().items() if issubclass(kind, ReplayError)}
    text = PAGE.read_text()

    assert codes
    assert {code for code in codes if f"| `{code}` |" not in text} == set()


def test_the_model_on_another_device_than_recorded(ledger: Ledger, model: LoadedModel, here: str) -> None:
    (good,) = ledger.answer(model, [row(GOOD)])
    claim, wanted = read(ledger, good)

    with pytest.raises(ReplayImpossible, match="computed on cuda:1, the model is on cpu"):
        replay(changed(wanted, device="cuda:1"), claim, row(GOOD), model, Here(wanted.runtime, here, 1), host=here)
