"""A stand-in server on loopback that answers to the contract, and does wrong when told to; and what tests send it."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom.data import get_testdata_file

from pericard_client.models import (
    ModelIdentity,
    ModelMetadata,
    ScoreDescription,
    SignalContract,
    TensorSpec,
    TimelineDescription,
)

TOKEN = "stand-in-token"
MANIFEST = "5e" * 32
LENGTH = 2500
FRAMES = 157
IDENTITY = {"name": "ecg-anomaly", "version": "1.0.0", "sequence": 1, "manifest": MANIFEST, "publisher": "pub-1"}
DESCRIPTION = {
    "name": "ecg-anomaly",
    "versions": ["1"],
    "platform": "pytorch_exported",
    "inputs": [{"name": "ecg", "datatype": "FP32", "shape": [-1, 1, LENGTH]}],
    "outputs": [
        {"name": "score", "datatype": "FP32", "shape": [-1]},
        {"name": "timeline", "datatype": "FP32", "shape": [-1, FRAMES]},
    ],
    "parameters": {key: value for key, value in IDENTITY.items() if key != "name"}
    | {
        "runtime": "ab" * 32,
        "intended_use": "tests",
        "licence": "valid",
        "licence_not_after": "2027-11-23T00:00:00Z",
        "signal": {"sampling_rate": 250, "unit": "mV", "leads": [["II", "MLII"]]},
        "score": {"output": "score", "threshold": 0.9},
        "timeline": {"output": "timeline", "frame_seconds": 0.064},
    },
}

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def problem(status: int, code: str, detail: str, **headers: str) -> Reply:
    body = {"type": f"https://pericard.example/problems/{code}", "status": status, "code": code, "detail": detail}
    named = {"content-type": "application/problem+json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return status, named, json.dumps(body).encode()


def answered(body: object, status: int = 200) -> Reply:
    return status, {"content-type": "application/json"}, json.dumps(body).encode()


def dropped(handler: BaseHTTPRequestHandler) -> Reply | None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return None


def late(seconds: float) -> Callable[[BaseHTTPRequestHandler], Reply | None]:
    def wait(handler: BaseHTTPRequestHandler) -> Reply | None:
        time.sleep(seconds)
        return dropped(handler)

    return wait


def trickled(handler: BaseHTTPRequestHandler) -> Reply | None:
    """A byte now and then: no single read waits for long, and the whole never comes."""
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    try:
        for _ in range(40):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        pass
    return None


Fault = Reply | Callable[[BaseHTTPRequestHandler], "Reply | None"]


@dataclass
class StandIn:
    """The server; ``faults`` are met by the next requests, one each, before it behaves."""

    url: str
    seen: list[Seen] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    identity: dict[str, Any] = field(default_factory=lambda: dict(IDENTITY))
    description: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(DESCRIPTION)))
    names: list[str] = field(default_factory=lambda: ["ecg-anomaly"])
    answers: int = 0

    # Replies and misdeeds, at hand for the tests.
    problem = staticmethod(problem)
    answered = staticmethod(answered)
    dropped = staticmethod(dropped)
    late = staticmethod(late)
    trickled = staticmethod(trickled)
    token = TOKEN
    manifest = MANIFEST

    def paths(self) -> list[str]:
        return [each.path for each in self.seen]

    def answer(self, request: Seen) -> Reply:
        if request.path == "/readyz":
            return answered({"ready": True})
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return problem(401, "unauthenticated", "no valid credential was given")
        if request.path == "/v2/models":
            return answered({"models": self.names})
        if request.path == "/v2/models/ecg-anomaly":
            return answered(self.description)
        if request.path == "/predict":
            return self.predict(json.loads(request.body), request.headers["x-request-id"])
        return 404, {"x-error-code": "unknown-model"}, b'{"error": "no model of that name is served"}'

    def predict(self, body: dict[str, Any], request_id: str) -> Reply:
        if body["sampling_rate"] != 250:
            return problem(422, "contract-mismatch", f"sampling_rate: got {body['sampling_rate']} Hz, needs 250 Hz")
        predictions = [self.one(strip[0]) for strip in body["inputs"]]
        top = {"model": self.identity, "runtime": "ab" * 32, "licence": "valid", "request_id": request_id}
        return answered(top | {"predictions": predictions})

    def one(self, strip: list[float]) -> dict[str, Any]:
        receipt = {"log": "pericard/1", "index": self.answers, "leaf": "1e" * 32, "opening_key": "0c" * 32}
        self.answers += 1
        if max(strip) - min(strip) < 1e-3:
            error = {"code": "not-interpretable", "detail": "flat signal on lead II"}
            return {"status": "not_interpretable", "error": error, "receipt": receipt}
        frames = [strip[16 * k : 16 * k + 16] for k in range(FRAMES)]
        timeline = [round(min(1.0, (max(frame) - min(frame)) / 2), 3) for frame in frames]
        return {"status": "ok", "outputs": {"score": max(timeline), "timeline": timeline}, "receipt": receipt}


def serve(context: ssl.SSLContext | None = None) -> Iterator[StandIn]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            request = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            stand_in.seen.append(request)
            fault = stand_in.faults.popleft() if stand_in.faults else None
            reply = fault(self) if callable(fault) else fault or stand_in.answer(request)
            if reply is None:
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in (headers | {"content-length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...  # a client that hangs up is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    stand_in = StandIn(f"{scheme}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def server() -> Iterator[StandIn]:
    yield from serve()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1, signed by itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "stand-in.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[StandIn]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve(context)


@pytest.fixture(scope="session")
def ecg() -> Path:
    """A real 12-lead recording: 10 s at 1000 Hz, an original rhythm and a median beat."""
    return Path(str(get_testdata_file("waveform_ecg.dcm")))


@pytest.fixture
def changed(ecg: Path, tmp_path: Path) -> Callable[[Callable[[pydicom.Dataset], None]], Path]:
    """A copy of the real recording with something changed."""

    def change(edit: Callable[[pydicom.Dataset], None]) -> Path:
        dataset = pydicom.dcmread(ecg)
        edit(dataset)
        path = tmp_path / "changed.dcm"
        dataset.save_as(path, enforce_file_format=True)
        return path

    return change


@pytest.fixture
def metadata() -> ModelMetadata:
    return ModelMetadata(
        identity=ModelIdentity("ecg-anomaly", "1.0.0", 1, MANIFEST, "pub-1"),
        versions=("1",),
        platform="pytorch_exported",
        inputs=(TensorSpec("ecg", "FP32", (-1, 1, LENGTH)),),
        outputs=(TensorSpec("score", "FP32", (-1,)), TensorSpec("timeline", "FP32", (-1, FRAMES))),
        runtime="ab" * 32,
        intended_use="tests",
        licence="valid",
        licence_not_after=None,
        signal=SignalContract(250.0, "mV", (("II", "MLII"),)),
        score=ScoreDescription("score", 0.9),
        timeline=TimelineDescription("timeline", 0.064),
    )
