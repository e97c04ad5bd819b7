"""The hot routes with and without litestar in between: nobody can tell which way a request went."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from api_server import ALICE, BOB, READER, ROW, SUBMITTER, Running

from batchline.metrics import REGISTRY


def same(response: httpx.Response) -> tuple[int, dict[str, str], str]:
    """An answer without what differs from job to job."""
    ids = re.sub(r"job_[0-9a-v]{26}", "ID", response.text)
    body = re.sub(r'("(?:\w+_at|queued|predict|position|eta_s)":)[^,}]+', r"\1?", ids)
    headers = {k: re.sub(r"job_[0-9a-v]{26}", "ID", v) for k, v in response.headers.items() if k != "content-length"}
    return response.status_code, headers | {"date": ""}, body


def counted(route: str, status: int) -> float:
    return REGISTRY.get_sample_value("batchline_http_requests_total", {"route": route, "status": str(status)}) or 0.0


def submitting(inputs: Any, **more: Any) -> dict[str, Any]:
    return {"content": json.dumps({"model": "digits", "version": "1", "inputs": inputs, **more})}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (submitting([ROW]) | {"headers": {"Prefer": "wait=10"}}, 200),
        (submitting([ROW[1:]]), 422),
        (submitting([ROW], model="nix"), 404),
        (submitting([]), 422),
        ({"content": b"{"}, 400),
        (submitting([ROW]) | {"headers": {"Content-Type": "text/plain"}}, 415),
        (submitting([ROW]) | {"headers": {"Idempotency-Key": "a b"}}, 400),
        (submitting([ROW]) | {"key": "nobody"}, 401),
        (submitting([ROW]) | {"key": READER}, 403),
    ],
)
def test_a_submit_is_answered_alike_both_ways(api: Running, request_: dict[str, Any], status: int) -> None:
    """Status, headers, body and the count by route; the slash at the end is what sends a request through litestar."""
    headers = {"Content-Type": "application/json"} | request_.pop("headers", {})
    before = counted("/v1/jobs", status)
    straight, through = (api.call("POST", path, headers=headers, **request_) for path in ("/v1/jobs", "/v1/jobs/"))
    assert same(straight) == same(through)
    assert straight.status_code == status
    assert counted("/v1/jobs", status) == before + 2


def test_a_job_is_read_alike_both_ways(api: Running) -> None:
    """Found, of another tenant, of no tenant, and asked for with a key that may not read."""
    job_id = api.submit(version="1", headers={"Prefer": "wait=10"}).json()["id"]
    for path, key, status in (
        (job_id, READER, 200), (job_id, BOB, 404), ("job_nix", READER, 404), ("%00", READER, 404),
        (job_id, SUBMITTER, 403), (job_id, "nobody", 401),
    ):  # fmt: skip
        before = counted("/v1/jobs/{job_id}", status)
        straight, through = (api.call("GET", f"/v1/jobs/{path}{slash}", key) for slash in ("", "/"))
        assert same(straight) == same(through)
        assert straight.status_code == status
        assert counted("/v1/jobs/{job_id}", status) == before + 2


def test_what_is_not_plainly_a_hot_route_is_litestars(api: Running) -> None:
    """Odd hosts, other methods and deeper paths are told as on every other route."""
    assert api.submit(headers={"Host": "a b"}).json()["detail"] == "Bad Request"
    assert api.call("PUT", "/v1/jobs").status_code == 405
    assert api.call("DELETE", "/v1/jobs/job_nix").status_code == 405
    assert api.call("POST", "/v1/jobs/job_nix").status_code == 405
    assert api.call("GET", "/v1/jobs/job_nix/x").status_code == 404
    assert api.call("GET", "/v1/jobsx").status_code == 404
    assert api.call("GET", "/v1/jobs").json()["object"] == "list"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/livez", ALICE), ("/v1/jobs", ALICE), ("/v1/jobs/JOB", ALICE), ("/v1/jobs/job_nix", ALICE),
        ("/v1/jobs", "nobody"), ("/v2/models/digits", ALICE), ("/v1/files/FILE/content", ALICE), ("/nowhere", ALICE),
    ],
)  # fmt: skip
def test_head_is_get_without_the_body(api: Running, path: str, key: str) -> None:
    """Status and headers are those of GET (RFC 9110, 9.3.2), on hot, cold and streamed routes, and of errors."""
    if "JOB" in path:
        path = path.replace("JOB", api.submit(headers={"Prefer": "wait=10"}).json()["id"])
    if "FILE" in path:
        files, data = {"file": ("in.jsonl", b"{}\n" * 1_000_000)}, {"purpose": "batch"}
        path = path.replace("FILE", api.call("POST", "/v1/files", files=files, data=data).json()["id"])
    head, get = api.call("HEAD", path, key), api.call("GET", path, key)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert {k: v for k, v in head.headers.items() if k != "date"} == {
        k: v for k, v in get.headers.items() if k != "date"
    }


def test_head_of_an_address_that_is_for_post_is_405(api: Running) -> None:
    """And says what the address takes."""
    response = api.call("HEAD", "/v1/jobs/job_nix/cancel")
    assert (response.status_code, response.headers["Allow"], response.content) == (405, "OPTIONS, POST", b"")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("/v1/schedules/sched_nix", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("/v1/jobs/job_nix/cancel", "OPTIONS, POST"),
    ],
)
def test_options_and_405_tell_all_methods(api: Running, path: str, allow: str) -> None:
    """Of all handlers of an address, not only of the first."""
    options, refused = api.call("OPTIONS", path), api.call("TRACE", path)
    assert (options.status_code, options.headers["Allow"], options.content) == (204, allow, b"")
    assert (refused.status_code, refused.headers["Allow"]) == (405, allow)
    assert api.call("OPTIONS", "/nowhere").status_code == 404
