"""The benchmark of serving is trusted only as far as its own checks: its generator, its references, its verdicts."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCH = Path(__file__).parent / "serve"
OWN = ("machine", "peers", "processes", "servers", "stripnet", "verdicts", "wire")

RIGHT = np.array([[0.25, 1.0], [0.5, -2.0]], np.float32)


@pytest.fixture(scope="module")
def modules() -> Iterator[Callable[[str], ModuleType]]:
    paths, threads = list(sys.path), torch.get_num_threads()
    sys.path[:0] = [str(BENCH.parent), str(BENCH)]
    yield importlib.import_module
    sys.path[:] = paths
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]


# --- the generator against servers that answer what they are told to


class Fake:
    """An HTTP server on loopback that answers the ``n``-th question of the file as ``answer(n)`` says."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.seen: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                self.seen.append(data)
                answer = self._answer(int(data.rpartition(b"\r\n\r\n")[2]))
                if not answer:
                    return
                half = len(answer) // 2  # an answer may come in parts
                connection.sendall(answer[:half])
                connection.sendall(answer[half:])

    def close(self) -> None:
        self._listener.close()


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body


def as_json(number: int) -> bytes:
    return http(json.dumps({"data": {"scores": [RIGHT[number].tolist()], "note": [1]}}).encode())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("gcc is missing: `make system` installs it")
    path = tmp_path_factory.mktemp("generator") / "generator"
    source = str(BENCH / "generator.c")
    command = [
        "gcc",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-o",
        str(path),
        source,
    ]
    subprocess.run([*command, "-lm"], check=True, timeout=60)
    return path


