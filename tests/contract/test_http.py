"""Who gets in, through every entrance: each route, each credential, each way to spell a path."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from entrances import (
    VERSION,
    Application,
    Call,
    Door,
    Entrance,
    Keys,
    Reply,
    bearer,
    body_of,
    path_of,
    predict_body,
    replies,
)
from fastapi.routing import APIRoute
from serving import CLIPPED, FAILING, FLAT, GOOD, OTHER

from pericard import errors
from pericard.auth import Authority, TokenFile
from pericard.edge import description, oip, problems
from pericard.edge.answer import ROUTES, Answerer
from pericard.edge.app import create_app
from pericard.edge.gate import OPEN, Route
from pericard.edge.limits import Limits
from pericard.engine.main import Engine
from pericard.pipe import EngineLink

LONG = [*GOOD, 0.5]  # one sample too many

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/spec/http-api.md").read_text(encoding="utf-8")
WAYS_IN = ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"]
CREDENTIALS = ["none", "wrong", "expired", "idle", "other", "good"]


def token(keys: Keys, credential: str) -> str | None:
    return None if credential == "none" else str(getattr(keys, credential))


def request(entrance: Entrance, route: Route, key: str | None, model: str = "ecg-anomaly") -> Reply:
    """A request that the route answers, if the caller may."""
    headers = {**bearer(key), "content-type": "application/json"}
    if route.permission == "admin":
        model = {"ecg-anomaly": "ecg-missing"}.get(model, model)  # the models of the other tests stay
    return entrance.ask(route.method, path_of(route, model), headers, body_of(route, model))


def check_refusal(reply: Reply, code: str, *, v2: bool = False) -> None:
    """A refusal has its status, its form and its identity, and says nothing of the inside."""
    assert (reply.status, reply.code) == (problems.STATUS[code], code), reply
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", reply.headers["x-request-id"])
    assert reply.headers["cache-control"] == "no-store"
    if v2:
        assert reply.headers["content-type"] == "application/json"
        assert set(reply.json) == {"error"}
        assert reply.json["error"]
    else:
        assert reply.headers["content-type"] == "application/problem+json"
        assert set(reply.json) - {"hint"} == {"type", "title", "status", "code", "detail", "request_id"}
        assert (reply.json["status"], reply.json["request_id"]) == (reply.status, reply.headers["x-request-id"])
        assert reply.json["type"] == f"https://pericard.example/problems/{code}"
    for inside in (b"Traceback", b".py", b"/tmp", b"site-packages", b"0x7f"):
        assert inside not in reply.body
    assert ("www-authenticate" in reply.headers) == (reply.status == 401)


# --- the route walk ---------------------------------------------------------------------------------------------------


def expected(route: Route, credential: str) -> str:
    """The code that a route must answer with; empty for an answer."""
    if route.permission == OPEN:
        return ""
    if credential in {"none", "wrong", "expired"}:
        return "unauthenticated"
    if credential == "idle" and route.permission == "audit":  # all that it was granted
        return ""
    on_model = "{name}" in route.path or route.permission == "predict"
    if credential == "idle" or (credential == "other" and on_model):
        return "forbidden"
    return "unknown-model" if route.permission == "admin" else ""


@pytest.mark.parametrize("credential", CREDENTIALS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_each_route_asks_for_what_it_declares(entrance: Entrance, keys: Keys, route: Route, credential: str) -> None:
    reply = request(entrance, route, token(keys, credential))
    code = expected(route, credential)

    if code:
        check_refusal(reply, code, v2=route.path.startswith("/v2"))
    else:
        assert reply.status == 200, reply


def test_the_open_routes_are_exactly_these(entrance: Entrance) -> None:
    assert sorted(route.path for route in ROUTES if route.permission == OPEN) == sorted(WAYS_IN)
    assert sorted(route.path for route in ROUTES if request(entrance, route, None).status == 200) == sorted(WAYS_IN)


def test_every_permission_is_one_that_a_token_can_have() -> None:
    from pericard.auth import OPERATIONS

    assert {route.permission for route in ROUTES} - {OPEN} <= set(OPERATIONS)


def test_the_application_has_no_route_but_the_declared_ones(tmp_path: Path) -> None:
    answerer = Answerer(EngineLink(), Authority(TokenFile(tmp_path / "tokens.json")), Limits(), version=VERSION)
    app = create_app(answerer, version=VERSION)
    found = [
        (method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods or ()
    ]

    assert sorted(found) == sorted((route.method, route.path) for route in ROUTES)
    # all that is not an APIRoute is the one that answers everything else
    assert [getattr(route, "path", None) for route in app.routes if not isinstance(route, APIRoute)] == [""]


@pytest.mark.parametrize("credential", CREDENTIALS)
@pytest.mark.parametrize("path", ["/nothing", "/docs", "/openapi.json", "/redoc", "/v2/nothing", "/v1/models", "/"])
def test_strangers_do_not_learn_which_paths_exist(entrance: Entrance, keys: Keys, path: str, credential: str) -> None:
    reply = entrance.ask("GET", path, bearer(token(keys, credential)))

    known = credential in {"idle", "other", "good"}
    check_refusal(reply, "unknown-route" if known else "unauthenticated", v2=path.startswith("/v2"))


@pytest.mark.parametrize(
    "method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "SEARCH"]
)
@pytest.mark.parametrize("path", ["/livez", "/predict", "/metrics", "/v2/models/ecg-anomaly"])
def test_other_methods_are_refused_and_named(entrance: Entrance, keys: Keys, method: str, path: str) -> None:
    stranger = entrance.ask(method, path)
    assert stranger.status == 401

    reply = entrance.ask(method, path, bearer(keys.good))
    assert reply.status == 405
    assert reply.headers["allow"] == ("POST" if path == "/predict" else "GET")
    if method != "HEAD":
        check_refusal(reply, "method-not-allowed", v2=path.startswith("/v2"))
    else:
        assert stranger.body == b"" or not isinstance(entrance, Application)


VARIANTS = {
    "two slashes": lambda path: f"/{path}",
    "a slash behind": lambda path: f"{path}/",
    "two slashes behind": lambda path: f"{path}//",
    "an encoded slash behind": lambda path: f"{path}%2f",
    "an encoded slash before": lambda path: f"/%2F{path[1:]}",
    "encoded slashes": lambda path: "/" + path[1:].replace("/", "%2f"),
    "an encoded letter": lambda path: f"{path[:-1]}%{ord(path[-1]):02x}",
    "all encoded": lambda path: "/" + "".join(f"%{ord(letter):02X}" for letter in path[1:]),
    "encoded twice": lambda path: f"{path[:-1]}%25{ord(path[-1]):02x}",
    "upper case": lambda path: path.upper(),
    "a dot": lambda path: f"/.{path}",
    "an encoded dot": lambda path: f"/%2e{path}",
    "up and down": lambda path: f"/v2/..{path}",
    "up and down, encoded": lambda path: f"/v2/%2e%2e{path}",
    "down and up": lambda path: f"{path}/x/..",
    "from an open route": lambda path: f"/livez/..{path}",
    "behind an open route": lambda path: f"/livez{path}",
    "an open route behind": lambda path: f"{path}/livez",
    "a semicolon": lambda path: f"{path};/livez",
    "a backslash": lambda path: f"{path}\\",
    "a null byte": lambda path: f"{path}%00",
    "a newline": lambda path: f"{path}%0a",
    "a space": lambda path: f"{path}%20",
    "a dot behind": lambda path: f"{path}.",
    "an overlong slash": lambda path: f"/%c0%af{path[1:]}",
    "a wide slash": lambda path: f"/%ef%bc%8f{path[1:]}",
    "an extension": lambda path: f"{path}.json",
}  # fmt: skip


@pytest.mark.parametrize("spell", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_spelling_of_a_path_opens_it(entrance: Entrance, keys: Keys, spell: Any) -> None:
    for route in ROUTES:
        path = path_of(route)
        target = spell(path)
        if target == path or (route.permission == "admin" and target.endswith(("/load", "/unload"))):
            continue
        for credential in ("none", "wrong", "idle"):
            headers = {**bearer(token(keys, credential)), "content-type": "application/json"}
            reply = entrance.ask(route.method, target, headers, body_of(route))
            assert reply.status in {401, 403, 404, 405}, (target, credential, reply)
        # and no spelling but the one in the table is a route
        headers = {**bearer(keys.good), "content-type": "application/json"}
        reply = entrance.ask(route.method, target, headers, body_of(route))
        assert reply.status == 404, (target, reply)


@pytest.mark.parametrize("query", ["?", "?a=b", "?/livez", "?a=%2f..", "?" + "a" * 500])
def test_a_query_changes_nothing(entrance: Entrance, keys: Keys, query: str) -> None:
    for route in ROUTES:
        if route.permission == "admin":
            continue
        target, body = path_of(route) + query, body_of(route)
        stranger = entrance.ask(route.method, target, {"content-type": "application/json"}, body)
        friend = entrance.ask(route.method, target, {**bearer(keys.good), "content-type": "application/json"}, body)
        assert stranger.status == (200 if route.permission == OPEN else 401)
        read = route.path == "/audit/records" and query != "?"  # the one route that takes a query, and only its own
        assert friend.status == (400 if read else 200)


RAW_TARGETS = {
    "absolute form": b"GET http://pericard.test/metrics HTTP/1.1\r\nHost: x\r\n",
    "absolute form of another host": b"GET http://evil.test/metrics HTTP/1.1\r\nHost: x\r\n",
    "absolute form with a user": b"GET http://a:b@evil.test/metrics HTTP/1.1\r\nHost: x\r\n",
    "absolute form over TLS": b"GET https://pericard.test:443/metrics HTTP/1.1\r\nHost: x\r\n",
    "absolute form without a path": b"GET http://pericard.test HTTP/1.1\r\nHost: x\r\n",
    "absolute form of an open route": b"GET http://pericard.test/livez/../metrics HTTP/1.1\r\nHost: x\r\n",
    "authority form": b"CONNECT pericard.test:443 HTTP/1.1\r\nHost: x\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n",
    "no slash": b"GET metrics HTTP/1.1\r\nHost: x\r\n",
    "a fragment": b"GET /metrics#/livez HTTP/1.1\r\nHost: x\r\n",
    "HTTP/1.0": b"GET /metrics HTTP/1.0\r\n",
    "HTTP/0.9": b"GET /metrics\r\n",
    "HTTP/2 in the clear": b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    "an upgrade": b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
    "an upgrade to HTTP/2": b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
    "a lower-case method": b"get /metrics HTTP/1.1\r\nHost: x\r\n",
    "an invented method": b"FROBNICATE /metrics HTTP/1.1\r\nHost: x\r\n",
    "a rewritten path": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\n",
    "a rewritten method": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: POST\r\n",
    "a claimed address": b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 127.0.0.1\r\nForwarded: for=::1\r\n",
    "bytes that are not ASCII": b"GET /m\xe9trics HTTP/1.1\r\nHost: x\r\n",
    "a space in the path": b"GET /metrics /livez HTTP/1.1\r\nHost: x\r\n",
    "a folded header": b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n",
    "a header without a name": b"GET /metrics HTTP/1.1\r\nHost: x\r\n: b\r\n",
    "a space before the colon": b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer x\r\n",
    "nothing": b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("head", RAW_TARGETS.values(), ids=RAW_TARGETS.keys())
def test_no_form_of_a_request_line_opens_anything(wide: Door, head: bytes) -> None:
    data = wide.network.raw(head + b"Connection: close\r\n\r\n", wait=3)

    for reply in replies(data):
        assert reply.status in {400, 401} or (reply.status == 200 and reply.json == {"live": True}), reply
        assert b"pericard_" not in reply.body


def test_the_absolute_form_is_the_path_in_it(wide: Door, keys: Keys) -> None:
    line = b"GET http://anything.test/v2/models HTTP/1.1\r\nHost: x\r\n"
    (reply,) = replies(
        wide.network.raw(line + f"Authorization: Bearer {keys.good}\r\nConnection: close\r\n\r\n".encode())
    )

    assert reply.json == {"models": ["ecg-anomaly", "ecg-other"]}


HEADERS = [
    [],
    [("authorization", "")],
    [("authorization", "Bearer")],
    [("authorization", "Bearer ")],
    [("authorization", "Basic {good}")],
    [("authorization", "{good}")],
    [("authorization", "Bearer {good} ")],
    [("authorization", "Bearer  {good}")],
    [("authorization", "Bearer {good}, Bearer {good}")],
    [("authorization", "Bearer {good}"), ("authorization", "Bearer {good}")],
    [("authorization", "Bearer {wrong}"), ("authorization", "Bearer {good}")],
    [("authorization", "Bearer \xe9\xff")],
    [("authorization", "Bearer " + "x" * 5000)],
    [("authorization", "Bearer {good}\t")],
    [("proxy-authorization", "Bearer {good}")],
    [("x-api-key", "{good}")],
    [("cookie", "authorization=Bearer {good}")],
]


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: str(headers)[:60])
def test_only_one_well_formed_credential_counts(entrance: Entrance, keys: Keys, headers: list[tuple[str, str]]) -> None:
    given = [(name, value.replace("{good}", keys.good).replace("{wrong}", keys.wrong)) for name, value in headers]
    if isinstance(entrance, Call) or not any(value != value.strip() for _, value in given):
        check_refusal(entrance.ask("GET", "/metrics", given), "unauthenticated")


def test_the_scheme_is_not_case_sensitive(entrance: Entrance, keys: Keys) -> None:
    for scheme in ("bearer", "BEARER", "Bearer"):
        assert entrance.ask("GET", "/v2", {"authorization": f"{scheme} {keys.good}"}).status == 200


def test_a_token_in_the_query_is_no_credential(entrance: Entrance, keys: Keys) -> None:
    check_refusal(entrance.ask("GET", f"/metrics?token={keys.good}&access_token={keys.good}"), "unauthenticated")


# --- what the routes say ----------------------------------------------------------------------------------------------


def test_the_health_routes_say_what_the_page_says(entrance: Entrance) -> None:
    assert entrance.ask("GET", "/livez").json == {"live": True}
    assert entrance.ask("GET", "/readyz").json == {"ready": True}
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert entrance.ask("GET", path).json == {"live": True, "ready": True}


def test_without_an_engine_nothing_but_life_is_claimed(alone_entrance: Entrance, keys: Keys) -> None:
    assert alone_entrance.ask("GET", "/livez").json == {"live": True}
    assert alone_entrance.ask("GET", "/v2/health/live").json == {"live": True, "ready": False}
    for path, live in (("/readyz", {}), ("/v2/health/ready", {"live": True})):
        reply = alone_entrance.ask("GET", path)
        said = reply.json.pop("error", None) if live else None
        assert (reply.status, {**reply.json, "error": said}) == (503, {"ready": False, **live, "error": said})
    for route in ROUTES:
        if route.permission != OPEN:
            reply = request(alone_entrance, route, keys.good)
            check_refusal(reply, "engine-away", v2=route.path.startswith("/v2"))
            assert reply.headers["retry-after"] == "1"
            assert request(alone_entrance, route, None).status == 401


def test_server_metadata(entrance: Entrance, keys: Keys) -> None:
    reply = entrance.ask("GET", "/v2", bearer(keys.good)).json

    assert (reply["name"], reply["version"], reply["extensions"]) == ("pericard", VERSION, list(oip.EXTENSIONS))
    assert re.fullmatch(r"[0-9a-f]{64}", reply["runtime"])
    found = msgspec.convert(reply["environment"], description.Environment, strict=True)
    assert msgspec.to_builtins(found) == reply["environment"]
    assert (found.mode, found.state, found.findings, found.digest) == ("off", "off", 0, reply["runtime"])
    assert (found.driver, found.cuda, found.cudnn) == (None, None, None)


def test_a_caller_sees_the_models_that_it_may_use(entrance: Entrance, keys: Keys) -> None:
    seen = {
        credential: entrance.ask("GET", "/v2/models", bearer(token(keys, credential))).json["models"]
        for credential in ("good", "other", "golden")
    }

    assert seen == {"good": ["ecg-anomaly", "ecg-other"], "other": ["ecg-other"], "golden": ["ecg-anomaly"]}


def test_model_metadata(entrance: Entrance, keys: Keys) -> None:
    found = entrance.ask("GET", "/v2/models/ecg-anomaly", bearer(keys.good)).json
    parameters = found.pop("parameters")

    assert found == {
        "name": "ecg-anomaly",
        "versions": ["1"],
        "platform": "pytorch_exported",
        "inputs": [{"name": "ecg", "datatype": "FP32", "shape": [-1, 1, 8]}],
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "timeline", "datatype": "FP32", "shape": [-1, 2]},
        ],
    }
    assert parameters["signal"] == {"sampling_rate": 250, "unit": "mV", "leads": [["II", "MLII"]]}
    assert parameters["score"] == {"output": "score", "threshold": 0.9}
    assert parameters["timeline"] == {"output": "timeline", "frame_seconds": 0.016}
    assert (parameters["version"], parameters["sequence"], parameters["licence"]) == ("1.0.0", 1, "valid")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", parameters["licence_not_after"])
    for name in ("manifest", "publisher", "runtime"):
        assert re.fullmatch(r"[0-9a-f]{64}", parameters[name])


@pytest.mark.parametrize("name", ["missing", "ecg", "ecg-anomaly.sealed", "a" * 64])
def test_an_unknown_model_is_unknown_to_who_may_all_and_forbidden_to_others(
    entrance: Entrance, keys: Keys, name: str
) -> None:
    for path in (f"/v2/models/{name}", f"/v2/models/{name}/ready"):
        check_refusal(entrance.ask("GET", path, bearer(keys.good)), "unknown-model", v2=True)
        check_refusal(entrance.ask("GET", path, bearer(keys.other)), "forbidden", v2=True)


@pytest.mark.parametrize("name", ["a" * 65, "UPPER", "-a", "a%20b", "a/b", "..", ".", "%2e%2e", "a\\b", "é"])
def test_what_cannot_be_a_models_name_is_no_route(entrance: Entrance, keys: Keys, name: str) -> None:
    import urllib.parse

    path = "/v2/models/" + urllib.parse.quote(name, safe="/%\\.")

    check_refusal(entrance.ask("GET", path, bearer(keys.good)), "unknown-route", v2=True)


def test_metrics_are_the_engines(entrance: Entrance, keys: Keys) -> None:
    reply = entrance.ask("GET", "/metrics", bearer(keys.good))

    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"pericard_models_ready 2.0" in reply.body


def test_a_model_whose_licence_ended_is_not_ready(
    entrance: Entrance, keys: Keys, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses
    import time

    from pericard.trust import Licence

    def told() -> None:
        engine.tick()
        end = time.monotonic() + 5
        wanted = [
            engine._repository.catalog()["models"][name]["versions"]["1"]["licence"]
            for name in ("ecg-anomaly", "ecg-other")
        ]
        while time.monotonic() < end:
            found = [
                entrance.ask("GET", f"/v2/models/{name}", bearer(keys.good)).json["parameters"]["licence"]
                for name in ("ecg-anomaly", "ecg-other")
            ]
            if found == wanted:
                return
            time.sleep(0.01)
        pytest.fail("the catalog never came")

    first, second = engine._repository
    ended = Licence(dataclasses.replace(first.licence.grant, not_after=int(time.time()) - 10, grace_days=0))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(first, "licence", ended)
            told()
            reply = entrance.ask("GET", "/v2/models/ecg-anomaly/ready", bearer(keys.good))
            assert reply.status == 503
            assert reply.json == {"error": reply.json["error"], "name": "ecg-anomaly", "ready": False}
            assert entrance.ask("GET", "/v2/models/ecg-other/ready", bearer(keys.good)).status == 200
            assert entrance.ask("GET", "/readyz").status == 200
            reply = predict(entrance, keys, predict_body(GOOD))
            check_refusal(reply, "licence-expired")
            patch.setattr(second, "licence", ended)
            told()
            assert entrance.ask("GET", "/readyz").status == 503
    finally:
        told()


# --- predictions ------------------------------------------------------------------------------------------------------


def predict(entrance: Entrance, keys: Keys, body: bytes, **headers: str) -> Reply:
    given = {**bearer(keys.good), "content-type": "application/json", **headers}
    return entrance.ask("POST", "/predict", given, body)


FORMS = {
    "[T]": GOOD,
    "[C][T]": [GOOD],
    "[N][C][T]": [[GOOD]],
}


@pytest.mark.parametrize("inputs", FORMS.values(), ids=FORMS.keys())
def test_one_strip(entrance: Entrance, keys: Keys, inputs: Any) -> None:
    reply = predict(entrance, keys, predict_body(inputs), **{"x-request-id": "my-id.1"})

    assert reply.status == 200, reply
    assert reply.headers["x-request-id"] == reply.json["request_id"] == "my-id.1"
    assert set(reply.json) == {"model", "runtime", "licence", "request_id", "predictions"}
    (found,) = reply.json["predictions"]
    assert found["status"] == "ok"
    assert isinstance(found["outputs"]["score"], float)
    assert len(found["outputs"]["timeline"]) == 2
    assert set(found["receipt"]) == {"log", "index", "leaf", "opening_key"}


@pytest.mark.parametrize("nested", [False, True], ids=["[N][T]", "[N][C][T]"])
def test_several_strips_with_an_error_each(entrance: Entrance, keys: Keys, *, nested: bool) -> None:
    strips: list[Any] = [GOOD, FLAT, FAILING, LONG, CLIPPED, OTHER]
    alone = [predict(entrance, keys, predict_body(strip)).json["predictions"][0]["outputs"] for strip in (GOOD, OTHER)]

    reply = predict(entrance, keys, predict_body([[strip] for strip in strips] if nested else strips))

    assert reply.status == 200, reply
    found = reply.json["predictions"]
    states = ["ok", "not_interpretable", "error", "error", "not_interpretable", "ok"]
    assert [one["status"] for one in found] == states
    assert [one["error"]["code"] for one in found if "error" in one] == [
        "not-interpretable", "backend-failed", "invalid-input", "not-interpretable",
    ]  # fmt: skip
    assert np.allclose([found[0]["outputs"]["score"], found[5]["outputs"]["score"]], [one["score"] for one in alone])
    assert ["receipt" in one for one in found] == [True, True, False, False, True, True]
    indices = [one["receipt"]["index"] for one in found if "receipt" in one]
    assert len(set(indices)) == 4


@pytest.mark.parametrize(
    ("inputs", "code"),
    [(FAILING, "backend-failed"), (LONG, "invalid-input"), ([LONG], "invalid-input")],
)
def test_one_strip_in_error_is_that_error(entrance: Entrance, keys: Keys, inputs: Any, code: str) -> None:
    check_refusal(predict(entrance, keys, predict_body(inputs)), code)


def test_one_strip_that_cannot_be_interpreted_is_an_answer(entrance: Entrance, keys: Keys) -> None:
    reply = predict(entrance, keys, predict_body(FLAT))

    assert reply.status == 200
    (found,) = reply.json["predictions"]
    assert found["error"] == {"code": "not-interpretable", "detail": "flat signal on lead II"}
    assert "outputs" not in found
    assert "receipt" in found


def test_a_strip_that_is_too_short_is_an_answer_too(entrance: Entrance, keys: Keys) -> None:
    reply = predict(entrance, keys, predict_body([GOOD, GOOD[:-2]]))

    good, short = reply.json["predictions"]
    assert good["status"] == "ok"
    assert short["error"]["code"] == "not-interpretable"
    assert short["error"]["detail"] == "short signal: 0.024 s of the 0.032 s that the model takes"
    assert "receipt" in short


def test_several_strips_all_in_error_still_name_the_model(entrance: Entrance, keys: Keys) -> None:
    reply = predict(entrance, keys, predict_body([LONG, LONG]))

    assert reply.status == 200
    assert [one["status"] for one in reply.json["predictions"]] == ["error", "error"]
    assert (reply.json["model"]["name"], reply.json["licence"]) == ("ecg-anomaly", "valid")


def test_the_model_may_be_left_out_if_only_one_is_meant(entrance: Entrance, keys: Keys) -> None:
    body = predict_body(GOOD, model=None)

    reply = entrance.ask("POST", "/predict", {**bearer(keys.golden), "content-type": "application/json"}, body)
    assert reply.json["model"]["name"] == "ecg-anomaly"
    check_refusal(predict(entrance, keys, body), "malformed-request")


MISMATCHES: list[dict[str, Any]] = [
    {"sampling_rate": 500},
    {"sampling_rate": 250.0001},
    {"sampling_rate": 0},
    {"sampling_rate": -250},
    {"sampling_rate": None},
    {"unit": "uV"},
    {"unit": "MV"},
    {"unit": ""},
    {"unit": None},
    {"leads": []},
    {"leads": ["V1"]},
    {"leads": ["ii"]},
    {"leads": ["II", "II"]},
    {"leads": ["x" * 400] * 100},
    {"leads": None},
]


@pytest.mark.parametrize("changes", MISMATCHES, ids=lambda changes: str(changes)[:40])
def test_what_is_declared_must_be_what_the_model_was_made_for(
    entrance: Entrance, keys: Keys, changes: dict[str, Any]
) -> None:
    reply = predict(entrance, keys, predict_body(GOOD, **changes))

    check_refusal(reply, "contract-mismatch")
    assert reply.json["hint"]
    assert len(reply.body) < 2000


@pytest.mark.parametrize("lead", ["II", "MLII"])
def test_every_name_of_a_lead_is_taken(entrance: Entrance, keys: Keys, lead: str) -> None:
    assert predict(entrance, keys, predict_body(GOOD, leads=[lead])).status == 200


@pytest.mark.parametrize("name", ["missing", "ECG-ANOMALY", "ecg-anomaly\n", "../x", "", "x" * 10_000, "\u0000"])
def test_predicting_with_an_unknown_model(entrance: Entrance, keys: Keys, name: str) -> None:
    reply = predict(entrance, keys, predict_body(GOOD, model=name))
    check_refusal(reply, "unknown-model")
    assert len(reply.body) < 1000

    given = {**bearer(keys.other), "content-type": "application/json"}
    check_refusal(entrance.ask("POST", "/predict", given, predict_body(GOOD, model=name)), "forbidden")


def test_permission_comes_before_the_body(entrance: Entrance, keys: Keys) -> None:
    for credential, code in (("none", "unauthenticated"), ("idle", "forbidden")):
        headers = {**bearer(token(keys, credential)), "content-type": "application/json"}
        check_refusal(entrance.ask("POST", "/predict", headers, b"{" * 1000), code)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc.DEF_1-2", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("x" * 10_000, False),
        ("with space", False),
        ("é", False),
        ("", False),
        ("a,b", False),
        ("<script>", False),
    ],
)
def test_a_request_id_is_echoed_only_if_it_is_one(entrance: Entrance, given: str, *, kept: bool) -> None:
    reply = entrance.ask("GET", "/livez", {"x-request-id": given})

    assert (reply.headers["x-request-id"] == given) is kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", reply.headers["x-request-id"])


# --- errors as words --------------------------------------------------------------------------------------------------

ABOUT_REQUESTS = (errors.RequestError, errors.AuthError, errors.InferenceError)
FROM_THE_ENGINE = (errors.AuditUnavailable, errors.LicenceExpired, errors.LicenceNotYetValid)


def reachable() -> set[str]:
    """Codes that a caller may get: of the request, and the few that concern every request."""
    return {
        code
        for code, kind in errors.leaves().items()
        if kind is not errors.Cancelled and (issubclass(kind, ABOUT_REQUESTS) or kind in FROM_THE_ENGINE)
    }  # nobody is there any more to hear of what was cancelled


def test_each_code_that_a_caller_may_get_has_a_status_and_stands_on_the_page() -> None:
    assert set(problems.STATUS) == reachable()
    section = PAGE[PAGE.index("**Errors**: 400") : PAGE.index("## `GET /v2/models/{name}`")]
    documented = {}
    for status, codes in re.findall(r"(\d{3})((?:,?\s*`[a-z-]+`(?:\s*\([^)]*\))?)+)", section):
        documented |= dict.fromkeys(re.findall(r"`([a-z-]+)`", codes.replace("`Retry-After`", "")), int(status))

    # not-interpretable is an answer of /predict, so the list of its errors does not have it
    statuses = {code: status for code, status in problems.STATUS.items() if code != "not-interpretable"}
    assert documented == {**statuses, "internal-error": 500}


@pytest.mark.parametrize("code", sorted({*errors.leaves(), "error"} - set(problems.STATUS)))
@pytest.mark.parametrize("v2", [False, True])
def test_any_other_error_says_nothing(code: str, *, v2: bool) -> None:
    error = errors.from_code(code, "/etc/pericard/identity.key: holds sk-secret", "look into /var/lib/pericard")

    found = problems.response(error, request_id="r-1", v2=v2)

    assert found.status == 500
    text = json.dumps(dict(found.headers)) + found.body.decode()
    for word in ("identity", "secret", "/var", code if code != "error" else "sk-"):
        assert word not in text
    assert "internal-error" in text


def test_errors_that_pass_have_a_retry_time() -> None:
    for code, seconds in {
        "overloaded": "1",
        "engine-away": "1",
        "model-not-ready": "5",
        "audit-unavailable": "5",
    }.items():
        headers = problems.response(errors.from_code(code, "x"), request_id="r").headers
        assert headers["retry-after"] == seconds


@pytest.mark.parametrize("place", ["quick.Reader.read", "predict.Said.text"])  # before the engine, and behind it
def test_a_mistake_of_ours_says_nothing_and_is_logged_without_data(
    wide: Door, keys: Keys, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, entrance: Entrance,
    place: str,
) -> None:  # fmt: skip
    def broken(*_: object, **__: object) -> None:
        raise ValueError("patient Jane Doe at /var/lib/secret")

    monkeypatch.setattr(f"pericard.edge.{place}", broken)
    with caplog.at_level(logging.DEBUG):
        reply = predict(entrance, keys, predict_body(GOOD))

    assert (reply.status, reply.code) == (500, "internal-error")
    assert b"Jane" not in reply.body
    assert "Jane" not in caplog.text
    assert "ValueError in broken" in caplog.text


def test_a_refusal_of_a_known_caller_is_recorded_and_of_a_stranger_counted(
    entrance: Entrance, keys: Keys, engine: Engine
) -> None:
    import time

    from pericard.audit import records

    directory = Path(engine._log._directory)
    first = engine._log.next_index
    entrance.ask("GET", "/metrics")
    entrance.ask("GET", "/metrics", {**bearer(keys.idle), "x-request-id": "seen-1"})
    found: list[dict[str, Any]] = []
    end = time.monotonic() + 5
    while not found and time.monotonic() < end:
        found = [dict(record) for _, record in records(directory, first) if record.get("request") == "seen-1"]
        time.sleep(0.01)

    (record,) = found
    assert (record["event"], record["code"], record["principal"]) == ("refused", "forbidden", "idle")
    assert not [one for _, one in records(directory, first) if one.get("code") == "unauthenticated"]
    assert keys.idle not in str(record)


# --- the golden pairs -------------------------------------------------------------------------------------------------

PAIRS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests/vectors/http").rglob("*.json"))}


def same_shape(found: Any, golden: Any, where: str = "body") -> None:
    """The same fields and kinds of values; ``hint`` may be there or not."""
    if isinstance(golden, dict):
        assert isinstance(found, dict), where
        assert set(found) - {"hint"} == set(golden) - {"hint"}, where
        for name in set(golden) & set(found):
            same_shape(found[name], golden[name], f"{where}.{name}")
    elif isinstance(golden, list):
        assert isinstance(found, list), where
        assert len(found) == len(golden), where
        for place, (one, other) in enumerate(zip(found, golden, strict=True)):
            same_shape(one, other, f"{where}[{place}]")
    elif isinstance(golden, bool) or not isinstance(golden, int | float):
        assert type(found) is type(golden), where
    else:
        assert isinstance(found, int | float), where
        assert not isinstance(found, bool), where


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_golden_pairs(entrance: Entrance, alone: Door, full: Door, keys: Keys, pair: dict[str, Any]) -> None:
    asked, wanted = pair["request"], pair["response"]
    way = {"not-ready": alone, "predict-overloaded": full}.get(pair["name"])
    where = way.entrances[entrance.name] if way else entrance
    headers = {name: value.replace("golden-token", keys.golden) for name, value in asked["headers"].items()}
    body = b"" if asked["body"] is None else json.dumps(asked["body"], separators=(",", ":")).encode()

    reply = where.ask(asked["method"], asked["path"], headers, body)

    assert reply.status == wanted["status"], reply
    assert {name: reply.headers.get(name) for name in wanted["headers"]} == wanted["headers"]
    same_shape(reply.json, wanted["body"])
    assert (reply.code or "ok") == pair["expect"] or pair["expect"] == "ok"
    for fixed in ("type", "title", "status", "code", "request_id", "id", "model_name", "model_version"):
        if fixed in wanted["body"]:
            assert reply.json[fixed] == wanted["body"][fixed]
    if "model_name" in wanted["body"]:
        assert len(json.loads(reply.json["parameters"]["receipts"])) == wanted["body"]["outputs"][0]["shape"][0]
        for one, golden in zip(reply.json["outputs"], wanted["body"]["outputs"], strict=True):
            assert {**one, "data": []} == {**golden, "data": []}
    if "predictions" in wanted["body"]:
        for one, golden in zip(reply.json["predictions"], wanted["body"]["predictions"], strict=True):
            assert one["status"] == golden["status"]
            assert one.get("error", {}).get("code") == golden.get("error", {}).get("code")


def test_there_are_golden_pairs() -> None:
    assert len(PAIRS) >= 14
