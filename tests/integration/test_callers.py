"""A real daemon with a policy and a proxy's socket: who may, while the policy changes under it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
import tempfile
import time
from pathlib import Path

import pytest
from integration_site import Site, pericard, running

pytestmark = pytest.mark.integration

POLICY = """
roles:
  reader: {operations: [predict, metadata], models: [tiny]}
principals:
  cart: {roles: [reader]}
"""


def status_over(path: Path) -> int:
    """Of a request that a proxy passes on, without a certificate."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(10)
        connection.sock.connect(str(path))
        connection.request("GET", "/v2", headers={"X-Client-Address": "192.0.2.1", "X-Client-Verify": "NONE"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_policy_and_a_proxy_with_a_real_daemon(site: Site, strip: list[float]) -> None:
    folder = site.folder
    with tempfile.TemporaryDirectory(prefix="pcd") as name:  # a Unix socket's path is short
        path = Path(name) / "proxy.sock"
        text = (folder / "server.yaml").read_text().replace("port: 0", f"port: 0, proxy: {path}")
        (folder / "server.yaml").write_text(text + "policy: policy.yaml\n")
        (folder / "policy.yaml").write_text(POLICY)
        with running(site) as daemon:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert status_over(path) == 401
            assert daemon.predict(strip).status == 200
            # its own token grants it something, but the policy does not name it
            assert daemon.predict(strip, token=site.foreign_token).status == 401

            (folder / "policy.yaml").write_text("roles: {}\n")
            os.kill(daemon.pid, signal.SIGHUP)
            time.sleep(1)
            assert daemon.predict(strip).status == 200  # a broken one changes nothing
            (folder / "policy.yaml").write_text(POLICY.replace("models: [tiny]", "models: [other]"))
            os.kill(daemon.pid, signal.SIGHUP)
            end = time.monotonic() + 10
            while daemon.predict(strip).status != 403:
                assert time.monotonic() < end
                time.sleep(0.1)
            assert daemon.stop() == 0
        assert not path.exists()
    shown = pericard("audit", "show", "audit", "--json", "--limit", 10_000, cwd=folder).stdout
    assert shown.count('"policy-loaded"') >= 2
    assert '"policy-refused"' in shown
    assert "last used 2" in pericard("token", "list", "--tokens", "tokens.json", cwd=folder).stdout
