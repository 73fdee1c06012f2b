"""A reader written from the specification alone makes the same of every vector, and of what the product seals."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pericard.keys import Identity, PublisherKey
from pericard.sealed import Term

TESTS = Path(__file__).parents[2]
READER = TESTS / "reader"
VECTORS = TESTS / "vectors" / "sealed"
EXAMPLES = json.loads((VECTORS / "examples.json").read_text())
PUBLISHER = bytes.fromhex(EXAMPLES["publisher"]["public"])
SEED, RECIPIENT = bytes.fromhex(EXAMPLES["identity"]["seed"]), EXAMPLES["identity"]["recipient"]
DAY = 86_400
Headers = dict[str, str]


def named(folder: str) -> list[str]:
    return sorted(path.stem for path in (VECTORS / folder).glob("*.vector"))


def read(name: str) -> tuple[Headers, bytes]:
    head, _, data = (VECTORS / f"{name}.vector").read_bytes().partition(b"\n\n")
    return dict(line.split(": ", 1) for line in head.decode("ascii").split("\n")), data


@pytest.fixture(scope="module")
def reader() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(READER)
        yield importlib.import_module("sealed_reader")


@pytest.fixture(scope="module")
def outcome(reader: ModuleType) -> Callable[..., Headers]:
    """The headers that a vector should carry, as the second reader finds them."""

    def run(headers: Headers, data: bytes, *detached: bytes) -> Headers:
        cuda = {name: headers[name] for name in ("driver", "cuda", "cudnn") if name in headers}
        try:
            found = reader.open_model(
                data, [PUBLISHER], SEED, RECIPIENT, now=int(headers["now"]), floor=int(headers.get("floor", "0")),
                until=int(headers.get("until", 1 << 63)),
                runtime=headers.get("runtime", EXAMPLES["runtime"]), detached=detached,
                flags=tuple(headers.get("cpu", "").split()), cuda=cuda or None,
            )  # fmt: skip
        except reader.Refused as refusal:
            return headers | {"expect": str(refusal)}
        digest = hashlib.sha256(found["plaintext"]).hexdigest()
        return headers | {"expect": "success", "licence": found["licence"]} | (
            {} if detached else {"plaintext": digest}
        )  # fmt: skip

    return run


# --- it is a second reader


def test_it_shares_no_code_with_the_product() -> None:
    code = (READER / "sealed_reader.py").read_text()
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])

    assert found - sys.stdlib_module_names == {"cryptography"}
    assert not found & {"importlib", "runpy", "subprocess"}
    assert not re.search(r"__import__|\b(exec|eval|compile)\(", code)


def test_it_is_one_small_file_and_a_table_of_data() -> None:
    lines = (READER / "sealed_reader.py").read_text().splitlines()

    beside = {"audit_reader.py"}  # that of the audit log, which it knows nothing of
    assert {path.name for path in READER.rglob("*.py*") if path.suffix != ".pyc"} == {"sealed_reader.py"} | beside
    assert {path.name for path in READER.iterdir()} - {"__pycache__"} == {"sealed_reader.py", "members.json"} | beside
    assert not any("audit_reader" in line for line in lines)
    assert len(lines) <= 220
    assert max(map(len, lines)) <= 120


# --- vectors


@pytest.mark.parametrize("name", named("."))
def test_a_sealed_model_comes_out_as_expected(name: str, outcome: Callable[..., Headers]) -> None:
    headers, data = read(name)

    assert outcome(headers, data) == headers


@pytest.mark.parametrize("name", named("grants"))
def test_a_detached_grant_comes_out_as_expected(name: str, outcome: Callable[..., Headers]) -> None:
    headers, grant = read(f"grants/{name}")
    _, model = read("no-grant-for-us")

    assert outcome(headers, model, grant) == headers
    assert outcome(headers, model)["expect"] == "no-grant"  # the file alone


@pytest.mark.parametrize("name", named("notices"))
def test_a_notice_comes_out_as_expected(name: str, reader: ModuleType) -> None:
    headers, data = read(f"notices/{name}")
    if headers["expect"] == "success":
        found = reader.read_notice(data, [PUBLISHER])
        assert (found["model"], str(found["floor"])) == (headers["model"], headers["floor"])
    else:
        with pytest.raises(reader.Refused) as caught:
            reader.read_notice(data, [PUBLISHER])
        assert str(caught.value) == headers["expect"]


def test_what_a_good_vector_holds(reader: ModuleType) -> None:
    _, data = read("good")
    found = reader.open_model(data, [PUBLISHER], SEED, RECIPIENT, now=1_790_000_000, runtime=EXAMPLES["runtime"])

    assert found["manifest"] == json.loads(EXAMPLES["manifest"])
    assert found["plaintext"].hex() == EXAMPLES["plaintext"]
    assert [tensor["name"] for tensor in found["index"]["tensors"]] == ["weight"]
    assert len(found["index"]["known_answers"]) == 1


# --- what the product seals


def test_it_opens_a_model_that_the_product_sealed(
    reader: ModuleType, sealed_model: Path, publisher_key: PublisherKey, identity: Identity, now: int
) -> None:
    found = reader.open_model(
        sealed_model.read_bytes(), [publisher_key.publisher.public], b"hospital".ljust(32), identity.recipient.id,
        now=now, runtime="ab" * 32,
    )  # fmt: skip
    graph = found["index"]["graph"]
    program = json.loads(found["plaintext"][graph["offset"] :][: graph["size"]])

    assert found["manifest"]["model"]["name"] == "tiny"
    assert {tensor["name"] for tensor in found["index"]["tensors"]} >= {"conv.weight", "head.bias"}
    assert "graph_module" in program
    assert found["licence"] == "valid"


def test_it_opens_several_chunks_and_refuses_any_that_is_altered(
    reader: ModuleType, seal_bytes: Callable[..., Path], publisher_key: PublisherKey, identity: Identity, now: int
) -> None:
    """Three chunks that hold one artifact; its graph is large."""
    from pericard.sealed import Source, artifact

    answer = Source("a", "answer", "uint8", (1,), memoryview(b"\5"))
    _, parts = artifact.pack(hashlib.shake_128(b"plain").digest((2 << 20) + 77), (), (((answer,), (answer,)),))
    plain = b"".join(parts)
    data = seal_bytes(plain).read_bytes()
    here: dict[str, Any] = {"now": now, "runtime": "ab" * 32}
    who = ([publisher_key.publisher.public], b"hospital".ljust(32), identity.recipient.id)

    assert reader.open_model(data, *who, **here)["plaintext"] == plain
    for place in (-1, -((1 << 20) + 200), -(len(plain)), -len(plain) - 20):
        altered = bytearray(data)
        altered[place] ^= 16
        with pytest.raises(reader.Refused, match="corrupt-payload"):
            reader.open_model(bytes(altered), *who, **here)


@pytest.mark.parametrize(
    ("spans", "state"),
    [
        ([(-9, -8, 0), (-1, 1, 0)], "valid"),
        ([(-9, -1, 14), (-9, -2, 366)], "grace"),
        ([(-9, -1, 0), (1, 2, 0)], "licence-not-yet-valid"),
        ([(-9, -8, 0), (-3, -1, 0)], "licence-expired"),
        ([(1, 3, 0), (-5, 2, 0)], "valid"),
    ],
)
def test_of_several_grants_both_readers_choose_alike(
    spans: list[tuple[int, int, int]],
    state: str,
    reader: ModuleType,
    seal_bytes: Callable[..., Path],
    identity: Identity,
    publisher_key: PublisherKey,
    now: int,
    opened: Callable[..., bytearray],
) -> None:
    from pericard.errors import TrustError

    answer = EXAMPLES["plaintext"]
    terms = tuple(Term(identity.recipient, now + a * DAY, now + b * DAY, grace) for a, b, grace in spans)
    data = seal_bytes(bytes.fromhex(answer), terms=terms).read_bytes()
    who = ([publisher_key.publisher.public], b"hospital".ljust(32), identity.recipient.id)
    try:
        product = bytes(opened(data)).hex()
    except TrustError as error:
        product = error.code
    try:
        found = reader.open_model(data, *who, now=now, runtime="ab" * 32)
        second = (found["licence"], found["plaintext"].hex())
    except reader.Refused as refusal:
        second = (str(refusal), str(refusal))
    assert second == (state, product)
