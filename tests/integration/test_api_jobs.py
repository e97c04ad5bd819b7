"""Jobs over HTTP: submit, wait, read, list, cancel, keys, idempotency."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import api_server
import pytest
import stack
from api_server import ALICE, BOB, READER, ROW, SUBMITTER, Running

from batchline.job import parse_id
from batchline.local.servers import PostgresServer, ValkeyServer
from batchline.store.catalogue import new_key


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    with stack.database_from(postgres.url, template) as url, api_server.running_api(url, valkey.url) as running:
        yield running


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.01)


def test_a_submit_is_answered_with_the_queued_job(api: Running) -> None:
    """202, Location, Retry-After, and the job as it stands, its place in the queue exact; a nudge follows."""
    first = api.submit(metadata={"k": "v"}, priority=3, version="1").json()
    response = api.submit([ROW, ROW], priority=4, version="1")
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(response.headers["retry-after"]) >= 1
    assert (job["object"], job["status"], job["model"], job["version"], job["rows"]) == (
        "job",
        "queued",
        "digits",
        "1",
        2,
    )
    assert job["queue"]["position"] == first["queue"]["position"] + 1
    assert job["row_counts"] == {"total": 2, "succeeded": 0, "failed": 0}
    assert job["outputs"] is None
    assert first["metadata"] == {"k": "v"}
    assert first["priority"] == 3
    assert datetime.fromisoformat(job["created_at"]).tzinfo is not None
    assert api.call("GET", f"/v1/jobs/{job['id']}").json()["id"] == job["id"]
    assert api.nudger.nudged


def test_waiting_brings_the_finished_job(api: Running, valkey: ValkeyServer) -> None:
    """With Prefer: wait the finished job comes with 200, long before the time is up; results pass through unread."""
    with api_server.fake_worker(api, valkey.url):
        started = time.monotonic()
        response = api.submit(headers={"Prefer": "wait=20"})
        assert response.status_code == 200
        assert response.headers["preference-applied"] == "wait=20"
        assert time.monotonic() - started < 5
        job = response.json()
        assert job["status"] == "succeeded"
        assert job["outputs"][0]["label"] == 7
        assert job["outputs"][0]["x"] == ROW
        assert job["row_counts"] == {"total": 1, "succeeded": 1, "failed": 0}
        assert job["queue"] is None
        assert job["finished_at"] >= job["created_at"]


def test_waiting_works_without_wake_ups(api: Running) -> None:
    """Wake-ups may be lost: the poll finds a finished job within its half second."""
    with api_server.fake_worker(api, "redis://127.0.0.1:1/0"):
        started = time.monotonic()
        assert api.submit(headers={"Prefer": "wait=20"}).status_code == 200
        assert time.monotonic() - started < 3


def test_a_wait_that_is_not_over_in_time_is_202(api: Running) -> None:
    """When the time is up the job comes as it stands."""
    response = api.submit(headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"
    read = api.call("GET", response.headers["location"], headers={"Prefer": "wait=1"})
    assert (read.status_code, read.json()["status"]) == (200, "queued")


def test_a_client_that_goes_away_frees_its_waiter(api: Running) -> None:
    """A disconnect ends the wait; the job stays."""
    job_id = api.submit().json()["id"]
    connection = socket.create_connection(("127.0.0.1", int(api.url.rsplit(":", 1)[1])))
    request = f"GET /v1/jobs/{job_id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nPrefer: wait=60\r\n\r\n"
    connection.sendall(request.encode())
    until(lambda: api.api.services.reads.waiters == 1)
    connection.close()
    until(lambda: api.api.services.reads.waiters == 0)
    assert api.call("GET", f"/v1/jobs/{job_id}").json()["status"] == "queued"


def test_failed_rows(api: Running, valkey: ValkeyServer) -> None:
    """A job whose rows all failed is failed, with its errors; under /v2 that is a 4xx."""
    with api_server.fake_worker(api, valkey.url, **api_server.FAILED):
        job = api.submit(headers={"Prefer": "wait=20"}).json()
        assert (job["status"], job["outputs"]) == ("failed", [None])
        assert job["errors"] == [{"row": 0, "code": "row_error", "message": "the row is odd"}]
        assert job["row_counts"] == {"total": 1, "succeeded": 0, "failed": 1}
        tensor = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}
        v2 = api.call("POST", "/v2/models/digits/infer", json={"inputs": [tensor]})
        assert v2.status_code == 400
        assert "row 0: the row is odd" in v2.json()["error"]


def test_version_may_be_a_number_or_an_alias(api: Running) -> None:
    """Absent, `production` and `latest` mean the highest version; a number means itself, as number or as text."""
    given: dict[object, str] = {None: "2", "production": "2", "latest": "2", 1: "1", "1": "1", "2": "2"}
    for version, want in given.items():
        assert api.submit(version=version).json()["version"] == want


def test_the_earlier_of_ttl_and_deadline_counts(api: Running) -> None:
    """ttl_s is a deadline relative to now; a deadline that has passed is refused."""
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    job = api.submit(ttl_s=60, deadline=later).json()
    assert 50 < (datetime.fromisoformat(job["deadline"]) - datetime.now(UTC)).total_seconds() <= 60
    past = api.submit(deadline="2020-01-01T00:00:00Z")
    assert (past.status_code, past.json()["errors"][0]["pointer"]) == (422, "/deadline")


def test_what_becomes_of_a_deadline(api: Running, valkey: ValkeyServer) -> None:
    """In time: not missed. Ended later: `deadline_missed`. Still queued then: expired, without outputs."""
    with api_server.fake_worker(api, valkey.url):
        done = api.submit(ttl_s=3600, headers={"Prefer": "wait=20"}).json()
    assert (done["status"], done["deadline_missed"]) == ("succeeded", False)
    mine = {"id": parse_id(done["id"])}
    api.store.db.run("UPDATE jobs SET deadline_at = finished_at - interval '1 ms' WHERE id = %(id)s", mine)
    late = api.call("GET", f"/v1/jobs/{done['id']}").json()
    assert (late["status"], late["deadline_missed"]) == ("succeeded", True)
    queued = api.submit(ttl_s=3600).json()
    mine = {"id": parse_id(queued["id"])}
    api.store.db.run("UPDATE jobs SET deadline_at = now() - interval '1 ms' WHERE id = %(id)s", mine)
    api.store.chores.expire()
    told = api.call("GET", f"/v1/jobs/{queued['id']}", headers={"Prefer": "wait=5"}).json()
    assert (told["status"], told["outputs"], told["deadline_missed"]) == ("expired", None, False)
    assert told["row_counts"] == {"total": 1, "succeeded": 0, "failed": 0}


def test_idempotency_in_its_four_cases(api: Running) -> None:
    """Same key and body: the first job. Other body: 422. Other tenant: another job. At once: one job."""
    headers = {"Idempotency-Key": "k-1"}
    first = api.submit(headers=headers).json()["id"]
    assert api.submit(headers=headers).json()["id"] == first
    reused = api.submit([ROW, ROW], headers=headers)
    assert (reused.status_code, reused.json()["type"]) == (422, "urn:batchline:error:idempotency_key_reused")
    assert api.submit(key=BOB, headers=headers).json()["id"] != first
    with ThreadPoolExecutor(8) as many:
        found = many.map(lambda _: api.submit(headers={"Idempotency-Key": "k-2"}).json()["id"], range(16))
    assert len(set(found)) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "grün".encode()])
def test_idempotency_keys_are_short_visible_ascii(api: Running, key: str | bytes) -> None:
    """Anything else is 400."""
    assert api.submit(headers={"Idempotency-Key": key}).status_code == 400


def test_cancel(api: Running, valkey: ValkeyServer) -> None:
    """A queued job is cancelled, again is the same answer, one that has ended otherwise is 409; waiters are told."""
    job_id = api.submit().json()["id"]
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(api.call, "GET", f"/v1/jobs/{job_id}", headers={"Prefer": "wait=30"})
        until(lambda: api.api.services.reads.waiters == 1)
        for _ in range(2):
            response = api.call("POST", f"/v1/jobs/{job_id}/cancel")
            assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        assert waiting.result().json()["status"] == "cancelled"
    with api_server.fake_worker(api, valkey.url):
        done = api.submit(headers={"Prefer": "wait=20"}).json()["id"]
    late = api.call("POST", f"/v1/jobs/{done}/cancel")
    assert (late.status_code, late.json()["type"]) == (409, "urn:batchline:error:already_ended")


def test_a_pruned_result_is_410(api: Running, valkey: ValkeyServer) -> None:
    """The job is known, its result is gone: result_expired."""
    with api_server.fake_worker(api, valkey.url):
        job_id = api.submit(headers={"Prefer": "wait=20"}).json()["id"]
    stack.query(api.database_url, "UPDATE jobs SET result_pruned = true WHERE id = %s", (str(parse_id(job_id)),))
    response = api.call("GET", f"/v1/jobs/{job_id}")
    assert (response.status_code, response.json()["type"]) == (410, "urn:batchline:error:result_expired")


def test_lists_are_paged_newest_first_and_filtered(api: Running) -> None:
    """`after` goes on where a page ended, filters narrow, and nobody sees another tenant's."""
    ids = [api.submit(key=BOB, version="1").json()["id"] for _ in range(5)]
    page = api.call("GET", "/v1/jobs?limit=2", BOB).json()
    assert [job["id"] for job in page["data"]] == [ids[4], ids[3]]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[4], ids[3], True)
    rest = api.call("GET", f"/v1/jobs?limit=3&after={ids[3]}&status=queued&model=digits", BOB).json()
    assert [job["id"] for job in rest["data"]] == [ids[2], ids[1], ids[0]]
    assert api.call("GET", "/v1/jobs?status=failed", BOB).json()["data"] == []
    assert api.call("GET", "/v1/jobs?model=words", BOB).json()["data"] == []
    alices = api.call("GET", "/v1/jobs?limit=100").json()["data"]
    assert not set(ids) & {job["id"] for job in alices}


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("limit=x", "/limit"),
        ("limit=9999999999999", "/limit"),
        ("status=done", "/status"),
        ("after=nix", "/after"),
        ("model=%00", "/model"),
        ("nix=1", "/nix"),
        ("limit=1&limit=2", ""),
    ],
)
def test_bad_queries(api: Running, query: str, pointer: str) -> None:
    """A parameter that does not fit is 422 and named."""
    response = api.call("GET", f"/v1/jobs?{query}")
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, pointer)


