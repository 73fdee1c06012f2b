"""The judgement at the start: what each mode makes of each environment, and that nothing hides a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pericard import environment
from pericard.environment import Judgement, gate, injected, installed, verifier
from pericard.environment.verifier import Finding
from pericard.errors import EnvironmentDrift, ManifestUnusable, PericardError

LOCK, DIGEST = "aa" * 32, "dd" * 32
Lines = list[str]


def write_manifest(path: Path, prefix: Path, **changes: Any) -> None:
    """A manifest of a folder as it is now."""
    files: dict[str, Any] = {}
    for found in sorted(prefix.rglob("*")):
        name, mode = str(found.relative_to(prefix)), f"{found.lstat().st_mode & 0o7777:o}"
        if found.is_symlink():
            files[name] = {"type": "link", "target": str(found.readlink())}
        elif found.is_dir():
            files[name] = {"type": "folder", "mode": mode}
        else:
            data = found.read_bytes()
            files[name] = {
                "type": "file", "mode": mode, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            }  # fmt: skip
    lock = {"sha256": LOCK, "publisher": "bb" * 32, "packages": 3}
    path.write_text(json.dumps({
        "format": verifier.FORMAT, "version": 1, "kind": "conda", "prefix": str(prefix), "lock": lock,
        "digest": DIGEST, "files": files,
    } | changes))  # fmt: skip
    path.chmod(0o644)


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs these tests is root to the verifier; its own tests are about owners."""
    read = verifier.read
    monkeypatch.setattr(verifier, "read", lambda path: read(path, owner=os.getuid()))


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small environment that this interpreter is said to be of."""
    place = tmp_path / "prefix"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").write_bytes(b"an interpreter")
    (place / "module.py").write_bytes(b"code")
    for path in (tmp_path, place, place / "bin"):
        path.chmod(0o755)
    monkeypatch.setattr(injected, "prefixes", lambda: (str(place),))
    monkeypatch.setattr(injected, "find", lambda *_: [])
    monkeypatch.setattr(sys, "executable", str(place / "bin" / "python"))
    monkeypatch.setattr(sys, "prefix", str(place))
    return place


@pytest.fixture
def manifest(prefix: Path) -> Path:
    path = prefix.with_name("environment.json")
    write_manifest(path, prefix)
    return path


@pytest.fixture
def said() -> Lines:
    return []


@pytest.fixture
def judge(said: Lines) -> Callable[[str, Path], Judgement]:
    return lambda mode, path: environment.judge(mode, path, warn=said.append)


Judge = Callable[[str, Path], Judgement]


@pytest.mark.parametrize("mode", ["auto", "enforce", "warn"])
def test_a_sound_environment_is_verified_without_a_word(judge: Judge, manifest: Path, said: Lines, mode: str) -> None:
    found = judge(mode, manifest)

    effective = "enforce" if mode == "auto" else mode
    assert found == Judgement(effective, "verified", "conda", LOCK, DIGEST, 0)
    assert said == []


def test_off_looks_at_nothing(judge: Judge, prefix: Path, said: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("find", "variables"):
        monkeypatch.setattr(injected, name, lambda *_: pytest.fail("looked"))

    assert judge("off", prefix) == Judgement("off", "off", "pip", None, None, 0)
    assert said == []


@pytest.mark.parametrize("mode", ["auto", "warn"])
def test_without_a_manifest_nothing_is_hashed_and_one_line_says_so(
    judge: Judge, prefix: Path, said: Lines, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(installed, "verify", lambda: pytest.fail("hashed everything"))
    path = prefix.with_name("none") / "environment.json"

    assert judge(mode, path) == Judgement("warn", "unlocked", "pip", None, None, 0)
    assert said == [f"environment: is not locked: {path} is not there"]


def test_what_gets_in_is_told_without_a_manifest_too(
    judge: Judge, prefix: Path, said: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [Finding("variable", name, f"{name}: is set") for name in ("A", "B", "C", "D\n", "E")]
    monkeypatch.setattr(injected, "find", lambda *_: several)
    found = judge("auto", prefix / "environment.json")

    assert (found.state, found.findings) == ("unlocked", 5)
    assert said[0].endswith("; 5 findings: A: is set; B: is set; C: is set; and 2 more")


def drifted(prefix: Path) -> None:
    (prefix / "module.py").write_bytes(b"c0de")


def stray(prefix: Path) -> None:
    (prefix / "sitecustomize.py").write_bytes(b"")


def gone(prefix: Path) -> None:
    (prefix / "module.py").unlink()


def open_to_all(prefix: Path) -> None:
    (prefix / "module.py").chmod(0o666)


@pytest.mark.parametrize("mode", ["auto", "enforce"])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (drifted, "module.py: is not what was installed"),
        (stray, "sitecustomize.py: is not in the manifest"),
        (gone, "module.py: is missing"),
        (open_to_all, "module.py: has mode 666"),
    ],
)
def test_drift_is_refused_by_name(
    judge: Judge, prefix: Path, manifest: Path, said: Lines, mode: str, harm: Callable[[Path], None], words: str
) -> None:
    harm(prefix)
    with pytest.raises(EnvironmentDrift) as caught:
        judge(mode, manifest)

    assert caught.value.message.startswith("environment: ")
    assert words in caught.value.message
    assert "pericard env verify" in (caught.value.hint or "")
    assert said == []
    found = judge("warn", manifest)
    assert (found.mode, found.state, found.lock) == ("warn", "drifted", LOCK)
    assert found.findings >= 1
    (line,) = said
    assert line.startswith("environment: is not what was locked; ")
    assert words in line


def test_what_gets_in_is_refused_beside_sound_files(
    judge: Judge, manifest: Path, monkeypatch: pytest.MonkeyPatch, prefix: Path
) -> None:
    asked: list[Any] = []

    def find(roots: Any = None) -> list[Finding]:
        asked.append(roots)
        return [Finding("variable", "LD_PRELOAD", "LD_PRELOAD: is set; the dynamic linker loads what it names")]

    monkeypatch.setattr(injected, "find", find)
    with pytest.raises(EnvironmentDrift, match="1 finding: LD_PRELOAD: is set"):
        judge("auto", manifest)

    assert asked == [[str(prefix)]]  # what may be on the module path is the manifest's prefix, and nothing else


def test_a_manifest_of_another_environment_is_refused_without_reading_that(
    judge: Judge, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injected, "prefixes", lambda: ("/usr",))
    monkeypatch.setattr(verifier, "check", lambda *_: pytest.fail("hashed what does not run"))

    with pytest.raises(EnvironmentDrift, match="/usr: is where this interpreter is from, not "):
        judge("auto", manifest)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "not JSON": (lambda path: path.write_text("{"), "is not JSON"),
    "another version": (
        lambda path: path.write_text(path.read_text().replace('"version": 1', '"version": 2')),
        "versi",
    ),
    "writable by others": (lambda path: path.chmod(0o666), "others than its owner may write it"),
    "in a folder that others may write": (lambda path: path.parent.chmod(0o777), "others than its owner may write it"),
    "a link": (lambda path: path.rename(path.with_name("real")) and path.symlink_to("real"), "is a symbolic link"),
    "a link to nothing": (lambda path: path.unlink() or path.symlink_to("nothing"), "is a symbolic link"),
    "a folder": (lambda path: path.unlink() or path.mkdir(), "(?i)is (not a regular file|a directory)"),
}


@pytest.mark.parametrize("name", sorted(SPOILED))
def test_a_manifest_that_cannot_be_trusted_is_refused_and_never_taken_for_absent(
    judge: Judge, manifest: Path, said: Lines, name: str
) -> None:
    spoil, words = SPOILED[name]
    spoil(manifest)
    for mode in ("auto", "enforce"):
        with pytest.raises(ManifestUnusable, match=words) as caught:
            judge(mode, manifest)
        assert caught.value.code == "environment-manifest-unusable"
        with pytest.raises(ManifestUnusable, match=words):
            environment.require_manifest(mode, manifest)

    assert (judge("warn", manifest).state, len(said)) == ("drifted", 1)
    assert re.search(words, said[0])
    assert judge("off", manifest).state == "off"
    environment.require_manifest("off", manifest)


@pytest.mark.parametrize("mode", ["auto", "enforce"])
def test_a_manifest_that_cannot_be_seen_is_not_absent(judge: Judge, prefix: Path, mode: str) -> None:
    hidden = prefix / "module.py" / "environment.json"  # its folder is a file

    with pytest.raises(ManifestUnusable, match="whether it is there cannot be seen: not a directory"):
        judge(mode, hidden)
    with pytest.raises(ManifestUnusable):
        environment.require_manifest(mode, hidden)


def test_a_folder_that_may_not_be_searched_hides_no_manifest(manifest: Path) -> None:
    """As another user than root, who may search everything."""
    if os.getuid() != 0:
        pytest.skip("root becomes somebody else here")
    manifest.parent.chmod(0o700)
    for folder in manifest.parents[1:3]:
        folder.chmod(0o755)
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            gate._present(manifest)
        except PericardError as error:
            os._exit(0 if "permission denied" in error.message else 2)
        os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_enforced_in_an_environment_of_pip_its_records_are_held_against_the_files(
    judge: Judge, prefix: Path, said: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[int] = []
    monkeypatch.setattr(installed, "verify", lambda: verified.append(1) or 1)
    path = prefix.with_name("environment.json")

    assert judge("enforce", path) == Judgement("enforce", "verified", "pip", None, None, 0)
    assert (verified, said) == ([1], [])
    environment.require_manifest("enforce", path)

    def differs() -> int:
        raise EnvironmentDrift("runtime: 1 of 9 installed files are not what was installed: x.py")

    monkeypatch.setattr(installed, "verify", differs)
    with pytest.raises(EnvironmentDrift, match=r"1 finding: runtime: 1 of 9 .* x\.py"):
        judge("enforce", path)


def test_enforced_in_an_environment_of_conda_a_manifest_is_needed(judge: Judge, prefix: Path, said: Lines) -> None:
    (prefix / "conda-meta").mkdir()
    path = prefix.with_name("environment.json")

    for asked in (lambda: judge("enforce", path), lambda: environment.require_manifest("enforce", path)):
        with pytest.raises(ManifestUnusable, match="is not there, and what conda recorded cannot vouch") as caught:
            asked()
        assert "pericard env install" in (caught.value.hint or "")
    assert judge("auto", path).kind == "conda"
    assert len(said) == 1
