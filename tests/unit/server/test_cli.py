"""The command line: its voice, its exit status, and what it leaves behind when something fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import serving
import yaml
from speaking import COMMAND, Said, Say, listing, refused, spawn

from pericard import __version__
from pericard.audit import AuditLog
from pericard.auth import TokenFile
from pericard.cli.main import cli
from pericard.keys import Identity, LogKey, Publisher, PublisherKey, Recipient
from pericard.sealed import Description


def verbs(command: click.Command = cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every verb, as words."""
    if not isinstance(command, click.Group):
        return [path]
    return [path] + [verb for name, inner in command.commands.items() for verb in verbs(inner, (*path, name))]


VERBS = verbs()
LEAVES = [verb for verb in VERBS if verb and not any(other[: len(verb)] == verb and other != verb for other in VERBS)]


# --- help and usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_each_verb_has_help(say: Say, verb: tuple[str, ...], option: str) -> None:
    said = say(*verb, option)

    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(f"Usage: {' '.join(('pericard', *verb))}")
    assert "\\b" not in said.out
    # every verb and every option but the standard ones says a word
    command: click.Command = cli
    for name in verb:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        assert parameter.name in {"help", "version", "artifact", "days", "grace_days"} or (
            isinstance(parameter, click.Argument) or getattr(parameter, "help", None)
        ), parameter.name


