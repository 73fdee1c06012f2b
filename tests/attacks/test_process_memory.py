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
from process_memory import count
from watched import core_of, count_in_file

from pericard.keys import Identity, LogKey, Publisher
from pericard.sealed import SealedModel
from pericard.sealed.payload import _derive

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0 and not os.environ.get("CI"), reason="only root may read another process's memory"
    ),
]


@pytest.fixture
def secrets(shared_daemon: Daemon) -> dict[str, bytes]:
    """What may leak: the identity's seed, the log's secrets, the file key, and a stretch of the weights."""
    folder = shared_daemon.site.folder
    identity = Identity.read(folder / "identity.key")
    with SealedModel(folder / "tiny.sealed") as source:
        model = source.verify([Publisher.read(folder / "vendor.pub")])
        (grant,) = model.grants_for(identity.recipient.id)
        file_key = bytes(grant.unwrap(identity))
        payload_key = bytes(_derive(bytearray(file_key), model.manifest.file_id, b"payload", 32))
    log_secret = bytes(LogKey.read_secret(folder / "log.key"))
    program = torch.export.load(folder / "tiny.pt2")
    weights = program.state_dict["conv.weight"].detach().numpy().tobytes()
    return {
        "identity": bytes(Identity.read_seed(folder / "identity.key")),
        "log signing seed": log_secret[:32],
        "commitment key": log_secret[32:],
        "file key": file_key,
        "payload key": payload_key,
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
    assert engine["payload key"] == 0, "it ends with the cipher"
    supervisor = count(shared_daemon.pid, secrets)
    assert supervisor["identity"] == 1, "one locked copy"
    assert supervisor["weights"] == supervisor["file key"] == supervisor["payload key"] == 0


def test_cores_taken_by_root_hold_neither_weights_nor_the_identity(
    shared_daemon: Daemon, secrets: dict[str, bytes], tmp_path: Path
) -> None:
    """Left out of cores: what lies in private memory. The log's keys are in a library's, and root could read them."""
    private = {name: secrets[name] for name in ("weights", "identity", "file key", "payload key")}
    folder = str(shared_daemon.site.folder).encode()
    for pid in (shared_daemon.pid, shared_daemon.children()["engine"]):
        core = core_of(pid, tmp_path)
        found = count_in_file(core, private | {"its folder": folder})
        core.unlink()
        assert found.pop("its folder") >= 1, "the core is one of this process's memory"
        assert found == dict.fromkeys(private, 0)


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
