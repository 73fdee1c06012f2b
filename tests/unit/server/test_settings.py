"""``server.yaml``: strict, with its defaults in one place, and the file that shows them tells the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from pericard import settings
from pericard.errors import ConfigError
from pericard.settings import Settings

SHOWN = Path(__file__).resolve().parents[3] / "configs/server.yaml"
LEAST = {"models": ["ecg.sealed"]}


def load(folder: Path, value: Any = None, **changes: Any) -> Settings:
    path = folder / "server.yaml"
    text = value if isinstance(value, str) else yaml.safe_dump({**LEAST, **changes})
    path.write_text(text, encoding="utf-8")
    return settings.load(path)


def refused(folder: Path, value: Any = None, **changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        load(folder, value, **changes)
    assert "server.yaml" in error.value.message
    return error.value


def plain(value: Any) -> Any:
    """Settings as YAML would say them."""
    return msgspec.json.decode(msgspec.json.encode(value))


# --- the file that shows every key ------------------------------------------------------------------------------------


def test_the_shown_file_holds_every_setting_with_its_default() -> None:
    shown = yaml.safe_load(SHOWN.read_text(encoding="utf-8"))
    defaults = plain(Settings(models=()))

    assert shown.keys() == defaults.keys()
    for name in shown.keys() - {"models"}:
        assert shown[name] == defaults[name], name


def test_the_shown_file_says_a_word_on_each_key() -> None:
    for line in SHOWN.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*\w+: \S", line):
            assert re.search(r"  # [\w{]", line), line


def test_the_shown_file_is_a_valid_one(tmp_path: Path) -> None:
    assert load(tmp_path, SHOWN.read_text(encoding="utf-8")).listen == settings.Listen()


def test_the_tls_keys_stand_in_the_comment() -> None:
    (line,) = [line for line in SHOWN.read_text(encoding="utf-8").splitlines() if line.startswith("tls:")]
    example = yaml.safe_load(line.partition("# ")[2])

    assert example.keys() == set(settings.Tls.__struct_fields__)
    assert example["minimum_version"] == settings.Tls("a", "b").minimum_version


def test_the_keys_of_the_collector_stand_in_the_comment() -> None:
    text = SHOWN.read_text(encoding="utf-8")
    (example,) = re.findall(r"# A collector[^{]*(\{[^}]*\})", text)
    shown = yaml.safe_load(example.replace("\n#", ""))
    made = settings.Forward(host="h", ca="c", certificate="c", key="k")

    assert shown.keys() == set(settings.Forward.__struct_fields__)
    for name in ("port", "cursor", "checkpoint_seconds", "timeout_seconds"):
        assert shown[name] == getattr(made, name), name


def test_the_paths_of_the_collector_are_relative_to_the_file(tmp_path: Path) -> None:
    found = load(
        tmp_path, forward={"host": "siem", "ca": "ca.pem", "certificate": "/etc/a.crt", "key": "a.key"}
    ).forward

    assert found is not None
    assert (found.ca, found.certificate) == (str(tmp_path / "ca.pem"), "/etc/a.crt")
    assert found.cursor == str(tmp_path / "forward/cursor")
    refused(tmp_path, forward={"host": "siem"})
    refused(tmp_path, forward={"host": "", "ca": "a", "certificate": "b", "key": "c"})


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_one_key_is_enough(tmp_path: Path) -> None:
    found = load(tmp_path)

    assert found.listen.host == "127.0.0.1"
    assert found.tls is None
    assert (found.engine.device, found.limits.items) == ("auto", 256)


def test_relative_paths_begin_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (folder / "server.yaml").write_text(
        yaml.safe_dump(
            {**LEAST, "tls": {"certificate": "a/tls.crt", "key": "/etc/tls.key"}, "audit": {"key": "../log.key"}}
        )
    )

    found = settings.load(Path("etc/server.yaml"))

    assert found.models == (f"{folder}/ecg.sealed",)
    assert found.publishers == f"{folder}/publishers.json"
    assert found.tls == settings.Tls(f"{folder}/a/tls.crt", "/etc/tls.key")
    assert (found.tokens, found.trust_state) == (f"{folder}/tokens.json", f"{folder}/trust.json")
    assert found.identity.path == f"{folder}/identity.key"
    assert (found.audit.directory, found.audit.key) == (f"{folder}/audit", f"{folder}/../log.key")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ["x"]},
        {"listen": {"hots": "127.0.0.1"}},
        {"tls": {"certificate": "a", "key": "b", "ciphers": "ALL"}},
        {"identity": {"file": "x"}},
        {"audit": {"dir": "x"}},
        {"engine": {"gpu": 0}},
        {"limits": {"body": 5}},
        {"Models": ["x"]},
        {"auth": False},
    ],
    ids=str,
)
def test_an_unknown_key_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    (name, value), *_ = changes.items()
    unknown = name if not isinstance(value, dict) else next(reversed(value))

    error = refused(tmp_path, **changes)

    assert f"`{unknown.lower()}`" in error.message
    assert error.hint is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"models": "ecg.sealed"},
        {"models": [7]},
        {"models": None},
        {"publishers": {}},
        {"publishers": ["vendor.pub"]},
        {"listen": []},
        {"listen": {"port": "8443"}},
        {"listen": {"port": -1}},
        {"listen": {"port": 65536}},
        {"listen": {"port": True}},
        {"listen": {"host": 127}},
        {"tls": True},
        {"tls": {"certificate": "a"}},
        {"tls": {"certificate": "a", "key": "b", "minimum_version": "1.1"}},
        {"tls": {"certificate": "a", "key": "b", "minimum_version": 1.3}},
        {"identity": {"unlock": "magic"}},
        {"engine": {"device": "gpu"}},
        {"engine": {"device": "cuda"}},
        {"engine": {"device": "cuda:0; rm"}},
        {"engine": {"threads": 0}},
        {"engine": {"threads": 257}},
        {"engine": {"threads": 1.5}},
        {"engine": {"memory_budget": 0}},
        {"engine": {"queue": 0}},
        {"limits": {"body_bytes": 100}},
        {"limits": {"body_bytes": 1 << 40}},
        {"limits": {"body_seconds": 0}},
        {"limits": {"body_seconds": -1}},
        {"limits": {"body_seconds": float("nan")}},
        {"limits": {"answer_seconds": float("inf")}},
        {"limits": {"answer_seconds": 3601}},
        {"limits": {"items": 0}},
        {"limits": {"connections": 0}},
        {"limits": None},
    ],
    ids=str,
)
def test_a_wrong_type_or_value_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(tmp_path, **changes)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "x", "models: [", "models: [a]\nmodels: [c]\n", "\x00",
     "!!python/object:os.system {}",
     "models: &a [*a]", "? [a]\n: b"],
    ids=repr,
)  # fmt: skip
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


@pytest.mark.parametrize("place", ["listen: {port: 1, port: 2}", "limits:\n  items: 1\n  items: 2"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, place: str) -> None:
    error = refused(tmp_path, f"models: [a]\n{place}\n")

    assert "twice" in error.message


def test_what_is_not_utf8_or_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_bytes(b"models: [\xff]")
    for path in (tmp_path / "server.yaml", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError):
            settings.load(path)


@pytest.mark.parametrize(
    ("versions", "latest", "sequences"),
    [
        ("latest", 1, {}),
        ("all", None, {}),
        ({"latest": 3}, 3, {}),
        ({"ecg": [2, 5]}, 1, {"ecg": (2, 5)}),
        ({"latest": 2, "ecg": [2]}, 2, {"ecg": (2,)}),
        ({"latest": [7]}, 1, {"latest": (7,)}),  # a model of that name
    ],
    ids=str,
)
def test_the_version_policies(
    tmp_path: Path, versions: Any, latest: int | None, sequences: dict[str, tuple[int, ...]]
) -> None:
    found = load(tmp_path, repository={"folder": "models", "versions": versions}).repository

    assert found is not None
    assert (found.folder, found.latest, found.sequences) == (f"{tmp_path}/models", latest, sequences)


@pytest.mark.parametrize(
    "changes",
    [
        {"repository": {}},
        {"repository": {"folder": "m", "versions": "newest"}},
        {"repository": {"folder": "m", "versions": {"latest": 0}}},
        {"repository": {"folder": "m", "versions": {"ecg": 3}}},
        {"repository": {"folder": "m", "versions": {"ecg": [0]}}},
        {"repository": {"folder": "m", "watch_seconds": -1}},
        {"edges": 0},
        {"edges": 17},
        {"engine": {"device": []}},
        {"engine": {"device": ["cpu", "gpu"]}},
        {"engine": {"memory_total": 0}},
        {"engine": {"recheck_seconds": -1}},
        {"engine": {"shared_memory": 1024}},
    ],
    ids=str,
)
def test_what_models_cannot_be_served_by_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(tmp_path, **changes)


def test_a_folder_alone_is_enough_and_devices_may_be_several(tmp_path: Path) -> None:
    found = load(tmp_path, models=[], repository={"folder": "models"}, engine={"device": ["cpu", "cuda:1"]}, edges=2)

    assert (found.models, found.edges, found.engine.device) == ((), 2, ("cpu", "cuda:1"))


def test_without_a_model_there_is_nothing_to_serve(tmp_path: Path) -> None:
    assert "at least one" in refused(tmp_path, models=[]).message


HOSTS = [
    ("127.0.0.1", True),
    ("127.1.2.3", True),
    ("::1", True),
    ("0.0.0.0", False),  # noqa: S104  (to be refused)
    ("::", False),
    ("192.168.1.5", False),
    ("fe80::1", False),
    ("localhost", False),  # a name is what a resolver says it is
    ("127.0.0.1.example", False),
    ("", False),
    ("0", False),
    ("2130706433", False),
    ("0x7f000001", False),
]


@pytest.mark.parametrize(("host", "loopback"), HOSTS)
def test_beyond_loopback_tls_is_needed(tmp_path: Path, host: str, *, loopback: bool) -> None:
    assert settings.is_loopback(host) is loopback
    if loopback:
        assert load(tmp_path, listen={"host": host}).listen.host == host
    else:
        error = refused(tmp_path, listen={"host": host})
        assert "tls is needed" in error.message
    with_tls = load(tmp_path, listen={"host": host}, tls={"certificate": "a", "key": "b"})
    assert with_tls.tls is not None


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        ({"clients": "required"}, "tls.client_ca is needed"),
        ({"client_ca": "ca.pem", "minimum_version": "1.2"}, "needs tls.minimum_version 1.3"),
        ({"client_ca": "ca.pem", "clients": "off"}, "clients"),
        ({"client_ca": True}, "client_ca"),
    ],
)
def test_client_certificates_need_who_vouches_for_them(tmp_path: Path, tls: dict[str, Any], words: str) -> None:
    error = refused(tmp_path, tls={"certificate": "a", "key": "b", **tls})

    assert words in error.message


def test_the_files_about_callers_begin_at_the_file(tmp_path: Path) -> None:
    tls = {"certificate": "a", "key": "b", "client_ca": "ca.pem", "clients": "required"}
    found = load(tmp_path, tls=tls, policy="policy.yaml")

    assert found.policy == f"{tmp_path}/policy.yaml"
    assert found.tls is not None
    assert (found.tls.client_ca, found.tls.clients) == (f"{tmp_path}/ca.pem", "required")