def test_help_is_quick_since_nothing_heavy_is_imported() -> None:
    code = f"""
import sys
from pericard.cli.main import _run
for verb in {VERBS!r}:
    assert _run([*verb, "--help"]) == 0
heavy = {{"torch", "numpy", "fastapi", "uvicorn", "starlette", "pydantic", "cryptography", "yaml", "blake3"}}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stderr == "[]\n"


def test_the_version(say: Say) -> None:
    assert say("--version") == Said(0, f"pericard {__version__}\n", "")


def test_without_a_verb_help_goes_to_the_words_and_not_to_the_result(say: Say) -> None:
    for group in ((), ("keygen",), ("token",), ("trust",), ("audit",), ("env",)):
        said = say(*group)
        assert (said.status, said.out) == (2, "")
        assert said.err.startswith("Usage: pericard")
        assert "error" not in said.err.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("invented",), "no such command 'invented'"),
        (("--invented",), "no such option"),
        (("seal",), "missing argument"),
        (("seal", "a.pt2"), "missing option"),
        (("keygen", "identity"), "missing option"),
        (("token", "create", "x"), "missing option '--model'"),
        (("token", "create", "x", "--model", "*", "--days", "many"), "not a valid integer"),
        (("audit", "show", "x", "--limit", "0"), "not in the range"),
        (("serve", "surplus"), "unexpected extra argument"),
    ],
)
def test_wrong_use(say: Say, arguments: tuple[str, ...], word: str) -> None:
    said = say(*arguments)

    refused(said, word, status=2)
    assert said.err.splitlines()[1].startswith("hint: pericard")
    assert said.err.splitlines()[1].endswith("--help shows how it is used")


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_each_verb_refuses_files_that_are_not_there(say: Say, tmp_path: Path, verb: tuple[str, ...]) -> None:
    gone = tmp_path / "gone"
    arguments: dict[tuple[str, ...], list[str | Path]] = {
        ("keygen", "identity"): ["-o", gone / "x.key"],
        ("keygen", "publisher"): ["-o", gone / "x.key"],
        ("keygen", "log"): ["-o", gone / "x.key"],
        ("keygen", "tls"): ["--host", "localhost", "-o", gone / "x.key"],
        ("seal",): [
            gone,
            "--manifest",
            gone,
            "--sign-with",
            gone,
            "--archive",
            gone,
            "--days",
            "1",
            "-o",
            tmp_path / "o",
        ],
        ("inspect",): [gone],
        ("verify",): [gone, "--publisher", gone],
        ("serve",): ["--config", gone],
        ("token", "create"): ["ris", "--model", "*", "--tokens", tmp_path / "t.json", "-o", gone / "x"],
        ("token", "rotate"): ["aaaaaaaaaa", "--tokens", gone],
        ("token", "revoke"): ["aaaaaaaaaa", "--tokens", gone],
        ("audit", "verify"): [gone, "--key", gone],
        ("audit", "show"): [gone],
        ("audit", "prove"): [gone, "0", "-o", tmp_path / "o"],
        ("audit", "check"): [gone, "--key", gone],
        ("audit", "export"): [gone, "--key", gone, "-o", tmp_path / "o"],
        ("audit", "report"): [gone],
        ("audit", "forward"): [gone, "--cursor", tmp_path / "c"],
        ("audit", "gaps"): [gone],
        ("audit", "prune"): ["--config", gone, "--days", "200"],
        ("audit", "clock"): ["--config", gone],
        ("env", "lock"): ["--from", gone, "--sign", gone, "-o", tmp_path / "o.lock"],
        ("env", "pack"): [gone, "-o", tmp_path / "o"],
        ("env", "install"): [gone, "--prefix", tmp_path / "o", "--publisher", gone],
        ("env", "verify"): ["--manifest", gone],
        ("env", "diff"): [gone, gone],
        ("env", "sbom"): [gone],
        ("env", "advisories"): [gone, "--osv", gone],
        ("grant",): [
            gone,
            "--archive",
            gone,
            "--sign-with",
            gone,
            "-r",
            gone,
            "--days",
            "1",
            "-o",
            tmp_path / "o.grant",
        ],
        ("withdraw",): ["--model", "ecg", "--below", "2", "--sign-with", gone, "-o", tmp_path / "o.notice"],
        ("trust", "add"): ["vendor", gone, "--store", tmp_path / "p.json"],
        ("trust", "remove"): ["vendor", "--store", tmp_path / "p.json"],
        ("trust", "reset"): ["--config", gone, "--reason", "for this test"],
        ("identity", "show"): [gone],
        ("identity", "relock"): [gone, "--to", "file"],
        ("identity", "rotate"): [gone, "-o", tmp_path / "o.key"],
        ("identity", "backup"): [gone, "-o", tmp_path / "o"],
        ("identity", "restore"): [gone, "-o", tmp_path / "o.key"],
        ("replay",): [gone, "--input", Path(__file__), "--config", gone],
    }
    if verb in {("token", "list"), ("trust", "list"), ("env", "show")}:
        return
    refused(say(*verb, *arguments[verb]))
    assert listing(tmp_path) == []  # and nothing half-made is left


# --- keys -------------------------------------------------------------------------------------------------------------

KINDS = {
    "identity": lambda private, half: Identity.read(private).recipient.id == Recipient.read(half).id,
    "publisher": lambda private, half: Publisher.read(half) is not None and private.exists(),
    "log": lambda private, half: LogKey.read(private).verifier.public is not None and half.exists(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_pair(say: Say, tmp_path: Path, kind: str) -> None:
    said = say("keygen", kind, "-o", tmp_path / "my.key")

    assert said.status == 0
    assert listing(tmp_path) == ["my.key", "my.pub"]
    assert (tmp_path / "my.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "my.pub").stat().st_mode & 0o777 == 0o644
    assert KINDS[kind](tmp_path / "my.key", tmp_path / "my.pub")
    if kind != "log":
        assert re.fullmatch(r"[0-9a-f]{64}\n", said.out)  # the id, for scripts


def test_a_tls_pair(say: Say, tmp_path: Path) -> None:
    assert say("keygen", "tls", "--host", "ecg.example", "--host", "::1", "-o", tmp_path / "tls.key").status == 0
    assert listing(tmp_path) == ["tls.crt", "tls.key"]
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", [*KINDS, "tls"])
@pytest.mark.parametrize("taken", ["private", "public"])
def test_no_half_pair_and_nothing_overwritten(say: Say, tmp_path: Path, kind: str, taken: str) -> None:
    public = "my.crt" if kind == "tls" else "my.pub"
    present = tmp_path / ("my.key" if taken == "private" else public)
    present.write_text("precious")
    more = ["--host", "localhost"] if kind == "tls" else []

    refused(say("keygen", kind, *more, "-o", tmp_path / "my.key"), present.name)

    assert listing(tmp_path) == [present.name]
    assert present.read_text() == "precious"


@pytest.mark.parametrize("kind", [*KINDS, "tls"])
def test_a_private_half_is_never_written_where_the_public_one_belongs(say: Say, tmp_path: Path, kind: str) -> None:
    more = ["--host", "localhost"] if kind == "tls" else []

    said = say("keygen", kind, *more, "-o", tmp_path / ("my.crt" if kind == "tls" else "my.pub"))

    refused(said, "is where the public half goes", status=2)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("host", ["", "é.example", "\ud800"])
def test_a_host_that_no_certificate_can_name(say: Say, tmp_path: Path, host: str) -> None:
    refused(say("keygen", "tls", "--host", host, "-o", tmp_path / "tls.key"), "certificate")
    assert listing(tmp_path) == []


def test_a_long_host_name_has_a_certificate(say: Say, tmp_path: Path) -> None:
    assert say("keygen", "tls", "--host", "a" * 60 + ".example.org", "-o", tmp_path / "tls.key").status == 0


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_tokens_life(say: Say, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    made = say("token", "create", "ris", "--model", "ecg-*", "--days", "30", "--tokens", tokens)
    assert made.status == 0
    assert TokenFile(tokens).authenticate(made.out.strip()).grants[0].models == ("ecg-*",)
    assert made.out.strip() not in made.err

    rows = json.loads(say("token", "list", "--json", "--tokens", tokens).out)
    assert [(row["name"], row["operations"], row["models"]) for row in rows] == [
        ("ris", ["metadata", "predict"], ["ecg-*"])
    ]
    assert rows[0]["id"] in say("token", "list", "--tokens", tokens).out
    secret = made.out.strip()[15:]
    assert secret not in say("token", "list", "--json", "--tokens", tokens).out

    assert say("token", "revoke", rows[0]["id"], "--tokens", tokens).status == 0
    assert json.loads(say("token", "list", "--json", "--tokens", tokens).out) == []
    refused(say("token", "revoke", rows[0]["id"], "--tokens", tokens), "there is none")


def test_a_token_is_rotated(say: Say, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    old = say("token", "create", "ris", "--model", "ecg-*", "--days", "30", "--tokens", tokens).out.strip()
    token_id = old[4:14]

    new = say("token", "rotate", token_id, "--overlap", "12h", "--tokens", tokens)

    assert new.status == 0
    assert new.out.strip() not in new.err
    assert f"the old one, {token_id}, is valid until " in new.err
    file = TokenFile(tokens)
    assert file.authenticate(old).name == file.authenticate(new.out.strip()).name == "ris"
    file.write_uses()
    rows = json.loads(say("token", "list", "--json", "--tokens", tokens).out)
    assert [row["days_left"] for row in rows] in ([0, 29], [0, 30])
    assert all(row["last_used"].endswith("Z") for row in rows)
    ended = say("token", "rotate", token_id, "--overlap", "0", "-o", tmp_path / "ris.token", "--tokens", tokens)
    assert (ended.status, ended.out) == (0, "")
    listed = say("token", "list", "--tokens", tokens).out
    assert "  ended  last used 2" in listed
    assert "days left  last used never" in listed


@pytest.mark.parametrize("given", ["7", "d", "-1d", "7 d", "7w", "", "1e3d", "9999999d"])
def test_an_overlap_is_a_duration(say: Say, tmp_path: Path, given: str) -> None:
    said = say("token", "rotate", "aaaaaaaaaa", f"--overlap={given}", "--tokens", tmp_path / "t.json")

    refused(said, "is not a duration", status=2)


def test_a_token_may_leave_it_all_to_the_policy(say: Say, tmp_path: Path) -> None:
    tokens = tmp_path / "t.json"
    made = say("token", "create", "ris", "--by-policy", "--tokens", tokens)

    assert TokenFile(tokens).authenticate(made.out.strip()).grants == ()
    assert " by the policy " in say("token", "list", "--tokens", tokens).out
    for both in (("--model", "*"), ("--operation", "predict")):
        refused(say("token", "create", "ris", "--by-policy", *both, "--tokens", tokens), "--by-policy", status=2)


def test_a_token_into_a_file(say: Say, tmp_path: Path) -> None:
    said = say("token", "create", "ris", "--model", "*", "--tokens", tmp_path / "t.json", "-o", tmp_path / "ris.token")

    assert (said.status, said.out) == (0, "")
    file = tmp_path / "ris.token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert TokenFile(tmp_path / "t.json").authenticate(file.read_text().strip()).name == "ris"


def test_no_token_is_made_that_nobody_has(say: Say, tmp_path: Path) -> None:
    tokens, file = tmp_path / "t.json", tmp_path / "ris.token"
    file.write_text("precious")

    refused(say("token", "create", "ris", "--model", "*", "--tokens", tokens, "-o", file), "exists already")
    refused(say("token", "create", "ris", "--model", "*", "--tokens", tokens, "-o", tmp_path / "gone" / "x"))
    assert file.read_text() == "precious"
    assert not tokens.exists()


def test_a_token_that_is_refused_leaves_no_file(say: Say, tmp_path: Path) -> None:
    for wrong in (["--operation", "everything"], ["--days", "0"], ["--model", "UPPER"]):
        file = tmp_path / "ris.token"
        refused(say("token", "create", "ris", "--model", "*", *wrong, "--tokens", tmp_path / "t.json", "-o", file))
        assert not file.exists()


def test_a_damaged_token_file_is_said(say: Say, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")

    refused(say("token", "list", "--tokens", tmp_path / "t.json"), "t.json")
    refused(say("token", "create", "x", "--model", "*", "--tokens", tmp_path / "t.json"), "t.json")
    assert (tmp_path / "t.json").read_text() == "{}"


# --- sealing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def vendor(say: Say, tmp_path: Path, tiny_pt2: Path, tiny_description: Description) -> Path:
    """A folder with a vendor's and a hospital's keys, a model and its description."""
    for kind, name in (("publisher", "vendor"), ("identity", "archive"), ("identity", "hospital")):
        assert say("keygen", kind, "-o", tmp_path / f"{name}.key").status == 0
    (tmp_path / "model.pt2").write_bytes(tiny_pt2.read_bytes())
    about = tiny_description
    assert about.signal is not None
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({
        "name": about.name,
        "version": about.version,
        "sequence": about.sequence,
        "publisher": about.publisher_name,
        "intended_use": "a model\nfor tests",
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in about.inputs],
        "outputs": [
            {"name": "score", "dtype": "float32", "shape": [-1], "meaning": "score", "threshold": 0.5},
            {"name": "timeline", "dtype": "float32", "shape": [-1, 15], "meaning": "timeline", "frame_seconds": 0.016},
        ],
        "signal": {"sampling_rate": 250, "unit": "mV", "leads": [["II", "MLII"]]},
        "batch": {"max": 4, "buckets": [1, 4]},
    }))  # fmt: skip
    return tmp_path


def seal(folder: Path, *more: str | Path, model: str = "model.pt2", about: str = "model.yaml") -> list[str | Path]:
    return [
        "seal", folder / model, "--manifest", folder / about, "--sign-with", folder / "vendor.key", "--archive",
        folder / "archive.pub", "-r", folder / "hospital.pub", "-o", folder / "ecg.sealed", *(more or ("--days", "30")),
    ]  # fmt: skip


def test_from_a_model_to_a_verified_file(say: Say, vendor: Path) -> None:
    sealed = say(*seal(vendor))
    assert sealed.status == 0, sealed
    manifest = sealed.out.strip()
    assert re.fullmatch(r"[0-9a-f]{64}", manifest)
    assert not [name for name in listing(vendor) if name.startswith(".")]

    shown = say("inspect", vendor / "ecg.sealed", "--json")
    found = json.loads(shown.out)
    assert (found["model"], found["version"], found["grants"], found["intended_use"]) == (
        "tiny",
        "1.0.0",
        2,
        "a model for tests",
    )
    assert "not verified" in shown.err
    assert "tiny" in say("inspect", vendor / "ecg.sealed").out

    verified = say("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub", "--json")
    found = json.loads(verified.out)
    assert (verified.status, found["manifest"], len(found["grants"])) == (0, manifest, 2)
    assert "no end" in found["grants"][0]
    lines = say("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub").out.splitlines()
    assert len(lines) == len(found) - 1 + len(found["grants"])

    tried = spawn(
        "verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub", "-i", vendor / "hospital.key", "--json"
    )
    assert tried.status == 0, tried
    assert json.loads(tried.out)["known_answers"] == "right on cpu at batch sizes 1, 4"


def test_a_model_may_ask_something_of_its_host(say: Say, vendor: Path) -> None:
    about = yaml.safe_load((vendor / "model.yaml").read_text())
    about["required_host"] = {"cpu_flags": ["zz_no_such", "aa_none"], "driver": "550.54", "cudnn": "9"}
    (vendor / "bound.yaml").write_text(yaml.safe_dump(about))
    assert say(*seal(vendor, about="bound.yaml")).status == 0

    shown = json.loads(say("inspect", vendor / "ecg.sealed", "--json").out)
    assert shown["needs_runtime"] is None
    assert shown["needs_host"] == ("CPU with aa_none, CPU with zz_no_such, driver 550.54 or later, cuDNN 9 or later")
    tried = spawn("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub", "-i", vendor / "hospital.key")
    refused(tried, "needs a CPU with aa_none, zz_no_such, which this one lacks")


def test_dates_of_a_licence(say: Say, vendor: Path) -> None:
    assert say(*seal(vendor, "--not-before", "2027-01-01", "--not-after", "2027-12-31")).status == 0
    grants = json.loads(say("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub", "--json").out)[
        "grants"
    ]

    assert " 2027-01-01 to 2027-12-31, " in grants[1]


def test_a_tampered_file_is_refused(say: Say, vendor: Path) -> None:
    say(*seal(vendor))
    data = bytearray((vendor / "ecg.sealed").read_bytes())
    data[200] ^= 1
    (vendor / "ecg.sealed").write_bytes(data)

    refused(say("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub"))


def other(folder: Path) -> Path:
    """Another publisher's public key."""
    PublisherKey.generate(folder / "other.key").publisher.write(folder / "other.pub")
    return folder / "other.pub"


