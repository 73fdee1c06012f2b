"""P5: a token of an identity provider is one by the provider's own key and algorithm; every known confusion fails."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import issuing
import pytest
from hypothesis import given
from hypothesis import strategies as st
from issuing import Token, encoded, jwk, pem, private, token

from pericard.auth import Authority, PolicyFile, TokenFile
from pericard.errors import Unauthenticated

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "EdDSA")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("site")
    (folder / "policy.yaml").write_text(issuing.POLICY)
    (folder / "jwks.json").write_bytes(issuing.key_set(*map(jwk, ALGORITHMS)))
    return Authority(TokenFile(folder / "tokens.json"), PolicyFile(folder / "policy.yaml"))


def refused(authority: Authority, wrong: str) -> None:
    for _ in range(2):  # and no cache remembers it as good
        with pytest.raises(Unauthenticated) as error:
            authority.bearer(wrong)
        assert error.value.message == "credential: is not valid"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_by_its_own_key_is_taken(authority: Authority, algorithm: str) -> None:
    for _ in range(2):
        found = authority.bearer(token(algorithm))
        assert (found.name, found.credential) == ("ris", "jwt:hospital")
        assert found.may("predict", "ecg-anomaly")
        assert not found.may("predict", "eeg")


# --- the algorithm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("none", ["none", "None", "NONE", "nOnE", "", " none"])
@pytest.mark.parametrize("signature", ["", encoded(b"\0" * 64), "kept"])
def test_none_is_no_algorithm(authority: Authority, none: str, signature: str) -> None:
    for algorithm in ALGORITHMS:
        made = Token(algorithm, header={"alg": none})
        kept = token(algorithm).rpartition(".")[2]
        refused(authority, ".".join((*made.parts(), kept if signature == "kept" else signature)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("hmac", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_shared_secret(authority: Authority, algorithm: str, hmac: str) -> None:
    text = pem(algorithm)
    public = jwk(algorithm)
    secrets = [text, text.rstrip(), text.replace(b"\n", b""), json.dumps(public).encode()]
    secrets += [public.get("n", public.get("x", "")).encode()]
    for secret in secrets:
        import hashlib
        import hmac as mac

        head, body = Token(algorithm, header={"alg": hmac}).parts()
        kind = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[hmac]
        signature = mac.new(secret, f"{head}.{body}".encode(), kind).digest()
        refused(authority, f"{head}.{body}.{encoded(signature)}")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("other", [*ALGORITHMS, "RS512", "PS512", "ES512", "ES256K"])
def test_a_key_is_bound_to_its_algorithm(authority: Authority, algorithm: str, other: str) -> None:
    if algorithm == other:
        return
    # the header names another algorithm for this key, and the signature is one by its own; then, where it can be, by
    # the named one with this very private key
    refused(authority, Token(algorithm, header={"alg": other}).signed())
    if {algorithm[:2], other[:2]} <= {"RS", "PS"}:
        refused(authority, Token(algorithm, header={"alg": other}).signed(private(algorithm)))
    # and another key of the set, under its own algorithm, is not this one
    if other in ALGORITHMS:
        refused(authority, Token(algorithm, header={"kid": f"{other}-first"}).signed())


def test_an_empty_signature_of_every_form_is_none(authority: Authority) -> None:
    for algorithm in ALGORITHMS:
        head, body, signature = token(algorithm).split(".")
        size = len(base64.urlsafe_b64decode(signature + "=="))
        for forged in (b"", b"\0" * size, b"\xff" * size, b"\0", b"\x30\x06\x02\x01\x00\x02\x01\x00"):
            refused(authority, f"{head}.{body}.{encoded(forged)}")


# --- keys that a token brings along -----------------------------------------------------------------------------------

BROUGHT: dict[str, Any] = {
    "jku": "https://evil.example/jwks.json",
    "x5u": "https://evil.example/cert.pem",
    "x5c": ["MIIB"],
    "x5t": "abcd",
    "x5t#S256": "abcd",
    "jwk": None,  # filled in below
    "crit": ["exp"],
    "b64": False,
    "cty": "JWT",
    "zip": "DEF",
    "enc": "A256GCM",
    "epk": {},
    "nonce": "x",
    "iss": issuing.ISSUER,
    "anything": 1,
}


@pytest.mark.parametrize("member", BROUGHT)
def test_a_header_says_alg_kid_and_typ_alone(authority: Authority, member: str) -> None:
    for algorithm in ("RS256", "EdDSA"):
        value = jwk(algorithm, "evil") if member == "jwk" else BROUGHT[member]
        refused(
            authority, token(algorithm, header={member: value})
        )  # signed by the right key, and refused all the same
        refused(authority, Token(algorithm, "evil", header={member: value, "kid": f"{algorithm}-first"}).signed())


@pytest.mark.parametrize(
    "kid",
    ["", "unknown", "../../dev/null", "/dev/null", "RS256-first' OR '1'='1", "RS256-first\0", "rs256-first", "x" * 300],
)
def test_a_kid_is_looked_up_and_nothing_else(authority: Authority, kid: str) -> None:
    refused(authority, token(header={"kid": kid}))


def test_a_kid_is_a_text_and_is_there(authority: Authority) -> None:
    for kid in (None, 0, True, ["RS256-first"], {"RS256-first": 1}):
        refused(authority, token(header={"kid": kid}))


def test_a_foreign_key_under_a_known_name_is_foreign(authority: Authority) -> None:
    for algorithm in ALGORITHMS:
        refused(authority, Token(algorithm, "evil", header={"kid": f"{algorithm}-first"}).signed())


# --- claims -----------------------------------------------------------------------------------------------------------

CLAIMS: dict[str, dict[str, Any]] = {
    "no issuer": {"iss": None},
    "another issuer": {"iss": "https://evil.example"},
    "an issuer with a slash more": {"iss": issuing.ISSUER + "/"},
    "an issuer in upper case": {"iss": issuing.ISSUER.upper()},
    "issuers": {"iss": [issuing.ISSUER]},
    "no audience": {"aud": None},
    "another audience": {"aud": "billing"},
    "an audience that begins so": {"aud": "pericard-test"},
    "other audiences": {"aud": ["billing", "PERICARD"]},
    "an empty audience": {"aud": []},
    "an audience that is an object": {"aud": {"pericard": 1}},
    "no end": {"exp": None},
    "an end in words": {"exp": "never"},
    "an end in a text": {"exp": "99999999999"},
    "an end that is true": {"exp": True},
    "an end that is null": {"exp": [None]},
    "an end that passed": {"exp": -31},
    "an end without end": {"exp": float("inf")},
    "an end that is none": {"exp": float("nan")},
    "an end that is huge": {"exp": 10**400},
    "an end too far away": {"exp": 3700},
    "an end far away, and a beginning before it": {"exp": 90_000, "iat": 89_990},
    "a life too long, most of which passed": {"exp": 60, "iat": -3600},
    "no beginning": {"iat": None},
    "a beginning in words": {"iat": "now"},
    "made in the future": {"iat": 120},
    "not yet valid": {"nbf": 120},
    "valid from a word on": {"nbf": "now"},
    "no subject": {"sub": None},
    "another subject": {"sub": "service-lab"},
    "a subject with a space": {"sub": "service-ris "},
    "a subject in upper case": {"sub": "SERVICE-RIS"},
    "a subject that is a number": {"sub": 1},
    "subjects": {"sub": ["service-ris"]},
    "an empty subject": {"sub": ""},
    "a subject without end": {"sub": "service-ris" * 100},
}


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS.keys())
def test_claims_are_what_the_policy_says(authority: Authority, claims: dict[str, Any]) -> None:
    now = int(time.time())
    moments = {
        name: now + value if name in {"exp", "iat", "nbf"} and type(value) is int and abs(value) < 1e6 else value
        for name, value in claims.items()
    }
    refused(authority, token(**moments))


def test_a_clock_that_is_a_little_off_is_borne(authority: Authority) -> None:
    now = int(time.time())
    assert authority.bearer(token(iat=now + 20, nbf=now + 20)).name == "ris"
    assert authority.bearer(token(aud=["billing", "pericard"])).name == "ris"


@pytest.mark.parametrize("kind", ["id+jwt", "JWE", "secevent+jwt", "", 1, ["JWT"]])
def test_a_token_for_something_else_is_none(authority: Authority, kind: Any) -> None:
    refused(authority, token(header={"typ": kind}))


def test_a_token_without_a_type_or_for_access_is_taken(authority: Authority) -> None:
    for kind in (None, "JWT", "at+jwt", "application/at+jwt"):
        assert authority.bearer(token(header={"typ": kind})).name == "ris"


# --- its form ---------------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[str], str]] = {
    "two parts": lambda good: good.rpartition(".")[0],
    "four parts": lambda good: good + ".x",
    "five parts, as encrypted ones have": lambda good: good + ".x.y",
    "a dot behind": lambda good: good + ".",
    "only dots": lambda _: "..",
    "no head": lambda good: "." + good.partition(".")[2],
    "no body": lambda good: ".".join((good.split(".")[0], "", good.split(".")[2])),
    "padding": lambda good: good.replace(".", "=.", 1),
    "another alphabet": lambda good: good.replace(".", "+.", 1),
    "a newline": lambda good: good + "\n",
    "a letter that is no ASCII": lambda good: good.replace(".", "é.", 1),
    "a body that was changed": lambda good: good.replace(".ey", ".eyJ4IjoxLC", 1),
    "a head that is no object": lambda good: encoded([]) + good[good.index(".") :],
    "a head with a member twice": lambda good: (
        encoded(b'{"alg":"none","alg":"RS256","kid":"RS256-first","jku":"x"}') + good[good.index(".") :]
    ),
    "a head that nests": lambda good: encoded(b'{"alg":' + b"[" * 5000) + good[good.index(".") :],
    "in JSON": lambda good: json.dumps(
        {"protected": good.split(".")[0], "payload": good.split(".")[1], "signature": good.split(".")[2]}
    ),
    "too long": lambda good: good + "A" * 9000,
}


@pytest.mark.parametrize("spoil", FORMS.values(), ids=FORMS.keys())
def test_only_the_compact_form_counts(authority: Authority, spoil: Callable[[str], str]) -> None:
    refused(authority, spoil(token()))


@given(text=st.text(max_size=60).map(lambda text: text + "."))
def test_no_text_gets_in(authority: Authority, text: str) -> None:
    refused(authority, text)


@given(data=st.data())
def test_no_part_can_be_replaced(authority: Authority, data: st.DataObject) -> None:
    head, body, signature = token("EdDSA").split(".")
    place = data.draw(st.integers(0, 2))
    parts = [head, body, signature]
    parts[place] = encoded(data.draw(st.binary(max_size=80)))
    if parts != [head, body, signature]:
        refused(authority, ".".join(parts))


# --- what was good once -----------------------------------------------------------------------------------------------


def site(folder: Path) -> tuple[Authority, PolicyFile]:
    (folder / "policy.yaml").write_text(issuing.POLICY)
    (folder / "jwks.json").write_bytes(issuing.key_set(jwk("EdDSA"), jwk("ES256")))
    policy = PolicyFile(folder / "policy.yaml")
    return Authority(TokenFile(folder / "tokens.json"), policy), policy


def test_a_token_ends_with_its_last_second_also_in_memory(tmp_path: Path) -> None:
    authority, _ = site(tmp_path)
    now = int(time.time())
    made = token("EdDSA", iat=now - 100, exp=now - 28)  # within what a clock may be off
    assert authority.bearer(made).name == "ris"

    time.sleep(2.5)

    refused(authority, made)


def test_a_key_that_was_withdrawn_verifies_nothing_from_memory(tmp_path: Path) -> None:
    authority, policy = site(tmp_path)
    made, other = token("EdDSA"), token("ES256")
    assert authority.bearer(made).name == authority.bearer(other).name == "ris"
    said: list[object] = []

    (tmp_path / "jwks.json").write_bytes(issuing.key_set(jwk("ES256")))
    policy.look(said.append)

    assert said == [None]
    refused(authority, made)
    assert authority.bearer(other).name == "ris"


def test_a_broken_key_set_keeps_the_one_before(tmp_path: Path) -> None:
    authority, policy = site(tmp_path)
    said: list[object] = []
    for damage in (b"{", b'{"keys": []}', b""):
        (tmp_path / "jwks.json").write_bytes(damage)
        policy.look(said.append)
        policy.look(said.append)

    assert len(said) == 3
    assert None not in said
    assert policy.refused == "config-invalid"
    assert authority.bearer(token("EdDSA")).name == "ris"
    (tmp_path / "jwks.json").write_bytes(issuing.key_set(jwk("EdDSA")))
    policy.look(said.append)
    assert (said[-1], policy.refused) == (None, "")


def test_a_subject_that_was_taken_out_is_forgotten(tmp_path: Path) -> None:
    authority, policy = site(tmp_path)
    made = token("EdDSA")
    authority.bearer(made)

    (tmp_path / "policy.yaml").write_text(issuing.POLICY.replace("[service-ris]", "[service-lab]"))
    policy.look(lambda _: None)

    refused(authority, made)
    assert authority.bearer(token("EdDSA", sub="service-lab")).name == "ris"


def test_without_a_policy_no_such_token_counts(tmp_path: Path) -> None:
    refused(Authority(TokenFile(tmp_path / "tokens.json")), token())
