"""A ``.pt2``, read without running anything that it brings.

``torch.export.load`` runs code in several independent ways: it unpickles the example inputs, pickled weights, opaque
constants and weights of an older format, and it evaluates expressions. So it is not used. Rules of this room: the
archive is read once, member by member, under limits; a member that is not written down here is refused by name; the
example inputs are never read; the graph is reduced to what a seal accepts (or will accept, once operators that write in
place are rewritten) and held against the allow-lists; and only then torch's deserialiser gets it, with tensors made
here from plain bytes.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE, _bytes_to_dataclass
from torch.export import ExportedProgram
from torch.utils import _pytree

from pericard.errors import ForbiddenGraph, ModelTooLarge, UnsupportedModel
from pericard.runtime import exported
from pericard.runtime import graph as graphs

MAX_ARCHIVE = 64 << 30
_MAX_MEMBERS = 1 << 18
_MAX_JSON = 256 << 20  # with the stack traces that are dropped
_MAX_AXES = 16
_MAX_SHARED = 16  # names of one storage, on average
_PART = 1 << 20

_GRAPH = "models/model.json"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_MARKS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
#: Members that carry tensors, and nothing but their bytes.
_RAW = re.compile(r"data/weights/weight_[0-9]{1,7}|data/constants/tensor_[0-9]{1,7}")
#: Members that are left behind unread: the vendor's example, the vendor's notes, and the writer's own marks.
_UNREAD = re.compile(
    r"data/sample_inputs/model\.pt|extra/.*|\.data/(?:version|serialization_id)|\.format_version|\.storage_alignment"
)
#: What zipfile raises for a file that is not what it says.
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, RuntimeError, struct.error, zipfile.BadZipFile)
#: What reading a description raises that is not what torch.export writes.
_MALFORMED = (
    KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, RuntimeError,
)  # fmt: skip
_COMPILED = ("data/aotinductor/", "executorch/", "mtia/")
_EXPORT_AGAIN = "save it with torch.export.save(torch.export.export(model.eval(), …), 'model.pt2')"
_PLAIN_EXPORT = "export the plain nn.Module on the CPU: no tensor subclasses, no script objects, no compiled parts"


def read(path: Path) -> ExportedProgram:
    """Read a ``.pt2`` as a program; nothing of the file runs, and its example inputs stay behind.

    Raises:
        UnsupportedModel: it is not a ``.pt2``, or of a kind that is not sealed.
        ForbiddenGraph: it holds something that could run code; the message names the member.
        ModelTooLarge: a limit is passed.
    """
    members = _Members(path)
    raw = members.text(_GRAPH)
    try:
        program = graphs.decode(raw)
        reduced = graphs.normalise(program, sealed=False)
        count = _positional_inputs(program)
        held = {**_tensors(members, _WEIGHTS), **_tensors(members, _CONSTANTS)}
    except MemoryError as error:
        raise ModelTooLarge(f"{path}: its tensors do not fit into this machine's memory") from error
    except _MALFORMED as error:
        raise ForbiddenGraph(f"{path}: {_GRAPH}: is not what torch.export writes ({type(error).__name__})") from error
    if count is None:
        raise UnsupportedModel(
            f"{path}: cannot be called with its inputs in order", hint="export it with positional tensor inputs"
        )
    try:
        return _program(reduced, count, held)
    except KeyError as error:
        raise UnsupportedModel(f"{path}: needs the tensor {error}, which it does not hold") from error
    except Exception as error:  # torch's deserialiser raises whatever it meets
        raise UnsupportedModel(
            f"{path}: this torch cannot build its graph ({type(error).__name__})", hint=_EXPORT_AGAIN
        ) from error


class _Members:
    """The members of an archive, each read at most once, after the list of them was checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise UnsupportedModel(f"{path}: there is no such file")
        try:
            self._archive = zipfile.ZipFile(path)
            self._found = self._checked(self._archive.infolist())
            for name, wanted in _MARKS.items():
                if name not in self._found or self._read(name) != wanted:
                    raise UnsupportedModel(f"{path}: its {name} is not that of a .pt2", hint=_EXPORT_AGAIN)
        except _UNREADABLE as error:
            raise UnsupportedModel(
                f"{path}: cannot be read as a .pt2 ({type(error).__name__})", hint=_EXPORT_AGAIN
            ) from error

    def _checked(self, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """Every member by its name below the one root folder."""
        _check_no_script(self._path, {info.filename.partition("/")[2] for info in infos})
        if len(infos) > _MAX_MEMBERS or sum(info.file_size for info in infos) > MAX_ARCHIVE:
            raise ModelTooLarge(f"{self._path}: holds more than {_MAX_MEMBERS} members or {MAX_ARCHIVE} bytes")
        found: dict[str, zipfile.ZipInfo] = {}
        roots = {info.filename.partition("/")[0] for info in infos}
        for info in infos:
            name = info.filename.partition("/")[2]
            if len(roots) != 1 or not name or name in found or info.flag_bits & 1:
                raise UnsupportedModel(
                    f"{self._path}: the member {info.filename[:120]!r} is not where torch.export puts one",
                    hint=_EXPORT_AGAIN,
                )
            self._check_kind(info, name)
            found[name] = info
        if sum(info.file_size for info in infos) > self._path.stat().st_size:
            raise UnsupportedModel(f"{self._path}: its members are larger than itself", hint=_EXPORT_AGAIN)
        for name in (_GRAPH, _WEIGHTS, _CONSTANTS):
            if name not in found:
                raise UnsupportedModel(f"{self._path}: holds no {name}", hint=_EXPORT_AGAIN)
        return found

    def _check_kind(self, info: zipfile.ZipInfo, name: str) -> None:
        subject = f"{self._path}: the member {name[:120]!r}"
        if _UNREAD.fullmatch(name):
            return
        if name.startswith(_COMPILED):
            raise UnsupportedModel(f"{subject} is compiled code", hint=_PLAIN_EXPORT)
        if not _RAW.fullmatch(name) and name not in {_GRAPH, _WEIGHTS, _CONSTANTS, *_MARKS}:
            raise ForbiddenGraph(
                f"{subject} is none of a graph and plain tensors: torch.export.load would unpickle it, or run it",
                hint=_PLAIN_EXPORT,
            )
        if info.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedModel(f"{subject} is compressed, which torch.export never does", hint=_EXPORT_AGAIN)
        if name in {_GRAPH, _WEIGHTS, _CONSTANTS, *_MARKS} and info.file_size > _MAX_JSON:
            raise ModelTooLarge(f"{subject} holds {info.file_size} bytes, allowed are {_MAX_JSON}")

    def _read(self, name: str) -> bytearray:
        info = self._found[name]
        data = bytearray(info.file_size)
        view, done = memoryview(data), 0
        with self._archive.open(info) as member:
            while part := member.read(_PART):  # zipfile ends it where the archive says, and checks its sum
                view[done : done + len(part)] = part
                done += len(part)
        if done != len(data):
            raise zipfile.BadZipFile("a member has another size than the archive says")
        return data

    def text(self, name: str) -> bytes:
        """A member of JSON."""
        return bytes(self.raw(name))

    def raw(self, name: str) -> bytearray:
        """A member's bytes, as new memory."""
        try:
            return self._read(name)
        except KeyError as error:
            raise UnsupportedModel(f"{self._path}: holds no {name[:120]}", hint=_EXPORT_AGAIN) from error
        except _UNREADABLE as error:
            raise UnsupportedModel(
                f"{self._path}: {name} cannot be read ({type(error).__name__})", hint=_EXPORT_AGAIN
            ) from error

    def refuse(self, name: str, what: str) -> ForbiddenGraph:
        """The error that names a tensor and the member that describes it."""
        return ForbiddenGraph(f"{self._path}: {name}: {what}", hint=_PLAIN_EXPORT)


def _check_no_script(path: Path, names: set[str]) -> None:
    """Name what people hand in under this suffix; nothing of it is read."""
    if _GRAPH not in names and "constants.pkl" in names:
        raise UnsupportedModel(
            f"{path}: is a TorchScript module, which is deprecated and not served", hint=_EXPORT_AGAIN
        )
    if _GRAPH not in names and "data.pkl" in names:
        raise UnsupportedModel(
            f"{path}: is a file of torch.save, not of torch.export",
            hint=f"if these are weights alone, name the file .pth and their module: --module pkg.mod:factory; or "
            f"{_EXPORT_AGAIN}",
        )


def _tensors(members: _Members, config: str) -> dict[str, torch.Tensor]:
    """The tensors that a table describes, as views of the members that carry them."""
    folder = config.rpartition("/")[0]
    table = graphs.decode(members.text(config))
    if table.keys() != {"config"}:
        raise members.refuse(config, "carries more than a table of tensors")
    storages: dict[str, bytearray] = {}
    found: dict[str, torch.Tensor] = {}
    for name, entry in table["config"].items():
        subject = f"the tensor {name[:120]!r}"
        if entry.keys() != {"path_name", "is_param", "use_pickle", "tensor_meta"}:
            raise members.refuse(config, f"{subject} is not described as torch.export does")
        if entry["use_pickle"] is not False or entry["tensor_meta"] is None:
            raise members.refuse(config, f"{subject} is pickled, and unpickling runs code")
        member = f"{folder}/{entry['path_name']}"
        if not _RAW.fullmatch(member):
            raise members.refuse(config, f"{subject} lies in {member[:120]!r}, which is not a plain tensor")
        if member not in storages:
            storages[member] = members.raw(member)
        found[name] = _tensor(storages[member], entry["tensor_meta"], name)
    _bound(found, storages)
    return found


def _bound(found: dict[str, torch.Tensor], storages: dict[str, bytearray]) -> None:
    """Keep what is made of the views from outgrowing the bytes that came; weights that are tied may share theirs."""
    total = sum(tensor.numel() * tensor.itemsize for tensor in found.values())
    if total > _MAX_SHARED * sum(map(len, storages.values())) + _PART:
        raise ModelTooLarge(f"tensors: hold {total} bytes, many times what the archive carries", hint=_EXPORT_AGAIN)


def _tensor(storage: bytearray, meta: dict[str, Any], name: str) -> torch.Tensor:
    number = schema.ScalarType(meta["dtype"])
    sizes, strides = ([_plain_size(item) for item in meta[key]] for key in ("sizes", "strides"))
    offset = _plain_size(meta["storage_offset"])
    dtype = _SERIALIZE_TO_TORCH_DTYPE[number]
    if len(sizes) != len(strides) or len(sizes) > _MAX_AXES or meta["layout"] != schema.Layout.Strided:
        raise UnsupportedModel(f"tensor {name}: is not laid out as a plain tensor", hint=_PLAIN_EXPORT)
    if math.prod(size or 1 for size in sizes) * dtype.itemsize >= 1 << 63:
        raise UnsupportedModel(f"tensor {name}: is larger than any memory", hint=_EXPORT_AGAIN)
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype)
    if math.prod(sizes) * dtype.itemsize > len(storage):  # an axis without a stride repeats itself when it is copied
        raise UnsupportedModel(f"tensor {name}: is larger than the bytes that carry it", hint=_EXPORT_AGAIN)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if (last + 1) * dtype.itemsize > len(storage) or len(storage) % dtype.itemsize:
        raise UnsupportedModel(f"tensor {name}: is larger than the bytes that carry it", hint=_EXPORT_AGAIN)
    return torch.frombuffer(storage, dtype=dtype).as_strided(sizes, strides, offset)