def test_the_wrong_keys_are_named(say: Say, vendor: Path) -> None:
    say(*seal(vendor))

    refused(say("verify", vendor / "ecg.sealed", "--publisher", vendor / "archive.pub"), "archive.pub")
    refused(say("inspect", vendor / "model.pt2"), "model.pt2: is not a sealed model")
    said = say("verify", vendor / "ecg.sealed", "--publisher", other(vendor))
    refused(said, f"but, as it says itself, by {Publisher.read(vendor / 'vendor.pub').id[:16]}")
    stranger = spawn("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub", "-i", vendor / "vendor.key")
    refused(stranger, "vendor.key")


SPOILED: dict[str, tuple[str, dict[str, object]]] = {
    "an unknown field": ("invented", {"invented": 1}),
    "no name": ("name", {"name": ...}),
    "a bad name": ("bad.yaml: has a bad name (allowed: 1 to 64 of a-z", {"name": "ECG Anomaly!"}),
    "a bad type": (
        "type 'float33' is not known (known: bool, uint8",
        {"inputs": [{"name": "ecg", "dtype": "float33", "shape": [-1, 1, 64]}]},
    ),
    "a bad shape": ("shape", {"inputs": [{"name": "ecg", "dtype": "float32", "shape": [1, 1, 64]}]}),
    "another shape": ("", {"inputs": [{"name": "ecg", "dtype": "float32", "shape": [-1, 1, 7]}]}),
    "a negative tolerance": ("tolerance", {"tolerance": {"cpu": {"atol": -1, "rtol": 0}}}),
    "buckets that fall": ("buckets", {"batch": {"max": 4, "buckets": [4, 1]}}),
    "text for a number": ("sequence", {"sequence": "one"}),
    "a sequence of zero": ("bad.yaml: has a bad sequence (allowed: 1 to 2^53-1)", {"sequence": 0}),
    "a unit of another quantity": (
        "signal.unit (allowed: mV, uV)",
        {"signal": {"sampling_rate": 250, "unit": "V", "leads": [["II"]]}},
    ),
    "a version that is a number": ('write it in quotes: version: "1.0"', {"version": 1.0}),
    "a driver that is a number": ('write it in quotes: driver: "1.0"', {"required_host": {"driver": 550.54}}),
    "a host that is asked for nothing": ("required_host that asks for nothing", {"required_host": {}}),
    "a host's word for a version": ("bad required_host.cuda", {"required_host": {"cuda": "latest"}}),
    "an unknown bound": ("memory", {"required_host": {"memory": "1"}}),
    "another shape than the program's": (
        "model.pt2: takes float32[-1, 1, 64], the description says ecg float32[-1, 2, 64]",
        {
            "inputs": [{"name": "ecg", "dtype": "float32", "shape": [-1, 2, 64]}],
            "signal": {"sampling_rate": 250, "unit": "mV", "leads": [["I"], ["II"]]},
        },
    ),
    "a floor above itself": ("floor", {"sequence": 1, "floor": 2}),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_bad_description_seals_nothing(say: Say, vendor: Path, name: str) -> None:
    word, changes = SPOILED[name]
    about = yaml.safe_load((vendor / "model.yaml").read_text()) | changes
    (vendor / "bad.yaml").write_text(yaml.safe_dump({key: value for key, value in about.items() if value is not ...}))
    before = listing(vendor)

    said = say(*seal(vendor, about="bad.yaml"))

    refused(said)
    assert word in said.err
    assert listing(vendor) == before  # no file, no temporary one


@pytest.mark.parametrize("text", ["", "[]", "x: [", "\x00", "7"])
def test_a_description_that_is_none(say: Say, vendor: Path, text: str) -> None:
    (vendor / "bad.yaml").write_text(text)

    refused(say(*seal(vendor, about="bad.yaml")), "bad.yaml")


def test_broken_yaml_names_its_line(say: Say, vendor: Path) -> None:
    (vendor / "bad.yaml").write_text("name: tiny\nversion: [1\nsequence: 1\n")

    refused(say(*seal(vendor, about="bad.yaml")), "bad.yaml: line 3: ")


def test_a_model_that_is_none_seals_nothing(say: Say, vendor: Path) -> None:
    (vendor / "bad.pt2").write_bytes(b"PK\x03\x04 nothing")
    before = listing(vendor)

    refused(say(*seal(vendor, model="bad.pt2")), "bad.pt2")
    assert listing(vendor) == before


def test_no_seal_takes_the_place_of_a_file(say: Say, vendor: Path) -> None:
    (vendor / "ecg.sealed").write_bytes(b"precious")
    before = listing(vendor)

    said = say(*seal(vendor))

    refused(said, "ecg.sealed: exists already")
    assert "give the new file a name of its own" in said.err
    assert (vendor / "ecg.sealed").read_bytes() == b"precious"
    assert listing(vendor) == before


@pytest.mark.parametrize("more", [(), ("--days", "3", "--not-after", "2030-01-01")])
def test_a_licence_has_one_end(say: Say, vendor: Path, more: tuple[str, ...]) -> None:
    arguments = seal(vendor, "--grace-days", "1", *more)

    refused(say(*arguments), f"either --not-after or --days{', not both' if more else ''}", status=2)


def test_a_licence_that_ends_before_it_begins(say: Say, vendor: Path) -> None:
    said = say(*seal(vendor, "--not-before", "2027-01-02", "--not-after", "2026-12-31"))

    refused(said, "licence: would end (2026-12-31) before it begins (2027-01-02)")


def test_a_licence_beyond_the_calendar(say: Say, vendor: Path) -> None:
    said = say(*seal(vendor, "--not-before", "9999-01-01", "--days", "36600"))

    assert said.status in {0, 1}
    assert "went wrong inside" not in said.err


# --- evidence ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """A folder with a log of five records and its keys."""
    key = LogKey.generate(tmp_path / "log.key")
    key.verifier.write(tmp_path / "log.pub")
    with AuditLog.open(tmp_path / "audit", key=key) as log:
        log.commit([{"event": "start", "version": "1"}])
        for number in range(4):
            model = {"name": "ecg", "version": "1.0.0", "manifest": "ab" * 32}
            log.commit([{"event": "predict", "number": number, "model": model, "input": "cd" * 32}])
    (tmp_path / "head").write_bytes((tmp_path / "audit/checkpoint").read_bytes())
    return tmp_path


def test_a_whole_log_is_verified(say: Say, evidence: Path) -> None:
    said = say("audit", "verify", evidence / "audit", "--key", evidence / "log.pub", "--json")
    report = json.loads(said.out)
    assert (said.status, report["size"], report["covered"]) == (0, 5, 0)
    assert "(--head)" in said.err  # the line that can be drawn, and is not

    said = say("audit", "verify", evidence / "audit", "--key", evidence / "log.pub", "--head", evidence / "head")
    assert said.status == 0
    assert "(--head)" not in said.err
    assert re.search(r"^covered +5$", said.out, re.MULTILINE)


def test_an_altered_log_is_refused(say: Say, evidence: Path) -> None:
    (segment,) = (evidence / "audit").glob("*.log")
    segment.write_bytes(segment.read_bytes().replace(b'"number":2', b'"number":7'))

    refused(say("audit", "verify", evidence / "audit", "--key", evidence / "log.pub"))


def test_other_keys_and_heads_are_refused(say: Say, evidence: Path) -> None:
    (evidence / "junk").write_bytes(b"\xff\x00junk")

    refused(say("audit", "verify", evidence / "audit", "--key", evidence / "junk"), "junk")
    refused(say("audit", "verify", evidence / "audit", "--key", evidence / "log.pub", "--head", evidence / "junk"))
    refused(say("audit", "verify", evidence / "audit", "--key", evidence / "log.pub", "--head", evidence / "none"))


def test_records_are_shown(say: Say, evidence: Path) -> None:
    lines = say("audit", "show", evidence / "audit", "--json").out.splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(5))

    shown = say("audit", "show", evidence / "audit", "--from", "3", "--limit", "1")
    assert shown.err == "1 of 5 records; --from 4 goes on, --last 1 shows the newest\n"
    said = shown.out
    assert said.count("\n") == 1
    assert "model=ecg/1.0.0/abababababababab" in said
    assert "number=2" in said
    assert "input=cdcdcdcdcdcdcdcd…" in said
    beyond = say("audit", "show", evidence / "audit", "--from", "99")
    assert beyond == Said(0, "", "no record: the log holds 5, and --from 99 is beyond its end\n")


