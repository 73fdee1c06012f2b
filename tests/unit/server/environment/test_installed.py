"""The description of the runtime: the same twice, another for every change, never tripped by a broken installation."""

from __future__ import annotations

import base64
import hashlib
import platform
from pathlib import Path

import pytest

from pericard import environment
from pericard.errors import EnvironmentDrift


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


def recorded(folder: Path, name: str, **files: bytes) -> None:
    """Install a distribution whose RECORD holds the right hash of each file."""
    lines = [f"{name}-1.0.dist-info/RECORD,,", f"{name}/compiled.pyc,,"]
    (folder / name).mkdir(parents=True)
    for file, data in files.items():
        (folder / name / file).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name}/{file},sha256={digest},{len(data)}")
    install(folder, name, "1.0", "\n".join(lines) + "\n")


def test_every_installed_file_is_held_against_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path, "sound", one=b"1" * 5000, two=b"")
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    assert environment.verify() == 2


def test_the_runtime_of_these_tests_is_sound() -> None:
    assert environment.verify() > 1000


@pytest.mark.parametrize("harm", ["altered", "emptied", "removed", "unknown algorithm"])
def test_a_file_that_is_not_what_was_installed_is_named(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path, "sound", one=b"1" * 5000, two=b"2", three=b"3")
    victim = tmp_path / "sound" / "two"
    if harm == "removed":
        victim.unlink()
    elif harm == "unknown algorithm":
        record = tmp_path / "sound-1.0.dist-info" / "RECORD"
        record.write_text(record.read_text().replace("two,sha256", "two,crc32"))
    else:
        victim.write_bytes(b"" if harm == "emptied" else b"x")
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    with pytest.raises(EnvironmentDrift, match=r"1 of 3 installed files .*sound/two"):
        environment.verify()


def test_commands_that_conda_wrote_are_not_held_against_the_record_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path / "lib/site-packages", "sound", one=b"1")
    record = tmp_path / "lib/site-packages/sound-1.0.dist-info/RECORD"
    record.write_text(record.read_text() + "../../bin/sound,sha256=AAAA,1\n")
    monkeypatch.setattr("sys.path", [str(tmp_path / "lib/site-packages")])
    monkeypatch.setattr("sys.prefix", str(tmp_path))

    with pytest.raises(EnvironmentDrift, match="bin/sound"):
        environment.verify()
    (tmp_path / "conda-meta").mkdir()
    assert environment.verify() == 1
