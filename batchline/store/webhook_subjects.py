"""What a webhook's message is about, as JSON: the job or batch as clients see it, without what may be large.

What is told was settled when it ended, so that it reads the same at every attempt.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from batchline.batch import show_batch_id, show_file_id
from batchline.job import show_id
from batchline.store.postgres import Database, Row

_JOBS = """
SELECT j.id, j.status::text, m.name, m.version::text, j.rows, j.rows_failed, j.attempt, j.priority, j.created_at,
  j.started_at, j.finished_at, j.deadline_at, j.code, j.metadata
FROM jobs j JOIN models m ON m.id = j.model_id WHERE j.id = ANY((SELECT %(ids)s::uuid[])::uuid[])
"""

_BATCHES = """
SELECT b.id, b.status::text, m.name, m.version::text, b.rows_total, b.rows_succeeded, b.rows_failed, b.rows_cancelled,
  b.rows_expired, b.created_at, b.in_progress_at, b.finalizing_at, b.completed_at, b.failed_at, b.expired_at,
  b.cancelling_at, b.cancelled_at, b.deadline_at, b.metadata, b.input_file_id, b.output_file_id, b.error_file_id
FROM batches b LEFT JOIN models m ON m.id = b.model_id WHERE b.id = ANY((SELECT %(ids)s::uuid[])::uuid[])
"""
_BATCH_TIMES = (
    "created_at", "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at", "expires_at",
)  # fmt: skip


def read(db: Database, subjects: Sequence[tuple[str, uuid.UUID]]) -> dict[uuid.UUID, str]:
    """The JSON text of each subject that is still there.

    Args:
        db: where they are.
        subjects: the event, which says of what kind it is, and the id.
    """
    jobs = [subject for event, subject in subjects if event.startswith("job.")]
    batches = [subject for event, subject in subjects if not event.startswith("job.")]
    told = [(row[0], _job(row)) for row in (db.run(_JOBS, {"ids": jobs}, prepare=True) if jobs else [])]
    told += [(row[0], _batch(row)) for row in (db.run(_BATCHES, {"ids": batches}) if batches else [])]
    return {subject: msgspec.json.encode(body).decode() for subject, body in told}


def _job(row: Row) -> dict[str, Any]:
    job_id, status, model, version, rows, failed, attempt, priority, *times, code, metadata = row
    created_at, started_at, finished_at, deadline_at = times
    ran = status in ("succeeded", "failed")
    return {
        "id": show_id(job_id),
        "object": "job",
        "status": status,
        "model": model,
        "version": version,
        "rows": rows,
        "row_counts": {"total": rows, "succeeded": rows - failed if ran else 0, "failed": failed},
        "created_at": _iso(created_at),
        "started_at": _iso(started_at),
        "finished_at": _iso(finished_at),
        "attempt": attempt,
        "priority": priority,
        "deadline": _iso(deadline_at),
        "deadline_missed": bool(ran and deadline_at and finished_at and finished_at > deadline_at),
        "code": code,
        "metadata": _raw(metadata),
    }


def _batch(row: Row) -> dict[str, Any]:
    batch_id, status, model, version, total, succeeded, failed, cancelled, expired, *rest = row
    *times, metadata, input_file, output_file, error_file = rest
    return {
        "id": show_batch_id(batch_id),
        "object": "batch",
        "status": status,
        "model": model,
        "version": version,
        "request_counts": {"total": total, "completed": succeeded, "failed": failed},
        "rows": {
            "total": total, "succeeded": succeeded, "failed": failed, "cancelled": cancelled, "expired": expired,
            "running": 0, "queued": 0,
        },
        **{name: int(at.timestamp()) if at else None for name, at in zip(_BATCH_TIMES, times, strict=True)},
        "input_file_id": show_file_id(input_file) if input_file else None,
        "output_file_id": show_file_id(output_file) if output_file else None,
        "error_file_id": show_file_id(error_file) if error_file else None,
        "metadata": _raw(metadata),
    }  # fmt: skip


def _iso(at: datetime | None) -> str | None:
    return msgspec.to_builtins(at.astimezone(UTC)) if at else None


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)
