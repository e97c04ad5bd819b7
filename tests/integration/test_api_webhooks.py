"""/v1/webhooks, and the `webhook` of jobs, batches and schedules: over HTTP, the SDK and the command line."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import ALICE, BOB, READER, ROW, SUBMITTER, Running, running_api
from cli_runner import Run, runner

from api.openapi_schedules import SCHEDULE
from batchline.client import AsyncClient, Client
from batchline.errors import EndpointDisabledError, InvalidRequestError
from batchline.webhook import parse_endpoint_id, parse_message_id

URL = "https://example.com/hook"
DELIVERIES, ENDPOINTS = "/v1/webhooks/deliveries", "/v1/webhooks/endpoints"
DATA_SET = {"model": "digits", "input": {"rows": [ROW]}}


@pytest.fixture
def api(database_url: str, redis_url: str) -> Iterator[Running]:
    with running_api(database_url, redis_url, webhook_allow="10.0.0.0/8") as running:
        yield running


@pytest.fixture
def client(api: Running) -> Iterator[Client]:
    with Client(api.url, ALICE) as client:
        yield client


def told(api: Running, **webhook: object) -> str:
    """The id of a job that has been cancelled, and asked for a message."""
    job_id = api.submit(webhook={"url": URL} | webhook).json()["id"]
    assert api.call("POST", f"/v1/jobs/{job_id}/cancel").status_code == 200
    return job_id


def test_a_job_shows_its_webhook_where_it_has_one(api):
    """In every answer and in lists; another shows no such field."""
    wanted = {"url": URL, "events": ["job.failed"]}
    shown = api.submit(webhook=wanted)
    assert (shown.status_code, shown.json()["webhook"]) == (202, wanted)
    assert api.call("GET", f"/v1/jobs/{shown.json()['id']}").json()["webhook"] == wanted
    assert "webhook" not in api.submit().json()
    assert [job.get("webhook") for job in api.call("GET", "/v1/jobs").json()["data"]] == [None, wanted]
    allowed = api.submit(webhook={"url": "http://10.1.2.3:8080/x"})
    assert (allowed.status_code, allowed.json()["webhook"]) == (202, {"url": "http://10.1.2.3:8080/x", "events": []})
    assert "webhook" not in api.submit(webhook=None).json()


@pytest.mark.parametrize(
    ("webhook", "pointer", "detail"),
    [
        ({"url": "ftp://example.com"}, "/webhook/url", "https://"),
        ({"url": "http://127.0.0.1/x"}, "/webhook/url", "BATCHLINE_WEBHOOK_ALLOW"),
        ({"url": "https://u:p@example.com"}, "/webhook/url", "password"),
        ({"url": f"https://example.com/{'x' * 2048}"}, "/webhook/url", "2048"),
        ({"url": "https://example.com/\0"}, "/webhook/url", "percent"),
        ({"url": URL, "events": ["batch.completed"]}, "/webhook/events/0", "job.succeeded, job.failed"),
        ({"url": URL, "events": ["job.failed", "job.failed"]}, "/webhook/events/1", "twice"),
        ({"url": URL, "events": "job.failed"}, "/webhook/events", "array"),
        ({"url": URL, "secret": "x"}, "/webhook/secret", "unknown field"),
        ({"events": []}, "/webhook/url", "missing"),
        (URL, "/webhook", "object"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_where_it_stands(api, webhook, pointer, detail):
    """422 of a job; of a batch in OpenAI's words; nothing is stored."""
    refused = api.submit(webhook=webhook)
    (fault,) = refused.json()["errors"]
    assert (refused.status_code, fault["pointer"]) == (422, pointer)
    assert detail in fault["detail"]
    refused = api.call("POST", "/v1/batches", json=DATA_SET | {"webhook": webhook})
    if not pointer.startswith("/webhook/events/"):
        assert (refused.status_code, refused.json()["error"]["errors"][0]["pointer"]) == (400, pointer)
    assert api.jobs() == 0


