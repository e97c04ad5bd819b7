"""`client.schedules`: batches that run by themselves; values, calls as generators, and both kinds of clients."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlencode

import msgspec

from batchline.client.calls import Call, Calls, encode
from batchline.errors import InvalidRequestError, NotFoundError

T = TypeVar("T")
_PAGE = 100


class Schedule(msgspec.Struct, frozen=True):
    """A schedule as the server last told it."""

    id: str
    name: str
    cron: str
    timezone: str
    batch: dict[str, Any]
    """A body of POST /v1/batches; its texts may hold `{fire_time:%Y-%m-%d}`."""
    catch_up: str
    overlap: str
    enabled: bool
    created_at: datetime
    next_fire_at: datetime | None


class ScheduleRun(msgspec.Struct, frozen=True):
    """One fire time, and what came of it."""

    fire_at: datetime
    outcome: str
    """submitted, queued, skipped or failed."""
    detail: str | None
    """Why it was queued, skipped, or failed."""
    batch_id: str | None
    batch_status: str | None
    created_at: datetime


class Backfill(msgspec.Struct, frozen=True):
    """What a backfill has begun."""

    data: list[ScheduleRun]
    """The runs that are new."""
    known: int
    """Fire times that had run already."""


class ScheduleOptions(TypedDict, total=False):
    """What a schedule may be told beside its name, its rhythm and its batch."""

    timezone: str
    """A name of the IANA database; UTC when absent."""
    catch_up: Literal["none", "last", "all"]
    """Which of the fire times run that came while no scheduler did."""
    overlap: Literal["skip", "queue", "allow"]
    """What becomes of a fire time that comes while a batch of the schedule runs."""
    enabled: bool


class ScheduleChanges(ScheduleOptions, total=False):
    """What may change."""

    name: str
    cron: str
    batch: Mapping[str, object]


class _SchedulePage(msgspec.Struct):
    data: list[Schedule]
    last_id: str | None
    has_more: bool


class _RunPage(msgspec.Struct):
    data: list[ScheduleRun]
    has_more: bool


class Run(Protocol):
    """How a client drives a call."""

    def __call__(self, call: Call[T]) -> T: ...


class AsyncRun(Protocol):
    """How an asyncio client drives a call."""

    async def __call__(self, call: Call[T]) -> T: ...


@dataclass(frozen=True, slots=True)
class _ScheduleCalls:
    calls: Calls

    def create(self, name: str, cron: str, batch: Mapping[str, object], options: ScheduleOptions) -> Call[Schedule]:
        body = {"name": name, "cron": cron, "batch": batch, **options}
        return self.calls.typed(Schedule, "POST", "/v1/schedules", encode(body))

    def list(self) -> Call[list[Schedule]]:
        found: list[Schedule] = []
        after: str | None = None
        while True:
            query = urlencode({"limit": _PAGE} | ({"after": after} if after else {}))
            page = yield from self.calls.typed(_SchedulePage, "GET", f"/v1/schedules?{query}")
            found += page.data
            after = page.last_id
            if not page.has_more or not after:
                return found

    def get(self, schedule_id: str) -> Call[Schedule]:
        return self.calls.typed(Schedule, "GET", _path(schedule_id))

    def update(self, schedule_id: str, changes: ScheduleChanges) -> Call[Schedule]:
        return self.calls.typed(Schedule, "PATCH", _path(schedule_id), encode(changes))

    def delete(self, schedule_id: str) -> Call[None]:
        yield from self.calls.answer("DELETE", _path(schedule_id), None, {})

    def run(self, schedule_id: str) -> Call[ScheduleRun]:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self.calls.typed(ScheduleRun, "POST", f"{_path(schedule_id)}/run", None, headers)

    def backfill(self, schedule_id: str, start: datetime, end: datetime) -> Call[Backfill]:
        if start.tzinfo is None or end.tzinfo is None:
            raise InvalidRequestError("The stretch has no time zone: give aware datetimes.")
        body = encode({"from": start, "to": end})
        return self.calls.typed(Backfill, "POST", f"{_path(schedule_id)}/backfill", body)

    def runs(self, schedule_id: str, limit: int) -> Call[list[ScheduleRun]]:
        found: list[ScheduleRun] = []
        while True:
            query = {"limit": max(1, min(_PAGE, limit - len(found)))}
            after = {"after": found[-1].fire_at.isoformat()} if found else {}
            path = f"{_path(schedule_id)}/runs?{urlencode(query | after)}"
            page = yield from self.calls.typed(_RunPage, "GET", path)
            found += page.data
            if not page.has_more or len(found) >= limit:
                return found


class Schedules:
    """The schedules of a `Client`."""

    def __init__(self, run: Run, calls: Calls) -> None:
        self._run = run
        self._calls = _ScheduleCalls(calls)

    def create(self, name: str, cron: str, batch: Mapping[str, object], **options: Unpack[ScheduleOptions]) -> Schedule:
        """Make a schedule.

        Args:
            name: unique among the tenant's.
            cron: five fields: minute, hour, day of month, month, day of week.
            batch: a body of POST /v1/batches; its texts may hold `{fire_time:%Y-%m-%d}`.
            **options: see `ScheduleOptions`.

        Raises:
            InvalidRequestError: with a fault for each thing that does not fit.
        """
        return self._run(self._calls.create(name, cron, batch, options))

    def list(self) -> list[Schedule]:
        """All of them, oldest first."""
        return self._run(self._calls.list())

    def get(self, schedule_id: str) -> Schedule:
        """One of them.

        Raises:
            NotFoundError: there is none.
        """
        return self._run(self._calls.get(schedule_id))

    def update(self, schedule_id: str, **changes: Unpack[ScheduleChanges]) -> Schedule:
        """Change what is named; `enabled=False` stops it."""
        return self._run(self._calls.update(schedule_id, changes))

    def delete(self, schedule_id: str) -> None:
        """Delete it with its history; its batches stay."""
        self._run(self._calls.delete(schedule_id))

    def run(self, schedule_id: str) -> ScheduleRun:
        """Run it now, whatever its rhythm."""
        return self._run(self._calls.run(schedule_id))

    def backfill(self, schedule_id: str, start: datetime, end: datetime) -> Backfill:
        """Run the fire times from `start` to before `end` that have not run; both aware, both past."""
        return self._run(self._calls.backfill(schedule_id, start, end))

    def runs(self, schedule_id: str, *, limit: int = 100) -> list[ScheduleRun]:
        """What it has run, the latest first."""
        return self._run(self._calls.runs(schedule_id, limit))


class AsyncSchedules:
    """The schedules of an `AsyncClient`; see `Schedules`."""

    def __init__(self, run: AsyncRun, calls: Calls) -> None:
        self._run = run
        self._calls = _ScheduleCalls(calls)

    async def create(
        self, name: str, cron: str, batch: Mapping[str, object], **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """See `Schedules.create`."""
        return await self._run(self._calls.create(name, cron, batch, options))

    async def list(self) -> list[Schedule]:
        """See `Schedules.list`."""
        return await self._run(self._calls.list())

    async def get(self, schedule_id: str) -> Schedule:
        """See `Schedules.get`."""
        return await self._run(self._calls.get(schedule_id))

    async def update(self, schedule_id: str, **changes: Unpack[ScheduleChanges]) -> Schedule:
        """See `Schedules.update`."""
        return await self._run(self._calls.update(schedule_id, changes))

    async def delete(self, schedule_id: str) -> None:
        """See `Schedules.delete`."""
        await self._run(self._calls.delete(schedule_id))

    async def run(self, schedule_id: str) -> ScheduleRun:
        """See `Schedules.run`."""
        return await self._run(self._calls.run(schedule_id))

    async def backfill(self, schedule_id: str, start: datetime, end: datetime) -> Backfill:
        """See `Schedules.backfill`."""
        return await self._run(self._calls.backfill(schedule_id, start, end))

    async def runs(self, schedule_id: str, *, limit: int = 100) -> list[ScheduleRun]:
        """See `Schedules.runs`."""
        return await self._run(self._calls.runs(schedule_id, limit))


def _path(schedule_id: str) -> str:
    if not schedule_id:
        raise NotFoundError("There is no schedule with an empty id.")
    return f"/v1/schedules/{quote(schedule_id, safe='')}"
