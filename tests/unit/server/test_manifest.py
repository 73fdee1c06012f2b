"""The manifest: what is written is read, and whatever is not exactly as specified is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pericard import canonical
from pericard.errors import MalformedModel
from pericard.sealed import Description, Manifest, manifest
from pericard.sealed.manifest import Payload

CHUNK = 1 << 20
Fields = dict[str, Any]


@pytest.fixture
def made(tiny_description: Description) -> Manifest:
    payload = Payload(CHUNK + 5, bytes(range(32)), (b"\1" * 32, b"\2" * 32))
    return Manifest(b"\7" * 32, 1_790_000_000, "cd" * 32, tiny_description, payload)


@pytest.fixture
def fields(made: Manifest) -> Fields:
    return canonical.decode(made.encode(), limit=CHUNK)


def parse(fields: Fields) -> Manifest:
    return manifest.parse(canonical.encode(fields), subject="it")


def test_what_is_written_is_read(made: Manifest) -> None:
    found = manifest.parse(made.encode(), subject="it")

    assert found == made
    assert found.encode() == made.encode()
    assert found.payload.stored_size == CHUNK + 5 + 2 * 16


def test_fractions_are_integers_in_small_units(fields: Fields) -> None:
    assert fields["tolerance"] == {"cpu": {"absolute_nano": 1000, "relative_nano": 10_000}}
    assert fields["signal"]["sampling_rate_millihertz"] == 250_000
    assert fields["outputs"][0]["threshold_micro"] == 500_000
    assert fields["outputs"][1]["frame_us"] == 16_000


def test_a_model_without_a_signal_threshold_or_runtime_is_fine(made: Manifest) -> None:
    about = replace(made.description, signal=None, required_runtime="ef" * 32)
    plain = replace(made, description=about)

    assert manifest.parse(plain.encode(), subject="it") == plain


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a nested structure stands."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [path for key, item in items for path in paths(item, (*at, key))]


def holder(fields: Fields, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        fields = fields[key]
    return fields


def fits(path: tuple[Any, ...], value: Any) -> bool:
    """Whether a value that looks wrong is right at this place after all."""
    if value is None:
        return path[-1] in {"signal", "threshold_micro", "frame_us", "required"}
    if value == "":
        return path in {("publisher", "name"), ("model", "intended_use")} or path[-1] == "meaning"
    if value == -1:
        return path[-1] == "threshold_micro" or path[2:] == ("shape", 0)
    return value == {} and path == ("tolerance",)


def test_no_field_may_be_missing_or_of_another_type(fields: Fields) -> None:
    assert len(paths(fields)) > 60
    for path in paths(fields):
        if isinstance(path[-1], str) and path != ("tolerance", "cpu"):
            less = copy.deepcopy(fields)
            del holder(less, path)[path[-1]]
            with pytest.raises(MalformedModel, match="it: the manifest "):
                parse(less)
        for other in (None, True, -1, 1 << 62, "\n", "", [], {}, [5], {"x": 1}):
            if not fits(path, other):
                changed = copy.deepcopy(fields)
                holder(changed, path)[path[-1]] = other
                with pytest.raises(MalformedModel, match="it: the manifest "):
                    parse(changed)


def test_no_object_may_carry_more(fields: Fields) -> None:
    for path in [(), *paths(fields)]:
        found: Any = fields
        for key in path:
            found = found[key]
        if isinstance(found, dict) and path != ("tolerance",):
            changed = copy.deepcopy(fields)
            inner: Any = changed
            for key in path:
                inner = inner[key]
            inner["extra"] = 1
            with pytest.raises(MalformedModel, match="has an unknown field"):
                parse(changed)


CHANGES: dict[str, Callable[[Fields], object]] = {
    "another format version": lambda f: f.update(format="pericard/sealed-model/v2"),
    "an upper-case hash": lambda f: f.update(file_id="AB" * 32),
    "a short file id": lambda f: f.update(file_id="ab" * 31),
    "a name with a path": lambda f: f["model"].update(name="../tiny"),
    "a long name": lambda f: f["model"].update(name="t" * 65),
    "a version with a space": lambda f: f["model"].update(version="1.0 final"),
    "no sequence": lambda f: f["model"].update(sequence=0),
    "a sequence beyond what a record holds": lambda f: f["model"].update(sequence=1 << 53),
    "a floor above the sequence": lambda f: f["model"].update(floor=4),
    "an unknown kind": lambda f: f["model"].update(kind="pickled"),
    "half a kind": lambda f: f["model"].update(kind="export"),
    "a control character": lambda f: f["model"].update(intended_use="a\x1b[31mb"),
    "a long text": lambda f: f["publisher"].update(name="v" * 2001),
    "no input": lambda f: f.update(inputs=[]),
    "two inputs alike": lambda f: f.update(inputs=f["inputs"] * 2),
    "two outputs alike": lambda f: f.update(outputs=f["outputs"][:1] * 2),
    "too many outputs": lambda f: f.update(outputs=f["outputs"] * 33),
    "an unknown type": lambda f: f["inputs"][0].update(dtype="complex64"),
    "a shape without a batch": lambda f: f["inputs"][0].update(shape=[1, 1, 64]),
    "a shape of truth values": lambda f: f["inputs"][0].update(shape=[-1, True, 64]),
    "an unknown meaning": lambda f: f["outputs"][0].update(meaning="diagnosis"),
    "a frame of no length": lambda f: f["outputs"][1].update(frame_us=0),
    "no sampling rate": lambda f: f["signal"].update(sampling_rate_millihertz=0),
    "an unknown unit": lambda f: f["signal"].update(unit="V"),
    "leads that do not fit the input": lambda f: f["signal"].update(leads=[["I"], ["II"]]),
    "a lead without a name": lambda f: f["signal"].update(leads=[[]]),
    "a lead with a bad name": lambda f: f["signal"].update(leads=[["II\n"]]),
    "a lead that is not a list": lambda f: f["signal"].update(leads=["II"]),
    "a signal for two inputs": lambda f: f.update(inputs=[*f["inputs"], {**f["inputs"][0], "name": "b"}]),
    "a signal for a flat input": lambda f: f["inputs"][0].update(shape=[-1, 64]),
    "buckets that fall": lambda f: f["batch"].update(buckets=[4, 1]),
    "a bucket twice": lambda f: f["batch"].update(buckets=[1, 1, 4]),
    "buckets that end early": lambda f: f["batch"].update(buckets=[1, 2]),
    "buckets that go beyond": lambda f: f["batch"].update(buckets=[1, 4, 8]),
    "a bucket of truth": lambda f: f["batch"].update(buckets=[True, 4]),
    "a huge batch": lambda f: f["batch"].update(max=4097, buckets=[1, 4097]),
    "a bad backend": lambda f: f.update(tolerance={"CPU": f["tolerance"]["cpu"]}),
    "a negative tolerance": lambda f: f["tolerance"]["cpu"].update(absolute_nano=-1),
    "a tolerance of everything": lambda f: f["tolerance"]["cpu"].update(relative_nano=10**9 + 1),
    "a bad runtime": lambda f: f["runtime"].update(required="newest"),
    "another cipher": lambda f: f["payload"].update(aead="none"),
    "another chunk size": lambda f: f["payload"].update(chunk_size=CHUNK * 2),
    "an empty payload": lambda f: f["payload"].update(size=0, chunks=[]),
    "too few chunks": lambda f: f["payload"].update(chunks=["01" * 32]),
    "too many chunks": lambda f: f["payload"].update(chunks=["01" * 32] * 3),
    "a size that needs more chunks": lambda f: f["payload"].update(size=2 * CHUNK + 1),
    "a bad chunk hash": lambda f: f["payload"].update(chunks=["01" * 32, "zz" * 32]),
    "a payload beyond the limit": lambda f: f["payload"].update(size=(1 << 40) + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_out_of_bounds_is_refused(change: str, fields: Fields) -> None:
    CHANGES[change](fields)

    with pytest.raises(MalformedModel, match="it: the manifest "):
        parse(fields)


def test_what_is_not_canonical_is_refused(made: Manifest) -> None:
    encoded = made.encode()

    for data in (encoded + b"\n", encoded.replace(b":", b": ", 1), b"[]", b"", encoded[:-1], b"\xff"):
        with pytest.raises(MalformedModel, match="it: the manifest "):
            manifest.parse(data, subject="it")
