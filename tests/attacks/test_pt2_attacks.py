"""P3, the vendor's side: a ``.pt2`` that is handed to ``pericard seal`` runs no code, and no daemon reads one.

``torch.export.load`` runs code in several ways, each built here for real: first it is shown that torch runs it, then
that a seal does not. What would run is refused by the name of its member, or left behind unread.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import code

from pericard.errors import ForbiddenGraph, ModelTooLarge, NotSealed, PericardError, UnsupportedModel
from pericard.runtime import export, pt2
from pericard.sealed import Description, SealedModel

Change = Callable[[str, bytes], dict[str, bytes]]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What only code from a model would make."""
    return tmp_path / "code-ran"


class Payload:
    """Unpickled, it is what it should be; on the way it runs code."""

    def __init__(self, marker: Path, result: str) -> None:
        self.code = code(marker, result)

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.code,)


def saved(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def rewritten(path: Path, change: Change) -> bytes:
    """A ``.pt2`` with some of its members changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            for written, data in change(name, old.read(name)).items():
                new.writestr(written, data)
    return out.getvalue()


# --- ways to run code on reading


def in_the_example(name: str, data: bytes, marker: Path) -> dict[str, bytes]:
    return {
        name: saved(((Payload(marker, "__import__('torch').zeros(2, 1, 64)"),), {}))
        if name.endswith("sample_inputs/model.pt")
        else data
    }


def in_a_weight(name: str, data: bytes, marker: Path) -> dict[str, bytes]:
    if not name.endswith("model_weights_config.json"):
        return {name: data}
    config = json.loads(data)
    config["config"]["conv.weight"] |= {"use_pickle": True, "path_name": "weight_77"}
    return {
        name: json.dumps(config).encode(),
        name.replace("model_weights_config.json", "weight_77"): saved(
            Payload(marker, "__import__('torch').nn.Parameter(__import__('torch').zeros(3, 1, 8))")
        ),
    }


def opaque(name: str, data: bytes, marker: Path, member: str, table: bool) -> dict[str, bytes]:
    if not name.endswith("model_constants_config.json"):
        return {name: data}
    entry = {"path_name": member, "is_param": False, "use_pickle": True, "tensor_meta": None}
    return {
        name: json.dumps({"config": {"q": entry}}).encode() if table else data,
        name.replace("model_constants_config.json", member): pickle.dumps(
            Payload(marker, "__import__('torch').zeros(1)")
        ),
    }


def in_a_constant(name: str, data: bytes, marker: Path) -> dict[str, bytes]:
    return opaque(name, data, marker, "opaque_obj_0", table=True)


def in_a_constant_that_looks_like_a_tensor(name: str, data: bytes, marker: Path) -> dict[str, bytes]:
    changed = opaque(name, data, marker, "tensor_9", table=True)
    return {
        member: saved(Payload(marker, "__import__('torch').zeros(1)")) if member.endswith("tensor_9") else content
        for member, content in changed.items()
    }


def in_old_weights(name: str, data: bytes, marker: Path) -> dict[str, bytes]:
    if not name.endswith("model_weights_config.json"):
        return {name: data}
    return {name: data, name.replace("model_weights_config.json", "model.pt"): saved({"x": Payload(marker, "5")})}


def in_old_constants(name: str, data: bytes, marker: Path) -> dict[str, bytes]:
    if not name.endswith("model_constants_config.json"):
        return {name: data}
    return {name: data, name.replace("model_constants_config.json", "model.pt"): saved({"x": Payload(marker, "5")})}


def in_an_expression(name: str, data: bytes, marker: Path) -> dict[str, bytes]:
    if not name.endswith("models/model.json"):
        return {name: data}
    return {name: data.replace(b"Symbol('s", code(marker, "Symbol('s").encode())}


WAYS: list[tuple[Callable[[str, bytes, Path], dict[str, bytes]], str]] = [
    (in_a_weight, "model_weights_config.json: the tensor 'conv.weight' is pickled"),
    (in_a_constant, "the member 'data/constants/opaque_obj_0'"),
    (in_a_constant_that_looks_like_a_tensor, "model_constants_config.json: the tensor 'q' is pickled"),
    (in_old_weights, "the member 'data/weights/model.pt'"),
    (in_old_constants, "the member 'data/constants/model.pt'"),
    (in_an_expression, "carries the expression \"__import__('os').makedirs("),
]


def read_by_torch(data: bytes) -> None:
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # whether it loads does not matter
        warnings.simplefilter("ignore")
        torch.export.load(io.BytesIO(data))


@pytest.fixture
def evil(tiny_pt2: Path, marker: Path, tmp_path: Path) -> Callable[..., Path]:
    """``evil(way)``: a ``.pt2`` of which it was seen that torch runs its code."""

    def build(way: Callable[[str, bytes, Path], dict[str, bytes]]) -> Path:
        data = rewritten(tiny_pt2, lambda name, content: way(name, content, marker))
        assert not marker.exists()
        read_by_torch(data)
        assert marker.exists()  # the attack is real
        marker.rmdir()
        (tmp_path / "evil.pt2").write_bytes(data)
        return tmp_path / "evil.pt2"

    return build


@pytest.mark.parametrize(("way", "reason"), WAYS)
def test_what_would_run_code_is_refused_by_name(
    way: Callable[[str, bytes, Path], dict[str, bytes]],
    reason: str,
    evil: Callable[..., Path],
    tiny_description: Description,
    marker: Path,
) -> None:
    with pytest.raises(ForbiddenGraph, match=re.escape(reason)):
        export.pack(evil(way), tiny_description)
    assert not marker.exists()


def test_the_example_is_left_behind_unread(
    evil: Callable[..., Path], tiny_pt2: Path, tiny_description: Description, marker: Path
) -> None:
    plain = b"".join(export.pack(evil(in_the_example), tiny_description)[1])

    assert not marker.exists()
    assert b"PK\x03\x04" not in plain
    assert plain == b"".join(export.pack(tiny_pt2, tiny_description)[1])


@pytest.mark.parametrize("way", [in_the_example, *(way for way, _ in WAYS)])
def test_the_daemon_reads_no_pt2_at_all(
    way: Callable[[str, bytes, Path], dict[str, bytes]], evil: Callable[..., Path], marker: Path
) -> None:
    with pytest.raises(NotSealed):
        SealedModel(evil(way))
    assert not marker.exists()


def test_the_readers_of_torch_that_unpickle_are_never_called(
    tiny_pt2: Path, tiny_description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    for holder, name in ((torch.export, "load"), (torch, "load"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(holder, name, None)

    assert export.pack(tiny_pt2, tiny_description)[0] > 0


# --- what else a graph of a .pt2 carries: dropped before torch sees it, or refused


def in_the_graph(change: Callable[[dict[str, Any]], None]) -> Change:
    def run(name: str, data: bytes) -> dict[str, bytes]:
        if not name.endswith("models/model.json"):
            return {name: data}
        program = json.loads(data)
        change(program)
        return {name: json.dumps(program).encode()}

    return run


def guards(program: dict[str, Any], text: str) -> None:
    program["guards_code"] = [text]


def metadata(program: dict[str, Any], text: str) -> None:
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {"source_fn_stack": text, "nn_module_stack": text, "custom": text}


def tree(program: dict[str, Any], text: str) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = text
    program["graph_module"]["treespec_namedtuple_fields"] = {text: {"field_names": [text]}}


def argument_names(program: dict[str, Any], text: str) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [text]


@pytest.mark.parametrize("change", [guards, metadata, tree, argument_names])
def test_text_that_torch_might_evaluate_is_dropped(
    change: Callable[[dict[str, Any], str], None],
    tiny_pt2: Path,
    tiny_description: Description,
    marker: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "it.pt2").write_bytes(
        rewritten(tiny_pt2, in_the_graph(lambda program: change(program, code(marker, "True"))))
    )
    plain = b"".join(export.pack(tmp_path / "it.pt2", tiny_description)[1])

    assert not marker.exists()
    assert plain == b"".join(export.pack(tiny_pt2, tiny_description)[1])


@pytest.mark.parametrize(
    "target",
    ["torch.os.system", "os.system", "builtins.eval", "_operator.methodcaller", "torch.ops.aten.from_file.default",
     "torch.ops.higher_order.cond", "torch.ops.aten.normal_.default", "torch.ops.aten.set_.source_Tensor",
     "torch.ops.aten.add.out", "torch.ops.evil.op.default", "math.floor", "#0"],
)  # fmt: skip
def test_a_target_that_is_no_tensor_operator_is_refused(
    target: str, tiny_pt2: Path, tiny_description: Description, tmp_path: Path
) -> None:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    (tmp_path / "it.pt2").write_bytes(rewritten(tiny_pt2, in_the_graph(change)))
    with pytest.raises(ForbiddenGraph, match="names the operator"):
        export.pack(tmp_path / "it.pt2", tiny_description)


# --- the archive


def added(name: str, data: bytes = b"x") -> Change:
    """One member more."""
    return lambda found, content: (
        {found: content, found.partition("/")[0] + "/" + name: data}
        if found.endswith("archive_format")
        else {found: content}
    )


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("data/aotinductor/model/evil.so", UnsupportedModel, "'data/aotinductor/model/evil.so' is compiled code"),
        ("executorch/model.pte", UnsupportedModel, "is compiled code"),
        ("models/other.json", ForbiddenGraph, "the member 'models/other.json' is none of"),
        ("data/constants/custom_obj_0", ForbiddenGraph, "the member 'data/constants/custom_obj_0' is none of"),
        ("data/weights/../../evil", ForbiddenGraph, "the member 'data/weights/../../evil' is none of"),
        ("data/weights/weight_x", ForbiddenGraph, "the member 'data/weights/weight_x' is none of"),
        ("data/sample_inputs/other.pt", ForbiddenGraph, "the member 'data/sample_inputs/other.pt' is none of"),
        ("code/model.py", ForbiddenGraph, "the member 'code/model.py' is none of"),
        ("", UnsupportedModel, "is not where torch.export puts one"),
    ],
)
def test_a_member_that_is_not_written_down_is_refused_by_name(
    name: str,
    error: type[PericardError],
    reason: str,
    tiny_pt2: Path,
    tiny_description: Description,
    tmp_path: Path,
) -> None:
    (tmp_path / "it.pt2").write_bytes(rewritten(tiny_pt2, added(name)))
    with pytest.raises(error, match=re.escape(reason)):
        export.pack(tmp_path / "it.pt2", tiny_description)


def test_notes_of_the_vendor_are_left_behind(tiny_pt2: Path, tiny_description: Description, tmp_path: Path) -> None:
    (tmp_path / "it.pt2").write_bytes(rewritten(tiny_pt2, added("extra/patient.txt", b"Jane Doe")))

    assert b"Jane Doe" not in b"".join(export.pack(tmp_path / "it.pt2", tiny_description)[1])


def test_a_second_root_or_a_member_twice_is_refused(
    tiny_pt2: Path, tiny_description: Description, tmp_path: Path
) -> None:
    for name in ("other/models/model.json", "model/models/model.json"):
        data = io.BytesIO(tiny_pt2.read_bytes())
        with warnings.catch_warnings(), zipfile.ZipFile(data, "a") as archive:
            warnings.simplefilter("ignore")  # zipfile says that the name is there
            archive.writestr(name, b"{}")
        (tmp_path / "it.pt2").write_bytes(data.getvalue())
        with pytest.raises(UnsupportedModel, match=r"is not where torch\.export puts one"):
            export.pack(tmp_path / "it.pt2", tiny_description)


def test_a_compressed_member_is_refused_before_it_is_inflated(
    tiny_pt2: Path, tiny_description: Description, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tiny_pt2) as old, zipfile.ZipFile(tmp_path / "it.pt2", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))

    with pytest.raises(UnsupportedModel, match="is compressed"):
        export.pack(tmp_path / "it.pt2", tiny_description)


def test_members_that_share_their_bytes_are_refused_before_they_are_read(
    tiny_pt2: Path, tiny_description: Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory may name one place many times, or a size that is not there: both would fill the memory."""
    data = tiny_pt2.read_bytes()
    directory = data.index(b"PK\x01\x02")
    name = data.index(b"data/weights/weight_0", directory)
    entry = data.rindex(b"PK\x01\x02", 0, name)
    for place in (entry + 20, entry + 24):  # its size, stored and plain
        data = data[:place] + (1 << 30).to_bytes(4, "little") + data[place + 4 :]
    (tmp_path / "it.pt2").write_bytes(data)
    monkeypatch.setattr(pt2._Members, "_read", None)

    with pytest.raises(UnsupportedModel, match="its members are larger than itself"):
        export.pack(tmp_path / "it.pt2", tiny_description)


def test_an_archive_beyond_the_limits_is_refused_before_it_is_read(
    tiny_pt2: Path, tiny_description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAX_ARCHIVE", "_MAX_MEMBERS", "_MAX_JSON"):
        with monkeypatch.context() as patch:
            patch.setattr(pt2, name, 4)
            patch.setattr(pt2._Members, "_read", None)
            with pytest.raises(ModelTooLarge):
                export.pack(tiny_pt2, tiny_description)


def in_the_table(change: Callable[[dict[str, Any]], None]) -> Change:
    def run(name: str, data: bytes) -> dict[str, bytes]:
        if not name.endswith("model_weights_config.json"):
            return {name: data}
        table = json.loads(data)
        change(table["config"]["conv.weight"])
        return {name: json.dumps(table).encode()}

    return run


def larger(entry: dict[str, Any]) -> None:
    entry["tensor_meta"]["sizes"][0]["as_int"] = 4


def further(entry: dict[str, Any]) -> None:
    entry["tensor_meta"]["storage_offset"]["as_int"] = 1


def backwards(entry: dict[str, Any]) -> None:
    entry["tensor_meta"]["strides"][0]["as_int"] = -8


def endless(entry: dict[str, Any]) -> None:
    entry["tensor_meta"] |= {"sizes": [{"as_int": 1 << 40}], "strides": [{"as_int": 0}]}


def beyond_memory(entry: dict[str, Any]) -> None:
    entry["tensor_meta"] |= {"sizes": [{"as_int": 1 << 47}] * 2, "strides": [{"as_int": 0}] * 2}


def symbolic(entry: dict[str, Any]) -> None:
    entry["tensor_meta"]["sizes"][0] = {"as_expr": {"expr_str": "__import__('os')", "hint": None}}


def elsewhere(entry: dict[str, Any]) -> None:
    entry["path_name"] = "../sample_inputs/model.pt"


def missing(entry: dict[str, Any]) -> None:
    entry["path_name"] = "weight_99"


def sparse(entry: dict[str, Any]) -> None:
    entry["tensor_meta"]["layout"] = 1


def unknown(entry: dict[str, Any]) -> None:
    entry["tensor_meta"]["dtype"] = 999


def more(entry: dict[str, Any]) -> None:
    entry["evil"] = 1


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (larger, UnsupportedModel, "conv.weight: is larger than the bytes that carry it"),
        (further, UnsupportedModel, "conv.weight: is larger than the bytes that carry it"),
        (endless, UnsupportedModel, "conv.weight: is larger than the bytes that carry it"),
        (beyond_memory, UnsupportedModel, "conv.weight: is larger than any memory"),
        (backwards, ForbiddenGraph, "is not what torch.export writes"),
        (symbolic, ForbiddenGraph, "is not what torch.export writes"),
        (elsewhere, ForbiddenGraph, "lies in 'data/weights/../sample_inputs/model.pt'"),
        (missing, UnsupportedModel, "holds no data/weights/weight_99"),
        (sparse, UnsupportedModel, "conv.weight: is not laid out as a plain tensor"),
        (unknown, ForbiddenGraph, "is not what torch.export writes"),
        (more, ForbiddenGraph, "is not described as torch.export does"),
    ],
)
def test_a_tensor_lies_within_its_own_bytes(
    change: Callable[[dict[str, Any]], None],
    error: type[PericardError],
    reason: str,
    tiny_pt2: Path,
    tiny_description: Description,
    tmp_path: Path,
) -> None:
    (tmp_path / "it.pt2").write_bytes(rewritten(tiny_pt2, in_the_table(change)))
    with pytest.raises(error, match=re.escape(reason)):
        export.pack(tmp_path / "it.pt2", tiny_description)


