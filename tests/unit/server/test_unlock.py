"""Key sources: where a passphrase comes from and that nothing of it stays, credentials, and what packages add."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from process_memory import count
from terminals import at_a_terminal, until

from pericard import canonical, settings
from pericard.daemon import values
from pericard.errors import (
    ConfigError,
    KeyFileExposed,
    KeyFileInvalid,
    KeySourceUnavailable,
    PericardError,
    UnlockRefused,
    leaves,
)
from pericard.keys import Identity
from pericard.unlock import (
    KINDS,
    LockedFile,
    LockedIdentity,
    PlainFile,
    UnlockValues,
    VaultValues,
    check,
    lock_of,
    unlock,
)
from pericard.unlock.passphrase import LONGEST, PassphraseLock, from_descriptor
from pericard.unlock.systemd import Credential

ROOT = Path(__file__).parents[3]
SEED = hashlib.sha256(b"hospital").digest()
PASSPHRASE = b"correct horse battery staple"


def piped(data: bytes, *, end: bool = True) -> int:
    read, write = os.pipe()
    os.write(write, data)
    if end:
        os.close(write)
    return read


def passphrase_lock(passphrase: bytes = PASSPHRASE) -> PassphraseLock:
    return PassphraseLock(lambda: bytearray(passphrase))


@pytest.fixture(scope="module")
def locked() -> LockedIdentity:
    return LockedIdentity.seal(bytearray(SEED), "passphrase", passphrase_lock())


@pytest.fixture
def locked_path(locked: LockedIdentity, tmp_path: Path) -> Path:
    locked.write(tmp_path / "identity.key")
    return tmp_path / "identity.key"


# --- the locked file --------------------------------------------------------------------------------------------------


def test_a_locked_file_opens_with_its_lock_and_holds_no_secret(locked_path: Path) -> None:
    found = LockedIdentity.read(locked_path)

    assert found.open(passphrase_lock()) == SEED
    assert found.recipient == Identity(SEED).recipient.id
    assert locked_path.stat().st_mode & 0o777 == 0o600
    assert SEED not in locked_path.read_bytes()


def test_each_lock_is_fresh(locked: LockedIdentity) -> None:
    other = LockedIdentity.seal(bytearray(SEED), "passphrase", passphrase_lock())
    assert other.sealed != locked.sealed
    assert other.parameters["salt"] != locked.parameters["salt"]


def test_a_wrong_passphrase_is_refused_and_not_repeated(locked: LockedIdentity) -> None:
    for wrong in (PASSPHRASE[:-1], PASSPHRASE + b" ", PASSPHRASE.upper(), b"x"):
        with pytest.raises(UnlockRefused) as error:
            locked.open(passphrase_lock(wrong))
        shown = f"{error.value} {error.value.hint} {error.value.__cause__!r}"
        assert wrong == b"x" or wrong.decode() not in shown


def test_a_short_passphrase_locks_nothing() -> None:
    with pytest.raises(UnlockRefused, match="too short"):
        LockedIdentity.seal(bytearray(SEED), "passphrase", passphrase_lock(b"elevenbytes"))


def test_every_bit_of_what_is_sealed_counts(locked: LockedIdentity) -> None:
    class Known:
        """The key, without its second of work."""

        def __init__(self) -> None:
            self.key = bytes(passphrase_lock().open(locked.parameters, locked.recipient))

        def open(self, *_: object) -> bytearray:
            return bytearray(self.key)

        def make(self, _: str) -> tuple[bytearray, dict[str, object]]:
            raise AssertionError

        def close(self) -> None:
            pass

    lock = Known()
    assert locked.open(lock) == SEED
    for place in range(len(locked.sealed) * 8):
        changed = bytearray(locked.sealed)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(UnlockRefused):
            replace(locked, sealed=bytes(changed)).open(lock)
    for changes in ({"kind": "tpm"}, {"recipient": "0" * 64}, {"parameters": {**locked.parameters, "lanes": 5}}):
        with pytest.raises(UnlockRefused):
            replace(locked, **changes).open(lock)


def test_a_lock_that_does_not_open_is_never_written(tmp_path: Path) -> None:
    class Forgetful:
        def make(self, recipient: str) -> tuple[bytearray, dict[str, object]]:
            return bytearray(os.urandom(32)), {"for": recipient}

        def open(self, *_: object) -> bytearray:
            return bytearray(os.urandom(32))

        def close(self) -> None:
            pass

    with pytest.raises(UnlockRefused):
        LockedIdentity.seal(bytearray(SEED), "forgetful", Forgetful())
    assert list(tmp_path.iterdir()) == []


def test_a_locked_file_that_others_may_read_is_refused(locked_path: Path) -> None:
    locked_path.chmod(0o640)
    with pytest.raises(KeyFileExposed):
        LockedIdentity.read(locked_path)


def test_a_file_with_another_lock_than_was_configured_is_said(locked_path: Path, tmp_path: Path) -> None:
    Identity.generate(tmp_path / "plain.key")
    with pytest.raises(KeyFileInvalid, match="is locked") as error:
        PlainFile(locked_path).seed()
    assert "identity.unlock" in str(error.value.hint)
    for path, has in ((tmp_path / "plain.key", "file"), (locked_path, "passphrase")):
        kind = "tpm" if has == "passphrase" else "passphrase"
        with pytest.raises(KeyFileInvalid, match=f"has the lock {has}, and identity.unlock says {kind}"):
            LockedFile(path, kind, passphrase_lock()).seed()


PATIENT = hypothesis.settings(deadline=None)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@PATIENT
@given(st.binary(max_size=300) | st.dictionaries(st.text(max_size=12), JSON_VALUES, max_size=6).map(canonical.encode))
def test_bytes_that_are_no_body_are_refused(body: bytes) -> None:
    with pytest.raises(KeyFileInvalid):
        LockedIdentity.parse(body, subject="it")


@PATIENT
@given(member=st.sampled_from(["format", "lock", "recipient", "sealed"]), value=JSON_VALUES)
def test_a_member_of_another_kind_is_refused(locked: LockedIdentity, member: str, value: object) -> None:
    body = json.loads(locked.encode())
    with pytest.raises(KeyFileInvalid):
        LockedIdentity.parse(canonical.encode({**body, member: value}), subject="it")


@pytest.mark.parametrize("kind", ["passphrase", "tpm", "vault"])
@PATIENT
@given(parameters=st.dictionaries(st.text(max_size=12), JSON_VALUES, max_size=6))
def test_parameters_that_no_lock_makes_are_refused_before_anything_is_asked(
    kind: str, parameters: dict[str, object]
) -> None:
    how = UnlockValues(
        kind=kind, passphrase_fd=1_000_000, vault=VaultValues("http://127.0.0.1:1", None, "/nonexistent")
    )
    names = {
        "passphrase": ("iterations", "lanes", "memory_kib", "salt"),
        "tpm": ("parent", "pcrs", "private", "public"),
        "vault": ("ciphertext", "key", "mount"),
    }[kind]
    named = dict(zip(names, parameters.values(), strict=False))
    for tried in (parameters, named):
        with pytest.raises(KeyFileInvalid):
            lock_of(how).open(tried, "0" * 64)


# --- a passphrase by descriptor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_the_lines_end_is_not_part_of_it(ending: bytes) -> None:
    descriptor = piped(PASSPHRASE + ending)
    assert from_descriptor(descriptor) == PASSPHRASE
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_a_line_is_enough_even_if_the_pipe_stays_open() -> None:
    assert from_descriptor(piped(PASSPHRASE + b"\n", end=False), seconds=5) == PASSPHRASE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\r\n", "is empty"),
        (b"a secret\nanother\n", "more than one line"),
        (b"x" * (LONGEST + 1), "longer than"),
        (b"x" * (LONGEST + 1) + b"\n", "longer than"),
        (b"x" * 60000, "longer than"),
    ],
)
def test_what_is_no_passphrase_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UnlockRefused, match=message) as error:
        from_descriptor(piped(data))
    assert "secret" not in str(error.value)


def test_the_longest_one_is_taken_whole() -> None:
    assert from_descriptor(piped(b"x" * LONGEST + b"\n")) == b"x" * LONGEST
    assert from_descriptor(piped("Grüße 🫀".encode())) == "Grüße 🫀".encode()


def test_a_descriptor_on_which_nothing_comes_is_given_up() -> None:
    read, write = os.pipe()
    os.write(write, b"half a passphrase, and no end of the line")
    began = time.monotonic()
    with pytest.raises(KeySourceUnavailable, match=r"within 0\.3 seconds") as error:
        from_descriptor(read, seconds=0.3)
    assert time.monotonic() - began < 5
    assert "half" not in str(error.value)
    os.close(write)


def test_a_descriptor_that_is_not_open_is_said(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(KeySourceUnavailable, match=f"descriptor {read}: cannot be read"):
        from_descriptor(read)
    with pytest.raises(KeySourceUnavailable, match=f"descriptor {write}: cannot be read"):
        from_descriptor(write, seconds=1)  # open, but for writing
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(KeySourceUnavailable, match="cannot be read"):
        from_descriptor(folder)


# --- memory -----------------------------------------------------------------------------------------------------------

HOLDING = """
import sys
from pericard.errors import UnlockRefused
from pericard.keys import wipe
from pericard.unlock import UnlockValues, unlock

