"""P3: a graph may call pure functions of tensors and nothing else: no file, no chance, no writing, no way into Python.

torch's reader finds what a node calls with ``getattr``, from ``torch`` itself downwards; and it binds arguments by
their place among those that are given, so a call is held against the operator's schema too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import JSON, encoded, inner

from pericard.errors import ForbiddenGraph, UnsupportedModel
from pericard.runtime import graph, operators
from pericard.runtime.exported import ExportedBackend
from pericard.tensors import TensorSpec

# --- what a node may call, by name


TARGETS: list[Any] = [
    # out of torch into the interpreter
    "torch.os.system", "torch.sys.exit", "torch.serialization.os.system", "torch.load", "torch.hub.load",
    "torch.utils.cpp_extension.load", "torch.classes.load_library", "torch.ops.load_library", "torch.compile",
    "torch.jit.load", "torch.export.load", "torch.multiprocessing.Process", "torch.__builtins__.eval",
    "builtins.eval", "eval", "os.system", "math.exp", "math.__loader__.load_module", "", "torch", "_operator",
    # Python's operators that reach further than arithmetic
    "_operator.attrgetter", "_operator.methodcaller", "_operator.itemgetter", "_operator.call", "_operator.getitem",
    "_operator.setitem", "_operator.iadd", "_operator.eq", "_operator.__loader__.load_module",
    "_operator.mul.__call__",
    # extensions, higher order, other namespaces
    "#executorch:load", "torch.ops.higher_order.cond", "torch.ops.higher_order.while_loop",
    "torch.ops.prims.add.default", "torch.ops.prim.load.default",
    "torch.ops.profiler._record_function_enter.default", "torch.ops.inductor.resize_storage_bytes_.default",
    "torch.ops.quantized.add.default", "torch.ops.mylib.op.default",
    # files, random numbers, uninitialised memory, storages
    "torch.ops.aten.from_file.default", "torch.ops.aten.rand.default", "torch.ops.aten.randn_like.default",
    "torch.ops.aten.bernoulli.default", "torch.ops.aten.native_dropout.default",
    "torch.ops.aten.empty.memory_format", "torch.ops.aten.new_empty.default", "torch.ops.aten.as_strided.default",
    "torch.ops.aten.as_strided_copy.default", "torch.ops.aten.set_.source_Storage", "torch.ops.aten.resize_.default",
    "torch.ops.aten._print.default", "torch.ops.aten.item.default", "torch.ops.aten._assert_async.msg",
    "torch.ops.aten._cudnn_init_dropout_state.default",
    # in place, and into an argument
    "torch.ops.aten.relu_.default", "torch.ops.aten.add_.Tensor", "torch.ops.aten.copy_.default",
    "torch.ops.aten.index_put_.default", "torch.ops.aten.add.out", "torch.ops.aten.max.dim_max",
    "torch.ops.aten.min.dim_min", "torch.ops.aten.sort.values", "torch.ops.aten.sort.values_stable",
    "torch.ops.aten.topk.values", "torch.ops.aten.div.out_mode", "torch.ops.aten.xlogy.OutTensor",
    "torch.ops.aten.median.dim_values", "torch.ops.aten.std.correction_out",
    # what hangs on an operator besides its overloads
    "torch.ops.aten.add", "torch.ops.aten.add.__class__", "torch.ops.aten.add.__init__",
    "torch.ops.aten.add.overloads", "torch.ops.aten.add.op", "torch.ops.aten.add._schemas",
    "torch.ops.aten.add.__reduce__", "torch.ops.aten.add.Tensor.__call__", "torch.ops.aten.add.Tensor.redispatch",
    "torch.ops.aten.__class__.default", "torch.ops.aten.name.default",
    # texts, and what is no tensor
    "torch.ops.aten.add.str", "torch.ops.aten.add.t", "torch.ops.aten.sort.str", "torch.ops.aten.slice.str",
    # near misses
    "torch.ops.aten.add.Tensor\n", " torch.ops.aten.add.Tensor", "torch.ops.aten.add.Tensor ",
    "torch.ops.aten.ad\u0064.Tensor\u200b", "torch.ops.aten..Tensor", "torch.ops.aten.add.tensor",
    "torch_ops_aten_add_Tensor", "Torch.ops.aten.add.Tensor", None, 5, True, ["torch.ops.aten.add.Tensor"],
    {"name": "torch.ops.aten.add.Tensor"},
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_only_pure_tensor_operators_can_be_called(target: Any, program: JSON, weights: dict[str, torch.Tensor]) -> None:
    for node in inner(program)["nodes"]:
        node["target"] = target

    with pytest.raises(ForbiddenGraph, match="names the operator"):
        ExportedBackend(encoded(program), weights, device="cpu")


# --- how it may be called


def node(target: str, *arguments: tuple[str, Any, Any]) -> JSON:
    return {
        "target": ATEN + target if target[0] != "_" else target,
        "inputs": [{"name": name, "arg": value, "kind": kind} for name, value, kind in arguments],
        "outputs": [{"as_tensor": {"name": "extra"}}],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": "extra",
    }


ATEN = "torch.ops.aten."
ECG: JSON = {"as_tensor": {"name": "ecg"}}
ON, OFF, NONE = {"as_bool": True}, {"as_bool": False}, {"as_none": True}
TENTH, NOUGHT = {"as_float": 0.1}, {"as_float": 0.0}


def placed(**arguments: Any) -> list[tuple[str, Any, int]]:
    return [(name, value, 1) for name, value in arguments.items()]


def dropout(train: JSON, kind: int = 1) -> JSON:
    return node("dropout.default", *placed(input=ECG, p=TENTH), ("train", train, kind))


def attention(**more: JSON) -> JSON:
    return node("scaled_dot_product_attention.default", *placed(query=ECG, key=ECG, value=ECG, attn_mask=NONE, **more))


def batch_norm(training: JSON) -> JSON:
    fixed = placed(input=ECG, weight=NONE, bias=NONE, running_mean=ECG, running_var=ECG)
    return node("batch_norm.default", *fixed, *placed(training=training, momentum=TENTH, eps=TENTH, cudnn_enabled=OFF))


def instance_norm(use_input_stats: JSON, mean: JSON) -> JSON:
    fixed = placed(input=ECG, weight=NONE, bias=NONE, running_mean=mean, running_var=mean)
    more = placed(use_input_stats=use_input_stats, momentum=TENTH, eps=TENTH, cudnn_enabled=OFF)
    return node("instance_norm.default", *fixed, *more)


def relu(*arguments: tuple[str, Any, Any]) -> JSON:
    return node("relu.default", *arguments)


CALLS: dict[str, tuple[JSON, str | None]] = {
    "dropout that is off": (dropout(OFF), None),
    "dropout that draws": (dropout(ON), "train switched on"),
    "dropout that draws, by name": (dropout(ON, 2), "train switched on"),
    "dropout by a symbol": (dropout({"as_sym_bool": {"as_bool": True}}), "train switched on"),
    "dropout by a number": (dropout({"as_int": 1}), "train switched on"),
    "a leaky unit": (node("rrelu.default", *placed(self=ECG)), None),
    "a leaky unit that draws": (node("rrelu.default", *placed(self=ECG), ("training", ON, 2)), "training switched on"),
    "a leaky unit that draws, through a gap": (
        node("rrelu.default", *placed(self=ECG, lower=TENTH, upper=TENTH, generator=ON)),
        "with a gap",
    ),
    "attention that is off": (attention(dropout_p=NOUGHT), None),
    "attention that draws": (attention(dropout_p=TENTH), "dropout_p switched on"),
    "attention that draws, through a gap": (attention(is_causal=TENTH), "with a gap"),
    "norm that is off": (batch_norm(OFF), None),
    "norm that writes": (batch_norm(ON), "training switched on"),
    "instances on their own": (instance_norm(ON, NONE), None),
    "instances that are off": (instance_norm(OFF, ECG), None),
    "instances that write": (instance_norm(ON, ECG), "updates its running statistics"),
    "an argument twice": (relu(("self", ECG, 1), ("self", ECG, 1)), "with a gap"),
    "an argument twice, by name": (relu(("self", ECG, 2), ("self", ECG, 2)), "not in its schema"),
    "an argument in place and by name": (relu(("self", ECG, 1), ("self", ECG, 2)), "not in its schema"),
    "an argument that it has not": (relu(("self", ECG, 1), ("out", ECG, 2)), "not in its schema"),
    "an argument too many": (relu(("self", ECG, 1), ("other", ECG, 1)), "with a gap"),
    "an argument of no kind": (relu(("self", ECG, None)), "neither positional nor named"),
    "an argument of kind nought": (relu(("self", ECG, 0)), "neither positional nor named"),
    "arithmetic on tensors": (node("_operator.add", *placed(a=ECG, b=ECG)), "as_tensor"),
    "arithmetic on texts": (node("_operator.mod", *placed(a={"as_string": "s"}, b={"as_int": 5})), "as_string"),
    "arithmetic on lists": (node("_operator.mul", *placed(a={"as_ints": [1]}, b={"as_int": 9})), "as_ints"),
}


@pytest.mark.parametrize("call", CALLS)
def test_operators_with_a_switch_are_pure_only_when_it_is_off(call: str, program: JSON) -> None:
    extra, reason = CALLS[call]
    inner(program)["nodes"].insert(0, extra)
    inner(program)["tensor_values"]["extra"] = inner(program)["tensor_values"]["ecg"]
    if reason is None:
        graph.check(encoded(program))
        return

    with pytest.raises(ForbiddenGraph, match=reason):
        graph.check(encoded(program))


def test_the_two_lists_do_not_overlap() -> None:
    assert not any(operators._ATEN.fullmatch(target) for target in operators.ALLOWED_PYTHON)


@pytest.mark.parametrize("number", [-1, 4, 99])
def test_a_number_in_the_place_of_a_type_or_a_layout_is_refused(number: int, program: JSON) -> None:
    for target, name in (("ones_like.default", "dtype"), ("clone.default", "memory_format")):
        changed = node(target, *placed(self=ECG), (name, {"as_int": number}, 2))
        inner(program)["nodes"].append(changed)

        with pytest.raises(ForbiddenGraph, match=f"where its {name} belongs"):
            graph.check(encoded(program))
        inner(program)["nodes"].pop()


def test_packed_sequences_cannot_be_called(program: JSON) -> None:
    for target in ("lstm.data", "gru.data", "to.prim_dtype"):
        inner(program)["nodes"][0]["target"] = ATEN + target

        with pytest.raises(ForbiddenGraph, match="names the operator"):
            graph.check(encoded(program))


def test_what_a_graph_says_of_its_tensors_is_held_against_them(program: JSON, weights: dict[str, torch.Tensor]) -> None:
    spec = next(s for s in program["graph_module"]["signature"]["input_specs"] if "parameter" in s)["parameter"]
    inner(program)["tensor_values"][spec["arg"]["name"]]["sizes"][0] = {"as_int": 77}

    with pytest.raises(UnsupportedModel, match="not what it says"):
        ExportedBackend(encoded(program), weights, device="cpu")


@pytest.mark.parametrize(("dtype", "row"), [("float32", (1, 63)), ("float64", (1, 64)), ("float32", (64,))])
def test_described_inputs_are_held_against_the_graph(
    dtype: str, row: tuple[int, ...], program: JSON, weights: dict[str, torch.Tensor]
) -> None:
    ExportedBackend(encoded(program), weights, device="cpu", inputs=(TensorSpec("ecg", "float32", (-1, 1, 64)),))

    with pytest.raises(UnsupportedModel, match="as the description says"):
        ExportedBackend(encoded(program), weights, device="cpu", inputs=(TensorSpec("ecg", dtype, (-1, *row)),))
