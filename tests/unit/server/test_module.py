"""A vendor's own module and its weights: what fits is exported, and what does not is explained, never guessed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pericard.errors import ForbiddenGraph, UnsupportedModel
from pericard.runtime import export, module
from pericard.sealed import Description, Output, artifact
from pericard.tensors import TensorSpec

SOURCE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width=3):
            super().__init__()
            self.conv = nn.Conv1d(1, width, 8, 4)
            self.norm = nn.BatchNorm1d(width)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(width, 1)

        def forward(self, ecg):
            return torch.sigmoid(self.head(self.drop(torch.relu(self.norm(self.conv(ecg)))).mean(2)))[:, 0]

    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, ecg):
            self.count += 1
            return super().forward(ecg) + self.count

    class Noting(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, ecg):
            self.seen.copy_(ecg.mean().reshape(1))
            return super().forward(ecg)

    class Failing(Net):
        def forward(self, ecg):
            raise ValueError("no such lead")

    class Remembering(Net):
        last = torch.zeros(())

        def forward(self, ecg):
            self.last = self.last + ecg.mean()
            return super().forward(ecg) + self.last

    class Fixed(Net):
        def forward(self, ecg):
            return super().forward(ecg.reshape(1, 1, 64))

    class Branching(Net):
        def forward(self, ecg):
            return super().forward(ecg) if ecg.mean() > 0 else ecg.mean((1, 2))

    class Unlisted(Net):
        def forward(self, ecg):
            return super().forward(ecg.as_strided(ecg.shape, (64, 64, 1)))

    class Random(Net):
        def forward(self, ecg):
            return super().forward(ecg + torch.rand_like(ecg))

    def wide():
        return Net(5)

    def double():
        return Net().double()

    def failing():
        raise RuntimeError("no such file: config.toml\\nsecond line")

    def needing(path):
        return Net()

    def nothing():
        return None

    constant = 5
"""


@pytest.fixture
def about(tiny_description: Description) -> Description:
    return replace(tiny_description, outputs=(Output(TensorSpec("score", "float32", (-1,)), "score"),))


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The vendor's folder, which is the current one, with ``vendor_net.py`` in it."""
    (tmp_path / "vendor_net.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("vendor_net", None)


Save = Callable[..., Path]


@pytest.fixture
def save(vendor: Path) -> Save:
    """``save(change, name)`` writes what ``change`` makes of the net's weights."""

    def run(change: Callable[[dict[str, Any]], Any] = lambda state: state, name: str = "Net") -> Path:
        torch.manual_seed(3)
        net, _ = made(name)
        torch.save(change(dict(net.state_dict())), vendor / "weights.pth")
        return vendor / "weights.pth"

    return run


def made(name: str) -> tuple[torch.nn.Module, None]:
    return module._made(f"vendor_net:{name}"), None


# --- what is sealed


def test_a_module_is_sealed_with_its_weights(save: Save, about: Description) -> None:
    weights = save()
    prepared = export.prepare_module("vendor_net:Net", weights, about)

    assert prepared.description == about
    assert prepared.remarks == ()
    found = artifact.parse(memoryview(b"".join(prepared.plain[1])), subject="it")
    assert "norm.running_mean" in [tensor.name for tensor in found.tensors]


def test_it_computes_what_the_module_does(save: Save, about: Description) -> None:
    weights = save()
    plain = memoryview(b"".join(export.prepare_module("vendor_net:Net", weights, about).plain[1]))
    answer = artifact.parse(plain, subject="it").known_answers[1]
    ecg, score = (
        np.frombuffer(plain[t.offset : t.offset + t.size], np.float32).reshape(t.shape)
        for t in (answer.inputs[0], answer.outputs[0])
    )
    net, _ = module.build("vendor_net:Net", weights)
    assert not net.training

    with torch.inference_mode():
        np.testing.assert_array_equal(net(torch.tensor(ecg)).numpy(), score)


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict"])
def test_weights_inside_a_checkpoint_are_taken_and_named(entry: str, save: Save, about: Description) -> None:
    weights = save(lambda state: {"epoch": 5, entry: state, "optimizer": {"lr": 0.1}})

    prepared = export.prepare_module("vendor_net:Net", weights, about)
    assert prepared.remarks == (f"{weights}: the weights are its entry {entry!r}",)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "any.thing."])
def test_a_prefix_is_named_not_removed_until_it_is_asked_for(prefix: str, save: Save, about: Description) -> None:
    weights = save(lambda state: {prefix + name: tensor for name, tensor in state.items()})

    with pytest.raises(
        UnsupportedModel, match=r"does not hold the weights of vendor_net:Net: 9 missing: conv\.weight"
    ) as caught:
        export.prepare_module("vendor_net:Net", weights, about)
    assert f"--strip-prefix {prefix}" in (caught.value.hint or "")
    assert export.prepare_module("vendor_net:Net", weights, about, strip_prefix=prefix).remarks == ()


def test_the_current_folder_is_searched_for_the_module_alone(save: Save, vendor: Path) -> None:
    before = list(sys.path)
    module.build("vendor_net:Net", save())

    assert sys.path == before
    assert str(vendor) not in sys.path


def test_weights_that_run_code_are_refused_and_run_none(vendor: Path, about: Description) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path(vendor / "code-ran").touch, ()

    torch.save({"conv.weight": Payload()}, vendor / "weights.pth")
    with pytest.raises(
        UnsupportedModel, match=r"is not a file of weights: it holds objects \(.*\), not tensors alone"
    ) as caught:
        export.prepare_module("vendor_net:Net", vendor / "weights.pth", about)
    assert "torch.save(model.state_dict()" in (caught.value.hint or "")
    assert not (vendor / "code-ran").exists()


