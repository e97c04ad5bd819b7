"""What requests and answers about files and batches look like: examples of the OpenAPI document."""

from __future__ import annotations

from api.operations import Json

FILE: Json = {
    "id": "file-06h02i295tr8depcvro8po5se4",
    "bytes": 1234,
    "created_at": 1795316644,
    "expires_at": 1797908644,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
    "object": "file",
}
DELETED: Json = {"id": FILE["id"], "deleted": True, "object": "file"}

DATA_SET: Json = {
    "model": "digits",
    "input": {"rows": [{"id": i, "x": [0.0, 0.0, 5.0, 13.0, 9.0, 1.0, 0.0, 0.0] * 8} for i in (17, 18)], "key": "id"},
    "output": {"keep": []},
    "error_threshold": 0.05,
    "priority": 5,
    "metadata": {"night": "2026-11-22"},
}
REQUESTS: Json = {"input_file_id": FILE["id"], "endpoint": "/v1/jobs", "completion_window": "24h"}

BATCH: Json = {
    "id": "batch_06h02i295tr8depcvro8po5se4",
    "endpoint": "/v1/jobs",
    "completion_window": None,
    "input_file_id": "file-06h02i295tr8depcvro8po5se4",
    "status": "in_progress",
    "errors": None,
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1795316644,
    "in_progress_at": 1795316645,
    "expires_at": None,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 2, "completed": 0, "failed": 0},
    "metadata": {"night": "2026-11-22"},
    "model": "digits",
    "version": "1",
    "input": {"format": "jsonl", "key": "id"},
    "output": {},
    "rows": {
        "total": 2, "succeeded": 0, "failed": 0, "cancelled": 0, "expired": 0, "running": 2, "queued": 0,
    },
    "slices": {"total": 1, "done": 0},
    "rows_per_s": 0.0,
    "eta_s": None,
    "paused_at": None,
    "priority": 5,
    "error_threshold": 0.05,
    "parent_id": None,
    "schedule_id": None,
    "fire_at": None,
    "usage": None,
    "cost": None,
    "object": "batch",
}  # fmt: skip

RESULTS = '{"id": 17, "label": 3}\n{"id": 18, "label": 3}\n'


def _error(message: str, param: str | None, code: str | None, kind: str = "invalid_request_error") -> Json:
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "errors": []}}


ERRORS: dict[int, Json] = {
    400: _error("Missing required parameter: 'endpoint'.", "endpoint", "missing_required_parameter"),
    401: _error("Send a valid API key: Authorization: Bearer KEY.", None, "invalid_api_key"),
    404: _error("No batch found with id 'batch_x'.", None, None),
    409: _error("Cannot cancel a batch with status 'completed'.", None, None),
    413: _error("The file is larger than 536870912 bytes; send it in parts as several files.", None, "too_large"),
    503: _error("The database does not answer; try again.", None, "store_unavailable", "server_error"),
}
