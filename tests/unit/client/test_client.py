"""The clients over real sockets: what is said, what is said again, and to whom nothing is said."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pericard_client
from pericard_client import AsyncClient, Client
from pericard_client.errors import (
    ClientError,
    ConnectionLost,
    ContractMismatch,
    DeadlineExceeded,
    ModelIdentityMismatch,
    NotSendable,
    Overloaded,
    ServerUnreachable,
    TimedOut,
    TlsRefused,
    TransportError,
    Unauthenticated,
    Unavailable,
    UnexpectedReply,
    UnknownModel,
)

BEATS = np.sin(np.arange(2500) / 10)[np.newaxis, np.newaxis]
STRIP: dict[str, Any] = {"sampling_rate": 250, "unit": "mV", "leads": ["II"], "model": "ecg-anomaly"}


def blocking(url: str, ask: Callable[[Any], Any], **options: Any) -> Any:
    with Client(url, **options) as client:
        return ask(client)


def awaiting(url: str, ask: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, **options) as client:
            return await ask(client)

    return asyncio.run(run())


@pytest.fixture(params=[blocking, awaiting])
def talk(request: pytest.FixtureRequest, server: Any) -> Callable[..., Any]:
    """Ask the stand-in server something, by either client."""

    def run(ask: Callable[[Any], Any], **options: Any) -> Any:
        return request.param(options.pop("url", server.url), ask, **({"token": server.token} | options))

    return run


def predict(client: Any) -> Any:
    return client.predict(BEATS, **STRIP)


def test_every_operation(server: Any, talk: Callable[..., Any]) -> None:
    assert talk(lambda client: client.ready()) is True
    assert "authorization" not in server.seen[-1].headers
    assert talk(lambda client: client.models()) == ("ecg-anomaly",)
    assert talk(lambda client: client.metadata("ecg-anomaly")).inputs[0].shape == (-1, 1, 2500)
    result = talk(predict)
    assert result.predictions[0].number("score") == max(result.predictions[0].series("timeline"))
    sent = server.seen[-1]
    assert result.request_ids == (sent.headers["x-request-id"],)
    assert (sent.method, sent.path, sent.headers["content-type"]) == ("POST", "/predict", "application/json")
    assert sent.headers["authorization"] == f"Bearer {server.token}"


def test_a_recording_travels_in_several_requests(server: Any, talk: Callable[..., Any]) -> None:
    strips = BEATS * np.linspace(0.1, 1, 70)[:, np.newaxis, np.newaxis]
    result = talk(lambda client: client.predict(strips, **STRIP))
    assert [len(json.loads(each.body)["inputs"]) for each in server.seen] == [24, 23, 23]
    assert len(set(result.request_ids)) == 3
    scores = [each.number("score") for each in result.predictions]
    assert scores == sorted(scores)
    assert [each.receipt.index for each in result.predictions] == list(range(70))


def test_a_model_replaced_on_the_way_is_not_mixed(server: Any, talk: Callable[..., Any]) -> None:
    class Changing(dict[str, Any]):
        def items(self) -> Any:
            self["sequence"] += 1
            return super().items()

    server.identity = Changing(server.identity)
    with pytest.raises(ModelIdentityMismatch, match="replaced while"):
        talk(lambda client: client.predict(np.repeat(BEATS, 40, axis=0), **STRIP))


def test_the_pin(server: Any, talk: Callable[..., Any]) -> None:
    assert talk(predict, expect_manifest=server.manifest).model.manifest == server.manifest
    for ask in (predict, lambda client: client.metadata("ecg-anomaly")):
        with pytest.raises(ModelIdentityMismatch, match="expected"):
            talk(ask, expect_manifest="00" * 32)
    server.identity["name"] = "ecg-other"
    with pytest.raises(ModelIdentityMismatch, match="answered with model ecg-other"):
        talk(predict)


def test_refusals_keep_the_servers_words(server: Any, talk: Callable[..., Any]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        talk(predict, token="wrong")
    assert (caught.value.status, caught.value.message) == (401, "no valid credential was given")
    with pytest.raises(Unauthenticated):
        talk(predict, token=None)
    with pytest.raises(UnknownModel, match="no model of that name"):
        talk(lambda client: client.metadata("ecg-missing"))
    with pytest.raises(ContractMismatch):
        talk(lambda client: client.predict(BEATS, **STRIP | {"sampling_rate": 500}))
    assert len(server.seen) == 4  # none of these is asked again


def test_503_is_asked_again_when_the_server_says(server: Any, talk: Callable[..., Any]) -> None:
    overloaded = server.problem(503, "overloaded", "the queue is full", retry_after="0")
    server.faults.extend([overloaded, overloaded])
    assert talk(predict).predictions
    ids = {each.headers["x-request-id"] for each in server.seen}
    assert (len(server.seen), len(ids)) == (3, 1)  # one request, said three times
    server.faults.append(server.problem(503, "overloaded", "the queue is full", retry_after="1"))
    before = time.monotonic()
    assert talk(predict).predictions
    assert time.monotonic() - before >= 1
    server.faults.append((503, {}, b"<html>"))  # no Retry-After: the client's own wait
    before = time.monotonic()
    assert talk(predict).predictions
    assert time.monotonic() - before >= 0.5


def test_retries_end(server: Any, talk: Callable[..., Any]) -> None:
    overloaded = server.problem(503, "overloaded", "the queue is full", retry_after="0")
    server.faults.extend([overloaded] * 9)
    with pytest.raises(Overloaded) as caught:
        talk(predict, retries=3)
    assert (len(server.seen), caught.value.retry_after) == (4, 0)
    with pytest.raises(Overloaded):
        talk(predict, retries=0)
    assert len(server.seen) == 5


def test_a_long_wait_is_reported_and_not_sat_out(server: Any, talk: Callable[..., Any]) -> None:
    server.faults.append(server.problem(503, "audit-unavailable", "the log is full", retry_after="3600"))
    with pytest.raises(Unavailable) as caught:
        talk(predict)
    assert (caught.value.retry_after, len(server.seen)) == (3600, 1)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("dropped", ConnectionLost),
        ("late", TimedOut),
        ("trickled", TimedOut),
        ((504, {"x-error-code": "deadline-exceeded"}, b'{"error": "too late"}'), DeadlineExceeded),
        ((500, {}, b"oops"), UnexpectedReply),
        ((301, {"location": "http://127.0.0.1:1/"}, b""), UnexpectedReply),
        ((200, {"content-encoding": "gzip"}, b"not gzip"), UnexpectedReply),
    ],
)
def test_what_may_have_been_processed_is_never_sent_twice(
    server: Any, talk: Callable[..., Any], fault: Any, kind: type[ClientError]
) -> None:
    named = {"dropped": server.dropped, "late": server.late(0.8), "trickled": server.trickled}
    server.faults.append(named.get(fault, fault) if isinstance(fault, str) else fault)
    before = time.monotonic()
    with pytest.raises(ClientError) as caught:
        talk(predict, timeout=0.3, retries=5)
    assert type(caught.value) is kind
    assert len(server.seen) == 1
    assert time.monotonic() - before < 2


def test_a_reply_without_end_is_cut(server: Any, talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pericard_client.client.transport._LARGEST_REPLY", 1000)
    server.faults.append((200, {}, b" " * 2000))
    with pytest.raises(UnexpectedReply, match="more than 1000 bytes"):
        talk(predict)


def test_nobody_there(talk: Callable[..., Any], server: Any) -> None:
    before = time.monotonic()
    with pytest.raises(ServerUnreachable, match=r"connection refused|connection attempts failed") as caught:
        talk(predict, url="http://127.0.0.1:1", retries=1)
    assert time.monotonic() - before >= 0.5  # it tried again
    assert caught.value.hint
    with pytest.raises(ServerUnreachable):
        talk(lambda client: client.ready(), url="http://no-such-host.invalid", retries=0, token=None)
    assert server.seen == []


def test_not_ready_is_an_answer(server: Any, talk: Callable[..., Any]) -> None:
    server.faults.append(server.answered({"ready": False}, 503))
    assert talk(lambda client: client.ready()) is False
    assert len(server.seen) == 1
    server.faults.append((404, {"x-error-code": "unknown-route"}, b'{"error": "no such path"}'))
    with pytest.raises(ClientError, match="no such path"):
        talk(lambda client: client.ready())


def test_tls_with_the_right_authority(tls_server: Any, certificate: Path, talk: Callable[..., Any]) -> None:
    assert talk(predict, url=tls_server.url, ca_file=certificate).predictions


def test_tls_with_the_wrong_authority(tls_server: Any, talk: Callable[..., Any]) -> None:
    with pytest.raises(TlsRefused, match="self-signed certificate") as caught:
        talk(predict, url=tls_server.url, retries=5)
    assert "--ca" in str(caught.value.hint)
    assert tls_server.seen == []  # and the token was not sent


def test_tls_for_another_host(tls_server: Any, certificate: Path, talk: Callable[..., Any]) -> None:
    url = tls_server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(TlsRefused, match="localhost"):
        talk(predict, url=url, ca_file=certificate)
    assert tls_server.seen == []


def test_http_and_https_mistaken_for_each_other(server: Any, tls_server: Any, talk: Callable[..., Any]) -> None:
    with pytest.raises(TransportError):
        talk(predict, url=tls_server.url.replace("https", "http"), timeout=2)
    with pytest.raises(TransportError):
        talk(predict, url=server.url.replace("http", "https"), timeout=2)


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("ftp://x", {}, "not an address"),
        ("example:8443", {}, "not an address"),
        ("https://", {}, "not an address"),
        ("http://[::1", {}, "not an address"),
        ("https://x/?a=b", {}, "not an address"),
        ("https://user:secret@x", {}, "holds a credential"),
        ("http://ecg.example", {"token": "t"}, "unencrypted to ecg.example"),
        ("http://10.1.2.3:80", {"token": "t"}, "unencrypted to 10.1.2.3"),
        ("https://x", {"retries": 11}, "retries"),
        ("https://x", {"retries": -1}, "retries"),
        ("https://x", {"timeout": 0}, "timeout"),
        ("https://x", {"timeout": float("nan")}, "timeout"),
        ("https://x", {"expect_manifest": "5E" * 32}, "manifest"),
        ("https://x", {"token_file": "/absent/token"}, "no such file"),
        ("https://x", {"ca_file": "/absent/ca.pem"}, "not a file of PEM certificates"),
        ("https://x", {"ca_file": __file__}, "not a file of PEM certificates"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_cannot_be_used_is_refused_at_once(kind: Any, url: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(NotSendable, match=words) as caught:
        kind(url, **options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://127.8.0.1", "http://[::1]:1", "https://ecg.example/base/"]
)
def test_where_a_token_may_go(url: str) -> None:
    Client(url, token="t").close()
    Client("http://ecg.example", token="t", allow_plaintext=True).close()
    Client("http://ecg.example").close()


def test_the_token_comes_from_its_file(server: Any, talk: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(server.token + "\n")
    assert talk(predict, token="not this one", token_file=file).predictions
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(NotSendable, match="does not hold a token"):
        talk(predict, token_file=file)
    file.write_text("\n")
    with pytest.raises(NotSendable, match="empty"):
        talk(predict, token_file=file)


def test_the_environment_redirects_nothing(
    server: Any, talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert talk(lambda client: client.ready()) is True
    assert "authorization" not in server.seen[0].headers


def test_a_base_path_is_kept(server: Any, talk: Callable[..., Any]) -> None:
    with pytest.raises(ClientError):
        talk(lambda client: client.models(), url=server.url + "/behind/proxy/")
    assert server.paths() == ["/behind/proxy/v2/models"]


def test_the_public_names() -> None:
    for name in pericard_client.__all__:
        assert getattr(pericard_client, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = pericard_client.nothing
