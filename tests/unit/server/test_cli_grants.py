"""``pericard grant | withdraw``, and ``verify --grant``: the vendor's verbs after sealing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from speaking import Say, listing, refused

from pericard.keys import Identity, Publisher, PublisherKey, Recipient
from pericard.sealed import Description, SealedModel, Term, notice, seal

TODAY = int(datetime.now(UTC).timestamp())
DAY = 86_400


@pytest.fixture
def vendor(tmp_path: Path, tiny_description: Description) -> Path:
    """A vendor's folder: keys, and a file sealed for a hospital and the archive."""
    key = PublisherKey.generate(tmp_path / "vendor.key")
    key.publisher.write(tmp_path / "vendor.pub")
    for name in ("archive", "hospital", "clinic"):
        Identity.generate(tmp_path / f"{name}.key").recipient.write(tmp_path / f"{name}.pub")
    terms = (
        Term(Recipient.read(tmp_path / "archive.pub"), 0, (1 << 40) - 1, 0),
        Term(Recipient.read(tmp_path / "hospital.pub"), TODAY - DAY, TODAY + 30 * DAY, 14),
    )
    seal(tmp_path / "ecg.sealed", tiny_description, (9000, [bytes(9000)]), signer=key, terms=terms)
    return tmp_path


def grant(folder: Path, *more: str | Path, recipient: str = "clinic.pub", key: str = "vendor.key") -> list[str | Path]:
    return [
        "grant", folder / "ecg.sealed", "--archive", folder / "archive.key", "--sign-with", folder / key,
        "-r", folder / recipient, *more,
    ]  # fmt: skip


def verified(say: Say, folder: Path, *files: str, model: str = "ecg.sealed") -> list[str]:
    options = [word for file in files for word in ("--grant", folder / file)]
    said = say("verify", folder / model, "--publisher", folder / "vendor.pub", *options, "--json")
    assert said.status == 0, said
    found: list[str] = json.loads(said.out)["grants"]
    return found


def test_a_grant_file_for_two(say: Say, vendor: Path) -> None:
    said = say(
        *grant(vendor, "-r", vendor / "hospital.pub", "--not-before", "2027-01-01", "--not-after", "2027-12-31",
               "-o", vendor / "ecg.grant")
    )  # fmt: skip

    ids = [Recipient.read(vendor / f"{name}.pub").id for name in ("clinic", "hospital")]
    assert (said.status, said.out.split()) == (0, ids)
    assert "granted tiny 1.0.0 to 2 recipient(s) until 2027-12-31" in said.err
    shown = verified(say, vendor, "ecg.grant")
    assert [line.rpartition(", ")[0] for line in shown[2:]] == [f"{i[:16]} 2027-01-01 to 2027-12-31" for i in ids]
    assert len(verified(say, vendor)) == 2


def test_verify_without_json_shows_each_grant_on_a_line(say: Say, vendor: Path) -> None:
    say(*grant(vendor, "--days", "10", "-o", vendor / "ecg.grant"))
    said = say("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub", "--grant", vendor / "ecg.grant")
    out = said.out
    assert said.err.endswith("ecg.sealed: header and grants; the payload was not read (-i IDENTITY does that)\n")

    lines = [line for line in out.splitlines() if line.startswith("grants ")]
    assert len(lines) == 3
    assert lines[0].endswith(f"{Recipient.read(vendor / 'archive.pub').id[:16]} archive, no end")
    assert lines[1].endswith(", valid")
    assert Recipient.read(vendor / "clinic.pub").id[:16] in lines[2]


@pytest.mark.parametrize(
    ("begin", "end", "state"),
    [
        ("2020-01-01", "2020-12-31", "ended"),
        ("2020-01-01", "yesterday", "grace"),
        ("2200-01-01", "2201-01-01", "not yet"),
    ],
)
def test_verify_says_what_each_grant_is_worth_today(say: Say, vendor: Path, begin: str, end: str, state: str) -> None:
    last = datetime.fromtimestamp(TODAY - DAY, UTC).date().isoformat() if end == "yesterday" else end
    say(*grant(vendor, "--not-before", begin, "--not-after", last, "-o", vendor / "ecg.grant"))
    assert verified(say, vendor, "ecg.grant")[2].endswith(f" {begin} to {last}, {state}")


def test_the_names_that_a_server_finds_are_insisted_on(say: Say, vendor: Path) -> None:
    before = listing(vendor)
    refused(say(*grant(vendor, "--days", "3", "-o", vendor / "ecg.lic")), "must end in .grant", status=2)
    key = vendor / "vendor.key"
    said = say("withdraw", "--model", "tiny", "--below", "2", "--sign-with", key, "-o", vendor / "t.txt")
    refused(said, "must end in .notice", status=2)
    assert listing(vendor) == before


@pytest.mark.parametrize("public", ["archive", "vendor"])
def test_a_public_half_where_a_private_one_belongs_is_a_mix_up(say: Say, vendor: Path, public: str) -> None:
    (vendor / f"{public}.key").unlink()
    (vendor / f"{public}.pub").rename(vendor / f"{public}.key")  # under whatever name
    said = say(*grant(vendor, "--days", "3", "-o", vendor / "x.grant"))
    refused(said, f"{public}.key: is the public half; the private one is needed")


