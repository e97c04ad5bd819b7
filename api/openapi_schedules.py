"""Schedules described: their routes, with examples, and what their schemas say beyond the types."""

from __future__ import annotations

from typing import cast

from api.operations import KEY, Json, Operation, content, parameter, ref
from batchline.wire_schedules import (
    BackfillBody,
    Backfilled,
    RunList,
    RunShown,
    ScheduleBody,
    ScheduleDeleted,
    ScheduleList,
    SchedulePatch,
    ScheduleShown,
)

SCHEDULE_SHAPES = (
    BackfillBody,
    Backfilled,
    RunList,
    RunShown,
    ScheduleBody,
    ScheduleDeleted,
    ScheduleList,
    SchedulePatch,
    ScheduleShown,
)

SCHEDULE: Json = {
    "name": "nightly digits",
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "batch": {
        "model": "digits",
        "input": {"rows": [[0.0, 0.0, 5.0, 13.0, 9.0, 1.0, 0.0, 0.0] * 8]},
        "metadata": {"night": "{fire_time:%Y-%m-%d}"},
    },
    "catch_up": "last",
    "overlap": "skip",
    "enabled": True,
}
SHOWN: Json = (
    {"id": "sched_06h02i295tr8depcvro8po5se4"}
    | SCHEDULE
    | {
        "created_at": "2026-11-22T03:24:04.271374Z",
        "next_fire_at": "2026-11-23T01:30:00Z",
        "object": "schedule",
    }
)
RUN: Json = {
    "fire_at": "2026-11-22T01:30:00Z",
    "outcome": "submitted",
    "detail": None,
    "batch_id": "batch_06h02i295tr8depcvro8po5se4",
    "batch_status": "completed",
    "created_at": "2026-11-22T01:30:00.412Z",
    "object": "schedule.run",
}
BACKFILL: Json = {"from": "2026-11-01T00:00:00Z", "to": "2026-11-08T00:00:00Z"}

_SCHEDULE_ID = {"type": "string", "pattern": "^sched_[0-9a-v]{25}[048cgkos]$"}
_ID = parameter("path", "schedule_id", _SCHEDULE_ID, "The id of a schedule.", SHOWN["id"])
_LIMIT = parameter(
    "query", "limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "How many of them."
)
_ONE = "/v1/schedules/{schedule_id}"
_BODY = (400, 413, 415, 422, 503)

SCHEDULE_OPERATIONS = (
    Operation(
        "post", "/v1/schedules", "create_schedule", "Make a schedule",
        {201: content(ref("ScheduleShown"), SHOWN)}, _BODY, content(ref("ScheduleBody"), SCHEDULE), (), "submit",
        "`cron` has five fields, read in `timezone`. `batch` is a body of POST /v1/batches, checked now and at each"
        " fire time; any text in it may hold `{fire_time:%Y-%m-%d}`, in the schedule's zone; `{{` and `}}` are braces."
        " Named hours that a night skips fire once, where the clock jumps to; those that come twice fire at the first."
        " `catch_up` says which of the fire times run that came while no scheduler did; `overlap` what becomes of one"
        " that comes while a batch of the schedule runs.",
    ),
    Operation(
        "get", "/v1/schedules", "list_schedules", "List schedules, oldest first",
        {200: content(ref("ScheduleList"))}, (422, 503), None,
        (parameter("query", "after", _SCHEDULE_ID, "The last id of the page before."), _LIMIT), "read",
    ),
    Operation(
        "get", _ONE, "get_schedule", "Read a schedule",
        {200: content(ref("ScheduleShown"), SHOWN)}, (404, 503), None, (_ID,), "read",
    ),
    Operation(
        "patch", _ONE, "update_schedule", "Change a schedule",
        {200: content(ref("ScheduleShown"), SHOWN)}, (404, 409, *_BODY),
        content(ref("SchedulePatch"), {"enabled": False}), (_ID,), "submit",
        "What is named changes. A schedule that is enabled again does not catch up.",
    ),
    Operation(
        "put", _ONE, "replace_schedule", "Change a schedule to what is given",
        {200: content(ref("ScheduleShown"), SHOWN)}, (404, 409, *_BODY), content(ref("ScheduleBody"), SCHEDULE), (_ID,),
        "submit", "What is not named has its default. Id and history stay.",
    ),
    Operation(
        "delete", _ONE, "delete_schedule", "Delete a schedule with its history",
        {200: content(ref("ScheduleDeleted"), {"id": SHOWN["id"], "deleted": True, "object": "schedule"})},
        (404, 503), None, (_ID,), "submit", "Its batches stay.",
    ),
    Operation(
        "post", f"{_ONE}/run", "run_schedule", "Run a schedule now",
        {200: content(ref("RunShown"), RUN)}, (400, 404, 409, 410, 422, 429, 503), None, (_ID, KEY), "submit",
        "Whatever its rhythm and overlap, and whether it is enabled; `fire_time` is now.",
    ),
    Operation(
        "post", f"{_ONE}/backfill", "backfill_schedule", "Run the fire times of a stretch of the past",
        {200: content(ref("Backfilled"), {"data": [RUN], "known": 6, "object": "list"})}, (404, *_BODY),
        content(ref("BackfillBody"), BACKFILL), (_ID,), "submit",
        "From `from` to before `to`, at most 1,000 of them. Fire times that have run are left alone; those that were"
        " skipped or failed run. Unless overlap is `allow`, one after another. A disabled schedule runs them too; one"
        " that is disabled afterwards skips what still waits.",
    ),
    Operation(
        "get", f"{_ONE}/runs", "list_schedule_runs", "Read what a schedule has run, the latest first",
        {200: content(ref("RunList"), {"data": [RUN], "has_more": False, "object": "list"})}, (404, 422, 503), None,
        (
            _ID,
            parameter("query", "after", {"type": "string", "format": "date-time"}, "The last fire_at so far."),
            _LIMIT,
        ),
        "read",
    ),
)  # fmt: skip


def refine_schedules(schemas: Json) -> None:
    """Say of the schemas what types cannot."""
    for name in ("ScheduleBody", "SchedulePatch", "ScheduleShown"):
        cast("Json", schemas[name]["properties"])["batch"] = {
            "type": "object", "description": "A body of POST /v1/batches, with templates.",
        }  # fmt: skip
