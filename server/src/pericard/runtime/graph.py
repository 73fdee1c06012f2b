"""The graph of a sealed model: a torch.export program as JSON, checked before torch reads it.

torch's own reader evaluates expressions (``sympify``), resolves names with ``getattr`` and compiles the graph's
names into Python source, so nothing reaches it that is not on the allow-lists here: structure, operators, argument
kinds, symbol expressions, identifiers. :func:`normalise` writes what :func:`check` accepts; metadata (stack traces with
the vendor's paths) and guards do not survive it.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from pericard.errors import ForbiddenGraph
from pericard.runtime.operators import allowed

SCHEMA = (8, 20)  # torch._export.serde.schema.SCHEMA_VERSION of the torch that this release pins
MAX_GRAPH = 64 << 20
_MAX_NODES = 200_000
_MAX_EXPRESSION = 256

_TOP = {
    "graph_module", "opset_version", "range_constraints", "schema_version", "verifiers", "torch_version", "guards_code",
}  # fmt: skip
_GRAPH = {
    "inputs", "outputs", "nodes", "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values",
    "is_single_tensor_return", "custom_obj_values",
}  # fmt: skip
_MODULE = {"graph", "signature", "module_call_graph", "metadata", "treespec_namedtuple_fields"}
_NODE = {"target", "inputs", "outputs", "metadata", "is_hop_single_tensor_return", "name"}
_ARGUMENTS = {
    "as_none", "as_bool", "as_bools", "as_int", "as_ints", "as_float", "as_floats", "as_string",
    "as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors", "as_sym_int", "as_sym_ints", "as_sym_bool",
    "as_sym_float", "as_scalar_type", "as_memory_format", "as_layout", "as_device", "as_expr", "as_name",
}  # fmt: skip
_INPUTS = {"parameter", "buffer", "tensor_constant", "user_input"}

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_QUALIFIED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,511}")
_STRING = re.compile(r"[a-z_]{0,32}")  # an operator's own words: "none", "tanh", "constant", …
_SYMBOL = re.compile(r"Symbol\('([su]\d{1,6})'(?:, positive=True)?(?:, integer=True)?\)")
_ARITHMETIC = re.compile(r"(?:[0-9]{1,12}|[()]|\*|\+|-|//|#| )*")


def normalise(program: dict[str, Any]) -> bytes:
    """Reduce a serialised program to what the daemon accepts, and encode it.

    Raises:
        ForbiddenGraph: what is left is still not on the allow-lists.
    """
    module = program["graph_module"]
    kept = {
        **{key: program[key] for key in ("opset_version", "range_constraints", "schema_version", "torch_version")},
        "verifiers": program["verifiers"],
        "guards_code": [],
        "graph_module": {
            "graph": {
                **module["graph"],
                "nodes": [node | {"metadata": {}} for node in module["graph"]["nodes"]],
            },
            "signature": module["signature"],
            "module_call_graph": [],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
    }
    data = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    check(data)
    return data


def check(data: bytes) -> None:
    """Hold a graph against the allow-lists.

    Raises:
        ForbiddenGraph: something in it is not allowed; the message names it.
    """
    if len(data) > MAX_GRAPH:
        raise ForbiddenGraph(f"graph: holds {len(data)} bytes, allowed are {MAX_GRAPH}")
    try:
        program = json.loads(data.decode("ascii"), parse_constant=_no_constant)
        _check_program(program)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ForbiddenGraph(f"graph: does not have the structure of an exported program ({error})") from error


def _check_program(program: dict[str, Any]) -> None:
    _only(program, _TOP, "program")
    version = program["schema_version"]
    if (version["major"], version["minor"]) != SCHEMA:
        raise ForbiddenGraph(
            f"graph: has schema {version['major']}.{version['minor']}, this runtime reads {SCHEMA[0]}.{SCHEMA[1]}",
            hint="the vendor exports the model again with the torch version of this runtime",
        )
    if program["guards_code"] or not set(program["verifiers"]) <= {"ATEN", "TRAINING"}:
        raise ForbiddenGraph("graph: carries guards or a verifier of its own")
    for symbol, bounds in program["range_constraints"].items():
        _identifier(symbol)
        _only(bounds, {"min_val", "max_val"}, "range")
    module = program["graph_module"]
    _only(module, _MODULE, "module")
    if module["metadata"] or module["module_call_graph"] or module["treespec_namedtuple_fields"]:
        raise ForbiddenGraph("graph: carries metadata or named tuples")
    _check_graph(module["graph"])
    _check_signature(module["signature"])


def _check_graph(graph: dict[str, Any]) -> None:
    _only(graph, _GRAPH, "graph")
    if graph["custom_obj_values"]:
        raise ForbiddenGraph("graph: carries custom objects")
    if len(graph["nodes"]) > _MAX_NODES:
        raise ForbiddenGraph(f"graph: has {len(graph['nodes'])} nodes, allowed are {_MAX_NODES}")
    for values in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"):
        for name in graph[values]:
            _identifier(name)
    for node in graph["nodes"]:
        _check_node(node)
    for key, value in _pairs(graph):
        _check_pair(key, value)


def _check_node(node: dict[str, Any]) -> None:
    _only(node, _NODE, "node")
    if not isinstance(node["target"], str) or not allowed(node["target"]):
        raise ForbiddenGraph(
            f"graph: names the operator {str(node['target'])[:120]!r}, which is not allowed",
            hint="a sealed model is a graph of pure tensor operators; see docs/spec/sealed-model.md",
        )
    if node["metadata"] or node["is_hop_single_tensor_return"] is not None:
        raise ForbiddenGraph("graph: a node carries metadata")
    if node["name"] is not None:
        _identifier(node["name"])
    for argument in node["inputs"]:
        _only(argument, {"name", "arg", "kind"}, "argument")
        _identifier(argument["name"])


def _check_pair(key: str, value: Any) -> None:  # noqa: ANN401  (any JSON)
    """One key of the graph at any depth: argument kinds, expressions, names."""
    if key.startswith("as_") and key not in _ARGUMENTS:
        raise ForbiddenGraph(f"graph: carries an argument of kind {key[:60]!r}, which is not allowed")
    if key == "expr_str":
        _expression(value)
    elif key == "as_string" and not (isinstance(value, str) and _STRING.fullmatch(value)):
        raise ForbiddenGraph("graph: carries a string that is not an operator's own word")
    elif key in {"name", "as_name"} and isinstance(value, str) and value:
        _identifier(value)
    elif key == "as_device" and (value["type"] != "cpu" or value["index"] is not None):
        raise ForbiddenGraph("graph: is bound to a device", hint="the vendor exports on the CPU; the site chooses")


def _check_signature(signature: dict[str, Any]) -> None:
    _only(signature, {"input_specs", "output_specs"}, "signature")
    for spec in signature["input_specs"]:
        (kind,) = spec
        if kind not in _INPUTS:
            raise ForbiddenGraph(f"graph: takes an input of kind {str(kind)[:60]!r}, which is not allowed")
        for name in ("parameter_name", "buffer_name", "tensor_constant_name"):
            if name in spec[kind] and not _QUALIFIED.fullmatch(spec[kind][name]):
                raise ForbiddenGraph(f"graph: has a bad {name}")
    for spec in signature["output_specs"]:
        (kind,) = spec
        if kind != "user_output":
            raise ForbiddenGraph(
                f"graph: changes its own state ({str(kind)[:60]})", hint="export the model in evaluation mode"
            )
    for key, value in _pairs(signature):
        _check_pair(key, value)


def _expression(text: object) -> None:
    if not isinstance(text, str) or len(text) > _MAX_EXPRESSION:
        raise ForbiddenGraph("graph: carries an expression that is not short text")
    arithmetic = _SYMBOL.sub("#", text)
    if not _ARITHMETIC.fullmatch(arithmetic) or "**" in arithmetic:
        raise ForbiddenGraph(f"graph: carries the expression {text[:80]!r}; only integer arithmetic is allowed")


def _identifier(name: object) -> None:
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise ForbiddenGraph(f"graph: carries the name {str(name)[:80]!r}, which is not an identifier")


def _only(value: dict[str, Any], keys: set[str], subject: str) -> None:
    extra = value.keys() - keys
    if extra:
        raise ForbiddenGraph(f"graph: the {subject} carries {min(extra)[:60]!r}, which is not allowed")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  (any JSON)
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item.items()
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"holds {text}")
