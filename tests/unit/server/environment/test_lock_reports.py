"""What is said about locks: what differs, the bill of materials, known vulnerabilities."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pericard.environment import advisories, compare, conda, lock, sbom
from pericard.errors import ConfigError

FORGE = "https://conda.anaconda.org/conda-forge/noarch"


def locked(**versions: str) -> lock.Lock:
    packages = [
        (f"{FORGE}/{name.replace('_', '-')}-{version}-0.conda", hashlib.sha256(version.encode()).hexdigest())
        for name, version in versions.items()
    ]
    return lock.make("linux-64", [], packages, subject="test")


# --- what differs


def test_a_difference_says_what_came_went_and_changed() -> None:
    old, new = locked(idna="3.10", numpy="2.4.5", zlib="1.3"), locked(idna="3.10", numpy="2.4.6", attrs="25.1")

    came, changed, went = (one.line for one in compare.differences(old, new))
    assert (came, went) == ("+ attrs 25.1 0", "- zlib 1.3 0")
    assert changed.startswith("~ numpy 2.4.5 → 2.4.6, archive ")
    assert compare.differences(old, old) == []


def test_another_archive_of_the_same_version_is_a_difference() -> None:
    old = locked(idna="3.10")
    new = lock.make("linux-64", [], [(old.packages[0].url, "ef" * 32)], subject="test")

    (one,) = compare.differences(old, new)
    assert one.line.startswith("~ idna archive ")


# --- the bill of materials


def test_a_bill_of_materials_names_every_archive_and_is_the_same_each_time() -> None:
    found = sbom.render(locked(idna="3.10", numpy="2.4.6"), version="1.0")
    value = json.loads(found)

    assert found == sbom.render(locked(numpy="2.4.6", idna="3.10"), version="1.0")
    assert (value["bomFormat"], value["specVersion"]) == ("CycloneDX", "1.6")
    assert [one["purl"] for one in value["components"]] == [
        "pkg:conda/idna@3.10?build=0&channel=conda-forge&subdir=noarch&type=conda",
        "pkg:conda/numpy@2.4.6?build=0&channel=conda-forge&subdir=noarch&type=conda",
    ]
    refs = {one["bom-ref"] for one in value["components"]}
    assert set(value["dependencies"][0]["dependsOn"]) == refs


# --- known vulnerabilities


def advisory(name: str, *events: dict[str, str], ecosystem: str = "PyPI", **more: Any) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": ecosystem, "name": name},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
    }
    return {"id": "GHSA-xxxx", "aliases": ["CVE-2026-1"], "summary": "bad things", "affected": [affected], **more}


def numbers(of: lock.Lock, *found: dict[str, Any]) -> list[str]:
    return [one.package.name for one in advisories.found(of, found, older=conda.below)]


@pytest.mark.parametrize(
    ("version", "events", "hit"),
    [
        ("2.4.6", [{"introduced": "0"}], True),
        ("2.4.6", [{"introduced": "0"}, {"fixed": "2.4.6"}], False),
        ("2.4.6", [{"introduced": "0"}, {"fixed": "2.4.10"}], True),
        ("2.4.6", [{"introduced": "2.4.7"}], False),
        ("2.4.6", [{"introduced": "0"}, {"last_affected": "2.4.6"}], True),
        ("2.4.6", [{"introduced": "0"}, {"last_affected": "2.4.5"}], False),
        ("2.4.6", [{"fixed": "1.5"}, {"introduced": "2.0"}, {"introduced": "0"}, {"fixed": "2.4.7"}], True),
        ("1.7", [{"introduced": "0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": "2.4.7"}], False),
        ("2.4.6rc1", [{"introduced": "0"}, {"fixed": "2.4.6"}], True),
    ],
)
def test_the_last_event_at_or_before_a_version_decides(version: str, events: list[dict[str, str]], hit: bool) -> None:
    assert numbers(locked(numpy=version), advisory("numpy", *events)) == (["numpy"] if hit else [])


def test_names_are_found_where_conda_has_another() -> None:
    of = locked(pytorch="2.13.0", fastapi_core="0.165.0")

    assert numbers(of, advisory("torch", {"introduced": "0"})) == ["pytorch"]
    assert numbers(of, advisory("FastAPI", {"introduced": "0"})) == ["fastapi-core"]
    assert numbers(of, advisory("torch", {"introduced": "0"}, ecosystem="npm")) == []


def test_a_withdrawn_or_malformed_advisory_counts_for_nothing() -> None:
    of = locked(numpy="2.4.6")

    assert numbers(of, advisory("numpy", {"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z")) == []
    assert numbers(of, {"id": "X", "affected": "?"}, {"id": "Y", "affected": [{"package": 3, "ranges": [7]}]}) == []


def test_an_export_is_read_from_a_zip_a_list_or_one_advisory(tmp_path: Path) -> None:
    one = advisory("numpy", {"introduced": "0"})
    alone, several, packed = tmp_path / "one.json", tmp_path / "list.json", tmp_path / "all.zip"
    alone.write_text(json.dumps(one))
    several.write_text(json.dumps([one, one]))
    with zipfile.ZipFile(packed, "w") as outer:
        outer.writestr("GHSA-xxxx.json", json.dumps(one))
        outer.writestr("README", "no advisory")

    assert [len(list(advisories.read(path))) for path in (alone, several, packed)] == [1, 2, 1]


@pytest.mark.parametrize("text", ["", "{", "3", '"text"', '[{"no": "id"}]', "[" * 100_000])
def test_what_is_no_export_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)

    with pytest.raises(ConfigError):
        list(advisories.read(path))