kept = None
if sys.argv[3] == "careless":
    import os
    kept = os.read(int(sys.argv[2]), 1000)
else:
    try:
        (seed,) = unlock(UnlockValues(kind="passphrase", path=sys.argv[1], passphrase_fd=int(sys.argv[2])))
        wipe(seed)
    except UnlockRefused:
        assert sys.argv[3] == "refused"
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["opened", "refused", "careless"])
def test_no_copy_of_a_passphrase_is_left(locked: LockedIdentity, locked_path: Path, how: str) -> None:
    passphrase = b"a wrong one, that is refused" if how == "refused" else PASSPHRASE
    key = bytes(passphrase_lock(passphrase).open(locked.parameters, locked.recipient))
    read = piped(passphrase + b"\n")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(locked_path), str(read), how],
        pass_fds=(read,), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(read)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        found = count(process.pid, {"passphrase": passphrase, "key": key, "seed": SEED})
        process.communicate(timeout=10)

    if how == "careless":  # what is looked for would be found
        assert found["passphrase"] >= 1
        return
    assert found["passphrase"] == found["seed"] == 0
    if how == "opened":  # the key of a wrong passphrase is nobody's secret
        assert found["key"] == 0


# --- a terminal -------------------------------------------------------------------------------------------------------

ASKING = """
import sys
from pericard.errors import PericardError
from pericard.unlock.passphrase import from_terminal
try:
    found = from_terminal("a test", twice=sys.argv[1] == "twice", seconds=float(sys.argv[2]))
    print("got", found.hex())
except PericardError as error:
    print("error", error.code, error.message)
"""