@pytest.mark.parametrize("option", ["--last", "--limit"])
def test_the_newest_records_are_shown_first_of_all(say: Say, evidence: Path, option: str) -> None:
    said = say("audit", "show", evidence / "audit", "--json", option, "2")
    assert [json.loads(line)["index"] for line in said.out.splitlines()] == [3, 4]
    assert said.err == "2 of 5 records, the newest; --from 0 begins with the oldest\n"
    refused(say("audit", "show", evidence / "audit", "--last", "2", "--from", "1"), "either --from or --last", status=2)


def test_records_are_shown_under_a_damaged_head(say: Say, evidence: Path) -> None:
    (evidence / "audit/checkpoint").write_bytes(b"junk")
    assert say("audit", "show", evidence / "audit", "--json").out.count("\n") == 5


def test_records_are_forwarded_from_a_cursor(evidence: Path) -> None:
    first = spawn("audit", "forward", evidence / "audit", "--cursor", evidence / "cursor")
    again = spawn("audit", "forward", evidence / "audit", "--cursor", evidence / "cursor")

    assert [json.loads(line)["index"] for line in first.out.splitlines()] == list(range(5))
    assert (again.status, again.out) == (0, "")
    (evidence / "cursor").write_text("x")
    refused(spawn("audit", "forward", evidence / "audit", "--cursor", evidence / "cursor"), "is not a cursor")


