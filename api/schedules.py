"""/v1/schedules: create, list, read, change, delete, run now, backfill, history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import msgspec
from litestar import Request, delete, get, patch, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api.admission import idempotency_key
from api.http import answer, check_json, headers_of, read_body
from api.owned import owned
from api.queries import an_id, query_of, refused, whole_number
from api.schedule_runs import Runs
from api.schedule_shapes import deleted_json, list_json, run_json, runs_json, schedule_json
from api.services import Services
from batchline import cron
from batchline.batch import parse_schedule_id, show_schedule_id
from batchline.batch_bodies.scheduled import batch_of
from batchline.decoding import from_decoding
from batchline.errors import BatchlineError, ConflictError, Fault, InvalidRequestError, NotFoundError
from batchline.job import new_job_id
from batchline.store.batch_contract import ScheduleView
from batchline.wire_schedules import BackfillBody, ScheduleBody, SchedulePatch

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")
MAX_BATCH_BYTES = 1 << 20
"""Of a schedule's batch body: it is kept, and read at each fire time."""
_ID = "/v1/schedules/{schedule_id:str}"
_THREADS = 2
_TRIES = 20
"""Each that is in vain means that another's change came first."""

_create_decoder = msgspec.json.Decoder(ScheduleBody)
_patch_decoder = msgspec.json.Decoder(SchedulePatch)
_backfill_decoder = msgspec.json.Decoder(BackfillBody)


