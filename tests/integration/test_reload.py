"""Models that come and go under a running daemon: no request is lost, and nothing broken is ever served."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from integration_site import MODEL_YAML, Daemon, Site, children_of, pericard, running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CLIENTS = 6
BOUND_SECONDS = 60
SERVER_YAML = """\
repository: {{folder: models, watch_seconds: {watch}}}
listen: {{host: 127.0.0.1, port: 0}}
tls: {{certificate: tls.crt, key: tls.key}}
edges: {edges}
"""


@pytest.fixture(scope="session")
def versions(made_site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Versions 1, 2 and 3 of the tiny model, sealed as a vendor would."""
    folder = tmp_path_factory.mktemp("versions")
    found = {1: made_site.folder / "tiny.sealed"}
    for number in (2, 3):
        about = MODEL_YAML.replace('"1.0.0"', f'"{number}.0.0"').replace("sequence: 1", f"sequence: {number}")
        (folder / f"{number}.yaml").write_text(about)
        found[number] = folder / f"tiny-{number}.sealed"
        pericard(
            "seal", "tiny.pt2", "--manifest", folder / f"{number}.yaml", "--sign-with", "vendor.key",
            "--archive", "archive.pub", "-r", "identity.pub", "--days", 30, "-o", found[number], cwd=made_site.folder,
        )  # fmt: skip
    return found


def install(site: Site, sealed: Path, *, spoil: bool = False) -> Path:
    """Put a sealed file into the repository folder, as an operator should: copied aside, then renamed."""
    data = bytearray(sealed.read_bytes())
    if spoil:
        data[-5] ^= 1
    target = site.folder / "models" / sealed.name
    aside = target.with_name(f".{target.name}.part")
    aside.write_bytes(data)
    return aside.rename(target)


def configured(site: Site, first: Path, *, watch: float = 0, edges: int = 1) -> Site:
    (site.folder / "server.yaml").write_text(SERVER_YAML.format(watch=watch, edges=edges))
    (site.folder / "models").mkdir()
    install(site, first)
    return site


def records(site: Site, event: str) -> list[dict[str, object]]:
    shown = pericard("audit", "show", "audit", "--json", "--limit", 100_000, cwd=site.folder).stdout
    return [found for line in shown.splitlines() if (found := json.loads(line))["event"] == event]


def until(holds: Callable[[], bool], seconds: float = BOUND_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@contextmanager
def load(daemon: Daemon, strip: list[float]) -> Iterator[Counter[tuple[int, str]]]:
    """Ask without a pause from several clients at once; counts status and version of every answer."""
    seen: Counter[tuple[int, str]] = Counter()
    lock, stop = threading.Lock(), threading.Event()
    body = {"model": "tiny", "inputs": strip, "sampling_rate": 250, "unit": "mV", "leads": ["II"]}

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = daemon.request("/predict", body=body, timeout=60)
                found: Any = answer.body.get("model") or {"version": answer.body.get("code")}
                what = (answer.status, str(found["version"]))
            except (OSError, HTTPException) as error:  # an answer may break off too
                what = (0, type(error).__name__)
            with lock:
                seen[what] += 1

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: sum(seen.values()) > CLIENTS)
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)


def version(daemon: Daemon, strip: list[float]) -> str:
    return str(daemon.predict(strip).body["model"]["version"])  # type: ignore[index]


def test_a_reload_under_full_load_loses_no_request(site: Site, versions: dict[int, Path], strip: list[float]) -> None:
    with running(configured(site, versions[1])) as daemon:
        with load(daemon, strip) as seen:
            install(site, versions[2])
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: seen[200, "2.0.0"] > 0)
            (site.folder / "models" / "tiny.sealed").unlink()
            install(site, versions[3])
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: seen[200, "3.0.0"] > 20)
        assert seen.keys() == {(200, "1.0.0"), (200, "2.0.0"), (200, "3.0.0")}, seen
        assert daemon.stop() == 0
    unloaded = records(site, "model-unloaded")
    assert [(one["model"]["sequence"], one["drained"]) for one in unloaded] == [(1, True), (2, True)]  # type: ignore[index]
    loaded = [(one["model"]["sequence"], one["asked"]) for one in records(site, "model-loaded")]  # type: ignore[index]
    assert loaded == [(1, "start"), (2, "signal"), (3, "signal")]
    answered = [one["model"]["sequence"] for one in records(site, "predict")]  # type: ignore[index]
    assert len(answered) == sum(seen.values())
    assert "verified" in pericard("audit", "verify", "audit", "--key", "log.pub", cwd=site.folder).stderr


