"""``serve --check``: the first file that a start would miss is named, with how it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import serving
from speaking import Say, refused

from pericard.keys import Identity, PublisherKey


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A site that could start."""
    site = serving.Site(tmp_path / "place")
    site.seal("ecg")
    (site.folder / "server.yaml").write_text("models: [ecg.sealed]\n")
    (site.folder / "tokens.json").write_text("{}")
    return site.folder


def configure(folder: Path, more: str) -> None:
    (folder / "server.yaml").write_text(f"models: [ecg.sealed]\n{more}\n")


def test_a_whole_site_passes(say: Say, place: Path) -> None:
    said = say("serve", "--check", "--config", place / "server.yaml")
    assert (said.status, said.err) == (0, f"{place}/server.yaml: is a valid configuration, and its files are there\n")

    (place / "tokens.json").unlink()
    said = say("serve", "--check", "--config", place / "server.yaml")
    assert said.status == 0
    assert said.err.startswith(f"warning: {place}/tokens.json: is missing, so nobody is answered")


def public_for_private(folder: Path) -> None:
    (folder / "identity.key").write_bytes((folder / "identity.pub").read_bytes())


def test_the_policy_and_who_vouches_for_callers_are_looked_at(say: Say, place: Path) -> None:
    from authorities import Authority

    from pericard.keys.certificate import write_self_signed

    write_self_signed(place / "tls.key", place / "tls.crt", ("localhost",), days=2)
    configure(place, "policy: policy.yaml\ntls: {certificate: tls.crt, key: tls.key, client_ca: ca.pem}")
    refused(say("serve", "--check", "--config", place / "server.yaml"), "policy.yaml: cannot be read")
    (place / "policy.yaml").write_text("roles: {}\nprincipals: {ris: {roles: [reader]}}\n")
    refused(say("serve", "--check", "--config", place / "server.yaml"), "there is no role reader")
    (place / "policy.yaml").write_text("roles: {}\nprincipals: {}\n")
    refused(say("serve", "--check", "--config", place / "server.yaml"), "ca.pem: holds no authorities")
    (place / "ca.pem").write_bytes(Authority().pem)

    assert say("serve", "--check", "--config", place / "server.yaml").status == 0


SPOILED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no model": (lambda folder: (folder / "ecg.sealed").unlink(), "ecg.sealed: cannot be read", "the vendor sent"),
    "no sealed model": (lambda folder: (folder / "ecg.sealed").write_bytes(b"x"), "ecg.sealed: is not a sealed", ""),
    "a manifest of no environment": (
        lambda folder: (folder / "m.json").write_text("{}") and configure(folder, "environment: {manifest: m.json}"),
        "m.json: ",
        "pericard env install",
    ),
    "no publishers": (lambda folder: (folder / "publishers.json").unlink(), "publishers.json: is missing", "trust add"),
    "no identity": (lambda folder: (folder / "identity.key").unlink(), "identity.key: cannot be", "keygen identity"),
    "a public identity": (public_for_private, "identity.key: is the public half", ""),
    "a publisher": (
        lambda folder: (folder / "identity.key").write_bytes((folder / "vendor.key").read_bytes()),
        "identity.key: is a",
        "",
    ),
    "another lock": (
        lambda folder: configure(folder, "identity: {unlock: passphrase}"),
        "identity.key: has the lock file, and identity.unlock says passphrase",
        "relock",
    ),
    "no previous": (
        lambda folder: configure(folder, "identity: {previous: old.key}"),
        "old.key: cannot be read",
        "take identity.previous out",
    ),
    "no log key": (lambda folder: (folder / "log.key").unlink(), "log.key: cannot be read", "pericard keygen log -o"),
    "a damaged state": (lambda folder: (folder / "trust.json").write_text("{"), "trust.json: is not canonical", ""),
    "no folder for the refusals": (
        lambda folder: configure(folder, "refusals_log: {path: nowhere/refusals.log}"),
        "nowhere/refusals.log: its folder is missing",
        "make the folder",
    ),
    "no certificate": (
        lambda folder: configure(folder, "tls: {certificate: a.crt, key: a.key}"),
        "a.crt: cannot be read",
        "keygen tls",
    ),
    "no TLS key": (
        lambda folder: configure(folder, "tls: {certificate: identity.pub, key: log.pub}"),
        "identity.pub: is no certificate that goes with",
        "PEM",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_missing_is_named_with_how_it_is_made(say: Say, place: Path, name: str) -> None:
    spoil, message, hint = SPOILED[name]
    spoil(place)
    said = say("serve", "--check", "--config", place / "server.yaml")
    refused(said, message)
    assert hint in said.err


def test_a_rotation_and_a_credential_pass(say: Say, place: Path) -> None:
    Identity.generate(place / "next.key")
    configure(place, "identity: {path: next.key, previous: identity.key}")
    assert say("serve", "--check", "--config", place / "server.yaml").status == 0
    (place / "next.key").unlink()
    configure(place, "identity: {unlock: systemd}")  # only the service manager has it
    assert say("serve", "--check", "--config", place / "server.yaml").status == 0


def test_a_notice_of_a_stranger_is_to_be_removed_or_its_publisher_pinned(place: Path, tmp_path: Path) -> None:
    from pericard.errors import UntrustedPublisher
    from pericard.sealed import notice

    made = notice.make(PublisherKey.generate(tmp_path / "stranger.key"), "ecg", floor=2, issued=1)
    (place / "x.notice").write_bytes(made)
    with pytest.raises(UntrustedPublisher) as caught:
        notice.read(place / "x.notice", [PublisherKey.read(place / "vendor.key").publisher])
    assert str(caught.value.hint).endswith("remove the file x.notice")
