"""P5: what a proxy says of its clients counts on its own Unix socket, which is its user's alone, and nowhere else."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import serving
from authorities import Authority
from cryptography import x509
from entrances import Opened, Reply, bearer, edge_values, opened, predict_body
from serving import GOOD

from pericard.auth import TokenFile
from pericard.daemon import values
from pericard.engine.main import Engine
from pericard.errors import ConfigError
from pericard.settings import Listen, Settings

POLICY = """
roles:
  reader: {operations: [predict, metadata], models: [ecg-anomaly]}
  elsewhere: {operations: [predict, metadata], models: [ecg-other]}
principals:
  ris: {roles: [reader], certificates: ["uri:spiffe://hospital/ris"]}
  lab: {roles: [elsewhere], certificates: ["uri:spiffe://hospital/lab"]}
"""
NONE = {"x-client-address": "192.0.2.7", "x-client-verify": "NONE"}


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def settings(path: Path | None) -> Settings:
    return Settings(models=("x",), listen=Listen(proxy=None if path is None else str(path)))


@dataclass
class Place:
    """An edge with both listeners, a proxy's authority, and a token."""

    folder: Path
    opened: Opened
    authority: Authority
    token: str

    @property
    def path(self) -> Path:
        return self.folder / "proxy.sock"

    def says(self, principal: str) -> dict[str, str]:
        """What the proxy says of a client that has a principal's certificate."""
        name = x509.UniformResourceIdentifier(f"spiffe://hospital/{principal}")
        pem = self.authority.issue(self.folder, principal, name).read_bytes()
        certificate = pem[pem.index(b"-----BEGIN CERTIFICATE") :]
        return {
            "x-client-address": "192.0.2.9",
            "x-client-verify": "SUCCESS",
            "x-client-certificate": urllib.parse.quote(certificate.decode(), safe=""),
        }

    def ask(self, headers: dict[str, str], *, proxied: bool = True) -> Reply:
        made = UnixConnection(self.path) if proxied else http.client.HTTPConnection("127.0.0.1", self.opened.port, 10)
        with contextlib.closing(made) as connection:
            return send(connection, headers)


def send(connection: http.client.HTTPConnection, headers: dict[str, str], path: str = "/predict") -> Reply:
    body = predict_body(GOOD) if path == "/predict" else None
    named = {**headers, "content-type": "application/json"}
    connection.request("POST" if body else "GET", path, body, named)
    reply = connection.getresponse()
    return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "uvicorn"])
def here(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="pcd") as name:  # a Unix socket's path is short
        folder = Path(name)
        (folder / "policy.yaml").write_text(POLICY)
        token = TokenFile(folder / "tokens.json").create("ris", operations=(), models=(), days=1).token
        made = edge_values(folder / "tokens.json", policy=str(folder / "policy.yaml"), direct=request.param)
        proxy = values.listen_proxy(settings(folder / "proxy.sock"))
        with opened(made, engine, proxy) as edge:
            yield Place(folder, edge, Authority(), token)


def test_the_socket_is_its_owners_alone(here: Place) -> None:
    found = here.path.stat()

    assert stat.S_ISSOCK(found.st_mode)
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, os.geteuid())


def test_on_its_socket_a_proxy_is_believed(here: Place) -> None:
    assert here.ask(here.says("ris")).status == 200
    assert here.ask(here.says("lab")).code == "forbidden"
    assert here.ask(here.says("pacs")).code == "unauthenticated"
    assert here.ask(NONE).code == "unauthenticated"
    assert here.ask({**NONE, **bearer(here.token)}).status == 200


def test_anywhere_else_nobody_is(here: Place) -> None:
    for headers in (here.says("ris"), NONE):
        said = here.ask(headers, proxied=False)
        assert said.code == "unauthenticated"
    # and with a credential of its own, a request is exactly what it is without those headers
    assert here.ask({**here.says("lab"), **bearer(here.token)}, proxied=False).status == 200


def test_each_request_of_a_proxys_connection_is_who_it_is(here: Place) -> None:
    ris, lab = here.says("ris"), here.says("lab")
    with contextlib.closing(UnixConnection(here.path)) as connection:
        for _ in range(3):
            found = [send(connection, headers).status for headers in (ris, lab, NONE, {**NONE, **bearer(here.token)})]
            assert found == [200, 403, 401, 200]
        assert send(connection, ris, "/v2/models").json == {"models": ["ecg-anomaly"]}
        assert send(connection, lab, "/v2/models").json == {"models": ["ecg-other"]}


