"""The description and the thing described agree."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from api_server import ALICE, Running
from litestar.routes import HTTPRoute
from schemathesis.checks import CHECKS

from api.openapi import OPERATIONS


def test_every_route_is_described_and_nothing_else(api: Running) -> None:
    """The operations are the route table."""
    routes = {
        (method.lower(), route.path_format)
        for route in api.api.litestar.routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method != "OPTIONS"
    }
    assert {(operation.method, operation.path) for operation in OPERATIONS} == routes


def test_the_examples_are_true(api: Running) -> None:
    """The example requests are accepted, and answers have exactly the fields that the examples show."""
    described = api.http.get("/openapi.json").json()
    submit = described["paths"]["/v1/jobs"]["post"]
    example = submit["requestBody"]["content"]["application/json"]["example"]
    response = api.call("POST", "/v1/jobs", json=example, headers={"Prefer": "wait=20"})
    assert response.status_code == 200
    assert response.json().keys() == submit["responses"]["200"]["content"]["application/json"]["example"].keys()
    infer = described["paths"]["/v2/models/{model}/infer"]["post"]
    example = infer["requestBody"]["content"]["application/json"]["example"]
    response = api.call("POST", "/v2/models/digits/infer", json=example)
    assert response.json().keys() == infer["responses"]["200"]["content"]["application/json"]["example"].keys()


def test_the_page_loads_nothing(api: Running) -> None:
    """/docs is whole in itself: no script, no style sheet, no image from anywhere."""
    page = api.http.get("/docs").text
    assert "POST /v1/jobs" in page
    assert "src=" not in page
    assert "<link" not in page


# That rows fit a model and that an id exists is beyond a schema, so accepted is not what valid data must be.
_BEYOND_SCHEMAS = ("positive_data_acceptance",)


@pytest.mark.timeout(120)
def test_schemathesis_finds_nothing(api: Running) -> None:
    """Generated requests, good and bad, get only described answers, and never a 500."""
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    checks = [check for check in CHECKS.get_all() if check.__name__ not in _BEYOND_SCHEMAS]
    settings = hypothesis.settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    for found in schema.get_all_operations():
        operation = found.ok()
        modes = schemathesis.GenerationMode
        for mode in (modes.POSITIVE, modes.NEGATIVE):
            run(operation, mode, settings, checks)


def run(operation: Any, mode: Any, settings: Any, checks: list[Any]) -> None:
    """Send generated requests of one operation and check the answers."""

    @settings
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def sends(case: Any) -> None:
        case.call_and_validate(checks=checks, headers={"Authorization": f"Bearer {ALICE}"})

    try:
        sends()
    except hypothesis.errors.Unsatisfiable:
        return  # nothing about this operation can be wrong


def test_the_document_is_json(api: Running) -> None:
    """/openapi.json parses and says 3.1."""
    assert json.loads(api.http.get("/openapi.json").content)["openapi"].startswith("3.1")