def test_the_terminal_is_asked_without_echo() -> None:
    with at_a_terminal("-c", ASKING, "once", "20") as terminal:
        until(terminal, b"Passphrase for a test: ")
        os.write(terminal, PASSPHRASE + b"\n")
        seen = until(terminal, b"got " + PASSPHRASE.hex().encode())
        assert PASSPHRASE not in seen


@pytest.mark.parametrize(("second", "outcome"), [(PASSPHRASE, b"got "), (b"something else", b"error unlock-refused")])
def test_a_new_one_is_asked_for_twice(second: bytes, outcome: bytes) -> None:
    with at_a_terminal("-c", ASKING, "twice", "20") as terminal:
        until(terminal, b"Passphrase for a test: ")
        os.write(terminal, PASSPHRASE + b"\n")
        until(terminal, b"Once more: ")
        os.write(terminal, second + b"\n")
        until(terminal, outcome)


def test_a_terminal_gets_its_echo_back_when_nobody_answers() -> None:
    with at_a_terminal("-c", ASKING, "once", "0.5") as terminal:
        until(terminal, b"Passphrase for a test: ")
        assert not termios.tcgetattr(terminal)[3] & termios.ECHO
        until(terminal, b"error key-source-unavailable")
        assert termios.tcgetattr(terminal)[3] & termios.ECHO


def test_without_a_terminal_nobody_is_asked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKING, "once", "5"], start_new_session=True, capture_output=True, text=True,
        timeout=30, check=True,
    )  # fmt: skip
    assert "there is no terminal to ask for a test" in done.stdout


# --- a service manager's credential -----------------------------------------------------------------------------------


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    Identity.write_seed(folder / "identity", bytearray(SEED), "0" * 64)
    (folder / "identity").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_a_credential_is_read(credentials: Path, mode: int) -> None:
    (credentials / "identity").chmod(mode)  # 0440 is how an access list for the service's user looks
    assert Credential("identity").seed() == SEED
    assert [bytes(seed) for seed in unlock(UnlockValues(kind="systemd"))] == [SEED]


@pytest.mark.parametrize("mode", [0o404, 0o444, 0o460, 0o644])
def test_a_credential_that_others_may_read_is_refused(credentials: Path, mode: int) -> None:
    (credentials / "identity").chmod(mode)
    with pytest.raises(KeyFileExposed):
        Credential("identity").seed()


