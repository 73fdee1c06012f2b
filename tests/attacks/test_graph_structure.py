"""P3: what a graph may carry. Every key and every type that is not written down is refused, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from graphs import JSON, encoded, inner
from torch._export.serde import schema

from pericard.errors import ForbiddenGraph
from pericard.runtime import graph
from pericard.runtime.exported import ExportedBackend


def first_expression(program: JSON) -> JSON:
    pending: list[Any] = [program]
    for item in pending:
        if isinstance(item, dict) and "expr_str" in item:
            return item
        pending.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    raise LookupError


# --- argument kinds, devices, numbers


ALL_KINDS = [field.name for field in fields(schema.Argument)]
HARMLESS = {
    "as_none", "as_bool", "as_bools", "as_int", "as_ints", "as_float", "as_floats", "as_string", "as_tensor",
    "as_tensors", "as_optional_tensor", "as_optional_tensors", "as_sym_int", "as_sym_ints", "as_sym_bool",
    "as_sym_float", "as_scalar_type", "as_memory_format", "as_layout", "as_device",
}  # fmt: skip


def test_every_kind_of_argument_that_torch_knows_was_decided_on() -> None:
    assert set(graph._ARGUMENTS) == HARMLESS
    assert set(ALL_KINDS) - HARMLESS == {
        "as_strings", "as_sym_bools", "as_sym_floats", "as_graph", "as_custom_obj", "as_operator", "as_complex",
        "as_nested_tensors", "as_int_lists", "as_float_lists", "as_string_to_argument",
    }  # fmt: skip


SUBGRAPH: JSON = {"name": "sub", "graph": {}}


@pytest.mark.parametrize(
    "value",
    [
        {"as_operator": "torch.os.system"},
        {"as_graph": SUBGRAPH},
        {"as_custom_obj": {"name": "ecg", "class_fqn": "os.system"}},
        {"as_strings": ["a"]},
        {"as_complex": {"real": 1.0, "imag": 1.0}},
        {"as_int_lists": [[1]]},
        {"as_float_lists": [[1.0]]},
        {"as_nested_tensors": [[{"name": "ecg"}]]},
        {"as_string_to_argument": {"a": {"as_operator": "torch.os.system"}}},
        {"as_code": "import os"},
        {},
        {"as_int": 1, "as_operator": "torch.os.system"},
        {"as_string": "__import__('os')"},
        {"as_string": "/etc/passwd"},
        {"as_string": "{ecg.__class__}"},
        {"as_string": 5},
        {"as_int": "5"},
        {"as_int": "__import__('os')"},
        {"as_int": True},
        {"as_int": 1.5},
        {"as_int": 1 << 63},
        {"as_ints": ["x"]},
        {"as_ints": "12"},
        {"as_ints": {"0": 1}},
        {"as_bool": 1},
        {"as_bools": [0]},
        {"as_float": "1e5"},
        {"as_float": "__import__('os')"},
        {"as_floats": [None]},
        {"as_tensor": "ecg"},
        {"as_tensor": {"name": "ecg", "code": "x"}},
        {"as_tensors": [{"name": "x); import os"}]},
        {"as_optional_tensors": [{"as_custom_obj": {"name": "ecg", "class_fqn": "x"}}]},
        {"as_sym_int": {"as_name": "x)"}},
        {"as_sym_int": {"as_expr": {"expr_str": "x", "hint": None}}},
        {"as_sym_ints": [{"as_int": "5"}]},
        {"as_scalar_type": "FLOAT"},
        {"as_layout": None},
        {"as_device": {"type": "cuda", "index": 0}},
        {"as_device": {"type": "meta", "index": None}},
        {"as_device": {"type": "cpu", "index": 0}},
        {"as_device": {"type": "cpu:0", "index": None}},
        {"as_device": {"type": "cpu", "index": None, "code": 1}},
        {"as_device": "cpu"},
        "ecg",
        None,
        [],
    ],
)
def test_an_argument_of_another_kind_or_type_is_refused(value: Any, program: JSON) -> None:
    relu = next(node for node in inner(program)["nodes"] if "relu" in node["target"])
    relu["inputs"][0]["arg"] = value

    with pytest.raises(ForbiddenGraph):
        graph.check(encoded(program))


@pytest.mark.parametrize("text", ["1e999", "-1e999", "1" + "0" * 400, "NaN", "Infinity", "-Infinity", "1" * 5000])
def test_a_number_beyond_all_bounds_is_refused(text: str, tiny_graph: bytes) -> None:
    data = tiny_graph.replace(b'"as_ints":[4]', b'"as_floats":[' + text.encode() + b"]", 1)
    assert data != tiny_graph

    with pytest.raises(ForbiddenGraph):
        graph.check(data)


# --- everything else a program may carry


def spec(program: JSON, place: str) -> list[JSON]:
    found: list[JSON] = program["graph_module"]["signature"][place]
    return found


CARRIED: dict[str, Callable[[JSON], object]] = {
    "guards": lambda p: p.update(guards_code=["open('x', 'w')"]),
    "guards that are a text": lambda p: p.update(guards_code="x"),
    "a verifier": lambda p: p.update(verifiers=["EDGE"]),
    "no verifier": lambda p: p.update(verifiers=[]),
    "verifiers by name": lambda p: p.update(verifiers={"ATEN": 1}),
    "another operator set": lambda p: p.update(opset_version={"aten": 10, "evil": 1}),
    "an operator set of code": lambda p: p.update(opset_version={"aten": "10"}),
    "a release of code": lambda p: p.update(torch_version="__import__('os')"),
    "a range of text": lambda p: p.update(range_constraints={"s77": {"min_val": "1", "max_val": 5}}),
    "a range of more": lambda p: p.update(range_constraints={"s77": {"min_val": 1, "max_val": 5, "code": "x"}}),
    "ranges in a list": lambda p: p.update(range_constraints=[["s77", 1, 5]]),
    "an unknown field": lambda p: p.update(hook="os.system"),
    "a missing field": lambda p: p.pop("guards_code"),
    "a version of text": lambda p: p.update(schema_version={"major": "8", "minor": 20}),
    "a version of more": lambda p: p["schema_version"].update(code="x"),
    "module metadata": lambda p: p["graph_module"].update(metadata={"custom": "{}"}),
    "a module tree": lambda p: p["graph_module"].update(
        module_call_graph=[{"fqn": "", "signature": {"inputs": [], "outputs": [], "in_spec": "[]", "out_spec": "[]"}}]
    ),
    "named tuples": lambda p: p["graph_module"].update(treespec_namedtuple_fields={"os": {"field_names": ["system"]}}),
    "an unknown field of the module": lambda p: p["graph_module"].update(code="x"),
    "custom objects": lambda p: inner(p).update(custom_obj_values={"x": {"name": "x", "class_fqn": "os.system"}}),
    "a bare tensor": lambda p: inner(p).update(is_single_tensor_return=True),
    "an unknown field of the graph": lambda p: inner(p).update(code="x"),
    "nodes by name": lambda p: inner(p).update(nodes={"0": inner(p)["nodes"][0]}),
    "a node that is a text": lambda p: inner(p)["nodes"].append("x"),
    "an unknown field of a node": lambda p: inner(p)["nodes"][0].update(code="x"),
    "node metadata": lambda p: inner(p)["nodes"][0].update(metadata={"source_fn_stack": "x,torch.os.system"}),
    "metadata of nothing": lambda p: inner(p)["nodes"][0].update(metadata=[]),
    "a higher order": lambda p: inner(p)["nodes"][0].update(is_hop_single_tensor_return=True),
    "an argument of more": lambda p: inner(p)["nodes"][0]["inputs"][0].update(code="x"),
    "an input that is an object": lambda p: inner(p)["inputs"].append(
        {"as_custom_obj": {"name": "x", "class_fqn": "y"}}
    ),
    "an input that is a text": lambda p: inner(p)["inputs"].append({"as_string": "x"}),
    "an input that is a symbol": lambda p: inner(p)["inputs"].append({"as_sym_int": {"as_name": "x"}}),
    "an output that is a number": lambda p: inner(p)["outputs"].append({"as_int": 5}),
    "a node's output that is an operator": lambda p: inner(p)["nodes"][0].update(outputs=[{"as_operator": "torch.os"}]),
    "values in a list": lambda p: inner(p).update(tensor_values=[]),
    "a value that is a text": lambda p: inner(p)["tensor_values"].update(ecg="x"),
    "a tensor on a device": lambda p: inner(p)["tensor_values"]["ecg"].update(device={"type": "cuda", "index": 0}),
    "a tensor on no device": lambda p: inner(p)["tensor_values"]["ecg"].update(device={"type": "meta", "index": None}),
    "a tensor of more": lambda p: inner(p)["tensor_values"]["ecg"].update(code="x"),
    "a type of text": lambda p: inner(p)["tensor_values"]["ecg"].update(dtype="object"),
    "a size of text": lambda p: inner(p)["tensor_values"]["ecg"].update(sizes=["5"]),
    "a size of another kind": lambda p: inner(p)["tensor_values"]["ecg"].update(sizes=[{"as_float": 5.0}]),
    "sizes that are a text": lambda p: inner(p)["tensor_values"]["ecg"].update(sizes="123"),
    "a hint of code": lambda p: first_expression(p).update(hint={"as_int": "open('x', 'w')"}),
    "a hint of another kind": lambda p: first_expression(p).update(hint={"as_float": 5.0}),
    "an expression of more": lambda p: first_expression(p).update(code="x"),
    "an expression that is a list": lambda p: first_expression(p).update(expr_str=["Integer(1)"]),
    "a symbolic value": lambda p: inner(p).update(sym_int_values={"x": {"as_name": "y"}}),
    "a symbolic truth": lambda p: inner(p).update(sym_bool_values={"x": {"as_bool": "True"}}),
    "a symbolic float": lambda p: inner(p).update(sym_float_values={"x": {"as_float": "1.0"}}),
    "a mutated buffer": lambda p: spec(p, "output_specs").append(
        {"buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "y"}}
    ),
    "a mutated input": lambda p: spec(p, "output_specs").append(
        {"user_input_mutation": {"arg": {"name": "x"}, "user_input_name": "ecg"}}
    ),
    "a loss": lambda p: spec(p, "output_specs").append({"loss_output": {"arg": {"name": "x"}}}),
    "an output token": lambda p: spec(p, "output_specs").append({"token": {"arg": {"name": "x"}}}),
    "an output of more": lambda p: spec(p, "output_specs")[0]["user_output"].update(code="x"),
    "an output of two kinds": lambda p: spec(p, "output_specs")[0].update(token={"arg": {"name": "x"}}),
    "an object": lambda p: spec(p, "input_specs").append(
        {"custom_obj": {"arg": {"name": "x", "class_fqn": "y"}, "custom_obj_name": "z"}}
    ),
    "a token": lambda p: spec(p, "input_specs").append({"token": {"arg": {"name": "x"}}}),
    "a constant": lambda p: spec(p, "input_specs").append(
        {"constant_input": {"name": "x", "value": {"as_string": "y"}}}
    ),
    "a caller's text": lambda p: spec(p, "input_specs").append({"user_input": {"arg": {"as_string": "y"}}}),
    "a parameter of more": lambda p: spec(p, "input_specs")[0]["parameter"].update(persistent=True),
    "a buffer of less": lambda p: spec(p, "input_specs").append({"buffer": {"arg": {"name": "x"}, "buffer_name": "y"}}),
    "a buffer of text": lambda p: spec(p, "input_specs").append(
        {"buffer": {"arg": {"name": "x"}, "buffer_name": "y", "persistent": "no"}}
    ),
    "a signature of more": lambda p: p["graph_module"]["signature"].update(code=[]),
}


@pytest.mark.parametrize("what", CARRIED)
def test_whatever_is_not_on_the_list_is_refused(what: str, program: JSON, weights: dict[str, torch.Tensor]) -> None:
    CARRIED[what](program)

    with pytest.raises(ForbiddenGraph):
        ExportedBackend(encoded(program), weights, device="cpu")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"guards_code":[],"guards_code":[]}',
        b"\x80\x04\x95pickle",
        b"PK\x03\x04",
    ],
)
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(ForbiddenGraph):
        graph.check(data)


def test_a_key_that_stands_twice_is_refused(tiny_graph: bytes) -> None:
    """Two readers may take different ones."""
    with pytest.raises(ForbiddenGraph):
        graph.check(tiny_graph.replace(b'"guards_code":[]', b'"guards_code":["x"],"guards_code":[]'))


def test_more_nodes_than_any_model_has_are_refused(program: JSON) -> None:
    inner(program)["nodes"] = [{}] * 200_001

    with pytest.raises(ForbiddenGraph, match="has 200001 nodes"):
        graph.check(encoded(program))
