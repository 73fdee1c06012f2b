"""The description of the runtime: the same twice, another for every change, never tripped by a broken installation."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from pericard import environment


def install(folder: Path, name: str, version: str, record: str = "") -> None:
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "RECORD").write_text(record)


def test_it_names_the_interpreter_and_what_it_can_import() -> None:
    runtime = environment.describe()

    assert runtime == environment.describe()
    assert len(runtime.digest) == 64
    assert (runtime.python, runtime.machine) == (platform.python_version(), platform.machine())
    names = [name for name, _, _ in runtime.distributions]
    assert names == sorted(set(names))
    assert {"torch", "cryptography", "pericard-server"} <= set(names)


def test_a_package_a_version_and_a_file_each_change_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {environment.describe().digest}
    for version, record in (("1.0", ""), ("1.1", ""), ("1.1", "extra/__init__.py,sha256=AAAA,1")):
        folder = tmp_path / str(len(digests))
        install(folder, "Extra_Thing", version, record)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            runtime = environment.describe()
        assert ("extra-thing", version) in [(name, found) for name, found, _ in runtime.distributions]
        digests.add(runtime.digest)

    assert len(digests) == 4


def test_of_two_of_one_name_the_imported_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "second", "extra", "2.0")
    install(tmp_path / "first", "extra", "1.0")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")

    versions = {name: version for name, version, _ in environment.describe().distributions}
    assert versions["extra"] == "1.0"


def test_the_remains_of_an_interrupted_installation_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "~orch-2.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    assert ("unknown", "unknown") in [(name, version) for name, version, _ in environment.describe().distributions]
