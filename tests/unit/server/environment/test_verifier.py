"""The stand-alone verifier: a sound prefix passes, and every way in which one can differ is named."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pericard.environment import verifier

PACKAGES = "lib/python3.11/site-packages"
ME = os.geteuid()


def entry(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        return {"type": "link", "target": str(path.readlink())}
    mode = f"{path.stat().st_mode & 0o7777:o}"
    if path.is_dir():
        return {"type": "folder", "mode": mode}
    data = path.read_bytes()
    return {"type": "file", "mode": mode, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def written(prefix: Path) -> dict[str, Any]:
    """A manifest, made here by other means than the product's."""
    names = sorted(path for path in prefix.rglob("*") if path.name != "history")
    return {
        "format": "pericard-environment-manifest",
        "version": 1,
        "kind": "conda",
        "prefix": str(prefix),
        "lock": {"sha256": "a" * 64, "publisher": "b" * 64, "packages": 2},
        "digest": "c" * 64,
        "files": {str(path.relative_to(prefix)): entry(path) for path in names},
    }


def save(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    path.chmod(0o644)
    return path


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    made = tmp_path / "env"
    files = {
        "bin/python3.11": b"\x7fELF" + bytes(3000),
        "bin/pericard": b"#!python\n",
        "conda-meta/history": b"",
        "conda-meta/python-3.11.7-0.json": b"{}",
        "lib/libbig.so": bytes(range(256)) * 8192,
        f"{PACKAGES}/model/__init__.py": b"A = 1\n",
        f"{PACKAGES}/model/__pycache__/__init__.cpython-311.pyc": b"compiled",
        f"{PACKAGES}/model/empty.py": b"",
    }
    for name, data in files.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if name.startswith("bin/") else 0o644)
    (made / "bin/python").symlink_to("python3.11")
    (made / "share").symlink_to("lib")
    for folder in (made, *(path for path in made.rglob("*") if path.is_dir() and not path.is_symlink())):
        folder.chmod(0o755)
    return made


@pytest.fixture
def manifest(tmp_path: Path, prefix: Path) -> Path:
    return save(tmp_path / "environment.json", written(prefix))


def found(manifest: Path, **options: Any) -> list[tuple[str, str]]:
    findings = verifier.check(verifier.read(manifest, owner=ME), **options)
    assert all(finding.path in finding.message for finding in findings)
    return [(finding.code, finding.path) for finding in findings]


def test_a_sound_prefix_has_no_finding(manifest: Path, prefix: Path) -> None:
    (prefix / "conda-meta/history").write_text("# conda writes here\n")

    assert found(manifest) == []


def test_one_that_was_mounted_elsewhere_is_verified_there(manifest: Path, prefix: Path, tmp_path: Path) -> None:
    other = tmp_path / "image"
    prefix.rename(other)

    assert found(manifest, prefix=other) == []
    assert ("prefix", str(prefix)) in found(manifest)


def test_progress_ends_with_everything(manifest: Path, prefix: Path) -> None:
    told: list[tuple[int, int]] = []

    found(manifest, progress=lambda done, total: told.append((done, total)), threads=1)
    assert told[-1][0] == told[-1][1] > 2 << 20
    assert told == sorted(told)


def put(name: str, data: bytes = b"x\n") -> Callable[[Path], None]:
    def harm(prefix: Path) -> None:
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_bytes(data)

    return harm


def relink(name: str, target: str) -> Callable[[Path], None]:
    def harm(prefix: Path) -> None:
        (prefix / name).unlink()
        (prefix / name).symlink_to(target)

    return harm


def remove(name: str) -> Callable[[Path], None]:
    return lambda prefix: (prefix / name).unlink()


def mode(name: str, bits: int) -> Callable[[Path], None]:
    return lambda prefix: (prefix / name).chmod(bits)


def folder(name: str) -> Callable[[Path], None]:
    return lambda prefix: (prefix / name).mkdir()


def pipe(name: str) -> Callable[[Path], None]:
    def harm(prefix: Path) -> None:
        (prefix / name).unlink(missing_ok=True)
        os.mkfifo(prefix / name)

    return harm


def bind(name: str) -> Callable[[Path], None]:
    def harm(prefix: Path) -> None:
        here = Path.cwd()
        os.chdir(prefix)  # a socket's path may have 107 characters
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)
        finally:
            os.chdir(here)

    return harm