@pytest.fixture
def load(
    program: Path, modules: Callable[[str], ModuleType], tmp_path: Path
) -> Iterator[Callable[..., dict[str, Any]]]:
    running: list[Fake] = []

    def step(
        answer: Callable[[int], bytes], *, mark: bytes = b'"scores":', connections: int = 1, seconds: float = 0.0,
        rate: float = 0.0,
    ) -> dict[str, Any]:  # fmt: skip
        server = Fake(answer)
        running.append(server)
        questions = [
            (b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n%d" % number, row) for number, row in enumerate(RIGHT)
        ]
        modules("wire").write(tmp_path / "questions", questions, mark)
        words = [server.port, connections, seconds, rate, 0, tmp_path / "questions"]
        done = subprocess.run(
            [str(program), *map(str, words)], input="\n", capture_output=True, text=True, timeout=60, check=True
        )
        ready, found = done.stdout.splitlines()
        assert ready == "ready"
        return {**json.loads(found), "said": done.stderr, "asked": len(server.seen)}

    yield step
    for server in running:
        server.close()


def test_a_closed_loop_asks_on_every_connection_and_counts_every_answer(load: Callable[..., dict[str, Any]]) -> None:
    once = load(as_json, connections=3)
    assert (once["right"], once["asked"], once["wrong"], once["refused"], once["broken"]) == (3, 3, 0, 0, 0)

    longer = load(as_json, connections=2, seconds=0.3)
    assert longer["right"] == longer["asked"] > 6, "nothing is asked that is not waited for"
    assert 0.25 < longer["seconds"] < 5
    assert 0 < longer["p50_ms"] <= longer["p99_ms"] <= longer["max_ms"]


def test_an_open_loop_keeps_its_rate_and_counts_from_when_a_request_was_due(
    load: Callable[..., dict[str, Any]],
) -> None:
    kept = load(as_json, connections=8, seconds=1.0, rate=100)
    assert 60 < kept["right"] + kept["unasked"] < 140

    held = threading.Lock()

    def slow(number: int) -> bytes:
        with held:
            threading.Event().wait(0.1)
        return as_json(number)

    late = load(slow, connections=2, seconds=1.0, rate=100)
    assert late["unasked"] > 30
    assert late["max_ms"] > 500, "a server that falls behind cannot hide it"


@pytest.mark.parametrize(
    "body",
    [
        b'{"scores": [0.25, 1.001]}', b'{"scores": [0.25]}', b'{"scores": [0.25, 1.0, 3]}', b'{"scores": [null, 1]}',
        b'{"scores": []}', b'{"scores": ', b"{}", b"", b'{"scores": [0.5, -2.0]}',
    ],
)  # fmt: skip
def test_other_numbers_fewer_or_more_are_wrong(load: Callable[..., dict[str, Any]], body: bytes) -> None:
    found = load(lambda _: http(body))
    assert (found["right"], found["wrong"]) == (0, 1)
    assert found["said"].startswith("wrong: HTTP 200")


def test_an_answer_given_to_another_question_is_wrong(load: Callable[..., dict[str, Any]]) -> None:
    found = load(lambda number: as_json(1 - number), connections=2)
    assert (found["right"], found["wrong"]) == (0, 2)


def test_binary_numbers_are_an_answers_last_bytes(load: Callable[..., dict[str, Any]]) -> None:
    right = load(lambda number: http(b'{"head": 1}' + RIGHT[number].tobytes()), mark=b"", connections=2)
    assert (right["right"], right["wrong"]) == (2, 0)
    wrong = load(lambda number: http(RIGHT[1 - number].tobytes()), mark=b"", connections=2)
    assert (wrong["right"], wrong["wrong"]) == (0, 2)
    short = load(lambda number: http(RIGHT[number].tobytes()[1:]), mark=b"")
    assert (short["right"], short["wrong"]) == (0, 1)


def test_refusals_and_broken_connections_are_neither_right_nor_wrong(load: Callable[..., dict[str, Any]]) -> None:
    refused = load(lambda number: http(as_json(number), 503))
    assert (refused["right"], refused["wrong"], refused["refused"], refused["status"]) == (0, 0, 1, 503)

    broken = load(lambda _: b"")
    assert (broken["right"], broken["wrong"], broken["broken"]) == (0, 0, 1)


# --- the models


def test_every_model_has_answers_that_can_be_told_apart(modules: Callable[[str], ModuleType]) -> None:
    models = modules("servers.bench_models")
    for name, model in models.MODELS.items():
        right = models.references(name)
        assert right.shape == (model.inputs, model.outputs)
        assert models.samples(name).shape == (model.inputs, *model.shape)
    assert np.array_equal(models.references("small"), models.references("small")), "every process makes the same model"


def test_answers_that_are_too_close_are_noticed(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = modules("servers.bench_models")
    made = models.samples("null")
    made[5] = made[2]
    monkeypatch.setattr(models, "samples", lambda _: made)
    with pytest.raises(AssertionError, match="null: an answer is too close to that of input 2"):
        models.references("null")


def test_a_batch_gives_what_its_rows_give_alone(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = modules("servers.bench_models")
    monkeypatch.setenv("BENCH_MODEL", "small")
    rows = models.samples("small")[:32]
    near = models.ABSOLUTE + models.RELATIVE * np.abs(models.references("small")[:32])
    assert (np.abs(models.Engine()(rows) - models.references("small")[:32]) <= near).all()


# --- the peers


def test_every_peer_has_pins_and_a_server(modules: Callable[[str], ModuleType]) -> None:
    peers = modules("peers")
    for peer in peers.PEERS.values():
        if peer.packages:
            lines = [line for line in peers.pins(peer.packages).split("\n") if line and not line.startswith("#")]
            assert lines
            assert all(line.count("==") == 1 for line in lines), lines
    assert {"mosec", "triton", "mlserver", "litserve", "bentoml"} == {p.packages for p in peers.PEERS.values()} - {""}
    for script in (BENCH / "servers").glob("with_*.py"):
        assert script.name in (BENCH / "peers.py").read_text() or script.stem in (BENCH / "peers.py").read_text()


def test_a_servers_cost_is_that_of_its_whole_tree(modules: Callable[[str], ModuleType]) -> None:
    processes = modules("processes")
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ninput()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn + chr(10)!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE) as process:
        for _ in range(200):
            used = processes.cpu_seconds(processes.tree(process.pid))
            if len(used) == 2 and sum(used.values()) > 0.3:
                break
            threading.Event().wait(0.05)
        process.communicate(b"\n")
    assert len(used) == 2
    assert 0.3 < sum(used.values()) < 3


def runs(pid: int) -> bool:
    """Whether a process is there, and not only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_server_sleeps_but_for_its_turns_and_takes_its_children_along(
    modules: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    processes = modules("processes")
    busy = "while True: pass"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}]); input()"

    def spent() -> float:
        return sum(processes.cpu_seconds(pids).values())

    command = [sys.executable, "-c", f"import os\nos.dup2(os.pipe()[0], 0)\n{parent}"]
    with processes.started("busy", 0, "small", command, {}, folder=tmp_path, core=0) as server:
        for _ in range(200):
            pids = server.pids()
            if len(pids) == 2 and spent() > 0.2:
                break
            threading.Event().wait(0.05)
        assert len(pids) == 2
        server.pause()
        before = spent()
        threading.Event().wait(0.3)
        assert spent() - before < 0.05  # a signal takes a moment
        with server.awake():
            threading.Event().wait(0.3)
        assert spent() > before
        server.end()  # its child now belongs to nobody that the server's tree would show
    for _ in range(100):
        if not any(map(runs, pids)):
            return
        threading.Event().wait(0.05)
    raise AssertionError("a child was left behind")


# --- the verdicts


def step(server: str, number: int, cpu: float, **other: Any) -> dict[str, Any]:
    about = {"kind": "step", "model": "small", "encoding": "json", "connections": 64, "offered": 0, "right": 1}
    found = {"rate": 1e6 / cpu, "p50_ms": cpu / 1e3, "p99_ms": cpu / 1e3, "foreign": 0.0, "generator": 0.1}
    return {**about, **found, "server": server, "round": number, "cpu_us": cpu, **other}


LABELS = {"mosec": "Mosec", "fastapi": "FastAPI"}


def test_a_verdict_is_by_the_median_and_by_every_round(modules: Callable[[str], ModuleType]) -> None:
    spread = modules("verdicts").Spread
    assert spread.of([1.05, 1.2, 1.3]).verdict == "win"
    assert spread.of([0.99, 1.2, 1.3]).verdict == "parity", "one round is on the other side of 1"
    assert spread.of([1.01, 1.09, 1.3]).verdict == "parity", "the median is too small"
    assert spread.of([0.7, 0.8, 0.95]).verdict == "loss"
    assert spread.of([0.7, 0.8, 1.01]).verdict == "parity"
    assert str(spread.of([2.0, 1.0, 4.0])) == "2.00 (1.00–4.00)"


def test_ratios_are_taken_within_a_round(modules: Callable[[str], ModuleType]) -> None:
    verdicts = modules("verdicts")
    steps = [step("pericard", 0, 100), step("mosec", 0, 120), step("pericard", 1, 1000), step("mosec", 1, 1200)]
    steps.append(step("mosec", 2, 1))  # a round without ours
    found = verdicts.Results(steps, LABELS).ratio(("small", "json", 64), "mosec")
    assert (found.low, found.high) == (pytest.approx(1.2), pytest.approx(1.2))


def by_text(goals: list[Any], text: str) -> Any:
    return next(goal for goal in goals if text in goal.text)


def test_goals_name_where_they_were_missed(modules: Callable[[str], ModuleType]) -> None:
    verdicts = modules("verdicts")
    steps = [step("pericard", 0, 100), step("mosec", 0, 90), step("fastapi", 0, 300)]
    goals = verdicts.goals(verdicts.Results(steps, LABELS))

    assert str(by_text(goals, "all but Mosec")).endswith("reached, 1 of 1")
    assert "NOT reached in 1 of 1:\n  - small json 64 Mosec: 0.90" in str(by_text(goals, "against Mosec"))
    assert "NOT reached in 1 of 1:\n  - small json 64: Mosec 0.90" in str(by_text(goals, "0.95 of the best peer"))
    assert str(by_text(goals, "bare model's")).endswith("not measured")
    near = verdicts.Results([step("pericard", 0, 100), step("mosec", 0, 96)], LABELS)
    assert not by_text(verdicts.goals(near), "0.95 of the best peer").missed


def test_saturation_latency_and_tail_are_held_against_the_same_round(modules: Callable[[str], ModuleType]) -> None:
    verdicts = modules("verdicts")
    resnet = {"model": "resnet", "encoding": "binary"}
    alone = {"kind": "alone", "model": "resnet", "round": 0, "samples": {"1": 40.0, "32": 50.0}, "fdatasync_ms": 0.2}
    steps = [
        step("pericard", 0, 20_000, **resnet, rate=44.0),
        step("pericard", 0, 20_000, **resnet, connections=1, rate=40.0, p50_ms=1.15),
        step("fastapi", 0, 30_000, **resnet, connections=1, p50_ms=1.0),
        step("pericard", 0, 20_000, **resnet, offered=20.0, p99_ms=9.0),
        step("fastapi", 0, 20_000, **resnet, offered=20.0, p99_ms=8.0),
    ]
    results = verdicts.Results([alone, *steps], LABELS)
    goals = verdicts.goals(results)

    assert "resnet binary: 0.88" in str(by_text(goals, "bare model's"))
    assert str(by_text(goals, "one connection")).endswith("reached, 1 of 1")
    assert "resnet binary: 9.00 ms, FastAPI 8.00 ms" in str(by_text(goals, "p99"))


def test_the_report_says_what_is_missing_and_when_the_machine_was_not_quiet(
    modules: Callable[[str], ModuleType],
) -> None:
    verdicts, describe = modules("verdicts"), modules("machine").describe
    alone = {"kind": "alone", "model": "small", "round": 0, "samples": {"1": 10.0}, "fdatasync_ms": 0.2}
    missing = {"kind": "missing", "reason": "mosec: pip: no such release"}
    machine = {**describe(), "versions": {"torch": "2"}}

    quiet = verdicts.report(verdicts.Results([alone, missing, step("pericard", 0, 100)], LABELS), machine)
    assert "- not measured: mosec: pip: no such release" in quiet
    assert "| small json 64 | 100 | – | – |" in quiet
    assert "not quiet" not in quiet
    noisy = verdicts.Results([alone, step("pericard", 0, 100, foreign=0.4)], LABELS)
    assert "not quiet" in verdicts.report(noisy, machine)
