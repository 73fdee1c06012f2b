"""P5: client certificates through a real TLS connection: whose they are, and that nobody gets another's."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import serving
from authorities import Authority, client, subject
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from entrances import Opened, bearer, edge_values, opened, predict_body
from serving import GOOD

from pericard.auth import TokenFile
from pericard.edge.main import Edge
from pericard.engine.main import Engine
from pericard.errors import ConfigError
from pericard.keys.certificate import write_self_signed

POLICY = """
roles:
  reader: {operations: [predict, metadata], models: [ecg-anomaly]}
  elsewhere: {operations: [predict, metadata], models: [ecg-other]}
principals:
  ris: {roles: [reader], certificates: ["uri:spiffe://hospital/ris", "subject:CN=ris,O=Hospital"]}
  lab: {roles: [elsewhere], certificates: ["dns:lab.hospital.example"]}
"""
RIS = x509.UniformResourceIdentifier("spiffe://hospital/ris")
LAB = x509.DNSName("lab.hospital.example")


@dataclass
class Place:
    """An edge that asks for certificates, and who vouches for them."""

    folder: Path
    opened: Opened
    authority: Authority

    @property
    def edge(self) -> Edge:
        return self.opened.edge

    def connect(self, certificate: Path | None = None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.opened.port, timeout=10, context=client(certificate))

    def issue(self, *names: Any, common_name: str = "caller", **changes: Any) -> Path:
        return self.authority.issue(self.folder, common_name, *names, **changes)

    def status(self, certificate: Path | None, **headers: str) -> int:
        """Of one prediction over a new connection; 0 if TLS refused it."""
        with contextlib.closing(self.connect(certificate)) as connection:
            try:
                return predict(connection, **headers)[0]
            except (ssl.SSLError, ConnectionError, http.client.HTTPException):
                return 0


def predict(connection: http.client.HTTPConnection, **headers: str) -> tuple[int, Any]:
    named = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("POST", "/predict", predict_body(GOOD), named)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


@contextlib.contextmanager
def place(folder: Path, engine: Engine | None, **changes: Any) -> Iterator[Place]:
    folder.mkdir(exist_ok=True)
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "policy.yaml").write_text(POLICY)
    write_self_signed(folder / "tls.key", folder / "tls.crt", ("localhost",), days=2)
    values = edge_values(
        folder / "tokens.json", certificate=str(folder / "tls.crt"), key=str(folder / "tls.key"),
        client_ca=str(folder / "ca.pem"), policy=str(folder / "policy.yaml"), **changes,
    )  # fmt: skip
    with opened(values, engine) as made:
        yield Place(folder, made, authority)


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "uvicorn"])
def here(engine: Engine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("tls"), engine, direct=request.param) as made:
        yield made


def test_a_certificate_names_its_principal(here: Place) -> None:
    assert here.status(here.issue(RIS)) == 200
    assert here.status(here.issue(common_name="ris")) == 200  # by its whole subject
    assert here.status(here.issue(LAB)) == 403
    assert here.status(here.issue(x509.DNSName("LAB.hospital.example"))) == 403  # a host's name has no case


WRONG: dict[str, tuple[Any, ...]] = {
    "no name that counts": (),
    "a name in another field": (x509.DNSName("spiffe://hospital/ris"),),
    "a host as an address": (x509.UniformResourceIdentifier("lab.hospital.example"),),
    "a name that begins so": (x509.UniformResourceIdentifier("spiffe://hospital/ris2"),),
    "a name that ends so": (x509.UniformResourceIdentifier("spiffe://hospital/a/ris"),),
    "a star": (x509.DNSName("*.hospital.example"),),
    "the names of two principals": (RIS, LAB),
}


@pytest.mark.parametrize("names", WRONG.values(), ids=WRONG.keys())
def test_names_are_compared_whole_and_by_their_kind(here: Place, names: tuple[Any, ...]) -> None:
    assert here.status(here.issue(*names)) == 401


@pytest.mark.parametrize(
    "name",
    [
        subject("ris", "Hostile"),
        subject("ris,O=Hospital", "Hospital"),
        subject("CN=ris,O=Hospital"),
        subject("RIS"),
        subject("ris "),
        subject("lab.hospital.example"),
        subject("uri:spiffe://hospital/ris"),
    ],
    ids=str,
)
def test_a_subject_is_compared_whole(here: Place, name: x509.Name) -> None:
    assert here.status(here.issue(name=name)) == 401


def test_certificates_that_nobody_vouches_for_do_not_connect(here: Place) -> None:
    assert here.status(Authority().issue(here.folder, "ris", RIS)) == 0  # an authority of the same name
    assert here.status(here.issue(RIS, days=(-3, -1))) == 0
    assert here.status(here.issue(RIS, days=(1, 2))) == 0
    assert here.status(here.issue(RIS, usage=ExtendedKeyUsageOID.SERVER_AUTH)) == 0


def test_without_a_certificate_a_token_is_needed_and_counts(here: Place) -> None:
    made = TokenFile(here.folder / "tokens.json").create("ris", operations=(), models=(), days=1).token
    assert here.status(None) == 401
    here.edge.authority.tokens._checked = 0.0
    assert here.status(None, **bearer(made)) == 200
    # a token that is brought is what counts, whatever the connection could say
    assert here.status(here.issue(LAB), **bearer(made)) == 200
    assert here.status(here.issue(RIS), authorization="Bearer pcd_aaaaaaaaaa_" + "A" * 43) == 401


@pytest.mark.parametrize("header", ["x_client_certificate", "x_client_verify", "x_ssl_client_s_dn", "x_client_dn"])
def test_no_header_is_a_certificate(here: Place, header: str) -> None:
    for value in ("SUCCESS", "uri:spiffe://hospital/ris", "CN=ris,O=Hospital"):
        assert here.status(None, **{header: value}) == 401
        assert here.status(here.issue(LAB), **{header: value}) == 403


def test_known_heads_serve_nobody_elses_connection(here: Place) -> None:
    """The same bytes on three connections at once, again and again: each is who it is."""
    ris, lab = here.issue(RIS), here.issue(LAB)
    with contextlib.ExitStack() as stack:
        three = [stack.enter_context(contextlib.closing(here.connect(who))) for who in (ris, lab, None)]
        for _ in range(4):
            assert [predict(connection)[0] for connection in three] == [200, 403, 401]


def test_the_credential_stands_in_the_record(here: Place, site: serving.Site) -> None:
    from cryptography.hazmat.primitives import hashes

    made = here.issue(RIS)
    (certificate,) = x509.load_pem_x509_certificates(made.read_bytes())
    assert here.status(made) == 200

    log = b"".join(path.read_bytes() for path in sorted((site.folder / "audit").rglob("*")) if path.is_file())

    assert f"certificate:{certificate.fingerprint(hashes.SHA256()).hex()[:16]}".encode() in log


# --- while the server runs --------------------------------------------------------------------------------------------


def test_a_principal_that_was_taken_out_is_nobody_on_an_open_connection(engine: Engine, tmp_path: Path) -> None:
    with place(tmp_path / "s", engine) as here, contextlib.closing(here.connect(here.issue(RIS))) as connection:
        assert predict(connection)[0] == 200
        (here.folder / "policy.yaml").write_text(POLICY.replace("uri:spiffe://hospital/ris", "uri:spiffe://hospital/x"))
        here.opened.reload()
        assert predict(connection)[0] == 401


def test_an_authority_that_was_replaced_vouches_for_nobody(engine: Engine, tmp_path: Path) -> None:
    with place(tmp_path / "s", engine) as here:
        old, other = here.issue(RIS), Authority("Hospital CA 2")
        new = other.issue(here.folder, "ris", RIS)
        with contextlib.closing(here.connect(old)) as connection:
            assert predict(connection)[0] == 200
            assert here.status(new) == 0

            (here.folder / "ca.pem").write_bytes(other.pem)
            here.opened.reload()

            assert (here.status(old), here.status(new)) == (0, 200)
            assert predict(connection)[0] == 401  # an open connection too
        (here.folder / "ca.pem").write_bytes(here.authority.pem + other.pem)
        here.opened.reload()
        assert (here.status(old), here.status(new)) == (200, 200)


def test_a_new_server_certificate_leaves_open_connections_as_they_are(engine: Engine, tmp_path: Path) -> None:
    with place(tmp_path / "s", engine) as here, contextlib.closing(here.connect(here.issue(RIS))) as connection:
        assert predict(connection)[0] == 200
        for suffix in ("key", "crt"):
            (here.folder / f"tls.{suffix}").unlink()
        write_self_signed(here.folder / "tls.key", here.folder / "tls.crt", ("localhost",), days=2)
        here.opened.reload()
        assert predict(connection)[0] == 200


def test_no_session_is_resumed(engine: Engine, tmp_path: Path) -> None:
    with place(tmp_path / "s", engine) as here:
        context = client(here.issue(RIS))
        connection = http.client.HTTPSConnection("127.0.0.1", here.opened.port, timeout=10, context=context)
        with contextlib.closing(connection):
            assert predict(connection)[0] == 200
            session = connection.sock.session
        assert session is None or not session.has_ticket


def test_a_certificate_that_ends_is_worth_nothing_on_an_open_connection(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    real = time.time
    with place(tmp_path / "s", engine) as here, contextlib.closing(here.connect(here.issue(RIS))) as connection:
        assert predict(connection)[0] == 200
        with monkeypatch.context() as patch:
            patch.setattr("pericard.auth.policy.time.time", lambda: real() + 2 * 86_400)
            assert predict(connection)[0] == 401


def test_where_one_is_required_nobody_else_connects(tmp_path: Path) -> None:
    with place(tmp_path / "s", None, clients="required") as here:
        assert here.status(None) == 0
        assert here.status(here.issue(RIS)) == 503  # let in; there is no engine
        assert here.status(here.issue(common_name="nobody")) == 401


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "not ASCII"])
def test_authorities_that_cannot_be_read_keep_the_old_ones(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with place(tmp_path / "s", None) as here:
        certificate, path = here.issue(RIS), here.folder / "ca.pem"
        text = {"empty": b"", "garbage": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(text.get(damage, b"\xff"))
        here.opened.reload()
        assert "the old one stays in use" in caplog.text
        assert here.status(certificate) == 503
        with pytest.raises(ConfigError, match="tls: client_ca"):
            Edge(here.edge._values)
