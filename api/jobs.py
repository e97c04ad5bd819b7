"""/v1/jobs: submit, read, list, cancel."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler

from api import prefer
from api.admission import idempotency_key
from api.http import Answer, Call, answer, check_json, headers_of, read_body
from api.queries import an_id, query_of, refused, whole_number
from api.services import Services
from api.shapes import as_json, job_body, job_json, list_json
from batchline.batch import parse_batch_id
from batchline.errors import AlreadyEndedError, NotFoundError, ResultExpiredError
from batchline.job import TERMINAL, JobView, Status, parse_id

AnyRequest = Request[Any, Any, Any]
_NO_JOB = "There is no job with this id."
_LIST_FIELDS = {"status", "model", "batch", "after", "limit"}


class JobRoutes:
    """The handlers; each checks the key first and knows only the key's tenant."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            post("/v1/jobs", name="submit_job")(_for_litestar(self.submit)),
            get("/v1/jobs", name="list_jobs")(self.list),
            get("/v1/jobs/{job_id:str}", name="get_job")(_for_litestar(self.read)),
            post("/v1/jobs/{job_id:str}/cancel", name="cancel_job")(self.cancel),
        ]

    async def submit(self, call: Call) -> Answer:
        s = self._s
        headers = headers_of(call.scope)
        principal = await s.keys.check(headers, "submit")
        key = idempotency_key(headers)
        check_json(headers)
        preferences = prefer.parse(headers.get(b"prefer"))
        raw = await read_body(call.receive, headers, s.settings.max_body_bytes)
        job, chosen = await s.admission.job(raw, principal, key)
        if not preferences.wait_s:
            admitted = await s.commit(job, chosen)
            return self._accepted(await s.reads.read(admitted.id), preferences)
        with s.reads.watch(job.id) as watch:
            admitted = await s.commit(job, chosen)
            if admitted.id == job.id:
                view = await watch.wait(preferences.wait_s, call.receive)
                return self._accepted(view or await s.reads.read(job.id), preferences)
        view = await s.ended(admitted.id, preferences.wait_s, call.receive)
        return self._accepted(view, preferences)

    def _accepted(self, view: JobView | None, preferences: prefer.Preferences) -> Answer:
        if view is None:
            raise ResultExpiredError("This Idempotency-Key belongs to a job that has been deleted.")
        body = job_body(view, self._s.eta_s)
        headers = {"Location": f"/v1/jobs/{body.id}", **preferences.applied}
        if view.status in TERMINAL and preferences.wait_s:
            return answer(200, as_json(body), headers)
        eta_s = body.queue.eta_s if body.queue else None
        headers["Retry-After"] = str(min(max(math.ceil(eta_s or 1.0), 1), 300))
        return answer(202, as_json(body), headers)

    async def read(self, call: Call) -> Answer:
        headers = headers_of(call.scope)
        principal = await self._s.keys.check(headers, "read")
        wanted = parse_id(call.path_params["job_id"])
        preferences = prefer.parse(headers.get(b"prefer"))
        view = await self._s.reads.read(wanted)
        if view is None or view.tenant_id != principal.tenant_id:
            raise NotFoundError(_NO_JOB)
        if preferences.wait_s and view.status not in TERMINAL:
            view = await self._s.ended(wanted, preferences.wait_s, call.receive) or view
        if view.result_pruned:
            raise ResultExpiredError("This job's result has been deleted; results are kept for a limited time.")
        return answer(200, job_json(view, self._s.eta_s), preferences.applied)

    async def list(self, request: AnyRequest) -> Answer:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        query = query_of(request.scope["query_string"], _LIST_FIELDS)
        limit = whole_number(query, "limit", default=20, least=1, most=100)
        try:
            status = Status(query["status"]) if "status" in query else None
        except ValueError:
            raise refused("status", f"must be one of {', '.join(Status)}") from None
        after = an_id(query, "after", parse_id, "job")
        batch = an_id(query, "batch", parse_batch_id, "batch")
        model = query.get("model")
        if model is not None and "\0" in model:
            raise refused("model", "must be the name of a model")
        views = await self._s.ask(
            lambda: self._s.store.jobs.list(
                principal.tenant_id,
                status=status,
                model=model,
                after=after,
                limit=limit + 1,
                batch=batch,
            ),
        )
        return answer(200, list_json(views[:limit], self._s.eta_s, has_more=len(views) > limit))

    async def cancel(self, request: AnyRequest) -> Answer:
        principal = await self._s.keys.check(headers_of(request.scope), "submit")
        wanted = parse_id(request.path_params["job_id"])
        await self._s.ask(lambda: self._s.store.jobs.cancel(principal.tenant_id, [wanted]))
        view = await self._s.reads.read(wanted)
        if view is None or view.tenant_id != principal.tenant_id:
            raise NotFoundError(_NO_JOB)
        if view.status is not Status.CANCELLED:
            raise AlreadyEndedError(f"This job has {view.status.value} already; there is nothing to cancel.")
        return answer(200, job_json(view, self._s.eta_s))


def _for_litestar(handler: Callable[[Call], Awaitable[Answer]]) -> Callable[[AnyRequest], Awaitable[Answer]]:
    async def handle(request: AnyRequest) -> Answer:
        return await handler(Call(request.scope, request.receive, request.path_params))

    return handle
