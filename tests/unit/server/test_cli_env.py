"""A runtime by command: locked, packed, installed, verified, compared, listed and looked up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_packages
from speaking import Said, Say, refused
from tiny_packages import SITE

from pericard.environment import conda
from pericard.keys import PublisherKey

ME = str(os.geteuid())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whoever locks a runtime, and the host that installs it, in one folder: the current one."""
    for name in ("locker", "stranger"):
        PublisherKey.generate(tmp_path / f"{name}.key").publisher.write(tmp_path / f"{name}.pub")
    tiny_packages.channel(tmp_path / "channel")
    conda.index(tmp_path / "channel")
    (tmp_path / "environment.yml").write_text("channels: [conda-forge, nodefaults]\ndependencies: [model, native]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lock(say: Say, output: str = "environment.lock") -> Said:
    return say(
        "env", "lock", "--from", "environment.yml", "--channel", "channel", "--sign", "locker.key", "-o", output,
    )  # fmt: skip


def install(say: Say) -> Said:
    lock(say)
    return say(
        "env", "install", "environment.lock", "--prefix", "env", "--publisher", "locker.pub", "--manifest", "env.json",
    )  # fmt: skip


def verify(say: Say, *more: str) -> Said:
    return say("env", "verify", "--manifest", "env.json", "--owner", ME, *more)


def test_a_runtime_is_locked_installed_and_verified(site: Path, say: Say) -> None:
    locked, installed, verified = lock(say), install(say), verify(say)

    assert locked.err.startswith("locked 3 packages for linux-64 (")
    assert installed.out == locked.out
    assert "installed 3 packages, " in installed.err
    assert verified.out.startswith(f"verified: {site}/env: ")
    assert "against the manifest env.json of the lock " in verified.out


def test_a_file_that_was_changed_is_named_before_the_error(site: Path, say: Say) -> None:
    install(say)
    (site / "env" / SITE / "model/__init__.py").write_text("EVIL = 1\n")
    found = verify(say)
    told = json.loads(verify(say, "--json").out)

    assert found.status == 1
    assert f"changed: {SITE}/model/__init__.py: " in found.err
    assert "error: " in found.err
    assert "is not what was locked: 1 finding among " in found.err
    assert [finding["code"] for finding in told["findings"]] == ["changed"]


def test_the_script_beside_the_manifest_says_the_same_without_pericard(site: Path, say: Say) -> None:
    install(say)
    command = [sys.executable, "-I", "-S", str(site / "verify-environment"), "--owner", ME, str(site / "env.json")]
    clean = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (site / "env" / SITE / "evil.pth").write_text("import os\n")
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (clean.returncode, found.returncode) == (0, 1), clean.stderr
    assert "python runs it at every start" in found.stderr


def test_a_prefix_is_held_against_the_lock_and_its_archives(site: Path, say: Say) -> None:
    install(say)
    asked = ["env", "verify", "--lock", "environment.lock", "--archives", "channel", "--prefix", "env"]
    alone, signed = say(*asked), say(*asked, "--publisher", "locker.pub")

    assert "whose signature was not looked at" in alone.out
    assert "signed by locker.pub" in signed.out
    assert say(*asked, "--publisher", "stranger.pub").status == 1


def test_a_lock_of_a_stranger_installs_nothing(site: Path, say: Say) -> None:
    lock(say)
    said = say(
        "env", "install", "environment.lock", "--prefix", "env", "--publisher", "stranger.pub", "--manifest", "env.json"
    )

    assert said.status == 1
    assert "was not signed by publisher" in said.err
    assert not (site / "env").exists()


def test_a_packed_runtime_is_installed_where_no_channel_is(site: Path, say: Say) -> None:
    lock(say)
    packed = say("env", "pack", "environment.lock", "--publisher", "locker.pub", "-o", "packed")
    (site / "channel").rename(site / "gone")
    installed = say(
        "env", "install", "packed/environment.lock", "--channel", "packed", "--prefix", "env",
        "--publisher", "locker.pub", "--manifest", "env.json",
    )  # fmt: skip

    assert packed.status == 0, packed.err
    assert installed.status == 0, installed.err
    assert verify(say).status == 0


def test_an_installed_prefix_is_locked_again_to_the_same_archives(site: Path, say: Say) -> None:
    install(say)
    said = say("env", "lock", "--prefix", "env", "--channel", "channel", "--sign", "locker.key", "-o", "again.lock")

    assert said.out == lock(say).out
    assert say("env", "diff", "environment.lock", "again.lock").err == "the same archives from the same channels\n"


def test_what_differs_between_two_locks_is_shown(site: Path, say: Say) -> None:
    lock(say, "old.lock")
    newer = tiny_packages.model()
    newer.version, newer.files = "2.1", {"site-packages/model/__init__.py": b"def main(): pass\n"}
    newer.write(site / "channel")
    conda.index(site / "channel")
    lock(say, "new.lock")
    shown = say("env", "diff", "old.lock", "new.lock")

    assert shown.out.startswith("~ model 2.0 → 2.1, archive ")
    assert json.loads(say("env", "diff", "old.lock", "new.lock", "--json").out)[0]["name"] == "model"


def test_the_bill_of_materials_has_licences_if_it_may_look_into_the_archives(site: Path, say: Say) -> None:
    lock(say)
    bare, full = say("env", "sbom", "environment.lock"), say("env", "sbom", "environment.lock", "--archives", "channel")

    assert "licenses" not in bare.out
    assert {one["licenses"][0]["license"]["name"] for one in json.loads(full.out)["components"]} == {"MIT"}
    say("env", "sbom", "environment.lock", "-o", "sbom.json")
    assert (site / "sbom.json").read_text() == bare.out


def test_a_known_vulnerability_is_an_error_and_none_is_said(site: Path, say: Say) -> None:
    lock(say)
    affected = {
        "package": {"ecosystem": "PyPI", "name": "model"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.5"}]}],
    }
    (site / "osv.json").write_text(json.dumps({"id": "GHSA-1", "summary": "bad", "affected": [affected]}))
    (site / "none.json").write_text("[]")
    hit = say("env", "advisories", "environment.lock", "--osv", "osv.json")
    none = say("env", "advisories", "environment.lock", "--osv", "none.json")

    assert hit.status == 1
    assert hit.out == "model 2.0: GHSA-1: bad; repaired in 2.5\n"
    assert none.err == "none of 0 advisories names one of 3 packages in its version\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lock", "--sign", "locker.key", "-o", "x"), "give either --from or --prefix"),
        (("verify", "--manifest", "a", "--record"), "give one of --manifest, --lock and --record"),
        (("verify", "--archives", "channel"), "go with --lock"),
        (("verify", "--lock", "a"), "--lock does not say where the prefix is"),
        (("verify", "--manifest", "absent.json"), "cannot judge: "),
        (("diff", "absent", "absent"), "is not there"),
    ],
)
def test_what_cannot_be_done_is_said(site: Path, say: Say, words: tuple[str, ...], said: str) -> None:
    found = say("env", *words)

    refused(found, said, status=2 if "give" in said or "--lock" in said else 1)