def without_a_mark(name: str, data: bytes) -> dict[str, bytes]:
    return {} if name.endswith("archive_format") else {name: data}


def of_another_version(name: str, data: bytes) -> dict[str, bytes]:
    return {name: b"1" if name.endswith("archive_version") else data}


def of_another_byte_order(name: str, data: bytes) -> dict[str, bytes]:
    return {name: b"big" if name.endswith("byteorder") else data}


def without_a_table(name: str, data: bytes) -> dict[str, bytes]:
    return {} if name.endswith("model_constants_config.json") else {name: data}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_a_mark, "its archive_format is not that of a .pt2"),
        (of_another_version, "its archive_version is not that of a .pt2"),
        (of_another_byte_order, "its byteorder is not that of a .pt2"),
        (without_a_table, "holds no data/constants/model_constants_config.json"),
    ],
)
def test_an_archive_has_the_marks_of_torch_export(
    change: Change, reason: str, tiny_pt2: Path, tiny_description: Description, tmp_path: Path
) -> None:
    (tmp_path / "it.pt2").write_bytes(rewritten(tiny_pt2, change))
    with pytest.raises(UnsupportedModel, match=re.escape(reason)) as caught:
        export.pack(tmp_path / "it.pt2", tiny_description)
    assert "torch.export.save(" in (caught.value.hint or "")


