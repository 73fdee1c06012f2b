"""Whatever gets code into the process without being of the environment is named, and what does not is left alone."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from pericard.environment import injected
from pericard.environment.verifier import Finding


def codes(found: list[Finding]) -> set[str]:
    return {finding.code for finding in found}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An interpreter that nothing was done to: only its own folders, and no variable of the list."""
    for finding in injected.variables():
        monkeypatch.delenv(finding.path, raising=False)
    monkeypatch.setattr(injected, "_ENVIRON", Path("/dev/null"))
    monkeypatch.setattr(injected, "_editable", lambda: iter(()))
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry.startswith(injected.prefixes())])
    return monkeypatch


def test_a_clean_process_has_no_finding(clean: pytest.MonkeyPatch) -> None:
    assert injected.find() == []


@pytest.mark.parametrize("name", sorted(injected.VARIABLES))
def test_each_variable_is_named_with_who_heeds_it(clean: pytest.MonkeyPatch, name: str) -> None:
    found_as = name.replace("*", "64")
    clean.setenv(found_as, "/secret/place")
    (finding,) = injected.find()

    assert (finding.code, finding.path) == ("variable", found_as)
    assert finding.message == f"{found_as}: is set; {' '.join(injected.VARIABLES[name])}"
    clean.setenv(found_as, "")  # and without a value it does nothing
    assert injected.find() == []


@pytest.mark.parametrize(
    "name", ["LD_BIND_NOW", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH", "CUDA_VISIBLE_DEVICES",
             "OMP_NUM_THREADS", "MY_LD_PRELOAD", "TORCH_LOGS", "SSL_CERT_FILE", "CONDA_PREFIX"]
)  # fmt: skip
def test_what_only_tunes_is_none(clean: pytest.MonkeyPatch, name: str) -> None:
    clean.setenv(name, "1")

    assert injected.find() == []


def test_a_variable_that_was_taken_away_is_still_seen(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A preloaded library can remove its own variable; the kernel remembers what the process began with."""
    begun = tmp_path / "environ"
    begun.write_bytes(b"HOME=/root\0LD_PRELOAD=/x.so\0PYTHONPATH=\0")
    clean.setattr(injected, "_ENVIRON", begun)

    assert [finding.path for finding in injected.find()] == ["LD_PRELOAD"]


def test_what_cannot_be_looked_at_is_a_finding(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_ENVIRON", "_MAPS"):
        clean.setattr(injected, name, tmp_path / "none")

    assert [finding.code for finding in injected.find()] == ["unseen", "unseen"]


def test_places_of_modules_outside_the_environment_are_named(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside, link = str(Path(sys.prefix) / "lib"), tmp_path / "link"
    link.symlink_to(tmp_path)
    clean.setattr("sys.path", [inside, "", str(tmp_path), str(link)])
    found = injected.find()

    assert [(finding.code, finding.path) for finding in found] == [
        ("path", ""), ("path", str(tmp_path)), ("path", str(link)),
    ]  # fmt: skip
    assert found[0].message.startswith("the working folder: ")
    assert codes(injected.find([str(tmp_path)])) == {"path"}  # another environment's folders are outside of this one
    assert [finding.path for finding in injected.find([str(tmp_path)])] == [inside, ""]


def test_a_folder_with_the_same_beginning_is_another_one(clean: pytest.MonkeyPatch) -> None:
    clean.setattr("sys.path", [sys.prefix + "-other"])

    assert codes(injected.find()) == {"path"}


def test_the_users_own_packages_are_named_once(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    user = str(tmp_path / "user")
    clean.setattr(site, "getusersitepackages", lambda: user)
    clean.setattr(site, "ENABLE_USER_SITE", True)
    assert injected.find() == []  # there is no such folder, so python left it out

    clean.setattr("sys.path", [*sys.path, user])
    assert [(finding.code, finding.path) for finding in injected.find()] == [("user-site", user)]


def test_what_the_command_line_lets_in_is_named(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setattr("sys.pycache_prefix", str(tmp_path))

    assert [finding.path for finding in injected.find()] == ["pycache_prefix"]


def test_an_installation_that_is_a_link_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in {
        "linked": '{"dir_info": {"editable": true}, "url": "file:///x"}',
        "copied": '{"dir_info": {}, "url": "file:///x"}',
        "archive": '{"archive_info": {}, "url": "file:///x.whl"}',
        "spoiled": "[",
        "nobodys": "[1]",
    }.items():
        about = tmp_path / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "direct_url.json").write_text(text)
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    found = [finding for finding in injected.find([str(tmp_path)]) if finding.code == "editable"]
    assert [finding.path for finding in found] == ["linked"]


def mapped(tmp_path: Path, line: str) -> Path:
    path = tmp_path / "maps"
    path.write_text(
        f"7f00-7f01 r--p 00000000 00:1b 7  /some/data\n7f01-7f02 {line}\n7f02-7f03 rwxp 00000000 00:00 0 \n"
    )
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("r-xp 00000000 00:1b 7                /no/such/file.so", "others than root may change it"),
        ("r-xp 00000000 00:1b 7                /usr/lib/x.so (deleted)", "its file is gone"),
        ("rwxs 00000000 00:01 7                /memfd:code (deleted)", "its file is gone"),
        ("r--p 00000000 00:1b 7                /no/such/file.so", None),
        ("r-xp 00000000 00:00 0                [vdso]", None),
    ],
)
def test_code_of_others_is_seen_where_it_runs(
    clean: pytest.MonkeyPatch, tmp_path: Path, line: str, words: str | None
) -> None:
    clean.setattr(injected, "_MAPS", mapped(tmp_path, line))
    found = injected.find()

    assert [finding.code for finding in found] == ["mapped"] * (words is not None)
    assert all(words and words in finding.message for finding in found)


@pytest.mark.parametrize(("mode", "seen"), [(0o755, False), (0o775, True), (0o757, True)])
def test_a_library_is_judged_by_who_may_change_it(
    clean: pytest.MonkeyPatch, tmp_path: Path, mode: int, *, seen: bool
) -> None:
    if os.getuid() != 0:
        pytest.skip("files that belong to root are root's to make")
    library = tmp_path / "lib.so"
    library.write_bytes(b"")
    library.chmod(mode)
    clean.setattr(injected, "_MAPS", mapped(tmp_path, f"r-xp 00000000 00:1b 7 {library}"))

    assert bool(injected.find()) == seen


def test_a_preloaded_library_is_seen_in_a_real_process(tmp_path: Path) -> None:
    """It is mapped, and it was asked for, whatever became of the variable."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    libm = next((line.split()[-1] for line in maps if "/libm" in line), None)
    if libm is None:
        pytest.skip("this interpreter has no library to copy")
    library = tmp_path / "preloaded.so"
    shutil.copy(libm, library)
    library.chmod(0o777)
    code = (
        "import os; del os.environ['LD_PRELOAD']\n"
        "from pericard.environment import injected\n"
        "print(*(f.code + ' ' + f.path for f in injected.find()), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env={"LD_PRELOAD": str(library)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    assert {"variable LD_PRELOAD", f"mapped {library}"} <= set(done.stdout.splitlines())


def test_the_page_names_every_variable() -> None:
    page = (Path(__file__).parents[4] / "docs" / "guide" / "environment-gate.md").read_text("utf-8")

    assert [name for name in injected.VARIABLES if f"`{name}`" not in page] == []
