"""P3: a sealed model cannot run code. Every way into torch's reader that could is closed before torch sees the graph.

What torch's reader (``torch._export.serde.serialize``) does with a graph: it evaluates ``expr_str`` (``sympify``),
looks up ``target`` and ``as_operator`` with ``getattr``, fetches custom objects from the constants, builds sub-graphs,
loads tree specifications, reads ``metadata``, and pastes names into Python source that it compiles. Here: expressions,
names, and a hostile value in every place of a real graph; each would leave a marker. torch's own file format stands in
``test_pt2_attacks.py``, what a node may call in ``test_graph_operators.py``, what a graph may carry in
``test_graph_structure.py``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import JSON, code, encoded, inner

from pericard.errors import ForbiddenGraph, PericardError
from pericard.runtime import exported, graph
from pericard.runtime.exported import ExportedBackend


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What only code from a model would make."""
    return tmp_path / "code-ran"


# --- sympify


def expressions(program: JSON) -> Iterator[JSON]:
    """Every expression of the graph."""
    pending: list[Any] = [program]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if "expr_str" in item:
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def set_expressions(program: JSON, text: str) -> None:
    found = list(expressions(program))
    assert found
    for expression in found:
        expression["expr_str"] = text


def test_without_the_check_an_expression_is_code(
    program: JSON, weights: dict[str, torch.Tensor], marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack is real: this is what the check stands against."""
    monkeypatch.setattr(exported.graphs, "check", lambda _: None)
    set_expressions(program, code(marker, "5"))
    with contextlib.suppress(PericardError):
        ExportedBackend(encoded(program), weights, device="cpu")

    assert marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "open('{marker}', 'w')",
        "__import__('pathlib').Path('{marker}').touch()",
        "(lambda: open('{marker}', 'w'))()",
        "Symbol('s77', positive=True, integer=True) + open('{marker}', 'w').write('x')",
        "Integer(open('{marker}', 'w').write('x'))",
        "Add(Integer(1), open('{marker}', 'w'))",
        "Symbol('s77', positive=open('{marker}', 'w'))",
        "[open('{marker}', 'w') for _ in [1]]",
        'exec(\'open("{marker}", "w")\')',
        "Symbol.__class__.__base__.__subclasses__()",
        "9**9**9**9",
        "9* *9* *9* *9",
        "Pow(Integer(9), Pow(Integer(9), Integer(999999999)))",
        "factorial(99999999)",
        "9!!!!!!!!",
        "(" * 200 + "1" + ")" * 200,
        "1e999999999",
        "0x10",
        "1 # Symbol('s77')",
        "'s77'",
        "s77",
        "zoo",
        "I",
        "True",
        "",
        "\u0053ymbol('s1')\u200b",
    ],
)
def test_an_expression_that_is_not_plain_arithmetic_is_refused(
    text: str, program: JSON, weights: dict[str, torch.Tensor], marker: Path
) -> None:
    set_expressions(program, text.replace("{marker}", str(marker)))

    with pytest.raises(ForbiddenGraph):
        ExportedBackend(encoded(program), weights, device="cpu")
    assert not marker.exists()


# --- names that are pasted into source


NAMES = [
    "x\n    open('{marker}', 'w')",
    "x=open('{marker}', 'w')",
    "x: open('{marker}', 'w')",
    "x); open('{marker}', 'w'); (y",
    "*x",
    "x y",
    "x.y",
    "x[0]",
    "x#",
    "x\u2028y",
    "\uff58",  # a full-width x, which Python takes for x
    "1x",
    "lambda",
    "None",
    "import",
    "",
    " x",
    "x\n",
    "x" * 257,
    None,
    5,
    ["x"],
    {},
]


def rename_input(program: JSON, name: Any) -> None:
    inner(program)["inputs"][0]["as_tensor"]["name"] = name


def rename_output(program: JSON, name: Any) -> None:
    inner(program)["nodes"][0]["outputs"][0]["as_tensor"]["name"] = name


def rename_node(program: JSON, name: Any) -> None:
    inner(program)["nodes"][0]["name"] = name


def rename_argument(program: JSON, name: Any) -> None:
    inner(program)["nodes"][0]["inputs"][0]["name"] = name


def rename_use(program: JSON, name: Any) -> None:
    inner(program)["nodes"][0]["inputs"][0]["arg"]["as_tensor"]["name"] = name


def rename_result(program: JSON, name: Any) -> None:
    inner(program)["outputs"][0]["as_tensor"]["name"] = name


def rename_value(program: JSON, name: Any) -> None:
    values = inner(program)["tensor_values"]
    values[name] = values.pop("ecg")


def rename_signature(program: JSON, name: Any) -> None:
    program["graph_module"]["signature"]["input_specs"][0]["parameter"]["arg"]["name"] = name


def rename_symbol(program: JSON, name: Any) -> None:
    program["range_constraints"] = {name: {"min_val": 1, "max_val": 64}}


RENAMES = [
    rename_input, rename_output, rename_node, rename_argument, rename_use, rename_result, rename_value,
    rename_signature, rename_symbol,
]  # fmt: skip


@pytest.mark.parametrize("rename", RENAMES)
def test_a_name_that_is_more_than_a_name_is_refused(
    rename: Callable[[JSON, Any], None], program: JSON, weights: dict[str, torch.Tensor], marker: Path
) -> None:
    for name in NAMES:
        changed = copy.deepcopy(program)
        text = name.replace("{marker}", str(marker)) if isinstance(name, str) else name
        if type(name) is not str and rename in {rename_node, rename_value, rename_symbol}:
            continue  # a key of JSON is a text, and a node may be without a name
        rename(changed, text)
        with pytest.raises(ForbiddenGraph):
            ExportedBackend(encoded(changed), weights, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["u999999999999", "zuf99999999", "s1234567", "torch", "s77.x"])
def test_a_symbol_that_torch_would_count_up_to_is_refused(name: str, program: JSON) -> None:
    rename_symbol(program, name)

    with pytest.raises(ForbiddenGraph, match="has the bad symbol"):
        graph.check(encoded(program))


@pytest.mark.parametrize("name", ["../etc", "a b", "", "a/b", "é", "x" * 513, None, 5])
def test_a_tensor_is_named_as_modules_are(name: Any, program: JSON) -> None:
    program["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = name

    with pytest.raises(ForbiddenGraph, match="bad parameter_name"):
        graph.check(encoded(program))


# --- every place of a real graph, one after the other


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def test_a_hostile_value_in_any_place_is_refused_or_harmless(
    program: JSON, weights: dict[str, torch.Tensor], marker: Path
) -> None:
    """Accepted is only what has the type of its place; and then torch either builds a graph or says that it cannot."""
    code = f"open({str(marker)!r}, 'w')"
    accepted = []
    everywhere = list(places(program))
    assert len(everywhere) > 500
    for place in everywhere:
        holder: Any = program
        for key in place[:-1]:
            holder = holder[key]
        kept = holder[place[-1]]
        for hostile in (code, {"as_operator": code}, [code], {}, [], None, -7, 1e300):
            holder[place[-1]] = hostile
            data = encoded(program)
            try:
                graph.check(data)
            except ForbiddenGraph:
                continue
            assert hostile not in (code, [code], {"as_operator": code}), place
            accepted.append(data)
        holder[place[-1]] = kept
    assert accepted
    for data in accepted[:: max(1, len(accepted) // 40)]:
        try:
            ExportedBackend(data, weights, device="cpu").close()
        except PericardError:
            continue
    assert not marker.exists()
