"""The graph of a sealed model: a torch.export program as JSON, checked before torch reads it.

torch's own reader evaluates expressions (``sympify``), resolves names with ``getattr`` and compiles the graph's
names into Python source, and it passes on whatever JSON type it finds. So nothing reaches it whose every key, type,
name, operator and expression is not on the allow-lists here; what is not written down is refused.
:func:`normalise` writes what :func:`check` accepts; metadata (stack traces with the vendor's paths), guards and
assertions do not survive it: the input contract and the known answers take their place.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable
from typing import Any, NoReturn

from pericard.errors import ForbiddenGraph
from pericard.runtime import expressions, operators

SCHEMA = (8, 20)  # torch._export.serde.schema.SCHEMA_VERSION of the torch that this release pins
MAX_GRAPH = 64 << 20
_MAX_NODES = 200_000
_MAX_INTEGER = 1 << 63

_TOP = {
    "graph_module", "opset_version", "range_constraints", "schema_version", "verifiers", "torch_version", "guards_code",
}  # fmt: skip
_MODULE = {"graph", "signature", "module_call_graph", "metadata", "treespec_namedtuple_fields"}
_GRAPH = {
    "inputs", "outputs", "nodes", "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values",
    "is_single_tensor_return", "custom_obj_values",
}  # fmt: skip
_NODE = {"target", "inputs", "outputs", "metadata", "is_hop_single_tensor_return", "name"}
_META = {"dtype", "sizes", "requires_grad", "device", "strides", "storage_offset", "layout"}
_VERIFIERS = (["ATEN"], ["TRAINING"])
_DROPPED = "torch.ops.aten._assert_tensor_metadata.default"

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_QUALIFIED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,511}")
_STRING = re.compile(r"[a-z_]{0,32}|[A-Za-z.,> -]{1,128}")  # an operator's own word ("tanh"), or einsum's equation
_RELEASE = re.compile(r"[0-9A-Za-z.+]{1,64}")

JSON = Any
Rule = Callable[[JSON], None]


def normalise(program: dict[str, JSON], *, sealed: bool = True) -> bytes:
    """Reduce a serialised program to what the daemon accepts, and encode it.

    Args:
        program: as torch.export writes it.
        sealed: whether it will be sealed as it is; if not, it may hold operators that will be rewritten.

    Raises:
        ForbiddenGraph: what is left is still not on the allow-lists.
    """
    module = program["graph_module"]
    nodes = [node | {"metadata": {}} for node in module["graph"]["nodes"] if node["target"] != _DROPPED]
    kept = program | {
        "guards_code": [],
        "graph_module": {
            "graph": module["graph"] | {"nodes": nodes},
            "signature": module["signature"],
            "module_call_graph": [],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
    }
    data = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    check(data, sealed=sealed)
    return data


def check(data: bytes, *, sealed: bool = True) -> None:
    """Hold a graph against the allow-lists; ``sealed`` as in :func:`normalise`.

    Raises:
        ForbiddenGraph: something in it is not allowed; the message names it.
    """
    if len(data) > MAX_GRAPH:
        raise ForbiddenGraph(f"graph: holds {len(data)} bytes, allowed are {MAX_GRAPH}")
    _program(decode(data), sealed=sealed)


def decode(data: bytes) -> JSON:
    """Read JSON as torch.export writes it: ASCII, no key twice, no number that JSON has no word for.

    Raises:
        ForbiddenGraph: it is not.
    """
    try:
        return json.loads(data.decode("ascii"), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ForbiddenGraph(f"graph: is not JSON as torch.export writes it ({type(error).__name__})") from error


def _program(program: JSON, *, sealed: bool) -> None:
    _object(program, _TOP, "program")
    version = program["schema_version"]
    _object(version, {"major", "minor"}, "schema version")
    if (version["major"], version["minor"]) != SCHEMA:
        raise ForbiddenGraph(
            f"graph: has schema {version['major']!s:.20}.{version['minor']!s:.20}, this runtime reads "
            f"{SCHEMA[0]}.{SCHEMA[1]}",
            hint="the vendor exports the model again with the torch version of this runtime",
        )
    if program["guards_code"] != [] or program["verifiers"] not in _VERIFIERS:
        raise ForbiddenGraph("graph: carries guards or a verifier of its own")
    _object(program["opset_version"], {"aten"}, "operator set")
    _integer(program["opset_version"]["aten"])
    _text(program["torch_version"], _RELEASE, "torch version")
    for symbol, bounds in _mapping(program["range_constraints"]).items():
        _text(symbol, expressions.SYMBOL, "symbol")
        _object(bounds, {"min_val", "max_val"}, "range")
        for bound in bounds.values():
            if bound is not None:
                _integer(bound)
    module = program["graph_module"]
    _object(module, _MODULE, "module")
    if module["metadata"] != {} or module["module_call_graph"] != [] or module["treespec_namedtuple_fields"] != {}:
        raise ForbiddenGraph("graph: carries metadata, a module tree or named tuples")
    _graph(module["graph"], sealed=sealed)
    _signature(module["signature"])


def _graph(graph: JSON, *, sealed: bool) -> None:
    _object(graph, _GRAPH, "graph")
    if graph["custom_obj_values"] != {} or graph["is_single_tensor_return"] is not False:
        raise ForbiddenGraph("graph: carries custom objects, or returns a bare tensor")
    for place in ("inputs", "outputs"):
        for item in _list(graph[place]):
            _argument(item, {"as_tensor"})
    for values, rule in (
        ("tensor_values", _tensor_meta),
        ("sym_int_values", _size("as_int", _integer)),
        ("sym_bool_values", _size("as_bool", _boolean)),
        ("sym_float_values", _size("as_float", _float)),
    ):
        for name, value in _mapping(graph[values]).items():
            _identifier(name)
            rule(value)
    if len(_list(graph["nodes"])) > _MAX_NODES:
        raise ForbiddenGraph(f"graph: has {len(graph['nodes'])} nodes, allowed are {_MAX_NODES}")
    for node in graph["nodes"]:
        _node(node, sealed=sealed)


def _node(node: JSON, *, sealed: bool) -> None:
    _object(node, _NODE, "node")
    target = node["target"]
    if not isinstance(target, str) or not operators.allowed(target, sealed=sealed):
        raise ForbiddenGraph(
            f"graph: names the operator {str(target)[:120]!r}, which is not allowed",
            hint="a sealed model is a graph of pure tensor operators; see docs/spec/sealed-model.md",
        )
    if node["metadata"] != {} or node["is_hop_single_tensor_return"] is not None:
        raise ForbiddenGraph("graph: a node carries metadata")
    if node["name"] is not None:
        _identifier(node["name"])
    given: list[tuple[str, int, dict[str, JSON]]] = []
    for item in _list(node["inputs"]):
        _object(item, {"name", "arg", "kind"}, "argument")
        _identifier(item["name"])
        _argument(item["arg"], operators.SCALARS if target in operators.ALLOWED_PYTHON else _ARGUMENTS.keys())
        given.append((item["name"], item["kind"], item["arg"]))
    refusal = operators.refusal(target, given)
    if refusal is not None:
        raise ForbiddenGraph(f"graph: {target} {refusal}", hint="export the model in evaluation mode")
    for item in _list(node["outputs"]):
        _argument(item, _OUTPUTS)


def _signature(signature: JSON) -> None:
    _object(signature, {"input_specs", "output_specs"}, "signature")
    for spec in _list(signature["input_specs"]):
        kind, value = _only(spec, "input")
        if kind not in _INPUTS:
            raise ForbiddenGraph(f"graph: takes an input of kind {kind[:60]!r}, which is not allowed")
        name, extra = _INPUTS[kind]
        _object(value, {"arg", *name, *extra}, "input")
        if kind == "user_input":
            _argument(value["arg"], {"as_tensor"})
        else:
            _tensor(value["arg"])
            _text(value[name[0]], _QUALIFIED, name[0])
        for flag in extra:
            _boolean(value[flag])
    for spec in _list(signature["output_specs"]):
        kind, value = _only(spec, "output")
        if kind != "user_output":
            raise ForbiddenGraph(
                f"graph: changes its own state ({kind[:60]})", hint="export the model in evaluation mode"
            )
        _object(value, {"arg"}, "output")
        _argument(value["arg"], {"as_tensor"})


def _argument(value: JSON, kinds: Any) -> None:  # noqa: ANN401  (a set, or the view of a dictionary)
    kind, content = _only(value, "argument")
    if kind not in kinds or kind not in _ARGUMENTS:
        raise ForbiddenGraph(f"graph: carries an argument of kind {kind[:60]!r}, which is not allowed here")
    _ARGUMENTS[kind](content)


def _tensor_meta(value: JSON) -> None:
    _object(value, _META, "tensor")
    for number in (value["dtype"], value["layout"]):
        _integer(number)
    _boolean(value["requires_grad"])
    _device(value["device"])
    size = _size("as_int", _integer)
    for item in (*_list(value["sizes"]), *_list(value["strides"]), value["storage_offset"]):
        size(item)


def _size(plain: str, rule: Rule) -> Rule:
    """A value that is a plain number or an expression."""

    def check_size(value: JSON) -> None:
        kind, content = _only(value, "size")
        if kind == plain:
            rule(content)
            return
        if kind != "as_expr":
            raise ForbiddenGraph(f"graph: carries a size of kind {kind[:60]!r}, which is not allowed")
        _object(content, {"expr_str", "hint"}, "expression")
        text = content["expr_str"]
        if not isinstance(text, str) or not expressions.allowed(text):
            raise ForbiddenGraph(
                f"graph: carries the expression {str(text)[:80]!r}; only integer arithmetic is allowed"
            )
        if content["hint"] is not None:
            hint, number = _only(content["hint"], "hint")
            if hint != plain:
                raise ForbiddenGraph(f"graph: carries a hint of kind {hint[:60]!r}")
            rule(number)

    return check_size


def _named(plain: str, rule: Rule) -> Rule:
    """An argument that is a plain number or the name of a symbolic one."""

    def check_named(value: JSON) -> None:
        kind, content = _only(value, "symbolic argument")
        if kind not in {plain, "as_name"}:
            raise ForbiddenGraph(f"graph: carries a symbolic argument of kind {kind[:60]!r}")
        (_identifier if kind == "as_name" else rule)(content)

    return check_named


def _each(rule: Rule) -> Rule:
    def check_each(value: JSON) -> None:
        for item in _list(value):
            rule(item)

    return check_each


def _tensor(value: JSON) -> None:
    _object(value, {"name"}, "tensor")
    _identifier(value["name"])


def _optional_tensor(value: JSON) -> None:
    _argument(value, {"as_tensor", "as_none"})


def _device(value: JSON) -> None:
    if value != {"type": "cpu", "index": None}:
        raise ForbiddenGraph("graph: is bound to a device", hint="the vendor exports on the CPU; the site chooses")


def _string(value: JSON) -> None:
    _text(value, _STRING, "string argument")


def _boolean(value: JSON) -> None:
    if not isinstance(value, bool):
        raise ForbiddenGraph("graph: carries something else where a truth value belongs")


def _integer(value: JSON) -> None:
    if type(value) is not int or not -_MAX_INTEGER <= value < _MAX_INTEGER:
        raise ForbiddenGraph("graph: carries something else where a 64-bit integer belongs")


def _float(value: JSON) -> None:
    # torch writes what JSON has no number for as these words
    if value in ("Infinity", "-Infinity", "NaN"):
        return
    if type(value) not in {int, float} or not -1e308 < value < 1e308:  # noqa: PLR2004  (finite)
        raise ForbiddenGraph("graph: carries something else where a number belongs")


def _identifier(value: JSON) -> None:
    _text(value, _IDENTIFIER, "name")
    if keyword.iskeyword(value):
        raise ForbiddenGraph(f"graph: has the bad name {value!r}")


def _text(value: JSON, pattern: re.Pattern[str], subject: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ForbiddenGraph(f"graph: has the bad {subject} {str(value)[:80]!r}")


def _only(value: JSON, subject: str) -> tuple[str, JSON]:
    """The one key and value of a tagged union."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ForbiddenGraph(f"graph: carries an {subject} that is not of exactly one kind")
    return next(iter(value.items()))


