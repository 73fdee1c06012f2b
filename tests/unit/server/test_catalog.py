"""What the engine serves, as the edge looks it up."""

from __future__ import annotations

import numpy as np
import pytest
from answering import CATALOG, ENTRY, catalog

from pericard.edge.catalog import Catalog
from pericard.errors import ModelNotReady, UnknownModel

TWO = Catalog(catalog({"ready": False}, {}, current="2"))


def test_without_a_version_the_current_one_is_meant() -> None:
    found = TWO.model("m")

    assert (found.name, found.version, found.number, found.ready) == ("m", "2", 2, True)
    assert TWO.model("m", "2") is found
    assert TWO.runtime == "ef"


def test_an_older_version_is_there_for_who_names_it() -> None:
    found = TWO.model("m", "1")

    assert (found.version, found.number, found.ready) == ("1", 1, False)
    assert TWO.versions("m") == ["1", "2"]


@pytest.mark.parametrize(("name", "version"), [("n", ""), ("n", "1"), ("m", "3"), ("m", "01"), ("M", ""), ("", "")])
def test_what_is_not_served_is_unknown(name: str, version: str) -> None:
    with pytest.raises(UnknownModel):
        TWO.model(name, version)
    assert TWO.versions("n") == []


def test_a_version_that_is_not_there_does_not_become_the_current_one() -> None:
    with pytest.raises(UnknownModel, match="version 7"):
        Catalog(CATALOG).model("m", "7")


def test_versions_of_which_none_is_current_are_not_ready() -> None:
    found = Catalog(catalog({"ready": False}, current="0"))

    with pytest.raises(ModelNotReady):
        found.model("m")
    assert found.model("m", "1").number == 1


def test_current_is_a_number_of_the_engine_and_not_a_version() -> None:
    found = Catalog(catalog({"number": 2}, {"number": 1}, current="2"))

    assert found.model("m").version == "1"


def test_everything_that_is_served_is_listed() -> None:
    assert [(model.name, model.version) for model in TWO] == [("m", "1"), ("m", "2")]
    assert TWO.names == ["m"]
    assert list(Catalog({**CATALOG, "models": {}})) == []


def test_where_the_outputs_lie() -> None:
    outputs = [
        {**ENTRY["outputs"][0], "name": "score", "shape": [-1]},
        {**ENTRY["outputs"][0], "name": "map", "dtype": "int16", "shape": [-1, 2, 3]},
        {**ENTRY["outputs"][0], "name": "flag", "dtype": "bool", "shape": [-1, 1]},
    ]
    inputs = [ENTRY["inputs"][0], {**ENTRY["inputs"][0], "name": "n", "dtype": "int64", "shape": [-1, 3]}]
    found = Catalog(catalog({"outputs": outputs, "inputs": inputs})).model("m")

    assert [(one.name, one.start, one.count, one.shape) for one in found.outputs] == [
        ("score", 0, 1, ()), ("map", 4, 6, (2, 3)), ("flag", 16, 1, (1,)),
    ]  # fmt: skip
    assert (found.answer_bytes, found.row_bytes) == (17, 2 * 4 + 3 * 8)
    assert found.dtypes == (np.dtype("float32"), np.dtype("int64"))


def test_two_versions_are_never_the_same() -> None:
    assert Catalog(CATALOG).model("m") != Catalog(CATALOG).model("m")


@pytest.mark.parametrize("name", ["n" * 10_000, "\n"])
def test_a_name_is_told_back_shortened(name: str) -> None:
    with pytest.raises(UnknownModel) as error:
        TWO.model(name)
    assert len(error.value.message) < 120
