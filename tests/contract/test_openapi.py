"""The published OpenAPI document is what the application says, is valid, and describes what is really answered."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import serving
from entrances import Door, Keys, bearer, body_of, path_of, predict_body
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from pericard.edge import problems
from pericard.edge.answer import ROUTES
from pericard.edge.gate import OPEN

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs/spec/http-api.openapi.json"
DOCUMENT = json.loads(TARGET.read_text(encoding="utf-8"))
#: https://spec.openapis.org/oas/3.1/schema, by the OpenAPI Initiative, Apache-2.0; not changed.
STANDARD = json.loads((Path(__file__).parent / "openapi-3.1.schema.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/spec/http-api.md").read_text(encoding="utf-8")
OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_the_document_is_the_applications() -> None:
    spec = importlib.util.spec_from_file_location("generate_openapi", Path(__file__).with_name("generate_openapi.py"))
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)

    assert TARGET.read_text(encoding="utf-8") == generator.document(), "run make openapi"


def test_the_document_is_valid_openapi() -> None:
    errors = [error.message for error in Draft202012Validator(STANDARD).iter_errors(DOCUMENT)]

    assert errors == []
    assert not Draft202012Validator(STANDARD).is_valid({**DOCUMENT, "paths": {"no-slash": {}}})  # it does check


def test_each_schema_is_a_schema() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_each_reference_leads_somewhere() -> None:
    for reference in re.findall(r'"\$ref": "([^"]+)"', TARGET.read_text(encoding="utf-8")):
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_each_operation_has_a_name_of_its_own_and_declares_its_path() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for _, path, operation in OPERATIONS:
        declared = [one["name"] for one in operation.get("parameters", []) if one["in"] == "path"]
        assert sorted(declared) == sorted(re.findall(r"\{(\w+)\}", path))


def test_each_route_stands_in_the_document_and_on_the_page() -> None:
    assert sorted((method, path) for method, path, _ in OPERATIONS) == sorted(
        (route.method, route.path) for route in ROUTES
    )
    documented = page_routes()
    assert sorted((method, path) for method, path, _ in documented) == sorted(
        (route.method, route.path) for route in ROUTES
    )
    permissions = {(route.method, route.path): route.permission for route in ROUTES}
    for method, path, cell in documented:
        needed = permissions[method, path]
        assert cell.startswith("none" if needed == OPEN else f"`{needed}`"), (method, path)


def page_routes() -> list[tuple[str, str, str]]:
    """Method, path and permission of every route in the page's table, with its abbreviations written out."""
    table = PAGE[PAGE.index("## Routes") : PAGE.index("## `POST /predict`")]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    found: list[tuple[str, str, str]] = []
    for routes, permission in rows:
        method = path = ""
        for text in re.findall(r"`([^`]+)`", routes):
            verb, _, rest = text.rpartition(" ")
            method, path = verb or method, rest.replace("…", path.rpartition("/")[0])
            models = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}") if "{model}" in path else ("",)
            found += [(method, path.replace("{model}", model), permission.strip()) for model in models]
    return found


def test_each_operation_says_what_it_needs() -> None:
    permissions = {(route.method, route.path): route.permission for route in ROUTES}
    for method, path, operation in OPERATIONS:
        permission = permissions[method, path]
        assert operation["security"] == ([] if permission == OPEN else [{"bearer": []}])
        assert operation.get("x-permission", OPEN) == permission
        assert ("401" in operation["responses"]) == ("403" in operation["responses"]) == (permission != OPEN)


def test_each_status_of_an_error_stands_at_some_operation() -> None:
    # 405 is of no operation: no operation has that method
    found = {status for _, _, operation in OPERATIONS for status in operation["responses"]}

    assert {str(status) for status in problems.STATUS.values()} - {"405"} <= found


REGISTRY = Registry().with_resource("urn:pericard", Resource.from_contents({
    "$schema": "https://json-schema.org/draft/2020-12/schema", **DOCUMENT,
}))  # fmt: skip


def check(path: str, method: str, status: int, kind: str, value: Any) -> None:
    """Hold an answer against the schema that the document gives for it."""
    content = DOCUMENT["paths"][path][method.lower()]["responses"][str(status)]["content"]
    schema = json.loads(json.dumps(content[kind]["schema"]).replace('"#/', '"urn:pericard#/'))
    errors = [error.message for error in Draft202012Validator(schema, registry=REGISTRY).iter_errors(value)]
    assert errors == [], (path, value)


def closed(value: Any, name: str) -> None:
    """No field that the document does not know."""
    known = set(DOCUMENT["components"]["schemas"][name]["properties"])
    assert set(value) <= known, set(value) - known


def test_real_answers_are_what_the_document_says(wide: Door, alone: Door, keys: Keys) -> None:
    for route in ROUTES:
        target = path_of(route, "ecg-missing" if route.permission == "admin" else "ecg-anomaly")
        body = body_of(route)
        if route.path == "/predict":
            body = predict_body([serving.GOOD, serving.FLAT, serving.FAILING, serving.GOOD[:-1], [[]]])
        for door, key in ((wide, keys.good), (wide, keys.idle), (wide, None), (alone, keys.good)):
            headers = {**bearer(key), "content-type": "application/json"}
            reply = door.network.ask(route.method, target, headers, body)
            kind = reply.headers["content-type"].partition(";")[0]
            check(
                route.path,
                route.method,
                reply.status,
                kind,
                reply.body.decode() if kind == "text/plain" else reply.json,
            )
            if kind == "application/problem+json":
                closed(reply.json, "Problem")
            elif route.path == "/predict":
                closed(reply.json, "Answer")
                for one in reply.json["predictions"]:
                    closed(one, "Prediction")
            elif route.path == "/v2/models/{name}" and reply.status == 200:
                closed(reply.json, "Model")
                closed(reply.json["parameters"], "Parameters")


@pytest.mark.parametrize("path", sorted((ROOT / "tests/vectors/http").rglob("*.json")), ids=lambda path: path.stem)
def test_golden_pairs_are_what_the_document_says(path: Path) -> None:
    pair = json.loads(path.read_text(encoding="utf-8"))
    asked, answered = pair["request"], pair["response"]
    (route,) = [route for route in ROUTES if route.method == asked["method"] and route.pattern.fullmatch(asked["path"])]

    check(route.path, route.method, answered["status"], answered["headers"]["content-type"], answered["body"])
    if asked["body"] is not None:
        kind = "Question" if route.path == "/predict" else "InferQuestion"
        schema = {"$ref": f"urn:pericard#/components/schemas/{kind}"}
        assert Draft202012Validator(schema, registry=REGISTRY).is_valid(asked["body"])
