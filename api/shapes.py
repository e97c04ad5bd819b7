"""Jobs as JSON: what the store read, in the words of the contract; results are passed through unread."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from batchline.job import JobView, Status, show_id
from batchline.wire import JobBody, JobList, QueuePlace, RowCounts

Eta = Callable[[JobView], "float | None"]
_encoder = msgspec.json.Encoder()


def job_json(view: JobView, eta: Eta) -> bytes:
    """One job as JSON."""
    return as_json(job_body(view, eta))


def as_json(body: JobBody) -> bytes:
    """A body as it goes out."""
    return _encoder.encode(body)


def list_json(views: list[JobView], eta: Eta, *, has_more: bool) -> bytes:
    """One page of jobs as JSON."""
    data = [job_body(view, eta) for view in views]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return _encoder.encode(JobList(data, first, last, has_more))


def job_body(view: JobView, eta: Eta) -> JobBody:
    """One job in the words of the contract."""
    queued = view.status is Status.QUEUED
    ended = view.status in (Status.SUCCEEDED, Status.FAILED)
    return JobBody(
        id=show_id(view.id),
        status=view.status.value,
        model=view.model,
        version=view.version,
        rows=view.rows,
        created_at=_at(view.created_at),
        started_at=_at(view.started_at) if view.started_at else None,
        finished_at=_at(view.finished_at) if view.finished_at else None,
        attempt=view.attempt,
        priority=view.priority,
        queue=QueuePlace(view.position, eta(view)) if queued else None,
        outputs=_raw(view.outputs),
        errors=_raw(view.errors),
        row_counts=RowCounts(view.rows, view.rows - view.rows_failed if ended else 0, view.rows_failed),
        timings_ms=_raw(view.timings),
        metadata=_raw(view.metadata),
        deadline=_at(view.deadline_at) if view.deadline_at else None,
        deadline_missed=bool(ended and view.deadline_at and view.finished_at and view.finished_at > view.deadline_at),
        code=view.code,
    )


def _at(at: datetime) -> str:
    return msgspec.to_builtins(at.astimezone(UTC))


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)
