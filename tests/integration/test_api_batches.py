"""Batches over HTTP: both kinds, their life, their results, retries."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import api_server
import batch_stack
import msgspec
import pytest
import stack
from api_server import BOB, READER, ROW, SUBMITTER, Running

from batchline.batch import BatchFault, BatchStatus, DataSet, parse_batch_id, parse_file_id
from batchline.job import Lane
from batchline.local.servers import PostgresServer, ValkeyServer
from batchline.store.batch_contract import Chunk


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    with (
        stack.database_from(postgres.url, template) as url,
        api_server.running_api(url, valkey.url, data_roots="/data", databases="shop=postgresql://h/shop") as running,
    ):
        yield running


def data_set(**fields: Any) -> dict[str, Any]:
    return {"model": "digits", "input": {"rows": [ROW, ROW]}} | fields


def create(api: Running, body: Any = None, **more: Any) -> Any:
    return api.call("POST", "/v1/batches", json=data_set() if body is None else body, **more)


def upload(api: Running, content: bytes = b"{}\n") -> str:
    form = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": "batch"}}
    return api.call("POST", "/v1/files", **form).json()["id"]


def requests(api: Running, **fields: Any) -> dict[str, Any]:
    return {"input_file_id": upload(api), "endpoint": "/v1/jobs", "completion_window": "24h"} | fields


def read(api: Running, batch_id: str) -> Any:
    return api.call("GET", f"/v1/batches/{batch_id}").json()


def move(api: Running, batch_id: str, name: str, **more: Any) -> Any:
    return api.call("POST", f"/v1/batches/{batch_id}/{name}", **more)


def model_id(api: Running) -> int:
    return next(r.id for r in api.store.catalogue.models() if r.spec.ref == "digits@2")


def plan(api: Running, batch_id: str, sizes: list[int]) -> uuid.UUID:
    """Plan every batch that waits for it; this one with slices of so many rows, the others with none."""
    wanted = parse_batch_id(batch_id)
    while (found := api.store.batches.take_to_plan(batch_stack.HOLDER, lease_s=30.0)) is not None:
        slices = batch_stack.slices_of(found.id, sizes if found.id == wanted else [])
        api.store.batches.plan(batch_stack.HOLDER, found.id, slices, model_id=model_id(api), note="{}")
    return wanted


def work(api: Running, *, lines: bool = True, failed: int = 0, count: int = 1) -> None:
    """Finish so many slices, the first `failed` rows of each as failed."""
    worker = stack.a_worker(api.store)
    for job in batch_stack.claimed(api.store, worker, model_id(api), count):
        found = api.store.slices.work(job)
        assert found is not None
        if lines:
            first = msgspec.json.decode(job.payload)["first_row"]
            text = b"".join(b'{"row":%d,"label":7}\n' % (first + n) for n in range(job.rows))
            api.store.results.write(job.id, job.attempt, [Chunk(first, job.rows, text)])
        assert api.store.slices.finish(worker, batch_stack.finished(job, failed=list(range(failed))))


def end(api: Running, batch_id: uuid.UUID, status: BatchStatus = BatchStatus.COMPLETED) -> None:
    """End this batch, and the empty ones that wait for the same."""
    while (found := api.store.batches.take_to_end(batch_stack.HOLDER, lease_s=30.0)) is not None:
        ended = status if found.id == batch_id else BatchStatus.COMPLETED
        assert api.store.batches.end(batch_stack.HOLDER, found.id, ended)


def test_a_data_set_of_inline_rows(api: Running) -> None:
    """The batch is validating, the version is a number, and its rows are a file that may be read."""
    response = create(api, data_set(metadata={"k": "v"}, priority=2, error_threshold=0.1, ttl_s=3600))
    assert response.status_code == 200
    batch = response.json()
    assert (batch["object"], batch["status"], batch["model"], batch["version"]) == (
        "batch",
        "validating",
        "digits",
        "2",
    )
    assert (batch["metadata"], batch["priority"], batch["error_threshold"]) == ({"k": "v"}, 2, 0.1)
    assert batch["expires_at"] - batch["created_at"] in (3599, 3600, 3601)
    assert batch["input"] == {"format": "jsonl"}
    content = api.call("GET", f"/v1/files/{batch['input_file_id']}/content").text
    assert [json.loads(line) for line in content.splitlines()] == [ROW, ROW]
    assert read(api, batch["id"]) == batch
    assert api.call("GET", f"/v1/files/{batch['input_file_id']}").json()["purpose"] == "user_data"


def test_a_data_set_elsewhere(api: Running) -> None:
    """What was asked is shown again, as it was understood."""
    body = data_set(
        input={"table": "users", "key": "id", "where": [["id", ">", 7]]},
        output={"uri": "file:///data/out/", "format": "csv", "keep": ["name"]},
    )
    batch = create(api, body).json()
    assert batch["input"] == body["input"] | {"database": "shop"}
    assert batch["output"] == body["output"]
    assert batch["input_file_id"] is None


def test_a_file_of_requests(api: Running) -> None:
    """The window is the deadline, the file is named, and nothing of a data set is shown."""
    body = requests(api)
    batch = create(api, body).json()
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/jobs", "24h")
    assert batch["input_file_id"] == body["input_file_id"]
    assert batch["expires_at"] - batch["created_at"] == 86400
    assert (batch["input"], batch["output"], batch["model"]) == (None, None, None)


def test_refusals_are_openais(api: Running) -> None:
    """400 with the parameter in dots and a code, 404 for a model that is none; every fault with its pointer."""
    missing = create(api, {"input_file_id": upload(api), "completion_window": "24h"})
    error = missing.json()["error"]
    assert (missing.status_code, error["code"], error["param"]) == (400, "missing_required_parameter", "endpoint")
    assert error["message"] == "Missing required parameter: 'endpoint'."
    unknown = create(api, data_set(nix=1)).json()["error"]
    assert (unknown["code"], unknown["param"]) == ("unknown_parameter", "nix")
    odd = create(api, data_set(input={"uri": "file:///etc/x.csv"}, output={"table": "t"}))
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "input.uri")
    assert [e["pointer"] for e in odd.json()["error"]["errors"]] == ["/input/uri", "/output/mode"]
    model = create(api, data_set(model="nix"))
    assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")
    assert create(api, headers={"Content-Type": "text/plain"}).status_code == 415


def test_the_same_key_is_the_same_batch(api: Running) -> None:
    """Once, whatever came inline; with another body 422."""
    headers = {"Idempotency-Key": "batch-1"}
    first = create(api, headers=headers).json()
    files = len(api.call("GET", "/v1/files").json()["data"])
    again = create(api, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert len(api.call("GET", "/v1/files").json()["data"]) == files
    other = create(api, data_set(priority=1), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert create(api, key=BOB, headers=headers).json()["id"] != first["id"]


def test_a_list_in_pages(api: Running) -> None:
    """Newest first; odd parameters are refused."""
    made = [create(api).json()["id"] for _ in range(3)]
    page = api.call("GET", "/v1/batches", params={"limit": 2}).json()
    assert [batch["id"] for batch in page["data"]] == made[:0:-1]
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", True, made[2], made[1])
    rest = api.call("GET", "/v1/batches", params={"limit": 1, "after": made[1]}).json()
    assert rest["data"][0]["id"] == made[0]
    for odd in ({"limit": 0}, {"limit": 101}, {"after": "batch_nix"}, {"order": "asc"}):
        assert api.call("GET", "/v1/batches", params=odd).status_code == 400


def test_counts_add_up_and_progress_is_told(api: Running) -> None:
    """While it runs: rows by their fate, OpenAI's counts, slices, rates; when it has ended, the end."""
    batch_id = create(api).json()["id"]
    wanted = plan(api, batch_id, [10, 10, 10])
    work(api, failed=2)
    batch = read(api, batch_id)
    assert batch["status"] == "in_progress"
    rows = batch["rows"]
    assert rows == {
        "total": 30, "succeeded": 8, "failed": 2, "cancelled": 0, "expired": 0, "running": 0, "queued": 20,
    }  # fmt: skip
    assert batch["request_counts"] == {"total": 30, "completed": 8, "failed": 2}
    assert batch["slices"] == {"total": 3, "done": 1}
    assert batch["rows_per_s"] > 0
    assert batch["eta_s"] > 0
    assert batch["in_progress_at"] >= batch["created_at"]
    work(api, count=2)
    end(api, wanted)
    batch = read(api, batch_id)
    assert (batch["status"], batch["eta_s"]) == ("completed", None)
    assert batch["completed_at"] >= batch["finalizing_at"] >= batch["in_progress_at"]


