"""Fetching keys: over TLS, from one address, bounded, and by the clock."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import issuing
import pytest

from pericard.auth import Authority, PolicyFile, TokenFile
from pericard.edge import fetching, upkeep
from pericard.errors import ConfigError, Unauthenticated
from pericard.keys.certificate import write_self_signed

Answer = Callable[[BaseHTTPRequestHandler], None]


def good(request: BaseHTTPRequestHandler) -> None:
    body = issuing.key_set(issuing.jwk("EdDSA"))
    request.send_response(200)
    request.send_header("content-length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def provider(folder: Path, answer: Answer) -> Iterator[tuple[str, str, list[str]]]:
    """An https server; its address, its CA and the paths that it was asked."""
    write_self_signed(folder / "idp.key", folder / "idp.crt", ("localhost",), days=2)
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "idp.crt", folder / "idp.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}/realm/jwks?kind=sig", str(folder / "idp.crt"), asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_keys_are_fetched_from_the_address(tmp_path: Path) -> None:
    with provider(tmp_path, good) as (url, ca, asked):
        assert fetching.fetch(url, ca) == issuing.key_set(issuing.jwk("EdDSA"))
        assert asked == ["/realm/jwks?kind=sig"]


def redirect(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("location", "https://evil.example/jwks")
    request.end_headers()


def large(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b" " * (fetching._LARGEST + 1))


def nonsense(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"nonsense\r\n\r\n")


def slow(request: BaseHTTPRequestHandler) -> None:
    for _ in range(40):
        request.wfile.write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (redirect, "it answers 302"),
        (large, "larger than"),
        (nonsense, "cannot be fetched"),
        (slow, "cannot be fetched"),
    ],
)
def test_what_is_no_plain_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, words: str
) -> None:
    monkeypatch.setattr(fetching, "_SECONDS", 0.4)
    with provider(tmp_path, answer) as (url, ca, _):
        started = time.monotonic()
        with pytest.raises(ConfigError, match=words):
            fetching.fetch(url, ca)
        assert time.monotonic() - started < 1.5


def test_a_server_that_nobody_vouches_for_is_not_asked(tmp_path: Path) -> None:
    with provider(tmp_path, good) as (url, ca, asked):
        with pytest.raises(ConfigError, match="is not trusted"):
            fetching.fetch(url, None)
        with pytest.raises(ConfigError, match="is not trusted"):
            fetching.fetch(url.replace("localhost", "127.0.0.1"), ca)  # another name than the certificate's
        assert asked == []


@pytest.mark.parametrize("url", ["https://localhost:1/x", "http://localhost/x", "https:///x", "https://[/x"])
def test_an_address_that_cannot_be_asked_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be fetched"):
        fetching.fetch(url, None)


def test_the_clock_fetches_and_no_request_does(tmp_path: Path) -> None:
    with provider(tmp_path, good) as (url, ca, asked):
        keys = f'keys: "{url}", ca: "{ca}"'
        (tmp_path / "policy.yaml").write_text(issuing.POLICY.replace("keys: jwks.json", keys))
        policy = PolicyFile(tmp_path / "policy.yaml")
        authority = Authority(TokenFile(tmp_path / "tokens.json"), policy)
        token = issuing.token("EdDSA")
        for _ in range(5):
            with pytest.raises(Unauthenticated):
                authority.bearer(token)
        assert asked == []

        async def run() -> None:
            async with upkeep.keeping(authority, lambda _: None):
                for _ in range(500):
                    await asyncio.sleep(0.01)
                    if policy.remote[0].keys:
                        return

        asyncio.run(run())

        assert authority.bearer(token).name == "ris"
        for _ in range(5):  # an unknown key is no reason to ask again
            with pytest.raises(Unauthenticated):
                authority.bearer(issuing.token("EdDSA", header={"kid": "new"}))
        assert len(asked) == 1
