"""P8: whoever changes an installed runtime is found out, by what they changed; a sound one raises no alarm.

Each attack is made on a prefix that was installed from a signed lock, and looked for twice: by its manifest, with the
stand-alone verifier, and by the lock and its archives, as for a prefix that conda made. The packages are tiny; nothing
else about them is unreal.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import marshal
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_packages
from tiny_packages import SITE, VERSION

from pericard.environment import held, install, lock, verifier
from pericard.environment.verifier import Finding
from pericard.errors import ArchiveRefused, BadSignature, UntrustedPublisher
from pericard.keys import PublisherKey

ME = os.geteuid()
SOURCE = f"{SITE}/model/__init__.py"
CACHE = f"{SITE}/model/__pycache__"
COMPILED = f"{CACHE}/__init__.{sys.implementation.cache_tag}.pyc"


@dataclass(frozen=True, slots=True)
class Site:
    """A host with an installed runtime."""

    folder: Path

    @property
    def prefix(self) -> Path:
        return self.folder / "env"

    @property
    def channel(self) -> Path:
        return self.folder / "channel"

    @property
    def manifest(self) -> Path:
        return self.folder / "environment.json"

    def locked(self) -> lock.Lock:
        return lock.parse((self.folder / "environment.lock").read_bytes(), subject="environment.lock")

    def install(self, locked: lock.Lock) -> None:
        install.install(locked, self.prefix, publisher="0" * 64, manifest_path=self.manifest)

    def by_manifest(self) -> list[Finding]:
        return verifier.check(verifier.read(self.manifest, owner=ME))

    def by_lock(self) -> list[Finding]:
        return held.compare(self.locked(), self.prefix)[1]

    def rewrite(self, name: str, data: bytes) -> None:
        """As an attacker would who keeps the mode."""
        path = self.prefix / name
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)

    def append(self, name: str, data: bytes) -> None:
        self.rewrite(name, (self.prefix / name).read_bytes() + data)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    tiny_packages.channel(made.channel)
    locked = tiny_packages.locked(made.channel)
    (tmp_path / "environment.lock").write_bytes(locked.data)
    made.install(locked)
    return made


def conda_made(site: Site) -> None:
    """What conda makes of the same archives: blanks in commands, compiled files of its own, a diary, empty folders."""
    for path in site.prefix.rglob("__pycache__"):
        shutil.rmtree(path)
    command = site.prefix / "bin/model"
    command.write_text(command.read_text().replace("\t", "    "))
    subprocess.run(
        [site.prefix / "bin/python", "-Wi", "-m", "compileall", "-q", "-l", site.prefix / SITE / "model"], check=True
    )
    (site.prefix / "conda-meta/history").write_text("==> 2026-11-01 <==\n")
    (site.prefix / "empty").mkdir()


def test_a_sound_runtime_raises_no_alarm(site: Site) -> None:
    assert site.by_manifest() == []
    assert site.by_lock() == []


def test_one_that_conda_made_raises_no_alarm(site: Site) -> None:
    conda_made(site)

    assert (site.prefix / COMPILED).exists()
    assert site.by_lock() == []


# --- the attacks


def planted(text: str, source: Path) -> bytes:
    """A compiled file that says it belongs to the source, as it is."""
    status = source.stat()
    header = struct.pack("<III", 0, int(status.st_mtime), status.st_size)
    return importlib.util.MAGIC_NUMBER + header + marshal.dumps(compile(text, str(source), "exec", dont_inherit=True))


def native_code_is_altered(site: Site) -> tuple[str, str]:
    site.append("lib/libnative.so.3", b"\0")
    return "changed", "lib/libnative.so.3"


def a_noarch_module_is_altered(site: Site) -> tuple[str, str]:
    site.append(SOURCE, b"X = 1\n")
    return "changed", SOURCE


def compiled_code_is_planted(site: Site) -> tuple[str, str]:
    site.rewrite(COMPILED, planted("def main():\n    print('OWNED')\n", site.prefix / SOURCE))
    command = (site.prefix / "bin/model").read_text().partition("\n")[2]  # the kernel starts no script by a script
    done = subprocess.run(
        [site.prefix / "bin/python", "-c", command],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(site.prefix / SITE)},
    )  # fmt: skip
    assert done.stdout == "OWNED\n"  # the attack works
    return ("changed", COMPILED)


def compiled_code_is_planted_for_a_source_without(site: Site) -> tuple[str, str]:
    name = f"{CACHE}/other.{sys.implementation.cache_tag}.pyc"
    site.rewrite(name, planted("import os\n", site.prefix / SOURCE))
    return "unknown", name


def a_pth_file_is_added(site: Site) -> tuple[str, str]:
    site.rewrite(f"{SITE}/evil.pth", b"import os\n")
    return "unknown", f"{SITE}/evil.pth"


def sitecustomize_is_added(site: Site) -> tuple[str, str]:
    site.rewrite(f"{SITE}/sitecustomize.py", b"import os\n")
    return "unknown", f"{SITE}/sitecustomize.py"


def a_program_is_added(site: Site) -> tuple[str, str]:
    site.rewrite("bin/openssl", b"#!/bin/sh\n")
    return "unknown", "bin/openssl"


def a_record_is_made_to_fit(site: Site) -> tuple[str, str]:
    site.append(SOURCE, b"X = 1\n")
    digest = hashlib.sha256((site.prefix / SOURCE).read_bytes()).hexdigest()
    name = "conda-meta/model-2.0-pyhd8ed1ab_0.json"
    record = json.loads((site.prefix / name).read_bytes())
    for line in record["paths_data"]["paths"]:
        if line["_path"].endswith("model/__init__.py"):
            line["sha256"] = line["sha256_in_prefix"] = digest
    site.rewrite(name, json.dumps(record).encode())
    return "changed", SOURCE


def a_record_is_deleted(site: Site) -> tuple[str, str]:
    (site.prefix / "conda-meta/model-2.0-pyhd8ed1ab_0.json").unlink()
    return "missing", "conda-meta/model-2.0-pyhd8ed1ab_0.json"


def a_record_is_added(site: Site) -> tuple[str, str]:
    name = "conda-meta/extra-1.0-0.json"
    site.rewrite(name, b'{"name": "extra", "url": "https://conda.anaconda.org/elsewhere/noarch/extra-1.0-0.conda"}')
    return "unknown", name


def a_link_leads_elsewhere(site: Site) -> tuple[str, str]:
    (site.prefix / "bin/python").unlink()
    (site.prefix / "bin/python").symlink_to("/usr/bin/python3")
    return "target", "bin/python"


def a_command_is_altered(site: Site) -> tuple[str, str]:
    site.rewrite("bin/model", (site.prefix / "bin/model").read_bytes().replace(b"import re\n", b"import re, os\n"))
    return "changed", "bin/model"


def a_file_is_deleted(site: Site) -> tuple[str, str]:
    (site.prefix / SOURCE).unlink()
    return "missing", SOURCE


def a_mode_is_changed(site: Site) -> tuple[str, str]:
    (site.prefix / SOURCE).chmod(0o755)
    return "mode", SOURCE


def a_file_is_opened_to_others(site: Site) -> tuple[str, str]:
    (site.prefix / SOURCE).chmod(0o666)
    return "mode", SOURCE


def a_folder_is_opened_to_others(site: Site) -> tuple[str, str]:
    (site.prefix / SITE).chmod(0o777)
    return "mode", SITE


def pip_installs_a_package(site: Site) -> tuple[str, str]:
    site.rewrite(f"{SITE}/stray.py", b"")
    site.rewrite(f"{SITE}/stray-1.0.dist-info/METADATA", b"Name: stray\n")
    return "unknown", f"{SITE}/stray-1.0.dist-info/METADATA"


def a_text_placeholder_is_altered(site: Site) -> tuple[str, str]:
    name = f"lib/python{VERSION}/config.py"
    site.rewrite(name, (site.prefix / name).read_bytes().replace(str(site.prefix).encode(), b"/opt/evil"))
    return "changed", name


def a_binary_placeholder_is_altered(site: Site) -> tuple[str, str]:
    data = (site.prefix / "lib/libnative.so.3").read_bytes()
    own = str(site.prefix).encode()
    site.rewrite("lib/libnative.so.3", data.replace(own, own[:-1] + b"X"))
    return "changed", "lib/libnative.so.3"


ATTACKS = [
    native_code_is_altered, a_noarch_module_is_altered, compiled_code_is_planted,
    compiled_code_is_planted_for_a_source_without, a_pth_file_is_added, sitecustomize_is_added, a_program_is_added,
    a_record_is_made_to_fit, a_record_is_deleted, a_record_is_added, a_link_leads_elsewhere, a_command_is_altered,
    a_file_is_deleted, a_mode_is_changed, a_file_is_opened_to_others, a_folder_is_opened_to_others,
    pip_installs_a_package, a_text_placeholder_is_altered, a_binary_placeholder_is_altered,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_named_by_the_manifest(site: Site, attack: Callable[[Site], tuple[str, str]]) -> None:
    named = attack(site)

    assert named in [(finding.code, finding.path) for finding in site.by_manifest()]
    done = subprocess.run(
        ["/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable, "-I", "-S",
         site.folder / "verify-environment", "--owner", str(ME), site.manifest],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"verify-environment: {named[0]}: {named[1]}: " in done.stderr


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_named_by_the_lock(site: Site, attack: Callable[[Site], tuple[str, str]]) -> None:
    conda_made(site)
    code, path = attack(site)

    # no archive holds compiled files, so that a false one is unknown there
    assert ("unknown" if path == COMPILED else code, path) in [(found.code, found.path) for found in site.by_lock()]


def test_a_package_of_another_channel_is_named(site: Site) -> None:
    name = "conda-meta/model-2.0-pyhd8ed1ab_0.json"
    record = json.loads((site.prefix / name).read_bytes())
    record["url"] = "https://conda.anaconda.org/elsewhere/noarch/model-2.0-pyhd8ed1ab_0.conda"
    site.rewrite(name, json.dumps(record).encode())

    assert [(finding.code, finding.path) for finding in site.by_lock()] == [("channel", name)]


def test_a_compiled_file_that_kills_whoever_reads_it_is_named_and_hides_no_other(site: Site) -> None:
    conda_made(site)
    name = f"lib/python{VERSION}/__pycache__/this.{sys.implementation.cache_tag}.pyc"
    deep = b"\xa9\x01" * 100_000 + b"N"  # a tuple in a tuple in a tuple …
    site.rewrite(name, importlib.util.MAGIC_NUMBER + bytes(12) + deep)

    assert [(finding.code, finding.path) for finding in site.by_lock()] == [("unknown", name)]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("X = 0.0\n", "X = -0.0\n"),
        ("X = 1\n", "X = True\n"),
        ("X = 1\n", "X = 1.0\n"),
        ("X = (1, 2)\n", "X = (1, 2.0)\n"),
        ("X = 2 in {1, 2}\n", "X = 2 in {1, 3}\n"),
        ("def f(): return 1\n", "def f(): return 2\n"),
        ("def f(x): return x\n", "def f(y): return y\n"),
        ("try:\n    x()\nexcept ValueError:\n    pass\n", "try:\n    x()\nexcept TypeError:\n    pass\n"),
    ],
)
def test_compiled_code_that_differs_little_is_named(site: Site, source: str, code: str) -> None:
    path = site.prefix / SOURCE
    package = tiny_packages.model()
    package.files = {**package.files, "site-packages/model/__init__.py": source.encode()}
    shutil.rmtree(site.prefix)
    package.write(site.channel)
    locked = tiny_packages.locked(site.channel)
    (site.folder / "environment.lock").write_bytes(locked.data)
    site.install(locked)

    site.rewrite(COMPILED, planted(source, path))
    assert site.by_lock() == []
    site.rewrite(COMPILED, planted(code, path))
    assert [(finding.code, finding.path) for finding in site.by_lock()] == [("unknown", COMPILED)]


# --- before anything is installed


def test_an_archive_that_was_exchanged_in_a_folder_is_refused(site: Site, tmp_path: Path) -> None:
    """What every conda client installs without a word: none of them hashes what it takes from a folder."""
    locked = site.locked()
    package = tiny_packages.model()
    package.files = {**package.files, "site-packages/model/__init__.py": b"EVIL = 1\n"}
    package.write(site.channel)

    with pytest.raises(ArchiveRefused, match=r"1 of 3 are not what was locked: model-2\.0-pyhd8ed1ab_0\.conda is "):
        install.install(locked, tmp_path / "new", publisher="0" * 64, manifest_path=tmp_path / "new.json")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "channel", "env", "environment.json", "environment.lock", "verify-environment",
    ]  # fmt: skip


def test_an_archive_that_is_exchanged_after_it_was_hashed_is_not_the_one_that_is_linked(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, package = site.locked(), tiny_packages.model()
    package.files = {**package.files, "site-packages/model/__init__.py": b"EVIL = 1\n"}
    gather = install.gather

    def late(*arguments: object, **options: object) -> list[Path]:
        copies = gather(*arguments, **options)  # type: ignore[arg-type]
        assert all(path.parent.parent.stat().st_mode & 0o077 == 0 for path in copies)
        package.write(site.channel)
        return copies

    monkeypatch.setattr(install, "gather", late)
    install.install(locked, tmp_path / "new", publisher="0" * 64, manifest_path=tmp_path / "new.json")
    assert b"EVIL" not in (tmp_path / "new" / SOURCE).read_bytes()


def test_a_lock_that_was_edited_or_signed_by_another_is_refused(site: Site, tmp_path: Path) -> None:
    ours, theirs = (PublisherKey(os.urandom(64)) for _ in range(2))
    path = tmp_path / "signed.lock"
    lock.write(path, site.locked(), ours)
    assert lock.read(path, ours.publisher) == site.locked()

    with pytest.raises(UntrustedPublisher):
        lock.read(path, theirs.publisher)
    path.write_bytes(path.read_bytes().replace(b"__glibc=2.36", b"__glibc=2.35"))
    with pytest.raises(BadSignature):
        lock.read(path, ours.publisher)


def test_no_file_of_the_runtime_has_another_name_by_which_it_could_be_written(site: Site) -> None:
    files = [path for path in site.prefix.rglob("*") if path.is_file() and not path.is_symlink()]

    assert len(files) > 10
    assert {path.stat().st_nlink for path in files} == {1}
