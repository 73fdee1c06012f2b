"""The policy: what it takes, what it gives whom, and that a broken one changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pericard.auth import OPERATIONS, Authority, Grant, Limits, Policy, PolicyFile, Principal, TokenFile
from pericard.errors import ConfigError, Unauthenticated

TEXT = """
roles:
  reader: {operations: [predict, metadata], models: [ecg-anomaly, "icu-*"]}
  operator: {operations: [metrics, admin], models: ["*"]}
principals:
  ris: {roles: [reader], rate: 100, burst: 200, rows: 64}
  lab: {roles: [reader, operator]}
"""


def policy(text: str = TEXT) -> Policy:
    return Policy(text.encode(), subject="policy.yaml")


def changed(change: Callable[[dict], object]) -> str:
    value = yaml.safe_load(TEXT)
    change(value)
    return yaml.safe_dump(value)


# --- what it gives ----------------------------------------------------------------------------------------------------

TABLE = [
    ("ris", "predict", "ecg-anomaly", True),
    ("ris", "predict", "icu-7", True),
    ("ris", "predict", "eeg", False),
    ("ris", "metadata", None, True),
    ("ris", "metrics", None, False),
    ("ris", "admin", "ecg-anomaly", False),
    ("lab", "metrics", None, True),
    ("lab", "admin", "eeg", True),
    ("lab", "predict", "icu-7", True),
    ("lab", "predict", "eeg", False),  # roles add up; they do not multiply
    ("lab", "audit", None, False),
]


@pytest.mark.parametrize(("name", "operation", "model", "allowed"), TABLE)
def test_who_may_what(name: str, operation: str, model: str | None, *, allowed: bool) -> None:
    assert policy().principal(name, "c").may(operation, model) is allowed


def test_limits_are_of_one_principal() -> None:
    assert policy().principal("ris", "c").limits == Limits(100.0, 200, 64)
    assert policy().principal("lab", "c").limits is None


def test_whoever_is_not_named_is_nobody() -> None:
    with pytest.raises(Unauthenticated, match="is not valid"):
        policy().principal("pacs", "c")


def test_the_digest_is_of_the_file() -> None:
    assert policy().digest == hashlib.sha256(TEXT.encode()).hexdigest()
    assert policy().names == ["lab", "ris"]


# --- tokens under a policy --------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def made(tokens: TokenFile, name: str, operations: tuple[str, ...] = (), models: tuple[str, ...] = ()) -> Principal:
    return tokens.authenticate(tokens.create(name, operations=operations, models=models, days=1).token)


def test_a_token_without_a_grant_of_its_own_may_what_the_policy_says(tokens: TokenFile) -> None:
    own = made(tokens, "ris")
    found = policy().of_token(own)

    assert not any(own.may(operation, "ecg-anomaly") for operation in OPERATIONS)  # without a policy, nothing
    assert (found.name, found.credential, found.within) == ("ris", own.credential, None)
    assert found.may("predict", "icu-7")


@pytest.mark.parametrize(("operation", "model"), [(o, m) for o in OPERATIONS for m in ("ecg-anomaly", "icu-7", "eeg")])
def test_a_tokens_own_grant_narrows_and_never_adds(tokens: TokenFile, operation: str, model: str) -> None:
    own = made(tokens, "lab", ("predict", "audit", "admin"), ("ecg-*", "eeg"))
    allowed = policy().principal("lab", "c")

    found = policy().of_token(own).may(operation, model)

    assert found is (own.may(operation, model) and allowed.may(operation, model))


def test_a_token_of_a_principal_that_was_taken_out_is_worth_nothing(tokens: TokenFile) -> None:
    own = made(tokens, "pacs", OPERATIONS, ("*",))

    with pytest.raises(Unauthenticated) as error:
        policy().of_token(own)
    with pytest.raises(Unauthenticated) as wrong:
        tokens.authenticate("pcd_aaaaaaaaaa_" + "A" * 43)
    assert (error.value.message, error.value.hint) == (wrong.value.message, wrong.value.hint)


def test_what_was_found_for_a_token_is_kept_for_its_record_only(tokens: TokenFile) -> None:
    taken = policy()
    own = made(tokens, "ris")
    assert taken.of_token(own) is taken.of_token(own)

    other = Principal("lab", own.credential, own.grants)  # the same id, in a token file that was replaced
    assert taken.of_token(other).name == "lab"


# --- what is refused --------------------------------------------------------------------------------------------------

BROKEN: dict[str, str | Callable[[dict], object]] = {
    "nothing": "",
    "a list": "[]",
    "no YAML": "roles: [",
    "a key twice": TEXT + "roles: {}\n",
    "a principal twice": TEXT + "  ris: {roles: [operator]}\n",
    "a tag": "roles: !!python/object/apply:os.system [true]\nprincipals: {}\n",
    "nesting": "[" * 20_000,
    "no roles": lambda value: value.pop("roles"),
    "no principals": lambda value: value.pop("principals"),
    "an unknown key": lambda value: value.update(default="allow"),
    "an unknown key of a role": lambda value: value["roles"]["reader"].update(deny=["x"]),
    "an unknown key of a principal": lambda value: value["principals"]["ris"].update(admin=True),
    "an unknown role": lambda value: value["principals"]["ris"].update(roles=["reader", "root"]),
    "no role at all": lambda value: value["principals"]["ris"].update(roles=[]),
    "an unknown operation": lambda value: value["roles"]["reader"].update(operations=["decrypt"]),
    "every operation": lambda value: value["roles"]["reader"].update(operations=["*"]),
    "no operation": lambda value: value["roles"]["reader"].update(operations=[]),
    "no model": lambda value: value["roles"]["reader"].update(models=[]),
    "a set of letters": lambda value: value["roles"]["reader"].update(models=["[a-z]*"]),
    "a model in upper case": lambda value: value["roles"]["reader"].update(models=["ECG"]),
    "a model's newline": lambda value: value["roles"]["reader"].update(models=["ecg\n"]),
    "a name with a space": lambda value: value["principals"].update({"r is": {"roles": ["reader"]}}),
    "a name with a newline": lambda value: value["principals"].update({"ris\n": {"roles": ["reader"]}}),
    "no rate": lambda value: value["principals"]["ris"].update(rate=0),
    "a negative rate": lambda value: value["principals"]["ris"].update(rate=-1),
    "a rate without end": lambda value: value["principals"]["ris"].update(rate=float("inf")),
    "a rate that is none": lambda value: value["principals"]["ris"].update(rate=float("nan")),
    "a rate in words": lambda value: value["principals"]["ris"].update(rate="fast"),
    "no row": lambda value: value["principals"]["ris"].update(rows=0),
    "a certificate without a kind": lambda value: value["principals"]["ris"].update(certificates=["ris"]),
    "a certificate of another kind": lambda value: value["principals"]["ris"].update(certificates=["ip:10.0.0.1"]),
    "a certificate without a name": lambda value: value["principals"]["ris"].update(certificates=["dns:"]),
    "a certificate of two": lambda value: [
        value["principals"][name].update(certificates=["dns:x.example"]) for name in ("ris", "lab")
    ],
    "half a row": lambda value: value["principals"]["ris"].update(rows=0.5),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_policy_that_is_not_plain_is_refused(broken: str | Callable[[dict], object]) -> None:
    with pytest.raises(ConfigError, match=r"^policy\.yaml: "):
        policy(broken if isinstance(broken, str) else changed(broken))


# --- while the server runs --------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "policy.yaml"
    made.write_text(TEXT)
    return made


def look(file: PolicyFile, *, anew: bool = False) -> list[str | None]:
    said: list[str | None] = []
    file.look(lambda error: said.append(error and error.message), anew=anew)
    return said


def test_a_change_is_taken(path: Path, tokens: TokenFile) -> None:
    file = PolicyFile(path)
    token = tokens.create("ris", operations=(), models=(), days=1).token
    authority = Authority(tokens, file)
    assert authority.bearer(token).may("predict", "icu-7")
    assert look(file) == []

    path.write_text(changed(lambda value: value["roles"]["reader"].update(models=["ecg-anomaly"])))

    assert look(file) == [None]
    assert not authority.bearer(token).may("predict", "icu-7")
    path.write_text(changed(lambda value: value["principals"].pop("ris")))
    assert look(file) == [None]
    with pytest.raises(Unauthenticated):
        authority.bearer(token)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("roles: {}"),
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"#" * ((1 << 20) + 1)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["another", "empty", "no text", "gone", "too large", "a folder"],
)
def test_a_broken_policy_keeps_the_one_before_and_is_said(path: Path, damage: Callable[[Path], object]) -> None:
    file = PolicyFile(path)
    before = file.current

    damage(path)

    (said,) = look(file)
    assert said is not None
    assert str(path) in said
    assert (file.current, file.refused) == (before, "config-invalid")
    assert look(file) == []  # said once, not every second
    assert len(look(file, anew=True)) == 1  # and again to who asks

    if path.is_dir():
        path.rmdir()
    path.write_text(TEXT)
    assert look(file) == [None]
    assert file.refused == ""


def test_a_server_does_not_start_with_a_broken_policy(path: Path) -> None:
    path.write_text("roles: {}")

    with pytest.raises(ConfigError):
        PolicyFile(path)


def test_a_grant_without_operations_allows_nothing() -> None:
    assert not Principal("ris", "c", (Grant(frozenset(), ("*",)),)).may("predict", "ecg-anomaly")