def test_the_record_has_the_clients_address_and_not_the_proxys(here: Place, site: serving.Site) -> None:
    headers = {**here.says("ris"), "x-client-address": "192.0.2.77", "x-request-id": f"proxied-{os.urandom(4).hex()}"}
    assert here.ask(headers).status == 200

    log = b"".join(path.read_bytes() for path in sorted((site.folder / "audit").rglob("*")) if path.is_file())
    (record,) = [line for line in log.splitlines() if headers["x-request-id"].encode() in line]

    assert b'"address":"192.0.2.77"' in record.replace(b": ", b":")


UNSAID = {
    "nothing": {},
    "no address": {"x-client-address": None},
    "an empty address": {"x-client-address": ""},
    "no address at all": {"x-client-address": "unix:"},
    "two addresses": {"x-client-address": "192.0.2.1, 192.0.2.2"},
    "an address with a port": {"x-client-address": "192.0.2.1:80"},
    "no verdict": {"x-client-verify": None},
    "a failure": {"x-client-verify": "FAILED:certificate has expired"},
    "another word": {"x-client-verify": "success"},
    "two verdicts": {"x-client-verify": "NONE, SUCCESS"},
    "a certificate without success": {"x-client-verify": "NONE"},
    "success without a certificate": {"x-client-certificate": None},
    "an empty certificate": {"x-client-certificate": ""},
    "no certificate": {"x-client-certificate": "CN=ris"},
    "a damaged certificate": {"x-client-certificate": "-----BEGIN%20CERTIFICATE-----%0AAAAA%0A-----END"},
    "half an escape": {"x-client-certificate": "%2"},
}  # fmt: skip


@pytest.mark.parametrize("changes", UNSAID.values(), ids=UNSAID.keys())
def test_a_proxy_that_does_not_say_it_plainly_is_refused(here: Place, changes: dict[str, str | None]) -> None:
    said = {name: value for name, value in {**here.says("ris"), **changes}.items() if value is not None}
    for headers in ({**(said if changes else {}), **bearer(here.token)}, said if changes else {}):
        reply = here.ask(headers)  # a token does not help: its client could have said the rest
        assert (reply.status, reply.code) == (400, "malformed-request")


def test_a_certificate_that_ended_is_nobodys(here: Place) -> None:
    name = x509.UniformResourceIdentifier("spiffe://hospital/ris")
    pem = here.authority.issue(here.folder, "old", name, days=(-3, -1)).read_bytes()
    headers = {**here.says("ris"), "x-client-certificate": urllib.parse.quote(pem[pem.index(b"-----BEGIN CERT") :])}

    assert here.ask(headers).code == "unauthenticated"


# --- the socket -------------------------------------------------------------------------------------------------------


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = values.listen_proxy(settings(path))
    assert first is not None
    with pytest.raises(ConfigError, match="another server listens on it"):
        values.listen_proxy(settings(path))
    first.close()  # as when the daemon was killed
    assert path.exists()

    second = values.listen_proxy(settings(path))

    assert second is not None
    values.close_proxy(second)
    assert not path.exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("kept")
    for wrong in (path, tmp_path / "missing" / "s", tmp_path / ("x" * 200)):
        with pytest.raises(ConfigError, match=r"listen\.proxy: cannot bind"):
            values.listen_proxy(settings(wrong))

    assert path.read_text() == "kept"
    assert values.listen_proxy(settings(None)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_other_user_can_connect(here: Place) -> None:
    here.folder.chmod(0o755)
    code = f"""
import os, socket
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    socket.socket(socket.AF_UNIX).connect({str(here.path)!r})
except PermissionError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout == "refused\n"


def test_the_headers_are_named_in_the_guide() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs/guide/principals.md").read_text()

    assert json.dumps(sorted({line.split()[1] for line in guide.splitlines() if "proxy_set_header X-" in line})) == (
        '["X-Client-Address", "X-Client-Certificate", "X-Client-Verify"]'
    )
