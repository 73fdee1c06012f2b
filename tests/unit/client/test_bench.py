"""Load on real servers with known delays: what is hidden, what is counted, what is said.

Other work shares the machine: times are compared with generous bounds, never with each other's milliseconds.
"""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_server import LENGTH_HEADER, SAMPLES, TOKEN, BenchServer, parsed, problem, serving
from integration_site import Daemon, made_site, shared_daemon

from pericard_client.bench.load import Plan, arrivals
from pericard_client.cli import main

__all__ = ["made_site", "shared_daemon"]

Found = tuple[int, dict[str, Any], str]
Bench = Callable[..., Found]


@pytest.fixture
def bench_server() -> Iterator[BenchServer]:
    with serving() as server:
        yield server


@pytest.fixture
def bench(bench_server: BenchServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run ``bench``: the exit code, the JSON document, and what was said beside it."""
    monkeypatch.setenv("PERICARD_SERVER", bench_server.url)
    monkeypatch.setenv("PERICARD_TOKEN", TOKEN)
    monkeypatch.delenv("PERICARD_TOKEN_FILE", raising=False)

    def call(*arguments: object) -> Found:
        code = main(["bench", "--out", "json", "--warmup", "0.2", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else {}, captured.err

    return call


# --- what a stall looks like


STALLED = 60  # the prediction before which the server stands still; past the warm-up at either loop's pace


def test_the_open_loop_shows_a_stall_that_the_closed_loop_hides(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.stall_at, bench_server.stall, bench_server.delay = STALLED, 0.5, 0.005

    _, closed, _ = bench("--concurrency", 1, "--duration", 2)
    bench_server.predictions = 0
    _, opened, _ = bench("--rate", 100, "--arrivals", "uniform", "--duration", 2)

    # Both met the same stall. One worker was asked to wait once; a hundred a second went on being due.
    assert closed["latency_ms"]["max"] > 450
    assert opened["latency_ms"]["max"] > 450
    assert closed["requests"]["sent"] > 120
    assert closed["latency_ms"]["p99"] < 250 < opened["latency_ms"]["p99"]
    assert opened["latency_ms"]["p90"] > 100


def test_a_request_that_cannot_be_sent_has_waited_from_its_time_on(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.stall_at, bench_server.stall = STALLED, 0.5

    code, found, _ = bench("--rate", 100, "--arrivals", "uniform", "--duration", 3, "--concurrency", 1)

    # A single connection: while it waits nothing leaves, and counted from their sending all but one would be quick.
    assert found["latency_ms"]["p95"] > 150
    assert found["requests"]["late"] >= 30
    assert found["requests"]["sent"] + found["requests"]["backlog"] == pytest.approx(300, abs=2)
    assert (code, found["rate_reached"]) == (0, True)  # it had caught up by the end


def test_a_rate_that_the_server_cannot_take_is_said_and_ends_in_time(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.delay = 0.05
    before = time.monotonic()

    code, found, err = bench("--rate", 1000, "--duration", 1, "--concurrency", 4)

    assert time.monotonic() - before < 15
    assert (code, found["rate_reached"]) == (1, False)
    # Four at a time, each for at least 0.05 s, in a second; the 120 that the warm-up could not send are not among them.
    assert 8 <= found["requests"]["sent"] <= 100
    assert found["requests"]["backlog"] > 800
    assert found["requests"]["backlog_seconds"] > 0.3
    assert "pericard-client: error: rate: 1000/s was not reached" in err
    assert "4 connections waited for the server" in err or found["generator"]["bound"]
    assert "hint: latencies of such a run grow" in err


def test_a_stall_past_the_time_out_does_not_vanish(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.stall_at, bench_server.stall = STALLED, 1.5

    code, found, err = bench("--rate", 100, "--arrivals", "uniform", "--duration", 1.5, "--timeout", 0.5)

    assert found["requests"]["failed"]["timed-out"] >= 20
    assert found["latency_ms"]["max"] >= 500
    assert code == 4
    assert "no whole reply within 0.5 s" in err


# --- what is counted


def test_requests_are_counted_after_the_warm_up(bench: Bench, bench_server: BenchServer) -> None:
    code, found, _ = bench("--requests", 40, "--concurrency", 3)

    assert code == 0
    assert (found["requests"]["sent"], found["requests"]["answered"], found["latency_samples"]) == (40, 40, 40)
    assert bench_server.predictions > 41  # the first, and those of the warm-up
    assert found["requests_per_second"] == pytest.approx(40 / found["seconds"])
    assert 1 <= bench_server.connections <= 4


def test_known_delays_make_known_figures(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.delay = 0.1

    _, found, _ = bench("--concurrency", 5, "--duration", 2, "--items", 3)

    assert 100 <= found["latency_ms"]["p50"] < 200
    assert 25 <= found["requests_per_second"] <= 50  # 5 at once, a tenth of a second each
    assert found["strips_per_second"] == pytest.approx(3 * found["requests_per_second"])
    assert found["generator"]["cpu"] < 0.8


def test_failures_are_counted_by_code_and_their_speed_does_not_flatter(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.delay = 0.02
    mixed: list[Any] = [(), problem(503, "overloaded"), problem(422, "invalid-input"), problem(418, "new-in-2030")]
    bench_server.faults.extend([*mixed, None] * 3)  # None: the connection is closed

    code, found, err = bench("--requests", 15, "--concurrency", 1, "--warmup", 0)

    # The first is asked before the load begins; after the fifteenth fault all is well.
    failed = {"overloaded": 3, "invalid-input": 3, "new-in-2030": 3, "connection-lost": 3}
    assert found["requests"]["failed"] == failed
    assert (found["requests"]["sent"], found["requests"]["answered"]) == (15, 3)
    assert found["latency_samples"] == 6  # answers, and what was given up
    assert code == 4
    assert "error: 3 of 15 requests: this is overloaded (overloaded)" in err


def test_a_strip_without_an_answer_makes_its_request_a_failure(bench: Bench, bench_server: BenchServer) -> None:
    receipt = {"log": "pericard/1", "index": 0, "leaf": "1e" * 32, "opening_key": "0c" * 32}
    error = {"code": "not-interpretable", "detail": "flat signal on lead II"}
    strips = [
        {"status": "ok", "outputs": {"score": 0.5}, "receipt": receipt},
        {"status": "not_interpretable", "error": error, "receipt": receipt},
    ]
    model = {"name": "tiny", "version": "1.0.0", "sequence": 1, "manifest": "5e" * 32, "publisher": "p"}
    body = {"model": model, "runtime": "r", "licence": "valid", "request_id": "1", "predictions": strips}
    bench_server.faults.extend([(), (200, {}, json.dumps(body).encode())])

    code, found, err = bench("--requests", 3, "--items", 2, "--concurrency", 1, "--warmup", 0)

    assert found["requests"]["failed"] == {"not-interpretable": 1}
    assert (code, found["requests"]["answered"]) == (1, 2)
    assert "flat signal on lead II" in err


@pytest.mark.parametrize("encoding", ["json", "binary"])
def test_a_server_that_refuses_at_once_gets_no_load(bench: Bench, bench_server: BenchServer, encoding: str) -> None:
    bench_server.faults.append((404, {"x-error-code": "unknown-route"}, b'{"error": "no such route"}'))

    code, found, err = bench("--encoding", encoding)

    assert (code, found, bench_server.predictions) == (1, {}, 1)
    assert "no such route (unknown-route)" in err


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "it is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "does not announce its length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "it is larger than"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}{}", "more came than was asked for"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no colon"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "its headers are larger than"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "not"),
    ],
)
def test_what_is_no_reply_is_refused(bench: Bench, bench_server: BenchServer, raw: bytes, said: str) -> None:
    bench_server.raw = raw

    code, _, err = bench("--requests", 5)

    assert code == 1
    assert said in err


def test_no_server_is_an_error_and_not_a_measurement(bench: Bench) -> None:
    code, found, err = bench("--server", "http://127.0.0.1:1", "--retries", 0)

    assert (code, found) == (4, {})
    assert "no connection" in err


def test_a_server_that_goes_away_is_not_hammered(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.faults.extend([(), *[None] * 10_000])

    code, found, _ = bench("--concurrency", 2, "--duration", 1, "--warmup", 0)

    assert code == 4
    assert 4 <= found["requests"]["failed"]["connection-lost"] <= 24  # each worker pauses a tenth of a second


def test_a_closing_server_costs_connections_and_no_failures(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.raw = None
    ok = (200, {"connection": "close"}, json.dumps({"model_name": "tiny", "outputs": [_score(1)]}).encode())
    bench_server.faults.extend([ok] * 6)

    code, found, _ = bench("--requests", 5, "--encoding", "binary", "--concurrency", 1, "--warmup", 0)

    assert (code, found["requests"]["answered"]) == (0, 5)
    assert bench_server.connections == 1 + 6  # the description's, and one for each reply


def _score(items: int) -> dict[str, Any]:
    return {"name": "score", "datatype": "FP32", "shape": [items], "data": [0.5] * items}


# --- what is sent


def test_json_is_what_the_client_would_send(bench: Bench, bench_server: BenchServer) -> None:
    bench("--requests", 20, "--items", 2, "--concurrency", 2)

    bodies = [json.loads(body) for path, _, body in bench_server.seen if path == "/predict"]
    assert len(bodies) == len(bench_server.seen) > 20
    for body in bodies:
        assert {**body, "inputs": np.shape(body["inputs"])} == {
            "model": "tiny", "inputs": (2, 1, SAMPLES), "sampling_rate": 250, "unit": "uV", "leads": ["II"],
        }  # fmt: skip
        assert all(0.5e3 < np.ptp(strip) < 3e3 for strip in body["inputs"])  # a heart beat, in microvolts
    assert len({json.dumps(body["inputs"]) for body in bodies}) > 8
    ids = [headers["x-request-id"] for _, headers, _ in bench_server.seen]
    assert len(set(ids)) == len(ids)


def test_binary_is_the_open_inference_protocols(bench: Bench, bench_server: BenchServer) -> None:
    code, found, _ = bench("--requests", 20, "--items", 2, "--encoding", "binary")

    assert (code, found["requests"]["answered"]) == (0, 20)
    for path, headers, body in bench_server.seen:
        assert path == "/v2/models/tiny/infer"
        assert headers["content-type"] == "application/octet-stream"
        assert 0 < int(headers[LENGTH_HEADER]) < len(body)
        head, strips = parsed(headers, body)
        assert head["inputs"][0]["name"] == "ecg"
        assert head["inputs"][0]["datatype"] == "FP32"
        assert head["parameters"]["binary_data_output"] is True
        assert strips.shape == (2, 1, SAMPLES)
        assert 0.5e3 < np.ptp(strips[0]) < 3e3


def test_both_encodings_carry_the_same_samples(bench: Bench, bench_server: BenchServer) -> None:
    bench("--requests", 16, "--concurrency", 1, "--warmup", 0, "--seed", 3)
    sent = [json.loads(body)["inputs"] for _, _, body in bench_server.seen]
    bench_server.seen.clear()
    bench("--requests", 16, "--concurrency", 1, "--warmup", 0, "--seed", 3, "--encoding", "binary")
    again = [parsed(headers, body)[1] for _, headers, body in bench_server.seen]
    bench_server.seen.clear()
    bench("--requests", 16, "--concurrency", 1, "--warmup", 0, "--seed", 4, "--encoding", "binary")
    other = [parsed(headers, body)[1] for _, headers, body in bench_server.seen]

    assert np.array_equal(np.float32(sent), np.stack(again))
    assert not np.array_equal(np.stack(again), np.stack(other))


def test_a_recording_instead_of_a_synthetic_one(bench: Bench, bench_server: BenchServer, tmp_path: Path) -> None:
    ramp = np.linspace(-1, 1, 3 * SAMPLES)
    np.save(tmp_path / "a.npy", ramp)
    options = ("--input", tmp_path / "a.npy", "--sampling-rate", 250, "--unit", "mV", "--leads", "II")

    code, _, _ = bench("--requests", 4, "--encoding", "binary", "--concurrency", 1, "--warmup", 0, *options)
    starts = [parsed(headers, body)[1][0, 0, 0] for _, headers, body in bench_server.seen]

    assert code == 0
    assert starts == pytest.approx([1e3 * ramp[place * SAMPLES] for place in (0, 1, 2, 0, 1)])
    code, _, err = bench("--input", tmp_path / "a.npy")
    assert code == 2
    assert "--sampling-rate" in err


def test_more_strips_than_fit_are_refused_before_anything_is_sent(bench: Bench, bench_server: BenchServer) -> None:
    code, _, err = bench("--items", 33)

    assert (code, bench_server.predictions) == (2, 0)
    assert "33 strips of this model need 2 requests" in err


def test_a_model_that_declares_no_signal(bench: Bench, bench_server: BenchServer) -> None:
    del bench_server.description["parameters"]["signal"]
    code, _, err = bench("--duration", 1)
    assert (code, bench_server.predictions) == (2, 0)
    assert "does not declare what signal it was made for" in err


def test_a_type_that_is_not_written_as_binary(bench: Bench, bench_server: BenchServer) -> None:
    bench_server.description["inputs"][0]["datatype"] = "BF16"
    code, _, err = bench("--encoding", "binary")
    assert code == 2
    assert "hint: --encoding json" in err


# --- when it is due


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    even = arrivals(Plan(1, 1, arrivals="uniform", rate=200), 200)
    assert [next(even) for _ in range(3)] == pytest.approx([0, 0.005, 0.01])
    drawn = arrivals(Plan(1, 1, rate=200, seed=7), 200)
    times = np.array([next(drawn) for _ in range(20_000)])
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # the exponential distribution's
    again = arrivals(Plan(1, 1, rate=200, seed=7), 200)
    assert [next(again) for _ in range(5)] == times[:5].tolist()


# --- how it ends, and how it speaks


def test_the_table(
    bench_server: BenchServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERICARD_TOKEN", TOKEN)
    arguments = ["bench", "--server", bench_server.url, "--warmup", "0", "--requests", "30"]
    assert main([*arguments, "--rate", "200"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "model tiny 1.0.0 (sequence 1)",
        "load open loop, 200 requests/s, poisson, at most 256 at once; json, 1 strip a request",
        "answered 30 of 30 requests: ",
        "failed none",
        "late ",
        "backlog 0 due and not sent at the end",
        "generator ",
        "latency p50 p90 p95 p99 p99.9 max",
    ):
        assert words in shown
    assert main([*arguments, "--concurrency", "2", "--items", "2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "load closed loop, 2 at once; json, 2 strips a request" in shown
    assert "backlog" not in shown


def test_ctrl_c_prints_what_was_measured(bench_server: BenchServer) -> None:
    bench_server.delay = 0.02
    command = [sys.executable, "-m", "pericard_client", "bench", "--warmup", "0", "--duration", "60", "--out", "json"]
    environment = os.environ | {"PERICARD_SERVER": bench_server.url, "PERICARD_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        try:
            deadline = time.monotonic() + 30
            while bench_server.predictions < 50 and time.monotonic() < deadline:
                time.sleep(0.02)
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=20)
        finally:
            run.kill()
    found = json.loads(out)
    assert (run.returncode, err) == (130, "")
    assert found["interrupted"]
    assert found["requests"]["answered"] >= 40
    assert found["requests"]["answered"] + found["requests"]["unanswered"] == found["requests"]["sent"]
    assert found["latency_ms"]["p50"] >= 20
    assert found["seconds"] < 30


def test_a_generator_that_is_the_limit_says_so(bench: Bench) -> None:
    # Server and generator share this interpreter and do nothing but talk: the generator cannot wake in time.
    _, found, err = bench("--concurrency", 64, "--duration", 1)

    assert found["generator"]["bound"] == ("warning: the generator was the limit" in err)
    assert found["generator"]["cpu"] > 0.1


@pytest.mark.parametrize(
    "arguments", [("--rate", "0"), ("--rate", "1e9"), ("--concurrency", "513"), ("--items", "0"), ("--duration", "0")]
)
def test_what_cannot_be_asked_for(bench: Bench, bench_server: BenchServer, arguments: tuple[str, str]) -> None:
    code, _, err = bench(*arguments)
    assert (code, bench_server.predictions) == (2, 0)
    assert err.endswith("pericard-client: hint: pericard-client --help\n")


def test_over_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PERICARD_TOKEN", TOKEN)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(context) as server:
        arguments = ["bench", "--server", server.url, "--requests", "20", "--warmup", "0"]
        assert main([*arguments, "--ca", str(certificate)]) == 0
        assert "answered  20 of 20" in capsys.readouterr().out
        assert server.predictions == 21
        assert main(arguments) == 1
        assert "--ca FILE" in capsys.readouterr().err


def test_help_loads_nothing() -> None:
    code = (
        "import sys\nfrom pericard_client.cli import main\ncode = main(['bench', '--help'])\n"
        "print([name for name in ('numpy', 'scipy', 'asyncio', 'rich') if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "the moment the request was due" in " ".join(done.stdout.split())


# --- the product


@pytest.mark.integration
@pytest.mark.parametrize("loop", [("--concurrency", "4"), ("--rate", "30")])
def test_the_real_server(
    shared_daemon: Daemon, loop: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERICARD_TOKEN", shared_daemon.site.token)
    server = ["--server", shared_daemon.url, "--ca", str(shared_daemon.site.folder / "tls.crt")]

    code = main(["bench", *server, *loop, "--requests", "60", "--items", "2", "--warmup", "0.5", "--out", "json"])

    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert code == 0, captured.err
    assert found["model"]["name"] == "tiny"
    assert (found["requests"]["answered"], found["requests"]["failed"]) == (60, {})  # no strip was not interpretable
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
