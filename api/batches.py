"""/v1/batches: submit, read, list, cancel, pause, resume, retry, results."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api.admission import idempotency_key
from api.batch_shapes import batch_json, batch_list_json
from api.files import FileRoutes, not_kept
from api.http import answer, check_json, headers_of, read_body
from api.owned import owned
from api.queries import an_id, query_of, whole_number
from api.schedule_runs import Runs
from api.schedules import ScheduleRoutes
from api.services import Services
from api.streams import streamed
from batchline.batch import BATCH_TERMINAL, BatchView, DataSet, NewBatch, parse_batch_id
from batchline.batch_bodies import Checked, Rules, check, retry_of
from batchline.clock import Clock
from batchline.data import places_of
from batchline.data.blobs import Blobs
from batchline.errors import (
    AlreadyEndedError,
    BatchlineError,
    Fault,
    InvalidRequestError,
    NotFoundError,
    ResultExpiredError,
    SinkError,
)
from batchline.job import Admitted
from batchline.model import ModelRecord
from batchline.store.batch_contract import FileView

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")
_MAX_ROWS = 10**15
_THREADS = 4
_ID = "/v1/batches/{batch_id:str}"


def data_routes(services: Services, clock: Clock) -> list[HTTPRouteHandler]:
    """The handlers of /v1/files, /v1/batches and /v1/schedules, over one blob store."""
    blobs = Blobs(places_of(services.settings))
    settings = services.settings
    runs = Runs(services.store, blobs, _Finds(services), Rules.of(settings), most=settings.max_open_batches_tenant)
    return [
        *FileRoutes(services, blobs, clock).handlers(),
        *BatchRoutes(services, blobs, clock).handlers(),
        *ScheduleRoutes(services, runs).handlers(),
    ]


class _Finds:
    """`batchline.batch_bodies.Finds` over what the API knows."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def model(self, name: str, version: str | int | None) -> ModelRecord:
        return self._s.models.resolve_now(name, version)

    def file(self, file_id: uuid.UUID) -> FileView | None:
        return self._s.store.files.read(file_id)


