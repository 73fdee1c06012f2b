"""The shipped Fail2ban filter and jail: what matches, what does not, and a real ban between network namespaces."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from integration_site import Site, _wait_for_line, collect, made_site, pericard, serve

from pericard.edge.refusals_log import lines

__all__ = ["made_site"]

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "configs" / "fail2ban"
FILTER = SHIPPED / "filter.d" / "pericard.conf"
INSTALLED = Path("/etc/fail2ban")
STAMP = "2026-11-29T12:00:00.123Z"
LINE = f"{STAMP} pericard-auth refused code=unauthenticated address=192.0.2.7 count=1\n"
SERVER, GUESSER, VALID = "198.51.100.1", "198.51.100.2", "203.0.113.2"


def _component(name: str) -> str:
    """The path of a tool; in CI a missing one fails the test, elsewhere it skips."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed; `make system` brings it")
        pytest.skip(f"{name} is not installed")
    return found


def matched(folder: Path, text: str, filter_file: Path = FILTER) -> list[str]:
    """The addresses that the filter finds in a log, one for each line that matches."""
    (folder / "refusals.log").write_text(text)
    command = [_component("fail2ban-regex"), "--out", "ip", str(folder / "refusals.log"), str(filter_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in {0, 255}, done.stderr  # 255 says that nothing matched
    return done.stdout.split()


# --- the filter -------------------------------------------------------------------------------------------------------


def test_every_line_of_a_refused_credential_matches(tmp_path: Path) -> None:
    counts = Counter({"192.0.2.7": 3, "2001:db8::9": 1, "::ffff:198.51.100.4": 1})
    written = "".join(lines(counts, datetime.now(UTC)))

    assert sorted(matched(tmp_path, written)) == ["192.0.2.7"] * 3 + ["198.51.100.4", "2001:db8::9"]


FORGED = {
    "a request id": LINE.replace("count=1", f"request={LINE.strip()}"),
    "words before": LINE.replace("pericard-auth", "x pericard-auth"),
    "another program": f"Nov 29 12:00:00 host sshd[1]: {LINE}",
    "words behind": LINE.replace("count=1", "count=1 address=192.0.2.8"),
    "another code": LINE.replace("unauthenticated", "unknown-route"),
    "an address twice": LINE.replace("address=192.0.2.7", "address=192.0.2.7 address=192.0.2.8"),
    "a name for an address": LINE.replace("192.0.2.7", "localhost"),
    "no address": f"{STAMP} pericard-auth suppressed count=9000\n",
    "a line in a line": f'{STAMP} pericard-auth note="{LINE.strip()}"\n',
    "a date elsewhere": f"{LINE.removeprefix(STAMP).strip()} {STAMP}\n",
    "escaped": LINE.replace(" address", "\\n address"),
    "a JSON log": '{"address": "192.0.2.7", "code": "unauthenticated", "event": "refused"}\n',
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_line_does_not_match(tmp_path: Path, name: str) -> None:
    assert matched(tmp_path, FORGED[name] + LINE.replace("192.0.2.7", "192.0.2.99")) == ["192.0.2.99"]


def test_a_looser_filter_would_take_forged_lines(tmp_path: Path) -> None:
    loose = tmp_path / "loose.conf"
    loose.write_text(FILTER.read_text().replace("failregex = ^ ", "failregex = ").replace(r" count=\d+$", ""))

    taken = [name for name, text in FORGED.items() if matched(tmp_path, text, loose)]

    assert len(taken) >= 4


# --- the jail ---------------------------------------------------------------------------------------------------------


def _run(*words: str, check: bool = True, timeout: float = 60) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr}{done.stdout}")
    return done.stdout


@dataclass
class Hosts:
    """Three hosts: a server, and two that reach it over a wire each."""

    server: str
    guesser: str
    valid: str


@contextmanager
def hosts() -> Iterator[Hosts]:
    ip = _component("ip")
    made = Hosts(*(f"{role}{os.getpid()}" for role in ("pcd-s", "pcd-g", "pcd-v")))
    names = (made.server, made.guesser, made.valid)
    added = []
    try:
        for name in names:
            done = subprocess.run([ip, "netns", "add", name], capture_output=True, text=True, timeout=10, check=False)
            if done.returncode:
                if os.environ.get("CI") == "true":
                    pytest.fail(f"no network namespace can be made: {done.stderr}")
                pytest.skip("no network namespace can be made here")
            added.append(name)
            _run(ip, "-n", name, "link", "set", "lo", "up")
        wires = ((made.guesser, SERVER, GUESSER), (made.valid, "203.0.113.1", VALID))
        for place, (name, near, far) in enumerate(wires):
            wire = f"w{place}"
            _run(ip, "link", "add", wire, "netns", made.server, "type", "veth", "peer", "name", wire, "netns", name)
            for end, address in ((made.server, near), (name, far)):
                _run(ip, "-n", end, "addr", "add", f"{address}/24", "dev", wire)
                _run(ip, "-n", end, "link", "set", wire, "up")
        yield made
    finally:
        for name in added:
            subprocess.run([ip, "netns", "del", name], timeout=10, check=False)


@contextmanager
def fail2ban(folder: Path, log: Path, namespace: str, more: str) -> Iterator[Callable[..., str]]:
    """The distribution's own configuration with our two files in it, in the foreground; asks its client."""
    server, client = _component("fail2ban-server"), _component("fail2ban-client")
    config = Path(shutil.copytree(INSTALLED, folder / "fail2ban"))
    for other in (config / "jail.d").iterdir():
        other.unlink()  # the distribution's jail for sshd
    shutil.copytree(SHIPPED, config, dirs_exist_ok=True)
    (config / "fail2ban.local").write_text("[Definition]\ndbfile = None\nlogtarget = STDOUT\n")
    (config / "jail.d" / "pericard.local").write_text(f"[pericard]\nlogpath = {log}\n{more}")
    sock = folder / "f2b.sock"
    options = ["-c", str(config), "-s", str(sock), "-p", str(folder / "f2b.pid")]
    with (folder / "f2b.out").open("w") as out:
        command = [_component("ip"), "netns", "exec", namespace, server, "-f", *options, "start"]
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:

            def ask(*words: str) -> str:
                return _run(client, *options, *words, check=False, timeout=20)

            until(lambda: "pericard" in ask("status"), f"Fail2ban did not start; {folder}/f2b.out says why")
            yield ask
        finally:
            process.terminate()
            process.wait(20)


def until(true: Callable[[], bool], otherwise: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(otherwise)
        time.sleep(0.1)


CLIENT = """
import http.client, ssl, sys
host, port, token, times = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
context = ssl._create_unverified_context()
for _ in range(times):
    connection = http.client.HTTPSConnection(host, port, timeout=3, context=context)
    try:
        connection.request("GET", "/v2", headers={"authorization": "Bearer " + token})
        print(connection.getresponse().status)
    except OSError as error:
        print(type(error).__name__)
    connection.close()
"""


def ask(namespace: str, host: str, port: str, token: str, times: int = 1) -> list[str]:
    """What a client in a namespace gets: a status each time, or the name of what went wrong."""
    words = (_component("ip"), "netns", "exec", namespace, sys.executable, "-c", CLIENT, host, port, token, str(times))
    return _run(*words).split()


@contextmanager
def running(site: Site, namespace: str) -> Iterator[str]:
    """The daemon in a namespace; its port."""
    process = serve(site, prefix=(_component("ip"), "netns", "exec", namespace))
    try:
        yield _wait_for_line(process).rpartition(":")[2]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)
        assert process.stderr is not None
        process.stderr.close()
        collect(site.folder)


@pytest.mark.integration
def test_who_guesses_is_shut_out_for_a_while_and_nobody_else(made_site: Site, tmp_path: Path) -> None:
    for name in ("fail2ban-server", "nft"):
        _component(name)
    site = made_site.copy(tmp_path / "site")
    log = site.folder / "refusals.log"
    config = (site.folder / "server.yaml").read_text().replace("host: 127.0.0.1", "host: 0.0.0.0")
    (site.folder / "server.yaml").write_text(f"{config}refusals_log: {{path: refusals.log}}\n")
    token = pericard(
        "token", "create", "ris", "--model", "*", "--operation", "metadata", "--tokens", "tokens.json", cwd=site.folder
    ).stdout.strip()
    with hosts() as made, running(site, made.server) as port:
        more = f"port = {port}\nmaxretry = 5\nbantime = 6\nbantime.increment = false\n"
        with fail2ban(tmp_path, log, made.server, more) as client:
            assert ask(made.guesser, SERVER, port, token) == ["200"]
            assert ask(made.guesser, SERVER, port, "pcd_wrong", 8)[:5] == ["401"] * 5

            until(lambda: GUESSER in client("status", "pericard"), "nobody was banned")
            assert ask(made.guesser, SERVER, port, token) == ["ConnectionRefusedError"]  # with its valid credential too
            assert ask(made.valid, "203.0.113.1", port, token, 3) == ["200"] * 3
            until(
                lambda: ask(made.guesser, SERVER, port, token) == ["200"],
                "nobody was let in again", seconds=15,
            )  # fmt: skip
            assert VALID not in client("status", "pericard")
    assert re.fullmatch(
        rf"(\S+ pericard-auth refused code=unauthenticated address={re.escape(GUESSER)} count=\d+\n)+", log.read_text()
    )
    assert log.stat().st_mode & 0o777 == 0o640