def _object(value: JSON, keys: set[str], subject: str) -> None:
    if not isinstance(value, dict):
        raise ForbiddenGraph(f"graph: carries a {subject} that is not an object")
    if value.keys() != keys:
        odd = min(value.keys() ^ keys)
        raise ForbiddenGraph(
            f"graph: the {subject} lacks {odd!r}"
            if odd in keys
            else f"graph: the {subject} carries {odd[:60]!r}, which is not allowed"
        )


def _mapping(value: JSON) -> dict[str, JSON]:
    if not isinstance(value, dict):
        raise ForbiddenGraph("graph: carries something else where names and values belong")
    return value


def _list(value: JSON) -> list[JSON]:
    if not isinstance(value, list):
        raise ForbiddenGraph("graph: carries something else where a list belongs")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"holds {text}")


def _no_duplicates(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("holds a key twice")
    return found


#: Kinds of argument, and what their content must be.
_ARGUMENTS: dict[str, Rule] = {
    "as_none": _boolean,
    "as_bool": _boolean,
    "as_bools": _each(_boolean),
    "as_int": _integer,
    "as_ints": _each(_integer),
    "as_float": _float,
    "as_floats": _each(_float),
    "as_string": _string,
    "as_tensor": _tensor,
    "as_tensors": _each(_tensor),
    "as_optional_tensor": _optional_tensor,
    "as_optional_tensors": _each(_optional_tensor),
    "as_sym_int": _named("as_int", _integer),
    "as_sym_ints": _each(_named("as_int", _integer)),
    "as_sym_bool": _named("as_bool", _boolean),
    "as_sym_float": _named("as_float", _float),
    "as_scalar_type": _integer,
    "as_memory_format": _integer,
    "as_layout": _integer,
    "as_device": _device,
}
_OUTPUTS = {"as_none", "as_tensor", "as_tensors", "as_sym_int", "as_sym_bool", "as_sym_float"}
#: Kinds of signature input: the field that names the tensor, and flags.
_INPUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "parameter": (("parameter_name",), ()),
    "buffer": (("buffer_name",), ("persistent",)),
    "tensor_constant": (("tensor_constant_name",), ()),
    "user_input": ((), ()),
}
