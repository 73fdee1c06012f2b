"""One edge process's worth: TLS and its reload, the control socket, a stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from answering import catalog

from pericard.edge.main import Edge
from pericard.edge.values import EdgeValues
from pericard.errors import ConfigError
from pericard.keys.certificate import write_self_signed
from pericard.pipe import FrameReader, FrameType, create, encode
from pericard.pipe.region import MIN_SIZE


def values(folder: Path, **changes: Any) -> EdgeValues:
    made = EdgeValues(
        version="test",
        tokens=str(folder / "tokens.json"),
        body_bytes=1 << 20,
        body_seconds=5.0,
        answer_seconds=5.0,
        header_bytes=16 << 10,
        items=8,
        connections=64,
        drain_seconds=1.0,
    )
    return msgspec.structs.replace(made, **changes)


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A new certificate and its key."""
    write_self_signed(folder / f"{name}.key", folder / f"{name}.crt", ("localhost", "127.0.0.1"), days=2)
    return str(folder / f"{name}.crt"), str(folder / f"{name}.key")


class Running:
    """An edge on a thread; requests over its socket, messages over its control socket."""

    def __init__(self, made: EdgeValues, *, control: bool = False) -> None:
        self.edge = Edge(made)
        self.tls = made.certificate is not None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(5)
        self._inner = inner
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(inner if control else None,), daemon=True)
        self._thread.start()
        end = time.monotonic() + 10
        while not self.edge.server.started and time.monotonic() < end:
            time.sleep(0.005)

    def _run(self, control: socket.socket | None) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self.edge.serve(self._listener, control))
        except BaseException as error:  # noqa: BLE001  (close() raises it)
            self.error = error

    def context(self) -> ssl.SSLContext:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        found.check_hostname = False
        found.verify_mode = ssl.CERT_NONE
        return found

    def serial(self, *, name: str | None = "localhost", context: ssl.SSLContext | None = None) -> bytes:
        """The certificate that a new connection gets."""
        client = context or self.context()
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as raw,
            client.wrap_socket(raw, server_hostname=name) as sock,
        ):
            return sock.getpeercert(binary_form=True) or b""

    def live(self) -> int:
        connection: http.client.HTTPConnection
        if self.tls:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=self.context())
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/livez")
            return connection.getresponse().status

    def stopped(self) -> bool:
        self._thread.join(10)
        return not self._thread.is_alive()

    def close(self) -> None:
        self.edge.server.should_exit = True
        assert self.stopped()
        for sock in (self._listener, self.control, self._inner):
            sock.close()
        if self.error is not None:
            raise self.error


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(values(tmp_path), control=True)
    yield made
    made.close()


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Running]:
    crt, key = certificate(tmp_path, "tls")
    made = Running(values(tmp_path, certificate=crt, key=key), control=True)
    yield made
    made.close()


def replace(folder: Path, name: str) -> None:
    for suffix in (".crt", ".key"):
        (folder / f"{name}{suffix}").replace(folder / f"tls{suffix}")


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_it_serves_over_tls(secured: Running) -> None:
    assert secured.live() == 200


def test_tls_1_2_is_refused_unless_asked_for(secured: Running, tmp_path: Path) -> None:
    old = secured.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        secured.serial(context=old)
    assert secured.live() == 200

    crt, key = certificate(tmp_path, "second")
    allowing = Running(values(tmp_path, certificate=crt, key=key, minimum_version="1.2"))
    try:
        assert allowing.serial(context=old)
        older = secured.context()
        with pytest.deprecated_call():
            older.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            allowing.serial(context=older)
    finally:
        allowing.close()


def test_plain_http_on_the_tls_port_harms_nobody(secured: Running) -> None:
    with socket.create_connection(("127.0.0.1", secured.port), timeout=5) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"200" not in sock.recv(100)
    assert secured.live() == 200


def test_a_new_certificate_is_used_after_a_reload(secured: Running, tmp_path: Path) -> None:
    before = secured.serial()
    certificate(tmp_path, "new")
    replace(tmp_path, "new")
    assert secured.serial() == before  # not before somebody says so

    secured.edge.reload()

    after = secured.serial()
    assert after != before
    assert secured.serial(name=None) == after  # also for a client that names no server
    assert secured.live() == 200


