"""The way in: counts every answer, and serves the two hot routes itself.

Litestar's routing and wrappers would be a large part of what a request costs this process. So submitting and reading
a job, which is nearly all that ever arrives, go straight to their handlers; whatever is not plainly one of the two goes
to litestar, where the same handlers stand too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Counter

from api.http import Answer, Call
from api.jobs import JobRoutes
from api.problems import problem
from batchline.metrics import REQUESTS

_JOBS, _JOB = "/v1/jobs", "/v1/jobs/{job_id}"
_PLAIN_HOST = re.compile(rb"[0-9A-Za-z.:\-\[\]]*")
"""Litestar judges all others."""


class _Route(NamedTuple):
    template: str
    handler: Callable[[Call], Awaitable[Answer]]
    path_params: dict[str, str]


class Front:
    """The application as the server calls it."""

    def __init__(self, app: ASGIApp, jobs: JobRoutes) -> None:
        self._app = app
        self._submit = _Route(_JOBS, jobs.submit, {})
        self._read = jobs.read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (route := self._route(cast("dict[str, Any]", scope))) is None:
            await self._app(scope, receive, _counted(cast("dict[str, Any]", scope), send))
        else:
            try:
                answer = await route.handler(Call(scope, receive, route.path_params))
            except Exception as error:
                answer = problem(scope, error)
            _counter(route.template, answer.status).inc()
            await answer(scope, receive, send)

    def _route(self, scope: dict[str, Any]) -> _Route | None:
        path: str = scope["path"]
        if not path.startswith(_JOBS) or not _has_plain_host(scope):
            return None
        method = scope["method"]
        if method == "POST":
            return self._submit if path == _JOBS else None
        parent, _, job_id = path.rpartition("/")
        if method == "GET" and parent == _JOBS and job_id:
            return _Route(_JOB, self._read, {"job_id": job_id})
        return None


def _has_plain_host(scope: dict[str, Any]) -> bool:
    for name, value in scope["headers"]:
        if name == b"host":
            return _PLAIN_HOST.fullmatch(value) is not None
    return True


def _counted(scope: dict[str, Any], send: Send) -> Send:
    """Count the answer by the route that litestar finds for it."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            _counter(scope.get("path_template") or "none", message["status"]).inc()
        await send(message)

    return sent


@functools.lru_cache(1024)
def _counter(route: str, status: int) -> Counter:
    """Prometheus takes long to find one by its labels."""
    return REQUESTS.labels(route, str(status))