def test_results_in_row_order_up_to_the_first_that_is_not_done(api: Running) -> None:
    """With `after` and `limit`; complete once the batch has ended."""
    batch_id = create(api).json()["id"]
    wanted = plan(api, batch_id, [3, 2])
    path = f"/v1/batches/{batch_id}/results"
    nothing = api.call("GET", path)
    assert (nothing.status_code, nothing.content, nothing.headers["batchline-complete"]) == (200, b"", "false")
    work(api)
    assert rows_of(api.call("GET", path)) == [0, 1, 2]
    work(api)
    end(api, wanted)
    whole = api.call("GET", path)
    assert whole.headers["content-type"] == "application/jsonl"
    assert (rows_of(whole), whole.headers["batchline-complete"]) == ([0, 1, 2, 3, 4], "true")
    assert rows_of(api.call("GET", path, params={"after": 1, "limit": 2})) == [2, 3]
    assert rows_of(api.call("GET", path, params={"after": 4})) == []
    assert api.call("GET", path, params={"after": "x"}).status_code == 400
    assert api.call("GET", path, SUBMITTER).status_code == 403


def rows_of(response: Any) -> list[int]:
    return [json.loads(line)["row"] for line in response.text.splitlines()]


def test_results_that_are_elsewhere(api: Running) -> None:
    """The answer tells where."""
    body = data_set(output={"uri": "s3://bucket/out/", "format": "csv"})
    response = api.call("GET", f"/v1/batches/{create(api, body).json()['id']}/results")
    assert (response.status_code, "s3://bucket/out/" in response.text) == (400, True)
    response = api.call("GET", f"/v1/batches/{create(api, requests(api)).json()['id']}/results")
    assert (response.status_code, "output_file_id" in response.text) == (400, True)