def test_an_open_connection_outlives_a_reload(secured: Running, tmp_path: Path) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", secured.port, timeout=5, context=secured.context())
    with contextlib.closing(connection):
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"live":true}'
        certificate(tmp_path, "new")
        replace(tmp_path, "new")
        secured.edge.reload()
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"live":true}'


BAD = ["missing", "empty", "garbage", "another key", "swapped", "a folder"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_certificate_leaves_the_old_one_in_use(
    secured: Running, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    crt, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    before = secured.serial()
    spoil(kind, tmp_path, crt, key)

    secured.control.send(b"reload")
    end = time.monotonic() + 5
    while "stays in use" not in caplog.text and time.monotonic() < end:
        time.sleep(0.01)

    assert "the old one stays in use" in caplog.text
    for _ in range(3):
        assert secured.serial() == before
        assert secured.live() == 200


def spoil(kind: str, folder: Path, crt: Path, key: Path) -> None:
    if kind == "missing":
        crt.unlink()
    elif kind == "empty":
        crt.write_bytes(b"")
    elif kind == "garbage":
        key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif kind == "another key":
        certificate(folder, "other")
        (folder / "other.crt").replace(crt)  # a renewal that is half done
    elif kind == "swapped":
        crt_bytes, key_bytes = crt.read_bytes(), key.read_bytes()
        crt.write_bytes(key_bytes)
        key.write_bytes(crt_bytes)
    else:
        crt.unlink()
        crt.mkdir()


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_certificate_at_the_start_is_an_error(tmp_path: Path, kind: str) -> None:
    crt, key = certificate(tmp_path, "tls")
    spoil(kind, tmp_path, Path(crt), Path(key))

    with pytest.raises(ConfigError, match="tls: certificate"):
        Edge(values(tmp_path, certificate=crt, key=key))


def test_a_reload_without_tls_is_nothing(running: Running) -> None:
    running.edge.reload()

    assert running.live() == 200


# --- the control socket -----------------------------------------------------------------------------------------------


def test_the_supervisor_hands_over_an_engine_and_another_one(running: Running) -> None:
    for number in range(2):
        ours, theirs = socket.socketpair()
        region = create(MIN_SIZE)
        with ours, theirs:
            socket.send_fds(running.control, [b"pipe"], [theirs.fileno(), region])
            os.close(region)
            ours.sendall(encode(FrameType.CATALOG, 0, {**catalog(), "generation": number}))
            assert b"joined" in running.control.recv(100)
            ours.settimeout(5)
            (frame,) = FrameReader().feed(ours.recv(1000))
            assert (frame.type, frame.meta) == (FrameType.HEARD, {"generation": number})
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/metrics")
                assert connection.getresponse().status == 401
            (frame,) = FrameReader().feed(ours.recv(1000))
            assert (frame.type, frame.meta["code"]) == (FrameType.EVENT, "unauthenticated")
        end = time.monotonic() + 5
        while running.edge.link.catalog is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert running.edge.link.catalog is None  # it is gone, and the edge knows


def test_the_engine_is_told_which_policy_is_in_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, text = tmp_path / "policy.yaml", b"roles: {}\nprincipals: {}\n"
    path.write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    made = Running(values(tmp_path, policy=str(path)), control=True)
    ours, theirs = socket.socketpair()
    region = create(MIN_SIZE)
    reader, found = FrameReader(), []

    def events(count: int) -> list[dict[str, Any]]:
        while len(found) < count:
            found.extend(frame.meta for frame in reader.feed(ours.recv(1000)) if frame.type is FrameType.EVENT)
        return found[-1:]

    with ours, theirs:
        ours.settimeout(5)
        socket.send_fds(made.control, [b"pipe"], [theirs.fileno(), region])
        os.close(region)
        for generation in (0, 1):  # once, however often the catalog changes
            ours.sendall(encode(FrameType.CATALOG, 0, {**catalog(), "generation": generation}))
        assert events(1) == [{"event": "policy-loaded", "code": "", "policy": digest}]

        path.write_bytes(text + b"default: allow\n")
        made.control.send(b"reload")

        assert events(2) == [{"event": "policy-refused", "code": "config-invalid", "policy": digest}]
        assert "the policy before it stays in force" in caplog.text
        path.write_bytes(text + b"# again\n")  # without a word, within a second or so
        assert events(3)[0]["event"] == "policy-loaded"
    made.close()


def test_a_broken_policy_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.yaml: cannot be read"):
        Edge(values(tmp_path, policy=str(tmp_path / "policy.yaml")))


def test_a_pipe_that_is_no_socket_harms_nobody(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    read, written = os.pipe()
    region = create(MIN_SIZE)
    socket.send_fds(running.control, [b"pipe"], [read, region])
    for descriptor in (read, written, region):
        os.close(descriptor)
    time.sleep(0.05)

    assert running.live() == 200
    assert running.edge.link.catalog is None


def test_a_region_that_could_shrink_is_not_used(running: Running) -> None:
    ours, theirs = socket.socketpair()
    region = os.memfd_create("region")
    with ours, theirs:
        os.truncate(region, MIN_SIZE)
        socket.send_fds(running.control, [b"pipe"], [theirs.fileno(), region])
        os.close(region)
        theirs.close()
        ours.settimeout(5)
        assert ours.recv(100) == b""  # hung up

    assert running.live() == 200
    assert running.edge.link.catalog is None


def test_asked_to_stop_it_stops(running: Running) -> None:
    assert running.live() == 200

    running.control.send(b"stop")

    assert running.stopped()
    assert running.error is None


def test_a_request_under_way_is_answered_before_the_stop(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        time.sleep(0.05)
        running.control.send(b"stop")
        assert b"401" in sock.recv(1000)
    assert running.stopped()


GONE = """
import asyncio, socket, sys
from pericard.edge.main import Edge
from pericard.edge.values import EdgeValues
import msgspec
control = socket.socket(fileno=int(sys.argv[1]))
listener = socket.create_server(("127.0.0.1", 0))
async def serve():
    await Edge(msgspec.json.decode(sys.argv[2], type=EdgeValues)).serve(listener, control)
print("up", flush=True)
asyncio.run(serve())
"""


@pytest.mark.parametrize("how", ["closed", "nonsense", "terminated"])
def test_without_its_supervisor_it_ends_at_once(tmp_path: Path, how: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        text = msgspec.json.encode(values(tmp_path)).decode()
        child = subprocess.Popen(
            [sys.executable, "-c", GONE, str(theirs.fileno()), text], pass_fds=[theirs.fileno()], stdout=subprocess.PIPE
        )
        with child:
            theirs.close()
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            time.sleep(0.3)
            if how == "closed":
                ours.close()
            elif how == "nonsense":
                ours.send(b"nonsense")
            else:
                child.terminate()
            assert child.wait(10) == (0 if how == "terminated" else 1)  # a signal is a stop in order


def test_an_idle_connection_is_closed_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard.edge.main._KEEP_ALIVE_SECONDS", 0.2)
    running = Running(values(tmp_path))
    try:
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
            for _ in range(2):  # not while it is used
                sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" in sock.recv(1000)
            started = time.monotonic()
            assert sock.recv(1000) == b""
            assert time.monotonic() - started < 3
    finally:
        running.close()


def test_strangers_cannot_fill_the_journal(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for data in (
            b"garbage\r\n\r\n",
            b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nHost: x\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
                sock.sendall(data)
                assert sock.recv(1000)
        assert running.live() == 200

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- refused credentials ----------------------------------------------------------------------------------------------


def test_refusals_wait_over_tls_and_stand_in_the_text_log_when_it_stops(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path, "tls")
    log = tmp_path / "refusals.log"
    made = Running(values(tmp_path, certificate=crt, key=key, failures=1, refusals_log=str(log)))
    connection = http.client.HTTPSConnection("127.0.0.1", made.port, timeout=5, context=made.context())
    taken = []
    try:
        with contextlib.closing(connection):
            for _ in range(2):
                begun = time.monotonic()
                connection.request("POST", "/predict", b"x" * 100_000)  # kept, though its body was not read yet
                assert connection.getresponse().read()
                taken.append(time.monotonic() - begun)
    finally:
        made.close()

    assert taken[0] < 0.25 <= taken[1]
    assert [line.partition("address=")[2] for line in log.read_text().splitlines()] == ["127.0.0.1 count=1"] * 2


def test_a_text_log_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"refusals log .*: cannot be written: no such file"):
        Edge(values(tmp_path, refusals_log=str(tmp_path / "nowhere" / "refusals.log")))
