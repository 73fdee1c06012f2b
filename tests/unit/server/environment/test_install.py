"""Installing, packing and locking, with packages of a few bytes and the library that links real ones."""

import json
import os
import stat
from pathlib import Path

import pytest
import tiny_packages
from tiny_packages import SITE, File, Tiny

from pericard.environment import asked, held, install, lock, pack, verifier
from pericard.errors import ArchiveRefused, ConfigError, LockInvalid, NotInstalled, NotSolved

ME = os.geteuid()


def put(locked: lock.Lock, folder: Path, **options: object) -> install.Installed:
    return install.install(
        locked,
        folder / "env",
        publisher="0" * 64,
        manifest_path=folder / "environment.json",
        **options,  # type: ignore[arg-type]
    )


def channel(folder: Path, *packages: Tiny) -> lock.Lock:
    return tiny_packages.locked(tiny_packages.channel(folder / "channel", packages))


# --- installed


def test_what_is_installed_is_what_its_manifest_says_and_closed_to_others(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    done = put(locked, tmp_path)
    manifest = verifier.read(tmp_path / "environment.json", owner=ME)

    assert verifier.check(manifest) == []
    assert (manifest.lock, manifest.digest, manifest.packages) == (locked.sha256, locked.digest, 3)
    assert done.files == len(manifest.files)
    assert done.script == tmp_path / "verify-environment"
    modes = {path.lstat().st_mode & 0o022 for path in (tmp_path / "env").rglob("*") if not path.is_symlink()}
    assert modes == {0}


def test_placeholders_become_the_prefix_in_text_and_in_binaries(tmp_path: Path) -> None:
    put(channel(tmp_path), tmp_path)
    prefix = str(tmp_path / "env").encode()
    library = (tmp_path / "env/lib/libnative.so.3").read_bytes()
    before = tiny_packages.native().files["lib/libnative.so.3"]
    assert isinstance(before, File)

    assert (tmp_path / "env/bin/native").read_bytes().startswith(b"#!" + prefix + b"/bin/python\n")
    assert prefix + b"/lib:" + prefix + b"/lib64\0" in library
    assert b"/opt/placeholder" not in library
    assert len(library) == len(before.data)


def test_sources_are_compiled_once_and_the_files_are_in_the_manifest(tmp_path: Path) -> None:
    put(channel(tmp_path), tmp_path)
    named = verifier.read(tmp_path / "environment.json", owner=ME).files

    assert [path for path in named if path.startswith(f"{SITE}/model/__pycache__/__init__.")]


def test_records_name_the_channels_of_the_lock_and_no_folder_of_the_installation(tmp_path: Path) -> None:
    put(channel(tmp_path), tmp_path)

    for path in (tmp_path / "env/conda-meta").glob("*.json"):
        record = json.loads(path.read_bytes())
        assert record["url"].startswith((tmp_path / "channel").as_uri())
        assert ".install" not in path.read_text()


def test_nothing_is_left_where_it_fails(tmp_path: Path) -> None:
    locked = channel(tmp_path, Tiny("elsewhere", depends=("__cuda >=12",)))

    with pytest.raises(NotInstalled, match=r"host: does not have __cuda >=12"):
        put(locked, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["channel"]


def test_a_prefix_that_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    put(locked, tmp_path)
    (tmp_path / "env/mine").write_text("kept")

    with pytest.raises(NotInstalled, match="is not empty"):
        put(locked, tmp_path)
    assert (tmp_path / "env/mine").exists()
    put(locked, tmp_path, replace=True)
    assert not (tmp_path / "env/mine").exists()
    assert verifier.check(verifier.read(tmp_path / "environment.json", owner=ME)) == []


def test_a_replacement_that_fails_brings_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = channel(tmp_path)
    put(locked, tmp_path)
    (tmp_path / "env/mine").write_text("kept")
    monkeypatch.setattr(install, "_settle", lambda _: (_ for _ in ()).throw(NotInstalled("planted")))

    with pytest.raises(NotInstalled, match="planted"):
        put(locked, tmp_path, replace=True)
    assert (tmp_path / "env/mine").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "channel", "env", "environment.json", "verify-environment",
    ]  # fmt: skip


def test_a_manifest_inside_the_prefix_is_refused(tmp_path: Path) -> None:
    locked = channel(tmp_path)

    with pytest.raises(NotInstalled, match="lies inside the prefix"):
        install.install(
            locked, tmp_path / "env", publisher="0" * 64, manifest_path=tmp_path / "env/etc/environment.json"
        )


def test_a_folder_that_others_may_write_is_no_place_for_a_prefix(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)

    with pytest.raises(NotInstalled, match="others could exchange it"):
        put(locked, open_folder)


def test_a_lock_for_another_platform_is_refused(tmp_path: Path) -> None:
    locked = lock.make(
        "osx-arm64", [], [("https://host.example/c/noarch/idna-3.10-0.conda", "ab" * 32)], subject="test"
    )

    with pytest.raises(NotInstalled, match="is for osx-arm64"):
        put(locked, tmp_path)


def test_scripts_of_packages_are_named_and_not_run(tmp_path: Path) -> None:
    script = File(f"#!/bin/sh\ntouch {tmp_path}/ran\n".encode(), 0o755)
    locked = channel(tmp_path, Tiny("odd", files={"bin/.odd-post-link.sh": script}))
    said: list[str] = []
    put(locked, tmp_path, remark=said.append)

    assert said == ["odd-1.0-0.conda has bin/.odd-post-link.sh, which conda would run; nothing runs it here"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["../outside", "/etc/outside", "bin/../../outside", "bin//odd", "./odd"])
def test_an_archive_that_names_a_path_out_of_the_prefix_is_refused(tmp_path: Path, path: str) -> None:
    odd = Tiny("odd", files={"bin/odd": b"x"}, lines={"bin/odd": {"_path": path}})
    locked = channel(tmp_path, odd)

    with pytest.raises(ArchiveRefused, match="out of the prefix"):
        put(locked, tmp_path)
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_an_archive_with_a_link_out_of_the_prefix_is_refused(tmp_path: Path, target: str) -> None:
    locked = channel(tmp_path, Tiny("odd", files={"bin/odd": File(link=target)}))

    with pytest.raises(ArchiveRefused, match="leads out of the prefix"):
        put(locked, tmp_path)


def test_an_archive_that_is_another_package_than_its_name_says_is_refused(tmp_path: Path) -> None:
    Tiny("honest").write(tmp_path / "channel")
    path = next((tmp_path / "channel").rglob("*.conda"))
    path.rename(path.with_name("liar-1.0-0.conda"))
    locked = tiny_packages.locked(tmp_path / "channel")

    with pytest.raises(ArchiveRefused, match=r"says of itself that it is honest-1\.0-0"):
        put(locked, tmp_path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    Tiny("odd").write(tmp_path / "channel").write_bytes(b"no archive")
    locked = tiny_packages.locked(tmp_path / "channel")

    with pytest.raises(ArchiveRefused, match=r"odd-1\.0-0\.conda: cannot be unpacked"):
        put(locked, tmp_path)


def test_a_missing_archive_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    next((tmp_path / "channel").rglob("model-*")).unlink()

    with pytest.raises(ArchiveRefused, match=r"model-2\.0"):
        put(locked, tmp_path)


# --- packed


def test_a_packed_folder_installs_where_the_channel_is_gone(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    pack.pack(locked, b"signature", tmp_path / "packed")
    (tmp_path / "channel").rename(tmp_path / "gone")
    put(locked, tmp_path, channels=[str(tmp_path / "packed")])

    assert (tmp_path / "packed/environment.lock").read_bytes() == locked.data
    assert (tmp_path / "packed/environment.lock.sig").read_bytes() == b"signature"
    assert verifier.check(verifier.read(tmp_path / "environment.json", owner=ME)) == []
    assert held.compare(locked, tmp_path / "env", channels=[str(tmp_path / "packed")])[1] == []
    others = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "packed").rglob("*")}
    assert others == {0o755, 0o644}


def test_nothing_is_packed_where_one_archive_is_not_the_locked_one(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    next((tmp_path / "channel").rglob("model-*")).write_bytes(b"other")

    with pytest.raises(ArchiveRefused, match="not what was locked"):
        pack.pack(locked, b"signature", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_folder_that_is_there_is_not_packed_into(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    (tmp_path / "packed").mkdir()

    with pytest.raises(ConfigError, match="cannot be made"):
        pack.pack(locked, b"signature", tmp_path / "packed")


# --- locked


def environment_file(folder: Path, text: str) -> Path:
    path = folder / "environment.yml"
    path.write_text(text)
    return path


def solved(folder: Path, text: str, *virtual: lock.Virtual) -> lock.Lock:
    tiny_packages.channel(folder / "channel")
    from pericard.environment import conda

    conda.index(folder / "channel")
    return asked.of_file(
        environment_file(folder, text), channels=[str(folder / "channel")], platform="linux-64", virtual=virtual
    )


def test_an_environment_file_is_solved_with_what_its_packages_need(tmp_path: Path) -> None:
    locked = solved(tmp_path, "dependencies: [model, native]\n")

    assert [package.name for package in locked.packages] == ["model", "native", "python"]
    assert locked == tiny_packages_locked_like(locked, tmp_path)


def tiny_packages_locked_like(locked: lock.Lock, folder: Path) -> lock.Lock:
    """The same lock, with hashes taken from the files."""
    found = tiny_packages.locked(folder / "channel")
    pairs = [(package.url, package.sha256) for package in found.packages]
    return lock.make(locked.platform, locked.virtual, pairs, subject="test")


def test_what_the_host_must_offer_decides_and_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotSolved, match="cannot be solved for linux-64"):
        solved(tmp_path, "dependencies: [native]\n", lock.Virtual("__glibc", "2.12"))
    locked = solved(tmp_path, "dependencies: [native]\n", lock.Virtual("__glibc", "2.28"))

    assert lock.Virtual("__glibc", "2.28") in locked.virtual


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dependencies: [model, {pip: [requests]}]\n", "asks pip for packages"),
        ("dependencies: [absent]\n", "cannot be solved"),
    ],
)
def test_what_cannot_be_locked_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(NotSolved, match=said):
        solved(tmp_path, text)


def test_a_file_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        solved(tmp_path, "dependencies: [model]\nsurprise: 1\n")


def test_a_prefix_is_locked_as_the_archives_it_was_made_of(tmp_path: Path) -> None:
    locked = channel(tmp_path)
    put(locked, tmp_path)
    found = asked.of_prefix(tmp_path / "env", channels=[str(tmp_path / "channel")], platform="linux-64")

    assert found.digest == locked.digest


def test_a_prefix_with_something_of_pip_or_of_another_channel_is_not_locked(tmp_path: Path) -> None:
    put(channel(tmp_path), tmp_path)
    with pytest.raises(LockInvalid, match="channel that is not allowed"):
        asked.of_prefix(tmp_path / "env", channels=["conda-forge"], platform="linux-64")
    stray = tmp_path / "env" / SITE / "stray-1.0.dist-info"
    stray.mkdir()
    (stray / "METADATA").write_text("Name: stray\n")

    with pytest.raises(LockInvalid, match=r"pip installed what a lock cannot hold: stray-1\.0"):
        asked.of_prefix(tmp_path / "env", channels=[str(tmp_path / "channel")], platform="linux-64")
    with pytest.raises(LockInvalid, match="is no conda environment"):
        asked.of_prefix(tmp_path / "channel", channels=[], platform="linux-64")