def _plain_size(item: dict[str, Any]) -> int:
    ((kind, value),) = item.items()
    if kind != "as_int" or type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError("a size is not a plain number")
    return value


def _positional_inputs(program: dict[str, Any]) -> int | None:
    """How many tensors the program takes in order; None if it takes anything else. Its tree specification is read only.

    The graph itself is flat; the tree says how the vendor's code calls it, and torch's reader of trees looks up types.
    """
    calls = program["graph_module"]["module_call_graph"]
    leaf: dict[str, object] = {"type": None, "context": None, "children_spec": []}
    _, tree = json.loads(calls[0]["signature"]["in_spec"])
    positional, named = tree["children_spec"]
    inputs = [spec for spec in program["graph_module"]["signature"]["input_specs"] if "user_input" in spec]
    plain = (
        tree["type"] == positional["type"] == "builtins.tuple"
        and named["children_spec"] == []
        and positional["children_spec"] == [leaf] * len(inputs)
    )
    return len(inputs) if plain else None


def _program(reduced: bytes, inputs: int, held: dict[str, torch.Tensor]) -> ExportedProgram:
    """The program of a checked graph: flat inputs, flat outputs, and the tensors that it names."""
    serialised = _bytes_to_dataclass(schema.ExportedProgram, reduced)
    outputs = len(serialised.graph_module.signature.output_specs)
    flat: tuple[tuple[int, ...], dict[str, int]] = ((0,) * inputs, {})
    serialised.graph_module.module_call_graph = [
        schema.ModuleCallEntry(
            fqn="",
            signature=schema.ModuleCallSignature(
                inputs=[],
                outputs=[],
                in_spec=_pytree.treespec_dumps(_pytree.tree_structure(flat)),
                out_spec=_pytree.treespec_dumps(_pytree.tree_structure((0,) * outputs)),
            ),
        )
    ]
    return exported.build(serialised, held)
