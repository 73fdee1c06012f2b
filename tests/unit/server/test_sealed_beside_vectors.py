"""Detached grants and notices: each vector comes out as it says, and their generator still makes such files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pericard.errors import PericardError, leaves
from pericard.keys import Identity
from pericard.sealed import SealedModel, detached, notice
from pericard.trust import Policy

VECTORS = Path(__file__).parents[2] / "vectors" / "sealed"
EXAMPLES = json.loads((VECTORS / "examples.json").read_text())
NAMES = sorted(f"{folder}/{path.stem}" for folder in ("grants", "notices") for path in (VECTORS / folder).iterdir())
Headers = dict[str, str]


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(VECTORS.parent / "generate")
        yield importlib.import_module("sealed_beside")


def read(path: Path) -> tuple[Headers, bytes]:
    head, _, data = path.read_bytes().partition(b"\n\n")
    return dict(line.split(": ", 1) for line in head.decode("ascii").split("\n")), data


@pytest.fixture
def outcome(policy: Policy, tmp_path: Path) -> Callable[[Path], Headers]:
    """What a site makes of a vector: the headers that it should carry."""
    assert [publisher.public.hex() for publisher in policy.publishers] == [EXAMPLES["publisher"]["public"]]
    identity = Identity(bytes.fromhex(EXAMPLES["identity"]["seed"]))
    (tmp_path / "it.sealed").write_bytes(read(VECTORS / "no-grant-for-us.vector")[1])

    def grant(path: Path, now: int) -> Headers:
        with SealedModel(tmp_path / "it.sealed") as source:
            model = source.verify(policy.publishers)
            for body, signatures in detached.read_grants(path):
                model.add_grant(body, signatures)
            licence = policy.accept(model, identity.recipient.id, now)
            target = bytearray(model.manifest.payload.size)
            model.decrypt_into(model.unwrap(licence.grant, identity), memoryview(target))
        assert target.hex() == EXAMPLES["plaintext"]
        return {"expect": "success", "licence": licence.state(now)}

    def run(path: Path) -> Headers:
        headers, data = read(path)
        (tmp_path / "beside").write_bytes(data)
        try:
            if path.parent.name == "grants":
                return headers | grant(tmp_path / "beside", int(headers["now"]))
            found = notice.read(tmp_path / "beside", policy.publishers)
        except PericardError as error:
            return headers | {"expect": error.code}
        return headers | {"expect": "success", "model": found.model, "floor": str(found.floor)}

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_comes_out_as_expected(name: str, outcome: Callable[[Path], Headers]) -> None:
    headers, data = read(VECTORS / f"{name}.vector")

    assert outcome(VECTORS / f"{name}.vector") == headers
    assert headers["expect"] in {"success", *leaves()}
    assert headers["why"].endswith(".")
    assert len(data) < 25_000


def test_every_refusal_has_a_vector() -> None:
    codes = {folder: {read(path)[0]["expect"] for path in (VECTORS / folder).iterdir()} for folder in
             ("grants", "notices")}  # fmt: skip

    assert codes == {
        "grants": {"success", "bad-grant", "bad-signature", "no-grant", "licence-not-yet-valid", "licence-expired",
                   "key-commitment-mismatch"},
        "notices": {"success", "bad-notice", "untrusted-publisher", "bad-signature"},
    }  # fmt: skip


def test_the_generator_makes_the_same_vectors_again(
    generator: ModuleType, tmp_path: Path, outcome: Callable[[Path], Headers]
) -> None:
    """Signatures and wrapped keys are random; names, headers and lengths are not."""
    generator.generate(tmp_path / "made", anew=True)

    made_names = {f"{path.parent.name}/{path.stem}" for path in (tmp_path / "made").rglob("*.vector")}
    assert sorted(made_names) == NAMES
    for name in NAMES:
        made, kept = (read(folder / f"{name}.vector") for folder in (tmp_path / "made", VECTORS))
        assert made[0] == kept[0] == outcome(tmp_path / "made" / f"{name}.vector")
        assert len(made[1]) == len(kept[1])


def test_what_is_there_is_kept(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "notices").mkdir()
    (tmp_path / "notices" / "good.vector").write_text("kept")
    (tmp_path / "notices" / "no-longer-one.vector").write_text("removed")
    generator.generate(tmp_path)

    assert (tmp_path / "notices" / "good.vector").read_text() == "kept"
    assert not (tmp_path / "notices" / "no-longer-one.vector").exists()
