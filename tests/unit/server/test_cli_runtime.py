"""Where a model was sealed: the runtime is proved first, the network is gone, and the manifest says which it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from speaking import Said, refused, spawn

from pericard import environment
from pericard.keys import Identity, PublisherKey

# A factory that tells what it can reach: it runs while the model is prepared.
NET = """
import socket
from torch import nn

def make():
    with socket.socket() as sock:
        sock.settimeout(1)
        open("reached", "w").write(str(sock.connect_ex(("127.0.0.1", 9))))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
"""
NETWORK_UNREACHABLE, CONNECTION_REFUSED = "101", "111"


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vendor's folder, the current one."""
    import torch

    key = PublisherKey.generate(tmp_path / "vendor.key")
    key.publisher.write(tmp_path / "vendor.pub")
    Identity.generate(tmp_path / "archive.key").recipient.write(tmp_path / "archive.pub")
    about = {
        "name": "tiny", "version": "1.0.0", "sequence": 1, "publisher": "Test vendor", "intended_use": "for tests",
        "inputs": [{"name": "ecg", "dtype": "float32", "shape": [-1, 1, 64]}],
        "outputs": [{"name": "score", "dtype": "float32", "shape": [-1], "meaning": "score"}],
        "batch": {"max": 2, "buckets": [1, 2]},
    }  # fmt: skip
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(about))
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(1)
    torch.save({"1.weight": torch.randn(1, 64), "1.bias": torch.randn(1)}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def seal(**changes: str) -> Said:
    return spawn(
        "seal", "weights.pth", "--module", "net:make", "--manifest", "model.yaml", "--sign-with", "vendor.key",
        "--archive", "archive.pub", "--days", "30", "-o", "tiny.sealed", **changes,
    )  # fmt: skip


def test_a_model_is_sealed_without_a_network_in_a_runtime_that_can_be_asked_for(vendor: Path) -> None:
    sealed = seal()

    assert sealed.status == 0, sealed.err
    isolated = "without a network" in sealed.err
    assert isolated or "with the network up: this host does not let it be dropped" in sealed.err
    assert (vendor / "reached").read_text() == (NETWORK_UNREACHABLE if isolated else CONNECTION_REFUSED)

    here, elsewhere = environment.describe().digest, "ab" * 32
    verify = ("verify", "tiny.sealed", "--publisher", "vendor.pub", "--sealed-in")
    assert spawn(*verify, here).status == 0
    refused(spawn(*verify, elsewhere), f"was sealed in runtime {here}, not in {elsewhere}")


def test_a_runtime_that_drifted_seals_nothing(vendor: Path) -> None:
    drifted = vendor / "drifted"
    (drifted / "lib-1.0.dist-info").mkdir(parents=True)
    (drifted / "lib-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lib\nVersion: 1.0\n")
    (drifted / "lib-1.0.dist-info" / "RECORD").write_text("lib.py,sha256=AAAA,1\n")
    (drifted / "lib.py").write_text("x")

    refused(seal(PYTHONPATH=str(drifted)), "runtime: 1 of ", "lib.py")
    assert not (vendor / "tiny.sealed").exists()
    assert not (vendor / "reached").exists()