def test_a_weight_that_no_table_holds_is_named(tiny_pt2: Path, tiny_description: Description, tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> dict[str, bytes]:
        if not name.endswith("model_weights_config.json"):
            return {name: data}
        table = json.loads(data)
        del table["config"]["head.bias"]
        return {name: json.dumps(table).encode()}

    (tmp_path / "it.pt2").write_bytes(rewritten(tiny_pt2, change))
    with pytest.raises(UnsupportedModel, match=r"it\.pt2: needs the tensor 'head\.bias', which it does not hold"):
        export.pack(tmp_path / "it.pt2", tiny_description)


def test_a_weight_whose_bytes_changed_on_the_way_is_refused(
    tiny_pt2: Path, tiny_description: Description, tmp_path: Path
) -> None:
    weight = pt2.read(tiny_pt2).state_dict["conv.weight"].detach().numpy().tobytes()
    data = tiny_pt2.read_bytes()
    assert data.count(weight) == 1
    (tmp_path / "it.pt2").write_bytes(data.replace(weight, bytes(len(weight))))

    with pytest.raises(UnsupportedModel, match=r"data/weights/weight_[0-9]+ cannot be read \(BadZipFile\)"):
        export.pack(tmp_path / "it.pt2", tiny_description)


def test_any_byte_of_an_archive_may_be_wrong_and_only_our_own_errors_come(
    tiny_pt2: Path, marker: Path, tmp_path: Path
) -> None:
    data = tiny_pt2.read_bytes()
    generator = random.Random(3)
    directory = data.index(b"PK\x01\x02")
    places = [generator.randrange(len(data)) for _ in range(60)] + [
        generator.randrange(directory, len(data)) for _ in range(200)
    ]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << generator.randrange(8)
        (tmp_path / "it.pt2").write_bytes(changed)
        with contextlib.suppress(PericardError):
            pt2.read(tmp_path / "it.pt2")


def test_any_text_of_a_graph_may_be_wrong_and_only_our_own_errors_come(tiny_pt2: Path, tmp_path: Path) -> None:
    """The archive's sums are right, so that every change reaches the readers of JSON and of tables."""
    generator = random.Random(5)

    def damage(name: str, data: bytes) -> dict[str, bytes]:
        if not name.endswith(".json"):
            return {name: data}
        place = generator.randrange(len(data))
        piece = generator.choice([b"", b'"', b"{}", b"[]", b"null", b"-1", b"1e9", b"\xff", b'"as_int": -7', b"NaN"])
        return {name: data[:place] + piece + data[place + generator.randrange(4) :]}

    for _ in range(80):
        (tmp_path / "it.pt2").write_bytes(rewritten(tiny_pt2, damage))
        with contextlib.suppress(PericardError):
            pt2.read(tmp_path / "it.pt2")