def test_keys_and_scopes(api: Running) -> None:
    """No key or an unknown one is 401, a key without the scope 403, a new key works at once, a revoked one not long."""
    for header in (
        {},
        {"Authorization": "Bearer nix"},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": "Bearer"},
    ):
        response = api.http.get("/v1/jobs", headers=header)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert api.submit(key=READER).status_code == 403
    assert api.call("GET", "/v1/jobs", READER).status_code == 200
    assert api.call("GET", "/v1/jobs", SUBMITTER).status_code == 403
    assert api.submit(key=SUBMITTER).status_code == 202
    key = new_key()
    api.store.catalogue.add_key(key, tenant="alice", name="new", scopes=("read",))
    assert api.call("GET", "/v1/jobs", key).status_code == 200
    stack.query(api.database_url, "UPDATE api_keys SET revoked_at = now() WHERE name = 'new'")
    until(lambda: api.call("GET", "/v1/jobs", key).status_code == 401, 8)


def test_models_workers_and_backlog(api: Running) -> None:
    """Models tell versions and signature; workers and backlog are for admins."""
    assert {m["id"] for m in api.call("GET", "/v1/models").json()["data"]} == {"digits", "typed", "free", "words"}
    model = api.call("GET", "/v1/models/digits").json()
    assert [v["version"] for v in model["versions"]] == ["1", "2"]
    assert model["versions"][0]["inputs"] == [{"name": "x", "dtype": "FP32", "shape": [64]}]
    assert api.call("GET", "/v1/models/nix").status_code == 404
    assert api.call("GET", "/v1/workers", READER).status_code == 403
    assert api.call("GET", "/v1/workers").json()["object"] == "list"
    until(lambda: api.call("GET", "/v1/backlog").json()["rows"] > 0)


def test_a_new_model_is_found_at_once(api: Running) -> None:
    """A miss asks the catalogue again, so an imported model need not wait for the next refresh."""
    api.store.catalogue.register_model(stack.a_spec("fresh", digest="b" * 64))
    until(lambda: api.call("GET", "/v1/models/fresh").status_code == 200, 1.0)
