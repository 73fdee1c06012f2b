"""Tokens and permissions: what is stored, who gets in, and that every kind of damage keeps everybody out."""

from __future__ import annotations

import json
import os
import re
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pericard.auth import OPERATIONS, Grant, Issued, Principal, TokenFile, require
from pericard.errors import ConfigError, Forbidden, Unauthenticated

DAY = 86400


@dataclass
class Clock:
    """Stands in for both clocks of the token file: ``pass_by`` lets a reload or an expiry become due."""

    now: float
    steady: float = 1000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.steady

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.steady += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(time.time())
    monkeypatch.setattr("pericard.auth.tokens.time", made)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "tokens.json"


@pytest.fixture
def file(path: Path, clock: Clock) -> TokenFile:
    return TokenFile(path)


def issue(file: TokenFile, name: str = "ris", **changes: object) -> Issued:
    asked = {"operations": ("predict", "metadata"), "models": ("ecg-*",), "days": 30, **changes}
    return file.create(name, **asked)  # type: ignore[arg-type]  # the test says what it changes


def refused(file: TokenFile, token: str) -> None:
    with pytest.raises(Unauthenticated) as error:
        file.authenticate(token)
    # one message, whatever was wrong
    assert error.value.message == "credential: is not valid"
    assert len(token) < 8 or token not in str(error.value.hint) + error.value.message


# --- what a token is, and what is kept of it --------------------------------------------------------------------------


def test_a_token_is_its_id_and_256_random_bits(file: TokenFile) -> None:
    issued = issue(file)

    match = re.fullmatch(r"pcd_([a-z2-7]{10})_([A-Za-z0-9_-]{43})", issued.token)

    assert match is not None
    assert match[1] == issued.record.id
    assert len({issue(file).token for _ in range(5)}) == 5


def test_the_principal_is_what_was_granted(file: TokenFile) -> None:
    issued = issue(file, operations=("predict", "predict", "metrics"), models=("ecg-*", "eeg"))

    principal = file.authenticate(issued.token)

    granted = Grant(frozenset({"predict", "metrics"}), ("ecg-*", "eeg"))
    assert principal == Principal("ris", issued.record.id, (granted,))


def test_the_secret_stands_in_no_file(file: TokenFile, path: Path) -> None:
    tokens = [issue(file).token for _ in range(3)]

    kept = {found.name: found.read_bytes() for found in path.parent.iterdir()}

    assert sorted(kept) == ["tokens.json", "tokens.key"]
    for token in tokens:
        secret = token.rpartition("_")[2] if token.count("_") == 2 else token.split("_", 2)[2]
        for contents in kept.values():
            assert secret.encode() not in contents
            assert bytes.fromhex(secret.encode().hex()) not in contents


def test_what_is_kept_cannot_be_tested_without_the_key(file: TokenFile, path: Path) -> None:
    import hashlib
    import hmac

    issued = issue(file)
    stored = json.loads(path.read_text())["tokens"][0]["hash"]

    assert stored != hashlib.sha256(issued.token.encode()).hexdigest()
    key = path.with_suffix(".key").read_bytes()
    assert stored == hmac.digest(key, issued.token.encode(), "sha256").hex()


def test_both_files_are_for_their_owner_alone(file: TokenFile, path: Path) -> None:
    issue(file)

    modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}

    assert modes == {"tokens.json": 0o600, "tokens.key": 0o600}


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can give a file away")
def test_root_makes_tokens_that_the_daemon_can_read(file: TokenFile, path: Path) -> None:
    path.parent.mkdir()
    os.chown(path.parent, 12345, 54321)

    issue(file)

    assert {(found.stat().st_uid, found.stat().st_gid) for found in path.parent.iterdir()} == {(12345, 54321)}


# --- who gets in ------------------------------------------------------------------------------------------------------


def spoiled(token: str) -> list[str]:
    head, last = token[:-1], token[-1]
    return [
        "",
        " ",
        head,
        token + "A",
        token + " ",
        token + "\n",
        " " + token,
        token.upper(),
        head + ("A" if last != "A" else "B"),
        token.replace("pcd_", "PCD_"),
        token.replace("pcd_", ""),
        "pcd_aaaaaaaaaa_" + token[15:],
        token[:14] + "_" + "A" * 43,
        "pcd__" + "A" * 43,
        "\0" * 58,
        "\ud800",
        "é" * 20,
        "x" * 100_000,
    ]


