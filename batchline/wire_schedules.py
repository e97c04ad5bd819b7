"""The JSON shapes of schedules and their runs; see `wire`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern="^[^\\x00]*$")]
CatchUp = Literal["none", "last", "all"]
Overlap = Literal["skip", "queue", "allow"]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class ScheduleBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/schedules."""

    name: Name
    cron: str
    batch: msgspec.Raw
    """A body of POST /v1/batches; every text in it may hold `{fire_time:%Y-%m-%d}`."""
    timezone: str = "UTC"
    catch_up: CatchUp = "last"
    overlap: Overlap = "skip"
    enabled: bool = True


class SchedulePatch(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH /v1/schedules/{id}: what is named changes."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    cron: str | msgspec.UnsetType = msgspec.UNSET
    batch: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    timezone: str | msgspec.UnsetType = msgspec.UNSET
    catch_up: CatchUp | msgspec.UnsetType = msgspec.UNSET
    overlap: Overlap | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class ScheduleShown(msgspec.Struct):
    """A schedule as every route shows it."""

    id: str
    name: str
    cron: str
    timezone: str
    batch: msgspec.Raw
    catch_up: str
    overlap: str
    enabled: bool
    created_at: str
    next_fire_at: str | None
    object: str = "schedule"


class ScheduleList(msgspec.Struct):
    """GET /v1/schedules: oldest first."""

    data: list[ScheduleShown]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class ScheduleDeleted(msgspec.Struct):
    """DELETE /v1/schedules/{id}."""

    id: str
    deleted: bool
    object: str = "schedule"


class RunShown(msgspec.Struct):
    """One fire time, and what came of it: submitted, queued, skipped or failed."""

    fire_at: str
    outcome: str
    detail: str | None
    """Why it was skipped, queued, or failed."""
    batch_id: str | None
    batch_status: str | None
    created_at: str
    object: str = "schedule.run"


class RunList(msgspec.Struct):
    """GET /v1/schedules/{id}/runs: the latest fire time first."""

    data: list[RunShown]
    has_more: bool
    object: str = "list"


class BackfillBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/schedules/{id}/backfill: the fire times from `from` to before `to`."""

    start: Instant = msgspec.field(name="from")
    end: Instant = msgspec.field(name="to")


class Backfilled(msgspec.Struct):
    """What a backfill has begun."""

    data: list[RunShown]
    """The runs that are new, in the order of fire times."""
    known: int
    """Fire times that had run already."""
    object: str = "list"