def test_batches_of_both_kinds_and_schedules_take_a_webhook(api):
    """A job's event is none of a batch; a schedule's batch is checked when the schedule is made."""
    wanted = {"url": URL, "events": ["batch.failed"]}
    data_set = api.call("POST", "/v1/batches", json=DATA_SET | {"webhook": wanted})
    assert (data_set.status_code, data_set.json()["webhook"]) == (200, wanted)
    form = {"files": {"file": ("in.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    file_id = api.call("POST", "/v1/files", **form).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/jobs", "completion_window": "24h"}
    assert api.call("POST", "/v1/batches", json=body | {"webhook": wanted}).json()["webhook"] == wanted
    assert "webhook" not in api.call("POST", "/v1/batches", json=body).json()
    shown = [batch.get("webhook") for batch in api.call("GET", "/v1/batches").json()["data"]]
    assert shown == [None, wanted, wanted]
    wrong = wanted | {"events": ["job.failed"]}
    for given in (body, DATA_SET):
        refused = api.call("POST", "/v1/batches", json=given | {"webhook": wrong}).json()["error"]
        assert refused["param"] == "webhook.events.0"
        assert "batch.completed" in refused["message"]
    refused = api.call("POST", "/v1/schedules", json=SCHEDULE | {"batch": DATA_SET | {"webhook": wrong}})
    assert [e["pointer"] for e in refused.json()["errors"]] == ["/batch/webhook/events/0"]
    made = api.call("POST", "/v1/schedules", json=SCHEDULE | {"batch": DATA_SET | {"webhook": wanted}}).json()
    run = api.call("POST", f"/v1/schedules/{made['id']}/run").json()
    assert api.call("GET", f"/v1/batches/{run['batch_id']}").json()["webhook"] == wanted


def test_deliveries_are_listed_read_and_replayed(api):
    """By page, status and event; one shows its attempts; a replay is 202 and due at once."""
    jobs = [told(api) for _ in range(3)]
    page = api.call("GET", f"{DELIVERIES}?limit=2&event=job.cancelled&status=pending").json()
    assert ([d["subject_id"] for d in page["data"]], page["has_more"]) == (jobs[:0:-1], True)
    rest = api.call("GET", f"{DELIVERIES}?after={page['last_id']}").json()
    assert ([d["subject_id"] for d in rest["data"]], rest["has_more"]) == (jobs[:1], False)
    one = f"{DELIVERIES}/{rest['first_id']}"
    assert api.call("GET", one).json() == rest["data"][0] | {"attempts": []}
    for due in api.store.webhooks.take_due(limit=9, per_endpoint=9, lease_s=30.0):
        failure = {"status_code": 500, "error": "answered 500", "duration_ms": 7}
        api.store.webhooks.failed(due.id, 1, again_in_s=None, **failure)
    shown = api.call("GET", one).json()
    assert (shown["status"], shown["next_attempt_at"], shown["attempt_count"]) == ("failed", None, 1)
    assert {"nth": 1, "status_code": 500, "error": "answered 500"}.items() <= shown["attempts"][0].items()
    assert api.call("POST", f"{one}/replay", READER).status_code == 403
    again = api.call("POST", f"{one}/replay", SUBMITTER)
    assert (again.status_code, again.json()["status"], again.json()["ended_at"]) == (202, "pending", None)
    assert len(api.store.webhooks.take_due(limit=9, per_endpoint=9, lease_s=30.0)) == 1
    for query, parameter in (
        ("status=sent", "/status"),
        ("event=x", "/event"),
        ("after=job_1", "/after"),
        ("q=1", "/q"),
    ):
        refused = api.call("GET", f"{DELIVERIES}?{query}")
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, parameter)
    assert api.call("GET", DELIVERIES, BOB).json()["data"] == []


def test_a_disabled_endpoint_is_shown_and_enabled(api):
    """Until then its deliveries are `disabled`, and none is replayed."""
    told(api)
    (endpoint,) = api.call("GET", ENDPOINTS, READER).json()["data"]
    assert (endpoint["url"], endpoint["enabled"], endpoint["disabled_why"]) == (URL, True, None)
    api.store.webhooks.disable(parse_endpoint_id(endpoint["id"]), "It answered 410: gone.")
    (endpoint,) = api.call("GET", ENDPOINTS).json()["data"]
    assert (endpoint["enabled"], endpoint["disabled_why"]) == (False, "It answered 410: gone.")
    (message,) = api.call("GET", f"{DELIVERIES}?status=disabled").json()["data"]
    replay = f"{DELIVERIES}/{message['id']}/replay"
    refused = api.call("POST", replay)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:batchline:error:endpoint_disabled")
    assert endpoint["id"] in refused.json()["detail"]
    enable = f"{ENDPOINTS}/{endpoint['id']}/enable"
    assert (api.call("POST", enable, READER).status_code, api.call("POST", enable, BOB).status_code) == (403, 404)
    assert api.call("POST", enable).json()["enabled"] is True
    assert api.call("POST", replay).status_code == 202
    assert api.call("GET", ENDPOINTS, BOB).json() == {
        "data": [], "first_id": None, "last_id": None, "has_more": False, "object": "list",
    }  # fmt: skip


def test_the_secret_is_for_those_who_submit(api):
    """A key that only reads could forge messages with it; each tenant has its own; nobody keeps the answer."""
    first = api.call("GET", "/v1/webhooks/secret", SUBMITTER)
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-store")
    assert first.json() == api.call("GET", "/v1/webhooks/secret").json()
    assert first.json()["secret"].startswith("whsec_")
    assert api.call("GET", "/v1/webhooks/secret", READER).status_code == 403
    assert api.call("POST", "/v1/webhooks/secret/rotate", READER).status_code == 403
    assert api.call("GET", "/v1/webhooks/secret", BOB).json()["secret"] != first.json()["secret"]
    second = api.call("POST", "/v1/webhooks/secret/rotate", SUBMITTER).json()
    assert (second["previous"], second["previous_until"] is None) == (first.json()["secret"], False)
    assert api.call("POST", "/v1/webhooks/secret/rotate").json() == second


def test_the_sdk_has_all_of_it(api, client):
    """With and without await."""
    job = client.cancel(client.submit("digits", [ROW], webhook=URL))
    plain = client.submit("digits", [ROW])
    assert job.webhook is not None
    assert (job.webhook.url, plain.webhook) == (URL, None)
    only = client.submit("digits", [ROW], webhook={"url": URL, "events": ["job.failed"]})
    client.cancel(only)
    with pytest.raises(InvalidRequestError) as refused:
        client.submit("digits", [ROW], webhook="nowhere")
    assert refused.value.faults[0].pointer == "/webhook/url"
    batch = client.batch("digits", [ROW], webhook={"url": URL})
    assert batch.info.webhook is not None
    (delivery,) = client.webhooks.deliveries(status="pending", event="job.cancelled")
    assert client.webhooks.get(delivery.id).subject_id == job.id
    (endpoint,) = client.webhooks.endpoints()
    api.store.webhooks.disable(parse_endpoint_id(endpoint.id), "gone")
    with pytest.raises(EndpointDisabledError):
        client.webhooks.replay(delivery.id)

    async def rest() -> None:
        other = AsyncClient(api.url, ALICE)
        assert (await other.webhooks.enable(endpoint.id)).enabled
        assert (await other.webhooks.replay(delivery.id)).status == "pending"
        assert (await other.webhooks.deliveries()) == client.webhooks.deliveries()
        assert (await other.webhooks.secret()) == client.webhooks.secret()
        assert (await other.webhooks.rotate()).previous is not None
        await other.close()

    asyncio.run(rest())


@pytest.fixture
def run(api: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    run = runner(tmp_path, monkeypatch, capfd)
    monkeypatch.setenv("BATCHLINE_URL", api.url)
    monkeypatch.setenv("BATCHLINE_API_KEY", ALICE)
    return run


def test_the_command_line_has_all_of_it(api, run, monkeypatch):
    """Ids and the secret alone on stdout; wrong usage is exit 2."""
    asked = ("--webhook", URL, "--event", "job.cancelled")
    code, out, _ = run("submit", "digits", "--rows", json.dumps([ROW]), *asked)
    job_id = out.strip()
    assert (code, run("cancel", job_id)[0]) == (0, 0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(ROW).encode() + b"\n")))
    made = run("batch", "create", "digits", "--input", "-", "--format", "jsonl", "--webhook", URL, "--json")
    assert json.loads(made[1])["webhook"] == {"url": URL, "events": []}
    assert run("submit", "digits", "--rows", "[]", "--event", "job.failed")[0] == 2
    (listed,) = json.loads(run("webhooks", "deliveries", "--status", "pending", "--json")[1])
    assert listed["subject_id"] == job_id
    for due in api.store.webhooks.take_due(limit=9, per_endpoint=9, lease_s=30.0):
        failure = {"status_code": None, "error": "refused", "duration_ms": 7}
        api.store.webhooks.failed(due.id, 1, again_in_s=9.0, **failure)
    shown = run("webhooks", "show", listed["id"])[1]
    assert all(word in shown for word in (listed["id"], job_id, URL, "next attempt", "refused"))
    assert job_id in run("webhooks", "deliveries")[1]
    api.store.webhooks.disable(parse_endpoint_id(listed["endpoint_id"]), "gone")
    code, _, err = run("webhooks", "replay", listed["id"])
    assert (code, "enable it" in err) == (1, True)
    assert "gone" in run("webhooks", "endpoints")[1]
    assert run("webhooks", "enable", listed["endpoint_id"])[0] == 0
    assert run("webhooks", "replay", listed["id"])[1].split() == [listed["id"], "pending"]
    assert api.store.webhooks.read(parse_message_id(listed["id"])).due_at is not None
    secret = run("webhooks", "secret")[1].strip()
    code, out, err = run("webhooks", "rotate")
    assert (code, out.strip() == secret, "signs too until" in err) == (0, False, True)
    assert json.loads(run("webhooks", "secret", "--json")[1])["previous"] == secret
