"""The graph's allow-lists: what real models need is accepted, and nothing of the vendor's machine survives.

That everything else is refused is shown in ``tests/attacks/test_graph_attacks.py``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._export.serde import schema

from pericard.errors import ForbiddenGraph
from pericard.runtime import export, expressions, graph, operators, pt2

INTEGER = "Integer(8)"
SYMBOL = "Symbol('s77', positive=True, integer=True)"


def test_the_pinned_schema_is_that_of_this_torch() -> None:
    assert schema.SCHEMA_VERSION == graph.SCHEMA


def as_exported(path: Path) -> dict[str, Any]:
    """The program as it stands in a ``.pt2``."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("models/model.json"))
        found: dict[str, Any] = json.loads(archive.read(name))
    return found


def test_a_normalised_graph_is_accepted_and_says_nothing_of_where_it_was_made(
    tiny_pt2: Path, tiny_graph: bytes
) -> None:
    assert "conftest.py" in json.dumps(as_exported(tiny_pt2))  # a stack trace with the vendor's path

    graph.check(tiny_graph)
    assert graph.normalise(as_exported(tiny_pt2)) == tiny_graph
    assert b"conftest" not in tiny_graph
    assert b"stack_trace" not in tiny_graph
    assert json.loads(tiny_graph)["graph_module"]["module_call_graph"] == []


def test_one_model_normalises_to_the_same_bytes(tiny_pt2: Path, tiny_graph: bytes) -> None:
    assert graph.normalise(export.serialised(pt2.read(tiny_pt2))) == tiny_graph


class Recurrent(torch.nn.Module):
    """A bidirectional LSTM whose initial state is made for the batch: symbolic arithmetic in tensor sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(1, 2, batch_first=True, bidirectional=True)

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return self.lstm(ecg.transpose(1, 2))[0].mean((1, 2))


class Attention(torch.nn.Module):
    """A transformer's layer: products of the batch, dropout that is off, scaled dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        return self.layer(ecg.reshape(ecg.shape[0], -1, 4)).mean((1, 2))


class Words(torch.nn.Module):
    """Operators with words of their own, an infinity, a cast (which leaves an assertion), an operator in place."""

    def forward(self, ecg: torch.Tensor) -> torch.Tensor:
        rows = torch.einsum("bct,bdt->bt", ecg, ecg).to(torch.float64).float()
        rows = torch.nn.functional.gelu(rows, approximate="tanh").clone()
        rows[:, 0] = 0
        return torch.softmax(rows.masked_fill(rows < 0, float("-inf")), -1).amax(-1)


@pytest.mark.parametrize("kind", [Recurrent, Attention, Words])
def test_what_models_of_signals_are_made_of_is_accepted(
    kind: Callable[[], torch.nn.Module], export_pt2: Callable[..., Path]
) -> None:
    path = export_pt2(kind(), torch.zeros(2, 1, 16))

    graph.check(graph.normalise(export.serialised(pt2.read(path))))


def test_assertions_do_not_survive(export_pt2: Callable[..., Path]) -> None:
    found = as_exported(export_pt2(Words(), torch.zeros(2, 1, 16)))
    assert "_assert_tensor_metadata" in json.dumps(found)

    assert b"_assert" not in graph.normalise(found, sealed=False)


def test_what_writes_in_place_is_sealed_only_once_it_is_rewritten(export_pt2: Callable[..., Path]) -> None:
    path = export_pt2(Words(), torch.zeros(2, 1, 16))

    with pytest.raises(ForbiddenGraph, match=r"names the operator 'torch\.ops\.aten\.(lift_fresh_copy|fill_)"):
        graph.normalise(as_exported(path))
    assert b"fill_" not in graph.normalise(export.serialised(pt2.read(path)))