class BatchRoutes:
    """The handlers; each checks the key first and knows only the key's tenant."""

    def __init__(self, services: Services, blobs: Blobs, clock: Clock) -> None:
        self._s = services
        self._blobs = blobs
        self._clock = clock
        self._rules = Rules.of(services.settings)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="batches")

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            post("/v1/batches", name="create_batch")(self.create),
            get("/v1/batches", name="list_batches")(self.list),
            get(_ID, name="get_batch")(self.read),
            post(f"{_ID}/cancel", name="cancel_batch")(self.cancel),
            post(f"{_ID}/pause", name="pause_batch")(self.pause),
            post(f"{_ID}/resume", name="resume_batch")(self.resume),
            post(f"{_ID}/retry", name="retry_batch")(self.retry),
            get(f"{_ID}/results", name="get_batch_results")(self.results),
        ]

    async def create(self, request: AnyRequest) -> ASGIResponse:
        s = self._s
        headers = headers_of(request.scope)
        principal = await s.keys.check(headers, "submit")
        key = idempotency_key(headers)
        check_json(headers)
        raw = await read_body(request.receive, headers, s.settings.max_body_bytes)

        def read() -> Checked:
            return check(raw, tenant_id=principal.tenant_id, finds=_Finds(s), rules=self._rules, now=self._clock.now())

        checked = await self._off_loop(read)
        if checked.rows is not None:
            rows = checked.rows
            try:
                await self._off_loop(lambda: self._blobs.put(rows.file.blob, [rows.jsonl]))
            except SinkError as e:
                raise not_kept(e) from e
            await s.ask(lambda: s.store.files.add(rows.file))
        batch = dataclasses.replace(checked.batch, idempotency_key=key, body_hash=_hash(raw) if key else None)
        admitted = await self._admitted(batch)
        if checked.rows is not None and (isinstance(admitted, BatchlineError) or admitted.id != batch.id):
            file_id = checked.rows.file.id
            await s.ask(lambda: s.store.files.delete(principal.tenant_id, file_id))
        if isinstance(admitted, BatchlineError):
            raise admitted
        return await self._shown(principal.tenant_id, admitted.id)

    async def _admitted(self, batch: NewBatch) -> Admitted | BatchlineError:
        most = self._s.settings.max_open_batches_tenant
        return await self._s.ask(lambda: self._s.store.batches.submit(batch, most=most))

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def read(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "read")
        return await self._told(view)

    async def list(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        query = query_of(request.scope["query_string"], ("after", "limit"))
        limit = whole_number(query, "limit", default=20, least=1, most=100)
        after = an_id(query, "after", parse_batch_id, "batch")
        page = await self._s.ask(lambda: self._s.store.batches.list(principal.tenant_id, after=after, limit=limit))
        costs = await self._s.ask(lambda: self._s.store.costs.of_batches([view.id for view in page.batches]))
        return answer(200, batch_list_json(list(page.batches), costs, has_more=page.has_more))

    async def cancel(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        await self._s.ask(lambda: self._s.store.batches.cancel(view.tenant_id, view.id))
        view = await self._again(view)
        if view.cancelling_at is None and view.cancelled_at is None:
            raise _too_late("cancel", view)
        return await self._told(view)

    async def pause(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        if not await self._s.ask(lambda: self._s.store.batches.pause(view.tenant_id, view.id)):
            raise _too_late("pause", await self._again(view))
        return await self._told(await self._again(view))

    async def resume(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        if not await self._s.ask(lambda: self._s.store.batches.resume(view.tenant_id, view.id)):
            raise _too_late("resume", await self._again(view))
        return await self._told(await self._again(view))

    async def retry(self, request: AnyRequest) -> ASGIResponse:
        s = self._s
        headers = headers_of(request.scope)
        key = idempotency_key(headers)
        view = await self._view(request, "submit")
        if view.status not in BATCH_TERMINAL:
            raise AlreadyEndedError(f"Cannot retry a batch with status '{view.status.value}': it has not ended.")
        counts = view.counts
        was_cut = view.in_progress_at is not None
        if was_cut and not counts.failed + counts.cancelled + counts.expired:
            raise AlreadyEndedError("There is nothing to retry: no row of this batch failed or was left undone.")
        if view.results_pruned or await self._is_input_gone(view):
            raise ResultExpiredError("What this batch was made of has been deleted; submit it anew.")
        model_id = None
        if view.kind == "data_set" and view.model is not None:
            model_id = (await s.models.resolve(view.model, view.version)).id
        child = retry_of(view, model_id)
        body_hash = hashlib.sha256(b"retry\0" + view.id.bytes).digest() if key else None
        admitted = await self._admitted(dataclasses.replace(child, idempotency_key=key, body_hash=body_hash))
        if isinstance(admitted, BatchlineError):
            raise admitted
        return await self._shown(view.tenant_id, admitted.id)

    async def _is_input_gone(self, view: BatchView) -> bool:
        file_id = view.input_file_id
        return file_id is not None and await self._s.ask(lambda: self._s.store.files.read(file_id)) is None

    async def results(self, request: AnyRequest) -> ASGIResponse:
        s = self._s
        view = await self._view(request, "read")
        query = query_of(request.scope["query_string"], ("after", "limit"))
        after = whole_number(query, "after", default=-1, least=0, most=_MAX_ROWS)
        limit = whole_number(query, "limit", default=_MAX_ROWS, least=1, most=_MAX_ROWS)
        _check_kept_here(view)
        if view.results_pruned or self._is_past(view):
            raise ResultExpiredError("This batch's results have been deleted; results are kept for a limited time.")
        # Asked before the lines are read: whatever it had by then is in them.
        headers = {"Batchline-Complete": "true" if view.status in BATCH_TERMINAL else "false"}
        pieces = lambda: s.store.results.read(view.id, after=after, limit=limit)  # noqa: E731
        return await streamed(pieces, headers, "application/jsonl", self._threads)

    def _is_past(self, view: BatchView) -> bool:
        ended = view.completed_at or view.failed_at or view.expired_at or view.cancelled_at
        return ended is not None and ended + timedelta(seconds=self._s.settings.results_kept_s) < self._clock.now()

    async def _view(self, request: AnyRequest, scope: str) -> BatchView:
        """The batch that the path names, if the caller may know it."""
        read = self._s.store.batches.read
        return await owned(self._s, request, scope, parse=parse_batch_id, read=read, unknown=_unknown)

    async def _told(self, view: BatchView) -> ASGIResponse:
        costs = await self._s.ask(lambda: self._s.store.costs.of_batches([view.id]))
        return answer(200, batch_json(view, costs.get(view.id)))

    async def _again(self, view: BatchView) -> BatchView:
        return await self._s.ask(lambda: self._s.store.batches.read(view.id)) or view

    async def _shown(self, tenant_id: int, batch_id: uuid.UUID) -> ASGIResponse:
        view = await self._s.ask(lambda: self._s.store.batches.read(batch_id))
        if view is None or view.tenant_id != tenant_id:
            raise ResultExpiredError("This Idempotency-Key belongs to something that is no batch, or has been deleted.")
        return await self._told(view)


def _check_kept_here(view: BatchView) -> None:
    """Raise unless the results of this batch are read through us."""
    told = ""
    if view.kind == "requests":
        told = "has its results in files: read output_file_id and error_file_id"
    else:
        output = msgspec.json.decode(view.body, type=DataSet).output
        place = output.uri or output.table
        if place:
            told = f"has its results where it was told to put them: {place}"
    if told:
        raise InvalidRequestError("There are no results here.", faults=(Fault("/batch_id", told),))


def _too_late(what: str, view: BatchView) -> AlreadyEndedError:
    return AlreadyEndedError(f"Cannot {what} a batch with status '{view.status.value}'.")


def _unknown(text: str) -> NotFoundError:
    return NotFoundError(f"No batch found with id '{text[:100]}'.")


def _hash(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()