def test_results_that_are_past_are_410(api: Running) -> None:
    """Removed, or past the time that they are kept."""
    batch_id = create(api).json()["id"]
    end(api, plan(api, batch_id, []))
    sql = "UPDATE batches SET completed_at = now() - interval '8 days' WHERE id = %s"
    stack.query(api.database_url, sql, (parse_batch_id(batch_id).hex,))
    response = api.call("GET", f"/v1/batches/{batch_id}/results")
    assert (response.status_code, response.json()["error"]["code"]) == (410, "result_expired")


def test_cancel(api: Running) -> None:
    """What is done stays; cancelling again is answered again; one that has ended otherwise is 409."""
    batch_id = create(api).json()["id"]
    wanted = plan(api, batch_id, [2, 2])
    work(api)
    cancelled = move(api, batch_id, "cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelling")
    assert move(api, batch_id, "cancel").json()["status"] == "cancelling"
    end(api, wanted, BatchStatus.CANCELLED)
    batch = move(api, batch_id, "cancel").json()
    assert batch["status"] == "cancelled"
    assert (batch["rows"]["succeeded"], batch["rows"]["cancelled"]) == (2, 2)
    done = create(api).json()["id"]
    end(api, plan(api, done, []))
    refused = move(api, done, "cancel")
    error = {"message": "Cannot cancel a batch with status 'completed'.", "type": "invalid_request_error"}
    assert (refused.status_code, refused.json()["error"]) == (409, error | {"param": None, "code": None, "errors": []})