def test_embedding_makes_a_whole_file(say: Say, vendor: Path) -> None:
    said = say(*grant(vendor, "--days", "10", "--embed", "-o", vendor / "new.sealed"))

    assert said.status == 0, said
    assert len(verified(say, vendor, model="new.sealed")) == 3
    refused(say(*grant(vendor, "--days", "10", "--embed", "-o", vendor / "new.sealed")), "exists already")
    assert len(verified(say, vendor)) == 2


def test_dates_are_given_as_for_seal(say: Say, vendor: Path) -> None:
    for wrong in ((), ("--days", "3", "--not-after", "2027-01-01")):
        refused(say(*grant(vendor, *wrong, "-o", vendor / "x.grant")), "give either --not-after or --days", status=2)
    refused(
        say(*grant(vendor, "--not-before", "2027-02-01", "--not-after", "2027-01-01", "-o", vendor / "x.grant")),
        "would end (2027-01-01) before it begins (2027-02-01)",
    )
    say(*grant(vendor, "--days", "1", "--grace-days", "7", "-o", vendor / "one.grant"))
    with SealedModel(vendor / "ecg.sealed") as source:
        model = source.verify([Publisher.read(vendor / "vendor.pub")])
        from pericard.sealed import read_grants

        ((body, signatures),) = read_grants(vendor / "one.grant")
        model.add_grant(body, signatures)
        made = model.grants[-1]
    assert (made.not_before % DAY, made.not_after - made.not_before, made.grace_days) == (0, DAY, 7)
    assert made.not_before <= TODAY + DAY
    assert "x.grant" not in listing(vendor)


def test_only_its_publisher_grants(say: Say, vendor: Path) -> None:
    PublisherKey.generate(vendor / "other.key")
    before = listing(vendor)

    said = say(*grant(vendor, "--days", "3", "-o", vendor / "x.grant", key="other.key"))
    refused(said, "ecg.sealed: was not signed with other.key; only its publisher can grant it")
    said = say(
        "grant", vendor / "ecg.sealed", "--archive", vendor / "clinic.key", "--sign-with", vendor / "vendor.key",
        "-r", vendor / "clinic.pub", "--days", "3", "-o", vendor / "x.grant",
    )  # fmt: skip
    refused(said, "holds no grant for identity")
    assert listing(vendor) == before


def test_a_recipient_of_another_kind_is_refused(say: Say, vendor: Path) -> None:
    (vendor / "age.pub").write_text("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n")
    said = say(*grant(vendor, "--days", "3", "-o", vendor / "x.grant", recipient="age.pub"))

    refused(said, "age.pub")
    assert "only X-Wing recipients are taken" in said.err
    refused(say(*grant(vendor, "--days", "3", "-o", vendor / "x.grant", recipient="vendor.pub")), "vendor.pub")


def test_nothing_is_written_over(say: Say, vendor: Path) -> None:
    (vendor / "ecg.sealed").rename(vendor / "ecg.grant")  # whatever is in it
    (vendor / "ecg.notice").write_bytes(before := (vendor / "ecg.grant").read_bytes())
    (vendor / "ecg.sealed").write_bytes(before)
    refused(say(*grant(vendor, "--days", "3", "-o", vendor / "ecg.grant")), "exists already")
    refused(
        say("withdraw", "--model", "tiny", "--below", "2", "--sign-with", vendor / "vendor.key",
            "-o", vendor / "ecg.notice"),
        "exists already",
    )  # fmt: skip
    assert (vendor / "ecg.grant").read_bytes() == (vendor / "ecg.notice").read_bytes() == before


def test_a_tampered_grant_file_is_named(say: Say, vendor: Path) -> None:
    say(*grant(vendor, "--days", "3", "-o", vendor / "ecg.grant"))
    data = (vendor / "ecg.grant").read_bytes()
    (vendor / "ecg.grant").write_bytes(data.replace(b'"grace_days":14', b'"grace_days":99'))

    refused(
        say("verify", vendor / "ecg.sealed", "--publisher", vendor / "vendor.pub", "--grant", vendor / "ecg.grant"),
        "ecg.grant: the Ed25519 signature does not verify",
    )


def test_a_notice_withdraws(say: Say, vendor: Path) -> None:
    said = say(
        "withdraw", "--model", "tiny", "--below", "5", "--sign-with", vendor / "vendor.key", "-o", vendor / "t.notice"
    )

    assert said.status == 0, said
    assert "every version of tiny with a sequence below 5" in said.err
    found = notice.read(vendor / "t.notice", [Publisher.read(vendor / "vendor.pub")])
    assert (found.model, found.floor) == ("tiny", 5)
    assert abs(found.issued - TODAY) < DAY


@pytest.mark.parametrize(("model", "below", "status"), [("Tiny", "5", 1), ("tiny", "1", 2), ("tiny", "x", 2)])
def test_a_notice_that_says_nothing_is_not_made(say: Say, vendor: Path, model: str, below: str, status: int) -> None:
    before = listing(vendor)
    said = say(
        "withdraw", "--model", model, "--below", below, "--sign-with", vendor / "vendor.key", "-o", vendor / "t.notice"
    )
    refused(said, status=status)
    assert listing(vendor) == before