def test_the_runtime_is_shown(say: Say) -> None:
    found = json.loads(say("env", "show", "--json").out)
    lines = say("env", "show").out.splitlines()

    assert lines[0] == found["digest"]
    assert lines[1] == f"python {found['python']} {found['machine']}"
    assert len(lines) == 2 + len(found["distributions"])


# --- the daemon's verb ------------------------------------------------------------------------------------------------


def test_a_configuration_is_checked(say: Say, tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("models: [ecg.sealed]\nlisten: {host: 0.0.0.0}\n")
    refused(say("serve", "--check", "--config", config), "tls is needed")


@pytest.mark.parametrize("inline", [(), ("--inline",)])
def test_a_daemon_without_its_keys_does_not_start(tmp_path: Path, inline: tuple[str, ...]) -> None:
    (tmp_path / "server.yaml").write_text("models: [ecg.sealed]\nlisten: {port: 0}\nenvironment: {mode: 'off'}\n")

    refused(spawn("serve", *inline, "--config", tmp_path / "server.yaml"), ".key: cannot be read")


def test_inline_is_for_loopback_alone(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text(
        "models: [ecg.sealed]\nlisten: {host: 0.0.0.0}\ntls: {certificate: a, key: b}\n"
    )

    refused(spawn("serve", "--inline", "--config", tmp_path / "server.yaml"), "0.0.0.0 is not loopback")


# --- what goes wrong inside -------------------------------------------------------------------------------------------


def test_a_mistake_of_ours_has_a_voice_too(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret of a patient")

    monkeypatch.setattr("pericard.environment.describe", broken)
    said = say("env", "show")

    assert said.status == 1
    assert said.err.splitlines() == [
        "pericard: error: something went wrong inside (ZeroDivisionError)",
        "hint: PERICARD_TRACEBACK=1 shows where; please report it",
    ]
    monkeypatch.setenv("PERICARD_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        say("env", "show")


def test_an_interruption_is_no_traceback(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pericard.environment.describe", interrupted)

    said = say("env", "show")
    assert (said.status, said.out, said.err.strip()) == (130, "", "pericard: error: interrupted")


def test_a_pipe_that_closes_early_is_no_error() -> None:
    with subprocess.Popen([*COMMAND, "env", "show"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        said = child.stderr.read()
        status = child.wait(30)

    assert (status, said) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_behind_the_output_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "env", "show"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )

    assert done.returncode == 1
    assert done.stderr == "pericard: error: output: no space left on device\n"


def test_following_ends_with_an_interrupt(evidence: Path) -> None:
    import signal

    arguments = ["audit", "forward", str(evidence / "audit"), "--cursor", str(evidence / "cursor"), "--follow"]
    # a shell that runs the tests in the background ignores interrupts, and its children would inherit that
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, inherited)
    with child:
        try:
            assert child.stdout is not None
            for _ in range(5):
                child.stdout.readline()
            time.sleep(0.1)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=10)
            assert child.returncode == 130
        finally:
            child.kill()

    assert said.strip() == b"pericard: error: interrupted"


def test_the_site_of_these_tests_is_what_the_verbs_make(site: serving.Site, say: Say) -> None:
    said = say("verify", site.folder / "ecg-anomaly.sealed", "--publisher", site.folder / "vendor.pub", "--json")

    assert json.loads(said.out)["model"] == "ecg-anomaly"