def test_a_model_in_training_is_refused(export_pt2: Callable[..., Path]) -> None:
    class Training(torch.nn.Module):
        def forward(self, ecg: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(ecg, 0.5, training=True).mean((1, 2))

    with pytest.raises(ForbiddenGraph, match=r"dropout\.default has train switched on") as caught:
        graph.normalise(export.serialised(pt2.read(export_pt2(Training(), torch.zeros(2, 1, 16)))))
    assert caught.value.hint == "export the model in evaluation mode"


def test_a_model_of_another_torch_is_refused_with_advice(tiny_graph: bytes) -> None:
    program: dict[str, Any] = json.loads(tiny_graph)
    program["schema_version"]["minor"] += 1

    with pytest.raises(ForbiddenGraph, match=r"has schema 8\.21, this runtime reads 8\.20") as caught:
        graph.check(json.dumps(program).encode())
    assert "exports the model again" in (caught.value.hint or "")


def test_a_graph_beyond_its_limit_is_refused_unread() -> None:
    with pytest.raises(ForbiddenGraph, match="holds 67108865 bytes, allowed are 67108864"):
        graph.check(b"\xff" * (graph.MAX_GRAPH + 1))


# --- expressions


@pytest.mark.parametrize(
    "text",
    [
        SYMBOL,
        "Symbol('u0', integer=True)",
        "Symbol('s0')",
        "Symbol('s1', integer=True, positive=True)",
        INTEGER,
        "Integer(-5)",
        f"Mul({INTEGER}, {SYMBOL})",
        f"Max(Integer(1), Add(FloorDiv(Add({SYMBOL}, Integer(-5)), Integer(2)), Integer(1)))",
        f"Pow({SYMBOL}, Integer(2))",
        f"Min(Mod({SYMBOL}, Integer(4)), Integer(0))",
    ],
)
def test_integer_arithmetic_is_allowed(text: str) -> None:
    assert expressions.allowed(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#",
        "Add(#, #)",
        "8",
        "s77",
        "s77 + 1",
        "2 * * 3",
        "9**9**9**9",
        f"{SYMBOL}{SYMBOL}",
        f"{SYMBOL}, {SYMBOL}",
        f"{SYMBOL} ",
        f" {SYMBOL}",
        f"({SYMBOL})",
        f"Add{SYMBOL}",
        "Add()",
        f"Add({SYMBOL},{SYMBOL})",
        f"Add({SYMBOL}, {SYMBOL}",
        f"Add({SYMBOL}, x)",
        f"Sub({SYMBOL}, {SYMBOL})",
        f"sin({SYMBOL})",
        f"Equality({SYMBOL}, {SYMBOL})",
        f"eval({SYMBOL})",
        f"xAdd({SYMBOL})",
        "Integer(1.5)",
        "Integer('1')",
        "Integer(__import__('os'))",
        "Integer(9999999999999999999)",
        "Symbol('x')",
        "Symbol('s1234567')",
        "Symbol('s1', commutative=False)",
        "Symbol('s1', positive=False)",
        'Symbol("s1")',
        "Symbol('s1').__class__",
        f"Pow({SYMBOL}, Integer(9))",
        f"Pow({SYMBOL}, Integer(-1))",
        f"Pow({SYMBOL}, Integer(99999999))",
        f"Pow(Pow({SYMBOL}, Integer(8)), Integer(8))",
        "Pow(Integer(9), Integer(8))",
        "Add(" * 129 + INTEGER + ")" * 129,
        "Add(" + ", ".join([INTEGER] * 400) + ")",
        f"{SYMBOL}\n",
        "Integer(٣)",
    ],
)
def test_nothing_else_is(text: str) -> None:
    assert not expressions.allowed(text)


def test_as_deep_and_as_long_as_allowed() -> None:
    assert expressions.allowed("Add(" * 128 + INTEGER + ")" * 128)
    assert expressions.allowed("Add(" + ", ".join([INTEGER] * 300) + ")")


# --- operators


def pure(name: str) -> list[str]:
    packet = getattr(torch.ops.aten, name)
    return [overload for overload in packet.overloads() if operators.allowed(f"torch.ops.aten.{name}.{overload}")]


@pytest.mark.parametrize("name", sorted(operators.ALLOWED))
def test_every_operator_on_the_list_exists_and_is_pure(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    schemas = {overload: getattr(packet, overload)._schema for overload in pure(name)}

    assert schemas
    for schema_ in schemas.values():
        assert not schema_.is_mutable
        assert not any("Generator" in str(argument.type) and name != "rrelu" for argument in schema_.arguments)
        assert not any(argument.name in {"filename", "storage"} for argument in schema_.arguments)


def test_no_operator_that_writes_draws_or_reads_elsewhere_is_on_the_list() -> None:
    forbidden = (
        "rand",
        "bernoulli",
        "normal",
        "multinomial",
        "poisson",
        "empty",
        "file",
        "as_strided",
        "resize",
        "set_",
    )
    exceptions = {"_native_batch_norm_legit_no_training"}

    found = {name for name in operators.ALLOWED for word in forbidden if word in name and name not in exceptions}
    assert {name for name in found if "norm" not in name} == set()
    assert not [name for name in operators.ALLOWED if name.endswith("_")]


def test_what_torch_calls_random_has_a_switch_that_must_be_off() -> None:
    switches = {"train", "training", "dropout_p"}
    for name in operators.ALLOWED:
        for overload in pure(name):
            operator = getattr(getattr(torch.ops.aten, name), overload)
            if torch.Tag.nondeterministic_seeded in operator.tags:
                assert {argument.name for argument in operator._schema.arguments} & switches, (name, overload)


@pytest.mark.parametrize("target", sorted(operators.ALLOWED_PYTHON))
def test_pythons_arithmetic_is_that_of_torchs_reader(target: str) -> None:
    import operator

    from torch._export.serde.serialize import _SYM_OPS

    assert getattr(operator, target.removeprefix("_operator.")) in _SYM_OPS
