"""Settings become values: each child hears what it needs, and nothing else."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pericard import __version__, settings
from pericard.daemon import notify, values
from pericard.edge.values import EdgeValues
from pericard.engine.values import EngineValues
from pericard.errors import ConfigError
from pericard.keys import Identity
from pericard.settings import Listen, Settings, Tls
from pericard.unlock import UnlockValues, unlock


def made(**changes: Any) -> Settings:
    return Settings(models=("/m/ecg.sealed",), publishers="/p/publishers.json", **changes)


def test_the_engine_hears_of_no_network() -> None:
    found = values.engine_values(made(engine=settings.EngineSettings(threads=4, queue=7, memory_budget=10)))

    assert isinstance(found, EngineValues)
    assert (found.models, found.publishers) == (("/m/ecg.sealed",), "/p/publishers.json")
    assert (found.threads, found.queue, found.memory_budget, found.version) == (4, 7, 10, __version__)
    text = msgspec.json.encode(found)
    for word in (b"127.0.0.1", b"8443", b"tokens.json", b"log.key", b"identity"):
        assert word not in text


def test_the_edge_hears_of_no_model_and_no_key_but_its_own() -> None:
    found = values.edge_values(made(tls=Tls("/t/tls.crt", "/t/tls.key", "1.2")))

    assert isinstance(found, EdgeValues)
    assert (found.certificate, found.key, found.minimum_version) == ("/t/tls.crt", "/t/tls.key", "1.2")
    text = msgspec.json.encode(found)
    for word in (b"ecg.sealed", b"vendor.pub", b"log.key", b"identity", b"audit", b"trust.json"):
        assert word not in text


def test_without_tls_the_edge_has_no_certificate() -> None:
    found = values.edge_values(made())

    assert (found.certificate, found.key, found.minimum_version) == (None, None, "1.3")


def test_what_a_caller_may_have_reaches_the_engine() -> None:
    limits = settings.LimitSettings(caller_rows=7, caller_rate=2.5, caller_burst=9)
    found = values.engine_values(made(limits=limits))

    assert (found.per_caller, found.caller_rate, found.caller_burst) == (7, 2.5, 9)


def test_every_limit_reaches_the_edge() -> None:
    limits = settings.LimitSettings(2000, 1.5, 2.5, 3000, 4, 5, 6.5, failures=7)
    found = values.edge_values(made(limits=limits))

    for name in limits.__struct_fields__:
        if not name.startswith("caller_"):  # those are counted in the engine, so that two edges are one server
            assert getattr(found, name) == getattr(limits, name)


def test_the_refusals_log_is_the_edge_s() -> None:
    log = settings.RefusalsLog("/l/refusals.log", 70_000, 3)
    found = values.edge_values(made(refusals_log=log))

    assert (found.refusals_log, found.refusals_log_bytes, found.refusals_log_files) == (log.path, log.bytes, log.files)
    assert values.edge_values(made()).refusals_log is None


def test_the_forwarder_hears_of_one_log_and_its_own_certificate() -> None:
    collector = settings.Forward(
        host="siem", ca="/f/ca.pem", certificate="/f/c.crt", key="/f/c.key", cursor="/c/cursor"
    )
    found = values.forward_values(made(forward=collector))

    assert (found.host, found.name, found.port, found.cursor) == ("siem", "siem", 2514, "/c/cursor")
    text = msgspec.json.encode(found)
    for word in (b"ecg.sealed", b"publishers", b"log.key", b"identity", b"tokens", b"trust.json"):
        assert word not in text
    assert values.engine_values(made(forward=collector)).forward_status == "/c/cursor.status"
    assert values.engine_values(made()).forward_status is None
    with pytest.raises(ConfigError, match="no collector"):
        values.forward_values(made())


@pytest.mark.parametrize("kind", [EngineValues, EdgeValues])
def test_values_survive_the_way_to_a_child(kind: type[Any]) -> None:
    found = values.engine_values(made()) if kind is EngineValues else values.edge_values(made())

    assert msgspec.json.decode(msgspec.json.encode(found), type=kind) == found
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(found)[:-1] + b',"invented":1}', type=kind)


@pytest.mark.parametrize(
    ("host", "tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:{}"),
        ("127.0.0.1", True, "https://127.0.0.1:{}"),
        ("::1", False, "http://[::1]:{}"),
    ],
)
def test_listening(host: str, url: str, *, tls: bool) -> None:
    found = made(listen=Listen(host, 0), tls=Tls("a", "b") if tls else None)

    with values.listen(found) as listener:
        port = listener.getsockname()[1]
        assert values.url(found, listener) == url.format(port)
        with socket.create_connection((host, port), timeout=2):
            pass


def test_a_port_that_is_taken_is_named() -> None:
    with values.listen(made(listen=Listen(port=0))) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port}: address already in use"):
            values.listen(made(listen=Listen(port=port)))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "a" * 300, "\0", "é" * 80])
def test_an_address_that_is_not_ours_is_an_error_and_not_a_crash(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot bind"):
        values.listen(made(listen=Listen(host, 0)))


def test_the_identity_comes_from_a_file_or_from_nowhere(tmp_path: Path) -> None:
    Identity.generate(tmp_path / "identity.key")

    values = UnlockValues(path=str(tmp_path / "identity.key"))
    assert [len(seed) for seed in unlock(values)] == [32]
    with pytest.raises(ConfigError, match="magic"):
        unlock(msgspec.structs.replace(values, kind="magic"))


def test_a_restart_takes_its_port_again_at_once() -> None:
    with values.listen(made(listen=Listen(port=0))) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            first.accept()[0].close()
    with values.listen(made(listen=Listen(port=port))):
        pass


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool) -> None:
    address = f"\0pericard-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))

        notify.tell("READY=1\nSTATUS=serving")

        assert sock.recv(100) == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-here", "relative"])
def test_nobody_to_tell_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)

    notify.tell("READY=1")
