"""What requests and answers look like: the examples of the OpenAPI document."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_PIXELS = [0.0, 0.0, 5.0, 13.0, 9.0, 1.0, 0.0, 0.0] * 8

SUBMIT: Json = {"model": "digits", "inputs": [_PIXELS], "priority": 5, "metadata": {"source": "scan-17"}}

JOB: Json = {
    "id": "job_06h02i295tr8depcvro8po5se4",
    "status": "queued",
    "model": "digits",
    "version": "1",
    "rows": 1,
    "created_at": "2026-11-22T03:24:04.271374Z",
    "started_at": None,
    "finished_at": None,
    "attempt": 0,
    "priority": 5,
    "queue": {"position": 12, "eta_s": 0.4},
    "outputs": None,
    "errors": None,
    "row_counts": {"total": 1, "succeeded": 0, "failed": 0},
    "timings_ms": None,
    "metadata": {"source": "scan-17"},
    "deadline": None,
    "deadline_missed": False,
    "code": None,
    "object": "job",
}

DONE: Json = JOB | {
    "status": "succeeded",
    "started_at": "2026-11-22T03:24:04.281102Z",
    "finished_at": "2026-11-22T03:24:04.290455Z",
    "attempt": 1,
    "queue": None,
    "outputs": [{"label": 3}],
    "errors": None,
    "row_counts": {"total": 1, "succeeded": 1, "failed": 0},
    "timings_ms": {"queued": 9.7, "predict": 0.4},
}

INFER: Json = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": _PIXELS}]}

INFERRED: Json = {
    "model_name": "digits",
    "model_version": "1",
    "parameters": {"job_id": JOB["id"]},
    "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [3]}],
}


def _problem(code: str, title: str, status: int, detail: str, **more: Any) -> Json:
    return {"type": f"urn:batchline:error:{code}", "title": title, "status": status, "detail": detail} | more


PROBLEMS: dict[int, Json] = {
    400: _problem(
        "malformed",
        "Bad Request",
        400,
        "The body is not JSON that can be read.",
        errors=[{"pointer": "", "detail": "JSON is malformed: invalid character (byte 23)"}],
    ),
    401: _problem("unauthorized", "Unauthorized", 401, "Send a valid API key: Authorization: Bearer KEY."),
    404: _problem("not_found", "Not Found", 404, "There is no job with this id."),
    410: _problem("result_expired", "Gone", 410, "This job's result has been deleted."),
    422: _problem(
        "invalid",
        "Unprocessable Entity",
        422,
        "The rows do not fit the model.",
        instance="/v1/jobs",
        errors=[{"pointer": "/inputs/0", "detail": "has 63 values where x takes 64"}],
    ),
    429: _problem("quota_exceeded", "Too Many Requests", 429, "This tenant may have 1000000 rows queued."),
    503: _problem("store_unavailable", "Service Unavailable", 503, "The database does not answer; try again."),
}

BACKLOG: Json = {
    "object": "backlog",
    "rows": 5120,
    "pools": {
        "cpu": {
            "jobs": 256,
            "rows": 5120,
            "oldest_age_s": 3.2,
            "rows_per_s": 410.0,
            "running_rows": 640,
            "unfinished_rows": 5760,
        }
    },
}
AUTOSCALER: Json = {
    "object": "autoscaler",
    "pools": {
        "cpu": {
            "desired": 3,
            "reason": "2 more make everything on time; the maximum is 3",
            "decided_at": "2026-11-22T06:00:05Z",
            "age_s": 2.4,
            "signals": {"queued_rows": 5120.0, "running_rows": 640.0, "workers": 1.0, "pending": 0.0},
            "limits": {
                "min_workers": 1.0,
                "max_workers": 3.0,
                "max_launches_per_hour": None,
                "budget_per_day": None,
                "enabled": 1.0,
            },
            "instances": {"starting": 2, "serving": 1, "draining": 0, "stopping": 0},
            "budget": {
                "per_day": 5.0,
                "spent_today": 4.2,
                "standing": "warned",
                "bulk_held_until": None,
                "at": "2026-11-22T06:00:05Z",
            },
            "decisions": [
                {
                    "at": "2026-11-22T06:00:05Z",
                    "desired": 3,
                    "reason": "2 more make everything on time; the maximum is 3",
                }
            ],
        }
    },
    "instances": [
        {
            "id": "i-0a1b2c3d4e5f60718",
            "object": "instance",
            "pool": "cpu",
            "provider": "ec2-spot",
            "status": "serving",
            "kind": "c7i.large",
            "zone": "eu-central-1a",
            "market": "spot",
            "price_per_hour": 0.031,
            "launched_at": "2026-11-22T05:12:00Z",
            "registered_at": "2026-11-22T05:13:10Z",
            "draining_at": None,
            "gone_at": None,
            "age_s": 2885.0,
            "reason": "",
            "workers": 1,
            "running": 2,
        }
    ],
}