INIT = f"{PACKAGES}/model/__init__.py"
HARM: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "altered": (put(INIT, b"A = 2\n"), "changed", INIT, "is not what was installed"),
    "grown": (put(INIT, b"A = 1\nimport os\n"), "changed", INIT, "has 16 bytes, the manifest says 6"),
    "one byte of a large one": (
        put("lib/libbig.so", bytes(range(256)) * 8191 + bytes(256)), "changed", "lib/libbig.so", "not what was",
    ),
    "emptied": (put(INIT, b""), "changed", INIT, "has 0 bytes"),
    "removed": (remove(INIT), "missing", INIT, "is missing"),
    "a .pth": (put(f"{PACKAGES}/evil.pth"), "unknown", f"{PACKAGES}/evil.pth", "runs it at every start"),
    "sitecustomize": (put(f"{PACKAGES}/sitecustomize.py"), "unknown", f"{PACKAGES}/sitecustomize.py", "every start"),
    "a planted pyc": (
        put(f"{PACKAGES}/model/__pycache__/empty.cpython-311.pyc"),
        "unknown", f"{PACKAGES}/model/__pycache__/empty.cpython-311.pyc", "in place of its source",
    ),
    "an altered pyc": (
        put(f"{PACKAGES}/model/__pycache__/__init__.cpython-311.pyc", b"planted!"),
        "changed", f"{PACKAGES}/model/__pycache__/__init__.cpython-311.pyc", "not what was installed",
    ),
    "in bin": (put("bin/openssl"), "unknown", "bin/openssl", "is not in the manifest"),
    "a record of conda": (
        put("conda-meta/extra-1.0-0.json"), "unknown", "conda-meta/extra-1.0-0.json", "the package extra-1.0-0",
    ),
    "a pip package": (
        put(f"{PACKAGES}/evil-1.0.dist-info/METADATA"),
        "unknown", f"{PACKAGES}/evil-1.0.dist-info/METADATA", "the package evil-1.0, which the lock does not hold",
    ),
    "another interpreter": (
        relink("bin/python", "/usr/bin/python3"), "target", "bin/python", "leads to /usr/bin/python3",
    ),
    "a mode": (mode(INIT, 0o755), "mode", INIT, "has mode 755, the manifest says 644"),
    "a mode for others": (mode(INIT, 0o666), "mode", INIT, "has mode 666"),
    "set-id": (mode("bin/pericard", 0o4755), "mode", "bin/pericard", "has mode 4755"),
    "a folder for others": (mode("bin", 0o777), "mode", "bin", "has mode 777"),
    "an empty folder": (folder("new"), "unknown", "new", "is a folder that is not in the manifest"),
    "a pipe": (pipe("bin/pipe"), "unknown", "bin/pipe", "is a pipe, socket or device that is not in the manifest"),
    "a pipe for a file": (pipe("bin/pericard"), "type", "bin/pericard", "the manifest says a file"),
    "a socket": (bind("share/s"), "unknown", "lib/s", "is a pipe, socket or device that is not in the manifest"),
    "a link for a file": (
        relink(INIT, "empty.py"), "type", INIT, "is a symbolic link, the manifest says a file",
    ),
    "a file for a link": (
        lambda prefix: (remove("bin/python")(prefix), put("bin/python")(prefix))[0], "type", "bin/python",
        "is a file, the manifest says a symbolic link",
    ),
    "the diary as a link": (
        relink("conda-meta/history", "python-3.11.7-0.json"), "unknown", "conda-meta/history", "is a symbolic link",
    ),
    "an unwritable name": (put("bin/a\n\x1b[2Jb"), "unknown", "bin/a\n\x1b[2Jb", "is not in the manifest"),
    "a name that is not text": (
        lambda prefix: (prefix / os.fsdecode(b"bin/\xff")).touch(), "unknown", os.fsdecode(b"bin/\xff"), "not in the",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_what_differs_is_named(harm: str, manifest: Path, prefix: Path) -> None:
    act, code, path, words = HARM[harm]
    act(prefix)

    findings = verifier.check(verifier.read(manifest, owner=ME))
    assert [(finding.code, finding.path) for finding in findings] == [(code, path)]
    assert words in findings[0].message


def test_a_planted_folder_is_named_by_what_it_holds(manifest: Path, prefix: Path) -> None:
    put("lib/evil/inner/module.py")(prefix)

    assert found(manifest) == [("unknown", "lib/evil/inner/module.py")]


def test_a_folder_that_became_a_link_hides_nothing(manifest: Path, prefix: Path, tmp_path: Path) -> None:
    shutil.copytree(prefix / "lib", tmp_path / "copy", symlinks=True)
    shutil.rmtree(prefix / "lib")
    (prefix / "lib").symlink_to(tmp_path / "copy")

    codes = {path: code for code, path in found(manifest)}
    assert codes["lib"] == "type"
    assert codes["lib/libbig.so"] == "missing"


@pytest.mark.skipif(ME != 0, reason="gives files to another user")
def test_what_belongs_to_another_is_named(manifest: Path, prefix: Path) -> None:
    for name in (INIT, "bin", "bin/python"):
        os.chown(prefix / name, 65534, -1, follow_symlinks=False)

    assert found(manifest) == [("owner", "bin"), ("owner", "bin/python"), ("owner", INIT)]


@pytest.mark.skipif(ME != 0, reason="gives files to another user")
def test_whoever_may_exchange_the_prefix_is_named(manifest: Path, prefix: Path, tmp_path: Path) -> None:
    os.chown(prefix, 65534, -1)
    assert found(manifest) == [("prefix", str(prefix))]

    os.chown(prefix, 0, -1)
    prefix.chmod(0o757)
    assert found(manifest) == [("prefix", str(prefix))]


@pytest.mark.skipif(ME != 0, reason="sets a capability")
def test_capabilities_are_named(manifest: Path, prefix: Path) -> None:
    value = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
    try:
        os.setxattr(prefix / "bin/python3.11", "security.capability", value)
    except OSError:
        pytest.skip("this filesystem has no capabilities")

    assert found(manifest) == [("attribute", "bin/python3.11")]


# --- the manifest


def edited(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: {**value, **changes}


def with_file(path: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: {**value, "files": {**value["files"], path: fields}}


FILE = {"type": "file", "mode": "644", "size": 1, "sha256": "0" * 64}
MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a list": (lambda value: [value], "is not an environment manifest"),
    "another format": (edited(format="x"), "is not an environment manifest"),
    "another version": (edited(version=2), "is of version 2"),
    "another kind": (edited(kind="pip"), "unknown kind 'pip'"),
    "a member more": (edited(extra=1), "does not know: extra"),
    "a relative prefix": (edited(prefix="env"), "prefix is not an absolute path"),
    "a prefix with dots": (edited(prefix="/opt/../env"), "prefix is not an absolute path"),
    "the root": (edited(prefix="/"), "prefix is not an absolute path"),
    "a short digest": (edited(digest="ab"), "a hash is none: 'ab'"),
    "a lock that is none": (edited(lock=[]), "lock is not an object"),
    "no publisher": (edited(lock={"sha256": "a" * 64, "packages": 1}), "lock lacks or does not know: publisher"),
    "true packages": (
        edited(lock={"sha256": "a" * 64, "publisher": "b" * 64, "packages": True}),
        "lock.packages is none: 'True'",
    ),
    "no file": (edited(files={}), "files is not an object of paths"),
    "an absolute path": (with_file("/etc/passwd", **FILE), "is no path of a file below the prefix"),
    "a path upwards": (with_file("bin/../../x", **FILE), "is no path"),
    "a path with two forms": (with_file("bin//x", **FILE), "is no path"),
    "the diary": (with_file("conda-meta/history", **FILE), "is no path"),
    "an unknown type": (with_file("x", type="pipe"), "unknown type 'pipe'"),
    "a type that is none": (with_file("x", type=[]), "unknown type"),
    "a mode in decimal": (with_file("x", **{**FILE, "mode": 420}), "the mode of 'x' is none: 420"),
    "a mode for others": (with_file("x", **{**FILE, "mode": "666"}), "writable for others"),
    "a set-id mode": (with_file("x", **{**FILE, "mode": "4755"}), "set-id"),
    "a size that is none": (with_file("x", **{**FILE, "size": -1}), "the size of 'x' is none: '-1'"),
    "a hash that is none": (with_file("x", **{**FILE, "sha256": "A" * 64}), "the hash of 'x' is none"),
    "a link without a target": (with_file("x", type="link", target=""), "the target of 'x' is none"),
    "a field more": (with_file("x", **FILE, target="y"), "lacks or does not know: target"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_manifest_of_another_form_is_refused(name: str, manifest: Path, prefix: Path) -> None:
    change, words = MALFORMED[name]
    save(manifest, change(written(prefix)))

    with pytest.raises(verifier.Refused, match=words.replace("(", r"\(")):
        verifier.read(manifest, owner=ME)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "format": 2}', "[" * 100_000, "\xff", "1e999"])
def test_what_is_no_json_is_refused(text: str, manifest: Path) -> None:
    manifest.write_text(text, encoding="latin-1")

    with pytest.raises(verifier.Refused):
        verifier.read(manifest, owner=ME)


def test_a_manifest_in_the_hands_of_others_is_refused(manifest: Path, prefix: Path, tmp_path: Path) -> None:
    manifest.chmod(0o664)
    with pytest.raises(verifier.Refused, match="others than its owner may write it"):
        verifier.read(manifest, owner=ME)

    manifest.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(verifier.Refused, match="not safe where it lies"):
        verifier.read(manifest, owner=ME)
    tmp_path.chmod(0o700)

    link = tmp_path / "link.json"
    link.symlink_to(manifest)
    with pytest.raises(verifier.Refused, match="is a symbolic link"):
        verifier.read(link, owner=ME)

    inside = prefix / "environment.json"
    shutil.copy(manifest, inside)
    with pytest.raises(verifier.Refused, match="lies inside the prefix"):
        verifier.read(inside, owner=ME)


@pytest.mark.skipif(ME != 0, reason="gives a file to another user")
def test_a_manifest_of_another_user_is_refused(manifest: Path) -> None:
    os.chown(manifest, 65534, -1)

    with pytest.raises(verifier.Refused, match="belongs to user 65534, not to root"):
        verifier.read(manifest)


def test_what_is_no_file_is_refused(manifest: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", manifest / "below"):
        with pytest.raises(verifier.Refused):
            verifier.read(path, owner=ME)


# --- the script


def script(*arguments: str | Path, flags: tuple[str, ...] = ("-I", "-S")) -> subprocess.CompletedProcess[str]:
    source = Path(verifier.__file__)
    return subprocess.run(
        [sys.executable, *flags, source, "--owner", str(ME), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_script_says_what_it_verified(manifest: Path, prefix: Path) -> None:
    done = script(manifest)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"verified: {prefix}: ")
    assert "aaaaaaaaaaaaaaaa of 2 packages" in done.stdout


def test_the_script_names_what_it_found_and_no_name_writes_to_the_terminal(manifest: Path, prefix: Path) -> None:
    put(INIT, b"A = 2\n")(prefix)
    put("bin/a\n\x1b[2Jb")(prefix)

    done = script(manifest)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "verify-environment: unknown: bin/a\\x0a\\x1b[2Jb: is not in the manifest",
        f"verify-environment: changed: {INIT}: is not what was installed",
        f"verify-environment: {prefix}: is not what was installed: 2 findings among 16 paths",
    ]


def test_the_script_prints_the_first_hundred(manifest: Path, prefix: Path) -> None:
    for number in range(105):
        put(f"bin/{number}")(prefix)

    assert len(script(manifest).stderr.splitlines()) == 101
    assert "--all" in script(manifest).stderr
    assert len(script(manifest, "--all").stderr.splitlines()) == 106


def test_the_script_cannot_judge_without_a_manifest_or_from_a_changed_interpreter(
    manifest: Path, tmp_path: Path
) -> None:
    for done in (script(tmp_path / "none"), script(manifest, flags=("-I",)), script(manifest, flags=("-S",))):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("verify-environment: cannot judge: ")


def test_the_script_does_not_run_on_the_interpreter_that_it_would_verify(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(prefix / "bin/python"))

    assert verifier.main(["--owner", str(ME), str(manifest)]) == 2
    assert "holds the interpreter that was to verify it" in capsys.readouterr().err


def test_it_is_standard_library_alone_and_runs_on_older_interpreters() -> None:
    tree = ast.parse(Path(verifier.__file__).read_text(), feature_version=(3, 9))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name.partition(".")[0] for name in modules} <= sys.stdlib_module_names
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))
