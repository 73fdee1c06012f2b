"""Key sets: which keys count, for what, and where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import issuing
import jwt
import pytest
from issuing import jwk, key_set

from pericard.auth import PolicyFile
from pericard.auth.jwks import KeySource, parse
from pericard.errors import ConfigError

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA")


def names(*keys: dict[str, Any]) -> dict[str, str]:
    return {kid: key.algorithm_name for kid, key in parse(key_set(*keys), subject="jwks").items()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_has_one_algorithm(algorithm: str) -> None:
    assert names(jwk(algorithm)) == {f"{algorithm}-first": algorithm}


def test_a_key_that_does_not_say_has_the_usual_one() -> None:
    assert set(names(*(jwk(algorithm, said=False) for algorithm in ("RS256", "ES384", "EdDSA"))).values()) == {
        "RS256", "ES384", "EdDSA"
    }  # fmt: skip


def test_keys_for_something_else_are_left_out() -> None:
    good = jwk("EdDSA")
    others = [
        jwk("RS256", use="enc"), jwk("RS256", alg="RSA-OAEP"), jwk("ES256", alg="ES384"), jwk("RS256", alg="HS256"),
        jwk("ES256", alg="none"), jwk("EdDSA", kid=None), jwk("EdDSA", kid=""), {"kty": "new", "kid": "n"},
        {"kty": "EC", "crv": "secp256k1", "kid": "k"},
    ]  # fmt: skip

    assert names(good, *others) == {"EdDSA-first": "EdDSA"}
    for other in others:
        with pytest.raises(ConfigError, match="no key that can be used"):
            names(other)


def private_jwk() -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name("EdDSA").to_jwk(issuing.private("EdDSA"), as_dict=True)
    return {**made, "kid": "p"}


REFUSED = {
    "a shared secret": (key_set({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, jwk("EdDSA")), "holds a secret key"),
    "a private key": (key_set(private_jwk()), "holds a secret key"),
    "two under one name": (key_set(jwk("EdDSA", kid="k"), jwk("ES256", kid="k")), "two keys have the id 'k'"),
    "a damaged one": (key_set(jwk("EdDSA", x="AAAA")), "damaged"),
    "one off its curve": (key_set(jwk("ES256", x="AAAA", y="AAAA")), "damaged"),
    "a short RSA key": (key_set(json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(
        issuing.private("RS256", "short", 1024).public_key())) | {"kid": "s"}), "less than 2048"),
    "too many": (key_set(*(jwk("EdDSA", kid=str(number)) for number in range(65))), "more than 64"),
    "none": (key_set(), "no key that can be used"),
    "nothing": (b"", "not a JSON Web Key Set"),
    "a list": (b"[]", "not a JSON Web Key Set"),
    "keys that are none": (b'{"keys": [1]}', "not a JSON Web Key Set"),
    "nesting": (b'{"keys": [' + b"[" * 100_000, "not a JSON Web Key Set"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_set_of_public_keys_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(data, subject="jwks")


# --- where they come from ---------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("pericard.auth.jwks.time.monotonic", lambda: now[0])
    return now


def test_fetched_keys_are_due_by_the_clock_and_last_a_day(clock: list[float]) -> None:
    source = KeySource("https://idp.example/jwks")
    assert not source.keys
    assert source.due()
    assert not source.due()  # a fetch is under way, or failed: again in a minute
    clock[0] += 60
    assert source.due()

    source.take(key_set(jwk("EdDSA")))

    assert set(source.keys) == {"EdDSA-first"}
    clock[0] += 599
    assert not source.due()
    clock[0] += 1
    assert source.due()
    with pytest.raises(ConfigError):
        source.take(b"<html>")
    clock[0] += 86_400 - 601
    assert source.keys
    clock[0] += 1
    assert not source.keys


def test_an_address_is_https_or_a_file(tmp_path: Path) -> None:
    for keys in ("http://idp.example/jwks", "ftp://x/y", "file:///etc/passwd"):
        (tmp_path / "policy.yaml").write_text(issuing.POLICY.replace("keys: jwks.json", f'keys: "{keys}"'))
        with pytest.raises(ConfigError, match="a file or an https address"):
            PolicyFile(tmp_path / "policy.yaml")


def test_a_policy_waits_for_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(issuing.POLICY)
    with pytest.raises(ConfigError, match=r"jwks\.json: cannot be read"):
        PolicyFile(path)
    path.write_text("roles: {}\nprincipals: {}\n")
    file, said = PolicyFile(path), []

    path.write_text(issuing.POLICY)
    file.look(said.append)
    file.look(said.append)
    assert len(said) == 1
    assert file.refused
    (tmp_path / "jwks.json").write_bytes(key_set(jwk("EdDSA")))
    file.look(said.append)

    assert (said[1:], file.refused, file.current.names) == ([None, None], "", ["ris"])


def test_fetched_keys_outlive_a_change_of_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    text = issuing.POLICY.replace("keys: jwks.json", 'keys: "https://idp.example/jwks"')
    path.write_text(text)
    file = PolicyFile(path)
    (source,) = file.remote
    source.take(key_set(jwk("EdDSA")))

    path.write_text(text + "# another word\n")
    file.look(lambda _: None)

    assert file.remote == [source]
    assert source.keys


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{hospital: [service-ris]}", "{clinic: [service-ris]}", "there is no issuer clinic"),
        ("audience: pericard, ", "", "audience"),
        (f'issuer: "{issuing.ISSUER}", ', "", "issuer"),
        ("longest_seconds: 3600", "longest_seconds: 0", "longest"),
        ("longest_seconds: 3600", "leeway: 3600", "leeway"),
        ("issuers:", f'issuers:\n  second: {{issuer: "{issuing.ISSUER}", audience: x, keys: jwks.json}}', "the same"),
        ("principals:", "principals:\n  lab: {roles: [reader], subjects: {hospital: [service-ris]}}", "is another's"),
    ],
)
def test_an_issuer_that_is_not_plain_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    (tmp_path / "jwks.json").write_bytes(key_set(jwk("EdDSA")))
    assert old in issuing.POLICY
    (tmp_path / "policy.yaml").write_text(issuing.POLICY.replace(old, new, 1))

    with pytest.raises(ConfigError, match=words):
        PolicyFile(tmp_path / "policy.yaml")
