"""A real daemon: what callers, operators and auditors meet."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from integration_site import Daemon, Site, in_words, pericard, running

pytestmark = pytest.mark.integration


def test_answers_with_receipt_and_the_log_proves_it(shared_daemon: Daemon, strip: list[float]) -> None:
    answer = shared_daemon.predict(strip)
    assert answer.status == 200
    (prediction,) = answer.body["predictions"]
    assert prediction["status"] == "ok"
    assert 0.0 < prediction["outputs"]["score"] < 1.0
    receipt = prediction["receipt"]
    shown = pericard("audit", "show", "audit", "--json", "--limit", 10_000, cwd=shared_daemon.site.folder).stdout
    record = next(found for line in shown.splitlines() if (found := json.loads(line))["index"] == receipt["index"])
    assert record["event"] == "predict"
    assert record["principal"] == "cart"
    assert record["model"]["manifest"] == answer.body["model"]["manifest"]
    assert record["runtime"] == answer.body["runtime"]


def test_receipt_opens_offline_with_the_ecg_alone(shared_daemon: Daemon, strip: list[float]) -> None:
    import numpy as np

    from pericard.audit import commit

    (prediction,) = shared_daemon.predict(strip).body["predictions"]
    receipt = prediction["receipt"]
    shown = pericard(
        "audit", "show", "audit", "--json", "--from", receipt["index"], "--limit", 1, cwd=shared_daemon.site.folder
    )
    record = json.loads(shown.stdout)
    key = bytes.fromhex(receipt["opening_key"])
    assert record["input"] == commit(key, "input", np.array(strip, dtype="<f4").tobytes())
    score = np.float32(prediction["outputs"]["score"])
    assert record["answer"] == commit(key, "answer", score.tobytes())
    assert record["input"] != commit(key, "input", np.array(strip[::-1], dtype="<f4").tobytes())


def test_who_may(shared_daemon: Daemon, strip: list[float]) -> None:
    assert shared_daemon.predict(strip, token=None).status == 401
    assert shared_daemon.predict(strip, token="pcd_aaaaaaaaaa_" + "a" * 43).status == 401
    foreign = shared_daemon.predict(strip, token=shared_daemon.site.foreign_token)
    assert (foreign.status, foreign.body["code"]) == (403, "forbidden")
    # a name that it may not use answers as an unknown one does
    unknown = shared_daemon.predict(strip, token=shared_daemon.site.foreign_token, model="nothing")
    assert (unknown.status, unknown.body["code"]) == (403, "forbidden")
    assert shared_daemon.request("/metrics").status == 403
    assert shared_daemon.request("/metrics", token=shared_daemon.site.metrics_token).status == 200
    assert shared_daemon.request("/livez", token=None).status == 200


def test_a_revoked_token_is_refused_by_the_running_daemon(daemon: Daemon, strip: list[float]) -> None:
    assert daemon.predict(strip).status == 200
    token_id = daemon.site.token.split("_")[1]
    pericard("token", "revoke", token_id, "--tokens", "tokens.json", cwd=daemon.site.folder)
    deadline = time.monotonic() + 10
    while daemon.predict(strip).status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_another_sampling_rate_is_refused_with_what_to_do(shared_daemon: Daemon, strip: list[float]) -> None:
    for fields in ({"sampling_rate": 500}, {"unit": "uV"}, {"leads": ["V5"]}, {"sampling_rate": None}):
        answer = shared_daemon.predict(strip, **fields)
        assert (answer.status, answer.body["code"]) == (422, "contract-mismatch")
        assert answer.body["hint"]


def test_one_bad_strip_costs_itself(shared_daemon: Daemon, strip: list[float]) -> None:
    alone = shared_daemon.predict(strip).body["predictions"][0]["outputs"]["score"]
    answer = shared_daemon.predict(strip, [0.0] * len(strip), [*strip, 0.0], strip)
    assert answer.status == 200
    assert [found["status"] for found in answer.body["predictions"]] == ["ok", "not_interpretable", "error", "ok"]
    assert answer.body["predictions"][0]["outputs"]["score"] == pytest.approx(alone, abs=1e-6)
    assert answer.body["predictions"][3]["outputs"]["score"] == pytest.approx(alone, abs=1e-6)


def test_many_callers_at_once_all_get_their_own_answer(shared_daemon: Daemon, strip: list[float]) -> None:
    strips = [[value * (1 + place / 40) for value in strip] for place in range(40)]
    expected = [shared_daemon.predict(found).body["predictions"][0]["outputs"]["score"] for found in strips]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(shared_daemon.predict, strips))
    assert [answer.status for answer in answers] == [200] * 40
    found = [answer.body["predictions"][0]["outputs"]["score"] for answer in answers]
    assert found == pytest.approx(expected, abs=1e-6)


def test_metrics_count_what_happened(daemon: Daemon, strip: list[float]) -> None:
    daemon.predict(strip)
    daemon.predict(strip, sampling_rate=1)
    daemon.predict(strip, token=None)
    daemon.predict(strip)
    text = str(daemon.request("/metrics", token=daemon.site.metrics_token).body["text"])
    assert 'pericard_requests_total{code="ok"} 2.0' in text
    assert 'pericard_requests_total{code="contract-mismatch"} 1.0' in text
    assert 'pericard_requests_total{code="unauthenticated"} 1.0' in text
    assert "pericard_models_ready 1.0" in text
    assert 'pericard_licence_days_left{model="tiny"} ' in text


def test_stops_in_order_and_starts_again_on_the_same_log(site: Site, strip: list[float]) -> None:
    indices = []
    for _ in range(2):
        with running(site) as daemon:
            indices.append(daemon.predict(strip).body["predictions"][0]["receipt"]["index"])
            assert daemon.stop() == 0
    assert indices[1] > indices[0]
    assert "verified" in pericard("audit", "verify", "audit", "--key", "log.pub", cwd=site.folder).stderr
    shown = pericard("audit", "show", "audit", "--json", "--limit", 100, cwd=site.folder).stdout
    events = [json.loads(line)["event"] for line in shown.splitlines()]
    assert events.count("start") == events.count("stop") == 2


def test_requests_under_way_are_answered_when_it_stops(daemon: Daemon, strip: list[float]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(daemon.predict, *([strip] * 64)) for _ in range(8)]
        time.sleep(0.3)
        daemon.process.send_signal(signal.SIGTERM)
        statuses = []
        for answer in answers:
            try:
                statuses.append(answer.result(timeout=30).status)
            except OSError:
                statuses.append(0)  # not accepted any more
    assert set(statuses) <= {0, 200, 503}
    assert 200 in statuses
    assert daemon.process.wait(timeout=40) == 0


def test_the_certificate_is_reloaded_without_a_restart(daemon: Daemon) -> None:
    import ssl

    folder = daemon.site.folder
    before = ssl.get_server_certificate(("127.0.0.1", int(daemon.url.rpartition(":")[2])))
    (folder / "tls.key").unlink()
    (folder / "tls.crt").unlink()
    pericard("keygen", "tls", "--host", "127.0.0.1", "-o", "tls.key", cwd=folder)
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while ssl.get_server_certificate(("127.0.0.1", int(daemon.url.rpartition(":")[2]))) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert daemon.request("/livez", token=None).status == 200


def test_a_plain_connection_and_an_old_tls_are_refused(shared_daemon: Daemon) -> None:
    import ssl

    port = int(shared_daemon.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.settimeout(5)
        assert b"200" not in sock.recv(1000)
    context = ssl.create_default_context(cafile=str(shared_daemon.site.folder / "tls.crt"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock, pytest.raises(OSError, match=r"(?i)ssl|tls"):
        context.wrap_socket(sock, server_hostname="127.0.0.1")


def test_inline_serves_the_same_on_loopback_only(site: Site, strip: list[float]) -> None:
    with running(site, "--inline") as daemon:
        assert daemon.predict(strip).status == 200
        assert daemon.children() == {}
        assert daemon.stop() == 0
    assert "verified" in pericard("audit", "verify", "audit", "--key", "log.pub", cwd=site.folder).stderr
    config = site.folder / "server.yaml"
    config.write_text(config.read_text().replace("127.0.0.1", "0.0.0.0"))  # noqa: S104  (it must be refused)
    refused = pericard("serve", "--config", "server.yaml", "--inline", cwd=site.folder, check=False)
    assert refused.returncode == 1
    assert "not loopback" in refused.stderr


def test_beyond_loopback_it_needs_tls(site: Site) -> None:
    config = site.folder / "server.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("tls:")]
    config.write_text("\n".join(lines).replace("127.0.0.1", "0.0.0.0"))  # noqa: S104  (it must be refused)
    refused = pericard("serve", "--config", "server.yaml", cwd=site.folder, check=False)
    assert refused.returncode == 1
    assert in_words(refused.stderr).startswith("pericard: error: ")
    assert "hint: set tls.certificate" in refused.stderr


def test_a_second_daemon_on_one_log_is_refused(shared_daemon: Daemon) -> None:
    refused = pericard("serve", "--config", "server.yaml", cwd=shared_daemon.site.folder, check=False)
    assert refused.returncode == 1
    assert in_words(refused.stderr).startswith("pericard: error: audit log:")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: _flip(folder / "tiny.sealed", -5), "chunk 0 is not the one"),
        (lambda folder: (folder / "tiny.pt2").replace(folder / "tiny.sealed"), "is not a sealed model"),
        (lambda folder: (folder / "identity.key").chmod(0o640), "others may read this private key"),
        (lambda folder: (folder / "archive.pub").replace(folder / "publishers.json"), "publishers.json: "),
        (lambda folder: (folder / "publishers.json").unlink(), "publishers.json: is missing"),
        (lambda folder: (folder / "tiny.notice").write_bytes(b"x"), "tiny.notice: is not a notice"),
        (lambda folder: (folder / "tiny.grant").write_bytes(b"x"), "tiny.grant: "),
        (lambda folder: (folder / "tls.key").write_text("no key"), "tls: certificate"),
        (lambda folder: (folder / "trust.json").write_text("{}"), "trust.json"),
        (lambda folder: (folder / "log.key").unlink(), "log.key: cannot be read"),
    ],
    ids=[
        "tampered",
        "plain-model",
        "exposed-key",
        "wrong-file",
        "no-publisher",
        "bad-notice",
        "bad-grant",
        "bad-certificate",
        "damaged-state",
        "no-log-key",
    ],
)
def test_a_start_that_must_be_refused_says_why(site: Site, change: object, words: str) -> None:
    change(site.folder)  # type: ignore[operator]
    refused = pericard("serve", "--config", "server.yaml", cwd=site.folder, check=False)
    assert refused.returncode == 1
    assert in_words(refused.stderr).startswith("pericard: error: ")
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