def test_pause_and_resume(api: Running) -> None:
    """A paused batch is in progress with paused_at and hands out nothing; both may be asked twice."""
    batch_id = create(api).json()["id"]
    wanted = plan(api, batch_id, [2, 2])
    paused = move(api, batch_id, "pause").json()
    assert (paused["status"], paused["paused_at"] is not None, paused["eta_s"]) == ("in_progress", True, None)
    assert move(api, batch_id, "pause").json()["paused_at"] == paused["paused_at"]
    assert not api.store.claims.claim(stack.a_worker(api.store), model_id(api), Lane.BULK, rows=1).jobs
    assert move(api, batch_id, "resume").json()["paused_at"] is None
    assert move(api, batch_id, "resume").status_code == 200
    work(api, count=2)
    end(api, wanted)
    assert move(api, batch_id, "pause").status_code == 409
    assert move(api, batch_id, "resume").status_code == 409


def test_retry_is_a_child_of_what_was_left(api: Running) -> None:
    """Only of a batch that has ended and left something undone; the same key is the same child."""
    body = data_set(input={"table": "users", "key": "id"}, output={"table": "scores", "mode": "replace"})
    batch_id = create(api, body).json()["id"]
    assert move(api, batch_id, "retry").status_code == 409
    wanted = plan(api, batch_id, [3, 3])
    work(api, lines=False, failed=1, count=2)
    end(api, wanted)
    headers = {"Idempotency-Key": "retry-1"}
    child = move(api, batch_id, "retry", headers=headers).json()
    assert (child["parent_id"], child["status"], child["version"]) == (batch_id, "validating", "2")
    assert child["output"]["mode"] == "append"
    assert move(api, batch_id, "retry", headers=headers).json()["id"] == child["id"]
    view = api.store.batches.read(parse_batch_id(child["id"]))
    assert view is not None
    assert msgspec.json.decode(view.body, type=DataSet).input.table == "users"


def test_a_batch_that_never_began_is_retried_as_a_whole(api: Running) -> None:
    """It has no row that failed, and all of them are undone: a file that came late, a place that did not answer."""
    batch_id = create(api).json()["id"]
    while (found := api.store.batches.take_to_plan(batch_stack.HOLDER, lease_s=30.0)) is not None:
        api.store.batches.refuse(batch_stack.HOLDER, found.id, [BatchFault("source_error", "There is no file.")])
    assert api.call("GET", f"/v1/batches/{batch_id}").json()["status"] == "failed"
    child = move(api, batch_id, "retry").json()
    assert (child["parent_id"], child["status"]) == (batch_id, "validating")


def test_nothing_to_retry_is_409_and_a_deleted_input_410(api: Running) -> None:
    """The answer says which."""
    clean = create(api).json()
    wanted = plan(api, clean["id"], [2])
    work(api)
    end(api, wanted)
    assert move(api, clean["id"], "retry").status_code == 409
    failed = create(api).json()
    wanted = plan(api, failed["id"], [2])
    work(api, failed=2)
    end(api, wanted, BatchStatus.FAILED)
    api.store.files.delete(view_tenant(api, failed["id"]), parse_file_id(failed["input_file_id"]))
    assert move(api, failed["id"], "retry").status_code == 410


