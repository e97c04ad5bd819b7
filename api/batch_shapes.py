"""Batches and files as JSON: what the store read, in OpenAI's words and ours; times in unix seconds."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from batchline.batch import (
    BatchFault,
    BatchStatus,
    BatchView,
    DataSet,
    Requests,
    show_batch_id,
    show_file_id,
    show_schedule_id,
)
from batchline.store.batch_contract import FileView
from batchline.wire import (
    BatchBody,
    BatchErrors,
    BatchList,
    BatchRows,
    BatchSlices,
    FileBody,
    FileDeleted,
    FileList,
    RequestCounts,
)

DATA_SET_ENDPOINT = "/v1/jobs"
"""What a data set shows as its endpoint: OpenAI's clients want one, and rows are what jobs take."""


def batch_json(view: BatchView, cost: float | None) -> bytes:
    """One batch as JSON."""
    return msgspec.json.encode(batch_body(view, cost))


def batch_list_json(views: Sequence[BatchView], costs: Mapping[uuid.UUID, float], *, has_more: bool) -> bytes:
    """One page of batches as JSON; `costs` are those of batches that have one."""
    data = [batch_body(view, costs.get(view.id)) for view in views]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return msgspec.json.encode(BatchList(data, first, last, has_more))


def batch_body(view: BatchView, cost: float | None) -> BatchBody:
    """One batch in the words of the contract."""
    counts = view.counts
    data_set, requests = _body_of(view)
    return BatchBody(
        id=show_batch_id(view.id),
        endpoint=requests.endpoint if requests else DATA_SET_ENDPOINT,
        completion_window=requests.completion_window if requests else None,
        input_file_id=show_file_id(view.input_file_id) if view.input_file_id else None,
        status=view.status.value,
        errors=_errors(view.errors),
        output_file_id=show_file_id(view.output_file_id) if view.output_file_id else None,
        error_file_id=show_file_id(view.error_file_id) if view.error_file_id else None,
        created_at=int(view.created_at.timestamp()),
        in_progress_at=_at(view.in_progress_at),
        expires_at=_at(view.deadline_at),
        finalizing_at=_at(view.finalizing_at),
        completed_at=_at(view.completed_at),
        failed_at=_at(view.failed_at),
        expired_at=_at(view.expired_at),
        cancelling_at=_at(view.cancelling_at),
        cancelled_at=_at(view.cancelled_at),
        request_counts=RequestCounts(counts.total, counts.succeeded, counts.failed),
        metadata=msgspec.Raw(view.metadata) if view.metadata is not None else None,
        model=view.model,
        version=view.version,
        input=msgspec.structs.replace(data_set.input, file=None) if data_set else None,
        output=data_set.output if data_set else None,
        rows=BatchRows(
            counts.total,
            counts.succeeded,
            counts.failed,
            counts.cancelled,
            counts.expired,
            counts.running,
            counts.queued,
        ),
        slices=BatchSlices(view.slices, view.slices_done),
        rows_per_s=round(view.rows_per_s, 3),
        eta_s=_eta_s(view),
        paused_at=_at(view.paused_at),
        priority=view.priority,
        error_threshold=view.error_threshold,
        parent_id=show_batch_id(view.parent_id) if view.parent_id else None,
        schedule_id=show_schedule_id(view.schedule_id) if view.schedule_id else None,
        fire_at=_at(view.fire_at),
        cost=cost,
        webhook=view.webhook or msgspec.UNSET,
    )


def _body_of(view: BatchView) -> tuple[DataSet | None, Requests | None]:
    if view.kind == "requests":
        return None, msgspec.json.decode(view.body, type=Requests)
    return msgspec.json.decode(view.body, type=DataSet), None


def _eta_s(view: BatchView) -> float | None:
    left = view.counts.queued + view.counts.running
    if view.status is not BatchStatus.IN_PROGRESS or view.paused_at is not None or not view.rows_per_s:
        return None
    return round(left / view.rows_per_s, 3)


def _errors(text: str | None) -> BatchErrors | None:
    faults = msgspec.json.decode(text, type=list[BatchFault]) if text else []
    return BatchErrors(faults) if faults else None


def file_json(view: FileView) -> bytes:
    """One file as JSON."""
    return msgspec.json.encode(_file_body(view))


def file_list_json(views: list[FileView], *, has_more: bool) -> bytes:
    """One page of files as JSON."""
    data = [_file_body(view) for view in views]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return msgspec.json.encode(FileList(data, first, last, has_more))


def deleted_json(view: FileView) -> bytes:
    """That a file is gone."""
    return msgspec.json.encode(FileDeleted(show_file_id(view.id)))


def _file_body(view: FileView) -> FileBody:
    return FileBody(
        id=show_file_id(view.id),
        bytes=view.bytes,
        created_at=int(view.created_at.timestamp()),
        expires_at=_at(view.expires_at),
        filename=view.filename,
        purpose=view.purpose,
    )


def _at(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at is not None else None
