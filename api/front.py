"""The way in: counts every answer, and serves the two hot routes itself.

Litestar's routing and wrappers would be a large part of what a request costs this process. So submitting and reading
a job, which is nearly all that ever arrives, go straight to their handlers; whatever is not plainly one of the two goes
to litestar, where the same handlers stand too. HEAD and OPTIONS, which litestar does not answer or answers in part, are
made of its answers to other methods.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Counter

from api.http import Answer, Call
from api.jobs import JobRoutes
from api.problems import problem
from batchline.metrics import REQUESTS

_JOBS, _JOB = "/v1/jobs", "/v1/jobs/{job_id}"
_TAKEN_NOWHERE = "TRACE"
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
            return
        if scope["method"] == "HEAD":
            scope, receive, send = cast("Scope", {**scope, "method": "GET"}), _nothing, _headed(send)
        elif scope["method"] == "OPTIONS":
            scope, send = cast("Scope", {**scope, "method": _TAKEN_NOWHERE}), _told_methods(send)
        if (route := self._route(cast("dict[str, Any]", scope))) is None:
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


async def _nothing() -> Message:
    """What a client that wants a head only goes on to send: nobody waits for it, and no body is read for it."""
    return cast("Message", {"type": "http.disconnect"})


def _headed(send: Send) -> Send:
    """An answer without its body; its length is told as GET would."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = cast("Message", {**message, "body": b""})
        await send(message)

    return sent


def _told_methods(send: Send) -> Send:
    """A 405 as the answer to OPTIONS: 204 with its Allow header."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.METHOD_NOT_ALLOWED:
            allow = [(name, value) for name, value in message["headers"] if name == b"allow"]
            message = cast("Message", {**message, "status": HTTPStatus.NO_CONTENT, "headers": allow})
            nonlocal told
            told = True
        elif message["type"] == "http.response.body" and told:
            message = cast("Message", {**message, "body": b""})
        await send(message)

    told = False
    return sent


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