def test_a_tenants_limit_of_open_batches(database_url: str, redis_url: str) -> None:
    """429 in the shape of each route, for both forms and for retries; inline rows of what is refused go."""
    with api_server.running_api(database_url, redis_url, max_open_batches_tenant=2) as api:
        failed = create(api).json()["id"]
        wanted = plan(api, failed, [2])
        work(api, failed=1)
        end(api, wanted)
        created = [create(api, requests(api)).json()["id"], create(api).json()["id"]]
        for refused in (create(api), create(api, requests(api)), move(api, failed, "retry")):
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "300")
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exceeded")
        files = api.call("GET", "/v1/files", params={"purpose": "user_data"}).json()["data"]
        assert len(files) == 2, "of the two batches of inline rows that were taken"
        schedule = {"name": "n", "cron": "* * * * *", "timezone": "UTC", "overlap": "allow", "batch": data_set()}
        made = api.call("POST", "/v1/schedules", json=schedule).json()
        now = api.call("POST", f"/v1/schedules/{made['id']}/run")
        assert (now.status_code, now.headers["content-type"], now.headers["retry-after"]) == (
            429, "application/problem+json", "300",
        )  # fmt: skip
        move(api, created[0], "cancel")
        end(api, parse_batch_id(created[0]), BatchStatus.CANCELLED)
        stretch = {"from": "2026-10-24T00:00:00Z", "to": "2026-10-24T00:02:30Z"}
        runs = api.call("POST", f"/v1/schedules/{made['id']}/backfill", json=stretch).json()["data"]
        assert [run["outcome"] for run in runs] == ["submitted", "skipped", "skipped"]
        assert "2 batches that have not ended" in runs[1]["detail"]
        move(api, created[1], "cancel")
        end(api, parse_batch_id(created[1]), BatchStatus.CANCELLED)
        runs = api.call("POST", f"/v1/schedules/{made['id']}/backfill", json=stretch).json()["data"]
        assert [run["outcome"] for run in runs] == ["submitted", "skipped"]


def view_tenant(api: Running, batch_id: str) -> int:
    view = api.store.batches.read(parse_batch_id(batch_id))
    assert view is not None
    return view.tenant_id


def test_scopes(api: Running) -> None:
    """Making and moving need `submit`, reading needs `read`."""
    batch_id = create(api).json()["id"]
    assert create(api, key=READER).status_code == 403
    assert api.call("POST", f"/v1/batches/{batch_id}/cancel", READER).status_code == 403
    assert api.call("GET", f"/v1/batches/{batch_id}", SUBMITTER).status_code == 403


def test_the_slices_of_a_batch_are_listed_on_request(api: Running) -> None:
    """With `batch` its jobs, without it none of them; another tenant sees nothing."""
    batch_id = create(api).json()["id"]
    plan(api, batch_id, [3, 2])
    jobs = api.call("GET", "/v1/jobs", params={"batch": batch_id}).json()["data"]
    told = {(job["rows"], job["status"], job["model"]) for job in jobs}
    assert told == {(2, "queued", "digits"), (3, "queued", "digits")}
    ids = {job["id"] for job in jobs}
    assert not ids & {job["id"] for job in api.call("GET", "/v1/jobs").json()["data"]}
    assert api.call("GET", "/v1/jobs", BOB, params={"batch": batch_id}).json()["data"] == []
    odd = api.call("GET", "/v1/jobs", params={"batch": "batch_nix"})
    assert (odd.status_code, odd.json()["errors"][0]["pointer"]) == (422, "/batch")
    move(api, batch_id, "cancel")


def test_slices_are_no_online_backlog(database_url: str, redis_url: str) -> None:
    """A tenant whose batches wait may submit as many jobs as ever; operators see the slices."""
    limits = {"max_queued_rows_tenant": 100, "max_queued_rows": 100}
    with api_server.running_api(database_url, redis_url, **limits) as api:
        plan(api, create(api).json()["id"], [1000])
        api.store.chores.count_backlog(every_s=0.0)
        api.api.services.backlog.refresh()
        assert sum(entry.rows for entry in api.api.services.backlog.queued) == 1000
        assert api.submit([ROW] * 100).status_code == 202
        assert api.submit().status_code == 429
