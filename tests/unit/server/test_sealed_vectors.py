"""The sealed model's vectors: each file is refused with its own code, and their generator still makes such files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pericard.environment import Cuda, Host
from pericard.errors import PericardError, leaves
from pericard.keys import Identity, Publisher
from pericard.sealed import SealedModel, artifact
from pericard.trust import Pin, Pins, Policy, TrustState

VECTORS = Path(__file__).parents[2] / "vectors" / "sealed"
EXAMPLES = json.loads((VECTORS / "examples.json").read_text())
NAMES = sorted(path.stem for path in VECTORS.glob("*.vector"))
Headers = dict[str, str]


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("sealed_vectors", VECTORS.parent / "generate" / "sealed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "sealed_vectors", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def read(path: Path) -> tuple[Headers, bytes]:
    head, _, data = path.read_bytes().partition(b"\n\n")
    lines = head.decode("ascii").split("\n")
    return dict(line.split(": ", 1) for line in lines), data


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[[Path], Headers]:
    """What a site makes of a vector: the headers that it should carry."""

    def run(path: Path) -> Headers:
        headers, data = read(path)
        (tmp_path / "it").write_bytes(data)
        publisher = Publisher(bytes.fromhex(EXAMPLES["publisher"]["public"]))
        (tmp_path / "trust.json").unlink(missing_ok=True)
        state = TrustState(tmp_path / "trust.json")
        state.commit(state.current.with_floor(publisher.id, "vector", int(headers.get("floor", "0"))))
        until = int(headers["until"]) if "until" in headers else None
        pins = Pins([Pin("vendor", publisher, 0, until)])
        versions = [headers.get(name, "") for name in ("driver", "cuda", "cudnn")]
        host = Host(frozenset(headers.get("cpu", "").split()), Cuda(*versions) if any(versions) else None)
        policy = Policy(pins, state, runtime=headers.get("runtime", EXAMPLES["runtime"]), host=host)
        identity = Identity(bytes.fromhex(EXAMPLES["identity"]["seed"]))
        now = int(headers["now"])
        try:
            with SealedModel(tmp_path / "it") as source:
                model = source.verify(policy.publishers)
                licence = policy.accept(model, identity.recipient.id, now)
                target = bytearray(model.manifest.payload.size)
                model.decrypt_into(model.unwrap(licence.grant, identity), memoryview(target))
                artifact.parse(memoryview(target), subject="it")
        except PericardError as error:
            return headers | {"expect": error.code}
        found = {"plaintext": hashlib.sha256(target).hexdigest(), "licence": licence.state(now)}
        return headers | {"expect": "success"} | found

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_comes_out_as_expected(name: str, outcome: Callable[[Path], Headers]) -> None:
    headers, _ = read(VECTORS / f"{name}.vector")

    assert outcome(VECTORS / f"{name}.vector") == headers
    assert headers["expect"] in {"success", *leaves()}
    assert headers["why"].endswith(".")


def test_every_refusal_of_the_format_has_a_vector() -> None:
    codes = {read(VECTORS / f"{name}.vector")[0]["expect"] for name in NAMES}

    assert len(NAMES) > 50
    assert codes == {
        "success", "not-a-sealed-model", "malformed-sealed-model", "untrusted-publisher", "bad-signature", "bad-grant",
        "no-grant", "key-commitment-mismatch", "corrupt-payload", "licence-not-yet-valid", "licence-expired",
        "version-withdrawn", "runtime-not-allowed",
    }  # fmt: skip


def test_vectors_are_small() -> None:
    assert max(path.stat().st_size for path in VECTORS.iterdir()) < 25_000


def test_the_generator_makes_the_same_vectors_again(
    generator: ModuleType, tmp_path: Path, outcome: Callable[[Path], Headers]
) -> None:
    """Signatures and grants are random; names, headers, manifests, chunks and examples are not."""
    generator.generate(tmp_path / "made", anew=True)

    assert sorted(path.stem for path in (tmp_path / "made").glob("*.vector")) == NAMES
    assert json.loads((tmp_path / "made" / "examples.json").read_text()) == EXAMPLES
    for name in NAMES:
        made, kept = (read(folder / f"{name}.vector") for folder in (tmp_path / "made", VECTORS))
        assert made[0] == kept[0] == outcome(tmp_path / "made" / f"{name}.vector")
        assert len(made[1]) == len(kept[1])
        assert made[1][:1000] == kept[1][:1000]  # the header and the manifest


def test_what_is_there_is_kept(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "good.vector").write_text("kept")
    (tmp_path / "no-longer-one.vector").write_text("removed")
    generator.generate(tmp_path)

    assert (tmp_path / "good.vector").read_text() == "kept"
    assert not (tmp_path / "no-longer-one.vector").exists()
    assert sorted(path.stem for path in tmp_path.glob("*.vector")) == NAMES
