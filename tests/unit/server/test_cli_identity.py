"""``pericard identity``: what each verb leaves behind, and that none of them loses or shows a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pericard.keys import Identity, Recipient
from pericard.unlock import LockedIdentity
from pericard.unlock.passphrase import PassphraseLock

FIRST, SECOND = "correct horse battery staple", "a second one, quite different"


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


def run(folder: Path, *words: str, first: str = FIRST, second: str = SECOND) -> Said:
    """A verb in a process of its own, as it hardens itself; FIRST and SECOND stand for descriptors."""
    ends = {}
    for name, passphrase in (("FIRST", first), ("SECOND", second)):
        ends[name], write = os.pipe()
        os.write(write, passphrase.encode() + b"\n")
        os.close(write)
    arguments = [str(ends.get(word, word)) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "pericard", "identity", *arguments], cwd=folder, pass_fds=tuple(ends.values()),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip
    for end in ends.values():
        os.close(end)
    said = Said(done.returncode, done.stdout, done.stderr)
    for secret in (first, second):
        assert secret not in said.out + said.err
    return said


def refused(said: Said, words: str) -> None:
    assert (said.status, said.out) == (1, ""), said
    assert words in said.err.splitlines()[0], said
    assert "something went wrong inside" not in said.err


@pytest.fixture
def site(tmp_path: Path) -> Path:
    made = Identity.generate(tmp_path / "identity.key")
    made.recipient.write(tmp_path / "identity.pub")
    return tmp_path


def seed(folder: Path, name: str = "identity.key") -> bytes:
    return bytes(Identity.read_seed(folder / name))


def locked_seed(path: Path, passphrase: str) -> bytes:
    return bytes(LockedIdentity.read(path).open(PassphraseLock(lambda: bytearray(passphrase.encode()))))


def name_of(folder: Path, name: str = "identity.pub") -> str:
    return Recipient.read(folder / name).id


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_relock_changes_the_lock_and_not_the_identity(site: Path) -> None:
    before = seed(site)
    with (site / "identity.key").open("rb") as old:
        said = run(site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FIRST")
        assert (said.status, said.out) == (0, name_of(site) + "\n")
        assert "identity: {unlock: passphrase}" in said.err
        assert old.read().strip(b"\0") == b"", "the old file's blocks hold zeros"
    assert locked_seed(site / "identity.key", FIRST) == before
    assert (site / "identity.key").stat().st_mode & 0o777 == 0o600

    said = run(site, "relock", "identity.key", "--to", "passphrase", "--passphrase-fd", "FIRST",
               "--new-passphrase-fd", "SECOND")  # fmt: skip
    assert said.status == 0, said
    assert locked_seed(site / "identity.key", SECOND) == before

    said = run(site, "relock", "identity.key", "--to", "file", "--passphrase-fd", "SECOND")
    assert said.status == 0, said
    assert seed(site) == before
    assert listing(site) == ["identity.key", "identity.pub"]


def test_relock_that_fails_leaves_the_old_lock(site: Path) -> None:
    run(site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FIRST")
    before = (site / "identity.key").read_bytes()

    wrong = ("relock", "identity.key", "--to", "file", "--passphrase-fd", "SECOND")
    refused(run(site, *wrong), "does not open with what the lock passphrase gave")
    short = (
        "relock",
        "identity.key",
        "--to",
        "passphrase",
        "--passphrase-fd",
        "FIRST",
        "--new-passphrase-fd",
        "SECOND",
    )
    refused(run(site, *short, second="elevenchars"), "too short")
    gone = ("relock", "identity.key", "--to", "tpm", "--passphrase-fd", "FIRST", "--tcti", "device:/dev/null/none")
    refused(run(site, *gone), "tpm")
    refused(run(site, "relock", "identity.key", "--to", "magic"), "'magic' is not a key source")
    refused(run(site, "relock", "identity.key", "--to", "systemd"), "a credential of systemd holds the identity itself")
    refused(run(site, "relock", "identity.key", "--to", "vault", "--passphrase-fd", "FIRST"), "needs an address")
    refused(run(site, "relock", "identity.key", "--to", "file"), "there is no terminal")
    silent = run(site, "relock", "identity.key", "--to", "passphrase", "--passphrase-fd", "FIRST")
    refused(silent, "there is no terminal")
    assert "--new-passphrase-fd" in silent.err
    refused(run(site, "relock", "missing.key", "--to", "file"), "missing.key: cannot be read")

    assert (site / "identity.key").read_bytes() == before
    assert listing(site) == ["identity.key", "identity.pub"]


def test_relock_through_a_link_replaces_the_file_itself(site: Path) -> None:
    (site / "elsewhere").mkdir()
    (site / "identity.key").rename(site / "elsewhere/identity.key")
    (site / "identity.key").symlink_to("elsewhere/identity.key")
    said = run(site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FIRST")
    assert said.status == 0, said
    assert (site / "identity.key").is_symlink()
    assert LockedIdentity.read(site / "elsewhere/identity.key").recipient == name_of(site)


def test_a_backup_under_another_name_is_not_overwritten(site: Path) -> None:
    os.link(site / "identity.key", site / "copy.key")
    before = seed(site)
    run(site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FIRST")
    assert seed(site, "copy.key") == before


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can give a file away")
def test_the_owner_stays(site: Path) -> None:
    os.chown(site / "identity.key", 1234, 1234)
    run(site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FIRST")
    found = (site / "identity.key").stat()
    assert (found.st_uid, found.st_gid) == (1234, 1234)


def test_show_says_the_id_and_the_lock_without_opening_it(site: Path) -> None:
    assert run(site, "show", "identity.key") == Said(0, name_of(site) + "\n", "lock: file\n")
    run(site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FIRST")
    said = run(site, "show", "identity.key")
    assert said == Said(0, name_of(site) + "\n", "lock: passphrase, memory_kib 65536, iterations 3\n")
    shown = json.loads(run(site, "show", "--json", "identity.key").out)
    assert (shown["id"], shown["lock"]["kind"]) == (name_of(site), "passphrase")


def test_rotate_makes_another_identity_beside_with_the_same_lock(site: Path) -> None:
    run(site, "relock", "identity.key", "--to", "passphrase", "--new-passphrase-fd", "FIRST")
    before = (site / "identity.key").read_bytes()

    said = run(site, "rotate", "identity.key", "-o", "next.key", "--passphrase-fd", "FIRST")

    assert said.status == 0, said
    assert said.out.strip() == name_of(site, "next.pub") != name_of(site)
    assert "{path: next.key, previous: identity.key}" in said.err
    assert (site / "identity.key").read_bytes() == before
    made = Identity(locked_seed(site / "next.key", FIRST))
    assert made.recipient.id == name_of(site, "next.pub")
    refused(run(site, "rotate", "identity.key", "-o", "next.key", "--passphrase-fd", "FIRST"), "next.pub: exists")
    (site / "next.pub").unlink()
    refused(run(site, "rotate", "identity.key", "-o", "next.key", "--passphrase-fd", "FIRST"), "next.key: exists")
    refused(run(site, "rotate", "identity.key", "-o", "identity.key", "--passphrase-fd", "FIRST"), "exists already")
    assert Identity(locked_seed(site / "next.key", FIRST)).recipient.id == made.recipient.id


def test_rotate_of_a_plain_file_makes_a_plain_one(site: Path) -> None:
    said = run(site, "rotate", "identity.key", "-o", "next.key")
    assert Identity.read(site / "next.key").recipient.id == said.out.strip()
    assert seed(site) != seed(site, "next.key")


def test_a_backup_restores_the_identity_and_nothing_else_does(site: Path) -> None:
    said = run(site, "backup", "identity.key", "-o", "backup.key", "--new-passphrase-fd", "FIRST")
    assert (said.status, said.out) == (0, name_of(site) + "\n")
    refused(run(site, "backup", "identity.key", "-o", "backup.key", "--new-passphrase-fd", "FIRST"), "exists already")
    refused(run(site, "restore", "backup.key", "-o", "identity.key", "--passphrase-fd", "FIRST"), "exists already")
    refused(run(site, "restore", "backup.key", "-o", "again.key", "--passphrase-fd", "SECOND"), "does not open")

    said = run(site, "restore", "backup.key", "-o", "again.key", "--passphrase-fd", "FIRST")

    assert (said.status, said.out) == (0, name_of(site) + "\n")
    assert seed(site, "again.key") == seed(site)
    assert (site / "again.pub").read_bytes() == (site / "identity.pub").read_bytes()
    said = run(site, "restore", "backup.key", "-o", "locked.key", "--passphrase-fd", "FIRST", "--to", "passphrase",
               "--new-passphrase-fd", "SECOND")  # fmt: skip
    assert said.status == 0, said
    assert locked_seed(site / "locked.key", SECOND) == seed(site)
    assert listing(site) == [
        "again.key", "again.pub", "backup.key", "identity.key", "identity.pub", "locked.key", "locked.pub",
    ]  # fmt: skip


def test_a_backup_that_was_altered_restores_nothing(site: Path) -> None:
    run(site, "backup", "identity.key", "-o", "backup.key", "--new-passphrase-fd", "FIRST")
    found = LockedIdentity.read(site / "backup.key")
    (site / "backup.key").unlink()
    LockedIdentity("0" * 64, found.kind, found.parameters, found.sealed).write(site / "backup.key")
    refused(run(site, "restore", "backup.key", "-o", "again.key", "--passphrase-fd", "FIRST"), "does not open")
    assert listing(site) == ["backup.key", "identity.key", "identity.pub"]


def test_nothing_of_a_passphrase_is_taken_from_the_environment_or_an_argument(site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pericard", "identity", "relock", "--help"], capture_output=True, text=True, check=True
    )
    assert "passphrase-fd" in done.stdout
    assert "--passphrase " not in done.stdout
    said = run(site, "relock", "identity.key", "--to", "hsm", "--option", "no-equals-sign")
    assert said.status in {1, 2}