def test_a_broken_new_version_never_serves_and_the_old_one_goes_on(
    site: Site, versions: dict[int, Path], strip: list[float]
) -> None:
    with running(configured(site, versions[1], watch=0.5)) as daemon:
        with load(daemon, strip) as seen:
            install(site, versions[2], spoil=True)  # found by the watch alone
            until(lambda: bool(records(site, "model-refused")))
            time.sleep(1)
        assert seen.keys() == {(200, "1.0.0")}, seen
        (refused,) = records(site, "model-refused")
        assert (refused["code"], refused["sequence"], refused["asked"]) == ("corrupt-payload", 2, "watch")
        assert str(site.folder) not in json.dumps(refused)
        text = str(daemon.request("/metrics", token=site.metrics_token).body["text"])
        assert 'pericard_model_loads_total{model="tiny",result="corrupt-payload"} 1.0' in text
        install(site, versions[2])  # the vendor sent it again, whole
        until(lambda: version(daemon, strip) == "2.0.0")
        assert daemon.stop() == 0


def test_a_file_that_is_still_being_written_is_left_alone(
    site: Site, versions: dict[int, Path], strip: list[float]
) -> None:
    with running(configured(site, versions[1], watch=0.5)) as daemon:
        data = versions[2].read_bytes()
        with (site.folder / "models" / versions[2].name).open("wb", buffering=0) as target:
            for place in range(0, len(data), max(1, len(data) // 12)):
                target.write(data[place : place + max(1, len(data) // 12)])
                time.sleep(0.2)
        until(lambda: version(daemon, strip) == "2.0.0")
        assert daemon.stop() == 0
    assert not records(site, "model-refused")


def test_several_edges_share_the_socket_and_each_one_is_reloaded_and_restarted(
    site: Site, versions: dict[int, Path], strip: list[float]
) -> None:
    with running(configured(site, versions[1], edges=2)) as daemon:
        edges = [pid for pid in children_of(daemon.pid) if b"edge" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(edges) == 2
        with load(daemon, strip) as seen:
            install(site, versions[2])
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: seen[200, "2.0.0"] > 20)
        assert seen.keys() == {(200, "1.0.0"), (200, "2.0.0")}, seen
        os.kill(edges[0], signal.SIGKILL)
        until(lambda: len(children_of(daemon.pid)) == 3 and edges[0] not in children_of(daemon.pid))
        daemon.wait_ready()
        assert {daemon.predict(strip).status for _ in range(20)} == {200}
        os.kill(daemon.children()["engine"], signal.SIGKILL)  # both edges hear the new one
        daemon.wait_ready()
        until(lambda: {_status(daemon, strip) for _ in range(20)} == {200})
        assert daemon.stop() == 0


def _status(daemon: Daemon, strip: list[float]) -> int:
    return daemon.predict(strip).status


def test_a_daemon_starts_although_one_file_of_its_folder_is_bad(
    site: Site, versions: dict[int, Path], strip: list[float]
) -> None:
    configured(site, versions[1])
    install(site, versions[3], spoil=True)
    install(site, versions[2])
    with running(site) as daemon:
        assert version(daemon, strip) == "2.0.0"  # the newest that is good
        assert daemon.stop() == 0
    assert [one["sequence"] for one in records(site, "model-refused")] == [3]


def test_the_identity_is_asked_for_anew_and_not_kept(site: Site, versions: dict[int, Path], strip: list[float]) -> None:
    """A later load works although the identity's file is gone: the supervisor holds it, and the engine does not."""
    configured(site, versions[1])
    with running(site) as daemon:
        (site.folder / "identity.key").unlink()
        install(site, versions[2])
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: version(daemon, strip) == "2.0.0")
        assert daemon.stop() == 0


def test_settings_without_any_model_are_refused(site: Site) -> None:
    (site.folder / "server.yaml").write_text("listen: {host: 127.0.0.1, port: 0}\n")
    answer = pericard("serve", "--config", "server.yaml", cwd=site.folder, check=False)
    assert answer.returncode == 1
    assert "needs at least one model" in answer.stderr
