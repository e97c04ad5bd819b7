"""What holds of every route, read off the route table: keys, and what other tenants see."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import api_server
import pytest
import stack
from api_server import ALICE, BOB, ROW, Running
from litestar.routes import HTTPRoute

from batchline.batch import show_batch_id, show_file_id, show_schedule_id
from batchline.job import new_job_id, show_id
from batchline.local.servers import PostgresServer, ValkeyServer
from batchline.store.batch_contract import ScheduleView
from batchline.webhook import show_endpoint_id, show_message_id

SHOW = {
    "job_id": show_id, "batch_id": show_batch_id, "file_id": show_file_id, "schedule_id": show_schedule_id,
    "message_id": show_message_id, "endpoint_id": show_endpoint_id,
}  # fmt: skip
NAMES = {"model": "digits", "version": "1"}
OPEN = {"/livez", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"}


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    with stack.database_from(postgres.url, template) as url, api_server.running_api(url, valkey.url) as running:
        yield running


def routes(api: Running) -> list[tuple[str, str]]:
    """Method and path of every route."""
    return [
        (method, route.path_format)
        for route in api.api.litestar.routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method != "OPTIONS"
    ]


def test_what_is_open_and_what_is_not(api: Running) -> None:
    """Every route but health, /v2 and the docs wants a key."""
    seen = set[str]()
    unknown = {name: show(new_job_id()) for name, show in SHOW.items()}
    for method, path in routes(api):
        response = api.http.request(method, path.format(**NAMES, **unknown))
        assert (response.status_code == 200) == (path in OPEN), path
        assert response.status_code in (200, 401), path
        seen.add(path)
    assert seen >= OPEN


def alices(api: Running) -> dict[str, str]:
    """The id of one thing of each kind that alice has."""
    form = {"files": {"file": ("in.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    schedule = ScheduleView(
        new_job_id(), tenant_of(api), "nightly", "0 2 * * *", "UTC", "{}", "none", "skip", True, datetime.now(UTC), None
    )  # fmt: skip
    api.store.schedules.add(schedule)
    told = api.submit(webhook={"url": "https://example.com/alice"}).json()["id"]
    api.call("POST", f"/v1/jobs/{told}/cancel")
    message = api.call("GET", "/v1/webhooks/deliveries").json()["data"][0]
    return {
        "message_id": message["id"],
        "endpoint_id": message["endpoint_id"],
        "job_id": api.submit().json()["id"],
        "file_id": api.call("POST", "/v1/files", **form).json()["id"],
        "batch_id": api.call("POST", "/v1/batches", json={"model": "digits", "input": {"rows": [ROW]}}).json()["id"],
        "schedule_id": show_schedule_id(schedule.id),
    }


def tenant_of(api: Running) -> int:
    principal = api.store.catalogue.find_key(ALICE)
    assert principal is not None
    return principal.tenant_id


def test_another_tenants_id_answers_as_an_unknown_one(api: Running) -> None:
    """On every route with an id, bob cannot tell what alice has from what nobody has, nor change it."""
    hers = alices(api)
    checked = set[str]()
    for method, path in routes(api):
        for name in (name for name in SHOW if f"{{{name}}}" in path):
            answers: list[tuple[int, str]] = []
            for wanted in (hers[name], SHOW[name](new_job_id()), "nix"):
                response = api.call(method, path.format(**{name: wanted}), BOB)
                answers.append((response.status_code, response.text.replace(wanted, "ID")))
            assert answers[0][0] == 404, (method, path, answers)
            assert answers[0] == answers[1] == answers[2], (method, path)
            checked.add(name)
    assert checked == set(SHOW)
    for name, path in (
        ("job_id", "jobs"),
        ("batch_id", "batches"),
        ("file_id", "files"),
        ("message_id", "webhooks/deliveries"),
    ):
        assert api.call("GET", f"/v1/{path}/{hers[name]}").status_code == 200
        assert hers[name] not in api.call("GET", f"/v1/{path}", BOB).text
    batch = api.call("GET", f"/v1/batches/{hers['batch_id']}").json()
    assert (batch["status"], batch["paused_at"]) == ("validating", None)


def test_another_tenants_file_is_no_input(api: Running) -> None:
    """A batch of bob's cannot be made of alice's file, and the answer is that of a file that is none."""
    bodies = [
        {"input_file_id": file_id, "endpoint": "/v1/jobs", "completion_window": "24h"}
        for file_id in (alices(api)["file_id"], show_file_id(new_job_id()))
    ]
    hers, unknown = (api.call("POST", "/v1/batches", BOB, json=body) for body in bodies)
    assert (hers.status_code, hers.json()) == (400, unknown.json())
