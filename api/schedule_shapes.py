"""Schedules and their runs as JSON: what the store read, in the words of the contract."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from batchline.batch import show_batch_id, show_schedule_id
from batchline.store.batch_contract import Run, ScheduleView
from batchline.wire_schedules import (
    Backfilled,
    RunList,
    RunShown,
    ScheduleDeleted,
    ScheduleList,
    ScheduleShown,
)


def schedule_json(view: ScheduleView) -> bytes:
    """One schedule as JSON."""
    return msgspec.json.encode(_schedule(view))


def list_json(views: Sequence[ScheduleView], *, has_more: bool) -> bytes:
    """One page of schedules as JSON."""
    data = [_schedule(view) for view in views]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return msgspec.json.encode(ScheduleList(data, first, last, has_more))


def deleted_json(schedule_id: uuid.UUID) -> bytes:
    """What remains of a deleted schedule."""
    return msgspec.json.encode(ScheduleDeleted(show_schedule_id(schedule_id), deleted=True))


def run_json(run: Run) -> bytes:
    """One run as JSON."""
    return msgspec.json.encode(_run(run))


def runs_json(runs: Sequence[Run], *, has_more: bool) -> bytes:
    """One page of runs as JSON."""
    return msgspec.json.encode(RunList([_run(run) for run in runs], has_more))


def backfilled_json(runs: Sequence[Run], *, known: int) -> bytes:
    """What a backfill has begun, as JSON."""
    return msgspec.json.encode(Backfilled([_run(run) for run in runs], known))


def _schedule(view: ScheduleView) -> ScheduleShown:
    return ScheduleShown(
        id=show_schedule_id(view.id),
        name=view.name,
        cron=view.cron,
        timezone=view.timezone,
        batch=msgspec.Raw(view.batch),
        catch_up=view.catch_up,
        overlap=view.overlap,
        enabled=view.enabled,
        created_at=_at(view.created_at),
        next_fire_at=_at(view.next_fire_at) if view.next_fire_at else None,
    )


def _run(run: Run) -> RunShown:
    return RunShown(
        fire_at=_at(run.fire_at),
        outcome=run.outcome,
        detail=run.detail,
        batch_id=show_batch_id(run.batch_id) if run.batch_id else None,
        batch_status=run.batch_status.value if run.batch_status else None,
        created_at=_at(run.created_at),
    )


def _at(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()[:-6] + "Z"