def test_anything_but_the_whole_token_is_refused(file: TokenFile) -> None:
    token = issue(file).token

    for wrong in spoiled(token):
        refused(file, wrong)
    assert file.authenticate(token).name == "ris"


@given(text=st.text(max_size=80))
@example(text="pcd_aaaaaaaaaa_" + "A" * 43)
def test_no_text_gets_in(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = TokenFile(tmp_path_factory.getbasetemp() / "nobody.json")

    refused(file, text)


def test_tokens_of_another_site_are_refused(file: TokenFile, tmp_path: Path, clock: Clock) -> None:
    issue(file)
    foreign = issue(TokenFile(tmp_path / "other" / "tokens.json"))

    refused(file, foreign.token)


def test_a_record_moved_to_another_site_is_worth_nothing(file: TokenFile, path: Path, tmp_path: Path) -> None:
    issue(file)
    other = tmp_path / "other" / "tokens.json"
    foreign = issue(TokenFile(other))
    path.write_bytes(other.read_bytes())

    refused(TokenFile(path), foreign.token)


def test_an_unknown_id_takes_the_same_work_as_a_known_one(
    file: TokenFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hmac as real

    token = issue(file).token
    done: list[str] = []

    class Counted:
        @staticmethod
        def digest(key: bytes, text: bytes, kind: str) -> bytes:
            done.append("digest")
            return real.digest(key, text, kind)

        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            done.append(f"compare {len(one)} {len(other)}")
            return real.compare_digest(one, other)

    monkeypatch.setattr("pericard.auth.tokens.hmac", Counted)
    work: dict[str, list[str]] = {}
    for kind, asked in (
        ("known", token[:-1] + ("A" if token[-1] != "A" else "B")),
        ("unknown id", "pcd_aaaaaaaaaa_" + token[15:]),
        ("no token at all", "nonsense"),
    ):
        done.clear()
        refused(file, asked)
        work[kind] = list(done)

    assert work["known"] == ["digest", "compare 32 32"]
    assert work["unknown id"] == work["known"] == work["no token at all"]


def test_time_does_not_tell_known_ids_apart(file: TokenFile) -> None:
    known = [issue(file).token for _ in range(8)]
    unknown = ["pcd_" + "abcdefgh"[place] * 10 + token[14:] for place, token in enumerate(known)]
    wrong = [token[:20] + "x" * 38 for token in known]

    def seconds(tokens: list[str]) -> float:
        spent = []
        for token in tokens * 60:
            started = time.perf_counter()
            with pytest.raises(Unauthenticated):
                file.authenticate(token)
            spent.append(time.perf_counter() - started)
        return statistics.median(spent)

    seconds(known and wrong)
    apart = seconds(wrong) / seconds(unknown)

    assert 0.5 < apart < 2  # no lookup, file read or early return hides behind either


def test_a_token_ends_with_its_last_second(file: TokenFile, clock: Clock) -> None:
    issued = issue(file, days=1)

    clock.now = issued.record.expires - 1
    assert file.authenticate(issued.token).name == "ris"
    clock.now = issued.record.expires
    refused(file, issued.token)


def test_two_tokens_of_one_name_overlap_while_a_caller_changes_over(file: TokenFile) -> None:
    old, new = issue(file), issue(file)

    assert file.authenticate(old.token).name == file.authenticate(new.token).name == "ris"
    file.revoke(old.record.id)
    refused(file, old.token)
    assert file.authenticate(new.token).credential == new.record.id


def test_revoking_what_is_not_there_is_an_error(file: TokenFile) -> None:
    issue(file)

    with pytest.raises(ConfigError, match="there is none"):
        file.revoke("nobody")


# --- a new token in the place of an old one ---------------------------------------------------------------------------


def test_a_rotated_token_overlaps_and_then_ends(file: TokenFile, path: Path, clock: Clock) -> None:
    old = issue(file, days=30)
    running = TokenFile(path)
    running.authenticate(old.token)

    new = file.rotate(old.record.id, overlap=7 * DAY)
    clock.pass_by(7 * DAY - 2)
    before, after = running.authenticate(old.token), running.authenticate(new.token)
    clock.pass_by(2)

    assert (before.name, before.grants) == (after.name, after.grants)
    assert before.credential != after.credential
    refused(running, old.token)
    assert running.authenticate(new.token).name == "ris"


def test_a_rotated_token_lasts_as_long_as_the_old_one_did(file: TokenFile, clock: Clock) -> None:
    old = issue(file, days=30)
    clock.pass_by(10 * DAY)

    new, longer = (file.rotate(old.record.id, overlap=DAY, days=days).record for days in (None, 90))

    assert (new.operations, new.models) == (old.record.operations, old.record.models)
    assert abs(new.expires - (clock.now + 30 * DAY)) <= 1
    assert abs(longer.expires - (clock.now + 90 * DAY)) <= 1


def test_an_overlap_never_prolongs_the_old_token(file: TokenFile, clock: Clock) -> None:
    old = issue(file, days=3)

    file.rotate(old.record.id, overlap=7 * DAY)

    assert {record.id: record.expires for record in file.records()}[old.record.id] == old.record.expires


def test_without_an_overlap_the_old_token_ends_at_once(file: TokenFile, path: Path, clock: Clock) -> None:
    old = issue(file)

    new = file.rotate(old.record.id, overlap=0)

    refused(TokenFile(path), old.token)
    assert TokenFile(path).authenticate(new.token).name == "ris"


@pytest.mark.parametrize("changes", [{"overlap": -1}, {"overlap": 91 * DAY}, {"days": 0}, {"days": 3661}], ids=str)
def test_a_rotation_that_makes_no_sense_changes_nothing(file: TokenFile, path: Path, changes: dict[str, int]) -> None:
    old = issue(file)
    before = path.read_bytes()

    with pytest.raises(ConfigError):
        file.rotate(old.record.id, **{"overlap": DAY, **changes})

    assert path.read_bytes() == before


def test_what_ended_or_never_was_is_not_rotated(file: TokenFile, clock: Clock) -> None:
    old = issue(file, days=1)
    clock.pass_by(DAY)

    for token_id, why in ((old.record.id, "ended already"), ("nobody", "there is none")):
        with pytest.raises(ConfigError, match=why):
            file.rotate(token_id, overlap=DAY)


# --- when a token was used last ---------------------------------------------------------------------------------------


def test_a_use_is_written_by_the_clock_and_not_by_the_request(file: TokenFile, path: Path, clock: Clock) -> None:
    used, idle = issue(file), issue(file)
    server = TokenFile(path)
    before = sorted(path.parent.iterdir())
    server.authenticate(used.token)
    refused(server, used.token[:-1] + ("A" if used.token[-1] != "A" else "B"))
    clock.pass_by(0.5)
    server.authenticate(used.token)

    assert sorted(path.parent.iterdir()) == before
    server.write_uses()

    assert TokenFile(path).uses.read() == {used.record.id: int(clock.now)}
    assert idle.record.id not in TokenFile(path).uses.read()
    assert path.with_suffix(".used").stat().st_mode & 0o777 == 0o600


def test_the_latest_use_of_several_processes_counts(file: TokenFile, path: Path, clock: Clock) -> None:
    issued = issue(file)
    early, late = TokenFile(path), TokenFile(path)
    early.authenticate(issued.token)
    clock.pass_by(10)
    late.authenticate(issued.token)

    late.write_uses()
    early.write_uses()

    assert file.uses.read() == {issued.record.id: int(clock.now)}


def test_uses_of_revoked_tokens_are_forgotten(file: TokenFile, path: Path, clock: Clock) -> None:
    old, new = issue(file), issue(file)
    for issued in (old, new):
        file.authenticate(issued.token)
    file.write_uses()
    file.revoke(old.record.id)
    clock.pass_by(2)
    file.authenticate(new.token)
    file.write_uses()

    assert set(file.uses.read()) == {new.record.id}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": "x", "uses": {}}', b"[" * 100_000, b"\xff"], ids=repr)
def test_damaged_uses_keep_nobody_out(file: TokenFile, path: Path, damage: bytes) -> None:
    issued = issue(file)
    path.with_suffix(".used").write_bytes(damage)

    assert file.uses.read() == {}
    assert file.authenticate(issued.token).name == "ris"
    file.write_uses()
    assert set(file.uses.read()) == {issued.record.id}


def test_a_use_that_could_not_be_written_is_written_later(
    file: TokenFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = issue(file)
    file.authenticate(issued.token)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pericard.auth.uses.tempfile.mkstemp", full)
        with pytest.raises(OSError, match="No space left"):
            file.write_uses()
    assert file.uses.read() == {}
    file.write_uses()

    assert set(file.uses.read()) == {issued.record.id}


# --- a running server notices what the command line did ---------------------------------------------------------------


def test_a_running_server_takes_a_new_token_after_a_second(file: TokenFile, path: Path, clock: Clock) -> None:
    server = TokenFile(path)
    refused(server, "nobody")

    issued = issue(file)
    clock.pass_by(0.5)
    refused(server, issued.token)  # it looks at most once a second
    clock.pass_by(0.6)

    assert server.authenticate(issued.token).name == "ris"


def test_a_running_server_drops_a_revoked_token_after_a_second(file: TokenFile, path: Path, clock: Clock) -> None:
    issued = issue(file)
    server = TokenFile(path)
    server.authenticate(issued.token)

    file.revoke(issued.record.id)
    clock.pass_by(1.1)

    refused(server, issued.token)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the file is gone": lambda path: path.unlink(),
    "the file is empty": lambda path: path.write_bytes(b""),
    "the file is cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "the file is not JSON": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "the file holds bad UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"ris", b"r\xffs")),
    "the file is a folder": lambda path: (path.unlink(), path.mkdir()),
    "the format is another": lambda path: path.write_bytes(path.read_bytes().replace(b"tokens/v1", b"tokens/v2")),
    "a field is unknown": lambda path: path.write_bytes(path.read_bytes().replace(b'"name"', b'"label"')),
    "a time is text": lambda path: path.write_bytes(re.sub(rb'"expires": \d+', b'"expires": "x"', path.read_bytes())),
    "a hash is not hex": lambda path: path.write_bytes(re.sub(rb'"hash": "..', b'"hash": "zz', path.read_bytes())),
    "a hash is short": lambda path: path.write_bytes(re.sub(rb'"hash": "..', b'"hash": "', path.read_bytes())),
    "a hash is empty": lambda path: path.write_bytes(re.sub(rb'"hash": "\w+', b'"hash": "', path.read_bytes())),
    "nests deeply": lambda path: path.write_bytes(b"[" * 100_000),
    "the key is gone": lambda path: path.with_suffix(".key").unlink(),
    "the key is empty": lambda path: path.with_suffix(".key").write_bytes(b""),
    "the key is cut": lambda path: path.with_suffix(".key").write_bytes(bytes(31)),
    "the key is too long": lambda path: path.with_suffix(".key").write_bytes(bytes(33)),
    "the key is another": lambda path: path.with_suffix(".key").write_bytes(bytes(32)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_lets_nobody_in(file: TokenFile, path: Path, clock: Clock, damage: Callable[[Path], object]) -> None:
    issued = issue(file)
    running = TokenFile(path)
    running.authenticate(issued.token)

    damage(path)
    clock.pass_by(1.1)

    refused(running, issued.token)
    refused(TokenFile(path), issued.token)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_heals_once_the_files_are_back(
    file: TokenFile, path: Path, clock: Clock, damage: Callable[[Path], object]
) -> None:
    issued = issue(file)
    key = path.with_suffix(".key")
    kept = {path: path.read_bytes(), key: key.read_bytes()}
    running = TokenFile(path)
    damage(path)
    clock.pass_by(1.1)
    refused(running, issued.token)

    for place, contents in kept.items():
        if place.is_dir():
            place.rmdir()
        place.write_bytes(contents)
    clock.pass_by(1.1)

    assert running.authenticate(issued.token).name == "ris"


UNUSABLE = [
    name for name in DAMAGE if name not in {"the file is gone", "the key is gone", "the key is another"}
]  # a missing file is an empty one


@pytest.mark.parametrize("name", UNUSABLE)
def test_nothing_is_made_or_listed_over_damage(file: TokenFile, path: Path, name: str) -> None:
    issue(file)
    DAMAGE[name](path)
    before = {place.name: place.read_bytes() if place.is_file() else b"" for place in path.parent.iterdir()}

    with pytest.raises(ConfigError):
        TokenFile(path).create("other", operations=("predict",), models=("*",), days=1)
    with pytest.raises(ConfigError):
        TokenFile(path).records()

    after = {place.name: place.read_bytes() if place.is_file() else b"" for place in path.parent.iterdir()}
    assert after == before  # and no half-written file is left


def test_a_lost_key_is_not_silently_replaced(file: TokenFile, path: Path) -> None:
    issue(file)
    path.with_suffix(".key").unlink()

    with pytest.raises(ConfigError, match=r"tokens\.key"):
        issue(TokenFile(path))

    assert not path.with_suffix(".key").exists()


def test_no_file_is_an_empty_one(file: TokenFile) -> None:
    assert file.records() == []


def test_a_folder_that_cannot_be_made_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(ConfigError, match="cannot be written"):
        issue(TokenFile(tmp_path / "taken" / "tokens.json"))


def test_a_failed_write_leaves_the_old_file_and_no_other(
    file: TokenFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = issue(file)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pericard.auth.tokens.os.fsync", full)
        with pytest.raises(ConfigError, match="no space left"):
            issue(TokenFile(path))

    assert path.read_bytes() == before
    assert sorted(place.name for place in path.parent.iterdir()) == ["tokens.json", "tokens.key"]
    assert TokenFile(path).authenticate(issued.token).name == "ris"


def test_a_key_that_could_not_be_written_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pericard.auth.tokens.os.fsync", full)
        with pytest.raises(ConfigError, match="no space left"):
            issue(TokenFile(path))

    assert list(path.parent.iterdir()) == []
    issued = issue(TokenFile(path))
    assert TokenFile(path).authenticate(issued.token).name == "ris"


def test_tokens_made_at_the_same_time_are_all_kept(path: Path) -> None:
    barrier = threading.Barrier(8)
    made: list[Issued] = []

    def make(number: int) -> None:
        file = TokenFile(path)
        barrier.wait(5)
        made.extend(issue(file, name=f"caller-{number}-{again}") for again in range(3))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    kept = TokenFile(path)
    assert len(made) == len(kept.records()) == 24
    for issued in made:
        assert kept.authenticate(issued.token).name == issued.record.name


# --- what may be asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "-begins-badly"},
        {"name": "a" * 65},
        {"name": "two\nlines"},
        {"name": "sp ace"},
        {"operations": ()},
        {"operations": ("predict", "everything")},
        {"models": ()},
        {"models": ("UPPER",)},
        {"models": ("[a-z]",)},
        {"models": ("",)},
        {"models": ("a" * 65,)},
        {"models": ("../etc",)},
        {"days": 0},
        {"days": -1},
        {"days": 3661},
    ],
    ids=str,
)
def test_a_token_that_makes_no_sense_is_not_made(file: TokenFile, path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        issue(file, **changes)

    assert not path.exists()


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,15}", fullmatch=True)
patterns = st.from_regex(r"[a-z0-9*?][a-z0-9._*?-]{0,15}", fullmatch=True)


@given(
    operations=st.frozensets(st.sampled_from(OPERATIONS)),
    models=st.lists(patterns, max_size=4),
    operation=st.sampled_from(OPERATIONS),
    model=st.none() | names,
)
def test_what_was_not_granted_is_denied(
    operations: frozenset[str], models: list[str], operation: str, model: str | None
) -> None:
    principal = Principal("ris", "abc", (Grant(operations, tuple(models)),))
    granted = operation in operations and (model is None or any(fnmatchcase(model, given) for given in models))

    assert principal.may(operation, model) is granted
    if granted:
        require(principal, operation, model)
    else:
        with pytest.raises(Forbidden) as error:
            require(principal, operation, model)
        assert error.value.code == "forbidden"


@pytest.mark.parametrize(
    ("pattern", "model", "matches"),
    [
        ("ecg-anomaly", "ecg-anomaly", True),
        ("ecg-anomaly", "ecg-anomaly2", False),
        ("ecg-anomaly", "xecg-anomaly", False),
        ("ecg-anomaly", "ECG-ANOMALY", False),
        ("ecg-*", "ecg-anomaly", True),
        ("ecg-*", "ecg-", True),
        ("ecg-*", "eeg-anomaly", False),
        ("*", "anything", True),
        ("*", "", True),
        ("ecg-?", "ecg-1", True),
        ("ecg-?", "ecg-12", False),
        ("e.g", "eeg", False),
    ],
)
def test_patterns(pattern: str, model: str, matches: bool) -> None:
    assert Principal("ris", "abc", (Grant(frozenset({"predict"}), (pattern,)),)).may("predict", model) is matches


def test_an_unknown_operation_is_denied_even_to_who_may_everything() -> None:
    everything = Principal("root", "abc", (Grant(frozenset(OPERATIONS), ("*",)),))

    with pytest.raises(Forbidden):
        require(everything, "decrypt", "ecg-anomaly")


def test_a_refusal_does_not_say_whether_the_model_exists() -> None:
    nobody = Principal("ris", "abc", (Grant(frozenset({"predict"}), ("ecg-anomaly",)),))
    said = []
    for model in ("secret-model", "missing-model"):
        with pytest.raises(Forbidden) as error:
            require(nobody, "predict", model)
        said.append((error.value.message.replace(model, "…"), error.value.hint))

    assert said[0] == said[1]