# --- what is explained


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: {}, "holds no set of weights"),
        (lambda _: [1, 2], "holds no set of weights; it holds a list"),
        (lambda state: {"epoch": 1, "weights": state}, "holds no set of weights; it holds 'epoch', 'weights'"),
        (lambda state: {"model": state, "state_dict": state}, r"more than one set of weights \(state_dict, model\)"),
        (
            lambda state: {k: v for k, v in state.items() if k != "head.bias"},
            r"does not hold the weights of vendor_net:Net: 1 missing: head\.bias \[1\]$",
        ),
        (lambda state: state | {"loss.weight": torch.zeros(2, 3)}, r"1 unexpected: loss\.weight \[2, 3\]$"),
        (
            lambda _: {f"x{number}": torch.zeros(number) for number in range(5)},
            r"9 missing: conv\.weight \[3, 1, 8\], .*, …; 5 unexpected: x0 \[0\], x1 \[1\], x2 \[2\], …$",
        ),
        (
            lambda state: state | {"head.weight": torch.zeros(1, 4)},
            r"head\.weight is float32\[1, 4\], the module has float32\[1, 3\]$",
        ),
        (
            lambda state: {name: tensor.half() for name, tensor in state.items()},
            r"conv\.weight is float16\[3, 1, 8\], the module has float32\[3, 1, 8\]$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_explained(
    change: Callable[[dict[str, Any]], Any], reason: str, save: Save, about: Description
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        export.prepare_module("vendor_net:Net", save(change), about)


def test_a_prefix_that_explains_only_a_part_is_said_to(save: Save, about: Description) -> None:
    weights = save(lambda state: {"module." + name: tensor for name, tensor in state.items() if "head" not in name})

    with pytest.raises(UnsupportedModel) as caught:
        export.prepare_module("vendor_net:Net", weights, about)
    assert "these come from DataParallel" in (caught.value.hint or "")
    assert "though others differ too" in (caught.value.hint or "")


def test_a_prefix_that_not_every_name_has_is_refused(save: Save, about: Description) -> None:
    weights = save(lambda state: {f"module.{k}" if "head" in k else k: v for k, v in state.items()})

    with pytest.raises(UnsupportedModel, match=r"7 of 9 names do not begin with 'module\.': conv\.weight"):
        export.prepare_module("vendor_net:Net", weights, about, strip_prefix="module.")


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("vendor_net", r"is not of the form pkg\.mod:factory"),
        ("vendor_net:", r"is not of the form pkg\.mod:factory"),
        ("no_such_package:Net", "no_such_package cannot be imported: ModuleNotFoundError"),
        ("vendor_net:Missing", "vendor_net has no Missing that can be called"),
        ("vendor_net:constant", "vendor_net has no constant that can be called"),
        ("vendor_net:failing", r"without arguments: RuntimeError: no such file: config\.toml$"),
        ("vendor_net:needing", "without arguments: TypeError"),
        ("vendor_net:nothing", r"makes a NoneType, not a torch\.nn\.Module"),
        ("vendor_net:wide", r"conv\.weight is float32\[3, 1, 8\], the module has float32\[5, 1, 8\]"),
        ("vendor_net:double", r"conv\.weight is float32\[3, 1, 8\], the module has float64\[3, 1, 8\]"),
    ],
)
def test_a_factory_that_does_not_work_is_explained(factory: str, reason: str, save: Save, about: Description) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        export.prepare_module(factory, save(), about)


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("Counting", UnsupportedModel, "answers one question differently the second time"),
        ("Noting", UnsupportedModel, "its forward changes seen; a sealed model keeps no state between answers"),
        ("Failing", UnsupportedModel, r"its forward fails for float32\[1, 1, 64\]: ValueError: no such lead$"),
        ("Remembering", UnsupportedModel, "answers one question differently the second time"),
        ("Branching", UnsupportedModel, r"torch\.export cannot export it: "),
        ("Random", UnsupportedModel, "answers one question differently the second time"),
        ("Unlisted", ForbiddenGraph, r"names the operator 'torch\.ops\.aten\.as_strided\.default'"),
    ],
)
def test_a_forward_that_cannot_be_sealed_is_explained(
    name: str, error: type[Exception], reason: str, save: Save, about: Description
) -> None:
    with pytest.raises(error, match=reason):
        export.prepare_module(f"vendor_net:{name}", save(name=name), about)


def test_a_module_for_one_item_is_sealed_for_one_and_says_so(save: Save, about: Description) -> None:
    prepared = export.prepare_module("vendor_net:Fixed", save(name="Fixed"), about)

    assert (prepared.description.max_batch, prepared.description.buckets) == (1, (1,))
    assert "vendor_net:Fixed: will be served one by one: it cannot be exported for batches" in prepared.remarks[0]


def test_files_that_are_no_weights_are_refused(vendor: Path, about: Description) -> None:
    for content in (b"", b"weights", bytes(1000)):
        (vendor / "weights.pth").write_bytes(content)
        with pytest.raises(UnsupportedModel, match=r"weights\.pth: is not a file of weights"):
            export.prepare_module("vendor_net:Net", vendor / "weights.pth", about)
    with pytest.raises(UnsupportedModel, match=r"missing\.pth: there is no such file"):
        export.prepare_module("vendor_net:Net", vendor / "missing.pth", about)
