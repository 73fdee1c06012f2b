"""``model.yaml``: what a vendor says of a model, in people's units; read once, strictly, into a description.

An unknown key or a wrong type is refused by name. What the artifact tells by itself (its kind, the batch sizes that it
is right at) is filled in when it is prepared.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from pericard.errors import UnsupportedModel
from pericard.sealed import Description, HostBounds, Output, Signal, Tolerance, manifest
from pericard.tensors import TensorSpec

#: Names of the manifest's fields → of ours, where they differ.
_OURS = {
    "model.": "",
    "publisher.name": "publisher",
    "runtime.required": "required_runtime",
    "runtime.host": "required_host",
    "threshold_micro": "threshold",
    "frame_us": "frame_seconds",
    "sampling_rate_millihertz": "sampling_rate",
    "absolute_nano": "atol",
    "relative_nano": "rtol",
}
_NUMBER = re.compile(r"Expected `str(?: \| null)?`, got `(?:int|float|bool|null)` - at `\$\.(?:[a-z_]+\.)?([a-z_]+)`")


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Output(_Tensor, forbid_unknown_fields=True):
    meaning: str = ""
    threshold: float | None = None
    frame_seconds: float | None = None


class _Signal(msgspec.Struct, forbid_unknown_fields=True):
    sampling_rate: float
    unit: str
    leads: tuple[tuple[str, ...], ...]


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    max: int = 32
    buckets: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32)


class _Tolerance(msgspec.Struct, forbid_unknown_fields=True):
    atol: Annotated[float, msgspec.Meta(ge=0)]
    rtol: Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Host(msgspec.Struct, forbid_unknown_fields=True):
    cpu_flags: tuple[str, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None


class _ModelFile(msgspec.Struct, forbid_unknown_fields=True):
    """``model.yaml``: what the vendor says of a model, in people's units."""

    name: str
    version: str
    sequence: int
    publisher: str
    intended_use: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Output, ...]
    floor: int = 0
    signal: _Signal | None = None
    batch: _Batch = msgspec.field(default_factory=_Batch)
    tolerance: dict[str, _Tolerance] = msgspec.field(default_factory=lambda: {"cpu": _Tolerance(1e-4, 1e-3)})
    required_runtime: str | None = None
    required_host: _Host | None = None


def read(path: Path, *, runtime: str) -> Description:
    """Read a description.

    Args:
        path: the file.
        runtime: digest of the runtime that seals.

    Raises:
        UnsupportedModel: it cannot be read, lacks or adds a key, or a value is out of bounds.
    """
    try:
        said = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), type=_ModelFile)
        described = Description(
            name=said.name,
            version=said.version,
            sequence=said.sequence,
            floor=said.floor,
            kind="exported",  # until the artifact is read, which tells its kind
            publisher_name=said.publisher,
            intended_use=" ".join(said.intended_use.split()),
            inputs=tuple(TensorSpec(item.name, item.dtype, item.shape) for item in said.inputs),
            outputs=tuple(
                Output(TensorSpec(item.name, item.dtype, item.shape), item.meaning, item.threshold, item.frame_seconds)
                for item in said.outputs
            ),
            signal=Signal(said.signal.sampling_rate, said.signal.unit, said.signal.leads) if said.signal else None,
            max_batch=said.batch.max,
            buckets=said.batch.buckets,
            tolerance={name: Tolerance(item.atol, item.rtol) for name, item in said.tolerance.items()},
            sealed_in=runtime,
            required_runtime=said.required_runtime,
            required_host=_bounds(said.required_host),
        )
        manifest.check(described)
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read: {(error.strerror or 'i/o error').lower()}") from error
    except (
        ValueError,
        OverflowError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # msgspec's and TensorSpec's are ValueErrors
        number = _NUMBER.search(str(error))
        hint = f'write it in quotes: {number[1]}: "1.0"' if number else "examples/ecg/model.yaml shows every field"
        raise UnsupportedModel(f"{path}: {_reason(error)}", hint=hint) from error
    return described


def _bounds(said: _Host | None) -> HostBounds | None:
    if said is None:
        return None
    return HostBounds(tuple(sorted(said.cpu_flags)), said.driver, said.cuda, said.cudnn)


def _reason(error: Exception) -> str:
    """What is wrong, in the words of this file, with the line where the text is none of YAML."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or 'is no YAML'}"
    text = str(error).split("\n", maxsplit=1)[0]
    for theirs, ours in _OURS.items():
        text = text.replace(theirs, ours)
    return text[:1].lower() + text[1:]
