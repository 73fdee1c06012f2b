"""The command line, from the outside: words, exit codes, and what leaves the machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from pericard_client.cli import main

HOSPITAL = Path(__file__).parents[2] / "data" / "hospital"
Run = Callable[..., tuple[int, str, str]]


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


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_table(run: Run, ecg: Path) -> None:
    code, out, err = run("predict", ecg)
    assert (code, err) == (0, "")
    shown = words(out)
    assert f"{ecg} read 12-lead ECG, group 1 of 2 (ORIGINAL, RHYTHM): 12 leads, 1000 Hz, 10.0 s" in shown
    assert "analysed lead II, resampled to 250 Hz, 1 x 10 s" in shown
    assert "start s score verdict receipt" in shown
    assert " 0.0 0." in shown
    assert "below threshold 0 " in shown
    assert "worst 0." in shown
    assert "(threshold 0.9)" in shown
    assert "model ecg-anomaly 1.0.0 (sequence 1)" in shown
    for name in ("manifest 5e5e", "publisher pub-1", "runtime abab", "licence valid", "log pericard/1"):
        assert name in shown


def flat_in_the_middle(path: Path) -> Path:
    beats = 0.5 * np.sin(np.arange(360 * 34) / 10)
    beats[360 * 9 : 360 * 21] = 0.2
    beats[360 * 25] = 9.0
    np.save(path, beats)
    return path


NPY = ("--sampling-rate", "360", "--unit", "mV", "--leads", "MLII")


def test_each_window_has_its_own_verdict(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("predict", flat_in_the_middle(tmp_path / "a.npy"), *NPY)
    assert code == 0
    rows = [words(line) for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert rows[1] == "10.0 not interpretable 1 flat signal on lead II"
    assert rows[2] == "20.0 1.000 anomalous 2"
    assert rows[3] == "24.0 1.000 anomalous 3 6.0 s overlap"
    assert "worst 1.000 at 20.0 s (threshold 0.9)" in words(out)


def test_json_is_the_same_with_whole_receipts(run: Run, tmp_path: Path) -> None:
    path = flat_in_the_middle(tmp_path / "a.npy")
    code, out, err = run("predict", path, *NPY, "--out", "json")
    assert (code, err) == (0, "")
    [recording] = json.loads(out)["recordings"]
    assert recording["file"] == str(path)
    assert recording["recording"] | {"source": ""} == {
        "source": "",
        "leads": ["MLII"],
        "sampling_rate": 360.0,
        "seconds": 34.0,
        "acquired": None,
    }
    assert recording["sent"]["sampling_rate"] == 250
    assert recording["model"]["manifest"] == "5e" * 32
    assert recording["threshold"] == 0.9
    assert recording["worst"] == {"score": 1.0, "start": 20.0}
    first, flat, _, last = recording["windows"]
    assert first["receipt"] == {"log": "pericard/1", "index": 0, "leaf": "1e" * 32, "opening_key": "0c" * 32}
    assert len(first["outputs"]["timeline"]) == 157
    assert (flat["score"], flat["verdict"], flat["outputs"]) == (None, "not interpretable", {})
    assert flat["error"]["detail"] == "flat signal on lead II"
    assert (last["start"], last["overlap"]) == (24.0, 6.0)


def test_a_window_without_an_answer_is_a_failure(run: Run, tmp_path: Path, server: Any) -> None:
    good = server.one

    def fail_second(strip: list[float]) -> dict[str, Any]:
        error = {"code": "backend-failed", "detail": "the computation failed"}
        return {"status": "error", "error": error} if server.answers == 1 else good(strip)

    server.one = fail_second
    np.save(tmp_path / "a.npy", np.sin(np.arange(360 * 20) / 10))
    code, out, err = run("predict", tmp_path / "a.npy", *NPY)
    assert code == 1
    assert words(next(line for line in out.splitlines() if "10.0 " in line[:10])) == "10.0 error the computation failed"
    assert err == f"pericard-client: error: {tmp_path}/a.npy: 1 of 2 windows have no answer: the computation failed\n"


def test_a_recording_without_any_score(run: Run, tmp_path: Path, server: Any) -> None:
    np.save(tmp_path / "flat.npy", np.full(3600, 0.1))
    code, out, _ = run("predict", tmp_path / "flat.npy", *NPY)
    assert code == 0
    assert "worst no window has a score" in words(out)
    server.description["parameters"]["score"]["threshold"] = None
    code, out, _ = run("predict", flat_in_the_middle(tmp_path / "a.npy"), *NPY)
    assert "1.000 no threshold declared" in words(out)
    assert "worst 1.000 at 20.0 s model" in words(out)
    assert "threshold not declared" in words(run("model", "ecg-anomaly")[1])
    del server.description["parameters"]["score"]
    code, out, _ = run("predict", flat_in_the_middle(tmp_path / "a.npy"), *NPY)
    assert "0.0 no threshold declared" in words(out)


def test_nothing_of_the_patient_is_sent(run: Run, changed: Callable[..., Path], server: Any) -> None:
    def plant(dataset: Dataset) -> None:
        dataset.PatientName, dataset.PatientID = "Planted^Name", "PLANTED-1"
        dataset.AccessionNumber, dataset.InstitutionName = "PLANTED-2", "Planted Hospital"

    code, out, err = run("predict", changed(plant), "--out", "json")
    assert code == 0
    sent = b"".join(each.body + repr(each.headers).encode() + each.path.encode() for each in server.seen)
    assert b"lanted" not in sent.lower()
    assert b"changed.dcm" not in sent
    assert set(json.loads(server.seen[-1].body)) == {"model", "inputs", "sampling_rate", "unit", "leads"}
    assert "lanted" not in (out + err).lower()


def test_no_resample_shows_the_servers_refusal(run: Run, ecg: Path, server: Any) -> None:
    code, out, err = run("predict", "--no-resample", ecg)
    assert (code, out) == (1, "")
    request_id = server.seen[-1].headers["x-request-id"]
    assert f"{ecg}: sampling_rate: got 1000 Hz, needs 250 Hz (contract-mismatch" in err
    body = json.loads(server.seen[-1].body)
    assert (body["sampling_rate"], np.shape(body["inputs"])) == (1000, (1, 1, 10_000))
    assert request_id


def test_one_bad_file_does_not_keep_the_others(run: Run, ecg: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"%PDF-1.7")
    code, out, err = run("predict", bad, ecg, HOSPITAL / "synthetic_muse.dcm", "--out", "json")
    assert code == 2
    assert err.startswith(f"pericard-client: error: {bad}: neither a DICOM nor an NPY file, but a PDF document\n")
    assert "pericard-client: hint: export" in err
    first, *rest = json.loads(out)["recordings"]
    assert first["error"]["code"] == "unreadable-file"
    assert all(each["windows"][0]["status"] == "ok" for each in rest)
    assert len(rest) == 2


def test_a_refused_file_is_named_and_does_not_keep_the_others(run: Run, ecg: Path, server: Any) -> None:
    refusal = server.problem(422, "invalid-input", "no", x_request_id="abc")
    server.faults.extend([server.answered({"models": ["ecg-anomaly"]}), server.answered(server.description), refusal])
    code, out, err = run("predict", ecg, ecg, "--out", "json")
    assert code == 1
    assert err == f"pericard-client: error: {ecg}: no (invalid-input, request abc)\n"
    first, second = json.loads(out)["recordings"]
    assert (first["error"]["status"], first["error"]["request_id"]) == (422, "abc")
    assert second["worst"]


def test_an_unavailable_server_ends_the_run(run: Run, ecg: Path, server: Any) -> None:
    server.faults.extend([server.problem(503, "overloaded", "the queue is full", retry_after="0")] * 3)
    code, out, err = run("predict", ecg, ecg, "--out", "json")
    assert code == 4
    assert "the queue is full (overloaded)" in err
    assert len(json.loads(out)["recordings"]) == 1
    assert len(server.seen) == 3
    code, _, err = run("predict", ecg, "--server", "http://127.0.0.1:1", "--retries", "0")
    assert code == 4
    assert "no connection" in err
    server.faults.append(server.late(0.5))
    assert run("predict", ecg, "--timeout", "0.2")[0] == 4
    server.seen.clear()
    code, out, _ = run("predict", ecg, ecg, "--token-file", __file__, "--out", "json")
    assert (code, len(json.loads(out)["recordings"]), server.seen) == (2, 1, [])  # no token: nothing is sent at all
    server.faults.append(server.problem(403, "forbidden", "not yours"))
    code, out, _ = run("predict", ecg, ecg, "--out", "json")
    assert (code, len(json.loads(out)["recordings"])) == (1, 1)


def test_another_model_than_the_one_expected(run: Run, ecg: Path, server: Any) -> None:
    assert run("predict", ecg, "--expect-manifest", server.manifest)[0] == 0
    code, out, err = run("predict", ecg, "--expect-manifest", "00" * 32)
    assert (code, out) == (5, "")
    assert "was expected" in err
    assert all(each.path != "/predict" for each in server.seen[-2:])  # it was not even sent
    server.identity["sequence"] = 2
    code, _, err = run("predict", ecg)
    assert code == 5
    assert "replaced since its description was read" in err


def test_which_model(run: Run, ecg: Path, server: Any) -> None:
    server.names = ["ecg-anomaly", "ecg-other"]
    code, _, err = run("predict", ecg)
    assert code == 2
    assert "the token may use 2: ecg-anomaly, ecg-other" in err
    assert run("predict", ecg, "--model", "ecg-anomaly")[0] == 0
    code, _, err = run("predict", ecg, "--model", "ecg-missing")
    assert code == 1
    assert "(unknown-model)" in err
    assert "pericard-client model lists" in err


def test_a_lead_the_model_does_not_take(run: Run, ecg: Path) -> None:
    code, _, err = run("predict", ecg, "--lead", "V1")
    assert code == 2
    assert f"error: {ecg}: model ecg-anomaly takes lead II or MLII; V1 was asked for" in err


def test_a_picture(run: Run, ecg: Path, tmp_path: Path, server: Any) -> None:
    assert run("predict", ecg, "--plot", tmp_path / "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    server.seen.clear()
    code, _, err = run("predict", ecg, "--plot", tmp_path / "a.jpg")
    assert (code, server.seen) == (1, [])  # refused before an answer was asked for
    assert ".png or .svg" in err
    code, out, err = run("predict", ecg, "--plot", tmp_path / "absent" / "a.png", "--out", "json")
    assert code == 1
    assert "no such file" in err
    assert [each["worst"]["start"] for each in json.loads(out)["recordings"]] == [0.0]  # the answer stands
    code, _, err = run("predict", ecg, ecg, "--plot", tmp_path / "a.png")
    assert code == 2
    assert "--plot draws one FILE" in err


def test_ready(run: Run, server: Any) -> None:
    assert run("ready") == (0, "ready\n", "")
    server.faults.append(server.answered({"ready": False}, 503))
    assert run("ready") == (4, "not ready\n", "")


def test_model(run: Run, server: Any) -> None:
    server.names = ["a", "b"]
    assert run("model") == (0, "a\nb\n", "")
    assert json.loads(run("model", "--out", "json")[1]) == {"models": ["a", "b"]}
    shown = words(run("model", "ecg-anomaly")[1])
    for expected in (
        "model ecg-anomaly 1.0.0 (sequence 1) manifest 5e",
        "takes ecg FP32 [-1, 1, 2500] gives score FP32 [-1]; timeline FP32 [-1, 157]",
        "signal 250 Hz, mV, lead II or MLII threshold 0.9 licence valid, until 2027-11-23 intended tests",
    ):
        assert expected in shown
    described = json.loads(run("model", "ecg-anomaly", "--out", "json")[1])
    assert described["licence_not_after"] == "2027-11-23 00:00:00+00:00"
    for key in ("signal", "score", "timeline", "licence", "licence_not_after", "intended_use"):
        del server.description["parameters"][key]
    assert "signal not declared threshold not declared licence not stated" in words(run("model", "ecg-anomaly")[1])


def test_the_token_is_never_an_argument(run: Run, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("ready", "--token", "abc")
    assert (code, server.seen) == (2, [])
    assert err.startswith("pericard-client: error: no such option '--token'")
    monkeypatch.delenv("PERICARD_TOKEN")
    code, _, err = run("model")
    assert code == 1
    assert "hint: name a file that holds a valid token" in err
    (tmp_path / "token").write_text(server.token)
    assert run("model", "--token-file", tmp_path / "token")[0] == 0
    monkeypatch.setenv("PERICARD_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("PERICARD_TOKEN", "wrong")
    assert run("model")[0] == 0
    code, _, err = run("model", "--token-file", tmp_path / "absent")
    assert code == 2
    assert "no such file" in err


def test_usage(run: Run, monkeypatch: pytest.MonkeyPatch, ecg: Path) -> None:
    for arguments in ((), ("predict",), ("predict", ecg, "--as-rate", "250"), ("predict", ecg, "--timeout", "x")):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("pericard-client: error: ")
        assert err.endswith("pericard-client: hint: pericard-client --help\n")
    monkeypatch.delenv("PERICARD_SERVER")
    code, _, err = run("ready")
    assert code == 2
    assert "missing option '--server'" in err


def test_tls(run: Run, tls_server: Any, certificate: Path) -> None:
    code, _, err = run("ready", "--server", tls_server.url)
    assert code == 1
    assert "self-signed" in err
    assert "hint: give the certificate authority of the server with --ca FILE" in err
    assert run("ready", "--server", tls_server.url, "--ca", certificate)[0] == 0


def test_words_of_others_cannot_drive_the_terminal(run: Run, server: Any, ecg: Path) -> None:
    server.identity["publisher"] = server.description["parameters"]["publisher"] = "a\x1b[2Jb\r\nc"
    server.description["parameters"]["intended_use"] = "[bold]x[/bold]\x07"
    code, out, _ = run("predict", ecg)
    assert code == 0
    assert "\x1b" not in out
    assert "\r" not in out
    assert "a?[2Jb  c" in out
    assert "[bold]x[/bold]?" in run("model", "ecg-anomaly")[1]


HEAVY = ("numpy", "scipy", "pydicom", "httpx2", "rich", "matplotlib")


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["model", "-h"], ["--version"]])
def test_help_is_fast_because_it_loads_nothing(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom pericard_client.cli import main\n"
        f"code = main({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "Exit codes" in done.stdout or arguments == ["--version"]


def program(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pericard_client", *map(str, arguments)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PERICARD_")} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


def test_the_program(server: Any, ecg: Path) -> None:
    environment = {"PERICARD_SERVER": server.url, "PERICARD_TOKEN": server.token}
    done = program("predict", ecg, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ecg-anomaly 1.0.0" in done.stdout
    done = program("predict", ecg, **environment, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert program("predict").returncode == 2


def test_a_reader_that_has_enough(server: Any, ecg: Path) -> None:
    environment = os.environ | {"PERICARD_SERVER": server.url, "PERICARD_TOKEN": server.token}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "pericard_client", "predict", str(ecg)]
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
