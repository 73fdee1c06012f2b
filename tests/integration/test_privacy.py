"""Secrets and identifiers, planted wherever a caller or an operator can put them, and then looked for everywhere.

Looked for in what stays or is shown to others: the daemon's own words, every file that it wrote, its metrics, the text
log, and its processes as any user of the host sees them. A response goes to the very caller who sent the request: it
may repeat the name of a field, a parameter or a model, so that its words can be acted upon, but no value and no secret.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from integration_site import Daemon, Site, collect, environment

from pericard.keys import Identity, LogKey

pytestmark = pytest.mark.integration

NAME = "Lovelace"  # stands in everything that is planted
PASSPHRASE = "correct horse battery Lovelace"
PSEUDONYM = "study-0417"  # a request id of the allowed form is recorded: the search finds what is there
GUESSED = "pcd_lovelace22_" + "L0velace" * 5 + "abc"


def planted(place: str) -> str:
    """What is planted in one place: a patient's name and number."""
    return f"{NAME}^Ada^{place}^MRN-1815-12-10"


class Request(NamedTuple):
    """One request as bytes, and whether its response may repeat a word of it: a name, a unit, a media type."""

    data: bytes
    repeated: bool = False


def request(
    target: str, body: object = None, *lines: str, token: str | None = None, method: str = "", repeated: bool = False
) -> Request:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    kind = [] if any(line.lower().startswith("content-type") for line in lines) else ["Content-Type: application/json"]
    head = [
        f"{method or ('GET' if body is None else 'POST')} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close",
        f"Content-Length: {len(data)}", *kind, *([f"Authorization: Bearer {token}"] if token else []), *lines,
    ]  # fmt: skip
    return Request("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + data, repeated)


def strange(strip: list[float], token: str | None) -> Iterator[Request]:
    """Requests with something of a patient in every place, by a caller whose credential is valid or who has none."""
    body = {"model": "tiny", "inputs": strip, "sampling_rate": 250, "unit": "mV", "leads": ["II"]}
    for name in ("X-Patient", "User-Agent", "Referer", "Cookie", "X-Request-Id", "traceparent", "Forwarded"):
        yield request("/predict", body, f"{name}: {planted(name)}", token=token)
    for name in ("Accept", "Accept-Encoding", "Expect", "X-Forwarded-For", "X-Client-Subject", "Origin"):
        yield request("/predict", body, f"{name}: {planted(name)}", token=token)
    for name in ("Content-Type", "Content-Encoding"):
        yield request("/predict", body, f"{name}: {planted(name)}", token=token, repeated=True)
    for name in ("Model", "Version", "Sampling-Rate", "Unit", "Leads", "Dtype", "Gain"):
        kind = "Content-Type: application/octet-stream"
        yield request("/predict", b"\0" * 8, kind, f"X-Pericard-{name}: {planted(name)}", token=token, repeated=True)
    text = quote(planted("query"))
    yield request(f"/predict?patient={text}&token={text}", body, token=token)
    yield request(f"/{quote(planted('path'))}", token=token)
    yield request(f"/v2/models/{quote(planted('path'))}", token=token)
    yield request(f"/v2/models/{NAME.lower()}-ada", token=token, repeated=True)
    yield request("/v2", method=NAME.upper(), token=token, repeated=True)
    for field in ("model", "unit", "version"):
        yield request("/predict", {**body, field: planted(field)}, token=token, repeated=True)
    yield request("/predict", {**body, "leads": [planted("leads")]}, token=token, repeated=True)
    yield request("/predict", {**body, "inputs": planted("inputs")}, token=token)
    yield request("/predict", {**body, "inputs": [*strip[1:], planted("inputs")]}, token=token)
    yield request("/predict", {**body, "patient": planted("value")}, token=token)
    yield request("/predict", {**body, planted("field"): 1}, token=token, repeated=True)
    yield request("/predict", f'{{"model": "tiny", "note": "{planted("cut")}'.encode(), token=token)
    yield request("/predict", planted("text").encode(), token=token)
    tensor = {"name": "ecg", "shape": [1, 1, len(strip)], "datatype": "FP32", "data": strip}
    said = {"sampling_rate": 250, "unit": "mV", "leads": "II"}
    inference = {"inputs": [tensor], "parameters": said}
    for place, changed in {
        "id": {"id": planted("id")},
        "model_name": {"model_name": planted("model_name")},
        "tensor": {"inputs": [{**tensor, "name": planted("tensor")}]},
        "datatype": {"inputs": [{**tensor, "datatype": planted("datatype")}]},
        "data": {"inputs": [{**tensor, "data": [planted("data")]}]},
        "parameter": {"parameters": {**said, planted("parameter"): "x"}},
        "value": {"parameters": {**said, "note": planted("value")}},
        "unit": {"parameters": {**said, "unit": planted("unit")}},
        "output": {"outputs": [{"name": planted("output")}]},
    }.items():
        name = place not in {"data", "value"}
        yield request("/v2/models/tiny/infer", {**inference, **changed}, token=token, repeated=name)
    load = {"parameters": {planted("load"): 1}}
    yield request(f"/v2/repository/models/{NAME.lower()}/load", load, token=token, repeated=True)
    yield Request(f"GET / HTTP/1.1\r\n{planted('garbage')}\r\n\r\n".encode())
    yield Request(planted("line").encode() + b"\r\n\r\n")


def credentials() -> Iterator[Request]:
    """Credentials that are not valid, in every form and place."""
    basic = base64.b64encode(f"{NAME}:{PASSPHRASE}".encode()).decode()
    for value in (f"Bearer {GUESSED}", f"Basic {basic}", f"Bearer {planted('token')}", GUESSED, f"Digest {GUESSED}"):
        yield request("/predict", {}, f"Authorization: {value}")
        yield request("/v2", None, f"Proxy-Authorization: {value}", f"X-Api-Key: {value}", f"Cookie: session={value}")
    yield request(f"/v2?token={GUESSED}&access_token={GUESSED}")
    yield request(f"/{GUESSED}")


def exchange(daemon: Daemon, data: bytes) -> bytes:
    host, port = daemon.url.rpartition("/")[2].split(":")
    context = ssl.create_default_context(cafile=str(daemon.site.folder / "tls.crt"))
    received = b""
    with (
        socket.create_connection((host, int(port)), timeout=15) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(data)
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            while part := sock.recv(1 << 16):
                received += part
    return received


def forms(secret: bytes) -> tuple[bytes, ...]:
    """A secret as it could stand somewhere."""
    hexed = secret.hex().encode()
    return (secret, hexed, hexed.upper(), base64.b64encode(secret)[:-2], base64.urlsafe_b64encode(secret)[:-2])


def processes(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


@pytest.fixture
def told_site(site: Site, tmp_path: Path) -> Site:
    """A site whose identity has a passphrase, with a text log, and where refusals do not wait."""
    (site.folder / "passphrase").write_text(f"{PASSPHRASE}\n")
    with (site.folder / "passphrase").open("rb") as given:
        words = ("identity", "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", str(given.fileno()))
        subprocess.run(
            [sys.executable, "-m", "pericard", *words],
            cwd=site.folder, pass_fds=(given.fileno(),), timeout=60, check=True, capture_output=True,
        )  # fmt: skip
    return site


class Everything(NamedTuple):
    """All that a running daemon showed or left behind, by where it was found."""

    found: dict[str, bytes]
    responses: list[tuple[Request, bytes]]


def lived(site: Site, strip: list[float]) -> Everything:
    """The whole life of a daemon that is asked all of it."""
    before = {path for path in site.folder.rglob("*") if path.is_file()}
    found: dict[str, bytes] = {}
    with (site.folder / "passphrase").open("rb") as given, (site.folder / "said").open("wb+") as said:
        config = (site.folder / "server.yaml").read_text()
        (site.folder / "server.yaml").write_text(
            f"{config}identity: {{path: identity.key, unlock: passphrase, passphrase_fd: {given.fileno()}}}\n"
            "refusals_log: {path: refusals.log}\nlimits: {failures: null}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "pericard", "serve", "--config", str(site.folder / "server.yaml")],
            stdout=said, stderr=said, pass_fds=(given.fileno(),), env=environment(site.folder),
        )  # fmt: skip
        try:
            daemon = Daemon(site, process, url_of(process, site.folder / "said"), process.pid)  # type: ignore[arg-type]
            asked = [*strange(strip, site.token), *strange(strip, None), *credentials()]
            asked.append(request("/predict", {}, f"X-Request-Id: {PSEUDONYM}", token=site.token, repeated=True))
            responses = [(one, exchange(daemon, one.data)) for one in asked]
            assert daemon.predict(strip).status == 200
            metrics = daemon.request("/metrics", token=site.metrics_token).body
            found["metrics"] = json.dumps(metrics).encode()
            for pid in processes(process.pid):
                for part in ("cmdline", "environ", "comm"):
                    found[f"/proc/{part} of {pid}"] = Path(f"/proc/{pid}/{part}").read_bytes()
            found["ps"] = subprocess.run(["ps", "axwwe"], capture_output=True, check=True, timeout=20).stdout
        finally:
            process.terminate()
            process.wait(40)
        said.seek(0)
        found["what it said"] = said.read()
    for path in site.folder.rglob("*"):
        if path.is_file() and path not in before and not path.name.startswith((".coverage", "said")):
            found[str(path.relative_to(site.folder))] = path.read_bytes()
    collect(site.folder)
    return Everything(found, responses)


def url_of(process: subprocess.Popen[bytes], said: Path) -> str:
    for _ in range(900):
        match = re.search(r": serving .* on (\S+)", said.read_text())
        if match:
            return match[1]
        assert process.poll() is None, said.read_text()
        time.sleep(0.1)
    raise AssertionError("the daemon did not start")


def test_no_secret_and_nothing_of_a_patient_is_shown_or_kept(
    told_site: Site, made_site: Site, strip: list[float]
) -> None:
    secrets = {
        "identity": bytes(Identity.read_seed(made_site.folder / "identity.key")),
        "log key": bytes(LogKey.read_secret(made_site.folder / "log.key")),
        "tokens' key": (made_site.folder / "tokens.key").read_bytes(),
        "tls key": base64.b64decode("".join((made_site.folder / "tls.key").read_text().split("\n")[1:-2])),
    }
    texts = {"passphrase": PASSPHRASE, "token": told_site.token, "metrics token": told_site.metrics_token}
    needles = {name: forms(secret) for name, secret in secrets.items()}
    needles |= {name: (text.encode(), base64.b64encode(text.encode())[:-2]) for name, text in texts.items()}
    needles["a guessed token"] = (GUESSED.encode(), GUESSED[-20:].encode())

    everything = lived(told_site, strip)

    everywhere = {**everything.found, "a response": b"".join(data for _, data in everything.responses)}
    leaks = [
        f"{name} in {place}"
        for place, data in everywhere.items()
        for name, several in needles.items()
        if any(form in data for form in several)
    ]
    assert leaks == []
    patient = re.compile(rb"(?i).{0,60}lovelace.{0,60}")
    assert {place: match[0] for place, data in everything.found.items() if (match := patient.search(data))} == {}
    repeated = [
        (asked.data[:200], match[0])
        for asked, data in everything.responses
        if not asked.repeated and (match := patient.search(data))
    ]
    assert repeated == []
    audited = b"".join(data for place, data in everything.found.items() if place.startswith("audit/"))
    assert PSEUDONYM.encode() in audited
    assert b"address=127.0.0.1 count=" in everything.found["refusals.log"]
    assert {"metrics", "ps", "what it said"} <= everything.found.keys()
    statuses = {data[9:12] for _, data in everything.responses}
    assert {b"200", b"400", b"401", b"403", b"404", b"415", b"422"} <= statuses
