"""P5: every route of every entrance, with every kind of credential: those that are not valid are refused alike."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import issuing
import pytest
import serving
from entrances import Door, Entrance, Reply, bearer, body_of, door, path_of
from issuing import jwk, token

from pericard.auth import OPERATIONS, TokenFile
from pericard.edge.answer import ROUTES
from pericard.edge.gate import OPEN, Route
from pericard.engine.main import Engine

POLICY = f"""
roles:
  everything: {{operations: [predict, metadata, metrics, audit, admin], models: ["*"]}}
  elsewhere: {{operations: [predict, metadata, metrics, audit, admin], models: [ecg-other]}}
  nowhere: {{operations: [predict], models: [none-of-them]}}
principals:
  good: {{roles: [everything], subjects: {{hospital: [service-good]}}}}
  other: {{roles: [elsewhere], subjects: {{hospital: [service-other]}}}}
  idle: {{roles: [nowhere]}}
  narrowed: {{roles: [everything]}}
  stale: {{roles: [everything]}}
issuers:
  hospital: {{issuer: "{issuing.ISSUER}", audience: pericard, keys: jwks.json}}
"""
EVERYTHING = {"operations": OPERATIONS, "models": ("*",)}
BY_POLICY: dict[str, tuple[str, ...]] = {"operations": (), "models": ()}
#: Who is nobody.
INVALID = [
    "wrong", "foreign", "expired", "revoked", "not named", "jwt, another key", "jwt, ended", "jwt, not named",
    "jwt, another audience",
]  # fmt: skip
#: Who is somebody, and may something else.
ELSEWHERE = ["other", "jwt, other", "narrowed"]
GOOD = ["good", "jwt, good"]


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """A site with a policy, and a credential of every kind."""
    folder = tmp_path_factory.mktemp("policy")
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "jwks.json").write_bytes(issuing.key_set(jwk("EdDSA")))
    file, foreign = TokenFile(folder / "tokens.json"), TokenFile(folder / "foreign" / "tokens.json")
    revoked, expired = (file.create("stale", **EVERYTHING, days=1) for _ in range(2))
    found: dict[str, str | None] = {
        "folder": str(folder),
        "none": None,
        "wrong": "pcd_aaaaaaaaaa_" + "A" * 43,
        "foreign": foreign.create("good", **EVERYTHING, days=1).token,
        "expired": expired.token,
        "revoked": revoked.token,
        "not named": file.create("nobody", **EVERYTHING, days=1).token,
        "jwt, another key": issuing.Token("EdDSA", "evil", {"kid": "EdDSA-first"}, {"sub": "service-good"}).signed(),
        "jwt, ended": token("EdDSA", sub="service-good", exp=int(time.time()) - 60),
        "jwt, not named": token("EdDSA", sub="service-ris"),
        "jwt, another audience": token("EdDSA", sub="service-good", aud="billing"),
        "idle": file.create("idle", **BY_POLICY, days=1).token,
        "other": file.create("other", **EVERYTHING, days=1).token,
        "jwt, other": token("EdDSA", sub="service-other"),
        "narrowed": file.create("narrowed", operations=OPERATIONS, models=("ecg-other",), days=1).token,
        "good": file.create("good", **BY_POLICY, days=1).token,
        "jwt, good": token("EdDSA", sub="service-good"),
    }
    file.revoke(revoked.record.id)
    contents = json.loads((folder / "tokens.json").read_text())
    for record in contents["tokens"]:
        if record["id"] == expired.record.id:
            record["expires"] = int(time.time()) - 1
    (folder / "tokens.json").write_text(json.dumps(contents))
    return found


@pytest.fixture(scope="module")
def walked(engine: Engine, credentials: dict[str, str | None], loop: serving.Loop) -> Iterator[Door]:
    folder = Path(str(credentials["folder"]))
    with door(engine, folder / "tokens.json", loop, policy=str(folder / "policy.yaml")) as made:
        yield made


@pytest.fixture(params=["answer", "application", "raw", "uvicorn", "direct"])
def way(walked: Door, request: pytest.FixtureRequest) -> Entrance:
    return walked.entrances[request.param]


def ask(way: Entrance, route: Route, key: str | None, model: str = "ecg-anomaly") -> Reply:
    headers = {**bearer(key), "content-type": "application/json", "x-request-id": "walk"}
    if route.permission == "admin":
        model = {"ecg-anomaly": "ecg-missing"}.get(model, model)  # the models of the other tests stay
    return way.ask(route.method, path_of(route, model), headers, body_of(route, model))


def whole(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    """Everything of a reply but the time at which it was sent."""
    return reply.status, {name: value for name, value in reply.headers.items() if name != "date"}, reply.body


def on_model(route: Route) -> bool:
    return "{name}" in route.path or route.permission == "predict"


CLOSED = [route for route in ROUTES if route.permission != OPEN]


def test_nobody_is_refused_everywhere_and_alike(way: Entrance, credentials: dict[str, str | None]) -> None:
    for route in CLOSED:
        missing = ask(way, route, None)
        assert (missing.status, missing.code) == (401, "unauthenticated"), route
        said = [whole(ask(way, route, credentials[kind])) for kind in INVALID]
        assert said[0][0] == 401
        assert all(one == said[0] for one in said), route


@pytest.mark.parametrize("kind", ["idle", *ELSEWHERE])
def test_somebody_is_refused_what_was_not_granted(way: Entrance, credentials: dict[str, str | None], kind: str) -> None:
    for route in CLOSED:
        reply = ask(way, route, credentials[kind])
        if kind == "idle" or on_model(route):
            assert (reply.status, reply.code) == (403, "forbidden"), route
        else:
            assert reply.status == 200, (route, reply)


@pytest.mark.parametrize("kind", GOOD)
def test_whoever_was_granted_it_is_answered(way: Entrance, credentials: dict[str, str | None], kind: str) -> None:
    for route in CLOSED:
        reply = ask(way, route, credentials[kind])
        assert reply.status == (404 if route.permission == "admin" else 200), (route, reply)


@pytest.mark.parametrize("kind", [*INVALID, "none", *ELSEWHERE, *GOOD])
def test_the_open_routes_look_at_no_credential(way: Entrance, credentials: dict[str, str | None], kind: str) -> None:
    for route in ROUTES:
        if route.permission == OPEN:
            assert ask(way, route, credentials[kind]).status == 200


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_model_that_is_not_for_the_caller_is_as_one_that_is_not_there(
    way: Entrance, credentials: dict[str, str | None], kind: str
) -> None:
    """Byte for byte: the names are as long as each other, and the caller chose them."""
    served, missing = "ecg-anomaly", "ecg-nothing"
    for route in CLOSED:
        if not on_model(route) or route.permission == "admin":
            continue
        there, not_there = (ask(way, route, credentials[kind], model) for model in (served, missing))
        status, headers, body = whole(there)
        assert status == 403
        assert (status, headers, body.replace(served.encode(), missing.encode())) == whole(not_there), route
    # who may read the evidence reads all of it
    routes = [route for route in CLOSED if not on_model(route) and route.permission != "audit"]
    listed = [ask(way, route, credentials[kind]).body for route in routes]
    assert not any(served.encode() in body for body in listed if b"pericard_" not in body)


def test_a_caller_has_the_same_rights_by_every_credential(way: Entrance, credentials: dict[str, str | None]) -> None:
    for one, other in (("good", "jwt, good"), ("other", "jwt, other")):
        for route in CLOSED:
            assert ask(way, route, credentials[one]).status == ask(way, route, credentials[other]).status
