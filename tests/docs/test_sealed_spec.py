"""The pages on sealed models agree with the code: steps, limits, members, codes, lists, and the tests they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pericard.errors import leaves
from pericard.runtime import expressions, graph, operators
from pericard.sealed import layout

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "docs" / "spec" / "sealed-model.md").read_text()
THREATS = (ROOT / "docs" / "threat-model.md").read_text()
VECTORS = ROOT / "tests" / "vectors" / "sealed"


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", SPEC, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


def body(name: str) -> bytes:
    return (VECTORS / f"{name}.vector").read_bytes().partition(b"\n\n")[2]


def test_the_example_is_the_vector() -> None:
    data, example = body("good"), section("An example")
    header = layout.unpack_header(data[:20], subject="it")

    assert data[:8].hex(" ") in example
    assert data[8:20].hex(" ", 1).replace(" ", "") in re.sub(r"\s", "", example)
    assert f"manifest {header.manifest}, signatures {header.signatures}, grants {header.grants}" in example
    assert f"{len(data):,} bytes".replace(",", " ") in example
    offsets = [int(place) for place in re.findall(r"^    (\d+) ", example, re.MULTILINE)]
    signatures = 20 + header.manifest
    ends = [signatures, signatures + header.signatures, signatures + header.signatures + header.grants]
    assert offsets == [0, 8, 20, *ends, header.payload_offset, len(data)]
    assert data[header.payload_offset :].hex()[:8] in example


def test_the_steps_of_the_page_are_those_of_the_code() -> None:
    source = (ROOT / "server" / "src" / "pericard" / "sealed" / "container.py").read_text()
    steps = re.findall(r"^(\d+)\. \*\*", section("Opening"), re.MULTILINE)

    assert [int(step) for step in steps] == list(range(1, 13))
    assert [int(step) for step in re.findall(r"\((\d)\) ", source)] == list(range(1, 10))


@pytest.mark.parametrize(
    ("row", "limit"),
    [
        (r"manifest \| 1 \| (\d+) MiB", layout.MAX_MANIFEST >> 20),
        (r"signatures section \| 1 \| (\d+) KiB", layout.MAX_SIGNATURES >> 10),
        (r"grants section \| 1 \| (\d+) MiB", layout.MAX_GRANTS >> 20),
        (r"one grant's body \| 1 \| (\d+) KiB", layout.MAX_GRANT >> 10),
        (r"at most (\d+) MiB and 200 000\s+nodes", graph.MAX_GRAPH >> 20),
        (r"expr_str`, at most (\d+) characters", expressions.MAX_LENGTH),
        (r"characters, (\d+) deep", expressions.MAX_DEPTH),
    ],
)
def test_limits(row: str, limit: int) -> None:
    found = re.search(row, SPEC)

    assert found
    assert int(found[1]) == limit


def test_every_member_of_a_real_file_stands_on_the_page() -> None:
    data = body("good").decode("latin-1")
    members = set(re.findall(r'"([a-z_]+)":', data))

    assert len(members) > 40
    assert {member for member in members if f"`{member}`" not in SPEC} <= {"cpu"}


def test_every_code_of_the_vectors_stands_on_the_page_and_every_code_of_the_page_exists() -> None:
    codes = set(re.findall(r"^\| (`[^|]+`) \|", section("Codes"), re.MULTILINE))
    named = {code for row in codes for code in re.findall(r"`([a-z-]+)`", row)}
    expected = {line[8:] for path in VECTORS.glob("*.vector") for line in [path.read_bytes().split(b"\n")[0].decode()]}

    assert expected - {"success"} <= named <= leaves().keys()


def test_the_lists_of_the_graph_are_those_of_the_code() -> None:
    text = section("Graph")
    arguments = re.search(r"of the kinds `([^`]+)`", text)
    functions = set(re.findall(r'"([A-Z]\w+)"', text[text.index("function   =") :]))
    python = re.search(r"`_operator\.` with `([^`]+)`", text)

    assert arguments
    assert set(arguments[1].split()) == set(graph._ARGUMENTS)
    assert functions == set(expressions.FUNCTIONS)
    assert python
    assert {f"_operator.{name}" for name in python[1].split()} == operators.ALLOWED_PYTHON
    assert f"schema {graph.SCHEMA[0]}.{graph.SCHEMA[1]}" in text


def test_the_threat_model_names_only_tests_that_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", THREATS))

    assert len(named) > 20
    assert {path for path in named if not (ROOT / path).is_file()} == set()
    assert re.findall(r"^\| (P\d+) \|", THREATS, re.MULTILINE) == [f"P{number}" for number in range(1, 11)]


def test_the_threat_model_begins_with_what_is_not_promised() -> None:
    assert THREATS.split("\n\n")[1].startswith("**What is not promised.**")
