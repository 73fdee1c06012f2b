"""P4 and P1, by looking: which process's memory holds which secret, as root sees it while the daemon serves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from integration_site import Daemon

from pericard.keys import Identity, LogKey, Publisher
from pericard.sealed import SealedModel

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0 and not os.environ.get("CI"), reason="only root may read another process's memory"
    ),
]

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r")


def count(pid: int, needles: dict[str, bytes]) -> dict[str, int]:
    """How often each needle stands in a process's readable memory."""
    found = dict.fromkeys(needles, 0)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = _MAPPING.match(line)
            if match is None or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except OSError:
                continue  # a guard page
            for name, needle in needles.items():
                found[name] += data.count(needle)
    return found


@pytest.fixture
def secrets(shared_daemon: Daemon) -> dict[str, bytes]:
    """What may leak: the identity's seed, the log's secrets, the file key, and a stretch of the weights."""
    folder = shared_daemon.site.folder
    identity = Identity.read(folder / "identity.key")
    with SealedModel(folder / "tiny.sealed") as source:
        model = source.verify([Publisher.read(folder / "vendor.pub")])
        (grant,) = model.grants_for(identity.recipient.id)
        file_key = bytes(grant.unwrap(identity))
    log_secret = bytes(LogKey.read_secret(folder / "log.key"))
    program = torch.export.load(folder / "tiny.pt2")
    weights = program.state_dict["conv.weight"].detach().numpy().tobytes()
    return {
        "identity": bytes(Identity.read_seed(folder / "identity.key")),
        "log signing seed": log_secret[:32],
        "commitment key": log_secret[32:],
        "file key": file_key,
        "weights": weights[:64],
    }


def test_each_process_holds_what_it_may_and_no_more(
    shared_daemon: Daemon, strip: list[float], secrets: dict[str, bytes]
) -> None:
    for _ in range(5):
        assert shared_daemon.predict(strip).status == 200
    children = shared_daemon.children()
    edge = count(children["edge"], secrets)
    assert edge == dict.fromkeys(secrets, 0), "the process that parses the network holds a secret"
    engine = count(children["engine"], secrets)
    assert engine["weights"] == 1, "one copy of the weights, no more"
    assert engine["identity"] == 0, "the identity is wiped once the models are open"
    assert engine["file key"] == 0, "the file key is wiped once the model is decrypted"
    supervisor = count(shared_daemon.pid, secrets)
    assert supervisor["identity"] == 1, "one locked copy"
    assert supervisor["weights"] == supervisor["file key"] == 0


def test_another_user_cannot_look(shared_daemon: Daemon) -> None:
    script = (
        "import os, sys\nos.setgid(65534); os.setuid(65534)\n"
        "for pid in sys.argv[1:]:\n"
        "    for name in ('mem', 'environ', 'maps'):\n"
        "        try:\n            open(f'/proc/{pid}/{name}', 'rb').read(1)\n"
        "        except OSError:\n            continue\n"
        "        sys.exit(f'{name} of {pid} was readable')\n"
    )
    pids = [str(pid) for pid in (shared_daemon.pid, *shared_daemon.children().values())]
    found = subprocess.run([sys.executable, "-c", script, *pids], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_no_process_would_leave_a_core(shared_daemon: Daemon) -> None:
    for pid in (shared_daemon.pid, *shared_daemon.children().values()):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0", limits)
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
