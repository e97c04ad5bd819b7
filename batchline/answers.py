"""What /v1/jobs and infer answer, as JSON: over HTTP, and in the lines of a batch of requests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec

from batchline import v2_tensors
from batchline.errors import (
    HTTP_STATUS,
    BatchlineError,
    Fault,
    KeyReusedError,
    ModelError,
    RowError,
    TimedOutError,
)
from batchline.job import TERMINAL, JobView, Status, show_id
from batchline.wire import FaultBody, JobBody, Problem, QueuePlace, RowCounts

_BLAMELESS = frozenset({"model_error", "out_of_memory", "internal"})
"""Codes of failed jobs whose rows are not to blame."""
_KEY_REUSED = KeyReusedError.code
"""Under /v2 whatever else does not fit is 400, as the protocol has it."""


def status_of(error: BatchlineError) -> int:
    """The HTTP status of an error, its own or its nearest ancestor's."""
    return next(HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS)


def refusal(path: str, status: int, code: str, detail: str, faults: Sequence[Fault]) -> tuple[int, bytes]:
    """Status and body of an error: `{"error": …}` under /v2, problem details elsewhere."""
    if path == "/v2" or path.startswith("/v2/"):
        told = "; ".join(f"{f.pointer}: {f.detail}" if f.pointer else f.detail for f in faults[:10])
        told_as = 400 if status == 422 and code != _KEY_REUSED else status
        return told_as, msgspec.json.encode({"error": f"{detail} {told}".strip()})
    body = Problem(
        type=f"urn:batchline:error:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=path,
        errors=[FaultBody(f.pointer, f.detail) for f in faults],
    )
    return status, msgspec.json.encode(body)


def job_body(view: JobView, eta_s: float | None) -> JobBody:
    """One job in the words of the contract; `eta_s` is shown while it is queued."""
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
        queue=QueuePlace(view.position, eta_s) if queued else None,
        outputs=_raw(view.outputs),
        errors=_raw(view.errors),
        row_counts=RowCounts(view.rows, view.rows - view.rows_failed if ended else 0, view.rows_failed),
        timings_ms=_raw(view.timings),
        metadata=_raw(view.metadata),
        deadline=_at(view.deadline_at) if view.deadline_at else None,
        deadline_missed=bool(ended and view.deadline_at and view.finished_at and view.finished_at > view.deadline_at),
        code=view.code,
        webhook=view.webhook or msgspec.UNSET,
    )


def infer_body(
    view: JobView, request_id: str | None, wanted: Sequence[v2_tensors.Wanted]
) -> tuple[dict[str, object], bytes]:
    """What infer answers of a job: its JSON, and the bytes of the outputs that are wanted in binary.

    Raises:
        RowError: a row has failed: a tensor has no place for a missing one.
        ModelError, TimedOutError: the job has no results.
    """
    _raise_unless_whole(view)
    outputs, tail = v2_tensors.write_outputs(view.outputs or "[]", wanted)
    told: dict[str, object] = {"model_name": view.model, "model_version": view.version}
    if request_id is not None:
        told["id"] = request_id
    return told | {"parameters": {"job_id": show_id(view.id)}, "outputs": outputs}, tail


def _raise_unless_whole(view: JobView) -> None:
    if view.status is Status.SUCCEEDED and not view.rows_failed:
        return
    name = show_id(view.id)
    if view.status not in TERMINAL:
        raise TimedOutError(f"{name} has not ended yet; read it from /v1/jobs/{name}.")
    if view.status in (Status.CANCELLED, Status.EXPIRED):
        raise TimedOutError(f"{name} has {view.status.value} before it was run.")
    if view.code in _BLAMELESS:
        raise ModelError(f"{name} failed: {view.code}.")
    errors: list[dict[str, Any]] = msgspec.json.decode(view.errors) if view.errors else []
    told = "; ".join(f"row {e.get('row')}: {e.get('message')}" for e in errors[:10])
    raise RowError(f"{view.rows_failed} of {view.rows} rows failed. {told}".strip())


def _at(at: datetime) -> str:
    return msgspec.to_builtins(at.astimezone(UTC))


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)
