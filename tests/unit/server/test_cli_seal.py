"""``pericard seal``: every kind of artifact, what it warns of, and how it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx_models import conv
from speaking import Said, Say, listing, refused, spawn

from pericard.keys import Identity, PublisherKey, Recipient
from pericard.sealed import SealedModel

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 1)

    def forward(self, ecg):
        return self.head(ecg[:, 0])[:, 0]
"""


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vendor's folder, the current one: keys, a description of one score, a module and its weights."""
    key = PublisherKey.generate(tmp_path / "vendor.key")
    key.publisher.write(tmp_path / "vendor.pub")
    for name in ("archive", "hospital"):
        Identity.generate(tmp_path / f"{name}.key").recipient.write(tmp_path / f"{name}.pub")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({
        "name": "tiny",
        "version": "1.0.0",
        "sequence": 1,
        "publisher": "Test vendor",
        "intended_use": "a model for tests",
        "inputs": [{"name": "ecg", "dtype": "float32", "shape": [-1, 1, 64]}],
        "outputs": [{"name": "score", "dtype": "float32", "shape": [-1], "meaning": "score"}],
        "batch": {"max": 4, "buckets": [1, 4]},
    }))  # fmt: skip
    (tmp_path / "ecgnet.py").write_text(NET)
    torch.manual_seed(1)
    torch.save({"module.head.weight": torch.randn(1, 64), "module.head.bias": torch.randn(1)}, tmp_path / "weights.pth")
    onnx.save(conv(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ecgnet", raising=False)
    return tmp_path


@pytest.fixture
def seal(say: Say, vendor: Path) -> Callable[..., Said]:
    def run(artifact: str, *more: str) -> Said:
        said: Said = say(
            "seal", artifact, "--manifest", "model.yaml", "--sign-with", "vendor.key", "--archive", "archive.pub",
            "-r", "hospital.pub", "-o", "out.sealed", "--days", "30", *more,
        )  # fmt: skip
        return said

    return run


def described(say: Say) -> dict[str, object]:
    found: dict[str, object] = json.loads(say("inspect", "out.sealed", "--json").out)
    return found


def test_an_onnx_is_sealed_and_answers_at_the_hospital(seal: Callable[..., Said], say: Say, vendor: Path) -> None:
    said = seal("model.onnx")

    assert said.status == 0, said
    assert "warning" not in said.err
    assert described(say)["kind"] == "onnx"
    tried = spawn("verify", "out.sealed", "--publisher", "vendor.pub", "-i", "hospital.key", "--json")
    assert tried.status == 0, tried
    assert json.loads(tried.out)["known_answers"] == "right on cpu at batch sizes 1, 4"


def test_a_module_is_sealed_once_its_weights_fit(seal: Callable[..., Said], say: Say, vendor: Path) -> None:
    refused(
        seal("weights.pth", "--module", "ecgnet:Net"),
        "weights.pth: does not hold the weights of ecgnet:Net",
        "head.weight",
    )
    assert "out.sealed" not in listing(vendor)

    said = seal("weights.pth", "--module", "ecgnet:Net", "--strip-prefix", "module.")
    assert said.status == 0, said
    assert described(say)["kind"] == "exported"


def test_the_hint_for_a_wrapper_can_be_typed_as_it_stands(seal: Callable[..., Said]) -> None:
    said = seal("weights.pth", "--module", "ecgnet:Net")

    assert said.err.splitlines()[1] == (
        "hint: these come from DataParallel: every name begins with 'module.': --strip-prefix module."
    )


def test_what_the_vendor_should_know_is_a_warning(seal: Callable[..., Said], say: Say, vendor: Path) -> None:
    onnx.save(conv(batch=1), vendor / "model.onnx")
    said = seal("model.onnx")

    assert said.status == 0, said
    assert said.err.startswith(
        "warning: model.onnx: will be served one by one, whatever its description says of batches"
    )
    with SealedModel(vendor / "out.sealed") as source:
        manifest = json.loads(source.manifest_bytes)
    assert manifest["batch"] == {"buckets": [1], "max": 1}
    assert described(say)["batch"] == "at most 1, asked as 1"
    assert described(say)["tolerance"] == "cpu atol 0.0001 rtol 0.001"


def test_own_questions_are_sealed_with_a_warning(seal: Callable[..., Said], vendor: Path) -> None:
    np.savez(vendor / "own.npz", ecg=np.random.default_rng(1).normal(size=(2, 1, 64)).astype(np.float32))
    said = seal("model.onnx", "--questions", "own.npz")

    assert said.status == 0, said
    assert "warning: own.npz: these questions and their answers go to every hospital" in said.err
    assert "must not be a patient's" in said.err


@pytest.mark.parametrize(
    ("artifact", "more", "words"),
    [
        ("model.pt", (), ("model.pt: is of a kind that cannot be sealed",)),
        ("model.safetensors", (), ("model.safetensors: is of a kind that cannot be sealed",)),
        ("weights.pth", (), ("weights.pth: is of a kind that cannot be sealed",)),
        ("model.onnx", ("--module", "ecgnet:Net"), ("a .onnx needs no --module",)),
        ("missing.pt2", (), ("missing.pt2: there is no such file",)),
        ("missing.onnx", (), ("missing.onnx: there is no such file",)),
        ("missing.pth", ("--module", "ecgnet:Net"), ("missing.pth: there is no such file",)),
        ("weights.pth", ("--module", "ecgnet"), ("ecgnet: is not of the form pkg.mod:factory",)),
        ("weights.pth", ("--module", "nowhere:Net"), ("nowhere cannot be imported",)),
        ("weights.pth", ("--module", "ecgnet:Gone"), ("ecgnet has no Gone",)),
        ("model.yaml", ("--module", "ecgnet:Net"), ("model.yaml: is not a file of weights",)),
        ("model.onnx", ("--questions", "model.yaml"), ("model.yaml: is not a .npz",)),
    ],
)
def test_a_refusal_is_one_sentence_and_seals_nothing(
    artifact: str, more: tuple[str, ...], words: tuple[str, ...], seal: Callable[..., Said], vendor: Path
) -> None:
    refused(seal(artifact, *more), *words)
    assert "out.sealed" not in listing(vendor)


def test_a_prefix_goes_with_a_module(seal: Callable[..., Said]) -> None:
    said = seal("model.onnx", "--strip-prefix", "module.")

    assert said.status == 2
    assert "--strip-prefix goes with --module" in said.err


def test_the_archive_and_the_hospital_are_the_recipients(seal: Callable[..., Said], vendor: Path) -> None:
    assert seal("model.onnx").status == 0
    with SealedModel(vendor / "out.sealed") as source:
        granted = {json.loads(body)["recipient"] for body, _ in source.packed_grants}

    assert granted == {Recipient.read(vendor / f"{name}.pub").id for name in ("archive", "hospital")}