@pytest.mark.parametrize("name", ["", ".", "..", "../identity", "a/b", "/etc/passwd", "a\0b", "x" * 256])
@pytest.mark.usefixtures("credentials")
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a credential"):
        Credential(name).seed()


def test_a_credential_that_is_not_there_is_unavailable(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeySourceUnavailable, match="not among those"):
        Credential("other").seed()
    for value in ("", "relative/folder"):
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", value)
        with pytest.raises(KeySourceUnavailable, match="CREDENTIALS_DIRECTORY"):
            Credential("identity").seed()
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(KeySourceUnavailable, match="CREDENTIALS_DIRECTORY"):
        Credential("identity").seed()


# --- kinds, and what packages add -------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with three entry points: a lock, one that shadows a built-in kind, one that is broken."""
    folder = tmp_path / "site"
    (folder / "hsm-1.0.dist-info").mkdir(parents=True)
    (folder / "hsm-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: hsm\nVersion: 1.0\n")
    (folder / "hsm-1.0.dist-info/entry_points.txt").write_text(
        "[pericard.key_sources]\nhsm = hsm_lock:Hsm\ntpm = hsm_lock:Hsm\nbroken = hsm_broken:Lock\n"
    )
    (folder / "hsm_broken.py").write_text("raise RuntimeError('a secret of its own')\n")
    (folder / "hsm_lock.py").write_text(
        textwrap.dedent("""
        class Hsm:
            def __init__(self, options):
                self.slot = options["slot"]
            def make(self, recipient):
                return bytearray(b"k" * 32), {"slot": self.slot}
            def open(self, parameters, recipient):
                return bytearray(b"k" * 32)
            def close(self):
                pass
        """)
    )
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("hsm_lock", "hsm_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("package")
def test_an_installed_package_adds_a_lock(tmp_path: Path) -> None:
    check("hsm")
    assert "hsm_lock" not in sys.modules, "asking whether it is there runs nothing of it"
    how = UnlockValues(kind="hsm", path=str(tmp_path / "identity.key"), options={"slot": "3"})

    LockedIdentity.seal(bytearray(SEED), "hsm", lock_of(how)).write(tmp_path / "identity.key")

    assert LockedIdentity.read(tmp_path / "identity.key").parameters == {"slot": "3"}
    assert [bytes(seed) for seed in unlock(how)] == [SEED]
    assert "hsm_broken" not in sys.modules, "only the one that is asked for is loaded"


@pytest.mark.usefixtures("package")
def test_a_built_in_kind_cannot_be_shadowed() -> None:
    from pericard.unlock.tpm import TpmLock

    assert isinstance(lock_of(UnlockValues(kind="tpm")), TpmLock)
    assert "hsm_lock" not in sys.modules


@pytest.mark.usefixtures("package")
def test_a_package_that_does_not_load_is_said_in_our_words() -> None:
    with pytest.raises(KeySourceUnavailable, match=r"key source broken: does not load \(RuntimeError\)") as error:
        lock_of(UnlockValues(kind="broken"))
    assert "secret" not in str(error.value)


def test_a_kind_that_two_packages_bring_is_refused(package: Path) -> None:
    (package / "other-1.0.dist-info").mkdir()
    (package / "other-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (package / "other-1.0.dist-info/entry_points.txt").write_text("[pericard.key_sources]\nhsm = other:Lock\n")
    with pytest.raises(ConfigError, match="more than one"):
        lock_of(UnlockValues(kind="hsm"))


def test_a_kind_that_is_none_is_refused() -> None:
    for kind in KINDS:
        check(kind)
    with pytest.raises(ConfigError, match="'magic' is not a key source"):
        check("magic")
    for kind in ("file", "systemd"):
        with pytest.raises(ConfigError, match="is no lock"):
            lock_of(UnlockValues(kind=kind))
    with pytest.raises(ConfigError, match="needs an address"):
        lock_of(UnlockValues(kind="vault"))


def test_a_plain_file_loads_no_other_source(tmp_path: Path) -> None:
    Identity.generate(tmp_path / "identity.key")
    code = (
        "import sys; from pericard.unlock import UnlockValues, unlock; unlock(UnlockValues(path=sys.argv[1]));"
        "print(*sorted(n for n in sys.modules if n.startswith(('pericard.unlock.', 'http', 'ssl'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "identity.key")],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    rooms = ("file", "kinds", "locked", "source", "values")
    assert done.stdout.split() == [f"pericard.unlock.{name}" for name in rooms]


# --- two identities ---------------------------------------------------------------------------------------------------


def test_the_previous_identity_is_plain_or_has_the_same_lock(locked_path: Path, tmp_path: Path) -> None:
    old, new = bytes(32), SEED
    Identity.write_seed(tmp_path / "plain.key", bytearray(old), "0" * 64)
    LockedIdentity.seal(bytearray(old), "passphrase", passphrase_lock()).write(tmp_path / "locked.key")
    for name in ("plain.key", "locked.key"):
        how = UnlockValues(
            kind="passphrase", path=str(locked_path), previous=str(tmp_path / name), passphrase_fd=piped(PASSPHRASE)
        )
        assert [bytes(seed) for seed in unlock(how)] == [new, old], "and the passphrase is asked for once"
    how = UnlockValues(path=str(tmp_path / "plain.key"), previous=str(locked_path))
    with pytest.raises(KeyFileInvalid, match="is locked"):
        unlock(how)
    how = msgspec.structs.replace(how, previous=str(tmp_path / "missing.key"))
    with pytest.raises(PericardError, match=r"missing\.key: cannot be read"):
        unlock(how)


# --- settings and specification ---------------------------------------------------------------------------------------


def test_settings_name_the_source_and_its_paths_begin_at_the_file(tmp_path: Path) -> None:
    identity = {
        "path": "next.key", "previous": "identity.key", "unlock": "vault",
        "vault": {"address": "https://vault.example:8200", "ca": "ca.pem", "token": "/run/token"},
    }  # fmt: skip
    (tmp_path / "server.yaml").write_text(json.dumps({"models": ["a.sealed"], "identity": identity}))
    found = values.unlock_values(settings.load(tmp_path / "server.yaml"))

    assert (found.path, found.previous) == (f"{tmp_path}/next.key", f"{tmp_path}/identity.key")
    assert found.vault == VaultValues("https://vault.example:8200", f"{tmp_path}/ca.pem", "/run/token")


@pytest.mark.parametrize(
    "identity",
    [
        {"unlock": "vault"},
        {"unlock": "../file"},
        {"unlock": "magic"},
        {"passphrase_fd": -1},
        {"passphrase_fd": "3"},
        {"passphrase": "a secret"},
        {"credential": "a/b"},
        {"vault": {"address": "https://user:secret@vault"}},
        {"vault": {"address": "https://vault", "tokn": "x"}},
        {"vault": {"ca": "x"}},
        {"options": {"a": 1}},
        {"previous": 1},
    ],
    ids=str,
)
def test_settings_that_are_none_are_refused(tmp_path: Path, identity: dict[str, object]) -> None:
    (tmp_path / "server.yaml").write_text(json.dumps({"models": ["a.sealed"], "identity": identity}))
    with pytest.raises(ConfigError, match=r"server\.yaml") as error:
        settings.load(tmp_path / "server.yaml")
    assert "secret" not in str(error.value)


def test_the_shown_vault_keys_are_those_of_the_settings() -> None:
    lines = (ROOT / "configs/server.yaml").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("vault:")]
    assert yaml.safe_load(line.partition("# ")[2]).keys() == set(settings.Vault.__struct_fields__)


def test_the_limits_and_codes_of_the_specification_are_those_of_the_code(locked: LockedIdentity) -> None:
    from pericard.unlock import locked as construction
    from pericard.unlock import passphrase, tpm, vault

    spec = " ".join((ROOT / "docs/spec/identity-file.md").read_text().split())
    for words in (
        f"at most {construction.MAX_BODY:,} bytes".replace(",", " "),
        construction.FORMAT,
        construction.LOCKED,
        f"| `iterations` | 1 to 16 | {passphrase.ITERATIONS} |",
        f"| `lanes` | 1 to 16 | {passphrase.LANES} |",
        f"base64 of {passphrase.SALT_SIZE} bytes",
        f"1 to {passphrase.LONGEST} bytes, as typed",
        f"A new one has at least {passphrase.SHORTEST}",
        f"at most {tpm._MAX_BLOB} bytes",
        f"the exchange {vault._SECONDS:g} seconds",
        f"at most {vault._MAX_ANSWER >> 10} KiB",
    ):
        assert words in spec, words
    assert locked.parameters["memory_kib"] == passphrase.MEMORY_KIB
    codes = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/spec/identity-file.md").read_text(), re.MULTILINE))
    assert {"key-file-invalid", "unlock-refused", "key-source-unavailable"} <= codes & leaves().keys()