class ScheduleRoutes:
    """The handlers; each checks the key first and knows only the key's tenant."""

    def __init__(self, services: Services, runs: Runs) -> None:
        self._s = services
        self._runs = runs
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="schedules")

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            post("/v1/schedules", name="create_schedule", status_code=201)(self.create),
            get("/v1/schedules", name="list_schedules")(self.list),
            get(_ID, name="get_schedule")(self.read),
            patch(_ID, name="update_schedule")(self.update),
            put(_ID, name="replace_schedule")(self.replace),
            delete(_ID, name="delete_schedule", status_code=200)(self.delete),
            post(f"{_ID}/run", name="run_schedule", status_code=200)(self.run),
            post(f"{_ID}/backfill", name="backfill_schedule", status_code=200)(self.backfill),
            get(f"{_ID}/runs", name="list_schedule_runs")(self.runs),
        ]

    async def create(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "submit")
        body = await self._body(request, _create_decoder)
        now = await self._s.ask(self._s.store.schedules.now)
        given = ScheduleView(
            id=new_job_id(),
            tenant_id=principal.tenant_id,
            name=body.name,
            cron=body.cron,
            timezone=body.timezone,
            batch=bytes(body.batch).decode(errors="replace"),
            catch_up=body.catch_up,
            overlap=body.overlap,
            enabled=body.enabled,
            created_at=now,
            next_fire_at=None,
        )
        schedule = await self._off_loop(lambda: self._checked(given, now))
        added = await self._s.ask(lambda: self._s.store.schedules.add(schedule))
        if isinstance(added, BatchlineError):
            raise _named_twice(added)
        return answer(201, schedule_json(added), {"Location": f"/v1/schedules/{show_schedule_id(added.id)}"})

    async def list(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        query = query_of(request.scope["query_string"], ("after", "limit"))
        limit = whole_number(query, "limit", default=20, least=1, most=100)
        after = an_id(query, "after", parse_schedule_id, "schedule")
        views = await self._s.ask(
            lambda: self._s.store.schedules.list(principal.tenant_id, after=after, limit=limit + 1)
        )
        return answer(200, list_json(views[:limit], has_more=len(views) > limit))

    async def read(self, request: AnyRequest) -> ASGIResponse:
        return answer(200, schedule_json(await self._view(request, "read")))

    async def update(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        return await self._change(view, await self._body(request, _patch_decoder))

    async def replace(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        return await self._change(view, await self._body(request, _create_decoder))

    async def _change(self, view: ScheduleView, body: ScheduleBody | SchedulePatch) -> ASGIResponse:
        """Change what the body says, whatever others change meanwhile; answer with the schedule as it is then."""
        schedules = self._s.store.schedules
        for _ in range(_TRIES):
            changed = await self._changed(view, body)
            try:
                if await self._s.ask(partial(schedules.update, view, changed)):
                    return answer(200, schedule_json(changed))
            except InvalidRequestError as e:
                raise _named_twice(e) from None
            found = await self._s.ask(partial(schedules.read, view.id))
            if found is None:
                raise _unknown("")
            view = found
        raise ConflictError("Others keep changing this schedule; try again.")

    async def _changed(self, view: ScheduleView, body: ScheduleBody | SchedulePatch) -> ScheduleView:
        given: dict[str, Any] = {k: v for k, v in msgspec.structs.asdict(body).items() if v is not msgspec.UNSET}
        if isinstance(body.batch, msgspec.Raw):
            given["batch"] = bytes(body.batch).decode(errors="replace")
        changes = {k: v for k, v in given.items() if v != getattr(view, k)}
        changed = replace(view, **changes)
        if given.keys() & {"cron", "timezone", "enabled", "batch"}:
            now = await self._s.ask(self._s.store.schedules.now)
            checked = await self._off_loop(lambda: self._checked(changed, now))
            # What is due already still fires, unless the rhythm itself is new.
            keeps = view.enabled and changed.enabled and not changes.keys() & {"cron", "timezone"}
            changed = replace(checked, next_fire_at=view.next_fire_at) if keeps else checked
        return changed

    async def delete(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        if not await self._s.ask(lambda: self._s.store.schedules.delete(view.tenant_id, view.id)):
            raise _unknown(request.path_params["schedule_id"])
        return answer(200, deleted_json(view.id))

    async def run(self, request: AnyRequest) -> ASGIResponse:
        key = idempotency_key(headers_of(request.scope))
        view = await self._view(request, "submit")
        now = await self._s.ask(self._s.store.schedules.now)
        run = await self._off_loop(lambda: self._runs.now(view, now, key))
        return answer(200, run_json(run))

    async def backfill(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        body = await self._body(request, _backfill_decoder)
        now = await self._s.ask(self._s.store.schedules.now)
        done = await self._off_loop(lambda: self._runs.backfill(view, body, now))
        return answer(200, done)

    async def runs(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "read")
        query = query_of(request.scope["query_string"], ("after", "limit"))
        limit = whole_number(query, "limit", default=20, least=1, most=100)
        after = _instant(query["after"]) if "after" in query else None
        found = await self._s.ask(lambda: self._s.store.schedules.runs(view.id, after=after, limit=limit + 1))
        return answer(200, runs_json(found[:limit], has_more=len(found) > limit))

    def _checked(self, schedule: ScheduleView, now: datetime) -> ScheduleView:
        """The schedule with its next fire time, if it can be run as it stands.

        Raises:
            InvalidRequestError: with a fault for each thing that does not fit.
        """
        cron.check(schedule.cron, schedule.timezone)
        if len(schedule.batch) > MAX_BATCH_BYTES:
            raise InvalidRequestError(
                "The schedule does not fit.",
                faults=(Fault("/batch", f"is larger than {MAX_BATCH_BYTES} bytes; name a file instead of rows"),),
            )
        next_at = cron.next_after(schedule.cron, schedule.timezone, now)
        batch_of(schedule, next_at or now, finds=self._runs.finds, rules=self._runs.rules, now=now)
        return replace(schedule, next_fire_at=next_at if schedule.enabled else None)

    async def _body(self, request: AnyRequest, decoder: msgspec.json.Decoder[T]) -> T:
        headers = headers_of(request.scope)
        check_json(headers)
        raw = await read_body(request.receive, headers, self._s.settings.max_body_bytes)
        try:
            return decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise from_decoding(e) from None

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _view(self, request: AnyRequest, scope: str) -> ScheduleView:
        """The schedule that the path names, if the caller may know it."""
        read = self._s.store.schedules.read
        return await owned(self._s, request, scope, parse=parse_schedule_id, read=read, unknown=_unknown)


def _unknown(_: str) -> NotFoundError:
    return NotFoundError("There is no schedule with this id.")


def _named_twice(error: BatchlineError) -> BatchlineError:
    """The store's refusal of a name, with its place."""
    if isinstance(error, InvalidRequestError) and not error.faults:
        return InvalidRequestError("The schedule does not fit.", faults=(Fault("/name", error.detail),))
    return error


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise refused("after", "must be the fire_at of a run") from None
