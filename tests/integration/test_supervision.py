"""The supervisor and whatever may happen to its children: slow, silent, broken, killed, or not to be had."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration_site import Daemon, Site, children_of, in_words, pericard, running, serve

pytestmark = pytest.mark.integration

#: In the interpreter's place: what stands in it decides what becomes of a child. Its arguments are the child's.
WRAPPER = "#!/bin/sh\nexec {python} {words}\n"
HONEST = '"$@"'
BABBLING = '-c \'import socket, sys, time; socket.socket(fileno=int(sys.argv[7])).send(b"["); time.sleep(60)\' "$@"'
BROKEN = (
    "-I -c 'import sys; from pericard.daemon import child; child._engine = None; sys.exit(child.main(sys.argv[5:]))'"
    ' "$@"'
)
BOUND_SECONDS = 20


@pytest.fixture
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the interpreter that the supervisor starts its children with."""
    path = tmp_path_factory.mktemp("bin") / "python"
    become(path, HONEST)
    return path


def become(path: Path, words: str) -> None:
    made = path.with_suffix(".new")
    made.write_text(WRAPPER.format(python=sys.executable, words=words))
    made.chmod(0o755)
    made.replace(path)


def use(interpreter: Path) -> str:
    return f"import sys; sys.executable = {str(interpreter)!r}"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> str:
    """What a daemon said until it ended by itself."""
    try:
        return in_words(process.communicate(timeout=BOUND_SECONDS)[1])
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What systemd would have been told so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        heard: list[str] = []

        def told() -> list[str]:
            while True:
                try:
                    heard.extend(sock.recv(4096).decode().splitlines())
                except BlockingIOError:
                    return heard

        yield told


def test_a_child_that_cannot_be_started_or_babbles_is_tried_again_and_leaves_nothing_behind(
    site: Site, strip: list[float], interpreter: Path, notified: Callable[[], list[str]]
) -> None:
    with running(site, first=use(interpreter)) as daemon:
        until(lambda: any(word.startswith("STATUS=serving tiny 1.0.0 (licensed until ") for word in notified()))
        assert "READY=1" in notified()
        engine = daemon.children()["engine"]
        descriptors = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        interpreter.rename(interpreter.with_suffix(".away"))  # as while an upgrade replaces it
        os.kill(daemon.children()["edge"], signal.SIGKILL)
        until(
            lambda: "STATUS=waiting for the edge, which could not be started: no such file or directory" in notified()
        )
        become(interpreter, BABBLING)
        until(lambda: "STATUS=waiting for the edge, which sent a message that is none" in notified())
        become(interpreter, HONEST)
        daemon.wait_ready()
        assert daemon.predict(strip).status == 200
        assert daemon.children()["engine"] == engine, "one child's trouble is not the other's"
        assert len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) == descriptors
        assert len(children_of(daemon.pid)) == 2, "a zombie, or a child too many"
        assert daemon.stop() == 0
    assert "STOPPING=1" in notified()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (BABBLING, "engine: sent a message that is none"),
        (BROKEN, "engine: something went wrong inside (TypeError)"),
        ("-c 'import os; os.kill(os.getpid(), 9)'", "engine: ended at its start with status -9"),
    ],
    ids=["babbling", "broken", "killed"],
)
def test_a_child_that_never_starts_ends_the_start_in_a_sentence(
    site: Site, interpreter: Path, words: str, sentence: str
) -> None:
    become(interpreter, words)
    said = ended(serve(site, first=f"{use(interpreter)}\nfrom pericard.daemon import supervisor"))
    assert sentence in said or sentence.replace("engine", "edge") in said
    assert said.startswith("pericard: error: ")
    assert "Traceback" not in said


def test_a_start_that_takes_for_ever_is_given_up(site: Site) -> None:
    process = serve(site, first="from pericard.daemon import supervisor; supervisor._START_SECONDS = 0.2")
    said = ended(process)
    assert process.returncode == 1
    assert said.startswith("pericard: error: engine: was not ready after 0.2 seconds")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_is_obeyed_at_once(site: Site, number: signal.Signals) -> None:
    process = serve(site)
    try:
        until(lambda: len(children_of(process.pid)) == 2)
        started = children_of(process.pid)
        process.send_signal(number)
        assert process.wait(timeout=5) == 0
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    finally:
        assert ended(process) == ""


def test_a_signal_to_the_whole_family_still_stops_it_in_order(site: Site, strip: list[float]) -> None:
    with running(site) as daemon:
        before = daemon.children()
        os.kill(before["engine"], signal.SIGTERM)
        assert daemon.predict(strip).status == 200
        assert daemon.children() == before, "only the supervisor stops the engine"
        for pid in (*before.values(), daemon.pid):
            os.kill(pid, signal.SIGTERM)
        assert daemon.process.wait(timeout=BOUND_SECONDS) == 0
    shown = pericard("audit", "show", "audit", "--json", "--limit", 100, cwd=site.folder).stdout
    assert json.loads(shown.splitlines()[-1])["event"] == "stop"


def test_the_engine_has_no_network_socket_and_the_edge_no_file_of_the_log(shared_daemon: Daemon) -> None:
    children = shared_daemon.children()
    held = {
        role: [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()] for role, pid in children.items()
    }
    network = {
        f"socket:[{line.split()[9]}]"
        for table in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    }
    assert not network.intersection(held["engine"])
    assert network.intersection(held["edge"]), "or nothing was looked at"
    assert not [name for name in held["edge"] if name.startswith(str(shared_daemon.site.folder))]


def test_a_log_that_lost_what_was_sent_is_not_waited_for(shared_daemon: Daemon, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    words = ("audit", "forward", shared_daemon.site.folder / "audit", "--cursor", cursor)
    until(lambda: pericard(*words, cwd=tmp_path).stdout != "")  # the head is published when the log is idle
    assert int(cursor.read_text()) > 0
    cursor.write_text("1000000\n")
    refused = pericard(*words, cwd=tmp_path, check=False)
    assert refused.returncode == 1
    assert "1000000 were sent already" in refused.stderr
    assert cursor.read_text() == "1000000\n"
